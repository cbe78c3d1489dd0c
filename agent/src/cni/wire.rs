//! How the plugin talks to the agent: one request, one answer over a Unix stream socket.
//!
//! The request is a JSON text; the container's network namespace travels beside its first byte as a file descriptor
//! (`SCM_RIGHTS`), so the agent needs no view of the runtime's mounts. The plugin then closes its sending side, the
//! agent answers with a JSON text and closes.

use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::NetConf;
use super::environment::Verb;
use super::error::CniError;

/// Longest request or answer. Configurations are a few hundred bytes; a GC list of a thousand containers is 100 kB.
const MAX_MESSAGE: u64 = 4 << 20;

/// One call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Request {
    /// The verb.
    pub verb: Verb,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`: the path, for the result; the namespace itself comes as a descriptor.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// `CNI_ARGS`.
    pub args: BTreeMap<String, String>,
    /// The configuration.
    pub config: NetConf,
}

/// What the agent answers: a result (only ADD has one that is not null), or an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// Done.
    Result(Value),
    /// Not done.
    Error(CniError),
}

/// Plugin's side: sends the request with the namespace and waits for the answer.
pub fn call(stream: &mut UnixStream, request: &Request, netns: Option<&impl AsFd>) -> io::Result<Response> {
    let body = serde_json::to_vec(request)?;
    let descriptors: Vec<RawFd> = netns.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let rights: &[ControlMessage<'_>] = if descriptors.is_empty() { &[] } else { &rights };
    let sent =
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&body)], rights, MsgFlags::MSG_NOSIGNAL, None)?;
    stream.write_all(&body[sent..])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(MAX_MESSAGE).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the agent closed the connection without an answer",
        ));
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// Agent's side: reads a request and the namespace that came with it.
pub fn receive(stream: &mut UnixStream) -> io::Result<(Request, Option<OwnedFd>)> {
    let mut first = vec![0_u8; 16 << 10];
    let mut space = nix::cmsg_space!([RawFd; 4]);
    let (read, mut descriptors) = {
        let mut slices = [IoSliceMut::new(&mut first)];
        let message =
            recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut descriptors = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = control {
                // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
                descriptors.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, descriptors)
    };
    first.truncate(read);
    stream.take(MAX_MESSAGE).read_to_end(&mut first)?;
    let request = serde_json::from_slice(&first)?;
    let netns = if descriptors.is_empty() { None } else { Some(descriptors.swap_remove(0)) };
    Ok((request, netns))
}

/// Agent's side: answers.
pub fn answer(stream: &mut UnixStream, response: &Response) -> io::Result<()> {
    stream.write_all(&serde_json::to_vec(response)?)
}
