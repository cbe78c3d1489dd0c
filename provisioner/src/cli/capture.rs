//! `lab capture`.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use podwire_conformance::Tap;
use podwire_conformance::capture::{self, CaptureOptions};
use podwire_conformance::filter::Filter;

use super::{Ended, Format, Output, print_json};
use crate::error::{Failure, OrFailure};
use crate::netns::namespace;
use crate::state::{Running, StateRoot};

/// Capture packets.
#[derive(Args)]
pub(super) struct Capture {
    /// Where to listen; default: every node's devices on subnets
    #[arg(long, value_name = "NODE:IF")]
    on: Vec<String>,
    /// Keep only matching packets, for example "icmp or tcp port 80"
    #[arg(long, value_name = "FILTER")]
    filter: Option<Filter>,
    /// End after so long, for example 5s, 500ms or 2m; default: Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    /// End after so many packets
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Bytes kept of each packet; 0 for all
    #[arg(long, value_name = "BYTES", default_value_t = capture::DEFAULT_SNAPLEN)]
    snaplen: u32,
    /// The pcapng file to write
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// The lab, where several run
    #[arg(long)]
    lab: Option<String>,
    /// Capture while this command runs, and end with it; its exit code is passed through
    #[arg(last = true, value_name = "CMD", conflicts_with_all = ["duration", "count"])]
    command: Vec<String>,
    #[command(flatten)]
    format: Format,
}

/// A time with its unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| "write a number with a unit, for example 5s".to_owned())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" | "" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(format!("{unit:?} is no unit; write ms, s or m, for example 5s")),
    }
}

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn stop(_: i32) {
    STOP.store(true, Ordering::Release);
}

impl Capture {
    pub(super) fn run(self) -> Result<(), Ended> {
        let (_, running) = StateRoot::from_env().pick(self.lab.as_deref())?;
        let taps = self.taps(&running)?;
        let names: Vec<String> = taps.iter().map(|t| t.name().to_owned()).collect();
        let options = CaptureOptions {
            filter: self.filter.clone(),
            duration: self.duration,
            packets: self.count,
            // As tcpdump has it, and as the file says of such an interface.
            snaplen: if self.snaplen == 0 { capture::DEFAULT_SNAPLEN } else { self.snaplen },
            comment: Some(format!("lab {}", running.lab.name)),
        };
        super::on_interrupt(stop);
        let ends = if !self.command.is_empty() {
            "; ends with the command"
        } else if self.duration.is_none() && self.count.is_none() {
            "; Ctrl-C ends"
        } else {
            ""
        };
        let mut under_way = None;
        let stats = capture::run(taps, &options, &self.write, &STOP, || {
            eprintln!("capturing on {}{ends}", names.join(", "));
            under_way = self.start();
        })
        .or_failure("capture", "give a writable file with -w")?;
        let code = match under_way {
            Some(thread) => thread.join().unwrap_or(Err(std::io::ErrorKind::Other.into())),
            None => Ok(0),
        }
        .or_failure(self.command.first().cloned().unwrap_or_default(), "check its name and your PATH")?;
        if self.format.output == Output::Json {
            print_json(&stats)?;
            return if code == 0 { Ok(()) } else { Err(Ended::Code(code)) };
        }
        for interface in &stats.interfaces {
            let lost = interface.lost.as_ref().map(|why| format!("; ended early: {why}")).unwrap_or_default();
            eprintln!(
                "{:<24} {:>8} written {:>8} filtered {:>6} lost{lost}",
                interface.name, interface.written, interface.filtered, interface.kernel.dropped
            );
        }
        eprintln!("{} packets in {}", stats.written, self.write.display());
        if code == 0 { Ok(()) } else { Err(Ended::Code(code)) }
    }

    /// Starts the command, if there is one, in a thread that ends the capture with it and gives its exit code.
    fn start(&self) -> Option<std::thread::JoinHandle<std::io::Result<u8>>> {
        let (program, args) = self.command.split_first()?;
        let mut command = std::process::Command::new(program);
        command.args(args);
        Some(std::thread::spawn(move || {
            let status = command.status();
            STOP.store(true, Ordering::Release);
            Ok(super::exec::code(status?))
        }))
    }

    fn taps(&self, running: &Running) -> Result<Vec<Box<dyn Tap>>, Ended> {
        let everywhere = running
            .lab
            .nodes
            .iter()
            .flat_map(|n| n.interfaces.iter().map(move |i| (n.name.clone(), i.name.clone())));
        let places: Vec<(String, String)> = if self.on.is_empty() {
            everywhere.collect()
        } else {
            self.on.iter().map(|on| place(running, on)).collect::<Result<_, _>>()?
        };
        places.iter().map(|(node, interface)| Ok(open(running, node, interface)?)).collect()
    }
}

fn place(running: &Running, on: &str) -> Result<(String, String), Ended> {
    let wrong = |cause: &str, mend: String| Ended::Wrong(format!("--on {on:?}: {cause}; {mend}"));
    let (node, interface) = on
        .split_once(':')
        .filter(|(node, interface)| !node.is_empty() && !interface.is_empty())
        .ok_or_else(|| wrong("it is not NODE:INTERFACE", "write for example k8s-ctr:eth1".into()))?;
    if running.lab.node(node).is_none() {
        let names: Vec<&str> = running.lab.nodes.iter().map(|n| n.name.as_str()).collect();
        return Err(wrong("there is no such node", format!("the nodes are {}", names.join(", "))));
    }
    Ok((node.to_owned(), interface.to_owned()))
}

/// A tap on an interface of a node.
pub(super) fn open(running: &Running, node: &str, interface: &str) -> Result<Box<dyn Tap>, Failure> {
    let name = crate::plan::namespace(&running.lab.name, node);
    let thing = format!("tap {node}:{interface}");
    let file = namespace::open(&name).or_failure(&thing, "repair the lab: lab up")?;
    let tap = capture::open_packet_tap(Some(file.as_fd()), node, interface)
        .or_failure(thing, format!("see the node's devices: lab exec {node} -- ip link"))?;
    Ok(Box::new(tap))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("s").is_err() && duration("5h").unwrap_err().contains("ms, s or m"));
    }
}
