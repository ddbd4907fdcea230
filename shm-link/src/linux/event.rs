//! An eventfd as doorbell and as wait.
//!
//! One eventfd serves one direction: one side rings it, the other sleeps on it.
//! Both hold the same open file, passed over the attach socket; QEMU turns it
//! into the guest's interrupt. The daemon sleeps on it by its own reactor
//! ([`AsFd`]) and calls [`EventFd::drain`] when it is readable.
//!
//! A caveat for the side that does not trust the other: the open file's
//! `O_NONBLOCK` flag is shared too, and a process guest can clear it.
//! [`EventFd::drain`] never blocks whatever the flag says. A ring could block
//! if the guest also fills the counter (2⁶⁴ − 2); no flag of `write` prevents it.
//! So a host does not ring with this type, which is for guests and for tests.

use core::time::Duration;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::{Errno, IoSliceMut, ReadWriteFlags};

use crate::doorbell::{Doorbell, Wait};

/// An eventfd: rings since it was last drained, as one counter.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new one that was not rung: non-blocking, closed on exec.
    ///
    /// # Errors
    /// The kernel's, when descriptors or memory have run out.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(rustix::event::eventfd(0, flags)?))
    }

    /// Another descriptor of the same eventfd.
    ///
    /// # Errors
    /// The kernel's, when descriptors have run out.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Takes all rings that have come and says whether there was one. Never
    /// blocks.
    pub fn drain(&self) -> bool {
        let mut count = [0; 8];
        let mut into = [IoSliceMut::new(&mut count)];
        // u64::MAX is -1 for the kernel: read at the current position, as
        // `read` does; but NOWAIT holds for this call whatever the file's flags.
        rustix::io::retry_on_intr(|| {
            rustix::io::preadv2(&self.0, &mut into, u64::MAX, ReadWriteFlags::NOWAIT)
        })
        .is_ok()
    }
}

impl Doorbell for EventFd {
    fn ring(&self) {
        // EAGAIN says that the counter is full: the other side was rung often
        // enough. Other errors do not happen on an eventfd.
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(&self.0, &1u64.to_ne_bytes()));
    }
}

impl Wait for EventFd {
    fn wait(&self, timeout: Option<Duration>) {
        // A timeout too long for the kernel's clock is as good as none.
        let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) | Err(_) => {
                self.drain();
            }
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Takes over an eventfd that was received.
impl From<OwnedFd> for EventFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<EventFd> for OwnedFd {
    fn from(event: EventFd) -> Self {
        event.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::OFlags;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    const LONG: Option<Duration> = Some(Duration::from_secs(20));

    #[test]
    fn a_ring_before_the_wait_counts() {
        let event = EventFd::new().unwrap();
        event.ring();
        let start = Instant::now();
        event.wait(LONG);
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(!event.drain(), "the wait took the ring");
    }

    #[test]
    fn a_wait_without_a_ring_ends_at_its_timeout() {
        let event = EventFd::new().unwrap();
        let start = Instant::now();
        event.wait(Some(Duration::from_millis(30)));
        assert!(start.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn many_rings_are_drained_at_once() {
        let event = EventFd::new().unwrap();
        for _ in 0..1000 {
            event.try_clone().unwrap().ring();
        }
        assert!(event.drain());
        assert!(!event.drain());
    }

    #[test]
    fn ringing_a_full_counter_does_not_block() {
        let event = EventFd::new().unwrap();
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.ring();
        assert!(event.drain());
    }

    #[test]
    fn draining_does_not_block_when_the_peer_cleared_the_non_blocking_flag() {
        let event = EventFd::new().unwrap();
        let peer = event.try_clone().unwrap();
        rustix::fs::fcntl_setfl(&peer, OFlags::empty()).unwrap();
        assert!(!event.drain());
        event.ring();
        assert!(event.drain());
    }

    #[test]
    fn two_threads_that_ring_each_other_never_miss_a_ring() {
        const ROUNDS: u32 = 20_000;
        let (to_b, to_a) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        let (b_waits, b_rings) = (to_b.try_clone().unwrap(), to_a.try_clone().unwrap());
        let turn = Arc::new(AtomicU32::new(0));
        let b_turn = Arc::clone(&turn);
        // Each side takes the odd or the even turns; a ring that got lost shows
        // as a wait that lasts its whole timeout.
        let play = |turn: &AtomicU32, mine: u32, waits: &EventFd, rings: &EventFd| {
            for round in 0..ROUNDS {
                let start = Instant::now();
                while turn.load(Ordering::Acquire) != 2 * round + mine {
                    waits.wait(LONG);
                    assert!(start.elapsed() < Duration::from_secs(20), "a ring was lost");
                }
                turn.store(2 * round + mine + 1, Ordering::Release);
                rings.ring();
            }
        };
        let b = std::thread::spawn(move || play(&b_turn, 1, &b_waits, &b_rings));
        play(&turn, 0, &to_a, &to_b);
        b.join().unwrap();
        assert_eq!(turn.load(Ordering::Acquire), 2 * ROUNDS);
    }
}
