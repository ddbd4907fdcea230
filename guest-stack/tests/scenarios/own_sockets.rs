//! The application's own smoltcp sockets beside the stack's.

use guest_stack::smoltcp::iface::{SocketHandle, SocketSet, SocketStorage};
use guest_stack::smoltcp::socket::{icmp, raw, tcp, udp};
use guest_stack::smoltcp::wire::{IpProtocol, IpVersion};
use guest_stack::tcp::options::TcpOptions;

use crate::common::{Bench, Pair, host, pattern};
use crate::frames::{RST, SYN, Segment, ip, ping_frame, tcps, udp_frame};

fn udp_socket(port: u16) -> udp::Socket<'static> {
    let buffer = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 4096]);
    let mut socket = udp::Socket::new(buffer(), buffer());
    socket.bind(port).unwrap();
    socket
}

fn tcp_socket() -> tcp::Socket<'static> {
    let buffer = || tcp::SocketBuffer::new(vec![0; 8192]);
    tcp::Socket::new(buffer(), buffer())
}

fn raw_socket(protocol: IpProtocol) -> raw::Socket<'static> {
    let buffer = || raw::PacketBuffer::new(vec![raw::PacketMetadata::EMPTY; 8], vec![0; 4096]);
    raw::Socket::new(Some(IpVersion::Ipv4), Some(protocol), buffer(), buffer())
}

fn add<S: guest_stack::smoltcp::socket::AnySocket<'static>>(
    bench: &mut Bench,
    socket: S,
) -> SocketHandle {
    let sockets = bench.stack.sockets();
    sockets.with_application_sockets(|_, set| set.add(socket))
}

#[test]
fn sockets_in_memory_of_the_callers_receive_what_belongs_to_no_other() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let storage: &'static mut [SocketStorage<'static>] =
        Box::leak(Box::new([SocketStorage::EMPTY; 2]));
    let mut set = SocketSet::new(storage);
    let own = set.add(udp_socket(7));
    bench.stack.sockets().replace_application_sockets(set);
    let stacks = bench.stack.sockets().udp_bind(8).unwrap();
    for port in [7, 8] {
        assert!(
            bench
                .exchange(&udp_frame(false, 9, port, b"data"))
                .is_empty()
        );
    }
    let got = bench.stack.sockets().with_application_sockets(|_, set| {
        let socket = set.get_mut::<udp::Socket>(own);
        socket.send_slice(b"answer", host(1, false, 9)).unwrap();
        socket.recv().unwrap().0.to_vec()
    });
    assert_eq!(got, b"data");
    assert!(
        bench
            .stack
            .sockets()
            .udp_recv_from(stacks, &mut [0; 8])
            .is_ok()
    );
    bench.settle();
    let sent = bench.peer.drain();
    assert_eq!(
        crate::frames::udp(&sent[0]).unwrap(),
        (7, 9, b"answer".to_vec())
    );
}

#[test]
fn a_tcp_socket_of_the_application_talks_to_a_stream() {
    let mut pair = Pair::new(1);
    let own = pair.sockets(1).with_application_sockets(|_, set| {
        let mut socket = tcp_socket();
        socket.listen(80).unwrap();
        set.add(socket)
    });
    let options = TcpOptions::default();
    let now = pair.now();
    let client = pair
        .sockets(0)
        .tcp_connect(now, host(1, false, 80), options)
        .unwrap();
    let words = pattern(50_000, 1);
    let (mut at, mut got) = (0, Vec::new());
    pair.run_until(|pair| {
        if pair.sockets(0).tcp_connected(client).is_ok() {
            crate::transfer::write_some(pair.sockets(0), client, &words, &mut at);
        }
        pair.sockets(1).with_application_sockets(|_, set| {
            let socket = set.get_mut::<tcp::Socket>(own);
            while socket.can_recv() {
                got.extend(socket.recv(|data| (data.len(), data.to_vec())).unwrap());
            }
        });
        pair.settle();
        got.len() == words.len()
    });
    assert!(got == words);
}

#[test]
fn a_client_socket_of_the_application_connects_to_a_listener() {
    let mut pair = Pair::new(1);
    let options = TcpOptions::default();
    let listener = pair.sockets(1).tcp_listen(80, 4, options).unwrap();
    let own = pair.sockets(0).with_application_sockets(|context, set| {
        let mut socket = tcp_socket();
        socket.connect(context, host(1, false, 80), 4000).unwrap();
        set.add(socket)
    });
    pair.settle();
    assert!(pair.sockets(1).tcp_accept(listener).is_ok());
    let state = pair
        .sockets(0)
        .with_application_sockets(|_, set| set.get::<tcp::Socket>(own).state());
    assert_eq!(state, tcp::State::Established);
}

#[test]
fn an_icmp_socket_gets_its_replies() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 1024]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(77)).unwrap();
    let own = add(&mut bench, socket);
    // An echo reply with the socket's identifier.
    let mut reply = ping_frame(false, 1, b"data");
    reply[34] = 0;
    reply[36..38].copy_from_slice(&[0, 0]);
    let checksum = pnet_packet::util::checksum(&reply[34..], 1);
    reply[36..38].copy_from_slice(&checksum.to_be_bytes());
    bench.exchange(&reply);
    let got = bench
        .stack
        .sockets()
        .with_application_sockets(|_, set| set.get::<icmp::Socket>(own).can_recv());
    assert!(got);
}

#[test]
fn a_raw_socket_sees_copies_and_disturbs_no_stream() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    let own = add(&mut bench, raw_socket(IpProtocol::Tcp));
    let options = TcpOptions::default();
    bench.stack.sockets().tcp_listen(80, 4, options).unwrap();
    let syn = Segment::syn(4000, 1);
    let answers = tcps(&bench.exchange(&syn.frame()));
    assert_eq!((answers.len(), answers[0].flags & (SYN | RST)), (1, SYN));
    let ack = syn.then(".", 2, answers[0].seq + 1, b"");
    assert!(bench.exchange(&ack.frame()).is_empty());
    // What belongs to nobody is the raw socket's, so no reset goes out.
    let nobody = Segment {
        dst_port: 81,
        ..Segment::syn(4001, 1)
    };
    assert!(bench.exchange(&nobody.frame()).is_empty());
    let count = bench.stack.sockets().with_application_sockets(|_, set| {
        let socket = set.get_mut::<raw::Socket>(own);
        (0..).take_while(|_| socket.recv().is_ok()).count()
    });
    assert_eq!(count, 3);
    assert_eq!(bench.stack.sockets().counters().tcp_established, 1);
}

#[test]
fn pings_are_answered_once_with_application_sockets_around() {
    let mut bench = Bench::new();
    bench.introduce_peer();
    add(&mut bench, raw_socket(IpProtocol::Icmp));
    add(&mut bench, udp_socket(7));
    let answers = bench.exchange(&ping_frame(false, 1, b"data"));
    assert_eq!(answers.len(), 1);
    assert_eq!(ip(&answers[0]).unwrap().payload[0], 0);
}
