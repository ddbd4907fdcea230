//! A guest that shares memory, from its connection to its end.
//!
//! Its connection, memory, doorbells and TAP may outlive this process in the
//! [`Store`]; the next one finds them there and goes on ([`MemoryGuest::kept`]), and
//! the guest notices a new generation of its memory and no more. What goes wrong with
//! the store costs the guest this, and nothing else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;
use std::time::Duration;

use shm_link::linux::event::EventFd;
use shm_link::linux::ivshmem::{ServerSetup, send_refusal, send_setup};
use shm_link::linux::memory::{MemoryError, SharedMemory};
use shm_link::region::{Region, RegionError};
use shm_link::superblock::{Layout, LayoutOptions};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use super::guest::{copying_tap, log_of, say_once};
use crate::bell::Doorbells;
use crate::bridge::{AttachedPort, Bridge};
use crate::error::BridgeError;
use crate::log_limit::PortLog;
use crate::plan::Slot;
use crate::port::{PortConfig, PortEnd};
use crate::store::{Names, Record, Store};
use crate::tap::TapSource;

/// The id under which guests ring the host; guests have ids from 1.
const HOST_ID: u16 = 0;
/// How long after a vain attempt to make a guest's TAP anew the next is made.
const TAP_REST: Duration = Duration::from_millis(500);

/// What a guest has on the host besides its port.
pub(super) struct MemoryGuest {
    socket: UnixStream,
    /// Closed once the guest has its own descriptor of it, and the store too.
    memory: Option<SharedMemory>,
    parts: Parts,
    /// A TAP that serves it already.
    tap: Option<OwnedFd>,
    /// Whether it comes from the process before this one.
    kept: bool,
    /// Dropped when it has a port, or will have to wait for one.
    arriving: Option<Arriving>,
}

/// Whoever waits for the other end to close waits for all that hold one.
pub(crate) type Arriving = mpsc::Sender<std::convert::Infallible>;

/// Where a guest is served.
pub(super) struct Place<'a, C> {
    pub(super) bridge: &'a Bridge,
    pub(super) store: &'a Store,
    pub(super) slot: &'a Slot,
    /// Makes the settings of its port, with a new TAP.
    pub(super) config: C,
}

/// How a guest's time here ended.
enum Ending {
    /// It is gone, or is to go.
    Over,
    /// The next process takes it over.
    Left,
}

impl MemoryGuest {
    /// A guest that has just connected; if it cannot be served it is told so.
    ///
    /// # Errors
    /// [`BridgeError`] if there is no memory or no descriptor for it.
    pub(super) fn new(
        socket: UnixStream,
        name: &str,
        options: LayoutOptions,
        store: &Store,
    ) -> Result<Self, BridgeError> {
        match Parts::new(name, options, store) {
            Ok((parts, memory)) => Ok(Self {
                socket,
                parts,
                memory: Some(memory),
                tap: None,
                kept: false,
                arriving: None,
            }),
            Err(error) => {
                turn_away(&socket);
                Err(error)
            }
        }
    }

    /// The guest of the port with this name, as the process before this one left it;
    /// `None` if it left none, or not all that belongs to one.
    pub(super) fn kept(
        store: &Store,
        port: &str,
        arriving: &Arriving,
    ) -> Option<Result<Self, BridgeError>> {
        let names = Names::of(port);
        let socket = store.take(&names.connection())?;
        let memory = store.take(&names.memory())?;
        let ring_guest = store.take(&names.ring_guest())?;
        let rung_by_guest = store.take(&names.rung_by_guest())?;
        let record = store.take(&names.record())?;
        let tap = store.take(&names.tap());
        let guest = || {
            let record = Record::from_fd(record).map_err(io_error("reading a guest's record"))?;
            let socket = StdStream::from(socket);
            let registered = socket.set_nonblocking(true);
            let socket = registered.and_then(|()| UnixStream::from_std(socket));
            Ok(Self {
                socket: socket.map_err(io_error("taking a guest's connection over"))?,
                memory: None,
                parts: Parts {
                    region: SharedMemory::from_fd(memory)
                        .map_err(making_memory)?
                        .region(),
                    layout: Layout::new(record.layout()).map_err(laying_out)?,
                    ring_guest,
                    rung_by_guest,
                    record: Some(record),
                },
                tap,
                kept: true,
                arriving: Some(arriving.clone()),
            })
        };
        Some(guest())
    }

    /// Serves the guest until it is gone, breaks the rules, or `stop` is done.
    ///
    /// # Errors
    /// [`BridgeError`] if a new guest cannot be served.
    pub(super) async fn serve<C: FnMut() -> io::Result<PortConfig>>(
        mut self,
        mut place: Place<'_, C>,
        stop: impl Future<Output = ()>,
    ) -> Result<(), BridgeError> {
        let (memory, layout) = (place.bridge.memory(), self.parts.layout);
        let _memory = match self.kept {
            true => memory.for_kept_rings(&layout),
            false => memory
                .soon(|memory| memory.for_rings(&layout))
                .await
                .inspect_err(|_| turn_away(&self.socket))?,
        };
        let mut config = (place.config)().map_err(copying_tap)?;
        let name = config.name.clone();
        let names = Names::of(&name);
        let log = log_of(&config);
        let first = if self.kept {
            if let Some(tap) = self.tap.take() {
                config.tap = TapSource::Kept(tap);
            }
            match self.parts.attach(place.bridge, config).await {
                Ok(port) => {
                    log.info("its guest goes on");
                    Some(port)
                }
                Err(error) => {
                    log.warn(format_args!("{error}; making its TAP anew"));
                    said(&name, place.store.forget([names.tap()]).await);
                    None
                }
            }
        } else {
            let attached = self.parts.attach(place.bridge, config).await;
            let port = attached.inspect_err(|_| turn_away(&self.socket))?;
            if let Err(error) = self.introduce(&place, &names, &port).await {
                place.slot.vacate();
                port.close().await;
                self.forget(place.store, &names).await;
                return Err(error);
            }
            log.info("a guest attached");
            Some(port)
        };
        drop(self.arriving.take());
        if let Ending::Over = self
            .serve_ports(first, &mut place, (&names, &log), stop)
            .await
        {
            self.forget(place.store, &names).await;
        }
        Ok(())
    }

    /// One port after the other, each with a TAP of its own.
    async fn serve_ports<C: FnMut() -> io::Result<PortConfig>>(
        &mut self,
        mut first: Option<AttachedPort>,
        place: &mut Place<'_, C>,
        (names, log): (&Names, &PortLog),
        stop: impl Future<Output = ()>,
    ) -> Ending {
        let name = names.port().to_owned();
        let (socket, parts) = (&mut self.socket, &self.parts);
        let store = place.store;
        let mut gone = std::pin::pin!(async {
            tokio::select! {
                () = end_of_file(socket) => {
                    log.info("the guest detached");
                    Ending::Over
                }
                () = stop => match store.is_leaving() {
                    true => Ending::Left,
                    false => {
                        log.info("the guest is detached, the bridge ends");
                        Ending::Over
                    }
                },
            }
        });
        loop {
            let mut port = match first.take() {
                Some(port) => port,
                None => {
                    let port = tokio::select! {
                        port = parts.attach_at_last(place, &name) => port,
                        ending = gone.as_mut() => return ending,
                    };
                    said(&name, keep_tap(store, names, &port).await);
                    log.info("its TAP is there again");
                    port
                }
            };
            let end = tokio::select! {
                ending = gone.as_mut() => {
                    match ending {
                        Ending::Left => port.leave().await,
                        Ending::Over => {
                            place.slot.vacate();
                            port.close().await;
                        }
                    }
                    return ending;
                }
                end = port.ended() => end,
            };
            let over = !matches!(end, PortEnd::Tap(_));
            if over {
                place.slot.vacate();
            }
            port.close().await;
            if over {
                log.warn(&end);
                return Ending::Over;
            }
            // Not the guest's doing: it keeps its memory, and gets another TAP.
            log.warn(format_args!("{end}; making it anew"));
            said(&name, store.forget([names.tap()]).await);
        }
    }

    /// Tells the guest where its memory is. Kept is first what it is told of, then its
    /// connection: the next process takes over whom it finds whole.
    async fn introduce<C>(
        &mut self,
        place: &Place<'_, C>,
        names: &Names,
        port: &AttachedPort,
    ) -> Result<(), BridgeError> {
        let Some(memory) = self.memory.take() else {
            return Ok(());
        };
        let (store, parts) = (place.store, &self.parts);
        if let Some(record) = &parts.record {
            let kept = async {
                keep_tap(store, names, port).await?;
                store.keep(&names.memory(), memory.fd()).await?;
                store.keep(&names.ring_guest(), &parts.ring_guest).await?;
                let rung = names.rung_by_guest();
                store.keep(&rung, &parts.rung_by_guest).await?;
                store.keep(&names.record(), record.fd()).await
            };
            said(names.port(), kept.await);
        }
        let setup = ServerSetup {
            client_id: place.slot.number + 1,
            host_id: HOST_ID,
            memory: memory.fd(),
            ring_host: &[parts.rung_by_guest.as_fd()],
            ring_client: &[parts.ring_guest.as_fd()],
        };
        send_setup(&self.socket, setup).map_err(io_error("sending the guest its memory"))?;
        let kept = store.keep(&names.connection(), &self.socket).await;
        said(names.port(), kept);
        Ok(())
    }

    async fn forget(&self, store: &Store, names: &Names) {
        if self.parts.record.is_some() {
            said(names.port(), store.forget(names.all()).await);
        }
    }
}

/// What each port of a guest is made from.
struct Parts {
    region: Region,
    layout: Layout,
    ring_guest: OwnedFd,
    rung_by_guest: OwnedFd,
    /// Only where there is a store.
    record: Option<Record>,
}

impl Parts {
    /// What a new guest needs, and the descriptor of its memory.
    fn new(
        name: &str,
        options: LayoutOptions,
        store: &Store,
    ) -> Result<(Self, SharedMemory), BridgeError> {
        let event = || {
            EventFd::new()
                .map(OwnedFd::from)
                .map_err(io_error("making an eventfd"))
        };
        let layout = Layout::new(options).map_err(laying_out)?;
        let memory = SharedMemory::create(name, layout.region_len).map_err(making_memory)?;
        let record = match store.keeps() {
            true => Some(Record::new(options).map_err(io_error("making a guest's record"))?),
            false => None,
        };
        let parts = Self {
            region: memory.region(),
            layout,
            ring_guest: event()?,
            rung_by_guest: event()?,
            record,
        };
        Ok((parts, memory))
    }

    async fn attach(
        &self,
        bridge: &Bridge,
        config: PortConfig,
    ) -> Result<AttachedPort, BridgeError> {
        let copy = |fd: &OwnedFd| fd.try_clone().map_err(io_error("copying an eventfd"));
        let doorbells = Doorbells {
            ring_guest: copy(&self.ring_guest)?,
            rung_by_guest: copy(&self.rung_by_guest)?,
        };
        let config = PortConfig {
            record: self.record.clone(),
            ..config
        };
        let (region, layout) = (self.region.clone(), self.layout);
        bridge.attach_as(region, layout, doorbells, config).await
    }

    /// Tries until it works.
    async fn attach_at_last<C: FnMut() -> io::Result<PortConfig>>(
        &self,
        place: &mut Place<'_, C>,
        name: &str,
    ) -> AttachedPort {
        let mut said = String::new();
        loop {
            let made = match (place.config)().map_err(copying_tap) {
                Ok(config) => self.attach(place.bridge, config).await,
                Err(error) => Err(error),
            };
            match made {
                Ok(port) => return port,
                Err(error) => say_once(&mut said, &format!("port {name}: {error}")),
            }
            tokio::time::sleep(TAP_REST).await;
        }
    }
}

/// Tells a client that it gets no place here, so that it does not come again at once.
pub(super) fn turn_away(socket: &UnixStream) {
    // Who is gone already needs no answer.
    let _ = send_refusal(socket);
}

async fn keep_tap(store: &Store, names: &Names, port: &AttachedPort) -> io::Result<()> {
    match store.keeps() {
        true => store.keep(&names.tap(), port.handle().tap_fd()?).await,
        false => Ok(()),
    }
}

/// Says that the guest would not outlive this process.
fn said(port: &str, kept: io::Result<()>) {
    if let Err(error) = kept {
        log::warn!("port {port}: what is kept of its guest is not what it has: {error}");
    }
}

fn io_error(doing: &'static str) -> impl Fn(io::Error) -> BridgeError {
    move |error| BridgeError::io(doing, error)
}

fn laying_out(error: RegionError) -> BridgeError {
    BridgeError::io("laying out the memory", io::Error::other(error))
}

fn making_memory(error: MemoryError) -> BridgeError {
    BridgeError::io("making the guest's memory", io::Error::other(error))
}

/// Waits until the client is gone. Clients have nothing to say here; what one
/// says all the same is thrown away.
async fn end_of_file(socket: &mut UnixStream) {
    let mut stray = [0; 64];
    while matches!(socket.read(&mut stray).await, Ok(n) if n > 0) {}
}
