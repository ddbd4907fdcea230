//! Segments of one connection that follow each other, grown into one frame that
//! the other side cuts again.
//!
//! smoltcp 0.14 leaves the cutting of TCP over IPv4 to its device, but loses
//! what is longer than the MTU over IPv6. So over IPv6 it writes one segment
//! after the other, and `device` asks here whether the next one continues the
//! last frame; the link then moves its data there. A frame of 64 KB costs the
//! host one system call, as over IPv4, where 45 of the MTU's length would cost
//! one each. Decides only; moves nothing.

use shm_link::offload::{FLAG_NEEDS_CSUM, GSO_NONE, GSO_TCPV6, OffloadHeader};

use smoltcp::wire::{IpAddress, IpProtocol, Ipv6Address, checksum};

use crate::classify::{ETHERNET_LEN, ETHERTYPE_IPV6, PROTOCOL_TCP, TCP_ACK};

/// Longest frame that others are to cut, Ethernet header included. An IP packet could be
/// 14 bytes longer, but Linux passes on whole only what is shorter than 65,536 with its
/// header (`gso_max_size`), and cuts the rest itself before a bridge's or router's next
/// interface: guest to guest, packets of 2.2 KB arrived.
pub(crate) const MAX_SUPER_FRAME: usize = 65_535;

/// Where an IPv6 header ends.
const IPV6_END: usize = ETHERNET_LEN + 40;
/// Length of the headers: Ethernet, IPv6 and TCP without options, which is all
/// that smoltcp puts in front of data.
const HEAD: usize = IPV6_END + 20;
/// An IPv6 packet's longest payload here: RFC 8200, section 3, allows as much as makes
/// the frame longer than [`MAX_SUPER_FRAME`].
const MAX_PAYLOAD: usize = MAX_SUPER_FRAME - IPV6_END;
/// A TCP header's PSH flag.
const TCP_PSH: u8 = 0x08;

/// Where fields that may differ within a run stand in the frame.
const PAYLOAD_LEN: usize = 18;
const SEQUENCE: usize = IPV6_END + 4;
const FLAGS: usize = IPV6_END + 13;
const CHECKSUM: usize = IPV6_END + 16;

/// The frame sent last, as far as it can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first segment's headers, without the fields that may differ.
    head: [u8; HEAD],
    /// Data of each segment but the last.
    segment: usize,
    /// Data so far.
    data: usize,
    /// The sequence number behind it.
    next: u32,
    /// The last segment asks its receiver to hand on what it has.
    pushed: bool,
}

/// One segment's headers, as they are compared.
struct Segment {
    head: [u8; HEAD],
    seq: u32,
    psh: bool,
    data: usize,
}

/// Data and nothing else, with the headers that smoltcp gives it.
fn segment(frame: &[u8]) -> Option<Segment> {
    let mut head = *frame.first_chunk::<HEAD>()?;
    let flags = head[FLAGS];
    let plain = head[12..ETHERNET_LEN] == ETHERTYPE_IPV6.to_be_bytes()
        && head[20] == PROTOCOL_TCP
        && head[IPV6_END + 12] == 0x50
        && flags & !TCP_PSH == TCP_ACK;
    if !plain || frame.len() == HEAD {
        return None;
    }
    let seq = [0, 1, 2, 3].map(|i| head[SEQUENCE + i]);
    head[PAYLOAD_LEN..PAYLOAD_LEN + 2].fill(0);
    head[SEQUENCE..SEQUENCE + 4].fill(0);
    head[CHECKSUM..CHECKSUM + 2].fill(0);
    head[FLAGS] = 0;
    Some(Segment {
        head,
        seq: u32::from_be_bytes(seq),
        psh: flags & TCP_PSH != 0,
        data: frame.len() - HEAD,
    })
}

impl Run {
    /// The run that begins with `frame`; `None` if it is no plain data segment.
    pub(crate) fn begin(frame: &[u8]) -> Option<Self> {
        let first = segment(frame)?;
        Some(Self {
            head: first.head,
            segment: first.data,
            data: first.data,
            // Data of one frame are shorter than 2¹⁶.
            next: first.seq.wrapping_add(first.data as u32),
            pushed: first.psh,
        })
    }

    /// The run with `frame` behind it, if it follows and one frame holds both.
    pub(crate) fn with(&self, frame: &[u8]) -> Option<Self> {
        // A short segment, or one with PSH, is the last.
        if self.pushed || !self.data.is_multiple_of(self.segment) {
            return None;
        }
        let next = segment(frame)?;
        let follows = next.head == self.head
            && next.seq == self.next
            && next.data <= self.segment
            && self.data + next.data + (HEAD - IPV6_END) <= MAX_PAYLOAD;
        follows.then_some(Self {
            data: self.data + next.data,
            next: self.next.wrapping_add(next.data as u32),
            pushed: next.psh,
            ..*self
        })
    }

    /// Bytes of a segment's frame in front of its data.
    pub(crate) const HEAD_LEN: usize = HEAD;

    /// Length of the IPv6 payload of the whole run.
    pub(crate) fn payload_len(&self) -> usize {
        // At most MAX_PAYLOAD, checked as the run grew.
        self.data + HEAD - IPV6_END
    }

    /// What is left to the receiver of the whole run.
    pub(crate) fn offload(&self) -> OffloadHeader {
        let cut = self.data > self.segment;
        OffloadHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type: if cut { GSO_TCPV6 } else { GSO_NONE },
            hdr_len: if cut { HEAD as u16 } else { 0 },
            gso_size: if cut { self.segment as u16 } else { 0 },
            csum_start: IPV6_END as u16,
            csum_offset: (CHECKSUM - IPV6_END) as u16,
            num_buffers: 0,
        }
    }

    /// Makes the headers of the grown frame those of the whole run.
    pub(crate) fn write_headers(&self, frame: &mut [u8]) {
        let Some(head) = frame.first_chunk_mut::<HEAD>() else {
            return;
        };
        let address = |at: usize| {
            let bytes: [u8; 16] = core::array::from_fn(|i| self.head[at + i]);
            IpAddress::from(Ipv6Address::from(bytes))
        };
        let (src, dst) = (address(ETHERNET_LEN + 8), address(ETHERNET_LEN + 24));
        let payload = self.payload_len();
        let sum = checksum::pseudo_header(&src, &dst, IpProtocol::Tcp, payload as u32);
        head[PAYLOAD_LEN..PAYLOAD_LEN + 2].copy_from_slice(&(payload as u16).to_be_bytes());
        head[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.to_be_bytes());
        if self.pushed {
            head[FLAGS] |= TCP_PSH;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

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
        let run = Run::begin(&frame(u32::MAX, TCP_ACK, 1440)).unwrap();
        assert_eq!(run.offload().gso_type, GSO_NONE);
        let run = run.with(&frame(1439, TCP_ACK, 1440)).unwrap();
        let run = run.with(&frame(2879, TCP_ACK | TCP_PSH, 10)).unwrap();
        let offload = run.offload();
        assert_eq!((offload.gso_type, offload.gso_size), (GSO_TCPV6, 1440));
        assert_eq!((offload.hdr_len, offload.csum_start), (74, 54));
        assert_eq!(run.payload_len(), 20 + 1440 * 2 + 10);
    }

    #[test]
    fn what_does_not_follow_begins_a_frame_of_its_own() {
        let run = Run::begin(&frame(0, TCP_ACK, 1440)).unwrap();
        assert_eq!(run.with(&frame(0, TCP_ACK, 1440)), None, "sent again");
        assert_eq!(run.with(&frame(1440, TCP_ACK, 1441)), None, "longer");
        assert_eq!(run.with(&frame(1440, TCP_ACK | 1, 100)), None, "FIN");
        assert_eq!(run.with(&frame(1440, TCP_ACK, 0)), None, "no data");
        for field in [0, 30, IPV6_END, IPV6_END + 8, IPV6_END + 14] {
            let mut other = frame(1440, TCP_ACK, 1440);
            other[field] ^= 1;
            assert_eq!(run.with(&other), None, "byte {field} differs");
        }
        let short = run.with(&frame(1440, TCP_ACK, 100)).unwrap();
        assert_eq!(
            short.with(&frame(1540, TCP_ACK, 100)),
            None,
            "behind its end"
        );
        let pushed = Run::begin(&frame(0, TCP_ACK | TCP_PSH, 1440)).unwrap();
        assert_eq!(pushed.with(&frame(1440, TCP_ACK, 1440)), None, "pushed");
    }

    #[test]
    fn a_run_is_never_longer_than_a_packet() {
        let mut run = Run::begin(&frame(0, TCP_ACK, 1440)).unwrap();
        while let Some(longer) = run.with(&frame(run.next, TCP_ACK, 1440)) {
            run = longer;
        }
        assert_eq!(run.payload_len(), 20 + 45 * 1440);
        // As long as a packet may be, and with its header longer than what Linux
        // passes on whole.
        let mut run = Run::begin(&frame(0, TCP_ACK, 1455)).unwrap();
        while let Some(longer) = run.with(&frame(run.next, TCP_ACK, 1455)) {
            run = longer;
        }
        assert_eq!(run.payload_len(), 20 + 44 * 1455);
    }
}
