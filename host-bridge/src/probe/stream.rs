//! A TCP connection that cannot keep a probe waiting for ever.
//!
//! Two bounds: a single read or write that makes no progress, and the whole
//! conversation, which a trickle of bytes would otherwise draw out without end.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::ProbeError;

/// Longest time without a single byte of progress. Retransmission timeouts of
/// a lossy link double from one second, so a few in a row must fit.
const STALL: Duration = Duration::from_secs(15);

/// A connection with a time limit, and the words for its errors.
pub(super) struct BoundedStream {
    stream: TcpStream,
    doing: String,
    start: Instant,
    limit: Duration,
    /// How long a read or write may take.
    patience: Duration,
}

impl BoundedStream {
    pub(super) fn connect(
        addr: SocketAddr,
        limit: Duration,
        doing: String,
    ) -> Result<Self, ProbeError> {
        // The kernel takes no timeout of zero.
        let patience = limit.clamp(Duration::from_millis(1), STALL);
        let prepare = || {
            let stream = TcpStream::connect_timeout(&addr, patience)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            Ok(stream)
        };
        let start = Instant::now();
        let stream = prepare().map_err(|e| ProbeError::from_io(&doing, patience, e))?;
        Ok(Self {
            stream,
            doing,
            start,
            limit,
            patience,
        })
    }

    pub(super) fn doing(&self) -> &str {
        &self.doing
    }

    /// Some bytes; none at the end of the stream.
    pub(super) fn read(&mut self, into: &mut [u8]) -> Result<usize, ProbeError> {
        let read = self.stream.read(into);
        self.bounded(read)
    }

    pub(super) fn write_all(&mut self, mut bytes: &[u8]) -> Result<(), ProbeError> {
        while !bytes.is_empty() {
            let written = self.stream.write(bytes);
            let written = self.bounded(written)?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Says that all was said. What the kernel has of it still is delivered while the answer
    /// is waited for, and nothing can be seen of that: only the whole time bounds it.
    pub(super) fn shutdown_write(&mut self) -> Result<(), ProbeError> {
        let left = self.limit.saturating_sub(self.start.elapsed());
        self.patience = left.max(Duration::from_millis(1));
        let done = self.stream.shutdown(Shutdown::Write);
        let done = done.and_then(|()| self.stream.set_read_timeout(Some(self.patience)));
        self.bounded(done)
    }

    /// Everything up to the end of the stream, at most `limit_bytes`.
    pub(super) fn read_to_end(&mut self, limit_bytes: usize) -> Result<Vec<u8>, ProbeError> {
        let mut all = Vec::new();
        let mut piece = [0; 16 * 1024];
        loop {
            match self.read(&mut piece)? {
                0 => return Ok(all),
                // `read` never says more than fits into `piece`.
                n => all.extend_from_slice(&piece[..n]),
            }
            if all.len() > limit_bytes {
                let what = format!("more than {limit_bytes} bytes");
                return Err(ProbeError::answer(&self.doing, what));
            }
        }
    }

    fn bounded<T>(&self, result: std::io::Result<T>) -> Result<T, ProbeError> {
        let value = result.map_err(|e| ProbeError::from_io(&self.doing, self.patience, e))?;
        if self.start.elapsed() > self.limit {
            return Err(ProbeError::Timeout {
                doing: self.doing.clone(),
                after: self.limit,
            });
        }
        Ok(value)
    }
}
