//! The daemon as a library: attach sockets, admin socket, checks before and a
//! clean end after.
//!
//! `host-bridge run` is a thin shell around it (flags, log, signals, rights); tests
//! embed it. It reads no configuration, installs no handlers and gives up no rights,
//! but it starts in two steps so that its caller can: [`Bound`] has opened what needs
//! the rights of the start, [`Daemon`] serves with what is left.

use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use shm_link::linux::address::Address;
use shm_link::superblock::Layout;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::admin::AdminServer;
use crate::allowance::{Allowance, of_control_group, of_rings};
use crate::bridge::Bridge;
use crate::error::{BridgeError, NetlinkError, TapError};
use crate::kick::never_waits;
use crate::netlink::Netlink;
use crate::plan::Assignment;
use crate::port::{TapPlan, prepare_tap};
use crate::sandbox::{Needs, directory_of, has_net_admin, without_net_admin};
use crate::server::{GivenTap, Listening, Places, Server, Visitors};
use crate::settings::{Settings, SocketSettings};
use crate::store::{Names, Store, ports_of};
use crate::tap::{Tap, TapKind, TapSource};
use crate::workers::Workers;

/// The TAP driver's device file.
const DEVICE: &str = "/dev/net/tun";
/// How long guests that were kept may take to be served before administrators are.
const ARRIVAL: Duration = Duration::from_secs(2);

/// A daemon whose sockets listen and which serves nobody yet.
pub struct Bound {
    settings: Settings,
    sockets: Vec<(Listening, Option<Listening>)>,
    admin: Option<Listening>,
    memory: Allowance,
    store: Store,
}

impl Bound {
    /// Opens the sockets. No runtime is needed yet.
    ///
    /// # Errors
    /// [`BridgeError`] if an address is in use or cannot be made.
    pub fn new(settings: Settings) -> Result<Self, BridgeError> {
        Self::with_store(settings, Store::none())
    }

    /// The same for a daemon whose guests outlive its process in `store`, and for the
    /// next process after it.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_store(settings: Settings, store: Store) -> Result<Self, BridgeError> {
        // The sockets come first: a second daemon with the same settings is to
        // hear of the first one, not of the first one's TAPs.
        let mut sockets = Vec::new();
        let listen = |address: &Address, visitors: &Visitors| {
            let name = format!("socket.{address}").replace(':', "_");
            Listening::kept_or_at(address, visitors.clone(), &store, name)
        };
        for socket in &settings.sockets {
            let visitors = &socket.policy.visitors;
            let memory = listen(&socket.address, visitors)?;
            let streams = match &socket.stream {
                Some(address) => Some(listen(address, visitors)?),
                None => None,
            };
            sockets.push((memory, streams));
        }
        let admin = match &settings.admin {
            Some(address) => Some(listen(address, &Visitors::OWN)?),
            None => None,
        };
        // Later it may not be read any more.
        let allowed = settings.memory.or_else(of_control_group);
        let memory = allowed.map_or_else(Allowance::unlimited, Allowance::within);
        check_memory(&settings.sockets, &memory)?;
        Ok(Self {
            settings,
            sockets,
            admin,
            memory,
            store,
        })
    }

    /// What the daemon will need after this, see [`sandbox`](crate::sandbox). Call it
    /// with one thread only, and outside a runtime.
    ///
    /// # Errors
    /// The system's, when there is no descriptor for a look at the TAPs.
    pub fn needs(&self) -> io::Result<Needs> {
        let sockets = &self.settings.sockets;
        let addresses = sockets
            .iter()
            .flat_map(|socket| [Some(&socket.address), socket.stream.as_ref()])
            .chain([self.settings.admin.as_ref()]);
        let files = addresses.flatten().filter_map(Address::path);
        let lines = sockets.iter().flat_map(|socket| &socket.serials);
        // A device that is plugged in again is another file of the same directory.
        let device_directories = lines
            .map(|line| directory_of(&line.canonicalize().unwrap_or_else(|_| line.clone())))
            .collect();
        Ok(Needs {
            net_admin: self.needs_net_admin()?,
            devices: vec![DEVICE.into()],
            device_directories,
            socket_directories: files.map(directory_of).collect(),
        })
    }

    /// Whether TAPs must be made or set up: tried without the right to do so.
    fn needs_net_admin(&self) -> io::Result<bool> {
        let sockets = &self.settings.sockets;
        if !sockets.iter().all(all_taps_are_given) {
            return Ok(true);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(without_net_admin(|| {
            runtime.block_on(async {
                let Ok(netlink) = Netlink::connect() else {
                    return true;
                };
                for socket in sockets {
                    if check_given_taps(&netlink, socket, &self.store)
                        .await
                        .is_err()
                    {
                        return true;
                    }
                }
                false
            })
        }))
    }

    /// Checks that the system lets guests have what the settings promise, and starts
    /// to serve, with ports on `workers`. Call it inside a tokio runtime, in the
    /// network namespace that the TAPs are to be in.
    ///
    /// # Errors
    /// [`BridgeError`] says what is missing and what to do. Then nothing is left
    /// open.
    pub async fn start(self, workers: Workers) -> Result<Daemon, BridgeError> {
        let Self {
            settings,
            sockets,
            admin,
            memory,
            store,
        } = self;
        let bridge = Bridge::with_workers(workers)?.with_memory(memory);
        // Before guests take what was kept for them.
        check_system(&settings.sockets, &store).await?;
        for listening in sockets
            .iter()
            .flat_map(|(memory, streams)| [Some(memory), streams.as_ref()])
            .chain([admin.as_ref()])
            .flatten()
        {
            let kept = listening.keep(&store).await;
            kept.map_err(|error| BridgeError::io("keeping a socket", error))?;
        }
        let (arriving, mut arrived) = mpsc::channel(1);
        let mut servers = Vec::new();
        for ((memory, streams), socket) in sockets.into_iter().zip(&settings.sockets) {
            let (places, policy) = (socket.places.clone(), socket.policy.clone());
            let listening = (memory, streams);
            let kept = (store.clone(), arriving.clone());
            let mut server = Server::over(listening, bridge.clone(), places, policy, kept);
            for device in &socket.serials {
                server.add_line(device)?;
            }
            servers.push(server);
        }
        let restart = Arc::new(Notify::new());
        let admin = admin.map(|socket| {
            AdminServer::over(
                socket,
                bridge.clone(),
                store.keeps().then(|| restart.clone()),
            )
        });
        drop(arriving);
        let rest = store.rest();
        for port in ports_of(&rest) {
            log::warn!(
                "port {port}: its guest is let go: it was still attaching, or the settings have \
                 no place for it"
            );
        }
        let forgotten = store.forget(&rest).await;
        forgotten.map_err(|error| BridgeError::io("letting go of what was kept", error))?;
        if let Err(error) = never_waits() {
            log::warn!(
                "no asynchronous I/O ({error}): a hostile process guest may block a worker thread; \
                 see fs.aio-max-nr"
            );
        }
        let running = watch::Sender::new(());
        let mut tasks = JoinSet::new();
        for mut server in servers {
            let stop = ended(running.subscribe());
            tasks.spawn(async move { server.run_until(stop).await });
        }
        // Whoever asks for them is to hear of those who were kept.
        let _ = timeout(ARRIVAL, arrived.recv()).await;
        if let Some(admin) = admin {
            let stop = ended(running.subscribe());
            tasks.spawn(async move {
                tokio::select! {
                    never = admin.run() => match never {},
                    () = stop => {}
                }
            });
        }
        store.ready().await;
        announce(&settings);
        Ok(Daemon {
            bridge,
            tasks,
            running,
            restart,
            store,
        })
    }
}

/// A running daemon. Dropping it detaches all guests and removes its sockets;
/// [`shutdown`](Self::shutdown) also waits until all TAPs are gone.
pub struct Daemon {
    bridge: Bridge,
    tasks: JoinSet<()>,
    /// Dropped to tell the tasks to end.
    running: watch::Sender<()>,
    restart: Arc<Notify>,
    store: Store,
}

impl Daemon {
    /// Opens the sockets, checks that the system lets guests have what the
    /// settings promise, and starts to serve. Call it inside a tokio runtime,
    /// in the network namespace that the TAPs are to be in.
    ///
    /// # Errors
    /// [`BridgeError`] says what is missing and what to do. Then nothing is
    /// left open.
    pub async fn start(settings: Settings) -> Result<Self, BridgeError> {
        Bound::new(settings)?.start(Workers::none()).await
    }

    /// The daemon's ports.
    pub fn bridge(&self) -> &Bridge {
        &self.bridge
    }

    /// Waits for the first task that fails, which none does unless a bug
    /// panics.
    pub async fn failed(&mut self) -> BridgeError {
        let why = match self.tasks.join_next().await {
            Some(Err(error)) => error.to_string(),
            Some(Ok(())) | None => "it ended of its own accord".to_owned(),
        };
        BridgeError::io("serving a socket", io::Error::other(why))
    }

    /// Whether guests can be left to another process.
    pub fn is_kept(&self) -> bool {
        self.store.keeps()
    }

    /// Waits until an administrator asks for another process in place of this one.
    pub fn restart_wanted(&self) -> impl Future<Output = ()> + use<> {
        let restart = self.restart.clone();
        async move { restart.notified().await }
    }

    /// Ends with guests and sockets left to the next process; without a store that
    /// keeps them, as [`shutdown`](Self::shutdown).
    pub async fn leave(self) {
        if self.store.keeps() {
            self.store.leave();
        }
        self.shutdown().await;
    }

    /// Detaches all guests, removes the sockets, and returns when all TAPs are
    /// gone.
    pub async fn shutdown(self) {
        let Self {
            mut tasks, running, ..
        } = self;
        drop(running);
        while tasks.join_next().await.is_some() {}
    }
}

/// Done when the daemon is to end: nothing is ever sent.
async fn ended(mut running: watch::Receiver<()>) {
    let _ = running.changed().await;
}

/// Finds out now what would otherwise turn away the first guest.
async fn check_system(sockets: &[SocketSettings], store: &Store) -> Result<(), BridgeError> {
    let opens_device = |socket: &SocketSettings| {
        let taps = &socket.policy.taps;
        !all_taps_are_given(socket) || taps.iter().any(|tap| !matches!(tap, GivenTap::Fd(_)))
    };
    if sockets.iter().any(opens_device) {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(DEVICE)
            .map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => TapError::DeviceDenied,
                _ => TapError::DeviceMissing,
            })?;
    }
    let netlink = Netlink::connect()?;
    for socket in sockets {
        let first = socket.places.assign(0);
        if let Some(bridge) = &first.master {
            check_bridge(&netlink, bridge).await?;
        }
        if !has_net_admin() {
            check_given_taps(&netlink, socket, store).await?;
            if all_taps_are_given(socket) {
                continue;
            }
        }
        // Opened and closed again: it exists, is free, and may be used.
        for (slot, given) in (0..).zip(&socket.policy.taps) {
            if is_kept(store, &socket.places.assign(slot).name) {
                continue;
            }
            let source = given.source();
            let source = source
                .map_err(|error| BridgeError::io("copying the descriptor of the TAP", error))?;
            check_tap(&netlink, source).await?;
        }
        if socket.policy.taps.is_empty() && !is_kept(store, &first.name) {
            let name = Some(first.name);
            check_tap(&netlink, TapSource::Create { name }).await?;
        }
    }
    Ok(())
}

/// Whether the TAP of the port with this name serves a guest already.
fn is_kept(store: &Store, port: &str) -> bool {
    store.has(&Names::of(port).tap())
}

/// Whether no guest of this socket needs a TAP to be made.
fn all_taps_are_given(socket: &SocketSettings) -> bool {
    let count = usize::from(socket.places.count());
    let taps = &socket.policy.taps;
    taps.len() >= count && !taps.iter().any(|tap| matches!(tap, GivenTap::New(_)))
}

/// Opens the TAPs that exist already, as their guests' ports will, and sets up what
/// is not set up yet.
async fn check_given_taps(
    netlink: &Netlink,
    socket: &SocketSettings,
    store: &Store,
) -> Result<(), BridgeError> {
    for (slot, given) in (0..socket.places.count()).zip(&socket.policy.taps) {
        let Assignment {
            name,
            network,
            master,
            host_addresses,
        } = socket.places.assign(slot);
        if is_kept(store, &name) {
            continue;
        }
        let source = given
            .source()
            .map_err(|error| BridgeError::io("copying the descriptor of the TAP", error))?;
        let plan = TapPlan {
            guest_mac: network.mac,
            mtu: network.mtu,
            master: master.as_deref(),
            guest_alone: false,
            host_addresses: &host_addresses,
        };
        prepare_tap(netlink, source, TapKind::Plain, plan).await?;
    }
    Ok(())
}

/// Opens a TAP and changes what need not be changed, to see that it may be.
async fn check_tap(netlink: &Netlink, source: TapSource) -> Result<(), BridgeError> {
    let tap = Tap::open(source)?;
    if let Some(index) = tap.ifindex() {
        let mtu = netlink.link_by_name(tap.name()).await?.mtu;
        netlink.set_mtu(index, mtu).await?;
    }
    Ok(())
}

async fn check_bridge(netlink: &Netlink, name: &str) -> Result<(), NetlinkError> {
    let found = match netlink.link_by_name(name).await {
        Err(NetlinkError::NoSuchLink { name }) => return Err(NetlinkError::NoSuchBridge { name }),
        found => found?,
    };
    let name = name.to_owned();
    match found.kind {
        Some(kind) if kind == "bridge" => Ok(()),
        Some(kind) => Err(NetlinkError::NotABridge { name, kind }),
        None => Err(NetlinkError::NotABridge {
            name,
            kind: "a plain interface".to_owned(),
        }),
    }
}

/// Tells the log what listens where and how guests use it.
fn announce(settings: &Settings) {
    for socket in &settings.sockets {
        let address = &socket.address;
        match &socket.places {
            Places::Plan(plan) => log::info!(
                "guests attach at {address}: up to {}, {}",
                plan.max_guests,
                plan
            ),
            Places::One(one) => log::info!("the guest of port {} attaches at {address}", one.name),
        }
        log::info!("  QEMU: {}", qemu_options(address));
        log::info!("  a process: shm_link::linux::attach::Attachment::connect to {address}");
        if let Some(address) = &socket.stream {
            log::info!("  a process that shares no memory: shm_link::stream to {address}");
        }
        for device in &socket.serials {
            log::info!("  a machine at the serial line {}", device.display());
        }
    }
    match &settings.admin {
        Some(address) => {
            log::info!("administered at {address}: host-bridge status --admin {address}");
        }
        None => log::info!("no admin socket"),
    }
}

/// Says at the start whether there is memory for all guests that may come, and refuses to
/// start if there is for none.
fn check_memory(sockets: &[SocketSettings], memory: &Allowance) -> Result<(), BridgeError> {
    let Some(allowed) = memory.allowed() else {
        return Ok(());
    };
    let (mut guests, mut needed) = (0, 0u64);
    for socket in sockets {
        // The settings have checked that there is one.
        let Ok(layout) = Layout::new(socket.policy.layout) else {
            continue;
        };
        if let Err(error) = memory.for_rings(&layout) {
            let error = io::Error::other(error);
            return Err(BridgeError::io("setting memory aside for a guest", error));
        }
        let count = u64::from(socket.places.count());
        guests += count;
        needed = needed.saturating_add(count.saturating_mul(of_rings(&layout)));
    }
    if needed > allowed {
        log::warn!(
            "up to {guests} guests may attach and come to need {} MiB, and {} MiB of memory are \
             left for them: some may be turned away; allow more (--memory, or the control group), \
             fewer guests (--max-guests) or smaller rings (--ring-bytes)",
            needed >> 20,
            allowed >> 20
        );
    }
    Ok(())
}

/// The options that attach a stock QEMU to the daemon at `address`.
pub fn qemu_options(address: &Address) -> String {
    let socket = match address.path() {
        // In QEMU's option lists two commas stand for one.
        Some(path) => format!("path={}", path.display().to_string().replace(',', ",,")),
        None => {
            let name = address.to_string().replacen('@', "", 1);
            format!("path={},abstract=on", name.replace(',', ",,"))
        }
    };
    format!("-chardev socket,{socket},id=net -device ivshmem-doorbell,chardev=net,vectors=1")
}
