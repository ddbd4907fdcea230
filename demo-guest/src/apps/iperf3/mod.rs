//! An iperf3 server: the `iperf3` of any machine on the network measures its way
//! to this guest, over TCP and UDP, in both directions.
//!
//! One test runs at a time. The first connection of a client is its control
//! connection and takes the seat; the connections that bring the same cookie
//! afterwards carry the test's data; all others are told that the server is
//! busy. Whatever ends a test, the seat is free again and its connections are
//! gone.
//!
//! ```text
//! mod        who sits, and who is turned away
//! session    one test from its parameters to its results
//! traffic    the data: TCP tasks, UDP callback and sender
//! meter      what a stream has carried, and its pace
//! protocol   messages
//! ```

mod meter;
mod protocol;
mod session;
mod traffic;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::{Poll, Waker};

use futures_util::future::{Either, select};
use guest_stack::error::{BindError, StreamError};
use guest_stack::face::asynchronous::{Network, TcpStream};
use guest_stack::face::platform::Platform;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::time::Duration;
use lock_api::Mutex;
use shm_link::link::Link;

use self::protocol::{ACCESS_DENIED, Cookie};
use self::session::Session;
use crate::executor::Spawner;

/// iperf3's port.
const PORT: u16 = 5201;

/// How long a client may take over anything but the test itself.
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts the server.
///
/// # Errors
/// [`BindError`] if the port is taken.
pub(super) fn start<L, P>(
    network: &Network<L, P>,
    spawner: &Spawner<P::RawMutex>,
    options: TcpOptions,
) -> Result<(), BindError>
where
    L: Link + Send + 'static,
    P: Platform,
{
    let seat = Arc::new(Seat(Mutex::new(None)));
    let tasks = spawner.clone();
    let number = core::sync::atomic::AtomicU64::new(0);
    super::serve(network, spawner, PORT, options, move |stream| {
        // Connections are numbered as they are accepted: their cookies may
        // arrive in another order, and the order tells the streams apart.
        let number = number.fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        serve(stream, number, seat.clone(), tasks.clone())
    })
}

/// Reads a connection's cookie and does what it asks for.
async fn serve<L: Link + Send + 'static, P: Platform>(
    stream: TcpStream<L, P>,
    number: u64,
    seat: Arc<Seat<L, P>>,
    tasks: Spawner<P::RawMutex>,
) {
    let mut cookie: Cookie = [0; 37];
    match within(&stream, &tasks, receive_exact(&stream, &mut cookie)).await {
        Some(Ok(())) => {}
        Some(Err(_)) | None => return,
    }
    match seat.ask(cookie, number, stream) {
        Answer::Handed => {}
        Answer::Taken(stream) => {
            let _ = stream.send_all(&[ACCESS_DENIED]).await;
        }
        Answer::Yours(stream, sitting) => Session::new(stream, sitting, tasks).run().await,
    }
}

/// Reads until `buffer` is full; the end of the stream before that is an error.
async fn receive_exact<L: Link, P: Platform>(
    stream: &TcpStream<L, P>,
    buffer: &mut [u8],
) -> Result<(), StreamError> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match stream.recv(rest).await? {
            0 => return Err(StreamError::ConnectionReset),
            n => filled += n,
        }
    }
    Ok(())
}

/// What came of `work`, or nothing after [`PATIENCE`].
async fn within<L: Link, P: Platform, T>(
    stream: &TcpStream<L, P>,
    tasks: &Spawner<P::RawMutex>,
    work: impl Future<Output = T>,
) -> Option<T> {
    let sleep = tasks.sleep_until(stream.network().platform().now() + PATIENCE);
    match select(core::pin::pin!(work), sleep).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(((), _)) => None,
    }
}

/// The one place for a test.
struct Seat<L: Link, P: Platform>(Mutex<P::RawMutex, Option<Sitter<L, P>>>);

/// The test that has the place.
struct Sitter<L: Link, P: Platform> {
    cookie: Cookie,
    /// Data connections that may still come.
    wanted: usize,
    /// Those that have come, with their numbers.
    arrived: Vec<(u64, TcpStream<L, P>)>,
    waker: Option<Waker>,
}

/// What a connection is to its server.
enum Answer<L: Link, P: Platform> {
    /// A data connection of the test that runs; it has been handed over.
    Handed,
    /// One too many.
    Taken(TcpStream<L, P>),
    /// The control connection of a new test.
    Yours(TcpStream<L, P>, Sitting<L, P>),
}

impl<L: Link, P: Platform> Seat<L, P> {
    fn ask(self: Arc<Self>, cookie: Cookie, number: u64, stream: TcpStream<L, P>) -> Answer<L, P> {
        let mut seat = self.0.lock();
        let Some(sitter) = &mut *seat else {
            *seat = Some(Sitter {
                cookie,
                wanted: 0,
                arrived: Vec::new(),
                waker: None,
            });
            drop(seat);
            return Answer::Yours(stream, Sitting(self));
        };
        if sitter.cookie != cookie || sitter.wanted == 0 {
            return Answer::Taken(stream);
        }
        sitter.wanted -= 1;
        sitter.arrived.push((number, stream));
        if sitter.wanted == 0
            && let Some(waker) = sitter.waker.take()
        {
            waker.wake();
        }
        Answer::Handed
    }
}

/// Holds the seat; it is free when this is dropped.
struct Sitting<L: Link, P: Platform>(Arc<Seat<L, P>>);

impl<L: Link, P: Platform> Sitting<L, P> {
    /// Lets that many data connections come.
    fn expect(&self, count: usize) {
        if let Some(sitter) = &mut *self.0.0.lock() {
            sitter.wanted = count;
        }
    }

    /// Waits until all have come; they are in the order of their connecting.
    async fn arrived(&self) -> Vec<TcpStream<L, P>> {
        let mut streams = poll_fn(|context| match &mut *self.0.0.lock() {
            Some(sitter) if sitter.wanted > 0 => {
                sitter.waker = Some(context.waker().clone());
                Poll::Pending
            }
            Some(sitter) => Poll::Ready(core::mem::take(&mut sitter.arrived)),
            None => Poll::Ready(Vec::new()),
        })
        .await;
        streams.sort_by_key(|(number, _)| *number);
        streams.into_iter().map(|(_, stream)| stream).collect()
    }
}

impl<L: Link, P: Platform> Drop for Sitting<L, P> {
    fn drop(&mut self) {
        let sitter = self.0.0.lock().take();
        // Its streams, if any, close outside the lock.
        drop(sitter);
    }
}
