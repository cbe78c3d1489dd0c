//! `kubectl exec`: a command in a container, its streams over a WebSocket in the channel framing of Kubernetes
//! (`v5.channel.k8s.io`, `v4.channel.k8s.io`).

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path as UrlPath, Query, State};
use axum::response::Response;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use http::StatusCode;
use nix::errno::Errno;
use serde::Deserialize;
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::Node;
use super::container::handle::{Handle, runs};
use super::server::{Pairs, Target, flag, pod_dir, refuse};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// v5 only: the other side has closed the channel that the next byte names.
const CLOSE: u8 = 255;

/// How long a client may take to close its side.
const FAREWELL: std::time::Duration = std::time::Duration::from_secs(2);
/// Bytes of output in one message.
const CHUNK: usize = 32 * 1024;

/// The streams that a request asks for.
#[allow(clippy::struct_excessive_bools, reason = "the request has these four switches, each on its own")]
#[derive(Clone, Copy, Debug)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// Answers a request to execute a command.
pub async fn upgrade(
    State(node): State<Arc<Node>>,
    UrlPath((namespace, pod, container)): UrlPath<Target>,
    Query(pairs): Query<Pairs>,
    socket: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Response {
    let command: Vec<String> =
        pairs.iter().filter(|(name, _)| name == "command").map(|(_, value)| value.clone()).collect();
    if command.is_empty() {
        return refuse(StatusCode::BAD_REQUEST, "you must specify at least 1 command for the container");
    }
    let tty = flag(&pairs, "tty");
    let wanted = Wanted {
        stdin: flag(&pairs, "stdin"),
        stdout: flag(&pairs, "stdout"),
        stderr: flag(&pairs, "stderr") && !tty,
        tty,
    };
    let running = pod_dir(&node, &namespace, &pod)
        .and_then(|dir| runs(&dir.join("containers"), &container).pop())
        .and_then(|(_, files)| Handle::find(files))
        .filter(Handle::is_running);
    let Some(handle) = running else {
        return refuse(
            StatusCode::NOT_FOUND,
            format!("container not found (\"{container}\"): it is not running in pod {namespace}/{pod}"),
        );
    };
    let Ok(socket) = socket else {
        return refuse(
            StatusCode::BAD_REQUEST,
            "exec is served over WebSocket only: use kubectl 1.31 or newer",
        );
    };
    let socket = socket.protocols(["v5.channel.k8s.io", "v4.channel.k8s.io"]);
    if socket.selected_protocol().is_none() {
        return refuse(
            StatusCode::BAD_REQUEST,
            "exec speaks the WebSocket protocols v5.channel.k8s.io and v4.channel.k8s.io",
        );
    }
    socket.on_upgrade(move |socket| async move {
        if let Err(error) = serve(socket, &node, &handle, wanted, &command).await {
            tracing::debug!(%error, "an exec session broke");
        }
    })
}

/// A pseudo-terminal of the container, so that the command finds it under its own /dev/pts.
struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    fn open(handle: &Handle) -> io::Result<(Self, OwnedFd)> {
        let path = format!("/proc/{}/root/dev/pts/ptmx", handle.started.init_pid);
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
        let master = OwnedFd::from(file);
        let unlock: libc::c_int = 0;
        // SAFETY: the descriptor is a terminal's master, the argument lives until after the call.
        Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock) })?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        // SAFETY: as above; the request takes open flags and returns a new descriptor.
        let slave = Errno::result(unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags) })?;
        // SAFETY: the kernel has just given us this descriptor.
        let slave = unsafe { OwnedFd::from_raw_fd(slave) };
        let mut settings =
            nix::fcntl::OFlag::from_bits_truncate(nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_GETFL)?);
        settings.insert(nix::fcntl::OFlag::O_NONBLOCK);
        nix::fcntl::fcntl(&master, nix::fcntl::FcntlArg::F_SETFL(settings))?;
        Ok((
            Self {
                master: super::watch::register(
                    master,
                    tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE,
                )?,
            },
            slave,
        ))
    }

    fn resize(&self, size: &Size) {
        let size = libc::winsize { ws_row: size.height, ws_col: size.width, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the descriptor is a terminal's master, the size lives until after the call.
        let set = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        if let Err(error) = Errno::result(set) {
            tracing::debug!(%error, "cannot resize a terminal");
        }
    }

    async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.master.readable().await?;
            match nix::unistd::read(self.master.get_ref(), buffer) {
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // The last process has closed the terminal.
                Err(Errno::EIO) => return Ok(0),
                result => return Ok(result?),
            }
        }
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.master.writable().await?;
            match nix::unistd::write(self.master.get_ref(), bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

#[derive(Debug, Deserialize)]
struct Size {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

/// The frame that tells how the command ended.
fn ending(status: Result<ExitStatus, String>) -> Vec<u8> {
    use std::os::unix::process::ExitStatusExt as _;
    let text = match status {
        Ok(status) if status.success() => json!({"metadata": {}, "status": "Success"}),
        Ok(status) => {
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            })
        }
        Err(message) => {
            json!({"metadata": {}, "status": "Failure", "message": message, "reason": "InternalError", "code": 500})
        }
    };
    frame(ERROR, text.to_string().as_bytes())
}

fn frame(channel: u8, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(bytes.len() + 1);
    frame.push(channel);
    frame.extend_from_slice(bytes);
    frame
}

async fn send(sink: &mut SplitSink<WebSocket, Message>, frame: Vec<u8>) -> io::Result<()> {
    sink.send(Message::Binary(Bytes::from(frame))).await.map_err(io::Error::other)
}

async fn pump(mut from: impl AsyncRead + Unpin, channel: u8, to: mpsc::Sender<Vec<u8>>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count) = from.read(&mut buffer).await {
        if count == 0 || to.send(frame(channel, &buffer[..count])).await.is_err() {
            return;
        }
    }
}

/// Gives the command its input, and the end of it.
async fn feed(mut to: impl AsyncWrite + Unpin, mut inputs: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = inputs.recv().await {
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

/// Types input into a terminal.
async fn type_in(terminal: Arc<Terminal>, mut inputs: mpsc::Receiver<Bytes>) {
    while let Some(bytes) = inputs.recv().await {
        if terminal.write(&bytes).await.is_err() {
            return;
        }
    }
    // End of input on a terminal is a character.
    let _ = terminal.write(&[4]).await;
}

/// Room for one more piece of input; `None` if nobody takes any.
async fn room(input: Option<mpsc::Sender<Bytes>>) -> Option<mpsc::OwnedPermit<Bytes>> {
    input?.reserve_owned().await.ok()
}

async fn serve(
    socket: WebSocket,
    node: &Node,
    handle: &Handle,
    wanted: Wanted,
    argv: &[String],
) -> io::Result<()> {
    let (mut sink, mut source) = socket.split();
    let mut command = handle.command(&node.program, wanted.tty, argv);
    let mut terminal = None;
    if wanted.tty {
        let (opened, slave) = match Terminal::open(handle) {
            Ok(pair) => pair,
            Err(error) => {
                send(&mut sink, ending(Err(format!("cannot make a terminal in the container: {error}"))))
                    .await?;
                return finish(sink, source).await;
            }
        };
        command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
        terminal = Some(Arc::new(opened));
    } else {
        let piped = |on: bool| if on { Stdio::piped() } else { Stdio::null() };
        command.stdin(piped(wanted.stdin)).stdout(piped(wanted.stdout)).stderr(piped(wanted.stderr));
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            send(&mut sink, ending(Err(format!("cannot run the command: {error}")))).await?;
            return finish(sink, source).await;
        }
    };
    // The command builder holds the terminal's slave side: let go, or its end would never be seen.
    drop(command);

    let (output, mut frames) = mpsc::channel(16);
    // Input has a task of its own: a command that does not read it must not keep its output from being sent.
    let (input, inputs) = mpsc::channel(16);
    if let Some(terminal) = &terminal {
        if wanted.stdin {
            tokio::spawn(type_in(Arc::clone(terminal), inputs));
        }
        let (terminal, output) = (Arc::clone(terminal), output);
        tokio::spawn(async move {
            let mut buffer = vec![0; CHUNK];
            while let Ok(count) = terminal.read(&mut buffer).await {
                if count == 0 || output.send(frame(STDOUT, &buffer[..count])).await.is_err() {
                    return;
                }
            }
        });
    } else {
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(pump(stdout, STDOUT, output.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(pump(stderr, STDERR, output.clone()));
        }
        drop(output);
        if let Some(stdin) = child.stdin.take() {
            tokio::spawn(feed(stdin, inputs));
        }
    }
    let mut input = wanted.stdin.then_some(input);
    // Input that has not found room yet: no more is taken from the client before it has.
    let mut pending: Option<Bytes> = None;

    let mut exited = None;
    let mut drained = false;
    // After its end the command's output is read to its end, unless something that it left behind holds it open.
    while exited.is_none() || !drained {
        tokio::select! {
            status = child.wait(), if exited.is_none() => exited = Some(status),
            part = frames.recv(), if !drained => match part {
                Some(part) => send(&mut sink, part).await?,
                None => drained = true,
            },
            room = room(input.clone()), if pending.is_some() => match (room, pending.take()) {
                (Some(room), Some(bytes)) => drop(room.send(bytes)),
                // Nobody reads any more: input is for nothing from now on.
                _ => input = None,
            },
            message = source.next(), if pending.is_none() => match message {
                Some(Ok(Message::Binary(bytes))) => match (bytes.first().copied(), &terminal) {
                    (Some(STDIN), _) if input.is_some() => pending = Some(bytes.slice(1..)),
                    (Some(RESIZE), Some(terminal)) => {
                        if let Ok(size) = serde_json::from_slice(&bytes[1..]) {
                            terminal.resize(&size);
                        }
                    }
                    (Some(CLOSE), _) if bytes.get(1) == Some(&STDIN) => input = None,
                    _ => {}
                },
                Some(Ok(Message::Close(_)) | Err(_)) | None => {
                    // Nobody listens any more: end the command.
                    let _ = child.start_kill();
                    return Ok(());
                }
                Some(Ok(_)) => {}
            },
            () = tokio::time::sleep(std::time::Duration::from_millis(200)), if exited.is_some() => drained = true,
        }
    }
    let status = exited.unwrap_or_else(|| Err(io::Error::other("the command was lost")));
    send(&mut sink, ending(status.map_err(|error| error.to_string()))).await?;
    finish(sink, source).await
}

/// Closes the session as finished, and reads what the client still sends: a connection that is closed with unread input
/// is reset, and the last frames may be lost with it.
async fn finish(
    mut sink: SplitSink<WebSocket, Message>,
    mut source: SplitStream<WebSocket>,
) -> io::Result<()> {
    let frame = CloseFrame { code: close_code::NORMAL, reason: "".into() };
    sink.send(Message::Close(Some(frame))).await.map_err(io::Error::other)?;
    let rest = async { while let Some(Ok(_)) = source.next().await {} };
    let _ = tokio::time::timeout(FAREWELL, rest).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn told(raw: i32) -> serde_json::Value {
        let frame = ending(Ok(ExitStatus::from_raw(raw)));
        assert_eq!(frame[0], ERROR);
        serde_json::from_slice(&frame[1..]).unwrap()
    }

    #[test]
    fn the_last_frame_tells_the_exit_code() {
        assert_eq!(told(0)["status"], "Success");
        let failed = told(7 << 8);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(failed["details"]["causes"][0]["message"], "7");
        assert_eq!(told(9)["details"]["causes"][0]["message"], "137");
    }
}
