//! A guest that is a process: joined to the bridge by shared memory and
//! eventfds only, with its own TCP/IP stack inside.
//!
//! One thread drives the stack and the applications, and sleeps on the doorbell
//! when there is nothing to do. When the daemon goes away the guest keeps its
//! connections, waits for a daemon to come back, and puts the new link under the
//! running stack.

mod commands;

use std::os::fd::AsFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use commands::Commands;
use demo_guest::apps;
use demo_guest::apps::client::Client;
use demo_guest::executor::{Executor, Spawner};
use guest_stack::config::StackConfig;
use guest_stack::control::{Control, offer};
use guest_stack::face::asynchronous::{Network, Step};
use guest_stack::face::platform::{Platform, StdPlatform};
use guest_stack::stack::Stack;
use guest_stack::time::Instant;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use shm_link::control::GuestState;
use shm_link::doorbell::Doorbell;
use shm_link::linux::address::Address;
use shm_link::linux::attach::Attachment;
use shm_link::linux::event::EventFd;
use shm_link::shm::ShmLink;

/// How long one attempt to attach may take.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to rest between attempts while no daemon is there.
const RETRY: Duration = Duration::from_millis(100);

/// A guest without network hardware, as a process.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Where the bridge listens: a path, or @name for an abstract socket.
    #[arg(long, default_value = "/run/host-bridge.sock", value_name = "ADDRESS")]
    socket: Address,
    /// What the guest calls itself.
    #[arg(long, default_value = "demo")]
    name: String,
    /// End when the bridge goes away, instead of waiting for it to come back.
    #[arg(long)]
    once: bool,
    /// Obey commands on standard input, one a line, and end after the last:
    /// ping ADDRESS [COUNT], get ADDRESS:PORT PATH, send ADDRESS:PORT BYTES.
    #[arg(long)]
    commands: bool,
}

#[derive(Clone)]
struct HostBell(Arc<EventFd>);

impl Doorbell for HostBell {
    fn ring(&self) {
        self.0.ring();
    }
}

type GuestNetwork = Network<ShmLink<HostBell>, StdPlatform>;
type GuestCommands = Commands<ShmLink<HostBell>, StdPlatform>;
type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<(), Error> {
    let mut attachment = Attachment::connect(&options.socket, ATTACH_TIMEOUT)?;
    let seed = random_seed()?;
    let control = Control::new(offer(seed[0] as u32, &options.name));
    let mut config = StackConfig::new(seed);
    config.tcp.rx_buffer_bytes = 262_143;
    config.tcp.tx_buffer_bytes = 262_143;
    // A kick comes from this very thread, between two rounds of the driver.
    let kicked = Arc::new(AtomicBool::new(false));
    let kick = kicked.clone();
    let platform = StdPlatform::new(move || kick.store(true, Ordering::Relaxed));
    let stack = Stack::with_control(link(&attachment)?, config, control, Instant::ZERO);
    let network = Network::new(stack, platform);
    let mut executor = Executor::<parking_lot::RawMutex>::default();
    apps::start_all(&network, &executor.spawner(), &options.name)?;
    let client = Client::new(network.clone(), executor.spawner());
    let mut commands = options.commands.then(|| Commands::new(client));
    log::info!("attached to {} as client {}", options.socket, attachment.id);
    let mut reported = None;
    loop {
        let step = network.step();
        report(&network, &mut reported);
        let next_sleeper = executor.wake_sleepers(network.platform().now());
        if executor.run_ready() || kicked.swap(false, Ordering::Relaxed) {
            continue;
        }
        let Step::Sleep(until) = step else { continue };
        if let Some(well) = commands.as_ref().and_then(Commands::ended) {
            return if well { Ok(()) } else { Err("a command failed".into()) };
        }
        let until = [until, next_sleeper].into_iter().flatten().min();
        // Commands wait for the network.
        let commands = commands.as_mut().filter(|_| is_running(&network));
        if sleep(&network, &attachment, until, commands, &executor.spawner())? {
            continue;
        }
        if options.once {
            return Ok(());
        }
        log::warn!("the bridge went away; connections stay, waiting for it to come back");
        attachment = attach_again(&options.socket);
        let link = link(&attachment)?;
        network.with(|stack, now| drop(stack.replace_link(link, now)));
        log::info!("attached again as client {}", attachment.id);
    }
}

fn link(attachment: &Attachment) -> Result<ShmLink<HostBell>, Error> {
    let bell = HostBell(Arc::new(attachment.ring_host.try_clone()?));
    // SAFETY: a guest trusts its host: the bridge keeps to the layout.
    Ok(unsafe { ShmLink::attach(attachment.memory.region(), bell) }?)
}

/// Waits for the doorbell, a command or the deadline; `false` if the daemon went
/// away.
fn sleep(
    network: &GuestNetwork,
    attachment: &Attachment,
    until: Option<Instant>,
    commands: Option<&mut GuestCommands>,
    spawner: &Spawner<parking_lot::RawMutex>,
) -> Result<bool, Error> {
    let timeout = until.map(|until| {
        let left = network.platform().duration_until(until);
        Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        }
    });
    let input = commands.as_ref().and_then(|commands| commands.input());
    // Without input, the socket stands in its place.
    let input = input.map_or(attachment.socket.as_fd(), AsFd::as_fd);
    let mut fds = [
        PollFd::new(&attachment.doorbell, PollFlags::IN),
        PollFd::new(&attachment.socket, PollFlags::IN),
        PollFd::from_borrowed_fd(input, PollFlags::IN),
    ];
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let [rung, socket, input] = fds.map(|fd| !fd.revents().is_empty());
    if rung {
        attachment.doorbell.drain();
    }
    if input && let Some(commands) = commands {
        commands.read(spawner)?;
    }
    Ok(!socket || attachment.daemon_alive())
}

/// Whether the bridge has configured this guest.
fn is_running(network: &GuestNetwork) -> bool {
    network.look(|stack| {
        stack.conversation().is_some_and(|control| matches!(control.state(), GuestState::Running))
    })
}

/// Tries for ever: the connections are worth waiting for.
fn attach_again(address: &Address) -> Attachment {
    loop {
        match Attachment::connect(address, ATTACH_TIMEOUT) {
            Ok(attachment) => return attachment,
            Err(error) => log::debug!("not yet: {error}"),
        }
        std::thread::sleep(RETRY);
    }
}

/// Logs what the bridge said, when it is new.
fn report(network: &GuestNetwork, seen: &mut Option<(u64, GuestState)>) {
    network.look(|stack| {
        let Some(control) = stack.conversation() else {
            return;
        };
        let new = (control.changes(), control.state());
        if *seen == Some(new) {
            return;
        }
        *seen = Some(new);
        match (control.state(), control.network_config()) {
            (GuestState::Refused(refusal), _) => {
                log::error!("the bridge refused this guest: {refusal}")
            }
            (GuestState::Failed(code), _) => {
                log::error!("the bridge gave no configuration: {code}")
            }
            (GuestState::Running, Some(config)) => {
                let v4 = config.v4.iter().map(ToString::to_string);
                let addresses: Vec<_> = v4
                    .chain(config.v6.iter().map(ToString::to_string))
                    .collect();
                log::info!(
                    "configured: {}, MTU {}, carrier {}",
                    addresses.join(", "),
                    config.mtu,
                    config.carrier
                );
            }
            _ => {}
        }
    });
}

fn random_seed() -> Result<[u64; 2], Error> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    let (a, b) = bytes.split_at(8);
    Ok([
        u64::from_le_bytes(a.try_into()?),
        u64::from_le_bytes(b.try_into()?),
    ])
}
