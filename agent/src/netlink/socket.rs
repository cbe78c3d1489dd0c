//! The socket: batches of acknowledged requests, and dumps.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendmsg, socket,
};

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("{what}: {source}")]
    Refused {
        /// What was asked.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The socket failed.
    #[error("netlink: {what} failed: {source}")]
    Socket {
        /// Which operation.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The kernel's answer could not be read.
    #[error("netlink: the kernel's answer could not be decoded: {0}")]
    Decode(String),
}

impl NetlinkError {
    /// The kernel's error number, if it refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Whether the kernel said that it exists already.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether the kernel said that there is no such thing.
    pub fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL))
    }
}

/// One request.
#[derive(Debug)]
pub struct Op {
    /// What it does, for the error.
    pub what: String,
    /// The message.
    pub message: RouteNetlinkMessage,
    /// `NLM_F_*` beside REQUEST and ACK.
    pub flags: u16,
}

/// A socket of the rtnetlink family in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// Larger than any single message that the kernel sends to us (dumps come in pieces of at most 32 KiB).
const RECEIVE_BYTES: usize = 64 << 10;

pub(super) fn open(groups: u32, flags: SockFlag) -> Result<OwnedFd, NetlinkError> {
    let fail = |what| move |e: nix::Error| NetlinkError::Socket { what, source: e.into() };
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | flags,
        Some(SockProtocol::NetlinkRoute),
    )
    .map_err(fail("socket"))?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(fail("bind"))?;
    Ok(fd)
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        let fd = open(0, SockFlag::empty())?;
        let on: libc::c_int = 1;
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_GET_STRICT_CHK] {
            // SAFETY: the pointer and the length describe `on`, which outlives the call. Kernels without the option refuse it
            // and then answer more than is asked for, which is filtered out again.
            unsafe {
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    (&raw const on).cast(),
                    size_of::<libc::c_int>() as libc::socklen_t,
                )
            };
        }
        Ok(Self { fd, sequence: 0, buffer: vec![0; RECEIVE_BYTES] })
    }

    /// Sends all requests at once and returns what the kernel answered beside acknowledgements, or the first refusal.
    /// The kernel goes on after a refusal: who needs all or nothing undoes the rest.
    pub fn batch(&mut self, ops: Vec<Op>) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        if ops.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(1024);
        let mut whats = Vec::with_capacity(ops.len());
        for op in ops {
            self.push(&mut bytes, op.message, op.flags | NLM_F_ACK);
            whats.push(op.what);
        }
        self.send(&bytes)?;
        let (mut answers, mut refusal, mut open) = (Vec::new(), None, whats.len());
        while open > 0 {
            for message in self.receive()? {
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                let Some(what) = whats.get(index) else { continue };
                match message.payload {
                    NetlinkPayload::Error(e) => {
                        open -= 1;
                        if e.code.is_some() && refusal.is_none() {
                            refusal = Some(NetlinkError::Refused { what: what.clone(), source: e.to_io() });
                        }
                    }
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    _ => {}
                }
            }
        }
        refusal.map_or(Ok(answers), Err)
    }

    /// Sends one request.
    pub fn one(&mut self, op: Op) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        self.batch(vec![op])
    }

    /// Asks for everything of a kind.
    pub fn dump(
        &mut self,
        what: &str,
        request: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let mut bytes = Vec::new();
        self.push(&mut bytes, request, NLM_F_DUMP);
        let sequence = self.sequence;
        self.send(&bytes)?;
        let mut all = Vec::new();
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(all),
                    NetlinkPayload::Error(e) => {
                        return Err(NetlinkError::Refused { what: what.into(), source: e.to_io() });
                    }
                    NetlinkPayload::InnerMessage(inner) => all.push(inner),
                    _ => {}
                }
            }
        }
    }

    fn push(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let at = bytes.len();
        // Messages begin on multiples of four bytes (NLMSG_ALIGNTO).
        bytes.resize(at + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[at..]);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetlinkError> {
        sendmsg(
            self.fd.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[],
            MsgFlags::empty(),
            Some(&NetlinkAddr::new(0, 0)),
        )
        .map_err(|e| NetlinkError::Socket { what: "send", source: e.into() })?;
        Ok(())
    }

    fn receive(&mut self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, NetlinkError> {
        let read = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => {}
                Err(e) => return Err(NetlinkError::Socket { what: "receive", source: e.into() }),
                Ok(read) => break read,
            }
        };
        decode(&self.buffer[..read])
    }
}

/// Decodes everything in one datagram.
pub(super) fn decode(mut bytes: &[u8]) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, NetlinkError> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let message = NetlinkMessage::deserialize(bytes).map_err(|e| NetlinkError::Decode(e.to_string()))?;
        let length = (message.header.length as usize).next_multiple_of(4).clamp(4, bytes.len());
        messages.push(message);
        bytes = &bytes[length..];
    }
    Ok(messages)
}
