//! What the kernel does to a frame that leaves something undone when the interface it
//! goes to does not take that: cutting it into segments, finishing its checksum.
//!
//! A model of Linux's software segmentation for TCP and UDP, written from the standards
//! (virtio 1.2, 5.1.6.2; RFC 9293; RFC 791): only whole, plain frames come out.

use shm_link::offload::{
    FLAG_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, OffloadHeader,
};

const ETHERNET: usize = 14;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// The ones' complement sum of 16-bit words, not folded.
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let mut sum = 0;
    for word in words.by_ref() {
        sum += u64::from(u16::from_be_bytes([word[0], word[1]]));
    }
    match words.remainder() {
        [last] => sum + (u64::from(*last) << 8),
        _ => sum,
    }
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Finishes the checksum that begins at `start` and stands `offset` behind it; the
/// pseudo header's part stands there already.
fn finish_checksum(frame: &mut [u8], start: usize, offset: usize) -> Option<()> {
    let checksum = !fold(sum(frame.get(start..)?));
    // Zero means "none" in UDP, and is the same number.
    let checksum = if checksum == 0 { 0xffff } else { checksum };
    let place = frame.get_mut(start + offset..start + offset + 2)?;
    place.copy_from_slice(&checksum.to_be_bytes());
    Some(())
}

/// Makes plain frames of one that is not. `None`: it contradicts itself, and the
/// kernel would not have taken it.
pub(crate) fn complete(offload: OffloadHeader, mut frame: Vec<u8>) -> Option<Vec<Vec<u8>>> {
    let (start, offset) = (offload.csum_start.into(), offload.csum_offset.into());
    match offload.gso_type & !GSO_ECN {
        GSO_NONE => {
            if offload.flags & FLAG_NEEDS_CSUM != 0 {
                finish_checksum(&mut frame, start, offset)?;
            }
            Some(vec![frame])
        }
        kind @ (GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4) => cut(kind, offload, &frame),
        _ => None,
    }
}

fn cut(kind: u8, offload: OffloadHeader, frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let start = usize::from(offload.csum_start);
    let udp = kind == GSO_UDP_L4;
    let (header_len, checksum) = match udp {
        true => (8, 6),
        false => (usize::from(*frame.get(start + 12)? >> 4) * 4, 16),
    };
    let data = start + header_len;
    let segment = usize::from(offload.gso_size);
    let ipv4 = match (kind, word(frame, 12)?) {
        (GSO_TCPV4 | GSO_UDP_L4, 0x0800) => true,
        (GSO_TCPV6 | GSO_UDP_L4, 0x86dd) => false,
        _ => return None,
    };
    if start < ETHERNET + 20 || data > frame.len() || segment == 0 {
        return None;
    }
    let total = frame.len() - start;
    let pseudo = word(frame, start + checksum)?;
    let count = (frame.len() - data).div_ceil(segment).max(1);
    let mut segments = Vec::with_capacity(count);
    for index in 0..count {
        let from = data + index * segment;
        let to = (from + segment).min(frame.len());
        let mut part = frame[..data].to_vec();
        part.extend_from_slice(&frame[from..to]);
        let len = u16::try_from(part.len() - start).ok()?;
        if ipv4 {
            let id = word(frame, ETHERNET + 4)?.wrapping_add(index as u16);
            let packet = u16::try_from(part.len() - ETHERNET).ok()?;
            part[ETHERNET + 2..ETHERNET + 4].copy_from_slice(&packet.to_be_bytes());
            part[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&id.to_be_bytes());
            part[ETHERNET + 10..ETHERNET + 12].fill(0);
            let header = !fold(sum(&part[ETHERNET..start]));
            part[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&header.to_be_bytes());
        } else {
            let payload = u16::try_from(part.len() - ETHERNET - 40).ok()?;
            part[ETHERNET + 4..ETHERNET + 6].copy_from_slice(&payload.to_be_bytes());
        }
        if udp {
            part[start + 4..start + 6].copy_from_slice(&len.to_be_bytes());
        } else {
            let first = u32::from_be_bytes(frame.get(start + 4..start + 8)?.try_into().ok()?);
            // Less than 2^16 bytes.
            let seq = first.wrapping_add((from - data) as u32);
            part[start + 4..start + 8].copy_from_slice(&seq.to_be_bytes());
            if index + 1 < count {
                part[start + 13] &= !(FIN | PSH);
            }
            if index > 0 {
                part[start + 13] &= !CWR;
            }
        }
        // The pseudo header was summed with the whole length.
        let sum = u64::from(pseudo) + u64::from(!(total as u16)) + u64::from(len);
        part[start + checksum..start + checksum + 2].copy_from_slice(&fold(sum).to_be_bytes());
        finish_checksum(&mut part, start, checksum)?;
        segments.push(part);
    }
    Some(segments)
}
