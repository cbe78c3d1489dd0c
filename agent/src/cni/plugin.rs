//! What `podwire-cni` does: check the call, open the namespace, ask the agent, print the answer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use podwire_api::names::{AGENT_DAEMON_SET, CNI_SOCKET, SYSTEM_NAMESPACE};
use serde_json::{Map, Value};

use super::config::{NetConf, decode};
use super::environment::{Environment, Verb};
use super::error::{CniError, Code};
use super::result::versions;
use super::version::Version;
use super::wire::{Request, Response, call};

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespaces.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Runs one call and prints its answer. Exit code 0, or 1 with an error on stdout.
pub fn main() -> ExitCode {
    let mut config = None;
    let outcome = run(&mut config);
    let version = config
        .as_ref()
        .and_then(|c: &Map<String, Value>| c.get("cniVersion"))
        .and_then(Value::as_str)
        .unwrap_or(Version::NEWEST.as_str());
    let (text, code) = match outcome {
        Ok(Value::Null) => return ExitCode::SUCCESS,
        Ok(result) => (result.to_string(), ExitCode::SUCCESS),
        Err(error) => (error.to_json(version).to_string(), ExitCode::FAILURE),
    };
    // A runtime that closed stdout does not want the answer.
    let _ = writeln!(io::stdout(), "{text}");
    code
}

fn run(config: &mut Option<Map<String, Value>>) -> Result<Value, CniError> {
    let env = Environment::read(|name| std::env::var(name).ok())?;
    let mut stdin = Vec::new();
    io::stdin().read_to_end(&mut stdin).map_err(|e| {
        CniError::new(Code::IO, "the network configuration could not be read from stdin", e.to_string())
    })?;
    if env.verb == Verb::Version && stdin.trim_ascii().is_empty() {
        return Ok(versions(None));
    }
    let object = config.insert(decode(&stdin)?);
    if env.verb == Verb::Version {
        return Ok(versions(object.get("cniVersion").and_then(Value::as_str)));
    }
    let conf = NetConf::check(object, env.verb)?;
    let netns = match open_netns(&env.netns) {
        Ok(file) => Some(file),
        Err(_) if !env.verb.needs_netns() => None,
        Err(error) => return Err(error),
    };
    let socket = conf.socket.clone().unwrap_or_else(|| CNI_SOCKET.to_owned());
    let request = Request {
        verb: env.verb,
        container_id: env.container_id,
        netns: env.netns,
        ifname: env.ifname,
        args: env.args,
        config: conf,
    };
    match ask(&socket, &request, netns.as_ref()) {
        Ok(Response::Result(result)) => Ok(result),
        Ok(Response::Error(error)) => Err(error),
        Err(cause) => Err(unreachable(env.verb, &socket, &cause)),
    }
}

fn ask(socket: &str, request: &Request, netns: Option<&File>) -> io::Result<Response> {
    call(&mut UnixStream::connect(socket)?, request, netns)
}

fn unreachable(verb: Verb, socket: &str, cause: &io::Error) -> CniError {
    let code = if verb == Verb::Status { Code::NOT_AVAILABLE } else { Code::TRY_AGAIN };
    CniError::new(
        code,
        format!("the Podwire agent does not answer on {socket}: {cause}"),
        format!(
            "is it running? look with: kubectl -n {SYSTEM_NAMESPACE} get pods -l k8s-app={AGENT_DAEMON_SET} -o wide; \
             kubectl -n {SYSTEM_NAMESPACE} logs ds/{AGENT_DAEMON_SET}"
        ),
    )
}

/// Opens the container's network namespace and makes sure that it is one, and not our own.
fn open_netns(path: &str) -> Result<File, CniError> {
    let file = File::open(path).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => CniError::new(
            Code::UNKNOWN_CONTAINER,
            format!("network namespace {path:?} does not exist"),
            "the container is gone; nothing was made and nothing needs to be cleaned up",
        ),
        _ => {
            CniError::new(Code::IO, format!("network namespace {path:?} cannot be opened"), cause.to_string())
        }
    })?;
    let wrong = |what: &str, mend: &str| {
        CniError::new(Code::INVALID_ENVIRONMENT, format!("CNI_NETNS {path:?} {what}"), mend)
    };
    let fs = nix::sys::statfs::fstatfs(&file)
        .map_err(|e| CniError::new(Code::IO, format!("{path:?} cannot be examined"), e.to_string()))?;
    // SAFETY: NS_GET_NSTYPE takes no argument and only answers the namespace's type; the descriptor is open.
    let is_netns = fs.filesystem_type().0 == NSFS_MAGIC
        && unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE as _) } == libc::CLONE_NEWNET;
    if !is_netns {
        return Err(wrong("is not a network namespace", "if a namespace was mounted there, it is gone"));
    }
    let identity = |m: &std::fs::Metadata| (m.dev(), m.ino());
    let own = std::fs::metadata("/proc/self/ns/net").ok();
    if let (Some(own), Ok(theirs)) = (own, file.metadata())
        && identity(&own) == identity(&theirs)
    {
        return Err(wrong("is the node's own network namespace", "a container needs one of its own"));
    }
    Ok(file)
}
