//! Both sides in one process: the kernel's threads and the monitor's, joined by a
//! piece of memory and two eventfds. Linux is the client.
//!
//! Needs root and `/dev/net/tun`; skipped without them, unless
//! REQUIRE_PRIVILEGED=1.

use std::alloc::{Layout, alloc_zeroed};
use std::error::Error;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use arca_example::{kernel, monitor, network};
use guest_stack::face::blocking::TcpListener;
use host_bridge::bell::Doorbells;
use host_bridge::bridge::Bridge;
use rustix::thread::UnshareFlags;
use shm_link::doorbell::{Doorbell, Wait};
use shm_link::linux::event::EventFd;

const PATIENCE: Duration = Duration::from_secs(20);
/// What kernel and monitor share, and the piece of it that is the network's.
const SHARED: usize = 8 << 20;
const OFFSET: usize = 4 << 20;
const LEN: usize = 2 << 20;

#[test]
fn a_kernel_and_its_monitor_attach_by_an_offset_a_port_and_an_interrupt() {
    let tun = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    if !rustix::process::geteuid().is_root() || tun.is_err() {
        let required = std::env::var("REQUIRE_PRIVILEGED").is_ok_and(|v| v == "1");
        assert!(!required, "this test must run as root with /dev/net/tun");
        eprintln!("skipped: needs root and /dev/net/tun");
        return;
    }
    // SAFETY: only this thread's network namespace changes, and that of threads
    // that it starts.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("unshare");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test()).unwrap();
}

async fn test() -> Result<(), Box<dyn Error>> {
    let layout = Layout::from_size_align(SHARED, 4096)?;
    // SAFETY: the size is not zero. Never freed while somebody uses it: the
    // kernel's threads live as long as the process.
    let shared = unsafe { alloc_zeroed(layout) };
    if shared.is_null() {
        return Err("no memory".into());
    }
    // What the machine does: the port's writes go to one eventfd, and the other
    // one raises the interrupt.
    let (port, interrupt) = (EventFd::new()?, EventFd::new()?);
    let doorbells = Doorbells {
        rung_by_guest: OwnedFd::from(port.try_clone()?),
        ring_guest: OwnedFd::from(interrupt.try_clone()?),
    };
    kernel::wire_port(move || port.ring());
    std::thread::spawn(move || {
        loop {
            interrupt.wait(None);
            kernel::network_interrupt();
        }
    });

    // The kernel is there before the monitor has prepared the memory.
    let provenance = shared.expose_provenance();
    let guest = std::thread::spawn(move || {
        let shared = std::ptr::with_exposed_provenance_mut(provenance);
        // SAFETY: the memory is never freed, and only the two regions use it.
        let network = unsafe { network::start(shared, OFFSET, LEN, [3, 4]) }.unwrap();
        let driver = network.clone();
        std::thread::spawn(move || network::drive(&driver));
        let listener = TcpListener::bind(&network, 7, 16).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.recv(&mut buffer) {
            let mut left = &buffer[..n];
            while !left.is_empty() {
                let sent = stream.send(left).unwrap();
                left = &left[sent..];
            }
        }
    });

    let bridge = Bridge::new()?;
    // SAFETY: as above.
    let attached =
        unsafe { monitor::attach_network(&bridge, shared, OFFSET, LEN, doorbells).await }?;
    let echoed = tokio::task::spawn_blocking(|| echo(300_000)).await??;
    assert_eq!(echoed, 300_000);
    guest.join().unwrap();
    attached.close().await;
    assert!(bridge.status().is_empty());
    Ok(())
}

/// Sends that much to the guest, and counts what comes back unharmed.
fn echo(bytes: usize) -> std::io::Result<usize> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match TcpStream::connect_timeout(&"10.88.0.2:7".parse().unwrap(), PATIENCE) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => return Err(error),
            // The guest is not configured yet.
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut sending = stream.try_clone()?;
    let sent: Vec<u8> = (0..bytes).map(|at| (at % 251) as u8).collect();
    let expected = sent.clone();
    let sender = std::thread::spawn(move || {
        sending.write_all(&sent)?;
        sending.shutdown(Shutdown::Write)
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    sender.join().unwrap()?;
    assert!(answer == expected, "the echo differs");
    Ok(answer.len())
}
