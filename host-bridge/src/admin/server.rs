//! The daemon's end of the admin socket.
//!
//! Each client has a task of its own, so a slow one holds up nobody; their
//! number, the length of a line and every wait are bounded. Clients run as the
//! daemon's user or root, but may still be broken: nothing that they send ends
//! more than their own connection.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use shm_link::linux::address::Address;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::protocol::{MAX_REQUEST_LEN, Request, Response};
use crate::bridge::Bridge;
use crate::error::BridgeError;
use crate::log_limit::LogLimit;
use crate::port::{PortChange, PortStatus};
use crate::server::{ACCEPT_REST, Listening, Visitors};

/// Most clients at a time. People and scripts come one by one; a client that is
/// forgotten is cut off after [`IDLE`].
const MAX_CLIENTS: usize = 16;
/// Lines per second about clients that are turned away.
const LINES_PER_SECOND: u32 = 5;
/// How long a client may say nothing.
const IDLE: Duration = Duration::from_secs(60);
/// How long a client may take to read an answer.
const WRITE_TIME: Duration = Duration::from_secs(5);
/// How long a guest may take to acknowledge a change. Less than the command
/// line waits for an answer.
const CHANGE_TIME: Duration = Duration::from_secs(10);

/// Why a daemon will not make room for another process.
const NOTHING_KEEPS: &str = "nothing keeps this daemon's guests while it is not there: start it with \
                             --keep, or under systemd with a FileDescriptorStoreMax=";

/// A listening admin socket.
pub struct AdminServer {
    socket: Listening,
    bridge: Bridge,
    /// Told when another process is wanted; none: nothing would outlive this one.
    restart: Option<Arc<Notify>>,
}

impl AdminServer {
    /// Listens at `address`.
    ///
    /// # Errors
    /// [`BridgeError`] if the address is in use or cannot be made.
    pub fn bind(address: &Address, bridge: Bridge) -> Result<Self, BridgeError> {
        let socket = Listening::at(address, Visitors::OWN)?;
        Ok(Self::over(socket, bridge, None))
    }

    /// The same over a socket that listens already.
    pub(crate) fn over(socket: Listening, bridge: Bridge, restart: Option<Arc<Notify>>) -> Self {
        Self {
            socket,
            bridge,
            restart,
        }
    }

    /// Serves clients until dropped, which cuts them off.
    pub async fn run(&self) -> Infallible {
        let mut clients = JoinSet::new();
        let listener = self.socket.serve().await;
        let mut refusals = LogLimit::new(LINES_PER_SECOND);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = clients.join_next() => continue,
            };
            let socket = match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    log::warn!("cannot accept an admin client: {error}; trying again");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let admitted = self
                .socket
                .admit(&socket)
                .and_then(|()| place(clients.len()));
            if let Err(why) = admitted {
                let text = format_args!("an admin client was turned away: {why}");
                refusals.tell(module_path!(), log::Level::Warn, text);
                // A fresh socket has room for it; a client that is gone already
                // does not need it.
                let _ = socket.try_write(Response::Error { why }.to_line().as_bytes());
                continue;
            }
            let (bridge, restart) = (self.bridge.clone(), self.restart.clone());
            clients.spawn(async move {
                if let Err(error) = serve(socket, &bridge, restart.as_deref()).await {
                    log::debug!("an admin client: {error}");
                }
            });
        }
    }
}

/// Whether there is a place for one more client.
fn place(clients: usize) -> Result<(), String> {
    if clients >= MAX_CLIENTS {
        return Err(format!(
            "{MAX_CLIENTS} clients administer this daemon already: try again later"
        ));
    }
    Ok(())
}

async fn serve(
    mut socket: UnixStream,
    bridge: &Bridge,
    restart: Option<&Notify>,
) -> io::Result<()> {
    let (read, mut write) = socket.split();
    let mut read = BufReader::new(read);
    let mut line = Vec::new();
    loop {
        let got = timeout(IDLE, read_line(&mut read, &mut line)).await??;
        let response = match got {
            Line::End => return Ok(()),
            Line::TooLong => Response::Error {
                why: format!("the request is longer than {MAX_REQUEST_LEN} bytes"),
            },
            Line::Whole => match Request::from_line(&line) {
                Ok(Request::Restart {}) if restart.is_some() => Response::Restarting {},
                Ok(request) => answer(request, bridge).await,
                Err(why) => Response::Error { why },
            },
        };
        let answer = response.to_line();
        timeout(WRITE_TIME, write.write_all(answer.as_bytes())).await??;
        if let (Response::Restarting {}, Some(restart)) = (response, restart) {
            log::info!("an administrator asks for a new process");
            restart.notify_one();
        }
    }
}

/// What came from a client.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// A line, without its newline.
    Whole,
    /// A line that was thrown away.
    TooLong,
    /// The client is done.
    End,
}

/// Reads up to the next newline into `line`, which never holds more than a
/// request may have. A line that the client left unfinished is none.
async fn read_line(read: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<Line> {
    line.clear();
    let mut too_long = false;
    loop {
        let bytes = read.fill_buf().await?;
        if bytes.is_empty() {
            return Ok(Line::End);
        }
        let newline = bytes.iter().position(|&b| b == b'\n');
        let part = bytes.get(..newline.unwrap_or(bytes.len())).unwrap_or(bytes);
        too_long |= line.len() + part.len() >= MAX_REQUEST_LEN;
        if !too_long {
            line.extend_from_slice(part);
        }
        let used = part.len() + usize::from(newline.is_some());
        read.consume(used);
        if newline.is_some() {
            return Ok(if too_long { Line::TooLong } else { Line::Whole });
        }
    }
}

async fn answer(request: Request, bridge: &Bridge) -> Response {
    let done = match request {
        Request::Restart {} => Err(NOTHING_KEEPS.to_owned()),
        Request::Status { port: None } => Ok(Response::Status {
            ports: bridge.status(),
        }),
        Request::Status { port: Some(name) } => match bridge.port(&name) {
            Some(port) => Ok(Response::Status {
                ports: vec![port.status()],
            }),
            None => Err(no_such_port(bridge, &name)),
        },
        Request::Change { port, change } => {
            change_port(bridge, &port, *change)
                .await
                .map(|port| Response::Changed {
                    port: Box::new(port),
                })
        }
    };
    done.unwrap_or_else(|why| Response::Error { why })
}

async fn change_port(
    bridge: &Bridge,
    name: &str,
    change: PortChange,
) -> Result<PortStatus, String> {
    let port = bridge
        .port(name)
        .ok_or_else(|| no_such_port(bridge, name))?;
    match timeout(CHANGE_TIME, port.change(change)).await {
        Ok(changed) => changed?,
        Err(_) => {
            return Err(format!(
                "the guest of port {name} has not acknowledged within {} seconds: it is told, and \
                 the change holds once it does",
                CHANGE_TIME.as_secs()
            ));
        }
    }
    log::info!("port {name}: changed by an administrator");
    Ok(port.status())
}

fn no_such_port(bridge: &Bridge, name: &str) -> String {
    let names: Vec<String> = bridge.status().into_iter().map(|port| port.name).collect();
    if names.is_empty() {
        format!("there is no port {name:?}: no guest is attached")
    } else {
        format!("there is no port {name:?}, only {}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn lines(input: &[u8]) -> Vec<(Line, usize)> {
        let mut read = BufReader::with_capacity(7, input);
        let mut line = Vec::new();
        let mut all = Vec::new();
        loop {
            let got = read_line(&mut read, &mut line).await.unwrap();
            if got == Line::End {
                return all;
            }
            all.push((got, line.len()));
        }
    }

    #[tokio::test]
    async fn a_line_ends_at_its_newline_and_an_unfinished_one_is_none() {
        assert_eq!(
            lines(b"status\n\nlonger than a buffer\nunfinished").await,
            [(Line::Whole, 6), (Line::Whole, 0), (Line::Whole, 20)]
        );
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_thrown_away_and_the_next_one_read() {
        let mut input = vec![b'x'; MAX_REQUEST_LEN - 1];
        input.extend(b"\n");
        input.extend(vec![b'x'; MAX_REQUEST_LEN]);
        input.extend(b"\nshort\n");
        let lines = lines(&input).await;
        assert_eq!(lines[0], (Line::Whole, MAX_REQUEST_LEN - 1));
        assert_eq!(lines[1].0, Line::TooLong);
        assert!(lines[1].1 < MAX_REQUEST_LEN);
        assert_eq!(lines[2], (Line::Whole, 5));
    }
}
