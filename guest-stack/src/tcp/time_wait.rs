//! TIME-WAIT without a socket: what is left of a connection whose last segment
//! may have been lost. The buffers are gone; what remains answers the peer's
//! last segment again and keeps the ports from being used for something else.
//!
//! | arrives | condition | verdict |
//! | --- | --- | --- |
//! | RST | | `Ignore` (RFC 1337: it must not cut TIME-WAIT short) |
//! | SYN | begins behind what was received | `Renew`: a new connection may begin (RFC 9293, 3.6.1) |
//! | SYN | else | `Answer` with an ACK (RFC 5961, 4) |
//! | data or FIN | | `Answer` with an ACK and wait from the start |
//! | a bare ACK | | `Ignore` |
//! | the timer | | the entry is gone |

use smoltcp::time::Instant;
use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

use super::segment::Segment;
use crate::classify::{TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, TcpHeader};
use crate::device::SentTcp;
use crate::flow::FlowKey;

/// What a segment means for a connection in TIME-WAIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Ignore,
    Answer,
    Renew,
}

/// A connection in TIME-WAIT.
#[derive(Debug)]
pub(crate) struct TimeWait {
    pub(crate) key: FlowKey,
    pub(crate) sent: SentTcp,
    pub(crate) hop_limit: u8,
    /// The window is closed for ever; a peer that still sends sees zero.
    pub(crate) expires_at: Instant,
}

impl TimeWait {
    #[cfg(test)]
    pub(crate) fn for_test(key: FlowKey) -> Self {
        Self {
            key,
            sent: SentTcp {
                snd_nxt: 1000,
                rcv_nxt: 2000,
            },
            hop_limit: 64,
            expires_at: Instant::ZERO,
        }
    }

    /// What an arriving segment of this connection means.
    pub(crate) fn judge(&self, tcp: &TcpHeader) -> Verdict {
        if tcp.flags & TCP_RST != 0 {
            return Verdict::Ignore;
        }
        if tcp.flags & TCP_SYN != 0 {
            let ahead = tcp.seq.wrapping_sub(self.sent.rcv_nxt);
            let begins = tcp.flags & TCP_ACK == 0 && ahead != 0 && ahead < 1 << 31;
            return if begins {
                Verdict::Renew
            } else {
                Verdict::Answer
            };
        }
        if tcp.flags & TCP_FIN != 0 || tcp.data_len != 0 {
            return Verdict::Answer;
        }
        Verdict::Ignore
    }

    /// The ACK that says how far everything was received.
    pub(crate) fn ack(&self) -> Segment {
        Segment {
            src: self.key.local.addr,
            dst: self.key.remote.addr,
            hop_limit: self.hop_limit.max(1),
            tcp: TcpRepr {
                src_port: self.key.local.port,
                dst_port: self.key.remote.port,
                control: TcpControl::None,
                seq_number: TcpSeqNumber(self.sent.snd_nxt as i32),
                ack_number: Some(TcpSeqNumber(self.sent.rcv_nxt as i32)),
                window_len: 0,
                window_scale: None,
                max_seg_size: None,
                sack_permitted: false,
                sack_ranges: [None; 3],
                timestamp: None,
                payload: &[],
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smoltcp::wire::{IpAddress, IpEndpoint};

    #[test]
    fn every_row_of_the_table_holds() {
        let time_wait = TimeWait::for_test(FlowKey {
            local: IpEndpoint::new(IpAddress::v4(10, 0, 0, 1), 80),
            remote: IpEndpoint::new(IpAddress::v4(10, 0, 0, 2), 4000),
        });
        let judge = |flags, seq, data_len| {
            time_wait.judge(&TcpHeader {
                src_port: 4000,
                dst_port: 80,
                seq,
                ack: 1000,
                flags,
                window: 1000,
                data_len,
            })
        };
        assert_eq!(judge(TCP_RST, 2000, 0), Verdict::Ignore);
        assert_eq!(judge(TCP_SYN, 2001, 0), Verdict::Renew);
        assert_eq!(judge(TCP_SYN | TCP_ACK, 2001, 0), Verdict::Answer);
        assert_eq!(judge(TCP_SYN, 2000, 0), Verdict::Answer);
        assert_eq!(judge(TCP_SYN, 1999, 0), Verdict::Answer);
        assert_eq!(judge(TCP_FIN | TCP_ACK, 1999, 0), Verdict::Answer);
        assert_eq!(judge(TCP_ACK, 1990, 10), Verdict::Answer);
        assert_eq!(judge(TCP_ACK, 2000, 0), Verdict::Ignore);
    }
}
