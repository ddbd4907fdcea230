//! What happened to every frame, by name.
//!
//! Each received frame ends in exactly one of the `rx_*` endings, so that
//! `rx_frames` is their sum ([`Counters::rx_ledger`]); the tests hold the stack
//! to it.

/// Counts since the stack was made. Reading them costs a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Frames taken from the link.
    pub rx_frames: u64,
    /// … given to a handler that said Handled.
    pub rx_handled: u64,
    /// … that belonged to a TCP connection, a handshake or TIME-WAIT.
    pub rx_tcp: u64,
    /// … given to a UDP socket.
    pub rx_udp: u64,
    /// … given to the application's own sockets and to smoltcp's ARP, ND and
    /// ICMP.
    pub rx_default: u64,
    /// … kept as a fragment of a packet.
    pub rx_fragment: u64,
    /// … dropped: an EtherType that nobody handles.
    pub rx_unknown: u64,
    /// … dropped: not for our MAC address.
    pub rx_not_ours: u64,
    /// … dropped: headers that do not fit the frame, or a wrong checksum.
    pub rx_malformed: u64,
    /// … dropped: the protocol is switched off.
    pub rx_protocol_off: u64,
    /// … dropped: an offload header that does not fit, or was not negotiated.
    pub rx_bad_offload: u64,
    /// … dropped: from or to an address that cannot be answered (TCP to or from
    /// a broadcast address, anything that nobody wants and is not for us).
    pub rx_bad_address: u64,
    /// … dropped: a SYN, or the last ACK of a handshake, for a full backlog.
    pub rx_backlog_full: u64,
    /// … dropped: a UDP socket's queue was full.
    pub rx_udp_full: u64,
    /// … dropped: nobody wanted it and the reply limit was reached.
    pub rx_reply_limited: u64,
    /// … dropped: the carrier was off.
    pub rx_no_carrier: u64,

    /// Frames given to the link.
    pub tx_frames: u64,
    /// Frames dropped because the link was gone or the carrier off.
    pub tx_dropped: u64,
    /// Frames dropped because the link had less room than it promised, or can
    /// never carry a frame of that length.
    pub tx_no_room: u64,
    /// Datagrams dropped because no neighbour had their next hop's address.
    pub tx_no_neighbour: u64,

    /// Sockets that egress looked at. It grows with the work done, not with
    /// the number of connections: the measure of the flow table.
    pub flows_polled: u64,
    /// Connections that were accepted from the wire (handshake complete).
    pub tcp_established: u64,
    /// Acknowledgements that loss recovery showed to sockets to make them
    /// resend, five for each segment; none without losses.
    pub tcp_recovery_acks: u64,
    /// Resets and SYNs that were not believed and answered with what was received
    /// (RFC 5961).
    pub tcp_challenges: u64,
    /// Reports of a router that a segment was too long for it, which were believed.
    pub tcp_paths_narrowed: u64,
    /// The same of datagrams.
    pub udp_paths_narrowed: u64,
    /// SYNs that were answered with a cookie, for want of a place for their handshake.
    pub tcp_cookies_sent: u64,
    /// Handshakes that were completed by a cookie that came back.
    pub tcp_cookies_taken: u64,
    /// Handshakes that were forgotten because they took too long.
    pub tcp_half_open_expired: u64,
}

impl Counters {
    /// The sum of all endings of a received frame; equal to `rx_frames`.
    pub const fn rx_ledger(&self) -> u64 {
        self.rx_handled
            + self.rx_tcp
            + self.rx_udp
            + self.rx_default
            + self.rx_fragment
            + self.rx_unknown
            + self.rx_not_ours
            + self.rx_malformed
            + self.rx_protocol_off
            + self.rx_bad_offload
            + self.rx_bad_address
            + self.rx_backlog_full
            + self.rx_udp_full
            + self.rx_reply_limited
            + self.rx_no_carrier
    }
}
