//! What the demo offers, used as a user would.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;

use host_bridge::probe::bulk::{SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};
use host_bridge::probe::http::http_get;
use host_bridge::probe::ping::ping;
use host_bridge::probe::udp::{ECHO_PORT, sizes_for, udp_echo};

use crate::common::{BULK, BULK_PATIENCE, PATIENCE, World, in_private_network, skip, until};

#[test]
fn every_service_works_over_ipv4_and_ipv6() {
    in_private_network(|| {
        let world = World::start("");
        let guest = world.guest("server");
        for (seed, &address) in guest.addresses.iter().enumerate() {
            use_everything(address, seed as u64);
        }
        assert_eq!(guest.addresses.len(), 2);
        // Every frame of all that is accounted for.
        until("a ledger that adds up", || world.ledgers_add_up());
        let port = world.running("server").unwrap();
        assert!(port.counters.guest_to_host.drops.is_empty(), "{port:?}");
    });
}

#[test]
fn datagrams_of_one_send_cross_as_one_frame_and_are_echoed_one_by_one() {
    const LEN: usize = 1000;
    in_private_network(|| {
        let world = World::start("");
        let guest = world.guest("cuts");
        let frames = || {
            let port = world.running("cuts").unwrap();
            port.counters.host_to_guest.frames_in
        };
        for &address in &guest.addresses {
            let to = SocketAddr::new(address, ECHO_PORT);
            // Finds the neighbour.
            udp_echo(to, &[1], PATIENCE).unwrap();
            let any = if address.is_ipv6() {
                "[::]:0"
            } else {
                "0.0.0.0:0"
            };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            set_udp_segment(&socket, LEN);
            let sent: Vec<u8> = (0..LEN * 20 + 500).map(|i| (i / LEN) as u8).collect();
            let before = frames();
            assert_eq!(socket.send(&sent).unwrap(), sent.len());
            let mut buffer = [0; 2000];
            for datagram in sent.chunks(LEN) {
                let len = socket.recv(&mut buffer).unwrap();
                assert_eq!(&buffer[..len], datagram);
            }
            if kernel_cuts_udp() {
                // Neighbours may have spoken meanwhile.
                let frames = frames() - before;
                assert!(frames < 5, "{frames} frames");
            } else {
                skip("Linux 6.2, for UDP segmentation");
            }
        }
        until("a ledger that adds up", || world.ledgers_add_up());
    });
}

/// Has the kernel cut what is sent at once into datagrams of `len` bytes.
fn set_udp_segment(socket: &UdpSocket, len: usize) {
    let len = libc::c_int::try_from(len).unwrap();
    // SAFETY: the option is an int, which lives through the call.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_SEGMENT,
            (&raw const len).cast(),
            size_of_val(&len) as libc::socklen_t,
        )
    };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

fn kernel_cuts_udp() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(2))
}

/// Uses every service of the guest `server` at `address`.
pub(crate) fn use_everything(address: IpAddr, seed: u64) {
    let at = |port| SocketAddr::new(address, port);
    let pings = ping(address, 0, 20, PATIENCE).unwrap();
    assert_eq!(pings.received, 20, "{address}");

    let page = http_get(at(80), "/", PATIENCE).unwrap();
    let text = String::from_utf8(page.body).unwrap();
    assert_eq!(page.status, 200);
    assert!(
        text.contains("Hello from server") && text.contains("MTU      1500"),
        "{text}"
    );
    let bytes = http_get(at(80), "/bytes/1000000", PATIENCE).unwrap();
    assert_eq!((bytes.status, bytes.body.len()), (200, 1_000_000));
    assert_eq!(http_get(at(80), "/nowhere", PATIENCE).unwrap().status, 404);

    let sent = bulk_send(at(SINK_PORT), BULK, seed, BULK_PATIENCE).unwrap();
    assert!(sent.checksum_ok, "{address}: {sent:?}");
    let received = bulk_receive(at(SOURCE_PORT), BULK, seed, BULK_PATIENCE).unwrap();
    assert!(received.checksum_ok, "{address}: {received:?}");

    let sizes = sizes_for(at(ECHO_PORT), 1500);
    let datagrams = udp_echo(at(ECHO_PORT), &sizes, PATIENCE).unwrap();
    assert_eq!(
        (datagrams.echoed, datagrams.corrupted),
        (sizes.len(), 0),
        "{datagrams:?}"
    );

    // The reading half stays open when the writing half is closed.
    let mut stream = TcpStream::connect_timeout(&at(7), PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"there and back").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "there and back");

    let refused = TcpStream::connect_timeout(&at(9), PATIENCE).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}
