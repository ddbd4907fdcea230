//! One test, from its parameters to its results.
//!
//! The control connection is read in one place at a time, while the traffic runs
//! beside it in the same task: dropping the session ends it all. Traffic is
//! polled first, so that what had arrived when the client said that it had
//! enough is counted.

use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::pin::{Pin, pin};

use futures_util::future::{Either, select};
use guest_stack::error::StreamError;
use guest_stack::face::asynchronous::TcpStream;
use guest_stack::face::platform::Platform;
use guest_stack::tcp::stream::Shutdown;
use guest_stack::time::{Duration, Instant};
use shm_link::link::Link;

use super::protocol::{
    CLIENT_TERMINATE, CREATE_STREAMS, DISPLAY_RESULTS, EXCHANGE_RESULTS, IPERF_DONE, MAX_PARAMS,
    MAX_RESULTS, PARAM_EXCHANGE, Params, Refusal, TEST_END, TEST_RUNNING, TEST_START, Transport,
    results,
};
use super::traffic::Traffic;
use super::{Sitting, receive_exact, within};
use crate::executor::Spawner;

/// A dead host is found out after four of these.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Why a test ended before its end.
enum Broken {
    /// The client is to be told.
    Refused(Refusal),
    /// There is nobody to tell.
    Gone,
}

impl From<StreamError> for Broken {
    fn from(_: StreamError) -> Self {
        Self::Gone
    }
}

impl From<Refusal> for Broken {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A test.
pub(super) struct Session<L: Link, P: Platform> {
    control: TcpStream<L, P>,
    sitting: Sitting<L, P>,
    tasks: Spawner<P::RawMutex>,
}

impl<L: Link + Send + 'static, P: Platform> Session<L, P> {
    pub(super) fn new(
        control: TcpStream<L, P>,
        sitting: Sitting<L, P>,
        tasks: Spawner<P::RawMutex>,
    ) -> Self {
        Self {
            control,
            sitting,
            tasks,
        }
    }

    pub(super) async fn run(self) {
        let refusal = match self.test().await {
            Ok(()) => return,
            Err(Broken::Gone) => {
                log::info!("iperf3: the client left in the middle of its test");
                return;
            }
            Err(Broken::Refused(refusal)) => refusal,
        };
        log::info!("iperf3: a test was ended: {refusal:?}");
        let _ = self.control.send_all(&refusal.message()).await;
        // What the client still says would reset the connection before it has
        // read that.
        let _ = self
            .wait(async {
                let _ = self.control.shutdown(Shutdown::Write);
                let mut rest = [0; 256];
                while !matches!(self.control.recv(&mut rest).await, Ok(0) | Err(_)) {}
                Ok(())
            })
            .await;
    }

    async fn test(&self) -> Result<(), Broken> {
        set_options(&self.control, true)?;
        self.control.send_all(&[PARAM_EXCHANGE]).await?;
        let text = self
            .wait(self.receive_text(MAX_PARAMS, Refusal::Params))
            .await?;
        let params = Params::parse(&text)?;
        let mut traffic = self.open(&params).await?;
        self.measure(&params, &traffic).await?;
        traffic.finish();
        Ok(())
    }

    /// Has the client open its data connections.
    async fn open(&self, params: &Params) -> Result<Traffic<L, P>, Broken> {
        let ready = async {
            match params.transport {
                Transport::Tcp => {
                    self.sitting.expect(params.streams());
                    self.control.send_all(&[CREATE_STREAMS]).await?;
                    let streams = self.sitting.arrived().await;
                    for stream in &streams {
                        set_options(stream, params.nodelay)?;
                    }
                    Ok(Traffic::tcp(params, streams))
                }
                Transport::Udp => {
                    let local = self.control.local_addr()?;
                    let peer = self.control.peer_addr()?.ip();
                    let traffic = Traffic::udp(params, self.control.network(), local, peer);
                    let traffic = traffic.map_err(|_| Refusal::StreamAccept)?;
                    self.control.send_all(&[CREATE_STREAMS]).await?;
                    traffic.arrived().await;
                    Ok(traffic)
                }
            }
        };
        match select(pin!(self.wait(ready)), pin!(self.message())).await {
            Either::Left((traffic, _)) => traffic,
            // It has nothing to say now.
            Either::Right((message, _)) => match message? {
                CLIENT_TERMINATE => Err(Broken::Gone),
                _ => Err(Refusal::Message.into()),
            },
        }
    }

    /// Runs the test and exchanges results.
    async fn measure(&self, params: &Params, traffic: &Traffic<L, P>) -> Result<(), Broken> {
        traffic.start();
        self.control.send_all(&[TEST_START, TEST_RUNNING]).await?;
        let mut running = pin!(traffic.run(&self.tasks));
        let mut begin = self.now();
        let mut ended = pin!(self.message_until(begin + params.patience()));
        if params.omit > Duration::ZERO {
            let omitted = self.tasks.sleep_until(begin + params.omit);
            let first = select(ended.as_mut(), omitted);
            match beside(running.as_mut(), first).await {
                Either::Left((message, _)) => {
                    // Too early for any message.
                    message?;
                    return Err(Refusal::Message.into());
                }
                Either::Right(_) => {}
            }
            traffic.meters().for_each(|meter| meter.lock().restart());
            begin = self.now();
        }
        match beside(running.as_mut(), ended).await? {
            TEST_END => {}
            CLIENT_TERMINATE => return Err(Broken::Gone),
            _ => return Err(Refusal::Message.into()),
        }
        let elapsed = self.now() - begin;
        let meters: Vec<_> = traffic.meters().map(|meter| meter.lock().clone()).collect();
        let results = results(&meters, params.from_guest > 0, elapsed);
        let exchange = self.wait(async {
            self.control.send_all(&[EXCHANGE_RESULTS]).await?;
            // What the client measured is for the client to print.
            self.receive_text(MAX_RESULTS, Refusal::Results).await?;
            self.control.send_all(&results).await?;
            self.control.send_all(&[DISPLAY_RESULTS]).await?;
            // The end of the connection says the same.
            match self.message().await {
                Ok(IPERF_DONE) | Err(_) => Ok(()),
                Ok(_) => Err(Refusal::Message.into()),
            }
        });
        beside(running, exchange).await
    }

    fn now(&self) -> Instant {
        self.control.network().platform().now()
    }

    /// Does `work`, but not for ever.
    async fn wait<T>(&self, work: impl Future<Output = Result<T, Broken>>) -> Result<T, Broken> {
        within(&self.control, &self.tasks, work)
            .await
            .unwrap_or(Err(Broken::Gone))
    }

    /// The client's next state byte.
    async fn message(&self) -> Result<u8, Broken> {
        let mut byte = [0];
        receive_exact(&self.control, &mut byte).await?;
        Ok(byte[0])
    }

    async fn message_until(&self, limit: Instant) -> Result<u8, Broken> {
        let sleep = self.tasks.sleep_until(limit);
        match select(pin!(self.message()), sleep).await {
            Either::Left((message, _)) => message,
            Either::Right(((), _)) => Err(Broken::Gone),
        }
    }

    /// A text behind its length.
    async fn receive_text(&self, longest: usize, refusal: Refusal) -> Result<Vec<u8>, Broken> {
        let mut len = [0; 4];
        receive_exact(&self.control, &mut len).await?;
        let len = u32::from_be_bytes(len) as usize;
        if len > longest {
            return Err(refusal.into());
        }
        let mut text = vec![0; len];
        receive_exact(&self.control, &mut text).await?;
        Ok(text)
    }
}

/// What comes of `work` while the traffic runs, which has the first turn.
async fn beside<T>(
    traffic: Pin<&mut impl Future<Output = Infallible>>,
    work: impl Future<Output = T>,
) -> T {
    match select(traffic, pin!(work)).await {
        Either::Left((never, _)) => match never {},
        Either::Right((done, _)) => done,
    }
}

fn set_options<L: Link, P: Platform>(
    stream: &TcpStream<L, P>,
    nodelay: bool,
) -> Result<(), StreamError> {
    let mut options = stream.options()?;
    options.nodelay = nodelay;
    options.keep_alive = Some(KEEP_ALIVE);
    options.user_timeout = None;
    stream.set_options(options)
}
