//! UDP super-frames, which the host leaves to the guest to cut (USO).
//!
//! smoltcp takes a TCP segment of any length, but a datagram is what it is. So the
//! datagrams are made one by one, each as a frame of its own, in room that is kept.
//! `ingress` shows them as if they had come alone.

use alloc::vec::Vec;

use smoltcp::wire::Ipv4Packet;

use crate::classify::{Class, ETHERNET_LEN, Kind, Packet, classify};

/// Length of a UDP header, in bytes.
const UDP_LEN: usize = 8;
/// Where the lengths stand that each datagram has its own of.
const TOTAL_LEN: usize = ETHERNET_LEN + 2;
const PAYLOAD_LEN: usize = ETHERNET_LEN + 4;
/// Where an IPv6 header without its extensions ends.
const IPV6_END: usize = ETHERNET_LEN + 40;

/// The datagrams of a super-frame that are yet to come.
pub(crate) struct Datagrams<'f> {
    /// All headers.
    head: &'f [u8],
    ipv4: bool,
    /// Data of all datagrams that are left.
    data: &'f [u8],
    /// Data of each but the last.
    size: usize,
}

impl<'f> Datagrams<'f> {
    /// The datagrams of a frame, of `size` bytes each. `None`: it is no whole UDP packet
    /// with data.
    pub(crate) fn of(frame: &'f [u8], size: usize) -> Option<Self> {
        let Some(Class::Ip(packet)) = classify(frame) else {
            return None;
        };
        let Packet {
            kind: Kind::Udp { .. },
            payload,
            ..
        } = &packet
        else {
            return None;
        };
        let begin = payload.start + UDP_LEN;
        let data = frame.get(begin..payload.end)?;
        (size != 0 && !data.is_empty()).then_some(Self {
            head: frame.get(..begin)?,
            ipv4: packet.is_ipv4(),
            data,
            size,
        })
    }

    /// Writes the next one as a frame, with its checksum unfinished; `false` if there
    /// was none left.
    pub(crate) fn next_into(&mut self, frame: &mut Vec<u8>) -> bool {
        if self.data.is_empty() {
            return false;
        }
        let (data, rest) = self.data.split_at(self.size.min(self.data.len()));
        self.data = rest;
        frame.clear();
        frame.extend_from_slice(self.head);
        frame.extend_from_slice(data);
        let len = frame.len();
        let mut put = |at: usize, value: usize| {
            // No packet of a frame that could be classified is longer than 65,535.
            if let Some(field) = frame.get_mut(at..at + 2) {
                field.copy_from_slice(&(value as u16).to_be_bytes());
            }
        };
        put(self.head.len() - UDP_LEN + 4, UDP_LEN + data.len());
        match self.ipv4 {
            true => put(TOTAL_LEN, len - ETHERNET_LEN),
            false => put(PAYLOAD_LEN, len - IPV6_END),
        }
        if self.ipv4 {
            let packet = frame.get_mut(ETHERNET_LEN..).unwrap_or_default();
            Ipv4Packet::new_unchecked(packet).fill_checksum();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

    fn super_frame(ipv6: bool, data: &[u8]) -> Vec<u8> {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut frame = Vec::new();
        if ipv6 {
            let ip = builder.ipv6([1; 16], [2; 16], 64);
            ip.udp(9, 7).write(&mut frame, data).unwrap();
        } else {
            let ip = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
            ip.udp(9, 7).write(&mut frame, data).unwrap();
        }
        frame
    }

    #[test]
    fn every_datagram_is_a_packet_of_its_own() {
        let data: Vec<u8> = (0..2500).map(|i| i as u8).collect();
        for ipv6 in [false, true] {
            let whole = super_frame(ipv6, &data);
            let mut datagrams = Datagrams::of(&whole, 1000).unwrap();
            let (mut frame, mut got, mut lens) = (Vec::new(), Vec::new(), Vec::new());
            while datagrams.next_into(&mut frame) {
                let parsed = SlicedPacket::from_ethernet(&frame).unwrap();
                let Some(TransportSlice::Udp(udp)) = parsed.transport else {
                    panic!("no datagram");
                };
                assert_eq!((udp.source_port(), udp.destination_port()), (9, 7));
                assert_eq!(usize::from(udp.length()), 8 + udp.payload().len());
                lens.push(udp.payload().len());
                got.extend_from_slice(udp.payload());
                if let Some(NetSlice::Ipv4(ip)) = parsed.net {
                    let header = ip.header().to_header();
                    assert_eq!(header.calc_header_checksum(), header.header_checksum);
                }
            }
            assert_eq!(lens, [1000, 1000, 500]);
            assert!(got == data);
        }
    }

    #[test]
    fn what_is_no_datagram_is_not_cut() {
        let whole = super_frame(false, &[1; 100]);
        assert!(Datagrams::of(&whole, 0).is_none());
        assert!(Datagrams::of(&whole[..60], 10).is_none(), "cut short");
        assert!(Datagrams::of(&super_frame(true, &[]), 10).is_none());
        let mut other = whole;
        other[23] = 6;
        assert!(Datagrams::of(&other, 10).is_none(), "TCP");
        assert!(Datagrams::of(&[0; 80], 10).is_none());
    }
}
