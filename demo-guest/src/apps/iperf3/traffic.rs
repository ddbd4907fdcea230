//! The data of a test.
//!
//! Over TCP each stream is a future that reads or writes. Over UDP the datagrams
//! that arrive are measured by a callback of the stack, where they are: no queue
//! overflows and no task wakes up for them; one future sends for all streams.
//!
//! [`Traffic::run`] polls the futures; nothing here says anything on the control
//! connection.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::future::{pending, poll_fn};
use core::net::{IpAddr, SocketAddr};
use core::pin::Pin;
use core::task::{Poll, Waker};

use futures_util::stream::{FuturesUnordered, StreamExt};
use guest_stack::error::BindError;
use guest_stack::face::asynchronous::{Network, TcpStream, UdpSocket};
use guest_stack::face::platform::Platform;
use guest_stack::registry::Verdict;
use lock_api::Mutex;
use shm_link::link::Link;
use shm_link::offload::MAX_UDP_SEGMENTS;

use super::meter::{Meter, Pace};
use super::protocol::{Params, udp_answer};
use crate::executor::Spawner;

/// Bytes of the datagrams that leave together.
const DATAGRAMS_BYTES: usize = 60_000;

type SharedMeter<P> = Mutex<<P as Platform>::RawMutex, Meter>;

/// The data connections of a test and what they carry.
pub(super) struct Traffic<L: Link, P: Platform> {
    /// One per stream, in the order of connecting.
    meters: Arc<[SharedMeter<P>]>,
    block: usize,
    rate: u64,
    /// The first so many streams bring data, the others take it.
    to_guest: usize,
    carrier: Carrier<L, P>,
}

enum Carrier<L: Link, P: Platform> {
    Tcp {
        streams: Vec<TcpStream<L, P>>,
        in_order: bool,
    },
    Udp(Udp<L, P>),
}

impl<L: Link + Send + 'static, P: Platform> Traffic<L, P> {
    fn new(params: &Params, carrier: Carrier<L, P>, meters: Arc<[SharedMeter<P>]>) -> Self {
        Self {
            meters,
            block: params.block,
            rate: params.rate,
            to_guest: params.to_guest,
            carrier,
        }
    }

    /// A test on these connections.
    pub(super) fn tcp(params: &Params, streams: Vec<TcpStream<L, P>>) -> Self {
        Self::new(
            params,
            Carrier::Tcp {
                streams,
                in_order: false,
            },
            meters::<P>(params),
        )
    }

    /// A test over UDP at `local`, with `peer`.
    ///
    /// # Errors
    /// [`BindError`] if the port is taken.
    pub(super) fn udp(
        params: &Params,
        network: &Network<L, P>,
        local: SocketAddr,
        peer: IpAddr,
    ) -> Result<Self, BindError> {
        let meters = meters::<P>(params);
        let udp = Udp::open(params, network, local, peer, meters.clone())?;
        Ok(Self::new(params, Carrier::Udp(udp), meters))
    }

    /// Waits until all streams are there.
    pub(super) async fn arrived(&self) {
        match &self.carrier {
            Carrier::Tcp { .. } => {}
            Carrier::Udp(udp) => udp.arrived().await,
        }
    }

    /// What the streams have carried, in the order of connecting.
    pub(super) fn meters(&self) -> impl Iterator<Item = &SharedMeter<P>> {
        self.meters.iter()
    }

    /// Data counts from now on.
    pub(super) fn start(&self) {
        if let Carrier::Udp(udp) = &self.carrier {
            udp.callers.lock().running = true;
        }
    }

    /// Carries data until dropped.
    pub(super) async fn run(&self, tasks: &Spawner<P::RawMutex>) -> Infallible {
        let mut work = FuturesUnordered::<Pin<Box<dyn Future<Output = ()> + Send + '_>>>::new();
        match &self.carrier {
            Carrier::Tcp { streams, .. } => {
                for (place, (stream, meter)) in streams.iter().zip(&*self.meters).enumerate() {
                    if place < self.to_guest {
                        work.push(Box::pin(self.receive(stream, meter)));
                    } else {
                        work.push(Box::pin(self.send(stream, meter, tasks)));
                    }
                }
            }
            Carrier::Udp(udp) => work.push(Box::pin(self.send_datagrams(udp, tasks))),
        }
        // A stream that has ended has nothing more to measure; the client says
        // when the test is over.
        while work.next().await.is_some() {}
        pending().await
    }

    async fn receive(&self, stream: &TcpStream<L, P>, meter: &SharedMeter<P>) {
        let mut buffer = vec![0; self.block];
        while let Ok(n @ 1..) = stream.recv(&mut buffer).await {
            meter.lock().bytes += n as u64;
        }
    }

    async fn send(
        &self,
        stream: &TcpStream<L, P>,
        meter: &SharedMeter<P>,
        tasks: &Spawner<P::RawMutex>,
    ) {
        let buffer = vec![0; self.block];
        let platform = stream.network().platform();
        let mut pace = Pace::new(self.rate, platform.now());
        loop {
            if let Some(time) = pace.rest(platform.now()) {
                tasks.sleep_until(time).await;
                continue;
            }
            let mut rest = &buffer[..];
            while !rest.is_empty() {
                let Ok(taken) = stream.send(rest).await else {
                    return;
                };
                rest = rest.get(taken..).unwrap_or_default();
                pace.sent(taken);
                meter.lock().bytes += taken as u64;
            }
        }
    }

    /// Sends on all streams in turn: a socket has one writer.
    async fn send_datagrams(&self, udp: &Udp<L, P>, tasks: &Spawner<P::RawMutex>) {
        let callers = udp.callers.lock().addresses.clone();
        let platform = udp.socket.network().platform();
        let pace = Pace::new(self.rate, platform.now());
        let streams = callers.iter().zip(&*self.meters).skip(self.to_guest);
        let mut streams: Vec<_> = streams
            .map(|(to, meter)| (*to, meter, pace.clone()))
            .collect();
        // As many as one frame may carry (USO) leave together.
        let most = (DATAGRAMS_BYTES / self.block.max(1)).clamp(1, MAX_UDP_SEGMENTS);
        let mut payloads = vec![0; self.block * most];
        // Those with equal pace take turns.
        while let Some((to, meter, pace)) = streams.iter_mut().min_by_key(|(.., pace)| pace.key()) {
            if let Some(time) = pace.rest(platform.now()) {
                tasks.sleep_until(time).await;
                continue;
            }
            let mut due = 0;
            for payload in payloads.chunks_mut(self.block) {
                let now = platform.now();
                if due > 0 && pace.rest(now).is_some() {
                    break;
                }
                meter.lock().next_datagram(now, payload, udp.wide);
                pace.sent(payload.len());
                due += payload.len();
            }
            let mut rest = payloads.get(..due).unwrap_or_default();
            while !rest.is_empty() {
                let Ok(taken) = udp.socket.send_many_to(rest, self.block, *to).await else {
                    return;
                };
                rest = rest.get(taken..).unwrap_or_default();
            }
        }
    }

    /// The test is over and its results are told: the connections close in
    /// order, instead of being reset.
    pub(super) fn finish(&mut self) {
        if let Carrier::Tcp { in_order, .. } = &mut self.carrier {
            *in_order = true;
        }
    }
}

fn meters<P: Platform>(params: &Params) -> Arc<[SharedMeter<P>]> {
    (0..params.streams())
        .map(|_| Mutex::new(Meter::default()))
        .collect()
}

impl<L: Link, P: Platform> Drop for Carrier<L, P> {
    fn drop(&mut self) {
        let Self::Tcp {
            streams,
            in_order: false,
        } = self
        else {
            return;
        };
        // What is queued for a client that gave up need not be delivered.
        for stream in streams {
            let id = stream.id();
            stream
                .network()
                .with(|stack, _| stack.sockets().tcp_abort(id));
        }
    }
}

/// The UDP side: who may send, and a socket to send from.
struct Udp<L: Link, P: Platform> {
    callers: Arc<Mutex<P::RawMutex, Callers>>,
    socket: UdpSocket<L, P>,
    wide: bool,
}

struct Callers {
    peer: IpAddr,
    /// In the order of their first datagrams.
    addresses: Vec<SocketAddr>,
    wanted: usize,
    running: bool,
    waker: Option<Waker>,
}

impl<L: Link + Send + 'static, P: Platform> Udp<L, P> {
    fn open(
        params: &Params,
        network: &Network<L, P>,
        local: SocketAddr,
        peer: IpAddr,
        meters: Arc<[SharedMeter<P>]>,
    ) -> Result<Self, BindError> {
        let callers = Arc::new(Mutex::new(Callers {
            peer,
            addresses: Vec::new(),
            wanted: params.streams(),
            running: false,
            waker: None,
        }));
        let (wide, to_guest) = (params.wide_counters, params.to_guest);
        let socket = network.bind_udp(local)?;
        let seen = callers.clone();
        let registered = network.with(|stack, _| {
            stack
                .sockets()
                .on_udp(local.port(), move |context, datagram, payload| {
                    let mut callers = seen.lock();
                    if let Some(answer) = udp_answer(payload) {
                        if callers.admit(datagram.src) {
                            // A lost answer is as good as a lost question.
                            let _ = context.reply_datagram(datagram, &answer);
                        }
                    } else if callers.running
                        && let Some(place) = callers.place(datagram.src)
                        && let Some(meter) = meters.get(place).filter(|_| place < to_guest)
                    {
                        meter.lock().datagram(context.now(), payload, wide);
                    }
                    Verdict::Handled
                })
        });
        registered.map_err(|_| BindError::AddrInUse)?;
        Ok(Self {
            callers,
            socket,
            wide,
        })
    }

    async fn arrived(&self) {
        poll_fn(|context| {
            let mut callers = self.callers.lock();
            if callers.addresses.len() == callers.wanted {
                return Poll::Ready(());
            }
            callers.waker = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl<L: Link, P: Platform> Drop for Udp<L, P> {
    fn drop(&mut self) {
        let network = self.socket.network();
        if let Ok(local) = self.socket.local_addr() {
            network.with(|stack, _| stack.sockets().remove_udp(local.port()));
        }
    }
}

impl Callers {
    fn place(&self, from: SocketAddr) -> Option<usize> {
        self.addresses.iter().position(|address| *address == from)
    }

    /// Whether `from` is one of the streams; it becomes one if there is room.
    fn admit(&mut self, from: SocketAddr) -> bool {
        if self.place(from).is_some() {
            return true;
        }
        if from.ip() != self.peer || self.addresses.len() == self.wanted {
            return false;
        }
        self.addresses.push(from);
        if self.addresses.len() == self.wanted
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
        true
    }
}
