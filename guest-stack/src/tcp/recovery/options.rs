//! What the options of a peer's segment say.

use smoltcp::wire::{TcpOption, TcpPacket};

use crate::tally::after;

/// By how much the sender of this SYN scales the windows that follow, and whether it will tell
/// what it has behind a hole.
pub(super) fn promises(packet: &TcpPacket<&[u8]>) -> (Option<u8>, bool) {
    let (mut shift, mut selective) = (None, false);
    let mut options = packet.options();
    while let Ok((rest, option)) = TcpOption::parse(options) {
        match option {
            TcpOption::WindowScale(by) => shift = Some(by),
            TcpOption::SackPermitted => selective = true,
            TcpOption::EndOfList => break,
            _ => {}
        }
        if rest.is_empty() {
            break;
        }
        options = rest;
    }
    (shift, selective)
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
