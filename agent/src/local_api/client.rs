//! The asking side: `podwire`.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use podwire_api::names::{AGENT_DAEMON_SET, SYSTEM_NAMESPACE};
use serde_json::Value;

use super::{Reply, Request};

/// The agent did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "the agent does not answer on {path}: {source}; is it running on this node? \
         look with: kubectl -n {SYSTEM_NAMESPACE} get pods -l k8s-app={AGENT_DAEMON_SET} -o wide"
    )]
    Unreachable {
        /// The socket.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the agent went away in the middle of its answer: {0}; did it restart? try again")]
    Broken(String),
    /// The agent said no.
    #[error("{0}")]
    Refused(String),
}

/// Asks, and returns the lines of the answer as they come.
pub fn ask(
    socket: &Path,
    request: Request,
) -> Result<impl Iterator<Item = Result<Value, ClientError>>, ClientError> {
    let unreachable = |source| ClientError::Unreachable { path: socket.display().to_string(), source };
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    let line = serde_json::to_string(&request).map_err(|e| ClientError::Broken(e.to_string()))?;
    writeln!(stream, "{line}").map_err(unreachable)?;
    Ok(BufReader::new(stream).lines().map(|line| {
        let line = line.map_err(|e| ClientError::Broken(e.to_string()))?;
        match serde_json::from_str(&line).map_err(|e| ClientError::Broken(e.to_string()))? {
            Reply::Ok(value) => Ok(value),
            Reply::Error(why) => Err(ClientError::Refused(why)),
        }
    }))
}

/// Asks for one answer.
pub fn ask_once(socket: &Path, request: Request) -> Result<Value, ClientError> {
    ask(socket, request)?.next().unwrap_or_else(|| Err(ClientError::Broken("it said nothing".into())))
}
