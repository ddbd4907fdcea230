//! Doorbells for tokio tasks.
//!
//! A port has two eventfds: one that the guest rings and one that wakes the
//! guest. One task of a port, the pump, sleeps on the first and passes on what is
//! for the port's task.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use shm_link::doorbell::{AsyncWait, Doorbell};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::kick::kick;

/// The two doorbells of a link, from the host's side.
#[derive(Debug)]
pub struct Doorbells {
    /// Rings the guest: an eventfd that the guest waits on, or one wired as an
    /// interrupt (irqfd).
    pub ring_guest: OwnedFd,
    /// Rung by the guest: an eventfd that the guest writes, or one wired to a
    /// port or a register (ioeventfd).
    pub rung_by_guest: OwnedFd,
}

/// Rings the guest; never waits, whatever the guest did to the eventfd.
#[derive(Clone)]
pub(crate) struct GuestBell(Ring);

#[derive(Clone)]
enum Ring {
    Kick(Arc<OwnedFd>),
    #[cfg(feature = "simulation")]
    Call(Arc<dyn Fn() + Send + Sync>),
}

impl GuestBell {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self(Ring::Kick(Arc::new(fd)))
    }

    /// Calls `ring` instead.
    #[cfg(feature = "simulation")]
    pub(crate) fn calling(ring: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self(Ring::Call(ring))
    }
}

impl Doorbell for GuestBell {
    fn ring(&self) {
        match &self.0 {
            Ring::Kick(fd) => kick(fd.as_fd()),
            #[cfg(feature = "simulation")]
            Ring::Call(ring) => ring(),
        }
    }
}

/// Waits for the guest's ring: one per task.
///
/// The eventfd is registered edge-triggered and never read: every write to an
/// eventfd is a new edge, whatever its count, which saves a system call for each
/// wake-up. Only its overflow would stop the edges, after 2^64 rings or a guest
/// that writes a huge count on purpose, which silences its own doorbell.
///
/// While nobody listens it is not registered, or each ring would wake the thread.
#[derive(Debug)]
pub(crate) struct HostBell {
    fd: Arc<OwnedFd>,
    heard: Option<AsyncFd<Arc<OwnedFd>>>,
}

impl HostBell {
    /// Registers a duplicate of `fd`.
    pub(crate) fn new(fd: &OwnedFd) -> io::Result<Self> {
        // A descriptor of a process that we do not control may block.
        rustix::io::ioctl_fionbio(fd, true)?;
        let mut bell = Self {
            fd: Arc::new(fd.try_clone()?),
            heard: None,
        };
        bell.listen()?;
        Ok(bell)
    }

    /// Rings are heard, the last of those before now as well.
    pub(crate) fn listen(&mut self) -> io::Result<()> {
        if self.heard.is_none() {
            let fd = self.fd.clone();
            // SAFETY: an OwnedFd is open as long as it exists and never changes.
            let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
            self.heard = Some(registered.map_err(|refused| refused.into_parts().1)?);
        }
        Ok(())
    }

    /// Rings are not heard until [`listen`](Self::listen).
    pub(crate) fn ignore(&mut self) {
        self.heard = None;
    }
}

impl AsyncWait for HostBell {
    async fn wait(&self) {
        let ready = match &self.heard {
            Some(heard) => heard.readable().await.ok(),
            None => None,
        };
        match ready {
            Some(mut ready) => ready.clear_ready(),
            // Nobody listens; or the runtime is going away, and this task with it.
            None => std::future::pending().await,
        }
    }
}
