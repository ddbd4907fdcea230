//! A bidirectional byte pipe: two rings, a doorbell, a way to wait.
//!
//! [`Pipe`] is what two programs, or a guest kernel and its monitor, use for
//! plain byte streams. It implements embedded-io's `Read`, `Write`, `ReadReady`
//! and `WriteReady`, and the `embedded-io-async` twins where its wait is
//! asynchronous.
//!
//! A wait takes the wake-up with it, so a doorbell serves one sleeper. A [`Pipe`]
//! is used by one thread and needs one doorbell per side. Where reading and
//! writing are to sleep independently, make the halves on their own
//! ([`PipeReader::new`], [`PipeWriter::new`]), each with a doorbell of its own.
//!
//! Half-close works as on a socket: after `close_write` the peer reads what was
//! written and then sees the end (`Ok(0)`); after `close_read` the peer's writes
//! fail with `BrokenPipe`.

use core::time::Duration;

use crate::doorbell::{AsyncWait, Doorbell, Wait};
use crate::fault::LinkError;
use crate::ring::{Arm, Consumer, Producer};

/// The writing half.
pub struct PipeWriter<D, W> {
    ring: Producer,
    doorbell: D,
    wait: W,
}

/// The reading half.
pub struct PipeReader<D, W> {
    ring: Consumer,
    doorbell: D,
    wait: W,
}

/// Both halves. `D` rings the peer, `W` waits for the peer to ring.
pub struct Pipe<D, W> {
    writer: PipeWriter<D, W>,
    reader: PipeReader<D, W>,
}

impl<D: Doorbell + Clone, W: Clone> Pipe<D, W> {
    /// A pipe that writes into `tx` and reads from `rx`, for one thread.
    pub fn new(tx: Producer, rx: Consumer, doorbell: D, wait: W) -> Self {
        Self {
            writer: PipeWriter::new(tx, doorbell.clone(), wait.clone()),
            reader: PipeReader::new(rx, doorbell, wait),
        }
    }
}

impl<D, W> Pipe<D, W> {
    /// The halves, borrowed.
    pub fn split(&mut self) -> (&mut PipeReader<D, W>, &mut PipeWriter<D, W>) {
        (&mut self.reader, &mut self.writer)
    }
}

impl<D: Doorbell, W> PipeWriter<D, W> {
    /// A half that writes into `ring`, rings the reader by `doorbell`, and sleeps
    /// by `wait` while the ring is full.
    pub fn new(ring: Producer, doorbell: D, wait: W) -> Self {
        Self {
            ring,
            doorbell,
            wait,
        }
    }

    /// Writes what fits now; 0 says that the pipe is full.
    ///
    /// # Errors
    /// [`LinkError::Closed`] if the peer reads no more, [`LinkError::Fault`] if
    /// it broke the rules.
    pub fn try_write(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        if self.ring.is_peer_closed() {
            return Err(LinkError::Closed);
        }
        let n = self.ring.write(bytes)?;
        self.ring.publish().ring(&self.doorbell);
        Ok(n)
    }

    /// Bytes that can be written now.
    ///
    /// # Errors
    /// [`LinkError::Fault`].
    pub fn writable_len(&mut self) -> Result<usize, LinkError> {
        Ok(self.ring.writable_len()?)
    }

    /// Says that nothing follows. What was written stays readable.
    pub fn close(&mut self) {
        self.ring.close().ring(&self.doorbell);
    }

    /// Room that a writer of `len` bytes sleeps for: a quarter of the ring, so
    /// that a slow reader does not ring for every few bytes, but never more than
    /// the write needs, so that a reader that stops there holds nobody up.
    fn low_water(&self, len: usize) -> usize {
        len.min(self.ring.capacity() / 4)
    }
}

impl<D: Doorbell, W> PipeReader<D, W> {
    /// A half that reads from `ring`, rings the writer by `doorbell`, and sleeps
    /// by `wait` while the ring is empty.
    pub fn new(ring: Consumer, doorbell: D, wait: W) -> Self {
        Self {
            ring,
            doorbell,
            wait,
        }
    }

    /// Reads what is there; `None` says nothing yet, `Some(0)` the end (or an
    /// empty `to`).
    ///
    /// # Errors
    /// [`LinkError::Fault`].
    pub fn try_read(&mut self, to: &mut [u8]) -> Result<Option<usize>, LinkError> {
        if to.is_empty() {
            return Ok(Some(0));
        }
        let n = self.ring.read(to)?;
        if n > 0 {
            self.ring.publish().ring(&self.doorbell);
            return Ok(Some(n));
        }
        Ok(self.ring.is_finished()?.then_some(0))
    }

    /// Bytes that can be read now.
    ///
    /// # Errors
    /// [`LinkError::Fault`].
    pub fn readable_len(&mut self) -> Result<usize, LinkError> {
        Ok(self.ring.readable_len()?)
    }

    /// Says that this side reads no more.
    pub fn close(&mut self) {
        self.ring.close().ring(&self.doorbell);
    }
}

impl<D, W> embedded_io::ErrorType for PipeWriter<D, W> {
    type Error = LinkError;
}
impl<D, W> embedded_io::ErrorType for PipeReader<D, W> {
    type Error = LinkError;
}
impl<D, W> embedded_io::ErrorType for Pipe<D, W> {
    type Error = LinkError;
}

/// One body for the blocking and the asynchronous twin: they differ in how they
/// wait.
macro_rules! write_loop {
    ($this:ident, $bytes:ident, $wait:expr) => {{
        if $bytes.is_empty() {
            return Ok(0);
        }
        loop {
            let n = $this.try_write($bytes)?;
            if n > 0 {
                return Ok(n);
            }
            let low_water = $this.low_water($bytes.len());
            if $this.ring.arm(low_water)? == Arm::Sleep {
                $wait;
                $this.ring.disarm();
            }
        }
    }};
}

macro_rules! read_loop {
    ($this:ident, $to:ident, $wait:expr) => {{
        loop {
            if let Some(n) = $this.try_read($to)? {
                return Ok(n);
            }
            if $this.ring.arm()? == Arm::Sleep {
                $wait;
                $this.ring.disarm();
            }
        }
    }};
}

const FOR_EVER: Option<Duration> = None;

impl<D: Doorbell, W: Wait> embedded_io::Write for PipeWriter<D, W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        write_loop!(self, bytes, self.wait.wait(FOR_EVER))
    }

    /// Does nothing: every write is visible at once.
    fn flush(&mut self) -> Result<(), LinkError> {
        Ok(())
    }
}

impl<D: Doorbell, W: Wait> embedded_io::Read for PipeReader<D, W> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, LinkError> {
        read_loop!(self, to, self.wait.wait(FOR_EVER))
    }
}

impl<D: Doorbell, W: AsyncWait> embedded_io_async::Write for PipeWriter<D, W> {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        write_loop!(self, bytes, self.wait.wait().await)
    }

    /// Does nothing: every write is visible at once.
    async fn flush(&mut self) -> Result<(), LinkError> {
        Ok(())
    }
}

impl<D: Doorbell, W: AsyncWait> embedded_io_async::Read for PipeReader<D, W> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, LinkError> {
        read_loop!(self, to, self.wait.wait().await)
    }
}

impl<D: Doorbell, W> embedded_io::WriteReady for PipeWriter<D, W> {
    /// Whether a write would not wait: there is room, or it would fail at once.
    fn write_ready(&mut self) -> Result<bool, LinkError> {
        Ok(self.ring.is_peer_closed() || self.ring.writable_len()? > 0)
    }
}

impl<D: Doorbell, W> embedded_io::ReadReady for PipeReader<D, W> {
    /// Whether a read would not wait: there are bytes, or the end was reached.
    fn read_ready(&mut self) -> Result<bool, LinkError> {
        Ok(self.ring.readable_len()? > 0 || self.ring.is_finished()?)
    }
}

impl<D: Doorbell, W: Wait> embedded_io::Write for Pipe<D, W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        embedded_io::Write::write(&mut self.writer, bytes)
    }
    fn flush(&mut self) -> Result<(), LinkError> {
        embedded_io::Write::flush(&mut self.writer)
    }
}

impl<D: Doorbell, W: Wait> embedded_io::Read for Pipe<D, W> {
    fn read(&mut self, to: &mut [u8]) -> Result<usize, LinkError> {
        embedded_io::Read::read(&mut self.reader, to)
    }
}

impl<D: Doorbell, W: AsyncWait> embedded_io_async::Write for Pipe<D, W> {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, LinkError> {
        embedded_io_async::Write::write(&mut self.writer, bytes).await
    }
    async fn flush(&mut self) -> Result<(), LinkError> {
        embedded_io_async::Write::flush(&mut self.writer).await
    }
}

impl<D: Doorbell, W: AsyncWait> embedded_io_async::Read for Pipe<D, W> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, LinkError> {
        embedded_io_async::Read::read(&mut self.reader, to).await
    }
}

impl<D: Doorbell, W> embedded_io::WriteReady for Pipe<D, W> {
    fn write_ready(&mut self) -> Result<bool, LinkError> {
        self.writer.write_ready()
    }
}

impl<D: Doorbell, W> embedded_io::ReadReady for Pipe<D, W> {
    fn read_ready(&mut self) -> Result<bool, LinkError> {
        self.reader.read_ready()
    }
}
