//! What the network stack asks of a kernel, in terms of this one.

use core::task::Waker;

use guest_stack::face::asynchronous::Network;
use guest_stack::face::platform::Platform;
use guest_stack::time::Instant;
use shm_link::shm::ShmLink;

use crate::clock::Clock;
use crate::ivshmem::HostBell;
use crate::lock::RawLock;
use crate::{interrupts, threads};

/// This kernel.
pub struct Kernel(pub Clock);

impl Platform for Kernel {
    type RawMutex = RawLock;

    fn now(&self) -> Instant {
        self.0.now()
    }

    fn current_waker(&self) -> Waker {
        threads::current_waker()
    }

    fn park(&self, until: Option<Instant>) {
        threads::park(until);
    }

    fn kick_driver(&self) {
        interrupts::wake();
    }
}

/// The network of this kernel.
pub type KernelNetwork = Network<ShmLink<HostBell>, Kernel>;
