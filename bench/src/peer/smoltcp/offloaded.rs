//! A TAP with a virtio header as a device of smoltcp: what one process without a
//! bridge in between can get out of the kernel's offloads.

use std::num::NonZeroUsize;
use std::sync::Arc;

use host_bridge::tap::{RawSlice, Tap, TapKind, TapSource};
use shm_link::offload::{FLAG_NEEDS_CSUM, GSO_NONE, GSO_TCPV4, OffloadHeader, Offloads};
use smoltcp::phy::{self, Checksum, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, Ipv6Packet, checksum,
};

use crate::Result;

const ETHERNET_LEN: usize = 14;
/// Longest frame, both ways.
const MAX_FRAME_LEN: usize = ETHERNET_LEN + 65_535;

/// The device.
pub(super) struct OffloadedTap {
    tap: Arc<Tap>,
    mtu: usize,
    rx: Vec<u8>,
    tx: Vec<u8>,
}

impl OffloadedTap {
    /// Opens the TAP, and lets the kernel leave undone what it can.
    pub(super) fn open(name: &str, mtu: usize) -> Result<Self> {
        let name = name.to_owned();
        let tap = Tap::open_as(TapSource::Existing { name }, TapKind::VnetHeader)?;
        let all = Offloads::CHECKSUM
            .union(Offloads::TSO4)
            .union(Offloads::TSO6);
        tap.set_offloads(all)?;
        Ok(Self {
            tap: Arc::new(tap),
            mtu,
            rx: vec![0; MAX_FRAME_LEN],
            tx: vec![0; MAX_FRAME_LEN],
        })
    }

    /// The TAP, to wait for it.
    pub(super) fn tap(&self) -> Arc<Tap> {
        self.tap.clone()
    }
}

impl Device for OffloadedTap {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        // SAFETY: the buffer is this long, and borrowed for the call.
        let read = unsafe { self.tap.read_raw(self.rx.as_mut_ptr(), self.rx.len()) };
        let (len, _) = read.ok()?;
        let tx = TxToken {
            tap: &self.tap,
            buffer: &mut self.tx,
            meta: PacketMeta::default(),
        };
        Some((RxToken(&self.rx[..len]), tx))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        Some(TxToken {
            tap: &self.tap,
            buffer: &mut self.tx,
            meta: PacketMeta::default(),
        })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = ETHERNET_LEN + self.mtu;
        caps.checksum.tcp = Checksum::None;
        // smoltcp 0.14 loses what it leaves to the device over IPv6.
        caps.segmentation.tcpv4 = NonZeroUsize::new(MAX_FRAME_LEN);
        caps
    }
}

/// A received frame.
pub(super) struct RxToken<'a>(&'a [u8]);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// Room for a frame.
pub(super) struct TxToken<'a> {
    tap: &'a Tap,
    buffer: &'a mut [u8],
    meta: PacketMeta,
}

impl phy::TxToken for TxToken<'_> {
    fn set_meta(&mut self, meta: PacketMeta) {
        self.meta = meta;
    }

    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let frame = &mut self.buffer[..len];
        let result = write(frame);
        let offload = finish(frame, self.meta).unwrap_or(OffloadHeader::NONE);
        let parts = [RawSlice::new(frame.as_ptr(), len), RawSlice::EMPTY];
        // SAFETY: the frame is borrowed for the call. One that the kernel does
        // not take is lost, as frames may be.
        let _ = unsafe { self.tap.writev_raw(offload, parts) };
        result
    }
}

/// Begins the checksum of a TCP segment; the kernel ends it, and cuts the frame.
fn finish(frame: &mut [u8], meta: PacketMeta) -> Option<OffloadHeader> {
    let ethernet = EthernetFrame::new_checked(&*frame).ok()?;
    let (start, sum) = match ethernet.ethertype() {
        EthernetProtocol::Ipv4 => {
            let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
            if ip.next_header() != IpProtocol::Tcp {
                return None;
            }
            let header = usize::from(ip.header_len());
            let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
            let len = frame.len() - ETHERNET_LEN - header;
            let sum = checksum::pseudo_header(&src, &dst, IpProtocol::Tcp, len as u32);
            (ETHERNET_LEN + header, sum)
        }
        EthernetProtocol::Ipv6 => {
            let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
            if ip.next_header() != IpProtocol::Tcp {
                return None;
            }
            let (src, dst) = (ip.src_addr().into(), ip.dst_addr().into());
            let len = frame.len() - ETHERNET_LEN - 40;
            let sum = checksum::pseudo_header(&src, &dst, IpProtocol::Tcp, len as u32);
            (ETHERNET_LEN + 40, sum)
        }
        _ => return None,
    };
    frame
        .get_mut(start + 16..start + 18)?
        .copy_from_slice(&sum.to_be_bytes());
    let tcp_len = usize::from(frame.get(start + 12)? >> 4) * 4;
    let size = meta.segmentation_offload_size;
    Some(OffloadHeader {
        flags: FLAG_NEEDS_CSUM,
        gso_type: if size.is_some() { GSO_TCPV4 } else { GSO_NONE },
        hdr_len: size.map_or(0, |_| (start + tcp_len) as u16),
        gso_size: size.map_or(0, |size| size.get()),
        csum_start: start as u16,
        csum_offset: 16,
        num_buffers: 0,
    })
}
