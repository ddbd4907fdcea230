//! The bulk client in another process's namespaces, as a process of its own.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::bulk::{Moved, receive, send, several};
use crate::Result;
use crate::target::tools::output;

/// What the client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Does {
    /// Connects and goes.
    Connect,
    /// Sends to a counting server.
    Send,
    /// Receives from an endless server.
    Receive,
}

/// Flags of `bench client`.
#[derive(Debug, Args)]
pub struct Options {
    /// What it does.
    does: Does,
    /// With whom.
    with: SocketAddr,
    /// Connections at once.
    streams: usize,
    /// For how long, in ms.
    time_ms: u64,
}

impl Options {
    /// Does it, and prints bytes and nanoseconds.
    ///
    /// # Errors
    /// The client's.
    pub fn run(&self) -> Result<()> {
        let time = Duration::from_millis(self.time_ms);
        let moved = match self.does {
            Does::Connect => {
                std::net::TcpStream::connect_timeout(&self.with, Duration::from_secs(2))?;
                return Ok(());
            }
            Does::Send => several(self.streams, time, self.with, send)?,
            Does::Receive => several(self.streams, time, self.with, receive)?,
        };
        println!("{} {}", moved.bytes, moved.elapsed.as_nanos());
        Ok(())
    }
}

/// Whether a server can be reached from there.
///
/// # Errors
/// If not.
pub fn connect(pid: u32, with: SocketAddr) -> Result<()> {
    client(pid, Does::Connect, with, 1, Duration::ZERO).map(drop)
}

/// Moves bytes from there or to there.
///
/// # Errors
/// The client's.
pub fn bulk(
    pid: u32,
    does: Does,
    with: SocketAddr,
    streams: usize,
    time: Duration,
) -> Result<Moved> {
    let text = client(pid, does, with, streams, time)?;
    parse(&text).ok_or_else(|| format!("the client says {text:?}").into())
}

fn parse(text: &str) -> Option<Moved> {
    let (bytes, nanos) = text.trim().split_once(' ')?;
    Some(Moved {
        bytes: bytes.parse().ok()?,
        elapsed: Duration::from_nanos(nanos.parse().ok()?),
    })
}

fn client(
    pid: u32,
    does: Does,
    with: SocketAddr,
    streams: usize,
    time: Duration,
) -> Result<String> {
    let does = match does {
        Does::Connect => "connect",
        Does::Send => "send",
        Does::Receive => "receive",
    };
    let mut command = Command::new("nsenter");
    command.args(["-t", &pid.to_string(), "-n"]);
    // Only where it is another one: nobody may join his own user namespace.
    let user = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user"));
    if user(&pid.to_string())? != user("self")? {
        command.args(["-U", "--preserve-credentials"]);
    }
    command.arg(std::env::current_exe()?);
    command.args(["client", does, &with.to_string(), &streams.to_string()]);
    command.arg(time.as_millis().to_string());
    output(command).map_err(|error| format!("the client in the namespace: {error}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_understood_by_who_starts_it() {
        let moved = parse("1000 2000000\n").unwrap();
        assert_eq!(
            (moved.bytes, moved.elapsed),
            (1000, Duration::from_millis(2))
        );
        assert!(parse("bench: refused").is_none());
    }
}
