//! ICMP and ICMPv6 echo (RFC 792, RFC 4443 section 4.1), as `ping` does it.
//!
//! A raw socket where the process may have one (root, also in a user
//! namespace of its own), else the kernel's unprivileged ping socket. Each
//! request carries random bytes, and only an answer with exactly these counts.

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use etherparse::{
    IcmpEchoHeader, Icmpv4Header, Icmpv4Slice, Icmpv4Type, Icmpv6Header, Icmpv6Slice, Icmpv6Type,
    Ipv4Slice,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::ProbeError;

/// Bytes behind the ICMP header, as `ping` sends them.
const PAYLOAD_LEN: usize = 56;
/// Room for an answer: the IPv4 header with options, ICMP, the payload. An
/// answer that is longer is cut, and then is not the one that is waited for.
const MAX_ANSWER: usize = 60 + 8 + PAYLOAD_LEN + 1;

/// How the requests were answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PingReport {
    /// Requests sent.
    pub sent: u32,
    /// Requests answered.
    pub received: u32,
    /// Round-trip times of those answered, if any was.
    pub rtt: Option<RoundTrips>,
}

/// Round-trip times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundTrips {
    /// The shortest.
    pub min: Duration,
    /// The median.
    pub median: Duration,
    /// The longest.
    pub max: Duration,
}

/// Sends `count` echo requests to `addr`, one after the other, and waits up to
/// `timeout` for each answer. `scope_id` is the interface's index where `addr`
/// is an IPv6 link-local address, else 0.
///
/// # Errors
/// [`ProbeError`]. A request without an answer is no error.
pub fn ping(
    addr: IpAddr,
    scope_id: u32,
    count: u32,
    timeout: Duration,
) -> Result<PingReport, ProbeError> {
    let doing = format!("pinging {addr}");
    let io = |source| ProbeError::from_io(&doing, timeout, source);
    let socket = EchoSocket::open(addr, scope_id).map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => ProbeError::NoIcmpSocket,
        _ => io(e),
    })?;
    let id = rand::random();
    let mut times = Vec::new();
    for number in 0..count {
        // The sequence number has 16 bits and may wrap.
        let echo = IcmpEchoHeader {
            id,
            seq: number as u16,
        };
        let payload: [u8; PAYLOAD_LEN] = core::array::from_fn(|_| rand::random());
        let start = Instant::now();
        socket.send(echo, &payload).map_err(io)?;
        if socket
            .wait_for(echo, &payload, start, timeout)
            .map_err(io)?
        {
            times.push(start.elapsed());
        }
    }
    times.sort_unstable();
    let rtt = match (times.first(), times.get(times.len() / 2), times.last()) {
        (Some(&min), Some(&median), Some(&max)) => Some(RoundTrips { min, median, max }),
        _ => None,
    };
    Ok(PingReport {
        sent: count,
        received: times.len() as u32,
        rtt,
    })
}

/// An ICMP socket connected to one address.
struct EchoSocket {
    socket: Socket,
    v4: bool,
    /// A raw socket sees the IPv4 header and keeps our id; a ping socket hides
    /// the one and replaces the other.
    raw: bool,
}

impl EchoSocket {
    fn open(addr: IpAddr, scope_id: u32) -> io::Result<Self> {
        let (v4, domain, protocol, to) = match addr {
            IpAddr::V4(ip) => (
                true,
                Domain::IPV4,
                Protocol::ICMPV4,
                SocketAddr::from((ip, 0)),
            ),
            IpAddr::V6(ip) => {
                let to = SocketAddrV6::new(ip, 0, 0, scope_id);
                (false, Domain::IPV6, Protocol::ICMPV6, to.into())
            }
        };
        let (socket, raw) = match Socket::new(domain, Type::RAW, Some(protocol)) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
                (Socket::new(domain, Type::DGRAM, Some(protocol))?, false)
            }
            other => (other?, true),
        };
        // From here on the kernel delivers only what this address sends.
        socket.connect(&to.into())?;
        Ok(Self { socket, v4, raw })
    }

    fn send(&self, echo: IcmpEchoHeader, payload: &[u8]) -> io::Result<()> {
        let mut packet = Vec::with_capacity(8 + payload.len());
        if self.v4 {
            let header = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), payload);
            packet.extend_from_slice(&header.to_bytes());
        } else {
            // The kernel fills in the checksum: it alone knows the source address.
            let header = Icmpv6Header::new(Icmpv6Type::EchoRequest(echo));
            packet.extend_from_slice(&header.to_bytes());
        }
        packet.extend_from_slice(payload);
        self.socket.send(&packet).map(drop)
    }

    /// Whether the answer came before `timeout` after `start`.
    fn wait_for(
        &self,
        echo: IcmpEchoHeader,
        payload: &[u8],
        start: Instant,
        timeout: Duration,
    ) -> io::Result<bool> {
        let mut buf = [0; MAX_ANSWER];
        loop {
            let left = timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Ok(false);
            }
            // Rounded up: less than a microsecond would mean "for ever" to the kernel.
            self.socket
                .set_read_timeout(Some(left.max(Duration::from_micros(1))))?;
            match (&self.socket).read(&mut buf) {
                Ok(len) => {
                    let answer = buf.get(..len).and_then(|packet| self.parse(packet));
                    if answer.is_some_and(|(got, data)| {
                        got.seq == echo.seq && (got.id == echo.id || !self.raw) && data == payload
                    }) {
                        return Ok(true);
                    }
                }
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {}
                    // The neighbour did not answer: nor will the guest.
                    io::ErrorKind::HostUnreachable => return Ok(false),
                    _ => return Err(e),
                },
            }
        }
    }

    /// The echo reply in what a socket received, if it is a sound one.
    fn parse<'a>(&self, packet: &'a [u8]) -> Option<(IcmpEchoHeader, &'a [u8])> {
        if !self.v4 {
            // The kernel has verified the checksum.
            let icmp = Icmpv6Slice::from_slice(packet).ok()?;
            let Icmpv6Type::EchoReply(echo) = icmp.icmp_type() else {
                return None;
            };
            return Some((echo, icmp.payload()));
        }
        let packet = if self.raw {
            Ipv4Slice::from_slice(packet).ok()?.payload().payload
        } else {
            packet
        };
        let icmp = Icmpv4Slice::from_slice(packet).ok()?;
        let Icmpv4Type::EchoReply(echo) = icmp.icmp_type() else {
            return None;
        };
        // Raw sockets are served before the kernel verifies it.
        let sound = icmp.icmp_type().calc_checksum(icmp.payload()) == icmp.checksum();
        sound.then(|| (echo, icmp.payload()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn parse(v4: bool, raw: bool, packet: &[u8]) -> Option<(IcmpEchoHeader, Vec<u8>)> {
        // Any socket will do: parsing does not touch it.
        let socket = Socket::new(Domain::UNIX, Type::DGRAM, None).unwrap();
        let parsed = EchoSocket { socket, v4, raw }.parse(packet);
        parsed.map(|(echo, data)| (echo, data.to_vec()))
    }

    fn reply_v4() -> Vec<u8> {
        let mut packet = Vec::new();
        PacketBuilder::ipv4([10, 0, 0, 2], [10, 0, 0, 1], 64)
            .icmpv4_echo_reply(7, 3)
            .write(&mut packet, b"payload")
            .unwrap();
        packet
    }

    #[test]
    fn an_ipv4_reply_is_found_behind_the_ip_header_or_without_it() {
        let expected = Some((IcmpEchoHeader { id: 7, seq: 3 }, b"payload".to_vec()));
        assert_eq!(parse(true, true, &reply_v4()), expected);
        assert_eq!(parse(true, false, &reply_v4()[20..]), expected);
    }

    #[test]
    fn a_reply_with_a_wrong_checksum_is_no_answer() {
        let mut packet = reply_v4();
        *packet.last_mut().unwrap() ^= 1;
        assert_eq!(parse(true, true, &packet), None);
    }

    #[test]
    fn a_request_or_a_piece_of_a_reply_is_no_answer() {
        let echo = IcmpEchoHeader { id: 7, seq: 3 };
        let v4 = Icmpv4Header::with_checksum(Icmpv4Type::EchoRequest(echo), &[]).to_bytes();
        assert_eq!(parse(true, false, &v4), None);
        let v6 = Icmpv6Header::new(Icmpv6Type::EchoRequest(echo)).to_bytes();
        assert_eq!(parse(false, true, &v6), None);
        for len in 0..28 {
            assert_eq!(parse(true, true, &reply_v4()[..len]), None);
        }
        for len in 0..8 {
            assert_eq!(parse(false, true, &[129; 8][..len]), None);
        }
    }

    #[test]
    fn an_ipv6_reply_is_found() {
        let echo = IcmpEchoHeader { id: 7, seq: 3 };
        let mut packet = Icmpv6Header::new(Icmpv6Type::EchoReply(echo))
            .to_bytes()
            .to_vec();
        packet.extend_from_slice(b"data");
        assert_eq!(parse(false, true, &packet), Some((echo, b"data".to_vec())));
    }
}
