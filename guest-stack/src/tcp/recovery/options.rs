//! What the options of a peer's segment say.

use smoltcp::wire::{TcpOption, TcpPacket};

use crate::tally::after;

/// The data that a segment may have to a peer that does not say (RFC 9293, 3.7.1), and less
/// than which smoltcp does not take a peer's word for.
const DEFAULT_MSS: u16 = 536;
const LEAST_MSS: u16 = 48;

/// What a SYN says of its sender.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promises {
    /// By how much it scales the windows that follow (RFC 7323, 2.2).
    pub(crate) shift: Option<u8>,
    /// Whether it will tell what it has behind a hole (RFC 2018).
    pub(crate) selective: bool,
    /// The most data that it takes in a segment (RFC 9293, 3.7.1).
    pub(crate) mss: u16,
}

impl Promises {
    /// Those of this SYN.
    pub(super) fn of(packet: &TcpPacket<&[u8]>) -> Self {
        let (mut shift, mut selective, mut mss) = (None, false, None);
        let mut options = packet.options();
        while let Ok((rest, option)) = TcpOption::parse(options) {
            match option {
                TcpOption::WindowScale(by) => shift = Some(by),
                TcpOption::SackPermitted => selective = true,
                TcpOption::MaxSegmentSize(bytes) => mss = Some(bytes),
                TcpOption::EndOfList => break,
                _ => {}
            }
            if rest.is_empty() {
                break;
            }
            options = rest;
        }
        Self::new(shift, selective, mss)
    }

    /// What these options say, as far as they were there.
    pub(crate) fn new(shift: Option<u8>, selective: bool, mss: Option<u16>) -> Self {
        // smoltcp takes none for nothing said, as Linux does.
        let mss = mss.filter(|bytes| *bytes != 0).unwrap_or(DEFAULT_MSS);
        let mss = mss.max(LEAST_MSS);
        Self {
            shift,
            selective,
            mss,
        }
    }
}

/// Whether a segment says that something below `ack` came twice: in its first block
/// (RFC 2883, 4).
pub(super) fn came_twice(packet: &TcpPacket<&[u8]>, ack: u32) -> bool {
    let blocks = packet.selective_ack_ranges().unwrap_or_default();
    let first = blocks.into_iter().next().flatten();
    first.is_some_and(|(_, right)| !after(right, ack))
}

/// What a segment says has arrived behind `ack`.
pub(super) fn selected(packet: &TcpPacket<&[u8]>, ack: u32) -> impl Iterator<Item = (u32, u32)> {
    let blocks = packet.selective_ack_ranges().unwrap_or_default();
    // A block below `ack` tells of a segment that came twice (RFC 2883).
    let above = move |(left, right): &(u32, u32)| after(*left, ack) && after(*right, *left);
    blocks.into_iter().flatten().filter(above)
}
