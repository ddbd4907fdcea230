//! The peers' own programs: each runs as a process of its own, started by
//! [`target`](crate::target) as `bench peer …`. Each says `ready` on its standard
//! output when it can be reached, and ends with its parent.

pub mod kernel;
mod kernel_http;
pub mod relay;
pub mod smoltcp;

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;
use host_bridge::namespace::enter_private_network;

use crate::Result;
use crate::service::Service;

/// A peer's program.
#[derive(Debug, Subcommand)]
pub enum Peer {
    /// All services on the kernel's own TCP.
    Kernel {
        /// First enter a network namespace of one's own.
        #[arg(long)]
        private: bool,
    },
    /// Holds a network namespace for others to use.
    Hold,
    /// One service on smoltcp.
    Smoltcp(smoltcp::Options),
    /// Moves frames between two TAPs.
    Relay(relay::Options),
}

impl Peer {
    /// Runs it; returns only if it fails or has nothing more to do.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Kernel { private } => kernel::run(*private),
            Self::Hold => hold(),
            Self::Smoltcp(options) => smoltcp::run(options),
            Self::Relay(options) => relay::run(options),
        }
    }
}

fn hold() -> Result<()> {
    enter_private_network()?;
    ready()?;
    loop {
        std::thread::park();
    }
}

/// Tells the parent that the peer can be reached.
fn ready() -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    Ok(out.flush()?)
}

/// The command that starts this program again as a peer.
pub fn command(words: &[&str]) -> Result<std::process::Command> {
    let program: PathBuf = std::env::current_exe()?;
    let mut command = std::process::Command::new(program);
    command.arg("peer").args(words);
    Ok(command)
}

/// How many sockets listen for a service at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serve {
    /// What they do.
    pub service: Service,
    /// How many.
    pub sockets: usize,
}

impl std::str::FromStr for Serve {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (service, sockets) = text.split_once(':').ok_or("write SERVICE:SOCKETS")?;
        Ok(Self {
            service: service.parse()?,
            sockets: sockets.parse().map_err(|error| format!("{error}"))?,
        })
    }
}
