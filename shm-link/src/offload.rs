//! The offload header that travels in front of every frame.
//!
//! It has the fields and the layout of `struct virtio_net_hdr_v1` (virtio 1.2,
//! section 5.1.6), so a TAP opened with `IFF_VNET_HDR` and a header size of 12
//! reads and writes it as it stands in the ring. Where no offload is
//! negotiated it is all zero.

use crate::fault::PeerFault;

/// Length of the header on the wire, in bytes.
pub const OFFLOAD_HEADER_LEN: usize = 12;

/// `flags`: the checksum from `csum_start` on is to be finished by the receiver
/// of the header (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
pub const FLAG_NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum was already verified (`VIRTIO_NET_HDR_F_DATA_VALID`).
pub const FLAG_DATA_VALID: u8 = 2;

/// `gso_type`: an ordinary frame.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: a TCP over IPv4 super-frame.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: a TCP over IPv6 super-frame.
pub const GSO_TCPV6: u8 = 4;
/// `gso_type`: a UDP super-frame (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `gso_type` bit: the TCP segment carries ECN's CWR.
pub const GSO_ECN: u8 = 0x80;

/// Most datagrams of a UDP super-frame, as Linux has it for senders
/// (`UDP_MAX_SEGMENTS`, of which newer ones have twice as many). Without a bound one
/// frame of 64 KB could cost its receiver the work of tens of thousands.
pub const MAX_UDP_SEGMENTS: usize = 64;

/// What is left to do for a frame: finish a checksum, cut it into segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OffloadHeader {
    /// `FLAG_*` bits.
    pub flags: u8,
    /// One of `GSO_*`, perhaps with [`GSO_ECN`].
    pub gso_type: u8,
    /// Bytes of Ethernet, IP and transport header in front of the payload, or
    /// more: Linux writes how much of the frame lies in one piece, up to all of
    /// it. So it is a hint (virtio 1.2, 5.1.6.2).
    pub hdr_len: u16,
    /// Payload bytes per segment (the MSS), when `gso_type` is not [`GSO_NONE`].
    pub gso_size: u16,
    /// Offset in the frame at which the checksum begins to cover.
    pub csum_start: u16,
    /// Offset behind `csum_start` at which the checksum is stored.
    pub csum_offset: u16,
    /// Always zero here: frames are never merged from several buffers.
    pub num_buffers: u16,
}

impl OffloadHeader {
    /// The header of a frame that is complete as it stands.
    pub const NONE: Self = Self {
        flags: 0,
        gso_type: 0,
        hdr_len: 0,
        gso_size: 0,
        csum_start: 0,
        csum_offset: 0,
        num_buffers: 0,
    };

    /// Whether the frame is complete as it stands: no checksum to finish and
    /// nothing to cut.
    pub const fn is_plain(&self) -> bool {
        self.flags & FLAG_NEEDS_CSUM == 0 && self.gso_type == GSO_NONE
    }

    /// The header as it stands in front of a frame (little endian).
    pub const fn to_bytes(self) -> [u8; OFFLOAD_HEADER_LEN] {
        let [a, b] = self.hdr_len.to_le_bytes();
        let [c, d] = self.gso_size.to_le_bytes();
        let [e, f] = self.csum_start.to_le_bytes();
        let [g, h] = self.csum_offset.to_le_bytes();
        let [i, j] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h, i, j]
    }

    /// Reads a header. Any bytes are a header; [`check`](Self::check) says
    /// whether it fits its frame.
    pub const fn from_bytes(b: [u8; OFFLOAD_HEADER_LEN]) -> Self {
        Self {
            flags: b[0],
            gso_type: b[1],
            hdr_len: u16::from_le_bytes([b[2], b[3]]),
            gso_size: u16::from_le_bytes([b[4], b[5]]),
            csum_start: u16::from_le_bytes([b[6], b[7]]),
            csum_offset: u16::from_le_bytes([b[8], b[9]]),
            num_buffers: u16::from_le_bytes([b[10], b[11]]),
        }
    }

    /// Checks that every offset lies inside a frame of `frame_len` bytes and
    /// that nothing but the `allowed` offloads is asked for.
    ///
    /// # Errors
    /// [`PeerFault::Offload`] if not.
    pub fn check(&self, frame_len: usize, allowed: Offloads) -> Result<(), PeerFault> {
        let fault = Err(PeerFault::Offload);
        if self.flags & !(FLAG_NEEDS_CSUM | FLAG_DATA_VALID) != 0 || self.num_buffers != 0 {
            return fault;
        }
        if self.flags & FLAG_NEEDS_CSUM != 0 {
            let end = self.csum_start as usize + self.csum_offset as usize + 2;
            if !allowed.contains(Offloads::CHECKSUM) || end > frame_len {
                return fault;
            }
        }
        let needed = match self.gso_type & !GSO_ECN {
            GSO_NONE if self.gso_type == GSO_NONE => return Ok(()),
            GSO_TCPV4 => Offloads::TSO4,
            GSO_TCPV6 => Offloads::TSO6,
            GSO_UDP_L4 if self.gso_type == GSO_UDP_L4 => Offloads::USO,
            _ => return fault,
        };
        let hdr_len = self.hdr_len as usize;
        if needed == Offloads::USO {
            let head = self.csum_start as usize + 8;
            let most = MAX_UDP_SEGMENTS * self.gso_size as usize;
            if frame_len.saturating_sub(head) > most {
                return fault;
            }
        }
        if !allowed.contains(needed)
            || self.flags & FLAG_NEEDS_CSUM == 0
            || self.gso_size == 0
            || hdr_len == 0
            || hdr_len > frame_len
        {
            return fault;
        }
        Ok(())
    }
}

/// A set of offloads that one direction of a link may use, as negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Offloads(u32);

impl Offloads {
    /// No offload: every frame is complete.
    pub const NONE: Self = Self(0);
    /// Frames may carry an unfinished TCP or UDP checksum.
    pub const CHECKSUM: Self = Self(1);
    /// Frames may be TCP over IPv4 super-frames.
    pub const TSO4: Self = Self(2);
    /// Frames may be TCP over IPv6 super-frames.
    pub const TSO6: Self = Self(4);
    /// Frames may be UDP super-frames.
    pub const USO: Self = Self(8);
    /// All kinds of super-frames.
    pub const SEGMENTATION: Self = Self::TSO4.union(Self::TSO6).union(Self::USO);

    /// The set as bits; bits without a name here are kept.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// A set from its bits; unknown bits are representable and never offered.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Whether all of `other` is in the set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The offloads in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The offloads in either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_super_frame_that_linux_holds_in_one_piece_is_accepted() {
        let all = Offloads::CHECKSUM.union(Offloads::TSO4);
        let header = |hdr_len| OffloadHeader {
            flags: FLAG_NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            hdr_len,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        };
        assert_eq!(header(54).check(1517, all), Ok(()));
        assert_eq!(header(1517).check(1517, all), Ok(()));
        assert_eq!(header(1518).check(1517, all), Err(PeerFault::Offload));
        assert_eq!(header(0).check(1517, all), Err(PeerFault::Offload));
    }
}
