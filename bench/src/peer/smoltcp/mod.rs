//! smoltcp as a server, in one process with its device and nothing in between:
//! one interface, one set of sockets, one loop, as its documentation shows it.
//!
//! The applications copy out of the socket's buffer and into it, as ours do.

mod apps;
mod offloaded;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use clap::ValueEnum;
use rustix::event::{PollFd, PollFlags, Timespec};
use smoltcp::iface::{Config, Interface, PollIngressSingleResult, SocketSet};
use smoltcp::phy::{Device, Medium, TunTapInterface};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use self::apps::Apps;
use self::offloaded::OffloadedTap;
use super::{Serve, ready};
use crate::Result;

/// Frames taken in before the applications have their turn. 1, 4, 16 and 64 made no
/// difference that stood out of the noise.
const FRAMES_PER_TURN: usize = 16;

/// Longest packet, as the kernel makes TAPs.
const MTU: usize = 1500;

/// What smoltcp stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub enum On {
    /// Its own TAP device: frames at the MTU, checksums by smoltcp.
    PlainTap,
    /// A TAP with a virtio header: checksums left to the kernel, segmentation
    /// too over IPv4; super-frames from the kernel in both versions.
    OffloadedTap,
}

/// Flags of `bench peer smoltcp`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// What it stands on.
    #[arg(long)]
    on: On,
    /// Name of the TAP, which exists and is up.
    #[arg(long)]
    tap: String,
    /// Its IPv4 address, with a prefix of 24.
    #[arg(long)]
    v4: Ipv4Addr,
    /// Its IPv6 address, with a prefix of 64.
    #[arg(long)]
    v6: Ipv6Addr,
    /// What it serves, as SERVICE:SOCKETS.
    #[arg(long)]
    serve: Vec<Serve>,
    /// Bytes of each buffer of a socket.
    #[arg(long, default_value_t = 262_143)]
    buffer: usize,
    /// Do not sleep while a connection is open.
    #[arg(long)]
    spin: bool,
}

/// Opens the TAP and serves, for ever.
pub(super) fn run(options: &Options) -> Result<()> {
    match options.on {
        On::PlainTap => {
            let device = TunTapInterface::new(&options.tap, Medium::Ethernet)?;
            let fd = device.as_raw_fd();
            // SAFETY: the device lives as long as this process, and so does its
            // descriptor.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            serve(options, device, fd)
        }
        On::OffloadedTap => {
            let device = OffloadedTap::open(&options.tap, MTU)?;
            let tap = device.tap();
            serve(options, device, tap.as_fd())
        }
    }
}

fn serve(options: &Options, mut device: impl Device, fd: BorrowedFd<'_>) -> Result<()> {
    let address = HardwareAddress::Ethernet(EthernetAddress([2, 0, 0, 0, 0, 1]));
    let mut iface = Interface::new(Config::new(address), &mut device, Instant::now());
    iface.update_ip_addrs(|addresses| {
        for cidr in [
            IpCidr::new(IpAddr::V4(options.v4).into(), 24),
            IpCidr::new(IpAddr::V6(options.v6).into(), 64),
        ] {
            addresses.push(cidr).expect("there is room for two");
        }
    });
    let mut sockets = SocketSet::new(Vec::new());
    let mut apps = Apps::new(&options.serve, options.buffer, &mut sockets);
    ready()?;
    loop {
        let mut busy = false;
        for _ in 0..FRAMES_PER_TURN {
            match iface.poll_ingress_single(Instant::now(), &mut device, &mut sockets) {
                PollIngressSingleResult::None => break,
                _ => busy = true,
            }
        }
        busy |= apps.run(&mut sockets);
        iface.poll_egress(Instant::now(), &mut device, &mut sockets);
        if busy || options.spin && apps.active(&sockets) {
            continue;
        }
        let delay = iface.poll_delay(Instant::now(), &sockets);
        let delay = delay.map(|delay| Timespec {
            tv_sec: delay.secs() as i64,
            tv_nsec: delay.micros() as i64 % 1_000_000 * 1000,
        });
        let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, delay.as_ref()))?;
    }
}
