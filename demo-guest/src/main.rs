//! A guest that is a process: joined to the bridge by shared memory and
//! eventfds only, or by a byte stream, with its own TCP/IP stack inside.
//!
//! One thread drives the stack and the applications, and sleeps on the doorbell
//! or the stream when there is nothing to do. When the daemon goes away the guest keeps its
//! connections, waits for a daemon to come back, and puts the new link under the
//! running stack.

mod attach;
mod commands;

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use attach::{Attached, Memory, Stream, StreamPlace};
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
use shm_link::link::Link;
use shm_link::linux::address::Address;
use shm_link::offload::Offloads;

/// How long to rest between attempts while no daemon is there.
const RETRY: Duration = Duration::from_millis(100);

/// A guest without network hardware, as a process.
#[derive(Parser)]
#[command(version)]
struct Options {
    /// Where the bridge listens: a path, or @name for an abstract socket.
    #[arg(long, default_value = "/run/host-bridge.sock", value_name = "ADDRESS")]
    socket: Address,
    /// Share no memory: be joined by a byte stream to the bridge that listens
    /// here (its --stream).
    #[arg(long, value_name = "ADDRESS", conflicts_with = "socket")]
    stream: Option<Address>,
    /// Share no memory: be joined by a serial line, such as /dev/ttyS0.
    #[arg(long, value_name = "DEVICE", conflicts_with_all = ["socket", "stream"])]
    serial: Option<PathBuf>,
    /// What the guest calls itself.
    #[arg(long, default_value = "demo")]
    name: String,
    /// Take and leave nothing half done: whole checksums, no super-frames, as a guest
    /// whose stack knows of neither.
    #[arg(long)]
    no_offloads: bool,
    /// End when the bridge goes away, instead of waiting for it to come back.
    #[arg(long)]
    once: bool,
    /// Obey commands on standard input, one a line, and end after the last:
    /// ping ADDRESS [COUNT], get ADDRESS:PORT PATH, send ADDRESS:PORT BYTES,
    /// flood ADDRESS:PORT MILLISECONDS.
    #[arg(long)]
    commands: bool,
}

type GuestNetwork<A> = Network<<A as Attached>::Link, StdPlatform>;
type GuestCommands<A> = Commands<<A as Attached>::Link, StdPlatform>;
type Error = Box<dyn std::error::Error>;

fn main() -> ExitCode {
    keep_idle_memory_untouched();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let options = Options::parse();
    let ended = match (&options.stream, &options.serial) {
        (Some(address), _) => run::<Stream>(&options, &StreamPlace::Socket(address.clone())),
        (None, Some(device)) => run::<Stream>(&options, &StreamPlace::Line(device.clone())),
        (None, None) => run::<Memory>(&options, &options.socket),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Has the C library map what is large and touch nothing beforehand. By itself it
/// raises its bound for mapping each time something large is freed, and takes buffers
/// from the heap then, zeroed by writing to them: ten thousand idle connections of 128 KB
/// held 97 KB each, and hold 9 KB so.
fn keep_idle_memory_untouched() {
    #[cfg(target_env = "gnu")]
    for (parameter, bytes) in [(libc::M_MMAP_THRESHOLD, 128 << 10), (libc::M_TOP_PAD, 0)] {
        // SAFETY: it sets a number, before there are other threads.
        unsafe { libc::mallopt(parameter, bytes) };
    }
}

fn run<A: Attached>(options: &Options, place: &A::Place) -> Result<(), Error> {
    let (mut attachment, link) = A::attach(place)?;
    let seed = random_seed()?;
    let mut offer = offer(seed[0] as u32, &options.name);
    if options.no_offloads {
        (offer.can_receive, offer.can_send) = (Offloads::NONE, Offloads::NONE);
    }
    let control = Control::new(offer);
    let mut config = StackConfig::new(seed);
    config.limits.half_open = apps::BACKLOG;
    config.tcp.rx_buffer_bytes = 262_143;
    config.tcp.tx_buffer_bytes = 262_143;
    // A kick comes from this very thread, between two rounds of the driver.
    let kicked = Arc::new(AtomicBool::new(false));
    let kick = kicked.clone();
    let platform = StdPlatform::new(move || kick.store(true, Ordering::Relaxed));
    let stack = Stack::with_control(link, config, control, Instant::ZERO);
    let network = Network::new(stack, platform);
    let mut executor = Executor::<parking_lot::RawMutex>::default();
    apps::start_all(&network, &executor.spawner(), &options.name)?;
    let client = Client::new(network.clone(), executor.spawner());
    let mut commands = options.commands.then(|| Commands::new(client));
    log::info!("attached to {place}");
    let mut reported = None;
    loop {
        // Whatever kicked the driver, here is its next round.
        kicked.store(false, Ordering::Relaxed);
        let step = network.step();
        report(&network, &mut reported);
        let next_sleeper = executor.wake_sleepers(network.platform().now());
        if executor.run_ready() || kicked.swap(false, Ordering::Relaxed) {
            continue;
        }
        let Step::Sleep(until) = step else { continue };
        if let Some(well) = commands.as_ref().and_then(Commands::ended) {
            network.with(|stack, _| attachment.leave(stack.link()));
            return if well {
                Ok(())
            } else {
                Err("a command failed".into())
            };
        }
        let until = until.into_iter().chain(next_sleeper).min();
        // Commands wait for the network.
        let commands = commands.as_mut().filter(|_| is_running(&network));
        let alive = sleep(&network, &attachment, until, commands, &executor.spawner())?;
        if alive {
            continue;
        }
        if options.once {
            return Ok(());
        }
        log::warn!("the bridge went away; connections stay, waiting for it to come back");
        let link;
        (attachment, link) = attach_again(&attachment, place);
        network.with(|stack, now| drop(stack.replace_link(link, now)));
        log::info!("attached again");
    }
}

/// Waits for the link, a command or the deadline; `false` if the bridge went away.
fn sleep<A: Attached>(
    network: &GuestNetwork<A>,
    attachment: &A,
    until: Option<Instant>,
    commands: Option<&mut GuestCommands<A>>,
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
    let [first, second] = network.with(|stack, _| attachment.wakers(stack.link()));
    let mut fds = vec![first, second];
    fds.extend(input.map(|input| PollFd::from_borrowed_fd(input.as_fd(), PollFlags::IN)));
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let ready = |at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty());
    let wakers = [ready(0), ready(1)];
    if ready(2)
        && let Some(commands) = commands
    {
        commands.read(spawner)?;
    }
    Ok(network.with(|stack, _| {
        let ended = stack.link_error().is_some();
        attachment.woken(wakers, ended, stack.link())
    }))
}

/// Whether the bridge has configured this guest.
fn is_running<L: Link>(network: &Network<L, StdPlatform>) -> bool {
    network.look(|stack| {
        stack
            .conversation()
            .is_some_and(|control| matches!(control.state(), GuestState::Running))
    })
}

/// Tries for ever: the connections are worth waiting for.
fn attach_again<A: Attached>(before: &A, place: &A::Place) -> (A, A::Link) {
    loop {
        // First, because who is turned away comes here at once.
        std::thread::sleep(RETRY);
        match before.attach_again(place) {
            Ok(attached) => return attached,
            Err(error) => log::debug!("not yet: {error}"),
        }
    }
}

/// Logs what the bridge said, when it is new.
fn report<L: Link>(network: &Network<L, StdPlatform>, seen: &mut Option<(u64, GuestState)>) {
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
