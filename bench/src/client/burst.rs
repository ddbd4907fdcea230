//! Many connects at the same moment.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use socket2::{Domain, Socket, Type};

use crate::Result;

/// After this an attempt has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What came of the attempts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Burst {
    /// 99 % were connected after so long, in ms, failures counted as the longest.
    pub p99_ms: f64,
    /// Reset, refused or unanswered.
    pub failed: usize,
}

/// Starts `count` connects as fast as the kernel takes them, and waits for all.
/// The connections stay open until the last is there.
///
/// # Errors
/// The kernel's, such as too few descriptors.
pub fn run(to: SocketAddr, count: usize) -> Result<Burst> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut sockets = Vec::with_capacity(count);
    for index in 0..count {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&epoll, &socket, data, epoll::EventFlags::OUT)?;
        sockets.push(socket);
    }
    let mut begun = Vec::with_capacity(count);
    for socket in &sockets {
        begun.push(Instant::now());
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(EINPROGRESS) => return Err(error.into()),
            _ => {}
        }
    }
    let start = Instant::now();
    let mut taken: Vec<Option<Duration>> = vec![None; count];
    let (mut left, mut failed) = (count, 0);
    let mut events = Vec::with_capacity(1024);
    while left > 0 && start.elapsed() < PATIENCE {
        events.clear();
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: 100_000_000,
        };
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&wait))?;
        for event in &events {
            let index = event.data.u64() as usize;
            let socket = &sockets[index];
            epoll::delete(&epoll, socket)?;
            left -= 1;
            match socket.take_error()? {
                None => taken[index] = Some(begun[index].elapsed()),
                Some(_) => failed += 1,
            }
        }
    }
    failed += left;
    let mut times: Vec<Duration> = taken
        .into_iter()
        .map(|time| time.unwrap_or(PATIENCE))
        .collect();
    times.sort_unstable();
    let p99 = times[((count - 1) as f64 * 0.99) as usize];
    Ok(Burst {
        p99_ms: p99.as_secs_f64() * 1e3,
        failed,
    })
}

/// `EINPROGRESS` on Linux.
const EINPROGRESS: i32 = rustix::io::Errno::INPROGRESS.raw_os_error();
