//! What a handler may do while it runs: use every socket, and send.

use shm_link::link::FrameTx;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, IpRepr, UdpPacket,
    UdpRepr,
};

use crate::classify::{ETHERNET_LEN, Packet};
use crate::device::Wire;
use crate::error::SendError;
use crate::path::may_be_cut;
use crate::registry::Datagram;
use crate::sockets::Sockets;

/// The stack, as a handler sees it.
pub struct Context<'a> {
    pub(crate) sockets: &'a mut Sockets,
    pub(crate) tx: &'a mut dyn FrameTx,
    pub(crate) now: Instant,
    /// Where the frame came from that the handler was called for, if it was.
    pub(crate) source: Option<[u8; 6]>,
}

impl Context<'_> {
    /// The time of the poll that called the handler.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// All sockets and registrations.
    pub fn sockets(&mut self) -> &mut Sockets {
        self.sockets
    }

    /// Our MAC address.
    pub fn mac(&self) -> [u8; 6] {
        self.sockets.net.mac
    }

    fn wire(&mut self) -> Wire<'_> {
        Wire {
            tx: &mut *self.tx,
            state: &mut self.sockets.io,
        }
    }

    /// Sends a whole Ethernet frame as it stands.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_frame(&mut self, frame: &[u8]) -> Result<(), SendError> {
        if frame.len() > ETHERNET_LEN + self.sockets.io.mtu {
            return Err(SendError::Length);
        }
        self.wire()
            .send(frame.len(), |room| room.copy_from_slice(frame))
    }

    /// Answers a packet: sends `payload` under its protocol back to where its
    /// frame came from, from the address it was sent to (from our first address
    /// of that version, if that was a group or broadcast address).
    ///
    /// # Errors
    /// [`SendError`].
    pub fn reply_packet(&mut self, to: &Packet, payload: &[u8]) -> Result<(), SendError> {
        let protocol = IpProtocol::from(to.protocol);
        let local = self.own_address(to.dst)?;
        self.send_ip(local, to.src, protocol, payload.len(), |room, _, _| {
            room.copy_from_slice(payload);
        })
    }

    /// The address to answer from: the one that was written to if it is ours,
    /// else our first one of its version.
    fn own_address(&self, written_to: IpAddress) -> Result<IpAddress, SendError> {
        if self.sockets.is_ours(&written_to) {
            return Ok(written_to);
        }
        let own = self.sockets.interface.ip_addrs().iter();
        own.map(|cidr| cidr.address())
            .find(|own| own.version() == written_to.version())
            .ok_or(SendError::NoAddress)
    }

    /// Answers a datagram, from the address and port it was sent to (from our
    /// first address of that version, if that was a broadcast).
    ///
    /// # Errors
    /// [`SendError`].
    pub fn reply_datagram(&mut self, to: &Datagram, payload: &[u8]) -> Result<(), SendError> {
        let remote = IpAddress::from(to.src.ip());
        let local = self.own_address(to.dst.ip().into())?;
        let udp = UdpRepr {
            src_port: to.dst.port(),
            dst_port: to.src.port(),
        };
        let len = udp.header_len() + payload.len();
        self.send_ip(local, remote, IpProtocol::Udp, len, |room, src, dst| {
            udp.emit(
                &mut UdpPacket::new_unchecked(room),
                src,
                dst,
                payload.len(),
                |room| room.copy_from_slice(payload),
                &ChecksumCapabilities::default(),
            );
        })
    }

    fn send_ip(
        &mut self,
        src: IpAddress,
        dst: IpAddress,
        protocol: IpProtocol,
        len: usize,
        write: impl FnOnce(&mut [u8], &IpAddress, &IpAddress),
    ) -> Result<(), SendError> {
        let ip = IpRepr::new(src, dst, protocol, len, 64);
        let narrow = ip.buffer_len() > self.sockets.io.datagram_mtu(&dst);
        // Routers cut what they may cut.
        let carried = !narrow || matches!(dst, IpAddress::Ipv4(_));
        if ip.buffer_len() > self.sockets.io.mtu || !carried {
            return Err(SendError::Length);
        }
        let ident = narrow.then(|| self.sockets.io.next_ident());
        let peer = self.source.ok_or(SendError::NoFrame)?;
        let own = self.sockets.net.mac;
        self.wire().send(ETHERNET_LEN + ip.buffer_len(), |frame| {
            let mut ethernet = EthernetFrame::new_unchecked(&mut *frame);
            ethernet.set_src_addr(EthernetAddress(own));
            ethernet.set_dst_addr(EthernetAddress(peer));
            ethernet.set_ethertype(match src {
                IpAddress::Ipv4(_) => EthernetProtocol::Ipv4,
                IpAddress::Ipv6(_) => EthernetProtocol::Ipv6,
            });
            let packet = ethernet.payload_mut();
            packet[..ip.header_len()].fill(0);
            ip.emit(&mut *packet, &ChecksumCapabilities::default());
            write(&mut packet[ip.header_len()..], &src, &dst);
            if let Some(ident) = ident {
                may_be_cut(frame, ident);
            }
        })
    }
}
