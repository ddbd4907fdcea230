//! The command line's end of the admin socket: one request, one answer, one
//! connection.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use shm_link::linux::address::Address;
use thiserror::Error;

use super::protocol::{Request, Response};
use crate::port::{PortChange, PortStatus};

/// How long the daemon may take to answer: longer than it waits for a guest.
const PATIENCE: Duration = Duration::from_secs(15);
/// Longest answer, in bytes: the most ports a daemon has, with room to spare.
const MAX_RESPONSE_LEN: u64 = 64 << 20;

/// Why the daemon could not be asked or did not do it.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AdminError {
    /// Nobody listens.
    #[error(
        "no daemon is administered at {address}: start one with `host-bridge run`, or say where it \
         is with --admin (its log names the address)"
    )]
    NotRunning {
        /// Where nobody listens.
        address: Address,
    },
    /// The socket belongs to another user.
    #[error(
        "no permission to open {address}: run this as the user who runs the daemon, or as root"
    )]
    Denied {
        /// The socket.
        address: Address,
    },
    /// The daemon accepted and then said nothing.
    #[error("the daemon at {address} does not answer within {} seconds", PATIENCE.as_secs())]
    Silent {
        /// The socket.
        address: Address,
    },
    /// The connection failed in another way.
    #[error("asking the daemon at {address}: {source}")]
    Io {
        /// The socket.
        address: Address,
        /// What the system answered.
        source: io::Error,
    },
    /// The answer is not one of this protocol.
    #[error(
        "the answer from {address} is not understood ({why}): is it the admin socket of a \
         host-bridge of this release?"
    )]
    Strange {
        /// The socket.
        address: Address,
        /// What is wrong with the answer.
        why: String,
    },
    /// The daemon says no.
    #[error("{0}")]
    Refused(String),
}

/// Asks the daemon at one address.
#[derive(Debug, Clone)]
pub struct AdminClient {
    address: Address,
}

impl AdminClient {
    /// A client of the daemon that is administered at `address`.
    pub fn new(address: Address) -> Self {
        Self { address }
    }

    /// One port, or all ports, as they are now.
    ///
    /// # Errors
    /// [`AdminError`].
    pub fn status(&self, port: Option<&str>) -> Result<Vec<PortStatus>, AdminError> {
        let port = port.map(str::to_owned);
        match self.ask(&Request::Status { port })? {
            Response::Status { ports } => Ok(ports),
            Response::Changed { .. } | Response::Restarting {} | Response::Error { .. } => {
                Err(self.strange("an answer to something else"))
            }
        }
    }

    /// Changes a port, and returns when a running guest has acknowledged.
    ///
    /// # Errors
    /// [`AdminError`]; [`AdminError::Refused`] says why the change does not hold.
    pub fn change(&self, port: &str, change: PortChange) -> Result<PortStatus, AdminError> {
        let port = port.to_owned();
        match self.ask(&Request::Change {
            port,
            change: Box::new(change),
        })? {
            Response::Changed { port } => Ok(*port),
            Response::Status { .. } | Response::Restarting {} | Response::Error { .. } => {
                Err(self.strange("an answer to something else"))
            }
        }
    }

    /// Asks for another process in place of the daemon's, and returns all ports as that
    /// one has them.
    ///
    /// # Errors
    /// [`AdminError`]; [`AdminError::Refused`] if nothing would keep the guests.
    pub fn restart(&self) -> Result<Vec<PortStatus>, AdminError> {
        match self.ask(&Request::Restart {})? {
            Response::Restarting {} => self.status(None),
            Response::Changed { .. } | Response::Status { .. } | Response::Error { .. } => {
                Err(self.strange("an answer to something else"))
            }
        }
    }

    fn ask(&self, request: &Request) -> Result<Response, AdminError> {
        let mut answer = Vec::new();
        self.exchange(request, &mut answer)
            .map_err(|source| self.explain(source))?;
        match Response::from_line(&answer) {
            Ok(Response::Error { why }) => Err(AdminError::Refused(why)),
            Ok(response) => Ok(response),
            Err(error) => Err(self.strange(&error.to_string())),
        }
    }

    fn exchange(&self, request: &Request, answer: &mut Vec<u8>) -> io::Result<()> {
        let mut socket = UnixStream::connect_addr(&self.address.socket_addr()?)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        match socket.write_all(request.to_line().as_bytes()) {
            // Turned away: the answer that says why is there to be read.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) => {}
            written => written?,
        }
        let mut socket = BufReader::new(socket.take(MAX_RESPONSE_LEN));
        socket.read_until(b'\n', answer)?;
        if *request == (Request::Restart {}) {
            // Until that process has ended. The listening socket stays, so that the
            // next one answers what is asked after this.
            let _ = socket.read_to_end(&mut Vec::new());
        }
        Ok(())
    }

    fn explain(&self, source: io::Error) -> AdminError {
        let address = self.address.clone();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                AdminError::NotRunning { address }
            }
            io::ErrorKind::PermissionDenied => AdminError::Denied { address },
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AdminError::Silent { address },
            _ => AdminError::Io { address, source },
        }
    }

    fn strange(&self, why: &str) -> AdminError {
        AdminError::Strange {
            address: self.address.clone(),
            why: why.to_owned(),
        }
    }
}
