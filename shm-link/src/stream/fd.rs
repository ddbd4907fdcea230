//! A Linux file descriptor as a byte stream that never waits: a unix stream, a
//! vsock or TCP socket, a serial port, a pty.
//!
//! Used on the host, and by guests that are processes. Errors keep their errno;
//! "would block" has the kind `Interrupted`, which [`super::StreamLink`] takes as
//! "not ready". Other users of the embedded-io traits should ask for readiness
//! first, too.

use core::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use embedded_io::{Error, ErrorKind, ErrorType, Read, ReadReady, Write, WriteReady};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// A shared file descriptor in non-blocking mode. Clones are the same stream: one
/// is the reader, one the writer, one may sit in an event loop.
#[derive(Debug, Clone)]
pub struct StreamFd {
    fd: Arc<OwnedFd>,
}

impl StreamFd {
    /// Takes a file descriptor over and puts it into non-blocking mode. That mode
    /// belongs to the open file, so it holds for duplicates in other processes
    /// too.
    ///
    /// # Errors
    /// When its flags cannot be changed.
    pub fn new(fd: OwnedFd) -> Result<Self, FdError> {
        let flags = fcntl_getfl(&fd)?;
        fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Self { fd: Arc::new(fd) })
    }

    /// Takes a terminal (a serial port, a pty) over and makes it raw: eight bits,
    /// no echo, no line editing, no signals. Its speed stays what it was.
    ///
    /// # Errors
    /// When it is no terminal, or cannot be changed.
    pub fn new_raw_terminal(fd: OwnedFd) -> Result<Self, FdError> {
        let mut mode = tcgetattr(&fd)?;
        mode.make_raw();
        tcsetattr(&fd, OptionalActions::Now, &mode)?;
        Self::new(fd)
    }

    /// Whether one of `events` holds now, or the descriptor is at its end or
    /// broken, which a read or write then says.
    fn is_ready(&self, events: PollFlags) -> Result<bool, FdError> {
        let mut fds = [PollFd::new(&self.fd, events)];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for StreamFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for StreamFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// A system call on the file descriptor failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdError(Errno);

impl FdError {
    /// The number that the kernel gave.
    pub fn raw_os_error(self) -> i32 {
        self.0.raw_os_error()
    }
}

impl From<Errno> for FdError {
    fn from(errno: Errno) -> Self {
        Self(errno)
    }
}

impl From<FdError> for std::io::Error {
    fn from(error: FdError) -> Self {
        error.0.into()
    }
}

impl fmt::Display for FdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl core::error::Error for FdError {}

impl Error for FdError {
    fn kind(&self) -> ErrorKind {
        match self.0 {
            Errno::AGAIN | Errno::INTR => ErrorKind::Interrupted,
            Errno::CONNRESET => ErrorKind::ConnectionReset,
            // A terminal that was hung up says EIO.
            Errno::CONNABORTED | Errno::IO => ErrorKind::ConnectionAborted,
            Errno::PIPE => ErrorKind::BrokenPipe,
            Errno::NOTCONN => ErrorKind::NotConnected,
            Errno::TIMEDOUT => ErrorKind::TimedOut,
            Errno::NOMEM => ErrorKind::OutOfMemory,
            _ => ErrorKind::Other,
        }
    }
}

impl ErrorType for StreamFd {
    type Error = FdError;
}

impl Read for StreamFd {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, FdError> {
        Ok(rustix::io::read(&self.fd, buf)?)
    }
}

impl ReadReady for StreamFd {
    fn read_ready(&mut self) -> Result<bool, FdError> {
        self.is_ready(PollFlags::IN)
    }
}

impl Write for StreamFd {
    /// A peer that is gone gives `BrokenPipe`, if the process ignores `SIGPIPE`,
    /// as every Rust program does.
    fn write(&mut self, buf: &[u8]) -> Result<usize, FdError> {
        Ok(rustix::io::write(&self.fd, buf)?)
    }

    /// Nothing to do: the kernel has what was written.
    fn flush(&mut self) -> Result<(), FdError> {
        Ok(())
    }
}

impl WriteReady for StreamFd {
    fn write_ready(&mut self) -> Result<bool, FdError> {
        self.is_ready(PollFlags::OUT)
    }
}
