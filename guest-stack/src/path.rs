//! Paths that carry less than the link: path MTU discovery (RFC 1191, RFC 8201).
//!
//! smoltcp sends segments as long as the link's MTU and the peer's segment size allow, and
//! looks at no report that a router on the way could not pass one on: behind a tunnel the
//! connection would stand still. Here such a report ([`Report`]) is remembered for its
//! destination ([`Paths`]), and `device` makes what is longer fit: with segmentation
//! offload by the size of the segments that the frame is to be cut into, else by cutting
//! it itself (`parts`). What smoltcp believes stays as it is.
//!
//! A report counts only if it quotes a segment of ours that is in flight (RFC 5927, 4 and
//! 7), which `ingress` looks at. Nothing here knows of sockets, or sends.
//!
//! Datagrams are not in flight, so reports about them are weaker: they are remembered apart,
//! and hold for datagrams alone. Over IPv4 routers may cut what is too long ([`may_be_cut`]),
//! over IPv6 it is refused to whoever wants to send it.

use heapless::LinearMap;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    Icmpv4Packet, Icmpv6Packet, IpAddress, IpEndpoint, Ipv4Address, Ipv4Packet, Ipv6Address,
};

use crate::classify::{ETHERNET_LEN, PROTOCOL_TCP, PROTOCOL_UDP, Packet, u16_at, u32_at};
use crate::flow::FlowKey;

/// Narrow paths that are remembered; a further one takes the place of the oldest.
const MOST: usize = 32;
/// After this long the path is tried anew (RFC 1191, 6.3; RFC 8201, 4).
const LIFETIME: Duration = Duration::from_secs(600);
/// No path is taken for narrower, whoever says so. An IPv4 router may carry 68 bytes; that
/// one would do is history, and whoever forges a report is not to make a connection crawl.
const LEAST_V4: usize = 576;
/// Every IPv6 link carries this much (RFC 8200, 5); a report of less is no report.
const LEAST_V6: usize = 1280;

/// Length of an IPv6 header.
const IPV6_LEN: usize = 40;

/// ICMPv4: destination unreachable, fragmentation needed (RFC 792, RFC 1191).
const TOO_BIG_V4: [u8; 2] = [3, 4];
/// ICMPv6: packet too big (RFC 4443, 3.2).
const TOO_BIG_V6: u8 = 2;

/// What a router quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Quoted {
    /// A TCP segment with this sequence number.
    Segment { seq: u32 },
    /// A UDP datagram, or the first fragment of one.
    Datagram,
}

/// A router's word that a packet was too long for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Report {
    /// The ends of what was too long.
    pub(crate) key: FlowKey,
    pub(crate) quoted: Quoted,
    /// The longest IP packet that would have passed.
    pub(crate) mtu: usize,
}

impl Report {
    /// The report that an ICMP message is, if it is one about TCP or UDP and its checksum
    /// holds.
    pub(crate) fn of(packet: &Packet, frame: &[u8]) -> Option<Self> {
        let message = frame.get(packet.payload.clone())?;
        // Type, code, checksum, and four bytes that hold the MTU.
        let quoted = message.get(8..)?;
        match (packet.src, packet.dst) {
            (IpAddress::Ipv4(_), _) => {
                if message[..2] != TOO_BIG_V4
                    || !Icmpv4Packet::new_checked(message).ok()?.verify_checksum()
                {
                    return None;
                }
                // Routers from before RFC 1191 say 0.
                let mtu = usize::from(u16_at(message, 6)?).max(LEAST_V4);
                let header_len = usize::from(*quoted.first()? & 0xf) * 4;
                let address = |at| u32_at(quoted, at).map(|bits| Ipv4Address::from(bits).into());
                let first = u16_at(quoted, 6)? & 0x1fff == 0;
                let ends = (address(12)?, address(16)?);
                // Twenty bytes are there.
                let ours = quoted[0] >> 4 == 4 && header_len >= 20 && first;
                let protocol = quoted[9];
                ours.then(|| Self::about(ends, protocol, quoted.get(header_len..)?, mtu))?
            }
            (IpAddress::Ipv6(src), IpAddress::Ipv6(dst)) => {
                if message[0] != TOO_BIG_V6
                    || !Icmpv6Packet::new_checked(message)
                        .ok()?
                        .verify_checksum(&src, &dst)
                {
                    return None;
                }
                let mtu = u32_at(message, 4)? as usize;
                let address = |at: usize| -> Option<IpAddress> {
                    let octets: [u8; 16] = quoted.get(at..at + 16)?.try_into().ok()?;
                    Some(Ipv6Address::from(octets).into())
                };
                // We send no extension headers in front of TCP and UDP.
                let ours = quoted.first()? >> 4 == 6 && mtu >= LEAST_V6;
                let protocol = *quoted.get(6)?;
                let ends = (address(8)?, address(24)?);
                ours.then(|| Self::about(ends, protocol, quoted.get(IPV6_LEN..)?, mtu))?
            }
            _ => None,
        }
    }

    /// `header`: at least the first eight bytes of the transport's.
    fn about(
        (src, dst): (IpAddress, IpAddress),
        protocol: u8,
        header: &[u8],
        mtu: usize,
    ) -> Option<Self> {
        let word = u32_at(header, 4)?;
        Some(Self {
            key: FlowKey {
                local: IpEndpoint::new(src, u16_at(header, 0)?),
                remote: IpEndpoint::new(dst, u16_at(header, 2)?),
            },
            quoted: match protocol {
                PROTOCOL_TCP => Quoted::Segment { seq: word },
                PROTOCOL_UDP => Quoted::Datagram,
                _ => return None,
            },
            mtu,
        })
    }
}

/// Lets routers cut an IPv4 packet, which then needs an `ident` of its own (RFC 6864).
/// `frame` holds a header without options that forbids it; any other stays what it is.
pub(crate) fn may_be_cut(frame: &mut [u8], ident: u16) {
    let Some(header) = frame.get_mut(ETHERNET_LEN..ETHERNET_LEN + 20) else {
        return;
    };
    // The version, no options; `Don't fragment`, and no fragment.
    if header[0] != 0x45 || header[6..8] != [0x40, 0] {
        return;
    }
    header[4..6].copy_from_slice(&ident.to_be_bytes());
    header[6] = 0;
    Ipv4Packet::new_unchecked(header).fill_checksum();
}

/// The narrow paths that are known, by their far end.
#[derive(Debug, Default)]
pub(crate) struct Paths(LinearMap<IpAddress, Path, MOST>);

#[derive(Debug, Clone, Copy)]
struct Path {
    mtu: usize,
    until: Instant,
}

impl Paths {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Remembers that packets to `to` may be `mtu` bytes long; `false`: no less than was
    /// known.
    pub(crate) fn learn(&mut self, now: Instant, to: IpAddress, mtu: usize) -> bool {
        if self.mtu(&to).is_some_and(|known| known <= mtu) {
            return false;
        }
        if self.0.is_full() && !self.0.contains_key(&to) {
            let oldest = self.0.iter().min_by_key(|(_, path)| path.until);
            if let Some(oldest) = oldest.map(|(to, _)| *to) {
                self.0.remove(&oldest);
            }
        }
        let until = now + LIFETIME;
        // There is room now.
        let _ = self.0.insert(to, Path { mtu, until });
        true
    }

    /// The longest IP packet that a narrow path to `to` carries.
    pub(crate) fn mtu(&self, to: &IpAddress) -> Option<usize> {
        self.0.get(to).map(|path| path.mtu)
    }

    /// Forgets what was learned too long ago.
    pub(crate) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, path| path.until > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::{Class, ETHERNET_LEN, classify};
    use crate::parts::tests::{PEER, PEER6, US, US6, segment};
    use alloc::vec::Vec;
    use etherparse::{Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4, icmpv6};

    fn report(v6: bool, mtu: u32, quoted: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([4; 6], [2; 6]);
        let mut frame = Vec::new();
        if v6 {
            let too_big = Icmpv6Type::PacketTooBig { mtu };
            let ip = builder.ipv6(PEER6, US6, 64);
            ip.icmpv6(too_big).write(&mut frame, quoted).unwrap();
        } else {
            let needed = icmpv4::DestUnreachableHeader::FragmentationNeeded {
                next_hop_mtu: mtu as u16,
            };
            let ip = builder.ipv4(PEER, US, 64);
            let kind = Icmpv4Type::DestinationUnreachable(needed);
            ip.icmpv4(kind).write(&mut frame, quoted).unwrap();
        }
        frame
    }

    fn read(frame: &[u8]) -> Option<Report> {
        match classify(frame) {
            Some(Class::Ip(packet)) => Report::of(&packet, frame),
            _ => None,
        }
    }

    #[test]
    fn a_router_says_what_was_too_long_and_what_is_not() {
        for (v6, mtu) in [(false, 1300), (true, 1300)] {
            let sent = segment(v6, &[1; 1400]);
            // RFC 792: the header and eight bytes; RFC 4443: as much as fits.
            let quote = if v6 { 1000 } else { 28 };
            let quoted = &sent[ETHERNET_LEN..ETHERNET_LEN + quote];
            let frame = report(v6, mtu, quoted);
            let found = read(&frame).unwrap();
            let segment = Quoted::Segment { seq: 0xffff_ff00 };
            assert_eq!((found.quoted, found.mtu), (segment, 1300));
            assert_eq!((found.key.local.port, found.key.remote.port), (80, 4000));
            let expected: (IpAddress, IpAddress) = match v6 {
                false => (Ipv4Address::from(US).into(), Ipv4Address::from(PEER).into()),
                true => (
                    Ipv6Address::from(US6).into(),
                    Ipv6Address::from(PEER6).into(),
                ),
            };
            assert_eq!((found.key.local.addr, found.key.remote.addr), expected);
            // Neither damaged, nor cut short, is it believed.
            for at in ETHERNET_LEN + 40..frame.len() {
                let mut damaged = frame.clone();
                damaged[at] ^= 4;
                assert_eq!(read(&damaged), None, "byte {at}");
            }
            for len in 0..frame.len() {
                let _ = read(&frame[..len]);
            }
            let header = if v6 { 40 } else { 20 };
            for len in 0..header + 8 {
                assert_eq!(read(&report(v6, mtu, &quoted[..len])), None, "{len}");
            }
        }
    }

    #[test]
    fn what_no_router_says_is_nothing_or_the_least_that_a_path_carries() {
        let v4 = segment(false, &[1; 100]);
        for (mtu, least) in [(0, 576), (68, 576), (577, 577)] {
            let found = read(&report(false, mtu, &v4[ETHERNET_LEN..])).unwrap();
            assert_eq!(found.mtu, least);
        }
        let v6 = segment(true, &[1; 100]);
        assert_eq!(read(&report(true, 1279, &v6[ETHERNET_LEN..])), None);
        assert!(read(&report(true, 1280, &v6[ETHERNET_LEN..])).is_some());
        let mut other = v4.clone();
        other[23] = PROTOCOL_UDP;
        let found = read(&report(false, 1300, &other[ETHERNET_LEN..])).unwrap();
        assert_eq!((found.quoted, found.mtu), (Quoted::Datagram, 1300));
        // About something else than a segment or a datagram.
        other[23] = 1;
        assert_eq!(read(&report(false, 1300, &other[ETHERNET_LEN..])), None);
        let mut fragment = v4.clone();
        fragment[21] = 1;
        assert_eq!(read(&report(false, 1300, &fragment[ETHERNET_LEN..])), None);
        let unreachable = icmpv6::DestUnreachableCode::NoRoute;
        let mut other = Vec::new();
        PacketBuilder::ethernet2([4; 6], [2; 6])
            .ipv6(PEER6, US6, 64)
            .icmpv6(Icmpv6Type::DestinationUnreachable(unreachable))
            .write(&mut other, &v6[ETHERNET_LEN..])
            .unwrap();
        assert_eq!(read(&other), None);
    }

    #[test]
    fn a_packet_may_be_cut_only_if_it_is_whole_and_has_no_options() {
        let mut frame = segment(false, &[1; 100]);
        frame[20] = 0x40;
        let sum =
            |frame: &[u8]| Ipv4Packet::new_unchecked(&frame[ETHERNET_LEN..]).verify_checksum();
        may_be_cut(&mut frame, 0x1234);
        assert_eq!(frame[18..22], [0x12, 0x34, 0, 0]);
        assert!(sum(&frame));
        let cut = frame.clone();
        may_be_cut(&mut frame, 0x4321);
        assert_eq!(frame, cut, "it may be cut already");
        for (at, value) in [(14, 0x46), (14, 0x65), (21, 1), (20, 0x60)] {
            let mut other = cut.clone();
            other[20] = 0x40;
            other[at] = value;
            let before = other.clone();
            may_be_cut(&mut other, 1);
            assert_eq!(other, before);
        }
        may_be_cut(&mut frame[..30], 1);
    }

    #[test]
    fn paths_grow_only_narrower_are_few_and_are_forgotten() {
        let mut paths = Paths::default();
        let address = |n: u32| IpAddress::from(Ipv4Address::from(n));
        let at = Instant::from_secs;
        assert!(paths.learn(at(0), address(1), 1300));
        assert!(!paths.learn(at(1), address(1), 1300), "known");
        assert!(!paths.learn(at(1), address(1), 1400), "wider");
        assert!(paths.learn(at(1), address(1), 1200));
        assert_eq!(paths.mtu(&address(1)), Some(1200));
        assert_eq!(paths.mtu(&address(2)), None);
        for n in 2..=MOST as u32 {
            assert!(paths.learn(at(2), address(n), 1300));
        }
        assert_eq!(paths.mtu(&address(1)), Some(1200));
        // One too many takes the oldest's place.
        assert!(paths.learn(at(3), address(1000), 1300));
        assert_eq!(paths.mtu(&address(1)), None);
        paths.expire(at(601));
        assert_eq!(paths.mtu(&address(2)), Some(1300));
        paths.expire(at(602));
        assert_eq!(paths.mtu(&address(2)), None);
        assert_eq!(paths.mtu(&address(1000)), Some(1300));
        paths.expire(at(603));
        assert!(paths.is_empty());
    }
}
