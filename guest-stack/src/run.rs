//! What follows the frame sent last, grown into one frame that the other side cuts
//! again.
//!
//! smoltcp 0.14 leaves the cutting of TCP over IPv4 to its device, but loses what is
//! longer than the MTU over IPv6, and knows nothing of the kind for UDP. So it writes
//! one segment or datagram after the other, and `device` asks here whether the next one
//! continues the last frame; the link then moves its data there. A frame of 64 KB costs
//! the host one system call, as over TCP and IPv4, where 45 of the MTU's length would
//! cost one each. Decides only; moves nothing.

use shm_link::offload::{
    FLAG_NEEDS_CSUM, GSO_NONE, GSO_TCPV6, GSO_UDP_L4, MAX_UDP_SEGMENTS, OffloadHeader, Offloads,
};

use smoltcp::wire::{IpAddress, IpProtocol, Ipv4Address, Ipv4Packet, Ipv6Address, checksum};

use crate::classify::{
    ETHERNET_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_TCP, PROTOCOL_UDP, TCP_ACK,
};

/// Longest frame that others are to cut, Ethernet header included. An IP packet could be
/// 14 bytes longer, but Linux passes on whole only what is shorter than 65,536 with its
/// header (`gso_max_size`), and cuts the rest itself before a bridge's or router's next
/// interface: guest to guest, packets of 2.2 KB arrived.
pub(crate) const MAX_SUPER_FRAME: usize = 65_535;

/// Where the headers end that smoltcp writes: it puts no options in front of data, and
/// no extensions in front of TCP and UDP.
const IPV4_END: usize = ETHERNET_LEN + 20;
const IPV6_END: usize = ETHERNET_LEN + 40;
const UDP_LEN: usize = 8;
const TCP_LEN: usize = 20;
/// The longest of them all.
const MAX_HEAD: usize = IPV6_END + TCP_LEN;

/// A TCP header's PSH flag.
const TCP_PSH: u8 = 0x08;

/// Where fields that may differ within a run stand in the frame.
const TOTAL_LEN: usize = ETHERNET_LEN + 2;
const IP_CHECKSUM: usize = ETHERNET_LEN + 10;
const PAYLOAD_LEN: usize = ETHERNET_LEN + 4;
const SEQUENCE: usize = IPV6_END + 4;
const FLAGS: usize = IPV6_END + 13;

/// What a run is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    TcpOverIpv6,
    UdpOverIpv4,
    UdpOverIpv6,
}

impl Kind {
    /// What the frame may be the beginning of.
    fn of(frame: &[u8], offloads: Offloads) -> Option<Self> {
        let allowed = |cut| offloads.contains(Offloads::CHECKSUM.union(cut));
        let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
        match ethertype {
            ETHERTYPE_IPV6 => match *frame.get(20)? {
                PROTOCOL_TCP if allowed(Offloads::TSO6) => Some(Self::TcpOverIpv6),
                PROTOCOL_UDP if allowed(Offloads::USO) => Some(Self::UdpOverIpv6),
                _ => None,
            },
            ETHERTYPE_IPV4 => {
                let fragment = u16::from_be_bytes([*frame.get(20)?, *frame.get(21)?]);
                // And not one that has a name of its own.
                let whole = frame[14] == 0x45 && fragment == 0x4000;
                let udp = *frame.get(23)? == PROTOCOL_UDP;
                (whole && udp && allowed(Offloads::USO)).then_some(Self::UdpOverIpv4)
            }
            _ => None,
        }
    }

    /// Where the IP header ends.
    fn ip_end(self) -> usize {
        match self {
            Self::UdpOverIpv4 => IPV4_END,
            Self::TcpOverIpv6 | Self::UdpOverIpv6 => IPV6_END,
        }
    }

    /// Where the data begins.
    fn head_len(self) -> usize {
        self.ip_end()
            + match self {
                Self::TcpOverIpv6 => TCP_LEN,
                Self::UdpOverIpv4 | Self::UdpOverIpv6 => UDP_LEN,
            }
    }

    fn protocol(self) -> IpProtocol {
        match self {
            Self::TcpOverIpv6 => IpProtocol::Tcp,
            Self::UdpOverIpv4 | Self::UdpOverIpv6 => IpProtocol::Udp,
        }
    }

    fn gso_type(self) -> u8 {
        match self {
            Self::TcpOverIpv6 => GSO_TCPV6,
            Self::UdpOverIpv4 | Self::UdpOverIpv6 => GSO_UDP_L4,
        }
    }

    /// Where in the transport's header its checksum stands.
    fn checksum(self) -> usize {
        match self {
            Self::TcpOverIpv6 => 16,
            Self::UdpOverIpv4 | Self::UdpOverIpv6 => 6,
        }
    }

    /// Most segments of a frame.
    fn most(self) -> usize {
        match self {
            Self::TcpOverIpv6 => MAX_SUPER_FRAME,
            Self::UdpOverIpv4 | Self::UdpOverIpv6 => MAX_UDP_SEGMENTS,
        }
    }
}

/// The frame sent last, as far as it can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    kind: Kind,
    /// The first segment's headers, without the fields that may differ.
    head: [u8; MAX_HEAD],
    /// Data of each segment but the last.
    segment: usize,
    /// Data of each segment that the whole is to be cut into: less where the path is
    /// narrower than the link.
    cut: usize,
    /// Data so far.
    data: usize,
    /// The sequence number behind it; of UDP nothing.
    next: u32,
    /// The last segment asks its receiver to hand on what it has.
    pushed: bool,
}

/// One segment's headers, as they are compared.
struct Segment {
    kind: Kind,
    head: [u8; MAX_HEAD],
    seq: u32,
    psh: bool,
    data: usize,
}

/// Data and nothing else, with the headers that smoltcp gives it.
fn segment(frame: &[u8], offloads: Offloads) -> Option<Segment> {
    let kind = Kind::of(frame, offloads)?;
    let (ip_end, len) = (kind.ip_end(), kind.head_len());
    let mut head = [0; MAX_HEAD];
    head[..len].copy_from_slice(frame.get(..len)?);
    let data = frame.len() - len;
    if data == 0 {
        return None;
    }
    match kind {
        Kind::UdpOverIpv4 => {
            head[TOTAL_LEN..TOTAL_LEN + 2].fill(0);
            head[IP_CHECKSUM..IP_CHECKSUM + 2].fill(0);
        }
        Kind::TcpOverIpv6 | Kind::UdpOverIpv6 => head[PAYLOAD_LEN..PAYLOAD_LEN + 2].fill(0),
    }
    let checksum = ip_end + kind.checksum();
    head[checksum..checksum + 2].fill(0);
    let (mut seq, mut psh) = (0, false);
    match kind {
        Kind::TcpOverIpv6 => {
            let flags = head[FLAGS];
            if head[IPV6_END + 12] != 0x50 || flags & !TCP_PSH != TCP_ACK {
                return None;
            }
            psh = flags & TCP_PSH != 0;
            seq = u32::from_be_bytes([0, 1, 2, 3].map(|i| head[SEQUENCE + i]));
            head[SEQUENCE..SEQUENCE + 4].fill(0);
            head[FLAGS] = 0;
        }
        // The datagram's length.
        Kind::UdpOverIpv4 | Kind::UdpOverIpv6 => head[ip_end + 4..ip_end + 6].fill(0),
    }
    Some(Segment {
        kind,
        head,
        seq,
        psh,
        data,
    })
}

impl Run {
    /// The run that begins with `frame`; `None` if it is no plain data segment or
    /// datagram, or the other side would not cut it.
    pub(crate) fn begin(frame: &[u8], offloads: Offloads) -> Option<Self> {
        let first = segment(frame, offloads)?;
        Some(Self {
            kind: first.kind,
            head: first.head,
            segment: first.data,
            cut: first.data,
            data: first.data,
            next: next_sequence(&first),
            pushed: first.psh,
        })
    }

    /// The run, to be cut into segments of `data` bytes, where they are shorter.
    pub(crate) fn cut_into(self, data: usize) -> Self {
        Self {
            cut: self.cut.min(data),
            ..self
        }
    }

    /// The run with `frame` behind it, if it follows and one frame holds both.
    pub(crate) fn with(&self, frame: &[u8], offloads: Offloads) -> Option<Self> {
        // A short segment, or one with PSH, is the last.
        if self.pushed || !self.data.is_multiple_of(self.segment) {
            return None;
        }
        let next = segment(frame, offloads)?;
        let data = self.data + next.data;
        let follows = next.kind == self.kind
            && next.head == self.head
            && next.seq == self.next
            && next.data <= self.segment
            && data + self.head_len() <= MAX_SUPER_FRAME
            && data <= self.segment * self.kind.most();
        follows.then(|| Self {
            data,
            next: next_sequence(&next),
            pushed: next.psh,
            ..*self
        })
    }

    /// Bytes of a segment's frame in front of its data.
    pub(crate) fn head_len(&self) -> usize {
        self.kind.head_len()
    }

    /// Length of the IP payload of the whole run.
    pub(crate) fn payload_len(&self) -> usize {
        // With what stands before it at most MAX_SUPER_FRAME, checked as the run grew.
        self.data + self.head_len() - self.kind.ip_end()
    }

    /// What is left to the receiver of the whole run.
    pub(crate) fn offload(&self) -> OffloadHeader {
        let cut = self.data > self.cut;
        OffloadHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type: if cut { self.kind.gso_type() } else { GSO_NONE },
            hdr_len: if cut { self.head_len() as u16 } else { 0 },
            gso_size: if cut { self.cut as u16 } else { 0 },
            csum_start: self.kind.ip_end() as u16,
            csum_offset: self.kind.checksum() as u16,
            num_buffers: 0,
        }
    }

    /// Makes the headers of the grown frame those of the whole run.
    pub(crate) fn write_headers(&self, frame: &mut [u8]) {
        let (kind, ip_end) = (self.kind, self.kind.ip_end());
        let Some(head) = frame.get_mut(..self.head_len()) else {
            return;
        };
        let (src, dst) = match kind {
            Kind::UdpOverIpv4 => {
                let address = |at| Ipv4Address::from(self.octets::<4>(at)).into();
                (address(ETHERNET_LEN + 12), address(ETHERNET_LEN + 16))
            }
            Kind::TcpOverIpv6 | Kind::UdpOverIpv6 => {
                let address = |at| IpAddress::from(Ipv6Address::from(self.octets::<16>(at)));
                (address(ETHERNET_LEN + 8), address(ETHERNET_LEN + 24))
            }
        };
        let len = self.payload_len() as u16;
        let mut put = |at: usize, value: u16| {
            head[at..at + 2].copy_from_slice(&value.to_be_bytes());
        };
        let sum = checksum::pseudo_header(&src, &dst, kind.protocol(), u32::from(len));
        put(ip_end + kind.checksum(), sum);
        match kind {
            Kind::UdpOverIpv4 => put(TOTAL_LEN, len + (IPV4_END - ETHERNET_LEN) as u16),
            Kind::TcpOverIpv6 | Kind::UdpOverIpv6 => put(PAYLOAD_LEN, len),
        }
        match kind {
            Kind::TcpOverIpv6 if self.pushed => head[FLAGS] |= TCP_PSH,
            Kind::TcpOverIpv6 => {}
            Kind::UdpOverIpv4 | Kind::UdpOverIpv6 => put(ip_end + 4, len),
        }
        if kind == Kind::UdpOverIpv4 {
            Ipv4Packet::new_unchecked(&mut head[ETHERNET_LEN..]).fill_checksum();
        }
    }

    fn octets<const N: usize>(&self, at: usize) -> [u8; N] {
        core::array::from_fn(|i| self.head[at + i])
    }
}

/// The sequence number behind a segment.
fn next_sequence(segment: &Segment) -> u32 {
    match segment.kind {
        // Data of one frame are shorter than 2¹⁶.
        Kind::TcpOverIpv6 => segment.seq.wrapping_add(segment.data as u32),
        Kind::UdpOverIpv4 | Kind::UdpOverIpv6 => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    const HEAD: usize = IPV6_END + TCP_LEN;
    const ALL: Offloads = Offloads::CHECKSUM
        .union(Offloads::TSO6)
        .union(Offloads::USO);

    fn begin(frame: &[u8]) -> Option<Run> {
        Run::begin(frame, ALL)
    }

    fn with(run: &Run, frame: &[u8]) -> Option<Run> {
        run.with(frame, ALL)
    }

    fn frame(seq: u32, flags: u8, data: usize) -> Vec<u8> {
        let mut frame = vec![0; HEAD + data];
        frame[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
        frame[20] = PROTOCOL_TCP;
        frame[SEQUENCE..SEQUENCE + 4].copy_from_slice(&seq.to_be_bytes());
        frame[IPV6_END + 12] = 0x50;
        frame[FLAGS] = flags;
        frame
    }

    #[test]
    fn segments_that_follow_each_other_make_one_frame() {
        let run = begin(&frame(u32::MAX, TCP_ACK, 1440)).unwrap();
        assert_eq!(run.offload().gso_type, GSO_NONE);
        let run = with(&run, &frame(1439, TCP_ACK, 1440)).unwrap();
        let run = with(&run, &frame(2879, TCP_ACK | TCP_PSH, 10)).unwrap();
        let offload = run.offload();
        assert_eq!((offload.gso_type, offload.gso_size), (GSO_TCPV6, 1440));
        assert_eq!((offload.hdr_len, offload.csum_start), (74, 54));
        assert_eq!(run.payload_len(), 20 + 1440 * 2 + 10);
    }

    #[test]
    fn a_run_on_a_narrow_path_is_cut_into_shorter_segments_than_it_is_made_of() {
        let run = begin(&frame(0, TCP_ACK, 1440)).unwrap().cut_into(1220);
        assert_eq!(
            (run.offload().gso_type, run.offload().gso_size),
            (GSO_TCPV6, 1220)
        );
        let run = with(&run, &frame(1440, TCP_ACK, 1440)).unwrap();
        assert_eq!(run.offload().gso_size, 1220);
        let short = begin(&frame(0, TCP_ACK, 1000)).unwrap().cut_into(1220);
        assert_eq!(short.offload().gso_type, GSO_NONE);
    }

    #[test]
    fn what_does_not_follow_begins_a_frame_of_its_own() {
        let run = begin(&frame(0, TCP_ACK, 1440)).unwrap();
        assert_eq!(with(&run, &frame(0, TCP_ACK, 1440)), None, "sent again");
        assert_eq!(with(&run, &frame(1440, TCP_ACK, 1441)), None, "longer");
        assert_eq!(with(&run, &frame(1440, TCP_ACK | 1, 100)), None, "FIN");
        assert_eq!(with(&run, &frame(1440, TCP_ACK, 0)), None, "no data");
        for field in [0, 30, IPV6_END, IPV6_END + 8, IPV6_END + 14] {
            let mut other = frame(1440, TCP_ACK, 1440);
            other[field] ^= 1;
            assert_eq!(with(&run, &other), None, "byte {field} differs");
        }
        let short = with(&run, &frame(1440, TCP_ACK, 100)).unwrap();
        assert_eq!(
            with(&short, &frame(1540, TCP_ACK, 100)),
            None,
            "behind its end"
        );
        let pushed = begin(&frame(0, TCP_ACK | TCP_PSH, 1440)).unwrap();
        assert_eq!(with(&pushed, &frame(1440, TCP_ACK, 1440)), None, "pushed");
    }

    #[test]
    fn a_run_is_never_longer_than_a_packet() {
        let mut run = begin(&frame(0, TCP_ACK, 1440)).unwrap();
        while let Some(longer) = with(&run, &frame(run.next, TCP_ACK, 1440)) {
            run = longer;
        }
        assert_eq!(run.payload_len(), 20 + 45 * 1440);
        // As long as a packet may be, and with its header longer than what Linux
        // passes on whole.
        let mut run = begin(&frame(0, TCP_ACK, 1455)).unwrap();
        while let Some(longer) = with(&run, &frame(run.next, TCP_ACK, 1455)) {
            run = longer;
        }
        assert_eq!(run.payload_len(), 20 + 44 * 1455);
    }

    fn datagram(ipv6: bool, data: usize) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let payload = vec![7; data];
        let mut frame = Vec::new();
        if ipv6 {
            let ip = builder.ipv6([1; 16], [2; 16], 64);
            ip.udp(9, 7).write(&mut frame, &payload).unwrap();
        } else {
            let ip = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
            ip.udp(9, 7).write(&mut frame, &payload).unwrap();
        }
        frame
    }

    #[test]
    fn datagrams_of_one_length_make_one_frame_and_a_shorter_one_ends_it() {
        for (ipv6, head) in [(false, 42), (true, 62)] {
            let first = datagram(ipv6, 1000);
            let run = begin(&first).unwrap();
            let run = with(&run, &datagram(ipv6, 1000)).unwrap();
            assert_eq!(with(&run, &datagram(ipv6, 1001)), None, "longer");
            let run = with(&run, &datagram(ipv6, 10)).unwrap();
            assert_eq!(with(&run, &datagram(ipv6, 10)), None, "behind its end");
            let offload = run.offload();
            assert_eq!((offload.gso_type, offload.gso_size), (GSO_UDP_L4, 1000));
            assert_eq!((offload.hdr_len, offload.csum_offset), (head, 6));
            assert_eq!(run.payload_len(), 8 + 2010);
            let mut whole = first;
            whole.resize(usize::from(head) + 2010, 7);
            run.write_headers(&mut whole);
            assert_eq!(offload.check(whole.len(), ALL), Ok(()));
            // A parser that is not ours finds the headers in order.
            let parsed = etherparse::SlicedPacket::from_ethernet(&whole).unwrap();
            let Some(etherparse::TransportSlice::Udp(udp)) = parsed.transport else {
                panic!("no datagram");
            };
            assert_eq!((udp.length(), udp.payload().len()), (2018, 2010));
            if let Some(etherparse::NetSlice::Ipv4(ip)) = parsed.net {
                let header = ip.header().to_header();
                assert_eq!(header.calc_header_checksum(), header.header_checksum);
            }
        }
    }

    #[test]
    fn datagrams_make_no_frame_that_was_not_agreed_or_that_linux_would_not_cut() {
        let first = datagram(false, 100);
        let tcp_only = Offloads::CHECKSUM.union(Offloads::TSO6);
        assert_eq!(Run::begin(&first, tcp_only), None);
        assert_eq!(Run::begin(&first, Offloads::USO), None);
        let mut fragment = first.clone();
        fragment[20] |= 0x20;
        assert_eq!(begin(&fragment), None);
        assert_eq!(begin(&datagram(true, 0)), None, "no data");
        let mut other = datagram(false, 100);
        other[35] ^= 1;
        let mut run = begin(&first).unwrap();
        assert_eq!(with(&run, &other), None, "another port");
        assert_eq!(with(&run, &datagram(true, 100)), None, "another version");
        let mut count = 1;
        while let Some(longer) = with(&run, &first) {
            (run, count) = (longer, count + 1);
        }
        assert_eq!(count, MAX_UDP_SEGMENTS);
    }
}
