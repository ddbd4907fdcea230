//! A handshake under way, begun by a SYN from the wire: a record of what the
//! SYN said, and no socket. Its owner sends the SYN|ACK, repeats it, and makes
//! the socket when the handshake completes.
//!
//! | arrives              | condition                       | verdict |
//! | ---                  | ---                             | --- |
//! | SYN                  | same sequence number            | `Repeat` the SYN\|ACK |
//! | SYN                  | another one: the peer began anew | `Replace` by a new record |
//! | RST                  | in sequence                     | `Forget` |
//! | RST                  | anything else                   | `Ignore` |
//! | no SYN, no ACK       |                                 | `Ignore` |
//! | ACK                  | acknowledges another number     | `Reset` (RFC 9293, 3.10.7.4) |
//! | ACK                  | outside the window              | `Repeat` |
//! | ACK, also with data or FIN | acknowledges our SYN      | `Complete` |
//! | the timer            | before the entry expires        | repeats, then doubles the wait |
//! | the timer            | after                           | forgotten without a word |

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use super::cookie::Remembered;
use super::options::{TcpOptions, buffer_len, window_shift};
use super::segment::Segment;
use crate::classify::{TCP_ACK, TCP_RST, TCP_SYN, TcpHeader};
use crate::flow::{FlowKey, Handle};

/// How long a peer that has answered waits for room. Its repetitions are up to a minute
/// apart by then.
const ANSWERED: Duration = Duration::from_secs(150);

/// Wait before the SYN|ACK is repeated for the first time (RFC 6298).
const FIRST_REPEAT: Duration = Duration::from_millis(1000);

/// What a segment means for a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Repeat,
    Replace,
    Forget,
    Reset,
    Complete,
    Ignore,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// The listener, unless only an accept callback is there.
    pub(crate) listener: Option<Handle>,
    pub(crate) options: TcpOptions,
}

/// A handshake under way.
#[derive(Debug)]
pub(crate) struct HalfOpen {
    pub(crate) key: FlowKey,
    /// Where the SYN came from; answers go there.
    pub(crate) mac: [u8; 6],
    /// The listener whose backlog this counts against.
    pub(crate) listener: Option<Handle>,
    /// Our initial sequence number.
    pub(crate) isn: u32,
    /// The peer's.
    pub(crate) irs: u32,
    peer_window: u16,
    peer_mss: Option<u16>,
    peer_shift: Option<u8>,
    peer_sack: bool,
    pub(crate) options: TcpOptions,
    /// When the SYN|ACK was sent, if it was sent once: Karn's rule.
    answered_at: Option<Instant>,
    pub(crate) repeat_at: Instant,
    repeat_after: Duration,
    pub(crate) expires_at: Instant,
    /// The peer has said nothing to our answer for a second.
    pub(crate) silent: bool,
    /// The peer answered, and there was no room for the connection.
    pub(crate) answered: bool,
    /// The window field of that answer.
    answer_window: u16,
    /// It stands in its listener's row of those that wait for room.
    pub(crate) in_row: bool,
}

impl HalfOpen {
    /// The record of a SYN that arrived now.
    pub(crate) fn new(
        key: FlowKey,
        mac: [u8; 6],
        target: Target,
        isn: u32,
        syn: &TcpRepr<'_>,
        now: Instant,
        timeout: Duration,
    ) -> Self {
        Self {
            key,
            mac,
            listener: target.listener,
            isn,
            irs: syn.seq_number.0 as u32,
            peer_window: syn.window_len,
            peer_mss: syn.max_seg_size,
            peer_shift: syn.window_scale,
            peer_sack: syn.sack_permitted,
            options: target.options,
            answered_at: Some(now),
            repeat_at: now + FIRST_REPEAT,
            repeat_after: FIRST_REPEAT,
            expires_at: now + timeout,
            silent: false,
            answered: false,
            answer_window: 0,
            in_row: false,
        }
    }

    /// The record of a SYN that was answered with a cookie, made anew from the ACK
    /// that brought it back, with the window that this says.
    pub(crate) fn remembered(
        key: FlowKey,
        mac: [u8; 6],
        target: Target,
        [isn, irs]: [u32; 2],
        syn: Remembered,
        window: u16,
        now: Instant,
    ) -> Self {
        let window = u32::from(window) << syn.shift.unwrap_or(0);
        Self {
            key,
            mac,
            listener: target.listener,
            isn,
            irs,
            // Never scaled in a SYN (RFC 7323, 2.2).
            peer_window: window.min(65_535) as u16,
            peer_mss: Some(syn.mss),
            peer_shift: syn.shift,
            peer_sack: syn.sack,
            options: target.options,
            answered_at: None,
            repeat_at: now + FIRST_REPEAT,
            repeat_after: FIRST_REPEAT,
            expires_at: now + FIRST_REPEAT,
            silent: false,
            answered: false,
            answer_window: 0,
            in_row: false,
        }
    }

    fn rx_buffer(&self) -> usize {
        buffer_len(self.options.rx_buffer_bytes)
    }

    /// What an arriving segment of this connection means.
    pub(crate) fn judge(&self, tcp: &TcpHeader) -> Verdict {
        let offset = tcp.seq.wrapping_sub(self.irs.wrapping_add(1)) as usize;
        let in_window = offset < self.rx_buffer().min(65_535);
        if tcp.flags & TCP_RST != 0 {
            // RFC 5961, 3.2: only at exactly the next sequence number.
            return if offset == 0 {
                Verdict::Forget
            } else {
                Verdict::Ignore
            };
        }
        match (tcp.flags & TCP_SYN != 0, tcp.flags & TCP_ACK != 0) {
            (true, false) if tcp.seq == self.irs => Verdict::Repeat,
            (true, false) => Verdict::Replace,
            (false, false) => Verdict::Ignore,
            (_, true) if tcp.ack != self.isn.wrapping_add(1) => Verdict::Reset,
            (true, true) => Verdict::Ignore,
            (false, true) if !in_window => Verdict::Repeat,
            (false, true) => Verdict::Complete,
        }
    }

    /// The timer came: whether to send the SYN|ACK again. If not, the entry has
    /// expired.
    pub(crate) fn repeat(&mut self, now: Instant) -> bool {
        if now >= self.expires_at {
            return false;
        }
        self.sent_again();
        self.silent = !self.answered;
        self.repeat_after *= 2;
        self.repeat_at = now + self.repeat_after;
        true
    }

    /// The SYN|ACK is sent once more.
    pub(crate) fn sent_again(&mut self) {
        self.answered_at = None;
    }

    /// How long the ACK that arrived now was on its way after the SYN|ACK, where that can
    /// be told.
    pub(crate) fn round_trip(&self, now: Instant) -> Option<Duration> {
        self.answered_at.map(|at| now - at)
    }

    /// The peer answered, and there is no room for its connection: it is given time, since
    /// it believes itself connected. Whether it had been silent.
    pub(crate) fn wait_for_room(&mut self, now: Instant, window: u16) -> bool {
        self.answer_window = window;
        if !self.answered {
            self.answered = true;
            // The next ACK answers nothing of ours.
            self.sent_again();
            self.expires_at = now + ANSWERED;
        }
        core::mem::take(&mut self.silent)
    }

    /// When the timer comes.
    pub(crate) fn deadline(&self) -> Instant {
        self.repeat_at.min(self.expires_at)
    }

    /// Our answer to the SYN, exactly as the socket will believe to have sent
    /// it. `mtu` is the longest IP packet.
    pub(crate) fn syn_ack(&self, mtu: usize) -> Segment {
        let headers = match self.key.local.addr {
            smoltcp::wire::IpAddress::Ipv4(_) => 40,
            smoltcp::wire::IpAddress::Ipv6(_) => 60,
        };
        let rx_buffer = self.rx_buffer();
        self.segment(
            self.key,
            TcpRepr {
                src_port: self.key.local.port,
                dst_port: self.key.remote.port,
                control: TcpControl::Syn,
                seq_number: TcpSeqNumber(self.isn as i32),
                ack_number: Some(TcpSeqNumber(self.irs.wrapping_add(1) as i32)),
                // Never scaled in a SYN (RFC 7323, 2.2).
                window_len: rx_buffer.min(65_535) as u16,
                window_scale: self.peer_shift.map(|_| window_shift(rx_buffer)),
                // An IP packet is at most 65,535 bytes.
                max_seg_size: Some(mtu.saturating_sub(headers).min(65_535) as u16),
                sack_permitted: self.peer_sack,
                sack_ranges: [None; 3],
                timestamp: None,
                payload: &[],
            },
        )
    }

    /// The SYN, as the new socket is shown it.
    pub(crate) fn syn(&self) -> Segment {
        let reversed = FlowKey {
            local: self.key.remote,
            remote: self.key.local,
        };
        self.segment(
            reversed,
            TcpRepr {
                src_port: self.key.remote.port,
                dst_port: self.key.local.port,
                control: TcpControl::Syn,
                seq_number: TcpSeqNumber(self.irs as i32),
                ack_number: None,
                window_len: self.peer_window,
                window_scale: self.peer_shift,
                max_seg_size: self.peer_mss,
                sack_permitted: self.peer_sack,
                sack_ranges: [None; 3],
                timestamp: None,
                payload: &[],
            },
        )
    }

    /// The peer's answer once more, without the data that may have come with it: those were
    /// not taken, and come again.
    pub(crate) fn answer(&self) -> Segment {
        let mut answer = self.syn();
        answer.tcp.control = TcpControl::None;
        answer.tcp.seq_number = TcpSeqNumber(self.irs.wrapping_add(1) as i32);
        answer.tcp.ack_number = Some(TcpSeqNumber(self.isn.wrapping_add(1) as i32));
        answer.tcp.window_len = self.answer_window;
        (answer.tcp.window_scale, answer.tcp.max_seg_size) = (None, None);
        answer.tcp.sack_permitted = false;
        answer
    }

    fn segment(&self, key: FlowKey, tcp: TcpRepr<'static>) -> Segment {
        Segment {
            src: key.local.addr,
            dst: key.remote.addr,
            hop_limit: self.options.hop_limit.max(1),
            tcp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::TCP_FIN;
    use smoltcp::wire::{IpAddress, IpEndpoint};

    fn half_open() -> HalfOpen {
        let key = FlowKey {
            local: IpEndpoint::new(IpAddress::v4(10, 0, 0, 1), 80),
            remote: IpEndpoint::new(IpAddress::v4(10, 0, 0, 2), 4000),
        };
        let syn = TcpRepr {
            src_port: 4000,
            dst_port: 80,
            control: TcpControl::Syn,
            seq_number: TcpSeqNumber(-1),
            ack_number: None,
            window_len: 1000,
            window_scale: Some(7),
            max_seg_size: Some(1460),
            sack_permitted: true,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let target = Target {
            listener: None,
            options: TcpOptions::default(),
        };
        let timeout = Duration::from_secs(15);
        HalfOpen::new(key, [2; 6], target, 500, &syn, Instant::ZERO, timeout)
    }

    fn header(flags: u8, seq: u32, ack: u32) -> TcpHeader {
        TcpHeader {
            src_port: 4000,
            dst_port: 80,
            seq,
            ack,
            flags,
            window: 1000,
            data_len: 0,
        }
    }

    #[test]
    fn every_row_of_the_table_holds() {
        let half_open = half_open();
        // The peer's initial number is 2³² − 1, so the next one is 0.
        let judge = |flags, seq, ack| half_open.judge(&header(flags, seq, ack));
        assert_eq!(judge(TCP_SYN, u32::MAX, 0), Verdict::Repeat);
        assert_eq!(judge(TCP_SYN, 5, 0), Verdict::Replace);
        assert_eq!(judge(TCP_RST, 0, 0), Verdict::Forget);
        assert_eq!(judge(TCP_RST | TCP_ACK, 1, 501), Verdict::Ignore);
        assert_eq!(judge(0, 0, 0), Verdict::Ignore);
        assert_eq!(judge(TCP_ACK, 0, 502), Verdict::Reset);
        assert_eq!(judge(TCP_ACK, u32::MAX, 501), Verdict::Repeat);
        assert_eq!(judge(TCP_ACK | TCP_SYN, 0, 501), Verdict::Ignore);
        assert_eq!(judge(TCP_ACK, 0, 501), Verdict::Complete);
        assert_eq!(judge(TCP_ACK | TCP_FIN, 100, 501), Verdict::Complete);
    }

    #[test]
    fn the_syn_ack_is_repeated_with_doubling_waits_until_the_entry_expires() {
        let mut half_open = half_open();
        let mut sent = alloc::vec![];
        loop {
            let now = half_open.deadline();
            if !half_open.repeat(now) {
                break;
            }
            sent.push(now.secs());
        }
        assert_eq!(sent, [1, 3, 7]);
        assert_eq!(half_open.deadline().secs(), 15);
    }
}
