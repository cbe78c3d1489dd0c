//! How many addresses a second are given and taken back: by the pool alone, by the pool with the record on disk that every pod
//! has, and by an ordered set of numbers, which is what no pool of addresses can be quicker than.
//!
//! ```text
//! ipam_rate DIRECTORY PAIRS     prints {"pool": R, "recorded": R, "set": R}
//! ```

use std::collections::BTreeSet;
use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use podwire_agent::endpoint::Endpoint;
use podwire_agent::ipam::Pool;
use podwire_agent::store::Store;

/// As many pods as a busy node has.
const PODS: u32 = 200;

/// How often a second `pair` is done.
fn rate(pairs: u32, mut pair: impl FnMut(u32) -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let start = Instant::now();
    for i in 0..pairs {
        pair(i)?;
    }
    Ok(f64::from(pairs) / start.elapsed().as_secs_f64())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, pairs] = args.as_slice() else { return Err("usage: ipam_rate DIRECTORY PAIRS".into()) };
    let pairs: u32 = pairs.parse()?;
    let store = Store::open(Path::new(dir))?;
    let mut pool = Pool::new(&["10.0.0.0/24".parse()?])?;
    let mut set = BTreeSet::new();
    for i in 0..PODS {
        pool.allocate(&format!("default/pod-{i}"))?;
        set.insert(i);
    }
    let plain = rate(pairs, |i| {
        let number = PODS + i % 54;
        set.insert(black_box(number));
        set.remove(&black_box(number));
        Ok(())
    })?;
    let alone = rate(pairs, |_| {
        let ip = pool.allocate(black_box("default/bench"))?;
        pool.free(black_box(ip));
        Ok(())
    })?;
    // A file each: fewer of them take long enough.
    let recorded = rate(pairs.div_ceil(50), |i| {
        let ip = pool.allocate("default/bench")?;
        let endpoint = Endpoint {
            id: 1,
            ip,
            gateway: pool.router(),
            mtu: 1500,
            network: "podwire".into(),
            container_id: format!("c{i}"),
            ifname: "eth0".into(),
            netns: "/run/netns/bench".into(),
            namespace: "default".into(),
            pod: "bench".into(),
        };
        store.save(&endpoint)?;
        store.remove(&endpoint.key().device())?;
        pool.free(ip);
        Ok(())
    })?;
    println!(r#"{{"pool": {alone:.0}, "recorded": {recorded:.0}, "set": {plain:.0}}}"#);
    Ok(())
}
