//! The kernel: puts the pieces together, and is the main loop.
//!
//! The main loop is the network's driver, `demo-guest`'s executor and the
//! scheduler in turn; when none of them has work it sleeps in `hlt` until the
//! host's interrupt, or until the earliest moment that one of them named.

use core::fmt::Display;

use demo_guest::executor::Executor;
use guest_stack::config::StackConfig;
use guest_stack::control::{Control, offer};
use guest_stack::face::asynchronous::{Network, Step};
use guest_stack::stack::Stack;
use guest_stack::time::{Duration, Instant};
use shm_link::control::GuestState;
use shm_link::shm::{ShmError, ShmLink};
use shm_link::superblock::LayoutError;

use crate::boot::StartInfo;
use crate::clock::Clock;
use crate::command_line::Options;
use crate::ivshmem::Ivshmem;
use crate::lock::RawLock;
use crate::memory::Heap;
use crate::platform::{Kernel, KernelNetwork};
use crate::{interrupts, last_words, random, serial, services, threads};

/// What `demo-guest` adds to the two buffers of a stream that carries much: it
/// gives them four times the usual 64 KiB. Any connection may be one.
const BULK_STREAM_BYTES: usize = 2 * 3 * (64 << 10);
/// What a service keeps for a connection at the most: the buffer of a bulk
/// transfer, and its task.
const SERVICE_BYTES: usize = 72 << 10;
/// What is not for the stack: the stacks of the echo's threads, UDP sockets, and
/// what is lost between pieces.
const RESERVED_BYTES: usize = 24 << 20;

/// Runs until the end of the machine; `heap` has its memory already.
pub fn run(info: &StartInfo, heap: &'static Heap) -> ! {
    let (options, wrong) = Options::parse(info.command_line());
    serial::init(options.log);
    interrupts::init();
    if let Some(wrong) = wrong {
        log::warn!("not understood: {wrong}");
    }
    let clock = Clock::measure();
    log::info!(
        "{}: the clock runs at {} MHz",
        options.name,
        clock.hz() / 1_000_000
    );
    match attach(&options, clock, heap) {
        Ok(network) => drive(&network, &options, heap),
        Err(error) => panic!("no network: {error}"),
    }
}

/// Attaches to the region in the device's memory, by its superblock alone.
fn attach(
    options: &Options<'_>,
    clock: Clock,
    heap: &Heap,
) -> Result<KernelNetwork, alloc::boxed::Box<dyn Display>> {
    let device = Ivshmem::open().map_err(boxed)?;
    let link = loop {
        // SAFETY: a guest trusts its host: the bridge keeps to the layout.
        match unsafe { ShmLink::attach(device.region.clone(), device.host_bell) } {
            // The host rings when it is ready.
            Err(ShmError::Layout(LayoutError::NotReady)) => interrupts::sleep(|| ()),
            attached => break attached.map_err(boxed)?,
        }
    };
    last_words::prepare(device.region, device.host_bell);
    let seed = random::seed(options.seed);
    // Whoever is on the network may open connections, and a kernel without
    // memory is a dead one.
    let bytes = heap.free_bytes().saturating_sub(RESERVED_BYTES);
    let config = StackConfig::for_memory(seed, bytes, SERVICE_BYTES + BULK_STREAM_BYTES);
    log::info!("memory for {} connections", config.limits.connections);
    let control = Control::new(offer(seed[0] as u32, options.name));
    let stack = Stack::with_control(link, config, control, clock.now());
    Ok(Network::new(stack, Kernel(clock)))
}

fn boxed(error: impl Display + 'static) -> alloc::boxed::Box<dyn Display> {
    alloc::boxed::Box::new(error)
}

fn drive(network: &KernelNetwork, options: &Options<'_>, heap: &'static Heap) -> ! {
    let mut executor = Executor::<RawLock>::default();
    if let Err(error) = services::start(network, &executor.spawner(), options.name, heap) {
        panic!("no services: {error}");
    }
    let clock = network.platform().0;
    let end = options
        .panic
        .map(|s| clock.now() + Duration::from_secs(s.into()));
    let mut seen = None;
    let mut to_connect = options.connect;
    loop {
        let step = network.step();
        if report(network, &mut seen)
            && let Some(remote) = to_connect.take()
        {
            services::connect(network, remote);
        }
        let now = clock.now();
        if end.is_some_and(|end| end <= now) {
            panic!("the command line asked for it");
        }
        let next_task = executor.wake_sleepers(now);
        let tasks_ran = executor.run_ready();
        let (threads_ran, next_thread) = threads::run_ready(now);
        if tasks_ran || threads_ran {
            continue;
        }
        if let Step::Sleep(until) = step {
            let until: Option<Instant> = [until, next_task, next_thread, end]
                .into_iter()
                .flatten()
                .min();
            interrupts::sleep(|| clock.set_alarm(until));
        }
    }
}

/// Logs what the bridge said, when it is new; `true`: a configuration.
fn report(network: &KernelNetwork, seen: &mut Option<(u64, GuestState)>) -> bool {
    network.look(|stack| {
        let Some(control) = stack.conversation() else {
            return false;
        };
        let new = (control.changes(), control.state());
        if seen.replace(new) == Some(new) {
            return false;
        }
        match (control.state(), control.network_config()) {
            (GuestState::Refused(refusal), _) => log::error!("the bridge refused: {refusal}"),
            (GuestState::Failed(code), _) => log::error!("no configuration: {code}"),
            (GuestState::Running, Some(config)) => {
                for address in &config.v4 {
                    log::info!("address {address}");
                }
                for address in &config.v6 {
                    log::info!("address {address}");
                }
                log::info!("configured: MTU {}, carrier {}", config.mtu, config.carrier);
                return true;
            }
            _ => {}
        }
        false
    })
}
