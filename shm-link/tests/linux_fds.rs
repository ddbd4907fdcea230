//! Attaching must not leak: descriptors and mappings are counted over many
//! attachments that succeed and many that fail in every way a server can think
//! of. Alone in its program, because the counts are the whole process's.
#![cfg(feature = "linux")]

use std::io::{IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use shm_link::linux::address::Address;
use shm_link::linux::attach::Attachment;
use shm_link::linux::event::EventFd;
use shm_link::linux::ivshmem::{ServerSetup, send_setup};
use shm_link::linux::memory::SharedMemory;
use shm_link::linux::wire::send_message;

const TIMEOUT: Duration = Duration::from_secs(20);

fn good(socket: &UnixStream) {
    let memory = SharedMemory::create("test", 4096).unwrap();
    let events = [EventFd::new().unwrap(), EventFd::new().unwrap()];
    let setup = ServerSetup {
        client_id: 1,
        host_id: 0,
        memory: memory.fd(),
        ring_host: &[events[0].as_fd()],
        ring_client: &[events[1].as_fd()],
    };
    send_setup(socket, setup).unwrap();
}

/// The first messages of a good conversation, then nothing.
fn first(socket: &UnixStream, count: usize) {
    let memory = SharedMemory::create("test", 4096).unwrap();
    let event = EventFd::new().unwrap();
    let lines = [
        (0, None),
        (1, None),
        (-1, Some(memory.fd())),
        (0, Some(event.as_fd())),
    ];
    for (value, fd) in lines.into_iter().take(count) {
        send_message(socket, value, fd).unwrap();
    }
}

fn send_many_fds(socket: &UnixStream, fds: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(fds)));
    let bytes = IoSlice::new(&[0; 8]);
    rustix::net::sendmsg(socket, &[bytes], &mut control, SendFlags::empty()).unwrap();
}

/// What servers do after `accept` that die then: the guest comes again.
const DYING: [fn(&UnixStream); 5] = [
    |_| {},
    |socket| first(socket, 1),
    |socket| first(socket, 2),
    |socket| first(socket, 3),
    |socket| first(socket, 4),
];

/// What bad servers do after `accept`.
fn bad_conversations() -> Vec<fn(&UnixStream)> {
    vec![
        // A descriptor with the version.
        |socket| send_message(socket, 0, Some(socket.as_fd())).unwrap(),
        // Too many of them, in one message and in two halves of one.
        |socket| send_many_fds(socket, &[socket.as_fd(); 2]),
        |socket| send_many_fds(socket, &[socket.as_fd(); 100]),
        // A memory that is none.
        |socket| {
            first(socket, 2);
            send_message(socket, -1, Some(socket.as_fd())).unwrap();
            send_message(socket, 0, Some(socket.as_fd())).unwrap();
            send_message(socket, 1, Some(socket.as_fd())).unwrap();
        },
        // A foreign peer, and a message that breaks off.
        |socket| {
            first(socket, 4);
            send_message(socket, 77, Some(socket.as_fd())).unwrap();
        },
        |mut socket| {
            first(socket, 4);
            socket.write_all(&[1, 0, 0]).unwrap();
        },
    ]
}

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn mappings_of_memfds() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter(|line| line.contains("memfd:test"))
        .count()
}

#[test]
fn attaching_leaks_neither_descriptors_nor_mappings_whatever_the_server_does() {
    let address: Address = format!("@shm-link-test-fds-{}", std::process::id())
        .parse()
        .unwrap();
    let listener = UnixListener::bind_addr(&address.socket_addr().unwrap()).unwrap();
    let (next, conversations) = mpsc::channel::<fn(&UnixStream)>();
    let server = std::thread::spawn(move || {
        for talk in conversations {
            talk(&listener.accept().unwrap().0);
        }
        listener
    });

    let bad = bad_conversations();
    let mut before = None;
    for round in 0..60 {
        next.send(good).unwrap();
        let guest = Attachment::connect(&address, TIMEOUT).unwrap();
        for fd in [
            guest.memory.fd(),
            guest.ring_host.as_fd(),
            guest.doorbell.as_fd(),
        ] {
            let flags = rustix::io::fcntl_getfd(fd).unwrap();
            assert!(
                flags.contains(FdFlags::CLOEXEC),
                "a received descriptor survives exec"
            );
        }
        drop(guest);
        for &talk in &bad {
            next.send(talk).unwrap();
            Attachment::connect(&address, TIMEOUT).unwrap_err();
        }
        for talk in DYING {
            next.send(talk).unwrap();
        }
        // One more that succeeds: when it is through, the server has closed
        // all its ends of the conversations before.
        next.send(good).unwrap();
        let last = Attachment::connect(&address, TIMEOUT).unwrap();
        while last.daemon_alive() {
            std::thread::yield_now();
        }
        drop(last);
        let now = (open_fds(), mappings_of_memfds());
        assert_eq!(*before.get_or_insert(now), now, "round {round}");
    }
    assert_eq!(before.map(|(_, mappings)| mappings), Some(0));
    drop(next);
    drop(server.join().unwrap());
}
