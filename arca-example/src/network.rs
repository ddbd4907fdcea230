//! The guest's side: what a kernel writes to have a network. It calls nothing but
//! `kernel::` and the two `no_std` crates.

use core::ops::ControlFlow;
use core::task::Waker;

use guest_stack::config::StackConfig;
use guest_stack::control::{Control, offer};
use guest_stack::face::asynchronous::Network;
use guest_stack::face::platform::Platform;
use guest_stack::stack::Stack;
use guest_stack::time::Instant;
use shm_link::doorbell::Doorbell;
use shm_link::region::Region;
use shm_link::shm::{ShmError, ShmLink};
use shm_link::superblock::LayoutError;

use crate::kernel;

/// What this kernel's heap spares for the network: whoever is on it may open
/// connections, and a kernel without memory is a dead one. 89 connections.
pub const NETWORK_BYTES: usize = 16 << 20;
/// What the kernel's own programs keep for each connection; nothing here.
pub const PER_CONNECTION_BYTES: usize = 0;

/// Rings the monitor: one port write, wired to an ioeventfd.
#[derive(Clone)]
pub struct HostBell;

impl Doorbell for HostBell {
    fn ring(&self) {
        kernel::outb(kernel::DOORBELL_PORT, 0);
    }
}

/// What the stack asks of this kernel.
pub struct ArcaPlatform;

impl Platform for ArcaPlatform {
    type RawMutex = kernel::RawLock;

    fn now(&self) -> Instant {
        Instant::from_micros(kernel::monotonic_us())
    }

    fn current_waker(&self) -> Waker {
        kernel::this_waker()
    }

    fn park(&self, until: Option<Instant>) {
        kernel::sleep_this_thread(until.map(|until| until.total_micros()));
    }

    fn kick_driver(&self) {
        kernel::network_event::set();
    }
}

/// The kernel's network.
pub type ArcaNetwork = Network<ShmLink<HostBell>, ArcaPlatform>;

/// Attaches. The monitor has named a piece of the allocator that both share, by
/// `offset` and `len`; `base` is where the allocator's memory begins in this
/// kernel's address space.
///
/// # Errors
/// [`ShmError`].
///
/// # Panics
/// If the piece does not begin at a multiple of 64 bytes.
///
/// # Safety
/// The piece stays mapped for ever, nothing else in this kernel uses it, and the
/// monitor keeps to the layout.
pub unsafe fn start(
    base: *mut u8,
    offset: usize,
    len: usize,
    seed: [u64; 2],
) -> Result<ArcaNetwork, ShmError> {
    let at = base.wrapping_add(offset);
    // SAFETY: promised by the caller.
    let region = unsafe { Region::from_raw(at, len) }.expect("pages are aligned");
    let link = loop {
        // SAFETY: promised by the caller.
        match unsafe { ShmLink::attach(region.clone(), HostBell) } {
            // The monitor rings once when it is ready.
            Err(ShmError::Layout(LayoutError::NotReady)) => kernel::network_event::wait(None),
            attached => break attached?,
        }
    };
    // The low half of a seed is as good a session number as any.
    let control = Control::new(offer(seed[0] as u32, "arca"));
    let config = StackConfig::for_memory(seed, NETWORK_BYTES, PER_CONNECTION_BYTES);
    let stack = Stack::with_control(link, config, control, ArcaPlatform.now());
    Ok(Network::new(stack, ArcaPlatform))
}

/// The body of the driver's kernel thread.
pub fn drive(network: &ArcaNetwork) {
    network.run(|until| {
        kernel::network_event::wait(until.map(|until| until.total_micros()));
        ControlFlow::Continue(())
    });
}
