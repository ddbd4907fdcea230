//! The attach sockets: guests come and go.
//!
//! | where | what is spoken there | file |
//! | --- | --- | --- |
//! | a unix socket | QEMU's ivshmem-server protocol: a stock QEMU (`-device ivshmem-doorbell`) and a plain process get memory and eventfds of their own in the same way, then only listen | `memory` |
//! | another unix socket | frames and control messages themselves, for guests that share no memory | `guest` |
//! | serial lines | the same, with checksums | `guest` |
//!
//! All guests of a server share its slots, so they are of one plan however they
//! came. The end of a guest's connection is the sign that it is gone; a serial
//! line has none.

mod guest;
mod memory;
mod socket;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shm_link::linux::address::Address;
use shm_link::linux::attach::id_before;
use shm_link::superblock::LayoutOptions;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::guest::{open_line, serve_line, serve_stream};
pub(crate) use self::memory::Arriving;
use self::memory::{MemoryGuest, Place};
pub use self::socket::Visitors;
pub(crate) use self::socket::{ACCEPT_REST, Listening};
use crate::bridge::Bridge;
use crate::error::BridgeError;
use crate::filter::FilterConfig;
use crate::impair::ImpairConfig;
use crate::limit::Limits;
use crate::log_limit::{LogLimit, PortLog};
use crate::plan::{Assignment, Patience, Plan, Slot, Slots};
use crate::port::{LOG_LINES_PER_SECOND, PortConfig};
use crate::store::{Names, Store};
use crate::tap::TapSource;

/// Lines per second about those who are turned away.
const LINES_PER_SECOND: u32 = 5;
/// How long a guest waits for a slot, or for the one that it had before: who is gone
/// leaves its place when its TAP is gone as well. That takes the kernel some milliseconds,
/// and seconds where many network namespaces go at the same time.
const PATIENCE: Patience = Patience {
    held: Duration::from_millis(200),
    clearing: Duration::from_secs(10),
};
/// How many may wait beside those who have a slot.
const WAITING: usize = 64;

/// What every guest of a socket gets besides its place in the plan.
#[derive(Debug, Clone)]
pub struct GuestPolicy {
    /// Sizes of the rings.
    pub layout: LayoutOptions,
    /// Whether frames may leave checksums and segmentation to the other side.
    pub offloads: bool,
    /// What frames are checked for.
    pub filter: FilterConfig,
    /// How much it may move.
    pub limits: Limits,
    /// Fault injection from guest to host.
    pub impair_to_host: ImpairConfig,
    /// Fault injection from host to guest.
    pub impair_to_guest: ImpairConfig,
    /// Who may attach.
    pub visitors: Visitors,
    /// TAPs for the first slots; later slots make their own, named like the port.
    pub taps: Vec<GivenTap>,
}

/// A TAP that an administrator chose for a slot.
#[derive(Debug, Clone)]
pub enum GivenTap {
    /// To be made under this name whenever a guest comes.
    New(String),
    /// A persistent TAP that exists already.
    Existing(String),
    /// A descriptor attached to a TAP. It stays open between guests.
    Fd(Arc<OwnedFd>),
}

impl GivenTap {
    /// The TAP for one guest.
    ///
    /// # Errors
    /// The system's, if there is no descriptor left.
    pub fn source(&self) -> io::Result<TapSource> {
        Ok(match self {
            Self::New(name) => TapSource::Create {
                name: Some(name.clone()),
            },
            Self::Existing(name) => TapSource::Existing { name: name.clone() },
            Self::Fd(fd) => TapSource::Fd(fd.try_clone()?),
        })
    }
}

/// Who may attach to a socket, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places {
    /// Guests come and go; the lowest free slot decides who each is.
    Plan(Plan),
    /// One guest at a time, always as the same machine.
    One(Box<Assignment>),
}

impl Places {
    /// How many guests there may be at a time.
    pub fn count(&self) -> u16 {
        match self {
            Self::Plan(plan) => plan.max_guests,
            Self::One(_) => 1,
        }
    }

    /// What slot `slot` (from 0) gets.
    pub fn assign(&self, slot: u16) -> Assignment {
        match self {
            Self::Plan(plan) => plan.assign(slot),
            Self::One(assignment) => Assignment::clone(assignment),
        }
    }
}

impl From<Plan> for Places {
    fn from(plan: Plan) -> Self {
        Self::Plan(plan)
    }
}

/// Who may come to a server, and what they get.
struct Desk {
    places: Places,
    policy: GuestPolicy,
    /// By slot: who comes and goes as fast as it can is to fill no log.
    logs: Mutex<BTreeMap<u16, PortLog>>,
    /// Nor is who gets no port, whichever slot it has for that.
    others: Mutex<LogLimit>,
}

impl Desk {
    fn new(places: Places, policy: GuestPolicy) -> Self {
        Self {
            places,
            policy,
            logs: Mutex::default(),
            others: Mutex::new(LogLimit::new(LINES_PER_SECOND)),
        }
    }

    /// Logs what became of somebody who got no port, or leaves it out.
    fn tell(&self, level: log::Level, text: impl Display) {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        others.tell(module_path!(), level, text);
    }

    /// Tells that a guest could not be served. One that hung up is no error of ours.
    fn tell_failure(&self, slot: u16, error: &BridgeError) {
        let level = match error.is_hang_up() {
            true => log::Level::Warn,
            false => log::Level::Error,
        };
        let name = self.places.assign(slot).name;
        self.tell(level, format_args!("port {name}: {error}"));
    }

    fn log(&self, slot: u16) -> PortLog {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || PortLog::new(&self.places.assign(slot).name, LOG_LINES_PER_SECOND);
        logs.entry(slot).or_insert_with(new).clone()
    }

    fn port_config(&self, slot: u16) -> io::Result<PortConfig> {
        let assignment = self.places.assign(slot);
        let tap = match self.policy.taps.get(usize::from(slot)) {
            Some(given) => given.source()?,
            None => TapSource::Create {
                name: Some(assignment.name.clone()),
            },
        };
        Ok(PortConfig {
            name: assignment.name,
            tap,
            network: assignment.network,
            master: assignment.master,
            host_addresses: assignment.host_addresses,
            offloads: self.policy.offloads,
            filter: self.policy.filter.clone(),
            limits: self.policy.limits,
            impair_to_host: self.policy.impair_to_host.clone(),
            impair_to_guest: self.policy.impair_to_guest.clone(),
            record: None,
            log: Some(self.log(slot)),
        })
    }
}

/// A serial line and the slot that it keeps.
struct Line {
    device: PathBuf,
    slot: Slot,
}

/// A client that connected, by what it is to speak.
enum Client {
    /// Perhaps with the slot that it had before.
    Memory(UnixStream, Option<u16>),
    Stream(UnixStream),
}

/// The attach sockets and serial lines of one plan.
pub struct Server {
    socket: Listening,
    streams: Option<Listening>,
    lines: Vec<Line>,
    bridge: Bridge,
    desk: Arc<Desk>,
    slots: Slots,
    store: Store,
    /// Those that the process before this one left.
    kept: Vec<(Slot, MemoryGuest)>,
    /// Names in the store that are of no use.
    useless: Vec<String>,
}

impl Server {
    /// Listens at `address` for guests that share memory.
    ///
    /// # Errors
    /// [`BridgeError`] if the address is in use or cannot be made.
    pub fn bind(
        address: &Address,
        bridge: Bridge,
        places: impl Into<Places>,
        policy: GuestPolicy,
    ) -> Result<Self, BridgeError> {
        let socket = Listening::at(address, policy.visitors.clone())?;
        let nobody = (Store::none(), mpsc::channel(1).0);
        Ok(Self::over(
            (socket, None),
            bridge,
            places.into(),
            policy,
            nobody,
        ))
    }

    /// The same over sockets that listen already, for the second of which guests speak
    /// the stream protocol. Takes over the guests that were kept, each of which holds
    /// `arriving` until it is served. Call it in a runtime.
    pub(crate) fn over(
        (socket, streams): (Listening, Option<Listening>),
        bridge: Bridge,
        places: Places,
        policy: GuestPolicy,
        (store, arriving): (Store, Arriving),
    ) -> Self {
        let slots = Slots::new(places.count());
        let (kept, useless) = match store.keeps() {
            true => kept_guests(&store, &slots, &places, &arriving),
            false => Default::default(),
        };
        Self {
            socket,
            streams,
            lines: Vec::new(),
            bridge,
            slots,
            desk: Arc::new(Desk::new(places, policy)),
            store,
            kept,
            useless,
        }
    }

    /// Listens at `address` as well, for guests that speak the stream protocol
    /// ([`Framing::Prefixed`](shm_link::stream::Framing::Prefixed)). A second
    /// call replaces the first.
    ///
    /// # Errors
    /// As for [`bind`](Self::bind).
    pub fn bind_stream(&mut self, address: &Address) -> Result<(), BridgeError> {
        let visitors = self.desk.policy.visitors.clone();
        self.streams = Some(Listening::at(address, visitors)?);
        Ok(())
    }

    /// Serves a guest at a serial line as well
    /// ([`Framing::Serial`](shm_link::stream::Framing::Serial)). The line keeps
    /// the lowest free slot; its speed stays what it is.
    ///
    /// # Errors
    /// [`BridgeError`] if the device is no terminal or may not be opened, or no
    /// slot is free.
    pub fn add_line(&mut self, device: impl Into<PathBuf>) -> Result<(), BridgeError> {
        let device = device.into();
        // Opened anew for each guest; a mistake is to be heard of now.
        drop(open_line(&device)?);
        let slot = self.slots.take().map_err(|error| {
            let doing = format!("finding a place for the line {}", device.display());
            BridgeError::io(doing, io::Error::other(error))
        })?;
        self.lines.push(Line { device, slot });
        Ok(())
    }

    /// Serves guests until dropped, which detaches them all.
    pub async fn run(&mut self) -> Infallible {
        let mut guests = Guests::new();
        self.accept(&mut guests).await
    }

    /// Serves guests until `stop` is done, detaches them all, and returns when
    /// their TAPs are gone.
    pub async fn run_until(&mut self, stop: impl Future<Output = ()>) {
        let mut guests = Guests::new();
        tokio::select! {
            never = self.accept(&mut guests) => match never {},
            () = stop => {}
        }
        drop(guests.serving);
        while guests.tasks.join_next().await.is_some() {}
    }

    async fn accept(&mut self, guests: &mut Guests) -> Infallible {
        if let Err(error) = self.store.forget(self.useless.drain(..)).await {
            log::warn!("what is kept of guests that are let go: {error}");
        }
        for (slot, guest) in self.kept.drain(..) {
            let (bridge, desk) = (self.bridge.clone(), self.desk.clone());
            let (store, stop) = (self.store.clone(), guests.stop());
            guests
                .tasks
                .spawn(serve_memory(guest, slot, bridge, desk, store, stop));
        }
        for line in &self.lines {
            let (device, slot) = (line.device.clone(), line.slot.number);
            let (bridge, desk, stop) = (self.bridge.clone(), self.desk.clone(), guests.stop());
            guests.tasks.spawn(async move {
                serve_line(&device, bridge, || desk.port_config(slot), stop).await;
            });
        }
        let memory = self.socket.serve().await;
        let streams = match &self.streams {
            Some(streams) => Some((streams, streams.serve().await)),
            None => None,
        };
        let reception = Arc::new(Reception {
            bridge: self.bridge.clone(),
            slots: self.slots.clone(),
            desk: self.desk.clone(),
            store: self.store.clone(),
        });
        let most = usize::from(self.desk.places.count()) + WAITING;
        loop {
            let accepted = tokio::select! {
                accepted = memory.accept() => accepted.map(|(socket, _)| {
                    let slot = slot_before(&socket);
                    (self.socket.admit(&socket), Client::Memory(socket, slot))
                }),
                accepted = accept_stream(streams.as_ref()) => accepted,
                Some(_) = guests.tasks.join_next() => continue,
            };
            let (admitted, client) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    log::warn!("cannot accept a guest: {error}; trying again");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            match admitted {
                Err(why) => reception.refuse(&client, &why),
                Ok(()) if guests.tasks.len() >= most => {
                    reception.refuse(&client, "too many wait for a place already");
                }
                Ok(()) => {
                    let served = reception.clone().serve(client, guests.stop());
                    guests.tasks.spawn(served);
                }
            }
        }
    }
}

/// Receives those who come, each in a task of its own: who waits for a place holds up
/// nobody.
struct Reception {
    bridge: Bridge,
    slots: Slots,
    desk: Arc<Desk>,
    store: Store,
}

impl Reception {
    /// One guest, from its connection until its slot is free again.
    async fn serve(self: Arc<Self>, client: Client, stop: impl Future<Output = ()>) {
        let before = match client {
            Client::Memory(_, before) => before,
            Client::Stream(_) => None,
        };
        let slot = match self.slots.wait(before, PATIENCE).await {
            Ok(slot) => slot,
            Err(full) => return self.refuse(&client, &full.to_string()),
        };
        let config = match self.desk.port_config(slot.number) {
            Ok(config) => config,
            Err(error) => {
                return self.refuse(&client, &format!("copying its TAP's descriptor: {error}"));
            }
        };
        let name = config.name.clone();
        let served = match client {
            Client::Memory(socket, _) => {
                // Made anew when it is needed.
                drop(config);
                let layout = self.desk.policy.layout;
                match MemoryGuest::new(socket, &name, layout, &self.store) {
                    Ok(guest) => {
                        let (bridge, desk) = (self.bridge.clone(), self.desk.clone());
                        let store = self.store.clone();
                        return serve_memory(guest, slot, bridge, desk, store, stop).await;
                    }
                    Err(error) => Err(error),
                }
            }
            Client::Stream(socket) => {
                let bridge = self.bridge.clone();
                serve_stream(socket, bridge, (config, &slot), stop).await
            }
        };
        if let Err(error) = served {
            self.desk.tell_failure(slot.number, &error);
        }
        // Free for the next guest only now that the TAP is gone.
        drop(slot);
    }

    /// Turns a client away. Behind a byte stream it sees the end of its connection.
    fn refuse(&self, client: &Client, why: &str) {
        if let Client::Memory(socket, _) = client {
            memory::turn_away(socket);
        }
        let text = format_args!("a guest was turned away: {why}");
        self.desk.tell(log::Level::Warn, text);
    }
}

/// The slot that a guest had before, if it says so.
fn slot_before(socket: &UnixStream) -> Option<u16> {
    // What `accept` says of the address has lost an abstract name.
    let address = socket.peer_addr().ok()?;
    id_before(address.as_abstract_name()?)?.checked_sub(1)
}

/// A guest that shares memory, until its slot is free again.
async fn serve_memory(
    guest: MemoryGuest,
    slot: Slot,
    bridge: Bridge,
    desk: Arc<Desk>,
    store: Store,
    stop: impl Future<Output = ()>,
) {
    let place = Place {
        bridge: &bridge,
        store: &store,
        slot: &slot,
        config: || desk.port_config(slot.number),
    };
    if let Err(error) = guest.serve(place, stop).await {
        desk.tell_failure(slot.number, &error);
    }
}

/// The guests in `store` that have a place here, and the names of those that cannot go
/// on.
fn kept_guests(
    store: &Store,
    slots: &Slots,
    places: &Places,
    arriving: &Arriving,
) -> (Vec<(Slot, MemoryGuest)>, Vec<String>) {
    let (mut kept, mut useless) = (Vec::new(), Vec::new());
    for number in 0..places.count() {
        let name = places.assign(number).name;
        if !store.has(&Names::of(&name).connection()) {
            continue;
        }
        match (
            MemoryGuest::kept(store, &name, arriving),
            slots.take_this(number),
        ) {
            (Some(Ok(guest)), Some(slot)) => kept.push((slot, guest)),
            (Some(Err(error)), _) => {
                log::error!("port {name}: its guest is let go: {error}");
                useless.extend(Names::of(&name).all());
            }
            (None, _) | (_, None) => useless.extend(Names::of(&name).all()),
        }
    }
    (kept, useless)
}

/// The next client of the stream socket; waits for ever where there is none.
async fn accept_stream(
    streams: Option<&(&Listening, UnixListener)>,
) -> io::Result<(Result<(), String>, Client)> {
    match streams {
        Some((streams, listener)) => {
            let (socket, _) = listener.accept().await?;
            Ok((streams.admit(&socket), Client::Stream(socket)))
        }
        None => std::future::pending().await,
    }
}

/// The guests of a running server. Dropping it detaches them.
struct Guests {
    tasks: JoinSet<()>,
    /// Dropped to tell the tasks to end.
    serving: watch::Sender<()>,
}

impl Guests {
    fn new() -> Self {
        Self {
            tasks: JoinSet::new(),
            serving: watch::Sender::new(()),
        }
    }

    /// Done when the server ends: nothing is ever sent.
    fn stop(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut serving = self.serving.subscribe();
        async move {
            let _ = serving.changed().await;
        }
    }
}
