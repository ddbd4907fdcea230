//! Questions for neighbours' hardware addresses that smoltcp would not ask.
//!
//! smoltcp asks for one neighbour per second, whoever else is wanted, and believes an answer
//! for a minute, also when nobody is heard from there. So a second connection of a guest that
//! has just begun would wait for a second, the tenth for ten; and whoever tells a guest a
//! wrong address once, or moves to another, would cut its connections off for a minute. What
//! is asked here besides:
//!
//! | when | who |
//! | --- | --- |
//! | a socket waits for its neighbour | each that its packets go to |
//! | a connection's segments are sent again in vain (RFC 4861, 7.3.1; RFC 1122, 2.3.2.1) | its next hop |
//! | the stack was given a gateway | the gateway, if nothing was heard of it |
//!
//! Each is asked once per second at most. smoltcp learns from the answers, by its own rules.

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::Socket;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    Icmpv6Packet, Icmpv6Repr, IpAddress, IpProtocol, Ipv4Address, Ipv6Address, Ipv6Packet,
    Ipv6Repr, NdiscRepr, RawHardwareAddress,
};

use shm_link::link::FrameTx;

use crate::classify::ETHERNET_LEN;
use crate::device::Wire;
use crate::error::SendError;
use crate::flow::Entry;
use crate::sockets::Sockets;

/// Neighbours that are asked for per second: a whole rack at once, and few enough for
/// nobody to notice who is made to ask for more.
const MOST: usize = 32;
/// Time between two questions for one neighbour (RFC 4861's RETRANS_TIMER).
const AGAIN: Duration = Duration::from_secs(1);

/// Whom was asked for lately.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    asked: heapless::Vec<(IpAddress, Instant), MOST>,
    /// The gateways may be others than before.
    pub(crate) new_gateways: bool,
}

impl Questions {
    /// Whether a question may be asked now; if so, it counts as asked.
    fn take(&mut self, now: Instant, who: IpAddress) -> bool {
        let old = |at: &Instant| now >= *at + AGAIN;
        let same = self.asked.iter().position(|(asked, _)| *asked == who);
        match same {
            Some(at) if !old(&self.asked[at].1) => return false,
            Some(at) => _ = self.asked.swap_remove(at),
            None => {}
        }
        if self.asked.is_full() {
            let Some(at) = self.asked.iter().position(|(_, at)| old(at)) else {
                return false;
            };
            self.asked.swap_remove(at);
        }
        // There is room now.
        let _ = self.asked.push((who, now));
        true
    }

    /// It was asked for by another, or not at all.
    fn set(&mut self, now: Instant, who: IpAddress, asked: bool) {
        self.asked.retain(|(other, _)| *other != who);
        if asked {
            // Without room it may be asked for once more than need be.
            let _ = self.asked.push((who, now));
        }
    }
}

impl Sockets {
    /// A slot's socket waits for a neighbour: those that its packets go to are asked for,
    /// but for the one that smoltcp has just asked for.
    pub(crate) fn ask_for_neighbours_of(&mut self, index: u32, now: Instant, tx: &mut dyn FrameTx) {
        self.note_question(now);
        match self.table.entry(index) {
            Entry::Flow(flow) => {
                let remote = flow.remote_addr();
                self.ask_for(now, &remote, tx);
            }
            Entry::Udp(udp) => {
                let wanted = core::mem::take(&mut udp.wanted);
                for remote in &wanted {
                    self.ask_for_unheard(now, remote, tx);
                }
                if let Entry::Udp(udp) = self.table.entry(index) {
                    udp.wanted = wanted;
                }
            }
            Entry::Free
            | Entry::Listener(_)
            | Entry::HalfOpen(_)
            | Entry::TimeWait(_)
            | Entry::Quiet(_) => {}
        }
    }

    /// A socket of the application's own waits for a neighbour. Whom a TCP socket talks to
    /// it says; any may go by a gateway.
    pub(crate) fn ask_for_neighbours_of_the_application(
        &mut self,
        now: Instant,
        tx: &mut dyn FrameTx,
    ) {
        self.note_question(now);
        let remotes = self
            .application
            .iter()
            .filter_map(|(_, socket)| match socket {
                Socket::Tcp(socket) => Some(socket.remote_endpoint()?.addr),
                _ => None,
            });
        let remotes: heapless::Vec<IpAddress, MOST> = remotes.take(MOST).collect();
        for remote in &remotes {
            self.ask_for_unheard(now, remote, tx);
        }
        self.questions.new_gateways = true;
        self.ask_for_gateways(now, tx);
    }

    /// Takes note of what smoltcp has just asked.
    fn note_question(&mut self, now: Instant) {
        if let Some(asked) = self.io.asked.take_last() {
            self.questions.set(now, asked, true);
        }
    }

    /// Asks for the gateways, if they are new and nothing was heard of them.
    pub(crate) fn ask_for_gateways(&mut self, now: Instant, tx: &mut dyn FrameTx) {
        if !self.questions.new_gateways || !self.net.carrier {
            return;
        }
        self.questions.new_gateways = false;
        let gateways = [
            self.gateway_v4().map(IpAddress::from),
            self.gateway_v6().map(IpAddress::from),
        ];
        for gateway in gateways.into_iter().flatten() {
            self.ask_for_unheard(now, &gateway, tx);
        }
    }

    /// Asks for the next hop on the way to `remote`, unless that was done within the
    /// last second.
    pub(crate) fn ask_for(&mut self, now: Instant, remote: &IpAddress, tx: &mut dyn FrameTx) {
        let Some(who) = self.next_hop(remote) else {
            return;
        };
        let Some(own) = self.interface.get_source_address(&who) else {
            return;
        };
        if !self.questions.take(now, who) {
            return;
        }
        let mut wire = Wire {
            tx,
            state: &mut self.io,
        };
        let mac = self.net.mac;
        let sent = match (own, who) {
            (IpAddress::Ipv4(own), IpAddress::Ipv4(who)) => request(&mut wire, mac, own, who),
            (IpAddress::Ipv6(own), IpAddress::Ipv6(who)) => {
                let message = NdiscRepr::NeighborSolicit {
                    target_addr: who,
                    lladdr: Some(RawHardwareAddress::from(EthernetAddress(mac))),
                };
                send_discovery(&mut wire, mac, own, solicited_node(&who), message)
            }
            (IpAddress::Ipv4(_), IpAddress::Ipv6(_)) | (IpAddress::Ipv6(_), IpAddress::Ipv4(_)) => {
                return;
            }
        };
        if sent.is_err() {
            self.questions.set(now, who, false);
        }
    }

    /// [`ask_for`](Self::ask_for), unless the next hop said something lately.
    fn ask_for_unheard(&mut self, now: Instant, remote: &IpAddress, tx: &mut dyn FrameTx) {
        let who = self.next_hop(remote);
        if who.is_some_and(|who| !self.neighbours.heard_of(now, &who)) {
            self.ask_for(now, remote, tx);
        }
    }

    /// Whose hardware address a packet to `remote` needs; `None`: nobody's.
    fn next_hop(&self, remote: &IpAddress) -> Option<IpAddress> {
        if !remote.is_unicast() || self.is_broadcast(remote) {
            return None;
        }
        let cidrs = self.interface.ip_addrs();
        if cidrs.iter().any(|cidr| cidr.contains_addr(remote)) {
            return Some(*remote);
        }
        match remote {
            IpAddress::Ipv4(_) => self.gateway_v4().map(IpAddress::from),
            IpAddress::Ipv6(_) => self.gateway_v6().map(IpAddress::from),
        }
    }
}

/// Sends an ARP request (RFC 826).
fn request(
    wire: &mut Wire<'_>,
    mac: [u8; 6],
    own: Ipv4Address,
    who: Ipv4Address,
) -> Result<(), SendError> {
    let message = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: EthernetAddress(mac),
        source_protocol_addr: own,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: who,
    };
    wire.send(ETHERNET_LEN + message.buffer_len(), |room| {
        let mut ethernet = EthernetFrame::new_unchecked(room);
        ethernet.set_src_addr(EthernetAddress(mac));
        ethernet.set_dst_addr(EthernetAddress::BROADCAST);
        ethernet.set_ethertype(EthernetProtocol::Arp);
        message.emit(&mut ArpPacket::new_unchecked(ethernet.payload_mut()));
    })
}

/// The group that listens for questions for an address (RFC 4291, 2.7.1).
fn solicited_node(who: &Ipv6Address) -> Ipv6Address {
    let [.., a, b, c] = who.octets();
    let (high, low) = (0xff00 | u16::from(a), u16::from_be_bytes([b, c]));
    Ipv6Address::new(0xff02, 0, 0, 0, 0, 1, high, low)
}

/// Sends a message of neighbour discovery to a group (RFC 4861, section 4).
///
/// # Errors
/// [`SendError::NoRoom`].
pub(crate) fn send_discovery(
    wire: &mut Wire<'_>,
    mac: [u8; 6],
    src: Ipv6Address,
    dst: Ipv6Address,
    message: NdiscRepr<'_>,
) -> Result<(), SendError> {
    let message = Icmpv6Repr::Ndisc(message);
    let ip = Ipv6Repr {
        src_addr: src,
        dst_addr: dst,
        next_header: IpProtocol::Icmpv6,
        payload_len: message.buffer_len(),
        hop_limit: 255,
    };
    let len = ETHERNET_LEN + ip.buffer_len() + message.buffer_len();
    wire.send(len, |room| {
        let mut ethernet = EthernetFrame::new_unchecked(&mut *room);
        ethernet.set_src_addr(EthernetAddress(mac));
        // RFC 2464, section 7.
        let [.., a, b, c, d] = dst.octets();
        ethernet.set_dst_addr(EthernetAddress([0x33, 0x33, a, b, c, d]));
        ethernet.set_ethertype(EthernetProtocol::Ipv6);
        let packet = &mut room[ETHERNET_LEN..];
        packet.fill(0);
        ip.emit(&mut Ipv6Packet::new_unchecked(&mut *packet));
        let payload = &mut packet[ip.buffer_len()..];
        message.emit(
            &src,
            &dst,
            &mut Icmpv6Packet::new_unchecked(payload),
            &ChecksumCapabilities::default(),
        );
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbour(last: u8) -> IpAddress {
        IpAddress::v4(10, 0, 0, last)
    }

    #[test]
    fn each_is_asked_for_once_per_second_and_all_together_seldom_enough() {
        let mut questions = Questions::default();
        let start = Instant::from_secs(1);
        assert!(questions.take(start, neighbour(0)));
        let soon = start + AGAIN / 2;
        assert!(!questions.take(soon, neighbour(0)));
        for last in 1..MOST as u8 {
            assert!(questions.take(soon, neighbour(last)));
        }
        assert!(!questions.take(soon, neighbour(200)));
        // The first has had its second.
        assert!(questions.take(start + AGAIN, neighbour(200)));
        assert!(!questions.take(start + AGAIN, neighbour(0)));
        assert!(questions.take(soon + AGAIN, neighbour(0)));
    }

    #[test]
    fn what_could_not_be_said_was_not_asked() {
        let mut questions = Questions::default();
        let now = Instant::from_secs(1);
        assert!(questions.take(now, neighbour(0)));
        questions.set(now, neighbour(0), false);
        assert!(questions.take(now, neighbour(0)));
    }

    #[test]
    fn the_group_of_an_address_has_its_last_three_bytes() {
        let who = Ipv6Address::new(0xfd00, 0, 0, 0, 0, 0, 0x12ab, 0xcdef);
        let group = Ipv6Address::new(0xff02, 0, 0, 0, 0, 1, 0xffab, 0xcdef);
        assert_eq!(solicited_node(&who), group);
    }
}
