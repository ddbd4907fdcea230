//! The signals that end a daemon.
//!
//! Made first, so that no signal ends the process half way. Knows nothing of what
//! follows from them.

use std::io;

use tokio::signal::unix::{self, SignalKind};

/// Waits for SIGINT, SIGTERM or SIGHUP.
pub(crate) struct Signals {
    int: unix::Signal,
    term: unix::Signal,
    hup: unix::Signal,
}

impl Signals {
    /// Takes the signals over. Call it in a runtime.
    pub(crate) fn new() -> io::Result<Self> {
        // A file, or a guest's memory, that may not become so long (RLIMIT_FSIZE) is an
        // error of who makes it, and not the end of all.
        let _: unix::Signal = unix::signal(SignalKind::from_raw(libc::SIGXFSZ))?;
        Ok(Self {
            int: unix::signal(SignalKind::interrupt())?,
            term: unix::signal(SignalKind::terminate())?,
            hup: unix::signal(SignalKind::hangup())?,
        })
    }

    /// The name of the next one.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.int.recv() => "SIGINT",
            _ = self.term.recv() => TERM,
            _ = self.hup.recv() => "SIGHUP",
        }
    }
}

/// What a manager of services sends, which may start the service again.
pub(crate) const TERM: &str = "SIGTERM";
