//! The blocking face: the asynchronous one, with the thread waiting, in the
//! manner of `std::net`.

use core::future::Future;
use core::net::SocketAddr;
use core::pin::pin;
use core::sync::atomic::{AtomicU64, Ordering};
use core::task::{Context, Poll};
use core::time::Duration;

use embedded_io::{ErrorType, Read, Write};
use shm_link::link::Link;

use super::asynchronous::{self, Network};
use super::platform::Platform;
use crate::error::{BindError, StreamError, UdpError};
use crate::ports::LocalAddr;
use crate::tcp::options::TcpOptions;
use crate::tcp::stream::Shutdown;

/// Waits for a future on this thread. `None`: `timeout` ran out first.
pub fn block_on<P: Platform, F: Future>(
    platform: &P,
    timeout: Option<Duration>,
    future: F,
) -> Option<F::Output> {
    let until = timeout.map(|timeout| platform.now() + timeout.into());
    let waker = platform.current_waker();
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
            return Some(result);
        }
        if until.is_some_and(|until| platform.now() >= until) {
            return None;
        }
        platform.park(until);
    }
}

/// A timeout that can be changed through `&self`.
struct Timeout(AtomicU64);

impl Timeout {
    /// No timeout.
    const NEVER: u64 = u64::MAX;

    const fn new() -> Self {
        Self(AtomicU64::new(Self::NEVER))
    }

    // ORDERING (both): the value stands for itself; nothing else is published by it.
    fn set(&self, timeout: Option<Duration>) {
        let micros = timeout.map_or(Self::NEVER, |timeout| {
            u64::try_from(timeout.as_micros()).unwrap_or(Self::NEVER)
        });
        self.0.store(micros, Ordering::Relaxed);
    }

    fn read(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            Self::NEVER => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }
}

/// A listening TCP port. Dropping it resets what was not accepted.
pub struct TcpListener<L: Link, P: Platform>(asynchronous::TcpListener<L, P>);

impl<L: Link, P: Platform> TcpListener<L, P> {
    /// Listens with the stack's default options.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(
        network: &Network<L, P>,
        local: impl Into<LocalAddr>,
        backlog: usize,
    ) -> Result<Self, BindError> {
        network.listen(local, backlog).map(Self)
    }

    /// Listens; accepted streams get `options`.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind_with(
        network: &Network<L, P>,
        local: impl Into<LocalAddr>,
        backlog: usize,
        options: TcpOptions,
    ) -> Result<Self, BindError> {
        network.listen_with(local, backlog, options).map(Self)
    }

    /// Waits for a connection.
    ///
    /// # Errors
    /// [`StreamError`], never `WouldBlock`.
    pub fn accept(&self) -> Result<(TcpStream<L, P>, SocketAddr), StreamError> {
        let platform = self.0.network().platform();
        let accepted = block_on(platform, None, self.0.accept());
        let (stream, peer) = accepted.unwrap_or(Err(StreamError::TimedOut))?;
        Ok((TcpStream::from(stream), peer))
    }

    /// The address and port that are listened on.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn local_addr(&self) -> Result<SocketAddr, StreamError> {
        self.0.local_addr()
    }
}

/// A TCP stream. `&stream` can be read in one thread and written in another; one
/// reader and one writer at a time. Dropping it closes it: see
/// [`crate::tcp::stream`].
pub struct TcpStream<L: Link, P: Platform> {
    stream: asynchronous::TcpStream<L, P>,
    read_timeout: Timeout,
    write_timeout: Timeout,
}

impl<L: Link, P: Platform> From<asynchronous::TcpStream<L, P>> for TcpStream<L, P> {
    fn from(stream: asynchronous::TcpStream<L, P>) -> Self {
        Self {
            stream,
            read_timeout: Timeout::new(),
            write_timeout: Timeout::new(),
        }
    }
}

impl<L: Link, P: Platform> TcpStream<L, P> {
    /// Connects with the stack's default options.
    ///
    /// # Errors
    /// [`StreamError`], never `WouldBlock`.
    pub fn connect(network: &Network<L, P>, remote: SocketAddr) -> Result<Self, StreamError> {
        let stream = block_on(network.platform(), None, network.connect(remote));
        stream.unwrap_or(Err(StreamError::TimedOut)).map(Self::from)
    }

    /// Connects, within `timeout`.
    ///
    /// # Errors
    /// [`StreamError`], never `WouldBlock`.
    pub fn connect_timeout(
        network: &Network<L, P>,
        remote: SocketAddr,
        timeout: Duration,
    ) -> Result<Self, StreamError> {
        let stream = block_on(network.platform(), Some(timeout), network.connect(remote));
        stream.unwrap_or(Err(StreamError::TimedOut)).map(Self::from)
    }

    fn wait<R>(
        &self,
        timeout: &Timeout,
        future: impl Future<Output = Result<R, StreamError>>,
    ) -> Result<R, StreamError> {
        let platform = self.stream.network().platform();
        block_on(platform, timeout.read(), future).unwrap_or(Err(StreamError::TimedOut))
    }

    /// Waits for data and takes some; 0 means the end, for a non-empty `buffer`.
    ///
    /// # Errors
    /// [`StreamError`]; `TimedOut` also when the read timeout ran out.
    pub fn recv(&self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        self.wait(&self.read_timeout, self.stream.recv(buffer))
    }

    /// Waits for data and shows some where they are, without a copy: `f` gets a part of
    /// them, not empty, and says how many bytes it took, and what of them. `None`: the
    /// other end has said all it will say.
    ///
    /// `f` runs while the network is locked: let it be brief, and not use the network.
    ///
    /// # Errors
    /// As for [`recv`](Self::recv).
    pub fn recv_with<R>(
        &self,
        f: impl FnMut(&[u8]) -> (usize, R),
    ) -> Result<Option<R>, StreamError> {
        self.wait(&self.read_timeout, self.stream.recv_with(f))
    }

    /// Waits for room and writes some; at least one byte, for non-empty `bytes`.
    ///
    /// # Errors
    /// [`StreamError`]; `TimedOut` also when the write timeout ran out.
    pub fn send(&self, bytes: &[u8]) -> Result<usize, StreamError> {
        self.wait(&self.write_timeout, self.stream.send(bytes))
    }

    /// Waits until the other end has acknowledged everything that was written.
    ///
    /// # Errors
    /// [`StreamError`]; `TimedOut` also when the write timeout ran out.
    pub fn acknowledged(&self) -> Result<(), StreamError> {
        self.wait(&self.write_timeout, self.stream.acknowledged())
    }

    /// How long a read waits; `None`: for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        self.read_timeout.set(timeout);
    }

    /// How long a write waits; `None`: for ever.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) {
        self.write_timeout.set(timeout);
    }

    /// Shuts one or both halves down. A thread that waits for data is woken by
    /// the end of the read half.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn shutdown(&self, how: Shutdown) -> Result<(), StreamError> {
        self.stream.shutdown(how)
    }

    /// Our end.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn local_addr(&self) -> Result<SocketAddr, StreamError> {
        self.stream.local_addr()
    }

    /// The other end.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn peer_addr(&self) -> Result<SocketAddr, StreamError> {
        self.stream.peer_addr()
    }

    /// Sends small segments at once (`true`) or gathers them (`false`).
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn set_nodelay(&self, nodelay: bool) -> Result<(), StreamError> {
        let options = self.stream.options()?;
        self.stream.set_options(TcpOptions { nodelay, ..options })
    }

    /// Changes the stream's options; the buffer sizes stay as they are.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn set_options(&self, options: TcpOptions) -> Result<(), StreamError> {
        self.stream.set_options(options)
    }

    /// The stream's options.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn options(&self) -> Result<TcpOptions, StreamError> {
        self.stream.options()
    }
}

impl<L: Link, P: Platform> ErrorType for TcpStream<L, P> {
    type Error = StreamError;
}

impl<L: Link, P: Platform> ErrorType for &TcpStream<L, P> {
    type Error = StreamError;
}

impl<L: Link, P: Platform> Read for TcpStream<L, P> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        self.recv(buffer)
    }
}

impl<L: Link, P: Platform> Read for &TcpStream<L, P> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        self.recv(buffer)
    }
}

// Flushing has nothing to do: what was written is sent at once.
impl<L: Link, P: Platform> Write for TcpStream<L, P> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        self.send(bytes)
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }
}

impl<L: Link, P: Platform> Write for &TcpStream<L, P> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        self.send(bytes)
    }

    fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }
}

/// A UDP socket. One reader and one writer at a time.
pub struct UdpSocket<L: Link, P: Platform> {
    socket: asynchronous::UdpSocket<L, P>,
    read_timeout: Timeout,
}

impl<L: Link, P: Platform> UdpSocket<L, P> {
    /// Binds a UDP socket; port 0 picks a free one.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(network: &Network<L, P>, local: impl Into<LocalAddr>) -> Result<Self, BindError> {
        Ok(Self {
            socket: network.bind_udp(local)?,
            read_timeout: Timeout::new(),
        })
    }

    /// Waits for a datagram; what `buffer` does not hold of it is lost.
    ///
    /// # Errors
    /// [`UdpError`]; `TimedOut` when the read timeout ran out.
    pub fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), UdpError> {
        let platform = self.socket.network().platform();
        let received = block_on(
            platform,
            self.read_timeout.read(),
            self.socket.recv_from(buffer),
        );
        received.unwrap_or(Err(UdpError::TimedOut))
    }

    /// Waits for room and sends a datagram.
    ///
    /// # Errors
    /// [`UdpError`].
    pub fn send_to(&self, payload: &[u8], to: SocketAddr) -> Result<(), UdpError> {
        let platform = self.socket.network().platform();
        block_on(platform, None, self.socket.send_to(payload, to))
            .unwrap_or(Err(UdpError::TimedOut))
    }

    /// How long a read waits; `None`: for ever.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) {
        self.read_timeout.set(timeout);
    }

    /// The address and port that the socket is bound to.
    ///
    /// # Errors
    /// [`UdpError`].
    pub fn local_addr(&self) -> Result<SocketAddr, UdpError> {
        self.socket.local_addr()
    }
}
