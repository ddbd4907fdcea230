//! A ping of the guest's own: ICMP echo requests from a smoltcp ICMP socket
//! among the application's sockets (RFC 792, RFC 4443).
//!
//! The client calls it; several may run at once.

use alloc::vec;
use core::fmt;
use core::future::poll_fn;
use core::net::IpAddr;
use core::task::Poll;

use guest_stack::face::asynchronous::Network;
use guest_stack::face::platform::Platform;
use guest_stack::smoltcp::iface::SocketHandle;
use guest_stack::smoltcp::phy::ChecksumCapabilities;
use guest_stack::smoltcp::socket::icmp;
use guest_stack::smoltcp::wire::{
    Icmpv4Message, Icmpv4Packet, Icmpv4Repr, Icmpv6Message, Icmpv6Packet, Icmpv6Repr, IpAddress,
    Ipv6Address,
};
use guest_stack::time::Duration;
use shm_link::link::Link;

use super::client::before;
use crate::executor::Spawner;

/// From one request to the next, and how long an answer is waited for.
const INTERVAL: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(2);
/// What a request carries.
const PAYLOAD: &[u8; 56] = b"is anybody there? is anybody there? is anybody there? ..";
/// Bytes and packets that the socket holds.
const SOCKET_BYTES: usize = 1024;
const SOCKET_PACKETS: usize = 8;

/// What came of a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Report {
    pub(super) sent: u16,
    pub(super) received: u16,
    fastest: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} answered", self.received, self.sent)?;
        if self.received > 0 {
            write!(f, ", the fastest in {} us", self.fastest.total_micros())?;
        }
        Ok(())
    }
}

/// The socket, as long as the ping runs.
struct Socket<L: Link, P: Platform> {
    network: Network<L, P>,
    handle: SocketHandle,
    ident: u16,
}

impl<L: Link, P: Platform> Socket<L, P> {
    fn open(network: &Network<L, P>) -> Self {
        let buffer = || {
            icmp::PacketBuffer::new(
                vec![icmp::PacketMetadata::EMPTY; SOCKET_PACKETS],
                vec![0; SOCKET_BYTES],
            )
        };
        let (handle, ident) = network.with(|stack, now| {
            stack.sockets().with_application_sockets(|_, set| {
                let handle = set.add(icmp::Socket::new(buffer(), buffer()));
                // Distinct among the pings that run: one begins per instant.
                let ident = now.total_micros() as u16 ^ (now.total_micros() >> 16) as u16;
                // It is open to this identifier only; it cannot be bound already.
                let _ = set
                    .get_mut::<icmp::Socket>(handle)
                    .bind(icmp::Endpoint::Ident(ident));
                (handle, ident)
            })
        });
        Self {
            network: network.clone(),
            handle,
            ident,
        }
    }

    fn with<R>(&self, f: impl FnOnce(&mut icmp::Socket<'static>) -> R) -> R {
        self.network.with(|stack, _| {
            stack
                .sockets()
                .with_application_sockets(|_, set| f(set.get_mut(self.handle)))
        })
    }

    /// Queues a request; one that finds no room counts as lost.
    fn request(&self, to: IpAddr, seq_no: u16) {
        let (ident, data) = (self.ident, &PAYLOAD[..]);
        let checksums = ChecksumCapabilities::default();
        self.with(|socket| match to {
            IpAddr::V4(_) => {
                let echo = Icmpv4Repr::EchoRequest {
                    ident,
                    seq_no,
                    data,
                };
                if let Ok(room) = socket.send(echo.buffer_len(), to.into()) {
                    echo.emit(&mut Icmpv4Packet::new_unchecked(room), &checksums);
                }
            }
            IpAddr::V6(address) => {
                let echo = Icmpv6Repr::EchoRequest {
                    ident,
                    seq_no,
                    data,
                };
                if let Ok(room) = socket.send(echo.buffer_len(), to.into()) {
                    // smoltcp chooses the source address, and sums anew then.
                    let mut packet = Icmpv6Packet::new_unchecked(room);
                    echo.emit(&Ipv6Address::UNSPECIFIED, &address, &mut packet, &checksums);
                }
            }
        });
    }

    /// Waits for the answer to one request.
    async fn reply(&self, from: IpAddr, seq_no: u16) {
        poll_fn(|context| {
            self.with(|socket| {
                while let Ok((bytes, source)) = socket.recv() {
                    if source == IpAddress::from(from) && is_reply(bytes, from.is_ipv4(), seq_no) {
                        return Poll::Ready(());
                    }
                }
                socket.register_recv_waker(context.waker());
                Poll::Pending
            })
        })
        .await;
    }
}

impl<L: Link, P: Platform> Drop for Socket<L, P> {
    fn drop(&mut self) {
        let handle = self.handle;
        self.network.with(|stack, _| {
            stack
                .sockets()
                .with_application_sockets(|_, set| drop(set.remove(handle)));
        });
    }
}

fn is_reply(bytes: &[u8], ipv4: bool, seq_no: u16) -> bool {
    if ipv4 {
        Icmpv4Packet::new_checked(bytes).is_ok_and(|packet| {
            packet.msg_type() == Icmpv4Message::EchoReply
                && packet.echo_seq_no() == seq_no
                && packet.data() == PAYLOAD
        })
    } else {
        Icmpv6Packet::new_checked(bytes).is_ok_and(|packet| {
            packet.msg_type() == Icmpv6Message::EchoReply
                && packet.echo_seq_no() == seq_no
                && packet.payload() == PAYLOAD
        })
    }
}

/// Sends `count` requests, one after the other.
pub(super) async fn ping<L: Link, P: Platform>(
    network: &Network<L, P>,
    spawner: &Spawner<P::RawMutex>,
    to: IpAddr,
    count: u16,
) -> Report {
    let socket = Socket::open(network);
    let mut report = Report {
        sent: 0,
        received: 0,
        fastest: PATIENCE,
    };
    for seq_no in 0..count {
        let sent = network.platform().now();
        socket.request(to, seq_no);
        report.sent += 1;
        if before(
            spawner.sleep_until(sent + PATIENCE),
            socket.reply(to, seq_no),
        )
        .await
        .is_some()
        {
            report.received += 1;
            report.fastest = report.fastest.min(network.platform().now() - sent);
        }
        if report.sent < count {
            spawner.sleep_until(sent + INTERVAL).await;
        }
    }
    report
}
