//! The API server on the host: a process that listens on a port of 127.0.0.1 and connects from inside the control
//! plane's namespace. The listening socket is all that the host's network sees.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Failure, OrFailure};
use crate::netns::namespace;
use crate::netns::process::{MARKER, Process};
use crate::state::{LabState, Running, write_whole};

const FILE: &str = "forward.json";
const CONNECT: Duration = Duration::from_secs(5);

/// A running forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarder {
    /// Its process.
    pub process: Process,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

/// The lab's forwarder, if it runs.
pub fn find(state: &LabState, id: &str) -> Option<Forwarder> {
    recorded(state).filter(|f| f.process.is_alive() && f.process.has_marker(id))
}

fn recorded(state: &LabState) -> Option<Forwarder> {
    serde_json::from_slice(&fs::read(state.dir().join(FILE)).ok()?).ok()
}

/// Starts the lab's forwarder unless it runs, on the port that it had before if that is free.
pub fn ensure(
    state: &LabState,
    running: &Running,
    note: impl FnOnce() -> Result<(), Failure>,
) -> Result<Forwarder, Failure> {
    if let Some(found) = find(state, &running.id) {
        return Ok(found);
    }
    let thing = "forwarder to the API server";
    let target = running
        .lab
        .control_plane()
        .and_then(|n| Some((crate::plan::namespace(&running.lab.name, &n.name), n.internal_ip()?)))
        .ok_or_else(|| Failure::new(thing, "the lab has no control plane", "report this as a bug"))?;
    let server = SocketAddrV4::new(target.1, podwire_api::names::API_SERVER_PORT);
    let port = recorded(state).map_or(0, |f| f.port);
    note()?;
    let log = state.dir().join("forward.log");
    let mend = format!("see {}", log.display());
    let errors = fs::File::create(&log).or_failure(thing, "free space in the state directory")?;
    let program = std::env::current_exe().or_failure(thing, "keep the program where it was started")?;
    let mut child = Command::new(program)
        .args([
            "forward",
            "--namespace",
            &target.0,
            "--server",
            &server.to_string(),
            "--port",
            &port.to_string(),
        ])
        .env_clear()
        .env(MARKER, &running.id)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .or_failure(thing, &mend)?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut line).or_failure(thing, &mend)?;
    }
    let process = Process::of(i32::try_from(child.id()).unwrap_or_default());
    let (Some(process), Ok(port)) = (process, line.trim().parse()) else {
        return Err(Failure::new(thing, "it ended at once", mend));
    };
    let forwarder = Forwarder { process, port };
    let text = serde_json::to_vec(&forwarder).or_failure(thing, "report this as a bug")?;
    write_whole(&state.dir().join(FILE), &text)?;
    Ok(forwarder)
}

/// The forwarder itself: says its port on standard output, then serves until it is killed.
pub fn serve(namespace: &str, server: SocketAddrV4, port: u16) -> Result<(), Failure> {
    let thing = "forwarder to the API server";
    // A session of its own: the terminal's signals are not for it.
    nix::unistd::setsid().or_failure(thing, "start it through `lab up`")?;
    let at = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
    let listener = at(port).or_else(|_| at(0)).or_failure(thing, "free a port on 127.0.0.1")?;
    let port = listener.local_addr().or_failure(thing, "report this as a bug")?.port();
    {
        use io::Write;
        let mut out = io::stdout();
        writeln!(out, "{port}").and_then(|()| out.flush()).or_failure(thing, "start it through `lab up`")?;
    }
    // Nobody reads what follows.
    if let Ok(null) = fs::OpenOptions::new().write(true).open(Path::new("/dev/null")) {
        let _ = nix::unistd::dup2_stdout(null);
    }
    for client in listener.incoming().filter_map(Result::ok) {
        let namespace = namespace.to_owned();
        std::thread::spawn(move || match connect(&namespace, server) {
            Ok(upstream) => relay(client, upstream),
            Err(e) => eprintln!("{e}"),
        });
    }
    Ok(())
}

/// The namespace is looked up anew each time: a repaired machine has a new one.
fn connect(name: &str, server: SocketAddrV4) -> Result<TcpStream, Failure> {
    namespace::inside(name, || {
        TcpStream::connect_timeout(&SocketAddr::V4(server), CONNECT)
            .or_failure(format!("API server {server}"), "see its log on the node")
    })
}

/// Copies both ways until both have ended. An end of one side is passed on to the other.
fn relay(client: TcpStream, server: TcpStream) {
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else { return };
    let upstream = std::thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    let _ = io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Write);
    let _ = upstream.join();
}
