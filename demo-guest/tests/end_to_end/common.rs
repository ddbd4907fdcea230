//! A private network with a daemon in it, and guests to attach to it.
//!
//! Daemon and guests are processes that die with the test, also when it panics
//! or is killed. The daemon's process is this very program, told to run nothing
//! but [`daemon_process`].

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use host_bridge::admin::AdminClient;
use host_bridge::child::Helper;
use host_bridge::daemon::Bound;
use host_bridge::keeper::{self, Shelf};
use host_bridge::netlink::Netlink;
use host_bridge::port::{PortChange, PortState, PortStatus};
use host_bridge::settings::{Options, Settings};
use host_bridge::store::Store;
use host_bridge::workers::Workers;
use rustix::process::{Pid, Signal};
use rustix::thread::UnshareFlags;

/// How long anything but a bulk transfer may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long a bulk transfer may take.
pub(crate) const BULK_PATIENCE: Duration = Duration::from_secs(150);
/// How long a test may take.
const TEST_PATIENCE: Duration = Duration::from_secs(300);

/// Bytes of a bulk transfer: a test of code that is not optimised moves fewer.
pub(crate) const BULK: u64 = if cfg!(debug_assertions) {
    20_000_000
} else {
    100_000_000
};

// Abstract, so private to the test's network namespace and gone with it.
pub(crate) const SOCKET: &str = "@end-to-end";
const ADMIN: &str = "@end-to-end-admin";
/// Carries the daemon's settings to its process.
const SETTINGS: &str = "END_TO_END_DAEMON";

/// Runs a test in a network namespace of its own; skips it, loudly, where that
/// is not allowed.
pub(crate) fn in_private_network(test: impl FnOnce() + Send + 'static) {
    let tun = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    if !rustix::process::geteuid().is_root() || tun.is_err() {
        skip("root and /dev/net/tun");
        return;
    }
    let (done, ended) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        // SAFETY: only this thread's network namespace changes, nothing that
        // other threads of the process rely on.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare");
        netlink(async |netlink| netlink.set_up(1).await.expect("loopback"));
        test();
        done.send(()).expect("somebody waits for the test");
    });
    // The sender is dropped when the test panics.
    if ended.recv_timeout(TEST_PATIENCE) == Err(RecvTimeoutError::Timeout) {
        panic!("the test hangs");
    }
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Says that a test, or a part of it, was not run.
pub(crate) fn skip(missing: &str) {
    let required = std::env::var("REQUIRE_PRIVILEGED").is_ok_and(|v| v == "1");
    assert!(!required, "REQUIRE_PRIVILEGED=1, and there is no {missing}");
    eprintln!("skipped: needs {missing}");
}

/// Does something with the links of this thread's network.
pub(crate) fn netlink<T>(work: impl AsyncFnOnce(&Netlink) -> T) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async { work(&Netlink::connect().unwrap()).await })
}

/// The index of an interface, if there is one of that name.
pub(crate) fn interface(name: &str) -> Option<u32> {
    netlink(async |netlink| Some(netlink.link_by_name(name).await.ok()?.index))
}

/// Makes a Linux bridge with these addresses.
/// Runs `ip` in this thread's namespace.
pub(crate) fn ip(words: &str) {
    run("ip", words);
}

/// Runs a command in this thread's namespace.
pub(crate) fn run(program: &str, words: &str) {
    let output = Command::new(program).args(words.split(' ')).output();
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words}: {said}");
}

pub(crate) fn make_bridge(name: &str, addresses: &[&str]) {
    netlink(async |netlink| {
        let index = netlink.create_bridge(name).await.unwrap();
        for address in addresses {
            let added = netlink.add_address(index, address.parse().unwrap()).await;
            added.unwrap();
        }
        netlink.set_up(index).await.unwrap();
    });
}

/// Waits until `done`, looking again every few milliseconds.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A running daemon.
pub(crate) struct World {
    settings: String,
    process: &'static str,
    daemon: Option<Helper>,
    log: Arc<Mutex<String>>,
}

impl World {
    /// Starts a daemon with these settings, as in a configuration file, besides
    /// its sockets.
    pub(crate) fn start(settings: &str) -> Self {
        Self::start_as("common::daemon_process", settings)
    }

    /// Starts a daemon under a keeper.
    pub(crate) fn start_kept(settings: &str) -> Self {
        Self::start_as("common::keeper_process", settings)
    }

    fn start_as(process: &'static str, settings: &str) -> Self {
        let settings = format!("socket = {SOCKET:?}\nadmin = {ADMIN:?}\n{settings}\n");
        let mut world = Self {
            settings,
            process,
            daemon: None,
            log: Arc::default(),
        };
        world.start_daemon();
        world
    }

    /// Starts the daemon, after it was killed.
    pub(crate) fn start_daemon(&mut self) {
        let mut command = itself(self.process);
        command.env(SETTINGS, &self.settings).stderr(Stdio::piped());
        let mut daemon = Helper::spawn(command).unwrap();
        let lines = BufReader::new(daemon.child_mut().stderr.take().unwrap()).lines();
        let log = self.log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut log = log.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        self.daemon = Some(daemon);
        until("the daemon", || self.admin().status(None).is_ok());
    }

    /// Kills the daemon, without giving it time to say a word.
    pub(crate) fn kill_daemon(&mut self) {
        self.daemon = None;
    }

    /// What the daemons logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// The process of the daemon that a keeper runs now, unless there is none.
    pub(crate) fn worker(&mut self) -> Option<Pid> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.daemon_pid())).unwrap();
        let children = tasks
            .filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("children")).ok());
        let children = children.collect::<String>();
        Pid::from_raw(children.split_whitespace().next()?.parse().unwrap())
    }

    /// Ends the daemon that a keeper runs by this signal, and returns when there is
    /// another, perhaps before it serves.
    pub(crate) fn kill_worker(&mut self, signal: Signal) {
        let before = self.worker().expect("a daemon that runs");
        rustix::process::kill_process(before, signal).unwrap();
        until("another daemon", || {
            self.worker().is_some_and(|now| now != before)
        });
    }

    /// The daemon's process, or its keeper's.
    pub(crate) fn daemon_pid(&mut self) -> u32 {
        self.daemon.as_mut().unwrap().child_mut().id()
    }

    pub(crate) fn admin(&self) -> AdminClient {
        AdminClient::new(ADMIN.parse().unwrap())
    }

    /// Every port.
    pub(crate) fn ports(&self) -> Vec<PortStatus> {
        self.admin().status(None).unwrap()
    }

    /// The port of the guest that calls itself `name`, once it is configured.
    pub(crate) fn running(&self, name: &str) -> Option<PortStatus> {
        let mut ports = self.ports().into_iter();
        ports.find(|port| port.guest == name && port.state == PortState::Running)
    }

    /// Bytes that came from the kernel for that guest so far; none while it is not
    /// configured.
    pub(crate) fn taken(&self, name: &str) -> u64 {
        let port = self.running(name);
        port.map_or(0, |port| port.counters.host_to_guest.bytes_in)
    }

    /// Whether every frame of every port is accounted for. A frame that is
    /// under way at the moment is not.
    pub(crate) fn ledgers_add_up(&self) -> bool {
        self.ports().iter().all(|port| {
            let counters = &port.counters;
            let directions = [&counters.guest_to_host, &counters.host_to_guest];
            directions.iter().all(|d| d.check_ledger().is_ok())
        })
    }

    /// Changes a port and waits until its guest has followed.
    pub(crate) fn change(&self, port: &str, change: PortChange) -> PortStatus {
        self.admin().change(port, change).unwrap()
    }

    /// Attaches a guest.
    pub(crate) fn guest(&self, name: &str) -> Guest {
        self.attached(name, Helper::spawn(guest_command(name)).unwrap())
    }

    /// The guest that `helper` is or runs, once it answers under `name`.
    pub(crate) fn attached(&self, name: &str, helper: Helper) -> Guest {
        until("the guest's configuration", || self.running(name).is_some());
        let port = self.running(name).unwrap();
        let addresses = port.addresses.iter();
        let addresses = addresses.map(|cidr| cidr.split_once('/').unwrap().0.parse().unwrap());
        let guest = Guest {
            helper,
            port: port.name,
            addresses: addresses.collect(),
        };
        for &address in &guest.addresses {
            until("an answer of the guest", || answers(address));
        }
        guest
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the daemon's log:\n{}", self.log());
        }
    }
}

/// The process guest, told where this world's daemon is.
pub(crate) fn guest_command(name: &str) -> Command {
    guest_command_at("--socket", SOCKET, name)
}

/// The process guest, told of another way to the daemon.
pub(crate) fn guest_command_at(option: &str, address: &str, name: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo-guest"));
    command
        .args([option, address, "--name", name])
        .env("RUST_LOG", "error")
        .stdin(Stdio::null());
    command
}

/// Whether `address` answers a ping.
pub(crate) fn answers(address: IpAddr) -> bool {
    let report = host_bridge::probe::ping::ping(address, 0, 1, Duration::from_millis(200));
    // The kernel may need a moment until an address of its own is usable.
    report.is_ok_and(|report| report.received == 1)
}

/// Whether every thread of a process is stopped: a signal to stop does not take effect
/// at once.
pub(crate) fn stands_still(process: Pid) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).unwrap();
    threads.into_iter().all(|thread| {
        let status = std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap();
        status.contains("State:\tT")
    })
}

/// A running guest.
pub(crate) struct Guest {
    helper: Helper,
    /// Its port's name.
    pub(crate) port: String,
    /// Its addresses, IPv4 first.
    pub(crate) addresses: Vec<IpAddr>,
}

impl Guest {
    pub(crate) fn pid(&mut self) -> u32 {
        self.helper.child_mut().id()
    }

    /// A port of its IPv4 address.
    pub(crate) fn v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses[0], port)
    }

    /// A port of its IPv6 address.
    pub(crate) fn v6(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.addresses[1], port)
    }
}

/// This very program, told to run nothing but `process`.
fn itself(process: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", process, "--ignored", "--nocapture"])
        .env("RUST_LOG", "info")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// The daemon's process. As a test it does nothing.
#[test]
#[ignore = "the other tests run it, as a process of its own"]
fn daemon_process() {
    let Ok(settings) = std::env::var(SETTINGS) else {
        return;
    };
    let store = Store::from_env().unwrap();
    let _ = env_logger::try_init();
    let settings = Settings::new(Options::parse(&settings).unwrap(), None).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(settings.workers)
        .enable_all()
        .build()
        .unwrap();
    let failure = runtime.block_on(async {
        let daemon = Bound::with_store(settings, store).unwrap();
        let mut daemon = daemon.start(Workers::none()).await.unwrap();
        let restart = daemon.restart_wanted();
        tokio::select! {
            failure = daemon.failed() => Some(failure),
            () = restart => {
                daemon.leave().await;
                None
            }
        }
    });
    if let Some(failure) = failure {
        panic!("{failure}");
    }
}

/// The process of a keeper of daemons. As a test it does nothing.
#[test]
#[ignore = "the other tests run it, as a process of its own"]
fn keeper_process() {
    if std::env::var_os(SETTINGS).is_none() {
        return;
    }
    let _ = env_logger::try_init();
    keeper::run(Shelf::new(), || itself("common::daemon_process")).unwrap();
}
