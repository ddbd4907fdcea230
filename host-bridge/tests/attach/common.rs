//! A private network with a bridge in it, and a guest without a stack: it speaks
//! the link and the control protocol, and sends frames made by hand.

use std::future::Future;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use host_bridge::bridge::Bridge;
use host_bridge::filter::FilterConfig;
use host_bridge::impair::ImpairConfig;
use host_bridge::plan::{Plan, Topology};
use host_bridge::server::{GuestPolicy, Server, Visitors};
use shm_link::control::{
    GuestControl, GuestEvent, GuestOffer, GuestState, NetworkConfig, VersionRange,
};
use shm_link::doorbell::{Doorbell, Wait};
use shm_link::fault::LinkError;
use shm_link::link::{FrameRx, FrameTx, Link, MAX_CONTROL_LEN};
use shm_link::linux::address::Address;
use shm_link::linux::attach::Attachment;
use shm_link::linux::event::EventFd;
use shm_link::offload::{OffloadHeader, Offloads};
use shm_link::shm::ShmLink;
use shm_link::superblock::LayoutOptions;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// After how long without an answer to ask again.
const RESEND: Duration = Duration::from_millis(200);

/// Runs a test in a network namespace of its own; skips it, loudly, where that
/// is not allowed.
pub(crate) fn in_private_network<F>(test: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    in_private_network_within(Duration::from_secs(120), test);
}

/// The same with another limit for the whole test.
pub(crate) fn in_private_network_within<F>(
    limit: Duration,
    test: impl FnOnce() -> F + Send + 'static,
) where
    F: Future<Output = ()>,
{
    let allowed = rustix::process::geteuid().is_root()
        && std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .is_ok();
    if !allowed {
        assert!(
            std::env::var_os("REQUIRE_PRIVILEGED").is_none(),
            "this test must run as root with /dev/net/tun here"
        );
        eprintln!("skipped: needs CAP_NET_ADMIN and /dev/net/tun");
        return;
    }
    // What the bridge said is shown when a test fails.
    let _ = env_logger::builder()
        .is_test(true)
        .filter_level(log::LevelFilter::Info)
        .try_init();
    let thread = std::thread::spawn(move || {
        // SAFETY: only this thread's network namespace changes, nothing that
        // other threads of the process rely on.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .expect("unshare");
        // The runtime's threads are made by this one and inherit its namespace.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::time::timeout(limit, test())
                .await
                .expect("the test hangs")
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn plan() -> Plan {
    Plan {
        topology: Topology::Routed,
        net4: Some("10.77.0.0/16".parse().unwrap()),
        net6: Some("fd77::/64".parse().unwrap()),
        mtu: 1500,
        dhcp4: false,
        slaac: false,
        dns: vec!["10.77.0.1".parse::<IpAddr>().unwrap()],
        max_guests: 16,
        prefix: "guest".to_owned(),
    }
}

pub(crate) fn policy() -> GuestPolicy {
    GuestPolicy {
        visitors: Visitors::OWN,
        layout: LayoutOptions {
            to_host_bytes: 256 << 10,
            to_guest_bytes: 256 << 10,
        },
        offloads: true,
        filter: FilterConfig::default(),
        limits: Default::default(),
        impair_to_host: ImpairConfig::default(),
        impair_to_guest: ImpairConfig::default(),
        taps: Vec::new(),
    }
}

/// Abstract, so private to the test's network namespace and gone with it.
pub(crate) fn address() -> Address {
    "@attach".parse().unwrap()
}

/// Starts a bridge with its socket.
pub(crate) fn serve(plan: Plan, policy: GuestPolicy) -> Bridge {
    let bridge = Bridge::new().unwrap();
    plan.check().unwrap();
    let mut server = Server::bind(&address(), bridge.clone(), plan, policy).unwrap();
    tokio::spawn(async move { server.run().await });
    bridge
}

#[derive(Clone)]
pub(crate) struct Bell(std::sync::Arc<EventFd>);

impl Doorbell for Bell {
    fn ring(&self) {
        self.0.ring();
    }
}

/// A guest without a stack.
pub(crate) struct RawGuest {
    pub(crate) link: ShmLink<Bell>,
    bell: Bell,
    pub(crate) doorbell: EventFd,
    pub(crate) control: GuestControl,
    pub(crate) config: NetworkConfig,
    pub(crate) changes: Vec<NetworkConfig>,
    pub(crate) memory: shm_link::linux::memory::SharedMemory,
    _socket: Option<std::os::fd::OwnedFd>,
}

pub(crate) fn offer() -> GuestOffer {
    GuestOffer {
        session: rand::random(),
        versions: VersionRange::SUPPORTED,
        features: 0,
        max_mtu: 1500,
        can_receive: Offloads::NONE,
        can_send: Offloads::NONE,
        name: "raw".try_into().unwrap(),
    }
}

impl RawGuest {
    /// Attaches and negotiates.
    pub(crate) fn attach() -> Self {
        let attachment = Attachment::connect(&address(), PATIENCE).expect("attach");
        let (ring, doorbell) = (attachment.ring_host, attachment.doorbell);
        Self::over(attachment.memory, ring, doorbell, Some(attachment.socket))
    }

    /// Negotiates over memory and doorbells that somebody brought.
    pub(crate) fn over(
        memory: shm_link::linux::memory::SharedMemory,
        ring_host: EventFd,
        doorbell: EventFd,
        socket: Option<std::os::fd::OwnedFd>,
    ) -> Self {
        Self::offering(offer(), memory, ring_host, doorbell, socket)
    }

    /// The same with an offer of the caller's.
    pub(crate) fn offering(
        offer: GuestOffer,
        memory: shm_link::linux::memory::SharedMemory,
        ring_host: EventFd,
        doorbell: EventFd,
        socket: Option<std::os::fd::OwnedFd>,
    ) -> Self {
        let bell = Bell(std::sync::Arc::new(ring_host));
        // SAFETY: the bridge in this process keeps to the layout.
        let link = unsafe { ShmLink::attach(memory.region(), bell.clone()) }.expect("link");
        let mut guest = Self {
            link,
            bell,
            doorbell,
            control: GuestControl::new(offer),
            config: NetworkConfig::new([2, 0, 0, 0, 0, 1], 1500),
            changes: Vec::new(),
            memory,
            _socket: socket,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            guest.control_step().expect("control");
            if guest.control.state() == GuestState::Running {
                break;
            }
            guest.sleep(deadline);
        }
        guest
    }

    /// Moves control messages both ways.
    pub(crate) fn control_step(&mut self) -> Result<(), LinkError> {
        let mut buf = [0; MAX_CONTROL_LEN];
        loop {
            while let Some(message) = self.control.poll_transmit() {
                if !self.link.send_control(message)? {
                    break;
                }
                self.control.transmitted();
            }
            let Some(len) = self.link.recv_control(&mut buf)? else {
                return Ok(());
            };
            match self.control.handle_message(&buf[..len])? {
                Some(GuestEvent::Configured(config)) => self.config = config,
                Some(GuestEvent::Changed(config)) => {
                    self.control.applied(config.serial);
                    self.changes.push(config.clone());
                    self.config = config;
                }
                _ => {}
            }
        }
    }

    pub(crate) fn sleep(&mut self, deadline: Instant) {
        let left = deadline
            .checked_duration_since(Instant::now())
            .expect("the guest waits for too long");
        if self.link.arm(None).unwrap_or(false) {
            self.doorbell.wait(Some(left));
            self.link.disarm();
        }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        self.send_offloaded(frame, OffloadHeader::NONE);
    }

    /// Sends a frame of which something is left to the host.
    pub(crate) fn send_offloaded(&mut self, frame: &[u8], offload: OffloadHeader) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, tx) = self.link.split();
            if let Some(room) = tx.reserve(frame.len()).expect("link") {
                room.copy_from_slice(frame);
                tx.commit(frame.len(), offload);
                tx.flush();
                return;
            }
            let left = deadline
                .checked_duration_since(Instant::now())
                .expect("the ring stays full");
            if self.link.arm(Some(frame.len())).expect("link") {
                self.doorbell.wait(Some(left));
                self.link.disarm();
            }
        }
    }

    /// Sleeps until the host rings, or a little.
    pub(crate) fn doorbell_nap(&mut self) {
        if self.link.arm(None).unwrap_or(false) {
            self.doorbell.wait(Some(Duration::from_millis(20)));
            self.link.disarm();
        }
    }

    /// Rings the host for no reason.
    pub(crate) fn ring(&self) {
        self.bell.ring();
    }

    /// Sends a frame if the link still lets it, whatever it has become.
    pub(crate) fn send_unchecked(&mut self) {
        let (_, tx) = self.link.split();
        if let Ok(Some(room)) = tx.reserve(60) {
            room.fill(0x55);
            tx.commit(60, OffloadHeader::NONE);
            tx.flush();
        }
    }

    /// The next frame that `wanted` accepts.
    pub(crate) fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let frame = self.receive_until(Instant::now() + PATIENCE, wanted);
        frame.expect("a frame")
    }

    fn receive_until(
        &mut self,
        deadline: Instant,
        wanted: impl Fn(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        loop {
            let (rx, _) = self.link.split();
            let mut found = None;
            while let Some((_, frame)) = rx.peek().expect("link") {
                if found.is_none() && wanted(frame) {
                    found = Some(frame.to_vec());
                }
                rx.consume();
                if found.is_some() {
                    break;
                }
            }
            rx.flush();
            if found.is_some() {
                return found;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            if self.link.arm(None).unwrap_or(false) {
                self.doorbell.wait(Some(left));
                self.link.disarm();
            }
        }
    }

    /// An ARP request for `target`.
    pub(crate) fn arp_request(&self, target: std::net::Ipv4Addr) -> Vec<u8> {
        let mac = self.config.mac;
        let mut frame = vec![0xff; 6];
        frame.extend(mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(mac);
        frame.extend(self.config.v4[0].addr.octets());
        frame.extend([0; 6]);
        frame.extend(target.octets());
        frame
    }

    /// Asks the host's address for its MAC and waits for the answer.
    pub(crate) fn resolve_gateway(&mut self) -> [u8; 6] {
        let gateway = self.config.gateway4.unwrap();
        let deadline = Instant::now() + PATIENCE;
        // The kernel drops what it sends while it has not noticed yet that the carrier is
        // there; so this asks again, as any machine does.
        let reply = loop {
            self.send(&self.arp_request(gateway));
            let is_reply =
                |frame: &[u8]| frame.len() >= 42 && frame[12..14] == [8, 6] && frame[21] == 2;
            if let Some(reply) = self.receive_until(Instant::now() + RESEND, is_reply) {
                break reply;
            }
            assert!(Instant::now() < deadline, "the gateway does not answer");
        };
        assert_eq!(reply[28..32], gateway.octets());
        reply[22..28].try_into().unwrap()
    }
}

/// Runs blocking guest code beside the bridge's tasks, in the same namespace.
pub(crate) async fn guest<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Waits until `done`, looking again every few milliseconds.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
