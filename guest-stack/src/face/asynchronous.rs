//! The asynchronous face: a handle to the shared stack, its driver, and sockets
//! whose operations are futures, for any executor.

use alloc::sync::Arc;
use core::future::poll_fn;
use core::net::{IpAddr, SocketAddr};
use core::ops::{AsyncFnMut, ControlFlow};
use core::task::{Poll, Waker};
use core::time::Duration;

use embedded_io_async::{ErrorType, Read, Write};
use lock_api::Mutex;
use shm_link::link::Link;
use shm_link::spin::Spin;
use smoltcp::time::Instant;

use super::platform::Platform;
use crate::error::{BindError, StreamError, UdpError};
use crate::ports::LocalAddr;
use crate::stack::{self, Stack};
use crate::tcp::options::TcpOptions;
use crate::tcp::stream::Shutdown;
use crate::tcp::{TcpListenerId, TcpStreamId};
use crate::udp::UdpId;

struct Inner<L: Link> {
    stack: Stack<L>,
    /// The driver sleeps, until that time at the latest.
    asleep: Option<Option<Instant>>,
    spin: Spin,
}

struct Shared<L: Link, P: Platform> {
    inner: Mutex<P::RawMutex, Inner<L>>,
    platform: P,
}

/// What the driver has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Call [`Network::step`] again; others may run in between.
    Again,
    /// Wait until the link rings, somebody kicks the driver, or that time.
    Sleep(Option<Instant>),
}

/// A stack that tasks and threads share. A clone is another handle to the same.
pub struct Network<L: Link, P: Platform>(Arc<Shared<L, P>>);

impl<L: Link, P: Platform> Clone for Network<L, P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: Link, P: Platform> Network<L, P> {
    /// Shares a stack.
    pub fn new(stack: Stack<L>, platform: P) -> Self {
        let inner = Inner {
            stack,
            asleep: None,
            spin: Spin::new(platform.spin()),
        };
        Self(Arc::new(Shared {
            inner: Mutex::new(inner),
            platform,
        }))
    }

    /// The platform.
    pub fn platform(&self) -> &P {
        &self.0.platform
    }

    /// Runs `f` on the stack, under the lock, and has the driver look at what
    /// came of it. `f` must not wait.
    pub fn with<R>(&self, f: impl FnOnce(&mut Stack<L>, Instant) -> R) -> R {
        let now = self.0.platform.now();
        let mut inner = self.0.inner.lock();
        let result = f(&mut inner.stack, now);
        let asleep = inner.asleep.take().is_some();
        drop(inner);
        if asleep {
            self.0.platform.kick_driver();
        }
        result
    }

    /// Lets `f` look at the stack, under the lock. The driver is left alone.
    pub fn look<R>(&self, f: impl FnOnce(&Stack<L>) -> R) -> R {
        f(&self.0.inner.lock().stack)
    }

    /// Runs `f` on the stack and lets `stream` send.
    fn on_stream<R>(&self, stream: TcpStreamId, f: impl FnOnce(&mut Stack<L>) -> R) -> R {
        self.on_slot(f, |stack, now| stack.push(stream, now))
    }

    /// Runs `f` on the stack and lets `socket` send.
    fn on_socket<R>(&self, socket: UdpId, f: impl FnOnce(&mut Stack<L>) -> R) -> R {
        self.on_slot(f, |stack, now| stack.push_udp(socket, now))
    }

    /// Wakes the driver only if it has to come earlier than it meant to.
    fn on_slot<R>(
        &self,
        f: impl FnOnce(&mut Stack<L>) -> R,
        push: impl FnOnce(&mut Stack<L>, Instant) -> stack::Poll,
    ) -> R {
        let now = self.0.platform.now();
        let mut inner = self.0.inner.lock();
        let result = f(&mut inner.stack);
        let poll = push(&mut inner.stack, now);
        let kick = inner.must_wake(&poll);
        drop(inner);
        if kick {
            self.0.platform.kick_driver();
        }
        result
    }

    /// Does one round of the driver's work. One driver at a time.
    pub fn step(&self) -> Step {
        let now = self.0.platform.now();
        let mut inner = self.0.inner.lock();
        inner.stack.disarm();
        inner.asleep = None;
        let poll = inner.stack.poll(now);
        let time = Duration::from_micros(now.total_micros().unsigned_abs());
        if poll.received {
            inner.spin.worked(time);
        }
        if poll.more_work {
            return Step::Again;
        }
        if inner.spin.looks_again(time) {
            drop(inner);
            self.0.platform.relax();
            return Step::Again;
        }
        if !inner.stack.arm() {
            return Step::Again;
        }
        inner.asleep = Some(poll.deadline);
        Step::Sleep(poll.deadline)
    }

    /// Drives the stack: whenever there is nothing to do, calls `wait` with the
    /// time at which to come back at the latest. `wait` returns when the link's
    /// doorbell rings, the platform's `kick_driver` was called, or the time
    /// comes; with `Break` this returns. When the link is gone it goes on waiting
    /// for deadlines: [`Stack::link_error`] tells, and
    /// [`Stack::replace_link`] mends.
    pub fn run(&self, mut wait: impl FnMut(Option<Instant>) -> ControlFlow<()>) {
        loop {
            if let Step::Sleep(until) = self.step()
                && wait(until).is_break()
            {
                return;
            }
        }
    }

    /// [`run`](Self::run) as a future. It lets other tasks run between two
    /// rounds of work.
    pub async fn run_async(&self, mut wait: impl AsyncFnMut(Option<Instant>) -> ControlFlow<()>) {
        loop {
            match self.step() {
                Step::Again => yield_once().await,
                Step::Sleep(until) => {
                    if wait(until).await.is_break() {
                        return;
                    }
                }
            }
        }
    }

    /// Listens with the stack's default options; see
    /// [`tcp_listen`](crate::sockets::Sockets::tcp_listen).
    ///
    /// # Errors
    /// [`BindError`].
    pub fn listen(
        &self,
        local: impl Into<LocalAddr>,
        backlog: usize,
    ) -> Result<TcpListener<L, P>, BindError> {
        let options = self.look(Stack::default_tcp_options);
        self.listen_with(local, backlog, options)
    }

    /// Listens; accepted streams get `options`.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn listen_with(
        &self,
        local: impl Into<LocalAddr>,
        backlog: usize,
        options: TcpOptions,
    ) -> Result<TcpListener<L, P>, BindError> {
        let mut inner = self.0.inner.lock();
        let id = inner.stack.sockets().tcp_listen(local, backlog, options)?;
        Ok(TcpListener {
            network: self.clone(),
            id,
        })
    }

    /// Connects with the stack's default options.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn connect(&self, remote: SocketAddr) -> Result<TcpStream<L, P>, StreamError> {
        let options = self.look(Stack::default_tcp_options);
        self.connect_with(remote, options).await
    }

    /// Connects.
    ///
    /// # Errors
    /// [`StreamError`].
    pub async fn connect_with(
        &self,
        remote: SocketAddr,
        options: TcpOptions,
    ) -> Result<TcpStream<L, P>, StreamError> {
        let now = self.0.platform.now();
        let begin = |stack: &mut Stack<L>| stack.sockets().tcp_connect(now, remote, options);
        let id = begin(&mut self.0.inner.lock().stack)?;
        let stream = TcpStream {
            network: self.clone(),
            id,
        };
        stream
            .poll_with(false, |stack| stack.sockets().tcp_connected(id))
            .await?;
        Ok(stream)
    }

    /// Binds a UDP socket; port 0 picks a free one.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind_udp(&self, local: impl Into<LocalAddr>) -> Result<UdpSocket<L, P>, BindError> {
        let id = self.0.inner.lock().stack.sockets().udp_bind(local)?;
        Ok(UdpSocket {
            network: self.clone(),
            id,
        })
    }

    /// A stream from a handle that a callback got; the handle must not be used
    /// by anybody else.
    pub fn adopt(&self, id: TcpStreamId) -> TcpStream<L, P> {
        TcpStream {
            network: self.clone(),
            id,
        }
    }
}

/// Goes to the end of the executor's queue.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl<L: Link> Inner<L> {
    fn must_wake(&mut self, poll: &stack::Poll) -> bool {
        let Some(until) = self.asleep else {
            return false;
        };
        let earlier = match (poll.deadline, until) {
            (Some(deadline), Some(until)) => deadline < until,
            (deadline, None) => deadline.is_some(),
            (None, Some(_)) => false,
        };
        let kick = earlier || poll.more_work || poll.wants_room;
        if kick {
            self.asleep = None;
        }
        kick
    }
}

/// A listening TCP port. Dropping it resets what was not accepted.
pub struct TcpListener<L: Link, P: Platform> {
    network: Network<L, P>,
    id: TcpListenerId,
}

impl<L: Link, P: Platform> TcpListener<L, P> {
    /// Waits for a connection. Any number of tasks may wait at once.
    ///
    /// # Errors
    /// [`StreamError`], never `WouldBlock`.
    pub async fn accept(&self) -> Result<(TcpStream<L, P>, SocketAddr), StreamError> {
        poll_fn(|cx| {
            let mut inner = self.network.0.inner.lock();
            let sockets = inner.stack.sockets();
            match sockets.tcp_accept(self.id) {
                Err(StreamError::WouldBlock) => {
                    match sockets.tcp_wake_acceptor(self.id, cx.waker()) {
                        Ok(()) => Poll::Pending,
                        Err(error) => Poll::Ready(Err(error)),
                    }
                }
                Err(error) => Poll::Ready(Err(error)),
                Ok((id, peer)) => {
                    // Somebody may have waited for the room.
                    let due = inner.stack.due();
                    let kick = inner.must_wake(&due);
                    drop(inner);
                    if kick {
                        self.network.0.platform.kick_driver();
                    }
                    Poll::Ready(Ok((self.network.adopt(id), peer)))
                }
            }
        })
        .await
    }

    /// The address and port that are listened on.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn local_addr(&self) -> Result<SocketAddr, StreamError> {
        let mut inner = self.network.0.inner.lock();
        inner.stack.sockets().tcp_listener_addr(self.id)
    }

    /// The network this socket belongs to.
    pub fn network(&self) -> &Network<L, P> {
        &self.network
    }
}

impl<L: Link, P: Platform> Drop for TcpListener<L, P> {
    fn drop(&mut self) {
        let id = self.id;
        self.network
            .with(|stack, _| stack.sockets().tcp_close_listener(id));
    }
}

/// A TCP stream. Reading and writing take `&self`, so that `&stream` can be read
/// in one task and written in another; one reader and one writer at a time.
/// Dropping it closes it: see [`crate::tcp::stream`].
pub struct TcpStream<L: Link, P: Platform> {
    network: Network<L, P>,
    id: TcpStreamId,
}

impl<L: Link, P: Platform> TcpStream<L, P> {
    /// Tries `f` until it does not say `WouldBlock`.
    async fn poll_with<R>(
        &self,
        read: bool,
        mut f: impl FnMut(&mut Stack<L>) -> Result<R, StreamError>,
    ) -> Result<R, StreamError> {
        poll_fn(|cx| self.try_with(read, cx.waker(), &mut f)).await
    }

    fn try_with<R>(
        &self,
        read: bool,
        waker: &Waker,
        f: &mut impl FnMut(&mut Stack<L>) -> Result<R, StreamError>,
    ) -> Poll<Result<R, StreamError>> {
        self.network.on_stream(self.id, |stack| match f(stack) {
            Err(StreamError::WouldBlock) => {
                let sockets = stack.sockets();
                let registered = if read {
                    sockets.tcp_wake_reader(self.id, waker)
                } else {
                    sockets.tcp_wake_writer(self.id, waker)
                };
                match registered {
                    Ok(()) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error)),
                }
            }
            result => Poll::Ready(result),
        })
    }

    /// Waits for data and takes some; 0 means the end, for a non-empty `buffer`.
    ///
    /// # Errors
    /// [`StreamError`], never `WouldBlock`.
    pub async fn recv(&self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        self.poll_with(true, |stack| stack.sockets().tcp_recv(self.id, buffer))
            .await
    }

    /// Waits for data and shows some where they are, without a copy: `f` gets a part of
    /// them, not empty, and says how many bytes it took, and what of them. `None`: the
    /// other end has said all it will say.
    ///
    /// `f` runs while the network is locked: let it be brief, and not use the network.
    ///
    /// # Errors
    /// [`StreamError`], never `WouldBlock`.
    pub async fn recv_with<R>(
        &self,
        mut f: impl FnMut(&[u8]) -> (usize, R),
    ) -> Result<Option<R>, StreamError> {
        self.poll_with(true, |stack| stack.sockets().tcp_recv_with(self.id, &mut f))
            .await
    }

    /// Waits for room and writes some; at least one byte, for non-empty `bytes`.
    /// The bytes are sent at once, as far as the windows and Nagle allow.
    ///
    /// # Errors
    /// [`StreamError`], never `WouldBlock`.
    pub async fn send(&self, bytes: &[u8]) -> Result<usize, StreamError> {
        self.poll_with(false, |stack| stack.sockets().tcp_send(self.id, bytes))
            .await
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// [`StreamError`], never `WouldBlock`.
    pub async fn send_all(&self, mut bytes: &[u8]) -> Result<(), StreamError> {
        while !bytes.is_empty() {
            let taken = self.send(bytes).await?;
            bytes = bytes.get(taken..).unwrap_or_default();
        }
        Ok(())
    }

    /// Waits until the other end has acknowledged everything that was written.
    ///
    /// # Errors
    /// [`StreamError`], never `WouldBlock`.
    pub async fn acknowledged(&self) -> Result<(), StreamError> {
        self.poll_with(false, |stack| {
            let sockets = stack.sockets();
            if sockets.tcp_unacknowledged(self.id)? == 0 {
                return Ok(());
            }
            match sockets.tcp_readiness(self.id)?.error {
                Some(error) => Err(error),
                None => Err(StreamError::WouldBlock),
            }
        })
        .await
    }

    /// Shuts one or both halves down.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn shutdown(&self, how: Shutdown) -> Result<(), StreamError> {
        self.network
            .on_stream(self.id, |stack| stack.sockets().tcp_shutdown(self.id, how))
    }

    /// Our end.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn local_addr(&self) -> Result<SocketAddr, StreamError> {
        let mut inner = self.network.0.inner.lock();
        inner.stack.sockets().tcp_local_addr(self.id)
    }

    /// The other end.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn peer_addr(&self) -> Result<SocketAddr, StreamError> {
        let mut inner = self.network.0.inner.lock();
        inner.stack.sockets().tcp_peer_addr(self.id)
    }

    /// The stream's options.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn options(&self) -> Result<TcpOptions, StreamError> {
        let mut inner = self.network.0.inner.lock();
        inner.stack.sockets().tcp_options(self.id)
    }

    /// Changes the stream's options; the buffer sizes stay as they are.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn set_options(&self, options: TcpOptions) -> Result<(), StreamError> {
        self.network.on_stream(self.id, |stack| {
            stack.sockets().tcp_set_options(self.id, options)
        })
    }

    /// The handle, for what this face does not offer.
    pub fn id(&self) -> TcpStreamId {
        self.id
    }

    /// The network this socket belongs to.
    pub fn network(&self) -> &Network<L, P> {
        &self.network
    }

    /// Two halves that can be owned by two tasks. The stream is closed when both
    /// are dropped; dropping the write half alone shuts writing down.
    pub fn into_split(self) -> (ReadHalf<L, P>, WriteHalf<L, P>) {
        let stream = Arc::new(self);
        (ReadHalf(Arc::clone(&stream)), WriteHalf(stream))
    }
}

impl<L: Link, P: Platform> Drop for TcpStream<L, P> {
    fn drop(&mut self) {
        self.network
            .on_stream(self.id, |stack| stack.sockets().tcp_close(self.id));
    }
}

/// The reading half of a stream.
pub struct ReadHalf<L: Link, P: Platform>(Arc<TcpStream<L, P>>);

/// The writing half of a stream.
pub struct WriteHalf<L: Link, P: Platform>(Arc<TcpStream<L, P>>);

impl<L: Link, P: Platform> Drop for WriteHalf<L, P> {
    fn drop(&mut self) {
        // A stream that has ended has nothing to shut down.
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

impl<L: Link, P: Platform> ErrorType for TcpStream<L, P> {
    type Error = StreamError;
}

impl<L: Link, P: Platform> ErrorType for &TcpStream<L, P> {
    type Error = StreamError;
}

impl<L: Link, P: Platform> ErrorType for ReadHalf<L, P> {
    type Error = StreamError;
}

impl<L: Link, P: Platform> ErrorType for WriteHalf<L, P> {
    type Error = StreamError;
}

impl<L: Link, P: Platform> Read for TcpStream<L, P> {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        self.recv(buffer).await
    }
}

impl<L: Link, P: Platform> Read for &TcpStream<L, P> {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        self.recv(buffer).await
    }
}

impl<L: Link, P: Platform> Read for ReadHalf<L, P> {
    async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        self.0.recv(buffer).await
    }
}

// Flushing has nothing to do: what was written is sent at once. To know that it
// arrived, wait for `acknowledged`.
impl<L: Link, P: Platform> Write for TcpStream<L, P> {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        self.send(bytes).await
    }

    async fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }
}

impl<L: Link, P: Platform> Write for &TcpStream<L, P> {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        self.send(bytes).await
    }

    async fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }
}

impl<L: Link, P: Platform> Write for WriteHalf<L, P> {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, StreamError> {
        self.0.send(bytes).await
    }

    async fn flush(&mut self) -> Result<(), StreamError> {
        Ok(())
    }
}

/// A UDP socket. One reader and one writer at a time.
pub struct UdpSocket<L: Link, P: Platform> {
    network: Network<L, P>,
    id: UdpId,
}

impl<L: Link, P: Platform> UdpSocket<L, P> {
    /// Waits for a datagram; what `buffer` does not hold of it is lost.
    ///
    /// # Errors
    /// [`UdpError`], never `WouldBlock`.
    pub async fn recv_from(&self, buffer: &mut [u8]) -> Result<(usize, SocketAddr), UdpError> {
        poll_fn(|cx| {
            let mut inner = self.network.0.inner.lock();
            let sockets = inner.stack.sockets();
            match sockets.udp_recv_from(self.id, buffer) {
                Err(UdpError::WouldBlock) => match sockets.udp_wake_reader(self.id, cx.waker()) {
                    Ok(()) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error)),
                },
                result => Poll::Ready(result),
            }
        })
        .await
    }

    /// The longest payload that a datagram to `to` may have now, in bytes: see
    /// [`udp_longest_payload`](crate::sockets::Sockets::udp_longest_payload).
    pub fn longest_payload(&self, to: IpAddr) -> usize {
        let mut inner = self.network.0.inner.lock();
        inner.stack.sockets().udp_longest_payload(to)
    }

    /// Waits for room and sends a datagram.
    ///
    /// # Errors
    /// [`UdpError`], never `WouldBlock`.
    pub async fn send_to(&self, payload: &[u8], to: SocketAddr) -> Result<(), UdpError> {
        poll_fn(|cx| {
            self.network.on_socket(self.id, |stack| {
                let sockets = stack.sockets();
                match sockets.udp_send_to(self.id, payload, to) {
                    Err(UdpError::WouldBlock) => {
                        match sockets.udp_wake_writer(self.id, cx.waker()) {
                            Ok(()) => Poll::Pending,
                            Err(error) => Poll::Ready(Err(error)),
                        }
                    }
                    result => Poll::Ready(result),
                }
            })
        })
        .await
    }

    /// Waits for room and sends `bytes` as datagrams of `len` bytes each (0 counts as 1),
    /// the last of what is left: as many as find room, at least one. Says how many bytes
    /// it took.
    /// Where the host cuts them (USO) they travel as one frame.
    ///
    /// # Errors
    /// [`UdpError`], never `WouldBlock`; what was sent before stays sent.
    pub async fn send_many_to(
        &self,
        bytes: &[u8],
        len: usize,
        to: SocketAddr,
    ) -> Result<usize, UdpError> {
        poll_fn(|cx| {
            self.network.on_socket(self.id, |stack| {
                let sockets = stack.sockets();
                let mut taken = 0;
                for payload in bytes.chunks(len.max(1)) {
                    match sockets.udp_send_to(self.id, payload, to) {
                        Ok(()) => taken += payload.len(),
                        Err(UdpError::WouldBlock) if taken > 0 => break,
                        Err(UdpError::WouldBlock) => {
                            let waits = sockets.udp_wake_writer(self.id, cx.waker());
                            return match waits {
                                Ok(()) => Poll::Pending,
                                Err(error) => Poll::Ready(Err(error)),
                            };
                        }
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                Poll::Ready(Ok(taken))
            })
        })
        .await
    }

    /// The address and port that the socket is bound to.
    ///
    /// # Errors
    /// [`UdpError`].
    pub fn local_addr(&self) -> Result<SocketAddr, UdpError> {
        let mut inner = self.network.0.inner.lock();
        inner.stack.sockets().udp_local_addr(self.id)
    }

    /// The handle, for what this face does not offer.
    pub fn id(&self) -> UdpId {
        self.id
    }

    /// The network this socket belongs to.
    pub fn network(&self) -> &Network<L, P> {
        &self.network
    }
}

impl<L: Link, P: Platform> Drop for UdpSocket<L, P> {
    fn drop(&mut self) {
        let id = self.id;
        self.network
            .on_socket(id, |stack| stack.sockets().udp_close(id));
    }
}
