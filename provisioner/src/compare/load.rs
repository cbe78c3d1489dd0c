//! The load: threads of this program that stand in the network namespaces of pods or nodes, and speak TCP with each other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

use super::stats::percentile;

/// Longest silence of the other side.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes written at once.
const CHUNK: usize = 128 << 10;
/// Bytes of a question, and of its answer.
pub const MESSAGE: usize = 64;
/// What a connection is for: its first byte.
const SINK: u8 = b's';
const ECHO: u8 = b'e';
const HELLO: u8 = b'c';

/// Runs `work` in a network namespace.
pub fn inside<T: Send>(namespace: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        inside.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked")))
    })
}

/// A server in a namespace, for as long as `work` runs, which is given its address.
pub fn with_server<T>(
    namespace: &File,
    address: Ipv4Addr,
    work: impl FnOnce(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let listener = inside(namespace, || TcpListener::bind((address, 0)))?;
    let at = listener.local_addr()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (listener, told) = (&listener, &stop);
        scope.spawn(move || {
            for stream in listener.incoming() {
                if told.load(Ordering::Acquire) {
                    return;
                }
                // A client that goes away notices itself what it did not get.
                let Ok((kind, stream)) = stream.and_then(kind) else { continue };
                if kind == HELLO {
                    // Answered by this thread: to begin one would take longer than the connection.
                    let _ = serve(kind, stream);
                } else {
                    scope.spawn(move || serve(kind, stream));
                }
            }
        });
        let outcome = work(at);
        stop.store(true, Ordering::Release);
        // Wakes the server, so that it sees that it may go.
        let woken = inside(namespace, || TcpStream::connect_timeout(&at, PATIENCE));
        outcome.and_then(|outcome| woken.map(|_| outcome))
    })
}

/// What a new connection is for.
fn kind(mut stream: TcpStream) -> io::Result<(u8, TcpStream)> {
    ready(&stream)?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    Ok((kind[0], stream))
}

fn ready(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))
}

fn serve(kind: u8, mut stream: TcpStream) -> io::Result<()> {
    match kind {
        SINK => {
            let mut buffer = vec![0; CHUNK];
            let mut count = 0_u64;
            loop {
                match stream.read(&mut buffer)? {
                    0 => return stream.write_all(&count.to_be_bytes()),
                    length => count += length as u64,
                }
            }
        }
        ECHO => {
            let mut message = [0; MESSAGE];
            while stream.read_exact(&mut message).is_ok() {
                stream.write_all(&message)?;
            }
            Ok(())
        }
        _ => stream.write_all(&[HELLO]),
    }
}

fn call(to: SocketAddr, kind: u8) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    ready(&stream)?;
    stream.write_all(&[kind])?;
    Ok(stream)
}

/// What one stream carried.
#[derive(Clone, Copy, Debug)]
pub struct Streamed {
    /// Bytes that came.
    pub bytes: u64,
    /// So long it took.
    pub time: Duration,
    /// CPU time that the whole machine spent meanwhile, whoever for.
    pub cpu: Duration,
}

/// Sends for so long as fast as it goes.
pub fn stream(to: SocketAddr, time: Duration) -> io::Result<Streamed> {
    let mut stream = call(to, SINK)?;
    let chunk = vec![0; CHUNK];
    let (start, cpu) = (Instant::now(), cpu_time()?);
    while start.elapsed() < time {
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    Ok(Streamed {
        bytes: u64::from_be_bytes(count),
        time: start.elapsed(),
        cpu: cpu_time()?.saturating_sub(cpu),
    })
}

/// Asks one question after the other for so long; median and 99th percentile of the time to the answer.
pub fn questions(to: SocketAddr, time: Duration) -> io::Result<(f64, f64)> {
    let mut stream = call(to, ECHO)?;
    let mut message = [7; MESSAGE];
    let mut taken = Vec::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let asked = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        taken.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    taken.sort_by(f64::total_cmp);
    match (percentile(&taken, 0.5), percentile(&taken, 0.99)) {
        (Some(median), Some(tail)) => Ok((median, tail)),
        _ => Err(io::Error::other("no question was answered in time")),
    }
}

/// Connects one time after the other for so long; connections a second.
pub fn connections(to: SocketAddr, time: Duration) -> io::Result<f64> {
    let start = Instant::now();
    let mut count = 0_u32;
    while start.elapsed() < time {
        let mut stream = call(to, HELLO)?;
        stream.read_exact(&mut [0])?;
        count += 1;
    }
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

/// CPU time that the machine has spent since it booted, in whatever way but waiting (proc(5), /proc/stat).
fn cpu_time() -> io::Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
    let hertz = hertz.and_then(|hertz| u64::try_from(hertz).ok()).filter(|hertz| *hertz > 0).unwrap_or(100);
    busy_ticks(&text)
        .map(|busy| Duration::from_nanos(busy * (1_000_000_000 / hertz)))
        .ok_or_else(|| io::Error::other("/proc/stat is not as expected"))
}

/// User, nice, system, irq and softirq of the first line; idle, iowait and what guests and the hypervisor take are not ours.
fn busy_ticks(stat: &str) -> Option<u64> {
    let numbers: Vec<u64> =
        stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|n| n.parse().ok()).collect();
    [0, 1, 2, 5, 6].into_iter().map(|i: usize| numbers.get(i)).sum::<Option<u64>>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_does_what_each_client_wants() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let at = listener.local_addr().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for stream in listener.incoming().take(3) {
                    let (kind, stream) = kind(stream.unwrap()).unwrap();
                    scope.spawn(move || serve(kind, stream));
                }
            });
            let none = Duration::from_millis(20);
            let streamed = stream(at, none).unwrap();
            assert!(streamed.bytes >= CHUNK as u64 && streamed.time >= none);
            let (median, tail) = questions(at, none).unwrap();
            assert!(median > 0.0 && tail >= median);
            let mut hello = call(at, HELLO).unwrap();
            hello.read_exact(&mut [0]).unwrap();
        });
    }

    #[test]
    fn waiting_is_no_work() {
        assert_eq!(busy_ticks("cpu  1 2 4 800 900 8 16 700 0 0\ncpu0 5 5 5 5\n"), Some(31));
        assert_eq!(busy_ticks("cpu 1 2"), None);
        assert_eq!(busy_ticks("intr 1"), None);
    }
}
