//! What segments a socket sent, from one look to the next.
//!
//! `device` counts what smoltcp writes while somebody watches; `tcp::recovery`
//! reads it. It decides nothing.

use crate::classify::{TCP_ACK, TcpHeader};

/// Whether `a` is behind `b` in sequence space.
pub(crate) fn after(a: u32, b: u32) -> bool {
    // The distance, with its sign.
    (a.wrapping_sub(b) as i32) > 0
}

/// The segments that one connection sent during one call of smoltcp or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Tally {
    /// Behind the highest that was ever sent.
    pub(crate) highest: Option<u32>,
    /// What the last segment acknowledged.
    pub(crate) rcv_nxt: Option<u32>,
    /// The end of the window that it announced, or less: scales do not count here.
    pub(crate) window_end: Option<u32>,
    /// Something was sent for the first time.
    pub(crate) is_fresh: bool,
    /// Segments that were sent before.
    pub(crate) resent: u32,
    /// Parts of what was sent before that were chosen, because they were lost.
    pub(crate) chosen: u32,
    /// Where the first of those segments begins.
    pub(crate) resent_from: u32,
    /// The end of the last of both.
    pub(crate) resent_end: u32,
}

impl Tally {
    /// A segment was sent.
    pub(crate) fn segment(&mut self, tcp: &TcpHeader) {
        self.acknowledged(tcp);
        let end = tcp.seq_end();
        if end != tcp.seq && !self.fresh_up_to(end) {
            if self.resent == 0 {
                self.resent_from = tcp.seq;
            }
            self.resent += 1;
            self.resent_end = end;
        }
    }

    /// A segment was made that begins with what was sent before.
    pub(crate) fn fresh(&mut self, tcp: &TcpHeader) {
        self.acknowledged(tcp);
        self.fresh_up_to(tcp.seq_end());
    }

    /// Of what was sent before, a part was chosen, up to `end`.
    pub(crate) fn chosen(&mut self, end: u32) {
        self.chosen += 1;
        self.resent_end = end;
    }

    fn acknowledged(&mut self, tcp: &TcpHeader) {
        if tcp.flags & TCP_ACK != 0 {
            self.rcv_nxt = Some(tcp.ack);
            self.window_end = Some(tcp.ack.wrapping_add(tcp.window.into()));
        }
    }

    /// Whether what ends here was never sent before.
    fn fresh_up_to(&mut self, end: u32) -> bool {
        let fresh = self.highest.is_none_or(|highest| after(end, highest));
        if fresh {
            self.highest = Some(end);
            self.is_fresh = true;
        }
        fresh
    }
}
