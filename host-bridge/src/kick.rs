//! Ringing an eventfd that somebody else may have spoilt, without ever waiting.
//!
//! A process guest shares the open file of the eventfd that wakes it. It can clear
//! the file's `O_NONBLOCK` and fill its counter, and a `write` then waits for as long
//! as the guest likes, with a worker thread of the daemon. No flag prevents that:
//! eventfds know no `RWF_NOWAIT` for writing, and to look before the write is a race.
//! But the kernel's own ring of an eventfd never waits, it stops counting at the top.
//! So the kernel is made to ring: every completion of an asynchronous operation
//! (`io_submit` with `IOCB_FLAG_RESFD`) rings an eventfd of its submitter's choice,
//! and a poll of a descriptor that is ready is complete before `io_submit` returns.
//!
//! It costs half a microsecond more than a `write`, of the ten that waking somebody
//! costs. Each thread has a context of its own, made at its first ring. Where the
//! kernel has no asynchronous I/O, or no context left, the flag is set again and the
//! counter looked at before a `write`; [`never_waits`] says so beforehand.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use libc::{c_long, syscall, timespec};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::io::Errno;

/// Operations under way at a time; each is complete when it was submitted, but its
/// completion waits to be collected.
const PLACES: u32 = 64;
/// Rings after which completions are collected: less than the places.
const COLLECT_AFTER: u32 = 48;
/// `IOCB_CMD_POLL` of linux/aio_abi.h.
const COMMAND_POLL: u16 = 5;
/// `IOCB_FLAG_RESFD` of the same.
const FLAG_RING: u32 = 1;

thread_local! {
    /// Made when a thread first rings. To take one back makes the kernel wait for all
    /// processors, some 20 ms.
    static CONTEXT: OnceCell<Option<Context>> = const { OnceCell::new() };
}

/// Rings the eventfd. Whatever its other owner did to it, this does not wait.
pub(crate) fn kick(fd: BorrowedFd<'_>) {
    // A thread that ends has nobody left to ring.
    let rung = CONTEXT.try_with(|context| {
        let context = context.get_or_init(|| Context::new().ok());
        context
            .as_ref()
            .is_some_and(|context| context.ring(fd).is_ok())
    });
    if rung != Ok(true) {
        write_carefully(fd);
    }
}

/// Whether [`kick`] is sure never to wait here.
///
/// # Errors
/// Why it is not, from the system.
pub(crate) fn never_waits() -> io::Result<()> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    CONTEXT.with(|kept| {
        let Some(context) = kept.get().and_then(Option::as_ref) else {
            let context = Context::new()?;
            context.ring(rustix::fd::AsFd::as_fd(&event))?;
            let _ = kept.set(Some(context));
            return Ok(());
        };
        context.ring(rustix::fd::AsFd::as_fd(&event))
    })
}

/// The second best: the guest has a moment to do its mischief in.
fn write_carefully(fd: BorrowedFd<'_>) {
    let _ = rustix::io::ioctl_fionbio(fd, true);
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
    let now = rustix::event::Timespec::default();
    if rustix::event::poll(&mut fds, Some(&now)) == Ok(1) {
        let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
    }
}

/// One operation, laid out as `struct iocb` of linux/aio_abi.h (little endian).
#[repr(C)]
#[derive(Default)]
struct Operation {
    data: u64,
    key: u32,
    rw_flags: u32,
    command: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    ring_fd: u32,
}

/// One completion, laid out as `struct io_event` of the same; never looked at.
#[repr(C)]
#[derive(Clone, Copy)]
struct Completion([u64; 4]);

/// A thread's asynchronous operations.
struct Context {
    id: u64,
    /// Completions that wait to be collected.
    waiting: std::cell::Cell<u32>,
    /// Always readable.
    ready: BorrowedFd<'static>,
}

impl Context {
    fn new() -> io::Result<Self> {
        let ready = ready()?;
        let mut id = 0u64;
        // SAFETY: io_setup writes one word through the pointer.
        check(unsafe { syscall(libc::SYS_io_setup, PLACES, &raw mut id) })?;
        Ok(Self {
            id,
            waiting: std::cell::Cell::new(0),
            ready,
        })
    }

    fn ring(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        if self.waiting.get() >= COLLECT_AFTER {
            self.collect();
        }
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().cast_unsigned();
        let operation = Operation {
            command: COMMAND_POLL,
            fd: number(self.ready),
            buffer: u64::from(PollFlags::IN.bits()),
            flags: FLAG_RING,
            ring_fd: number(fd),
            ..Operation::default()
        };
        let list = [&raw const operation];
        // SAFETY: the list has one pointer to an operation of the kernel's layout,
        // which is copied; the context is this one's, alive, and no other thread's.
        // The operation touches no memory.
        check(unsafe { syscall(libc::SYS_io_submit, self.id, 1 as c_long, list.as_ptr()) })?;
        self.waiting.set(self.waiting.get() + 1);
        Ok(())
    }

    fn collect(&self) {
        let mut completions = [Completion([0; 4]); PLACES as usize];
        let now = timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: the kernel writes at most as many completions as it is told there
        // is room for, of its layout; it reads one timespec, and does not wait.
        let collected = unsafe {
            let (none, all) = (0 as c_long, PLACES as c_long);
            let room = completions.as_mut_ptr();
            syscall(
                libc::SYS_io_getevents,
                self.id,
                none,
                all,
                room,
                &raw const now,
            )
        };
        let collected = u32::try_from(collected).unwrap_or(0);
        self.waiting
            .set(self.waiting.get().saturating_sub(collected));
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is this one's; nobody uses it any more.
        unsafe { syscall(libc::SYS_io_destroy, self.id) };
    }
}

fn check(result: c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// An eventfd of this process that is readable for ever, because nobody reads it.
fn ready() -> io::Result<BorrowedFd<'static>> {
    static READY: OnceLock<Result<OwnedFd, Errno>> = OnceLock::new();
    match READY.get_or_init(|| eventfd(1, EventfdFlags::CLOEXEC)) {
        Ok(fd) => Ok(rustix::fd::AsFd::as_fd(fd)),
        Err(errno) => Err((*errno).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::sync::mpsc;
    use std::time::Duration;

    use rustix::fs::OFlags;

    fn counter(fd: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(fd, &mut count) {
            Ok(_) => u64::from_ne_bytes(count),
            Err(errno) => {
                assert_eq!(errno, Errno::AGAIN);
                0
            }
        }
    }

    fn event() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
    }

    #[test]
    fn every_kick_counts_as_a_ring_however_many_there_are() {
        never_waits().expect("asynchronous I/O");
        let (one, other) = (event(), event());
        for _ in 0..10_000 {
            kick(one.as_fd());
        }
        kick(other.as_fd());
        assert_eq!((counter(&one), counter(&other)), (10_000, 1));
        assert_eq!(counter(&one), 0);
    }

    #[test]
    fn kicks_of_many_threads_all_count() {
        let fd = event();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| kick(fd.as_fd())));
            }
        });
        assert_eq!(counter(&fd), 8000);
    }

    /// Runs `work`, which must end by itself.
    fn within_patience(work: impl FnOnce() + Send + 'static) {
        let (end, ended) = mpsc::channel();
        std::thread::spawn(move || {
            work();
            end.send(()).unwrap();
        });
        ended
            .recv_timeout(Duration::from_secs(20))
            .expect("it waits for its peer");
    }

    fn spoil(fd: &OwnedFd) {
        rustix::fs::fcntl_setfl(fd, OFlags::empty()).unwrap();
        rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    }

    #[test]
    fn a_peer_that_fills_the_counter_and_makes_it_block_stops_nobody() {
        let fd = event();
        spoil(&fd);
        let copy = fd.try_clone().unwrap();
        within_patience(move || (0..1000).for_each(|_| kick(copy.as_fd())));
        assert!(counter(&fd) >= u64::MAX - 1, "still full");
        // And it rings as before once the peer is done with it.
        kick(fd.as_fd());
        assert_eq!(counter(&fd), 1);
    }

    #[test]
    fn without_asynchronous_io_a_full_counter_stops_nobody_either() {
        let fd = event();
        write_carefully(fd.as_fd());
        write_carefully(fd.as_fd());
        assert_eq!(counter(&fd), 2);
        spoil(&fd);
        let copy = fd.try_clone().unwrap();
        within_patience(move || write_carefully(copy.as_fd()));
    }
}
