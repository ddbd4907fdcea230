//! Many clients at the same moment.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketFlags, SocketType, connect, socket_with};
use rustix::process::{Resource, getrlimit, setrlimit};

use crate::common::{PATIENCE, World, in_private_network};

const CLIENTS: usize = 1000;

#[test]
fn a_thousand_simultaneous_connects_are_all_served_and_none_is_reset() {
    in_private_network(|| {
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        setrlimit(Resource::Nofile, limit).unwrap();
        let world = World::start("");
        let guest = world.guest("busy");
        for address in [guest.v4(7), guest.v6(7)] {
            let family = if address.is_ipv4() {
                AddressFamily::INET
            } else {
                AddressFamily::INET6
            };
            let address = SocketAddrAny::from(address);
            let sockets: Vec<OwnedFd> = (0..CLIENTS)
                .map(|_| {
                    let socket =
                        socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK, None)
                            .unwrap();
                    assert_eq!(connect(&socket, &address), Err(Errno::INPROGRESS));
                    socket
                })
                .collect();
            let start = Instant::now();
            let mut streams = connected(sockets);
            assert_eq!(streams.len(), CLIENTS);
            // All stand at once, and every one is served.
            for (number, stream) in streams.iter_mut().enumerate() {
                stream.write_all(format!("{number:04}").as_bytes()).unwrap();
            }
            for (number, stream) in streams.iter_mut().enumerate() {
                let mut answer = [0; 4];
                stream.read_exact(&mut answer).unwrap();
                assert_eq!(answer, format!("{number:04}").as_bytes());
            }
            assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        }
        // In this namespace there is nobody else who could have been reset.
        let snmp = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
        let mut tcp = snmp.lines().filter_map(|line| line.strip_prefix("Tcp: "));
        let (names, values) = (tcp.next().unwrap(), tcp.next().unwrap());
        let mut counters = names.split(' ').zip(values.split(' '));
        let counter = |(name, _): &(&str, &str)| ["AttemptFails", "EstabResets"].contains(name);
        let resets: Vec<_> = counters.by_ref().filter(counter).collect();
        assert_eq!(resets, [("AttemptFails", "0"), ("EstabResets", "0")]);
    });
}

/// Waits until every connection stands or failed; the first that failed fails
/// the test.
fn connected(sockets: Vec<OwnedFd>) -> Vec<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    let mut waiting = sockets;
    let mut streams = Vec::new();
    while !waiting.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap();
        let mut fds: Vec<_> = waiting
            .iter()
            .map(|s| PollFd::new(s, PollFlags::OUT))
            .collect();
        let ready = poll(&mut fds, Some(&timeout)).unwrap();
        assert!(ready > 0, "{} connections never came to be", waiting.len());
        let ready: Vec<_> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut ready = ready.into_iter();
        let (done, rest) = waiting.into_iter().partition(|_| ready.next().unwrap());
        waiting = rest;
        for socket in done {
            let stream = TcpStream::from(socket);
            assert!(
                stream.take_error().unwrap().is_none(),
                "a connection was refused"
            );
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            streams.push(stream);
        }
    }
    streams
}
