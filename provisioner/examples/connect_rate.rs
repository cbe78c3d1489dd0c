//! Connections a second: a server that accepts and closes, and a client that opens connections as fast as it can.
//!
//! ```text
//! connect_rate serve PORT
//! connect_rate load IP:PORT THREADS SECONDS     prints {"connections": N, "per_second": R, "errors": E}
//! ```
//!
//! Each connection carries one byte each way, so that both handshakes and both closes are paid for.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

fn serve(port: u16) -> std::io::Result<()> {
    let listener = TcpListener::bind(("0.0.0.0", port))?;
    println!("listening");
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut byte = [0];
        // A client that gave up is its own affair.
        if stream.read_exact(&mut byte).is_ok() {
            let _ = stream.write_all(&byte);
        }
    }
    Ok(())
}

fn once(to: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    // The server closes first, so that TIME_WAIT stays there and the client does not run out of ports.
    let _ = stream.read(&mut byte);
    Ok(())
}

fn load(to: SocketAddr, threads: usize, seconds: u64) {
    let (done, errors) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let stop = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let (done, errors, stop) = (done.clone(), errors.clone(), stop.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let counter = if once(to).is_ok() { &done } else { &errors };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    std::thread::sleep(Duration::from_secs(seconds));
    stop.store(true, Ordering::Relaxed);
    for worker in workers {
        let _ = worker.join();
    }
    let n = done.load(Ordering::Relaxed);
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = n as f64 / start.elapsed().as_secs_f64();
    println!(
        "{{\"connections\": {n}, \"per_second\": {rate:.1}, \"errors\": {}}}",
        errors.load(Ordering::Relaxed)
    );
}

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let bad = || std::io::Error::other("usage: connect_rate serve PORT | load IP:PORT THREADS SECONDS");
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", port] => serve(port.parse().map_err(|_| bad())?),
        ["load", to, threads, seconds] => {
            load(
                to.parse().map_err(|_| bad())?,
                threads.parse().map_err(|_| bad())?,
                seconds.parse().map_err(|_| bad())?,
            );
            Ok(())
        }
        _ => Err(bad()),
    }
}
