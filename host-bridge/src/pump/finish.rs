//! What the kernel leaves undone and the guest does not do, the bridge does: it cuts
//! super-frames into segments and finishes checksums (the kernel calls it generic
//! segmentation offload).
//!
//! A guest without offloads would get each segment by a system call of its own
//! otherwise, and the kernel would have made each by itself. Here the kernel hands
//! over up to 64 KB at once, and a segment costs one copy that sums as it goes.
//!
//! Frames come from the kernel, but not all were made by it: a neighbour's
//! super-frames pass through it nearly as they are. Nothing they say is believed
//! beyond their own bytes.

use std::ptr::{self, NonNull};

use etherparse::checksum::Sum16BitWords;
use shm_link::link::MAX_FRAME_LEN;
use shm_link::offload::{
    FLAG_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, OffloadHeader, Offloads,
};

use super::kernel::read;
use super::{PumpEnd, PumpShared, Wire};
use crate::counters::{DirectionCounters, DropReason};
use crate::filter::{HEAD_LEN, Verdict};
use crate::impair::ImpairedFrame;
use crate::policy::Policy;

/// Longest headers of a super-frame in front of its payload, in bytes: Ethernet with two
/// tags, the longest of IPv4 and TCP, and as much again for IPv6's extensions.
const MAX_HEAD: usize = 256;

const ETHERNET: usize = 14;
const TAG: usize = 4;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// What a read from the TAP gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// The TAP has nothing.
    TapEmpty,
    /// A frame of this length that the guest does not get; it is counted.
    Dropped(usize),
    /// A frame; its parts come from [`Finish::part`].
    Frame,
}

/// A frame from the TAP on its way to a guest that takes less than the kernel leaves.
#[derive(Default)]
pub(super) struct Finish {
    /// Room for the longest frame, once one was read.
    frame: Vec<u8>,
    len: usize,
    what: What,
    /// Where the rest begins that was not given away: of a super-frame, in its payload.
    next: usize,
    /// The headers of a segment.
    head: Vec<u8>,
}

/// How the frame leaves.
#[derive(Debug, Clone, Copy, Default)]
enum What {
    #[default]
    Nothing,
    /// As it is.
    Whole(OffloadHeader),
    /// In segments.
    Cut(Cut),
}

/// How a super-frame is cut, by offsets within its length.
#[derive(Debug, Clone, Copy)]
struct Cut {
    network: usize,
    transport: usize,
    payload: usize,
    /// Payload bytes of a segment.
    size: usize,
    ipv4: bool,
    tcp: bool,
    /// The guest finishes checksums by itself.
    partial: bool,
}

/// A frame for the guest: the headers, and what follows them.
pub(super) struct Part<'a> {
    pub(super) head: &'a [u8],
    pub(super) payload: &'a [u8],
    pub(super) offload: OffloadHeader,
}

impl Part<'_> {
    /// Copies the whole frame.
    ///
    /// # Safety
    /// `room` is valid for writes of its length ([`Finish::part_len`]).
    pub(super) unsafe fn copy_to(&self, room: NonNull<u8>) {
        let (head, payload) = (self.head, self.payload);
        // SAFETY: promised by the caller; what is copied is private memory.
        unsafe {
            ptr::copy_nonoverlapping(head.as_ptr(), room.as_ptr(), head.len());
            let room = room.add(head.len());
            ptr::copy_nonoverlapping(payload.as_ptr(), room.as_ptr(), payload.len());
        }
    }
}

impl From<Part<'_>> for ImpairedFrame {
    fn from(part: Part<'_>) -> Self {
        Self {
            offload: part.offload,
            bytes: [part.head, part.payload].concat(),
        }
    }
}

impl Finish {
    /// Whether everything that was read was given away.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self.what, What::Nothing)
    }

    /// Reads a frame from the TAP. Only when [`is_empty`](Self::is_empty).
    pub(super) fn fill(
        &mut self,
        shared: &PumpShared<impl Wire>,
        policy: &Policy,
    ) -> Result<Filled, PumpEnd> {
        self.frame.resize(MAX_FRAME_LEN, 0);
        // SAFETY: private memory of that length.
        let frame = unsafe { read(shared, self.frame.as_mut_ptr(), self.frame.len()) }?;
        let Some((len, offload)) = frame else {
            return Ok(Filled::TapEmpty);
        };
        let head = &self.frame[..len.min(HEAD_LEN)];
        let reason = match policy.filter.check_to_guest(head) {
            Verdict::Drop(reason) => reason,
            Verdict::Pass => match self.load(len, offload, policy.offloads_to_guest) {
                Some(()) => return Ok(Filled::Frame),
                None => DropReason::BadOffload,
            },
        };
        let counters = &shared.counters.host_to_guest;
        counters.frame_in(len);
        counters.dropped(reason);
        Ok(Filled::Dropped(len))
    }

    /// Finds out what is to be done with the frame that was read. `None`: it contradicts
    /// itself.
    fn load(&mut self, len: usize, offload: OffloadHeader, takes: Offloads) -> Option<()> {
        self.len = len;
        self.next = 0;
        let (needed, ipv4, tcp) = match offload.gso_type & !GSO_ECN {
            GSO_NONE => {
                self.what = self.whole(offload, takes)?;
                return Some(());
            }
            GSO_TCPV4 => (Offloads::TSO4, true, true),
            GSO_TCPV6 => (Offloads::TSO6, false, true),
            GSO_UDP_L4 => (Offloads::USO, self.is_ipv4()?, false),
            _ => return None,
        };
        if takes.contains(needed.union(Offloads::CHECKSUM)) {
            self.what = What::Whole(offload);
            return Some(());
        }
        let cut = self.plan(offload, ipv4, tcp, takes)?;
        self.next = cut.payload;
        self.what = What::Cut(cut);
        Some(())
    }

    /// A frame that is not cut: its checksum is finished if the guest does not do that.
    fn whole(&mut self, offload: OffloadHeader, takes: Offloads) -> Option<What> {
        if takes.contains(Offloads::CHECKSUM) {
            return Some(What::Whole(offload));
        }
        if offload.flags & FLAG_NEEDS_CSUM == 0 {
            return Some(What::Whole(OffloadHeader::NONE));
        }
        let start = usize::from(offload.csum_start);
        let place = start + usize::from(offload.csum_offset);
        let frame = self.frame.get_mut(..self.len)?;
        // The pseudo header's part stands there already.
        let sum = Sum16BitWords::new().add_slice(frame.get(start..)?);
        put(frame, place, &checksum(&sum))?;
        Some(What::Whole(OffloadHeader::NONE))
    }

    fn plan(&self, offload: OffloadHeader, ipv4: bool, tcp: bool, takes: Offloads) -> Option<Cut> {
        let frame = self.frame.get(..self.len)?;
        if ipv4 != self.is_ipv4()? {
            return None;
        }
        let network = network(frame)?;
        let transport = usize::from(offload.csum_start);
        let header_fits = match ipv4 {
            true => {
                let len = usize::from(frame.get(network)? & 0xf) * 4;
                len >= IPV4_HEADER && transport == network + len
            }
            false => transport >= network + IPV6_HEADER,
        };
        let transport_len = match tcp {
            true => usize::from(*frame.get(transport + 12)? >> 4) * 4,
            false => UDP_HEADER,
        };
        let payload = transport + transport_len;
        let size = usize::from(offload.gso_size);
        let sound = header_fits
            && (!tcp || transport_len >= TCP_HEADER)
            && payload < frame.len()
            && payload <= MAX_HEAD
            && size != 0;
        sound.then_some(Cut {
            network,
            transport,
            payload,
            size,
            ipv4,
            tcp,
            partial: takes.contains(Offloads::CHECKSUM),
        })
    }

    fn is_ipv4(&self) -> Option<bool> {
        let frame = self.frame.get(..self.len)?;
        match frame.get(network(frame)?)? >> 4 {
            4 => Some(true),
            6 => Some(false),
            _ => None,
        }
    }

    /// How long the next frame for the guest is, in bytes; `None`: everything was given
    /// away.
    pub(super) fn part_len(&self) -> Option<usize> {
        match self.what {
            What::Nothing => None,
            What::Whole(_) => Some(self.len),
            What::Cut(cut) => Some(cut.payload + cut.size.min(self.len - self.next)),
        }
    }

    /// The next frame for the guest, which is the same until [`advance`](Self::advance);
    /// of no bytes if everything was given away.
    pub(super) fn part(&mut self) -> Part<'_> {
        match self.what {
            What::Nothing => Part {
                head: &[],
                payload: &[],
                offload: OffloadHeader::NONE,
            },
            What::Whole(offload) => Part {
                head: &self.frame[..self.len],
                payload: &[],
                offload,
            },
            What::Cut(cut) => {
                let end = self.len.min(self.next + cut.size);
                let payload = &self.frame[self.next..end];
                self.head.clear();
                self.head.extend_from_slice(&self.frame[..cut.payload]);
                let offset = self.next - cut.payload;
                let offload = cut.write_head(&mut self.head, payload, offset, end == self.len);
                Part {
                    head: &self.head,
                    payload,
                    offload,
                }
            }
        }
    }

    /// Counts what was not given away as dropped.
    pub(super) fn forget(&mut self, counters: &DirectionCounters) {
        while let Some(len) = self.part_len() {
            counters.frame_in(len);
            counters.dropped(DropReason::Closed);
            self.advance();
        }
    }

    /// Goes on to what follows the frame that [`part`](Self::part) showed.
    pub(super) fn advance(&mut self) {
        if let What::Cut(cut) = self.what {
            self.next += cut.size;
            if self.next < self.len {
                return;
            }
        }
        self.what = What::Nothing;
    }
}

impl Cut {
    /// Makes `head`, the super-frame's, that of the segment with this payload, `offset`
    /// bytes into the whole. Says what is left undone of it.
    fn write_head(
        &self,
        head: &mut [u8],
        payload: &[u8],
        offset: usize,
        is_last: bool,
    ) -> OffloadHeader {
        let (front, transport) = head.split_at_mut(self.transport);
        let network = &mut front[self.network..];
        // Whoever asks for it has seen that it is no longer than the MTU allows.
        let transport_len = (transport.len() + payload.len()) as u16;
        let sum = match self.ipv4 {
            true => {
                // One number for each packet (RFC 791), as Linux counts them.
                let index = (offset / self.size) as u16;
                let id = u16::from_be_bytes([network[4], network[5]]).wrapping_add(index);
                let total = (network.len() as u16).wrapping_add(transport_len);
                network[2..4].copy_from_slice(&total.to_be_bytes());
                network[4..6].copy_from_slice(&id.to_be_bytes());
                network[10..12].fill(0);
                let sum = Sum16BitWords::new().add_slice(network);
                network[10..12].copy_from_slice(&sum.ones_complement().to_be().to_be_bytes());
                Sum16BitWords::new().add_slice(&network[12..20])
            }
            false => {
                let extensions = (network.len() - IPV6_HEADER) as u16;
                let len = extensions.wrapping_add(transport_len);
                network[4..6].copy_from_slice(&len.to_be_bytes());
                Sum16BitWords::new().add_slice(&network[8..IPV6_HEADER])
            }
        };
        let protocol = if self.tcp { 6 } else { 17 };
        let pseudo = sum
            .add_2bytes([0, protocol])
            .add_2bytes(transport_len.to_be_bytes());
        let place = match self.tcp {
            true => {
                // Sequence numbers count bytes modulo 2^32 (RFC 9293, 3.4).
                let [a, b, c, d] = [transport[4], transport[5], transport[6], transport[7]];
                let seq = u32::from_be_bytes([a, b, c, d]).wrapping_add(offset as u32);
                transport[4..8].copy_from_slice(&seq.to_be_bytes());
                if !is_last {
                    transport[13] &= !(FIN | PSH);
                }
                if offset != 0 {
                    // The answer to congestion is told once (RFC 3168, 6.1.2).
                    transport[13] &= !CWR;
                }
                16
            }
            false => {
                transport[4..6].copy_from_slice(&transport_len.to_be_bytes());
                6
            }
        };
        let (checksum, offload) = match self.partial {
            true => {
                let unfinished = !pseudo.ones_complement().to_be();
                let offload = OffloadHeader {
                    flags: FLAG_NEEDS_CSUM,
                    csum_start: self.transport as u16,
                    csum_offset: place as u16,
                    ..OffloadHeader::NONE
                };
                (unfinished.to_be_bytes(), offload)
            }
            false => {
                transport[place..place + 2].fill(0);
                let sum = pseudo.add_slice(transport).add_slice(payload);
                (checksum(&sum), OffloadHeader::NONE)
            }
        };
        transport[place..place + 2].copy_from_slice(&checksum);
        offload
    }
}

/// Frames, and what is left to do for each.
#[cfg(any(test, feature = "simulation"))]
pub(crate) type Finished = Vec<(OffloadHeader, Vec<u8>)>;

/// What a guest that takes these offloads gets of a frame from the TAP; `None`: nothing, the
/// frame contradicts itself.
#[cfg(any(test, feature = "simulation"))]
pub(crate) fn finished(
    offload: OffloadHeader,
    frame: Vec<u8>,
    takes: Offloads,
) -> Option<Finished> {
    let len = frame.len();
    let mut finish = Finish {
        frame,
        ..Finish::default()
    };
    finish.load(len, offload, takes)?;
    let mut frames = Vec::new();
    while let Some(len) = finish.part_len() {
        let part = ImpairedFrame::from(finish.part());
        assert_eq!(
            part.bytes.len(),
            len,
            "a frame of another length than it was said"
        );
        frames.push((part.offload, part.bytes));
        finish.advance();
    }
    Some(frames)
}

/// A checksum of TCP or UDP as it stands in the packet: zero means "none" in UDP
/// (RFC 768), and is the same number as its complement.
fn checksum(sum: &Sum16BitWords) -> [u8; 2] {
    sum.to_ones_complement_with_no_zero().to_be().to_be_bytes()
}

/// Where the IP header begins, behind up to two VLAN tags.
fn network(frame: &[u8]) -> Option<usize> {
    let mut at = ETHERNET;
    for _ in 0..=2 {
        match frame.get(at - 2..at)? {
            [0x08, 0x00] | [0x86, 0xdd] => return Some(at),
            [0x81, 0x00] | [0x88, 0xa8] => at += TAG,
            _ => return None,
        }
    }
    None
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8; 2]) -> Option<()> {
    frame.get_mut(at..at + 2)?.copy_from_slice(bytes);
    Some(())
}

#[cfg(test)]
mod tests {
    use etherparse::{
        IpHeaders, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TcpHeader,
        TcpOptionElement, TransportSlice,
    };
    use proptest::prelude::*;

    use super::*;

    const ALL: Offloads = Offloads::CHECKSUM.union(Offloads::SEGMENTATION);
    const SEQ: u32 = u32::MAX - 2000;
    const ID: u16 = 0xffff;

    fn payload(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    fn ip(ipv4: bool) -> PacketBuilderStep<IpHeaders> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        match ipv4 {
            true => builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
            false => builder.ipv6([1; 16], [2; 16], 64),
        }
    }

    /// A super-frame as the kernel hands it over: the header says what is undone, and
    /// the checksum field is of no use.
    fn tcp(ipv4: bool, len: usize) -> (OffloadHeader, Vec<u8>) {
        let mut header = TcpHeader::new(1, 2, SEQ, 500);
        (header.ack, header.psh, header.fin, header.cwr) = (true, true, true, true);
        let stamps = [TcpOptionElement::Noop, TcpOptionElement::Timestamp(7, 8)];
        header.set_options(&stamps).expect("options that fit");
        let mut frame = Vec::new();
        ip(ipv4)
            .tcp_header(header)
            .write(&mut frame, &payload(len))
            .expect("a packet");
        let start = if ipv4 { 34 } else { 54 };
        let place = usize::from(start) + 16;
        frame[place..place + 2].fill(0xaa);
        let offload = OffloadHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type: if ipv4 { GSO_TCPV4 } else { GSO_TCPV6 } | GSO_ECN,
            hdr_len: start + 32,
            gso_size: 1448,
            csum_start: start,
            csum_offset: 16,
            num_buffers: 0,
        };
        if ipv4 {
            frame[18..20].copy_from_slice(&ID.to_be_bytes());
        }
        (offload, frame)
    }

    fn udp(ipv4: bool, len: usize) -> (OffloadHeader, Vec<u8>) {
        let mut frame = Vec::new();
        let packet = ip(ipv4).udp(1, 2);
        packet.write(&mut frame, &payload(len)).expect("a packet");
        let start = if ipv4 { 34 } else { 54 };
        let offload = OffloadHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type: GSO_UDP_L4,
            hdr_len: start + 8,
            gso_size: 1000,
            csum_start: start,
            csum_offset: 6,
            num_buffers: 0,
        };
        (offload, frame)
    }

    fn finish(frame: &(OffloadHeader, Vec<u8>), takes: Offloads) -> Option<Finished> {
        finished(frame.0, frame.1.clone(), takes)
    }

    /// Parses a frame, and checks what of it is a checksum or a length.
    fn sound(frame: &[u8]) -> SlicedPacket<'_> {
        let packet = SlicedPacket::from_ethernet(frame).expect("a sound frame");
        let ends = match packet.net.as_ref().expect("an IP header") {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                assert_eq!(
                    header.to_header().calc_header_checksum(),
                    header.header_checksum()
                );
                assert_eq!(
                    usize::from(header.total_len()),
                    frame.len() - network(frame).expect("IP")
                );
                Ends::V4(header.source(), header.destination())
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                let len = usize::from(header.payload_length()) + IPV6_HEADER;
                assert_eq!(len, frame.len() - network(frame).expect("IP"));
                Ends::V6(header.source(), header.destination())
            }
            NetSlice::Arp(_) => panic!("ARP"),
        };
        match (packet.transport.as_ref().expect("a transport header"), ends) {
            (TransportSlice::Tcp(tcp), Ends::V4(from, to)) => {
                let sum = tcp
                    .calc_checksum_ipv4(from, to)
                    .expect("a length that fits");
                assert_eq!(sum, tcp.checksum());
            }
            (TransportSlice::Tcp(tcp), Ends::V6(from, to)) => {
                let sum = tcp
                    .calc_checksum_ipv6(from, to)
                    .expect("a length that fits");
                assert_eq!(sum, tcp.checksum());
            }
            (TransportSlice::Udp(udp), ends) => {
                assert_eq!(usize::from(udp.length()), UDP_HEADER + udp.payload().len());
                let header = udp.to_header();
                let sum = match ends {
                    Ends::V4(from, to) => header.calc_checksum_ipv4_raw(from, to, udp.payload()),
                    Ends::V6(from, to) => header.calc_checksum_ipv6_raw(from, to, udp.payload()),
                };
                assert_eq!(sum.expect("a length that fits"), udp.checksum());
            }
            _ => panic!("neither TCP nor UDP"),
        }
        packet
    }

    enum Ends {
        V4([u8; 4], [u8; 4]),
        V6([u8; 16], [u8; 16]),
    }

    #[test]
    fn a_stream_is_cut_into_the_segments_of_a_wire() {
        for ipv4 in [true, false] {
            for len in [1448 * 3, 1448 * 3 + 1, 1449, 64_000] {
                let parts = finish(&tcp(ipv4, len), Offloads::NONE).expect("a sound super-frame");
                assert_eq!(parts.len(), len.div_ceil(1448));
                let mut whole = Vec::new();
                for (i, (offload, frame)) in parts.iter().enumerate() {
                    assert_eq!(*offload, OffloadHeader::NONE);
                    let packet = sound(frame);
                    let Some(TransportSlice::Tcp(tcp)) = &packet.transport else {
                        panic!("not TCP");
                    };
                    if let Some(NetSlice::Ipv4(ip)) = &packet.net {
                        let id = ip.header().identification();
                        assert_eq!(id, ID.wrapping_add(i as u16));
                    }
                    let last = i + 1 == parts.len();
                    assert_eq!((tcp.psh(), tcp.fin(), tcp.cwr()), (last, last, i == 0));
                    assert_eq!(tcp.sequence_number(), SEQ.wrapping_add(whole.len() as u32));
                    assert_eq!(tcp.options().len(), 12);
                    whole.extend_from_slice(tcp.payload());
                }
                assert_eq!(whole, payload(len));
            }
        }
    }

    #[test]
    fn datagrams_that_came_together_are_taken_apart() {
        for ipv4 in [true, false] {
            let parts = finish(&udp(ipv4, 2500), Offloads::NONE).expect("a sound super-frame");
            let mut whole = Vec::new();
            for (_, frame) in &parts {
                let Some(TransportSlice::Udp(udp)) = sound(frame).transport else {
                    panic!("not UDP");
                };
                whole.extend_from_slice(udp.payload());
            }
            assert_eq!((parts.len(), whole), (3, payload(2500)));
        }
    }

    #[test]
    fn a_guest_that_finishes_checksums_is_left_them() {
        for frame in [
            tcp(true, 4000),
            tcp(false, 4000),
            udp(true, 1800),
            udp(false, 1800),
        ] {
            let whole = finish(&frame, Offloads::NONE).expect("a sound super-frame");
            let parts = finish(&frame, Offloads::CHECKSUM).expect("a sound super-frame");
            let finished = parts.iter().flat_map(|part| {
                assert_eq!(part.0.flags, FLAG_NEEDS_CSUM);
                assert_eq!(part.0.check(part.1.len(), Offloads::CHECKSUM), Ok(()));
                finish(part, Offloads::NONE).expect("a checksum that can be finished")
            });
            assert!(finished.eq(whole));
        }
    }

    #[test]
    fn what_the_guest_takes_is_left_as_it_is() {
        for frame in [tcp(true, 4000), tcp(false, 4000), udp(true, 1800)] {
            assert_eq!(finish(&frame, ALL), Some(vec![frame]));
        }
    }

    #[test]
    fn headers_that_contradict_each_other_are_refused() {
        let refused = |change: fn(&mut OffloadHeader, &mut Vec<u8>)| {
            let (mut offload, mut frame) = tcp(true, 3000);
            change(&mut offload, &mut frame);
            finish(&(offload, frame), Offloads::NONE).is_none()
        };
        assert!(!refused(|_, _| {}));
        assert!(refused(|offload, _| offload.gso_type = 7));
        assert!(refused(|offload, _| offload.gso_type = GSO_TCPV6));
        assert!(refused(|offload, _| offload.gso_size = 0));
        assert!(refused(|offload, _| offload.csum_start = 33));
        assert!(refused(|offload, _| offload.csum_start = u16::MAX));
        assert!(refused(|_, frame| frame[12] = 0));
        assert!(refused(|_, frame| frame[14] = 0x44));
        assert!(refused(|_, frame| frame[46] = 0x40));
        assert!(refused(|_, frame| frame.truncate(66)));
        assert!(refused(|offload, frame| {
            offload.gso_type = GSO_NONE;
            frame.truncate(51);
        }));
    }

    proptest! {
        #[test]
        fn any_frame_ends_after_no_more_parts_than_it_has_bytes(
            header in any::<[u8; 12]>(),
            kind in prop::sample::select(vec![GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4]),
            near in any::<bool>(),
            ipv4 in any::<bool>(),
            changes in prop::collection::vec((0_usize..80, any::<u8>()), 0..4),
            len in 0_usize..300,
            takes in 0_u32..16,
        ) {
            let (mut offload, mut frame) = tcp(ipv4, len);
            if !near {
                offload = OffloadHeader { gso_type: kind, ..OffloadHeader::from_bytes(header) };
            }
            offload.gso_size %= 64;
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            let len = frame.len();
            if let Some(parts) = finish(&(offload, frame), Offloads::from_bits(takes)) {
                prop_assert!(parts.len() <= len);
            }
        }

        #[test]
        fn any_bytes_are_survived(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            header in any::<[u8; 12]>(),
            takes in 0_u32..16,
        ) {
            finish(&(OffloadHeader::from_bytes(header), bytes), Offloads::from_bits(takes));
        }
    }
}
