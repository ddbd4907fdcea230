//! smoltcp as a server, in one process with its device and nothing in between:
//! one interface, one set of sockets, one loop, as its documentation shows it.
//!
//! The applications copy out of the socket's buffer and into it, as ours do.

mod apps;
mod offloaded;
mod passt;

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
use self::passt::Passt;
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
    /// passt, which maps its connections to sockets of the host.
    Passt,
}

/// Flags of `bench peer smoltcp`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// What it stands on.
    #[arg(long)]
    on: On,
    /// Name of the TAP, which exists and is up.
    #[arg(long, default_value = "")]
    tap: String,
    /// Where what is not on its link goes.
    #[arg(long)]
    gateway: Option<Ipv4Addr>,
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
            serve(options, device, fd, |_| {})
        }
        On::OffloadedTap => {
            let device = OffloadedTap::open(&options.tap, MTU)?;
            let tap = device.tap();
            serve(options, device, tap.as_fd(), |_| {})
        }
        On::Passt => {
            let device = Passt::start(MTU)?;
            let socket = device.socket();
            serve(options, device, socket.as_fd(), Passt::flush)
        }
    }
}

/// The loop. `flush` sends what a device gathers.
fn serve<D: Device>(
    options: &Options,
    mut device: D,
    fd: BorrowedFd<'_>,
    flush: fn(&mut D),
) -> Result<()> {
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
    if let Some(gateway) = options.gateway {
        let routes = iface.routes_mut();
        routes
            .add_default_ipv4_route(gateway)
            .expect("there is room for one");
    }
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
        flush(&mut device);
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
