//! A client: what a guest can ask of other machines.
//!
//! [`Command`] is one line of text; [`Client::run`] does it and gives one line of
//! text back. Streams come from the asynchronous face, the ping from a smoltcp
//! socket of the application's own. Whoever reads the lines and prints the
//! answers is outside; every command ends within [`PATIENCE`].

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::{self, Write as _};
use core::future::Future;
use core::net::{IpAddr, SocketAddr};
use core::pin::pin;
use core::str::FromStr;

use futures_util::future::{Either, select};
use guest_stack::face::asynchronous::{Network, TcpStream};
use guest_stack::face::platform::Platform;
use guest_stack::tcp::stream::Shutdown;
use guest_stack::time::Duration;
use sha2::{Digest, Sha256};
use shm_link::link::Link;

use super::ping;
use crate::executor::Spawner;
use crate::pattern::{Cycle, Pattern};

/// How long one command may take.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Longest head of a response, and longest answer to what was sent.
const MAX_HEAD: usize = 8 << 10;

/// What a client is told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// `ping ADDRESS [COUNT]`: ICMP echo, three times unless it says otherwise.
    Ping {
        /// Whom.
        to: IpAddr,
        /// How often, from 1.
        count: u16,
    },
    /// `get ADDRESS:PORT PATH`: fetch a page over HTTP.
    Get {
        /// From whom.
        from: SocketAddr,
        /// What, beginning with a slash.
        path: String,
    },
    /// `send ADDRESS:PORT BYTES`: send that much of the pattern with seed 0,
    /// then read what comes back.
    Send {
        /// To whom.
        to: SocketAddr,
        /// How much.
        bytes: u64,
    },
    /// `flood ADDRESS:PORT MILLISECONDS`: send as much as goes in that time to a
    /// sink for measurements, and say how much it counted, and in how long.
    Flood {
        /// To whom.
        to: SocketAddr,
        /// For how long.
        time_ms: u32,
    },
}

/// A line is no [`Command`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandError;

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "say: ping ADDRESS [COUNT], get ADDRESS:PORT PATH, send ADDRESS:PORT BYTES, \
             or flood ADDRESS:PORT MILLISECONDS",
        )
    }
}

impl core::error::Error for CommandError {}

impl FromStr for Command {
    type Err = CommandError;

    fn from_str(line: &str) -> Result<Self, CommandError> {
        fn number<T: FromStr>(word: &str) -> Result<T, CommandError> {
            word.parse().map_err(|_| CommandError)
        }
        let words: Vec<_> = line.split_whitespace().collect();
        let command = match words[..] {
            ["ping", to] => Self::Ping {
                to: number(to)?,
                count: 3,
            },
            ["ping", to, count] => Self::Ping {
                to: number(to)?,
                count: number(count)?,
            },
            ["get", from, path] => Self::Get {
                from: number(from)?,
                path: path.to_string(),
            },
            ["send", to, bytes] => Self::Send {
                to: number(to)?,
                bytes: number(bytes)?,
            },
            ["flood", to, time_ms] => Self::Flood {
                to: number(to)?,
                time_ms: number(time_ms)?,
            },
            _ => return Err(CommandError),
        };
        match &command {
            // smoltcp takes no such addresses.
            Self::Ping { to, .. } if to.is_unspecified() || to.is_multicast() => Err(CommandError),
            Self::Ping { count: 0, .. } => Err(CommandError),
            Self::Get { path, .. } if !path.starts_with('/') => Err(CommandError),
            _ => Ok(command),
        }
    }
}

/// Runs commands on a network.
pub struct Client<L: Link, P: Platform> {
    network: Network<L, P>,
    spawner: Spawner<P::RawMutex>,
}

impl<L: Link, P: Platform> Clone for Client<L, P> {
    fn clone(&self) -> Self {
        Self {
            network: self.network.clone(),
            spawner: self.spawner.clone(),
        }
    }
}

impl<L: Link, P: Platform> Client<L, P> {
    /// A client on `network`.
    pub fn new(network: Network<L, P>, spawner: Spawner<P::RawMutex>) -> Self {
        Self { network, spawner }
    }

    /// Does what `command` says, and tells what came of it.
    ///
    /// # Errors
    /// Why it failed, in words.
    pub async fn run(&self, command: &Command) -> Result<String, String> {
        let work = async {
            match command {
                Command::Ping { to, count } => {
                    let report = ping::ping(&self.network, &self.spawner, *to, *count).await;
                    if report.received == *count {
                        Ok(report.to_string())
                    } else {
                        Err(report.to_string())
                    }
                }
                Command::Get { from, path } => self.get(*from, path).await,
                Command::Send { to, bytes } => self.send(*to, *bytes).await,
                Command::Flood { to, time_ms } => self.flood(*to, *time_ms).await,
            }
        };
        let limit = self.network.platform().now() + PATIENCE;
        match before(self.spawner.sleep_until(limit), work).await {
            Some(result) => result,
            None => Err(format!("no end within {PATIENCE}")),
        }
    }

    async fn connect(&self, to: SocketAddr) -> Result<TcpStream<L, P>, String> {
        self.network
            .connect(to)
            .await
            .map_err(|error| format!("connecting: {error}"))
    }

    async fn get(&self, from: SocketAddr, path: &str) -> Result<String, String> {
        let stream = self.connect(from).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {from}\r\nConnection: close\r\n\r\n");
        stream
            .send_all(request.as_bytes())
            .await
            .map_err(|error| format!("sending: {error}"))?;
        let mut buffer = vec![0; 64 << 10];
        let (mut head, mut in_head) = (Vec::new(), true);
        let (mut total, mut hash) = (0u64, Sha256::new());
        loop {
            let n = stream
                .recv(&mut buffer)
                .await
                .map_err(|error| format!("receiving: {error}"))?;
            if n == 0 {
                break;
            }
            let mut body = &buffer[..n];
            if in_head {
                head.extend_from_slice(body);
                let Some(end) = head.windows(4).position(|four| four == b"\r\n\r\n") else {
                    if head.len() > MAX_HEAD {
                        return Err("the response's head has no end".to_string());
                    }
                    continue;
                };
                in_head = false;
                body = &head[end + 4..];
            }
            total += body.len() as u64;
            hash.update(body);
        }
        if in_head {
            return Err("the response ended within its head".to_string());
        }
        let head = String::from_utf8_lossy(&head);
        let status = head.lines().next().unwrap_or_default();
        let mut words = status.split(' ');
        let is_http = words
            .next()
            .is_some_and(|version| version.starts_with("HTTP/1."));
        let result = format!("{status}, {total} bytes, sha256 {}", hex(hash));
        if is_http && words.next() == Some("200") {
            Ok(result)
        } else {
            Err(result)
        }
    }

    async fn send(&self, to: SocketAddr, bytes: u64) -> Result<String, String> {
        let stream = self.connect(to).await?;
        let (mut pattern, mut hash) = (Pattern::new(0), Sha256::new());
        let mut buffer = vec![0; 64 << 10];
        let mut left = bytes;
        while left > 0 {
            let n = left.min(buffer.len() as u64) as usize;
            pattern.fill(&mut buffer[..n]);
            hash.update(&buffer[..n]);
            stream
                .send_all(&buffer[..n])
                .await
                .map_err(|error| format!("sending: {error}"))?;
            left -= n as u64;
        }
        stream
            .shutdown(Shutdown::Write)
            .map_err(|error| format!("closing: {error}"))?;
        let mut answer = Vec::new();
        loop {
            match stream.recv(&mut buffer).await {
                Ok(0) => break,
                Ok(n) if answer.len() < MAX_HEAD => answer.extend_from_slice(&buffer[..n]),
                Ok(_) => {}
                Err(error) => return Err(format!("receiving: {error}")),
            }
        }
        let answer = String::from_utf8_lossy(&answer);
        let answer: String = answer
            .trim_end()
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        Ok(format!(
            "{bytes} bytes, sha256 {}, answer: {answer}",
            hex(hash)
        ))
    }

    async fn flood(&self, to: SocketAddr, time_ms: u32) -> Result<String, String> {
        let clock = || self.network.platform().now();
        let stream = self.connect(to).await?;
        let mut cycle = Cycle::new(64 << 10);
        let start = clock();
        let end = start + Duration::from_millis(time_ms.into());
        while clock() < end {
            let sent = stream.send(cycle.next_piece()).await;
            cycle.advance(sent.map_err(|error| format!("sending: {error}"))?);
        }
        stream
            .shutdown(Shutdown::Write)
            .map_err(|error| format!("closing: {error}"))?;
        let mut answer = [0; 64];
        let len = stream.recv(&mut answer).await;
        let len = len.map_err(|error| format!("receiving: {error}"))?;
        let micros = (clock() - start).total_micros();
        let counted = String::from_utf8_lossy(&answer[..len]);
        if counted.trim_end().parse() == Ok(cycle.position()) {
            Ok(format!("{} bytes in {micros} us", cycle.position()))
        } else {
            Err(format!("sent {}, counted {counted:?}", cycle.position()))
        }
    }
}

/// `work`'s result, unless `limit` ends first.
pub(super) async fn before<T>(
    limit: impl Future<Output = ()>,
    work: impl Future<Output = T>,
) -> Option<T> {
    match select(pin!(work), pin!(limit)).await {
        Either::Left((result, _)) => Some(result),
        Either::Right(_) => None,
    }
}

fn hex(hash: Sha256) -> String {
    let mut text = String::new();
    for byte in hash.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_the_manual_are_commands() {
        assert_eq!(
            "ping 10.0.0.1".parse(),
            Ok(Command::Ping {
                to: [10, 0, 0, 1].into(),
                count: 3
            })
        );
        assert!(matches!(
            "ping fd77::1 10".parse(),
            Ok(Command::Ping { count: 10, .. })
        ));
        let from = ([10, 0, 0, 1], 80).into();
        assert_eq!(
            "get 10.0.0.1:80 /".parse(),
            Ok(Command::Get {
                from,
                path: "/".into()
            })
        );
        assert!(matches!(
            "send [fd77::1]:5001 1000".parse(),
            Ok(Command::Send { bytes: 1000, .. })
        ));
        assert!(matches!(
            "flood 10.0.0.1:5003 300".parse(),
            Ok(Command::Flood { time_ms: 300, .. })
        ));
    }

    #[test]
    fn other_lines_are_refused() {
        let lines = [
            "",
            "ping",
            "ping host",
            "ping 0.0.0.0",
            "ping ff02::1",
            "ping 10.0.0.1 0",
            "ping 10.0.0.1 70000",
            "get 10.0.0.1 /",
            "get 10.0.0.1:80",
            "get 10.0.0.1:80 page",
            "send 10.0.0.1:80 -1",
            "stop",
        ];
        for line in lines {
            assert_eq!(line.parse::<Command>(), Err(CommandError), "{line}");
        }
    }
}
