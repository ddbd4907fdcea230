//! Frames that are sent in parts: what is too long for its path where nobody else cuts it, and
//! of what a socket sends again, that which is lost.
//!
//! `device` decides that a frame goes in parts; each is a segment of its own.

use shm_link::link::FrameTx;
use shm_link::offload::{FLAG_NEEDS_CSUM, GSO_NONE, OffloadHeader, Offloads};
use smoltcp::wire::{
    IPV6_HEADER_LEN, IpAddress, IpProtocol, Ipv4Packet, Ipv6Packet, TcpPacket, TcpSeqNumber,
    checksum,
};

use crate::classify::{ETHERNET_LEN, TCP_FIN, TcpHeader};
use crate::device::TxState;

/// How to send a frame in parts: because it is too long for its path and nobody else cuts it,
/// or because not all of it is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    /// Where in the frame the TCP header begins, and where the data.
    pub(crate) tcp_at: usize,
    pub(crate) data_at: usize,
    /// Data of each.
    pub(crate) most: usize,
    /// How the host cuts what is longer than a segment: the kind, and the data of each.
    pub(crate) cut_by_host: Option<(u8, u16)>,
    /// Some of it was sent before, and only what is lost of that is sent again.
    pub(crate) chosen: Option<TcpHeader>,
}

impl Parts {
    /// The next part of the frame's data, from `at` on; `len`: how much there is.
    pub(crate) fn next(&self, state: &TxState, at: usize, len: usize) -> Option<(usize, usize)> {
        let whole = |from: usize| (from, len.min(from + self.most));
        let Some((tcp, board)) = self.chosen.as_ref().zip(state.board.as_deref()) else {
            return (at < len).then(|| whole(at));
        };
        // Offsets in a frame, which is shorter than 2³².
        let seq = |at: usize| tcp.seq.wrapping_add(at as u32);
        let fresh = board.fresh().wrapping_sub(tcp.seq) as usize;
        if at < fresh {
            let end = seq(len.min(fresh));
            if let Some((from, to)) = board.next(seq(at), end, self.most as u32) {
                let offset = |at: u32| at.wrapping_sub(tcp.seq) as usize;
                return Some((offset(from), offset(to)));
            }
        }
        let at = at.max(fresh);
        // A FIN alone may be what is fresh.
        let fin = at == len && tcp.flags & TCP_FIN != 0;
        (at < len || fin).then(|| whole(at))
    }

    /// All parts are lost before they are sent.
    pub(crate) fn lose(&self, state: &mut TxState, len: usize) {
        let Some(tcp) = &self.chosen else {
            return;
        };
        let mut at = 0;
        while let Some((from, to)) = self.next(state, at, len) {
            state.sent_part(tcp, from, to);
            at = self.behind(to, len);
        }
    }

    /// Where the next part begins behind one that ends at `to`.
    fn behind(&self, to: usize, len: usize) -> usize {
        // Behind the last byte there may be a FIN, which goes with it.
        if to == len { len + 1 } else { to }
    }

    /// What is left to the receiver of a part of so much data.
    fn offload(&self, len: usize, leave_sum: bool) -> OffloadHeader {
        if !leave_sum {
            return OffloadHeader::NONE;
        }
        let cut = self.cut_by_host.filter(|(_, size)| len > (*size).into());
        // No header ends behind the 134th byte of a frame.
        OffloadHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type: cut.map_or(GSO_NONE, |(kind, _)| kind),
            hdr_len: cut.map_or(0, |_| self.data_at as u16),
            gso_size: cut.map_or(0, |(_, size)| size),
            csum_start: self.tcp_at as u16,
            csum_offset: 16,
            num_buffers: 0,
        }
    }

    /// Sends the frame in the scratch room in parts. What finds no room is lost, as frames
    /// may be.
    pub(crate) fn send(&self, tx: &mut dyn FrameTx, state: &mut TxState) {
        let Self {
            tcp_at, data_at, ..
        } = *self;
        let leave_sum = state.offloads.contains(Offloads::CHECKSUM);
        state.run = None;
        let data = state.scratch.len() - data_at;
        let mut at = 0;
        while let Some((from, to)) = self.next(state, at, data) {
            let part = Part {
                tcp_at,
                data_at,
                from,
                to,
            };
            let len = part.frame_len();
            match tx.reserve(len) {
                Ok(Some(room)) if room.len() >= len => {
                    part.write(&state.scratch, &mut room[..len], leave_sum);
                    tx.commit(len, self.offload(to - from, leave_sum));
                    state.frames += 1;
                }
                Ok(_) => {
                    state.no_room += 1;
                    return;
                }
                Err(error) => {
                    state.link_error = Some(error);
                    state.dropped += 1;
                    return;
                }
            }
            if let Some(tcp) = &self.chosen {
                state.sent_part(tcp, from, to);
            }
            at = self.behind(to, data);
        }
    }
}

/// A piece of a TCP segment, as a segment of its own.
#[derive(Debug, Clone, Copy)]
struct Part {
    /// Where in the frame the TCP header begins, and where the data.
    tcp_at: usize,
    data_at: usize,
    /// What of the data it carries: from, to.
    from: usize,
    to: usize,
}

impl Part {
    /// Length of its frame.
    fn frame_len(&self) -> usize {
        self.data_at + self.to - self.from
    }

    /// Writes its frame. `whole` is the frame that is cut; `leave_sum` leaves the
    /// checksum to whoever sends on.
    fn write(&self, whole: &[u8], out: &mut [u8], leave_sum: bool) {
        let Self {
            tcp_at, data_at, ..
        } = *self;
        let (head, data) = whole.split_at(data_at);
        let last = self.to == data.len();
        out[..data_at].copy_from_slice(head);
        out[data_at..].copy_from_slice(&data[self.from..self.to]);
        // No longer than the frame that is cut, which an IP packet holds.
        let (total, segment) = (out.len() - ETHERNET_LEN, out.len() - tcp_at);
        let (src, dst): (IpAddress, IpAddress) = if out[ETHERNET_LEN] >> 4 == 4 {
            let mut ip = Ipv4Packet::new_unchecked(&mut out[ETHERNET_LEN..]);
            ip.set_total_len(total as u16);
            ip.fill_checksum();
            (ip.src_addr().into(), ip.dst_addr().into())
        } else {
            let mut ip = Ipv6Packet::new_unchecked(&mut out[ETHERNET_LEN..]);
            ip.set_payload_len((total - IPV6_HEADER_LEN) as u16);
            (ip.src_addr().into(), ip.dst_addr().into())
        };
        let mut tcp = TcpPacket::new_unchecked(&mut out[tcp_at..]);
        let TcpSeqNumber(first) = tcp.seq_number();
        tcp.set_seq_number(TcpSeqNumber(first.wrapping_add(self.from as i32)));
        tcp.set_fin(tcp.fin() && last);
        tcp.set_psh(tcp.psh() && last);
        if leave_sum {
            let sum = checksum::pseudo_header(&src, &dst, IpProtocol::Tcp, segment as u32);
            tcp.set_checksum(sum);
        } else {
            tcp.fill_checksum(&src, &dst);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::tcp::recovery::Scoreboard;
    use alloc::boxed::Box;
    use alloc::vec;
    use alloc::vec::Vec;
    use etherparse::{PacketBuilder, SlicedPacket};
    use smoltcp::time::{Duration, Instant};

    pub(crate) const US: [u8; 4] = [10, 0, 0, 1];
    pub(crate) const PEER: [u8; 4] = [192, 0, 2, 9];
    pub(crate) const US6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    pub(crate) const PEER6: [u8; 16] = [0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];

    /// A segment of ours.
    pub(crate) fn segment(v6: bool, data: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let tcp = match v6 {
            false => builder.ipv4(US, PEER, 64).tcp(80, 4000, 0xffff_ff00, 1000),
            true => builder
                .ipv6(US6, PEER6, 64)
                .tcp(80, 4000, 0xffff_ff00, 1000),
        };
        let mut frame = Vec::new();
        tcp.ack(7).psh().fin().write(&mut frame, data).unwrap();
        frame
    }

    #[test]
    fn the_parts_of_a_segment_are_segments_that_make_it_up() {
        let data: Vec<u8> = (0..1400u32).map(|n| n as u8).collect();
        for v6 in [false, true] {
            let whole = segment(v6, &data);
            let (tcp_at, data_at) = if v6 { (54, 74) } else { (34, 54) };
            let mut joined = Vec::new();
            for (n, from) in (0..1400).step_by(600).enumerate() {
                let part = Part {
                    tcp_at,
                    data_at,
                    from,
                    to: 1400.min(from + 600),
                };
                let mut frame = vec![0xa5; part.frame_len()];
                part.write(&whole, &mut frame, false);
                let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
                let Some(etherparse::TransportSlice::Tcp(tcp)) = parsed.transport else {
                    panic!("no segment");
                };
                let header = tcp.to_header();
                let seq = 0xffff_ff00u32.wrapping_add(joined.len() as u32);
                assert_eq!(header.sequence_number, seq);
                assert_eq!((header.psh, header.fin), (n == 2, n == 2));
                assert!(header.ack);
                let sum = match parsed.net.unwrap() {
                    etherparse::NetSlice::Ipv4(ip) => {
                        let ip = ip.header().to_header();
                        assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
                        header.calc_checksum_ipv4(&ip, tcp.payload()).unwrap()
                    }
                    etherparse::NetSlice::Ipv6(ip) => header
                        .calc_checksum_ipv6(&ip.header().to_header(), tcp.payload())
                        .unwrap(),
                    etherparse::NetSlice::Arp(_) => panic!("no packet"),
                };
                assert_eq!(header.checksum, sum);
                joined.extend_from_slice(tcp.payload());
            }
            assert_eq!(joined, data);
        }
    }

    /// What goes of a frame with 1,000 bytes and a FIN where nothing from `fresh` on was sent
    /// before, and `hole` is lost.
    fn goes(seq: u32, fresh: u32, hole: (u32, u32)) -> Vec<(usize, usize)> {
        let now = Instant::ZERO;
        let mut board = Scoreboard::new(hole.0);
        board.arrived(now, hole.1, fresh);
        board.judge(now, now, 1, Duration::ZERO, hole.0, true);
        board.begin_turn(now, fresh, u32::MAX);
        board.rewind(fresh);
        let mut state = TxState::new();
        state.board = Some(Box::new(board));
        let tcp = TcpHeader {
            src_port: 80,
            dst_port: 4000,
            seq,
            ack: 7,
            flags: TCP_FIN,
            window: 1000,
            data_len: 1000,
        };
        let parts = Parts {
            tcp_at: 34,
            data_at: 54,
            most: 400,
            cut_by_host: None,
            chosen: Some(tcp),
        };
        let mut gone = Vec::new();
        let mut at = 0;
        while let Some((from, to)) = parts.next(&state, at, 1000) {
            state.sent_part(&tcp, from, to);
            gone.push((from, to));
            at = parts.behind(to, 1000);
        }
        gone
    }

    #[test]
    fn of_what_was_sent_before_only_what_is_lost_goes_again() {
        // Close to where sequence numbers wrap.
        let seq = u32::MAX - 500;
        let at = |offset: i32| seq.wrapping_add_signed(offset);
        let nothing: [(usize, usize); 0] = [];
        assert_eq!(goes(seq, at(3000), (at(-500), at(-100))), nothing);
        assert_eq!(goes(seq, at(3000), (at(-100), at(50))), [(0, 50)]);
        assert_eq!(
            goes(seq, at(3000), (at(100), at(700))),
            [(100, 500), (500, 700)]
        );
        assert_eq!(goes(seq, at(3000), (at(950), at(2000))), [(950, 1000)]);
        // What is new goes in any case, be it the FIN alone.
        assert_eq!(
            goes(seq, at(900), (at(100), at(200))),
            [(100, 200), (900, 1000)]
        );
        assert_eq!(goes(seq, at(1000), (at(-9), at(-1))), [(1000, 1000)]);
        assert_eq!(goes(seq, at(1001), (at(-9), at(-1))), nothing);
    }
}
