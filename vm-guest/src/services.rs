//! What this guest offers, by three faces of one stack.
//!
//! - asynchronous: `demo-guest`'s applications, on its executor;
//! - blocking: the TCP echo and the outgoing connection here, each in a thread;
//! - callbacks: the UDP echo, also `demo-guest`'s, and the report on UDP port
//!   5000: how many bytes of the heap are in use, and how many of them the
//!   listener of the TCP echo takes.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use core::net::SocketAddr;
use core::sync::atomic::{AtomicUsize, Ordering};
use core::time::Duration;

use demo_guest::apps;
use demo_guest::executor::Spawner;
use guest_stack::error::{BindError, StreamError};
use guest_stack::face::blocking::{TcpListener, TcpStream};
use guest_stack::face::platform::Platform;
use guest_stack::registry::Verdict;
use guest_stack::tcp::stream::Shutdown;
use shm_link::shm::ShmLink;

use crate::ivshmem::HostBell;
use crate::lock::RawLock;
use crate::memory::Heap;
use crate::platform::{Kernel, KernelNetwork};
use crate::threads;

type Stream = TcpStream<ShmLink<HostBell>, Kernel>;

const ECHO_PORT: u16 = 7;
const REPORT_PORT: u16 = 5000;
const ECHO_BACKLOG: usize = 128;
/// Connections that have a thread of their own; one more is served by the thread
/// that accepts, and others wait meanwhile. A thread costs its stack.
const ECHO_THREADS: usize = 100;
/// How often, and at what distance, the outgoing connection is tried.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts what listens.
///
/// # Errors
/// [`BindError`] if a port is taken.
pub fn start(
    network: &KernelNetwork,
    spawner: &Spawner<RawLock>,
    name: &str,
    heap: &'static Heap,
) -> Result<(), BindError> {
    apps::start_all_but_echo(network, spawner, name)?;
    let before = heap.allocated_bytes();
    let listener = TcpListener::bind(network, ECHO_PORT, ECHO_BACKLOG)?;
    let listener_bytes = heap.allocated_bytes() - before;
    threads::spawn(move || accept_echoes(&listener));
    let registered = network.with(|stack, _| {
        stack
            .sockets()
            .on_udp(REPORT_PORT, move |context, datagram, _| {
                let used = heap.allocated_bytes();
                let report = format!("{used} bytes in use, {listener_bytes} by a listener\n");
                match context.reply_datagram(datagram, report.as_bytes()) {
                    Ok(()) => Verdict::Handled,
                    Err(_) => Verdict::Pass,
                }
            })
    });
    registered.map_err(|_| BindError::AddrInUse)
}

fn accept_echoes(listener: &TcpListener<ShmLink<HostBell>, Kernel>) {
    let running = Arc::new(AtomicUsize::new(0));
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => return log::error!("no more echoes: {error}"),
        };
        if running.load(Ordering::Relaxed) >= ECHO_THREADS {
            echo(&stream);
            continue;
        }
        let mine = running.clone();
        mine.fetch_add(1, Ordering::Relaxed);
        threads::spawn(move || {
            echo(&stream);
            mine.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

/// Sends back what comes (RFC 862); closes when the peer does.
fn echo(stream: &Stream) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match stream.recv(&mut buffer) {
            Ok(0) => break,
            Ok(n) if send_all(stream, &buffer[..n]).is_ok() => {}
            Ok(_) | Err(_) => return,
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

fn send_all(stream: &Stream, mut bytes: &[u8]) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let n = stream.send(bytes)?;
        bytes = &bytes[n..];
    }
    Ok(())
}

/// Connects to `remote` from a thread, asks for its front page over HTTP, and
/// logs what came of it.
pub fn connect(network: &KernelNetwork, remote: SocketAddr) {
    let network = network.clone();
    threads::spawn(move || {
        for attempt in 1..=ATTEMPTS {
            match fetch(&network, remote) {
                Ok((first, bytes)) => {
                    return log::info!("{remote} answered {bytes} bytes: {first}");
                }
                Err(error) => log::warn!("{remote}, attempt {attempt}: {error}"),
            }
            let platform = network.platform();
            let until = platform.now() + PAUSE.into();
            while platform.now() < until {
                threads::park(Some(until));
            }
        }
    });
}

/// The first line of the answer, and how long it was.
fn fetch(network: &KernelNetwork, remote: SocketAddr) -> Result<(String, u64), StreamError> {
    let stream = Stream::connect_timeout(network, remote, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE));
    log::info!("connected to {remote} from {}", stream.local_addr()?);
    let request = format!("GET / HTTP/1.0\r\nHost: {remote}\r\n\r\n");
    send_all(&stream, request.as_bytes())?;
    let mut buffer = vec![0; 4096];
    let (mut first, mut total) = (String::new(), 0);
    loop {
        let n = stream.recv(&mut buffer)?;
        if total == 0 {
            let line = String::from_utf8_lossy(&buffer[..n.min(80)]);
            first = line
                .lines()
                .next()
                .unwrap_or_default()
                .escape_debug()
                .collect();
        }
        if n == 0 {
            return Ok((first, total));
        }
        total += n as u64;
    }
}
