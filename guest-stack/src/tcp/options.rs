//! Options of a TCP stream, and the sizes of its buffers.

use smoltcp::socket::tcp;
use smoltcp::time::Duration;

/// Options of a TCP stream. A listener's options go to every stream it
/// accepts; those that are not sizes can be changed on a stream later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpOptions {
    /// Bytes received and not yet read. Default 65,535, range 2,048 to 2³⁰ − 1.
    /// Above 65,535 it is lowered to the next 2ⁿ − 1: see [`buffer_len`].
    /// A link with large receive offload wants 262,143 or more.
    pub rx_buffer_bytes: usize,
    /// Bytes written and not yet acknowledged. Default 65,535, range 2,048 to
    /// 2³⁰ − 1.
    pub tx_buffer_bytes: usize,
    /// Send small segments at once instead of waiting for the acknowledgement
    /// of earlier ones (Nagle's algorithm, RFC 896, off). Default `false`.
    pub nodelay: bool,
    /// Probe an idle connection this often (RFC 9293, 3.8.4), at most once a second.
    /// Default `None`: never. With it, a peer that is silent for four intervals (or
    /// the user timeout, if that is longer) is given up.
    pub keep_alive: Option<Duration>,
    /// Give a connection up when the other end did not answer for this long
    /// though there is something to answer (RFC 5482). Default 10 min. `None`:
    /// never.
    pub user_timeout: Option<Duration>,
    /// Give a connection attempt up after this long. Default 30 s.
    pub connect_timeout: Duration,
    /// Hold acknowledgements back for this long to let data carry them (RFC 9293,
    /// 3.8.6.3). Default `None`: only where the application has lately answered each
    /// single segment within 5 ms, and then for 10 ms at most. Zero: never. A delay
    /// of all of them costs throughput where segments of 64 KB arrive alone.
    pub ack_delay: Option<Duration>,
    /// IPv4 time to live and IPv6 hop limit of what is sent, 1 to 255.
    /// Default 64; 0 counts as 64.
    pub hop_limit: u8,
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self {
            rx_buffer_bytes: 65_535,
            tx_buffer_bytes: 65_535,
            nodelay: false,
            keep_alive: None,
            user_timeout: Some(Duration::from_secs(600)),
            connect_timeout: Duration::from_secs(30),
            ack_delay: None,
            hop_limit: 64,
        }
    }
}

/// The receive buffer that is made for a wish of `wanted` bytes.
///
/// smoltcp computes the window that it believes to have announced in a SYN by
/// shifting a field that is not scaled in a SYN. For a buffer of 2ⁿ − 1 bytes
/// that is never more than the buffer holds; for other sizes above 65,535 a
/// peer could write past the end of it and the stack would panic.
pub fn buffer_len(wanted: usize) -> usize {
    let wanted = wanted.clamp(2048, (1 << 30) - 1);
    if wanted <= 65_535 {
        return wanted;
    }
    // The largest 2ⁿ − 1 that is not above `wanted`.
    let bits = (wanted + 1).ilog2();
    (1usize << bits) - 1
}

/// The window scale that smoltcp announces for a receive buffer of this length.
pub(crate) fn window_shift(buffer_len: usize) -> u8 {
    let bits = usize::BITS - buffer_len.leading_zeros();
    // At most 30 − 16, by `buffer_len`.
    bits.saturating_sub(16) as u8
}

impl TcpOptions {
    /// Lengths of the receive and the transmit buffer that are made.
    pub(crate) fn buffer_lens(&self) -> (usize, usize) {
        let tx = self.tx_buffer_bytes.clamp(2048, (1 << 30) - 1);
        (buffer_len(self.rx_buffer_bytes), tx)
    }

    /// Sets everything but the sizes.
    pub(crate) fn apply(&self, socket: &mut tcp::Socket<'_>) {
        socket.set_nagle_enabled(!self.nodelay);
        socket.set_ack_delay(self.ack_delay);
        socket.set_hop_limit(Some(if self.hop_limit == 0 {
            64
        } else {
            self.hop_limit
        }));
        // smoltcp's own timeout also ends idle connections, and a connection
        // that is closed after a long silence; its keep-alive probe carries a byte,
        // which the peer takes for data if that is what was lost. The flow does both
        // instead.
        socket.set_timeout(None);
    }

    /// How long an established connection may wait for its peer.
    pub(crate) fn patience(&self) -> Option<Duration> {
        match (self.keep_alive, self.user_timeout) {
            (Some(interval), None) => Some(interval * 4),
            (Some(interval), Some(timeout)) => Some(timeout.max(interval * 4)),
            (None, timeout) => timeout,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_is_one_less_than_a_power_of_two() {
        assert_eq!(buffer_len(0), 2048);
        assert_eq!(buffer_len(65_535), 65_535);
        assert_eq!(buffer_len(65_536), 65_535);
        assert_eq!(buffer_len(262_143), 262_143);
        assert_eq!(buffer_len(262_144), 262_143);
        assert_eq!(buffer_len(500_000), 262_143);
        assert_eq!(buffer_len(usize::MAX), (1 << 30) - 1);
    }

    #[test]
    fn the_window_of_a_syn_never_promises_more_than_the_buffer() {
        for bits in 11..=30 {
            let len = buffer_len((1 << bits) - 1);
            let announced = len.min(65_535) << window_shift(len);
            assert!(announced <= len, "{len}");
        }
    }
}
