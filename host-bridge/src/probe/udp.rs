//! Datagrams of several sizes sent to the guest's echo service, and back.
//!
//! Datagrams may get lost, so each is sent again a few times before it counts
//! as failed; how often that was needed is in the report. On a link without
//! loss it is never.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::ProbeError;
use super::pattern::Pattern;

/// The guest's echo service (RFC 862).
pub const ECHO_PORT: u16 = 7;

/// How often a datagram is sent at most.
const ATTEMPTS: u32 = 5;
/// Largest UDP payload there is, and so the largest answer.
const MAX_PAYLOAD: usize = 65_507;

/// How the datagrams fared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpReport {
    /// Sizes that came back unchanged.
    pub echoed: usize,
    /// Datagrams that had to be sent again.
    pub retries: u32,
    /// Answers of the right length with wrong bytes in them.
    pub corrupted: u32,
    /// Sizes, in bytes of payload, that never came back.
    pub missing: Vec<usize>,
}

/// Payload sizes worth probing on a link whose MTU is `mtu` (without the
/// Ethernet header): tiny, middling, the largest that fits into one packet,
/// and over IPv4 one that must be cut into fragments.
pub fn sizes_for(addr: SocketAddr, mtu: usize) -> Vec<usize> {
    const UDP_HEADER: usize = 8;
    let ip_header = if addr.is_ipv4() { 20 } else { 40 };
    let largest = mtu.saturating_sub(ip_header + UDP_HEADER).min(MAX_PAYLOAD);
    let mut sizes = vec![1, 512, largest];
    if addr.is_ipv4() && largest + 1000 <= MAX_PAYLOAD {
        sizes.push(largest + 1000);
    }
    sizes
}

/// Sends a datagram of each of `sizes` to the echo service at `addr`, and
/// waits `patience` for each answer.
///
/// # Errors
/// [`ProbeError`]; a datagram that does not come back is no error but a line
/// of the report.
pub fn udp_echo(
    addr: SocketAddr,
    sizes: &[usize],
    patience: Duration,
) -> Result<UdpReport, ProbeError> {
    let doing = format!("sending datagrams to {addr}");
    let io = |source| ProbeError::from_io(&doing, patience, source);
    let any: SocketAddr = if addr.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).map_err(io)?;
    socket.connect(addr).map_err(io)?;

    let mut report = UdpReport::default();
    for (number, &size) in sizes.iter().enumerate() {
        let mut payload = vec![0; size];
        Pattern::new(number as u64).fill(&mut payload);
        let mut attempt = 1;
        loop {
            socket.send(&payload).map_err(io)?;
            let answer = wait_for(&socket, &payload, patience).map_err(io)?;
            report.corrupted += answer.corrupted;
            if answer.same {
                report.echoed += 1;
                break;
            }
            if attempt == ATTEMPTS {
                report.missing.push(size);
                break;
            }
            attempt += 1;
            report.retries += 1;
        }
    }
    Ok(report)
}

struct Answer {
    same: bool,
    corrupted: u32,
}

fn wait_for(socket: &UdpSocket, payload: &[u8], patience: Duration) -> io::Result<Answer> {
    let start = Instant::now();
    let mut buf = vec![0; MAX_PAYLOAD];
    let mut corrupted = 0;
    loop {
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Ok(Answer {
                same: false,
                corrupted,
            });
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv(&mut buf) {
            Ok(len) if buf.get(..len) == Some(payload) => {
                return Ok(Answer {
                    same: true,
                    corrupted,
                });
            }
            Ok(len) if len == payload.len() => corrupted += 1,
            // Late: the answer to an earlier datagram that was sent again.
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const PATIENCE: Duration = Duration::from_secs(10);
    /// Long enough for an answer over loopback on a busy machine.
    const SHORT: Duration = Duration::from_millis(500);

    /// Answers each datagram with what `reply` makes of it, as long as the test
    /// program runs.
    fn serve(
        ip: &str,
        mut reply: impl FnMut(usize, &[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> SocketAddr {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        let addr = socket.local_addr().unwrap();
        thread::spawn(move || {
            let mut buf = vec![0; MAX_PAYLOAD];
            for number in 0.. {
                let (len, from) = socket.recv_from(&mut buf).unwrap();
                for answer in reply(number, &buf[..len]) {
                    // The probe may be gone by then.
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        addr
    }

    #[test]
    fn every_size_comes_back_unchanged() {
        for ip in ["127.0.0.1", "::1"] {
            let addr = serve(ip, |_, data| vec![data.to_vec()]);
            let report = udp_echo(addr, &[0, 1, 512, 1472, 20_000, MAX_PAYLOAD], PATIENCE);
            assert_eq!(
                report.unwrap(),
                UdpReport {
                    echoed: 6,
                    ..UdpReport::default()
                }
            );
        }
    }

    #[test]
    fn a_lost_datagram_is_sent_again_and_counted() {
        let addr = serve("127.0.0.1", |number, data| {
            if number == 1 {
                vec![]
            } else {
                vec![data.to_vec()]
            }
        });
        let report = udp_echo(addr, &[10, 20], SHORT).unwrap();
        assert_eq!(
            report,
            UdpReport {
                echoed: 2,
                retries: 1,
                ..UdpReport::default()
            }
        );
    }

    #[test]
    fn a_size_that_never_comes_back_is_reported() {
        let addr = serve("127.0.0.1", |_, data| {
            if data.len() == 20 {
                vec![]
            } else {
                vec![data.to_vec()]
            }
        });
        let report = udp_echo(addr, &[10, 20, 30], SHORT).unwrap();
        assert_eq!((report.echoed, report.retries), (2, 4));
        assert_eq!(report.missing, [20]);
    }

    #[test]
    fn a_changed_answer_is_corruption_and_a_late_one_is_not() {
        let addr = serve("127.0.0.1", |_, data| {
            let mut changed = data.to_vec();
            changed[0] ^= 1;
            vec![vec![0; 3], changed]
        });
        let report = udp_echo(addr, &[10], SHORT).unwrap();
        assert_eq!((report.echoed, report.corrupted, report.retries), (0, 5, 4));
    }

    #[test]
    fn a_port_where_nobody_listens_is_an_error() {
        let closed = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let error = udp_echo(closed, &[1], PATIENCE).unwrap_err();
        assert!(error.to_string().contains(&closed.to_string()), "{error}");
    }

    #[test]
    fn the_sizes_fill_a_packet_exactly_and_over_ipv4_one_more_than_that() {
        let v4: SocketAddr = "10.0.0.2:7".parse().unwrap();
        let v6: SocketAddr = "[fd00::2]:7".parse().unwrap();
        assert_eq!(sizes_for(v4, 1500), [1, 512, 1472, 2472]);
        assert_eq!(sizes_for(v6, 1500), [1, 512, 1452]);
        assert_eq!(sizes_for(v4, 65_535), [1, 512, 65_507]);
    }
}
