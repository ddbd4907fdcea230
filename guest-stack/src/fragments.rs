//! IPv4 packets that travel in pieces: reassembly of received ones (RFC 791, 3.2), and
//! echo replies that are longer than the MTU.
//!
//! smoltcp reassembles inside the interface and gives the packet to whatever set the last
//! fragment was fed to. It keeps a few packets and takes no others until those are whole or
//! their time is over: where one fragment in a hundred is lost, that is most of the time.
//! Here the oldest makes room, and what comes out is a whole frame, which takes the same way
//! as any other. It also keeps smoltcp from answering a large echo request itself: its
//! fragment buffer keeps old bytes, and the checksum of a reply that is shorter than the one
//! before is computed over them.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use smoltcp::iface::SocketSet;
use smoltcp::socket::raw;
use smoltcp::storage::Assembler;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{
    Icmpv4Packet, Icmpv4Repr, IpAddress, IpProtocol, IpVersion, Ipv4Address, Ipv4Packet, Ipv4Repr,
};

use crate::classify::{ETHERNET_LEN, Packet};
use crate::flow::{Entry, Quiet};
use crate::sockets::Sockets;

/// Longest IP packet.
const MAX_PACKET: usize = 65_535;
/// The headers of a whole frame: Ethernet, and IPv4 without options, which are for the way.
const HEADERS: usize = ETHERNET_LEN + 20;

/// How long fragments wait for the missing ones. RFC 1122, 3.3.2 asks for 60 s
/// to 120 s; packets are that late nowhere any more.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Packets that fragments are kept of, at most; and what they hold together, in bytes.
const MAX_PARTS: usize = 16;
pub(crate) const MAX_BYTES: usize = 4 * MAX_PACKET;

/// What tells the fragments of one packet from those of others (RFC 791, 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    src: Ipv4Address,
    dst: Ipv4Address,
    ident: u16,
    protocol: u8,
}

/// A packet of which something is missing.
struct Part {
    key: Key,
    since: Instant,
    /// Room for the headers, and what has arrived behind them.
    frame: Vec<u8>,
    arrived: Assembler,
    /// How long the payload is, once its end has arrived.
    len: Option<usize>,
}

/// What a fragment makes of its packet.
enum Progress {
    /// More is missing.
    Goes,
    /// Nothing is.
    Whole,
    /// Its fragments contradict each other, or are not of one packet (RFC 3128).
    Spoilt,
}

impl Part {
    fn new(key: Key, now: Instant) -> Self {
        Self {
            key,
            since: now,
            frame: vec![0; HEADERS],
            arrived: Assembler::new(),
            len: None,
        }
    }

    /// Takes what stands `offset` bytes into the packet; `more`: it is not the end.
    fn add(&mut self, headers: &[u8], offset: usize, payload: &[u8], more: bool) -> Progress {
        let end = offset + payload.len();
        if payload.is_empty() || more && !payload.len().is_multiple_of(8) {
            return Progress::Spoilt;
        }
        for (left, right) in self.arrived.iter_data() {
            if left <= offset && end <= right {
                // A copy. What came first stays.
                return Progress::Goes;
            }
            if left < end && offset < right {
                return Progress::Spoilt;
            }
        }
        let known = self.frame.len() - HEADERS;
        let fits = match self.len {
            Some(len) => more && end <= len,
            None => more || end >= known,
        };
        if !fits {
            return Progress::Spoilt;
        }
        if self.arrived.add(offset, payload.len()).is_err() {
            // Too many gaps: as if it had been lost.
            return Progress::Goes;
        }
        if end > known {
            self.frame.resize(HEADERS + end, 0);
        }
        if let Some(room) = self.frame.get_mut(HEADERS + offset..HEADERS + end) {
            room.copy_from_slice(payload);
        }
        if offset == 0
            && let Some((own, headers)) = self.frame.get_mut(..HEADERS).zip(headers.get(..HEADERS))
        {
            own.copy_from_slice(headers);
        }
        if !more {
            self.len = Some(end);
        }
        match self.len {
            Some(len) if self.arrived.peek_front() == len => Progress::Whole,
            _ => Progress::Goes,
        }
    }

    /// The whole packet, as a frame.
    fn finish(mut self) -> Vec<u8> {
        let total = self.frame.len() - ETHERNET_LEN;
        if let Some(bytes) = self.frame.get_mut(ETHERNET_LEN..) {
            let mut packet = Ipv4Packet::new_unchecked(bytes);
            packet.set_header_len(20);
            // `classify` let no longer one pass.
            packet.set_total_len(total as u16);
            packet.clear_flags();
            packet.set_frag_offset(0);
            packet.fill_checksum();
        }
        self.frame
    }
}

/// Collects fragments, of [`MAX_PARTS`] packets and [`MAX_BYTES`] at most, each for
/// [`TIMEOUT`]. Where there is no room for another, the oldest goes of whoever has most: a
/// lossy or hostile sender stands in the way of itself first.
#[derive(Default)]
pub(crate) struct Reassembler {
    /// The oldest first.
    parts: Vec<Part>,
}

impl Reassembler {
    /// Takes a fragment; gives the whole packet, as a frame, when it was the
    /// last one missing.
    fn add(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        let packet = Ipv4Packet::new_checked(frame.get(ETHERNET_LEN..)?).ok()?;
        if !packet.verify_checksum() {
            return None;
        }
        let key = Key {
            src: packet.src_addr(),
            dst: packet.dst_addr(),
            ident: packet.ident(),
            protocol: packet.next_header().into(),
        };
        self.parts.retain(|part| now < part.since + TIMEOUT);
        let known = self.parts.iter().position(|part| part.key == key);
        let mut part = match known {
            Some(at) => self.parts.remove(at),
            None => Part::new(key, now),
        };
        let offset = usize::from(packet.frag_offset());
        match part.add(frame, offset, packet.payload(), packet.more_frags()) {
            Progress::Whole => return Some(part.finish()),
            Progress::Spoilt => {}
            Progress::Goes => {
                while self.parts.len() >= MAX_PARTS || self.bytes() + part.frame.len() > MAX_BYTES {
                    self.make_room();
                }
                let at = self
                    .parts
                    .partition_point(|other| other.since <= part.since);
                self.parts.insert(at, part);
            }
        }
        None
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.frame.len()).sum()
    }

    fn make_room(&mut self) {
        let held = |part: &Part| {
            let others = self.parts.iter();
            others.filter(|other| other.key.src == part.key.src).count()
        };
        let most = self.parts.iter().map(held).max();
        let oldest = self.parts.iter().position(|part| Some(held(part)) == most);
        if let Some(at) = oldest {
            self.parts.remove(at);
        }
    }
}

impl Sockets {
    /// Takes a fragment; gives the whole packet, as a frame, when it was the
    /// last one missing.
    pub(crate) fn reassemble(&mut self, frame: &[u8], now: Instant) -> Option<Vec<u8>> {
        self.reassembler.add(frame, now)
    }

    /// Answers an ICMP echo request whose reply does not fit one packet.
    /// Waiting replies are few; further ones are lost, as echoes may be.
    pub(crate) fn large_echo(&mut self, packet: &Packet, frame: &[u8]) {
        let (IpAddress::Ipv4(src), IpAddress::Ipv4(dst)) = (packet.src, packet.dst) else {
            return;
        };
        if !self.is_ours(&packet.dst) || !packet.src.is_unicast() || self.is_broadcast(&packet.src)
        {
            return;
        }
        let Some(request) = frame.get(packet.payload.clone()) else {
            return;
        };
        let checksums = smoltcp::phy::ChecksumCapabilities::default();
        let request = Icmpv4Packet::new_unchecked(request);
        let Ok(Icmpv4Repr::EchoRequest {
            ident,
            seq_no,
            data,
        }) = Icmpv4Repr::parse(&request, &checksums)
        else {
            return;
        };
        let reply = Icmpv4Repr::EchoReply {
            ident,
            seq_no,
            data,
        };
        let ip = Ipv4Repr {
            src_addr: dst,
            dst_addr: src,
            next_header: IpProtocol::Icmp,
            payload_len: reply.buffer_len(),
            hop_limit: 64,
        };
        let index = self.echo_slot();
        let Entry::Quiet(quiet) = self.table.entry(index) else {
            return;
        };
        let Some(handle) = quiet.set.iter().next().map(|(handle, _)| handle) else {
            return;
        };
        let socket = quiet.set.get_mut::<raw::Socket>(handle);
        if let Ok(room) = socket.send(ip.buffer_len() + reply.buffer_len()) {
            ip.emit(&mut Ipv4Packet::new_unchecked(&mut *room), &checksums);
            let icmp = &mut room[ip.buffer_len()..];
            reply.emit(&mut Icmpv4Packet::new_unchecked(icmp), &checksums);
            self.table.mark(index);
        }
    }

    /// The slot of the socket that sends large echo replies.
    fn echo_slot(&mut self) -> u32 {
        if let Some(handle) = self.echo {
            return handle.index;
        }
        let buffer =
            |bytes| raw::PacketBuffer::new(vec![raw::PacketMetadata::EMPTY; 2], vec![0; bytes]);
        let protocol = Some(IpProtocol::Icmp);
        let socket = raw::Socket::new(
            Some(IpVersion::Ipv4),
            protocol,
            buffer(0),
            buffer(MAX_PACKET),
        );
        let mut set = SocketSet::new(vec![]);
        set.add(socket);
        let handle = self.table.insert(Entry::Quiet(Box::new(Quiet { set })));
        self.echo = Some(handle);
        handle.index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Part of a packet from 10.0.0.`host`.
    fn piece(host: u8, ident: u16, offset: usize, data: &[u8], more: bool) -> Vec<u8> {
        let mut frame = vec![0; HEADERS + data.len()];
        let repr = Ipv4Repr {
            src_addr: Ipv4Address::new(10, 0, 0, host),
            dst_addr: Ipv4Address::new(10, 0, 0, 1),
            next_header: IpProtocol::Udp,
            payload_len: data.len(),
            hop_limit: 64,
        };
        let mut packet = Ipv4Packet::new_unchecked(&mut frame[ETHERNET_LEN..]);
        repr.emit(&mut packet, &Default::default());
        packet.clear_flags();
        packet.set_ident(ident);
        packet.set_more_frags(more);
        packet.set_frag_offset(offset as u16);
        packet.fill_checksum();
        packet.payload_mut().copy_from_slice(data);
        frame
    }

    fn data(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 7 % 251) as u8).collect()
    }

    /// Two halves of 1600 bytes.
    fn halves(host: u8, ident: u16) -> [Vec<u8>; 2] {
        let data = data(1600);
        [
            piece(host, ident, 0, &data[..800], true),
            piece(host, ident, 800, &data[800..], false),
        ]
    }

    fn is_whole(frame: Option<Vec<u8>>) -> bool {
        let Some(frame) = frame else { return false };
        let packet = Ipv4Packet::new_checked(&frame[ETHERNET_LEN..]).unwrap();
        assert!(packet.verify_checksum() && !packet.more_frags());
        assert!(packet.payload() == data(1600));
        true
    }

    #[test]
    fn a_sender_that_loses_much_is_in_the_way_of_itself_only() {
        let mut all = Reassembler::default();
        let now = Instant::ZERO;
        let [first, last] = halves(9, 1);
        assert!(!is_whole(all.add(&first, now)));
        for ident in 0..=1000 {
            let [first, last] = halves(8, ident);
            if ident % 3 == 0 {
                assert!(!is_whole(all.add(&last, now)));
                assert!(is_whole(all.add(&first, now)));
            } else {
                assert!(all.add(&first, now).is_none());
            }
        }
        assert_eq!(all.parts.len(), MAX_PARTS);
        assert!(is_whole(all.add(&last, now)));
    }

    #[test]
    fn what_does_not_come_in_time_is_forgotten() {
        let mut all = Reassembler::default();
        let [first, last] = halves(9, 1);
        assert!(all.add(&first, Instant::ZERO).is_none());
        assert!(all.add(&last, Instant::ZERO + TIMEOUT).is_none());
        assert!(is_whole(all.add(&first, Instant::ZERO + TIMEOUT)));
        assert!(all.parts.is_empty());
    }

    #[test]
    fn copies_do_no_harm_and_contradictions_end_a_packet() {
        let now = Instant::ZERO;
        let bytes = data(1600);
        let [first, last] = halves(9, 1);
        let mut all = Reassembler::default();
        for frame in [&last, &last, &piece(9, 1, 80, &bytes[..80], false)] {
            assert!(all.add(frame, now).is_none());
        }
        assert!(all.parts.is_empty(), "another end before what was there");
        for wrong in [
            piece(9, 1, 792, &bytes[..16], true),
            piece(9, 1, 1600, &bytes[..8], true),
            piece(9, 1, 2400, &bytes[..8], false),
            piece(9, 1, 0, &bytes[..12], true),
            piece(9, 1, 0, &[], true),
            piece(9, 1, 1600, &[], false),
        ] {
            assert!(all.add(&last, now).is_none());
            assert!(all.add(&wrong, now).is_none());
            assert!(all.parts.is_empty(), "{:?}", &wrong[14..34]);
        }
        // What came first stays, and a damaged header is nobody's.
        assert!(all.add(&last, now).is_none());
        let other = piece(9, 1, 800, &bytes[..400], true);
        assert!(all.add(&other, now).is_none());
        let mut damaged = first.clone();
        damaged[HEADERS - 1] ^= 1;
        assert!(all.add(&damaged, now).is_none());
        assert!(is_whole(all.add(&first, now)));
    }

    #[test]
    fn whatever_comes_there_is_room_for_it_and_no_more_than_there_may_be() {
        let mut random = 1_u64;
        let mut next = |below: usize| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) as usize % below
        };
        let bytes = data(8000);
        let mut all = Reassembler::default();
        for round in 0..5000_i64 {
            let offset = next(7192) * 8;
            let len = next(8000).min(MAX_PACKET - 20 - offset);
            let len = if next(4) > 0 { len / 8 * 8 } else { len };
            let (host, ident) = (next(3) as u8, next(6) as u16);
            let frame = piece(host, ident, offset, &bytes[..len], next(3) > 0);
            let whole = all.add(&frame, Instant::from_millis(round * 40));
            assert!(whole.is_none_or(|whole| whole.len() <= ETHERNET_LEN + MAX_PACKET));
            assert!(all.parts.len() <= MAX_PARTS && all.bytes() <= MAX_BYTES);
            assert!(all.parts.is_sorted_by_key(|part| part.since));
        }
    }
}
