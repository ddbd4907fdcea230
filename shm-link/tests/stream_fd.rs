//! The link over real file descriptors: a unix stream between two threads, and a
//! pty as a serial line.
#![cfg(feature = "linux")]

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use shm_link::fault::{LinkError, PeerFault};
use shm_link::link::{FrameRx, FrameTx, Link, MAX_FRAME_LEN};
use shm_link::offload::OffloadHeader;
use shm_link::stream::fd::StreamFd;
use shm_link::stream::{Framing, StreamLink};

type FdLink = StreamLink<StreamFd, StreamFd, Vec<u8>>;

fn link_over(fd: &StreamFd, framing: Framing, max_frame_len: usize) -> FdLink {
    let buf = || vec![0; framing.buffer_len(max_frame_len)];
    let (reader, writer) = ((fd.clone(), buf()), (fd.clone(), buf()));
    StreamLink::new(framing, max_frame_len, reader, writer).unwrap()
}

/// Sleeps as an owner does: only when armed, and on the file descriptor alone.
/// `expects`: the peer owes something. Arming may have sent the last of what was to
/// be sent; nothing would end the sleep of an owner that then expects nothing.
fn sleep(link: &mut FdLink, fd: &StreamFd, expects: bool, tx_room: Option<usize>) {
    if !link.arm(tx_room).unwrap() {
        return;
    }
    let mut events = PollFlags::empty();
    events.set(PollFlags::IN, expects);
    events.set(PollFlags::OUT, link.wants_write());
    if !events.is_empty() {
        poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), events)], None).unwrap();
    }
    link.disarm();
}

fn frame_len(number: u32) -> usize {
    match number % 5 {
        0 => MAX_FRAME_LEN,
        1 => 4,
        _ => 60 + number as usize * 37 % 9000,
    }
}

fn fill(number: u32, frame: &mut [u8]) {
    frame[..4].copy_from_slice(&number.to_le_bytes());
    for (at, byte) in frame.iter_mut().enumerate().skip(4) {
        *byte = (at as u32 * 7 + number) as u8;
    }
}

/// Sends and receives `count` frames and a control message with every tenth.
fn exchange(fd: &StreamFd, framing: Framing, count: u32) {
    let mut link = link_over(fd, framing, MAX_FRAME_LEN);
    let (mut sent, mut received, mut messages, mut answered) = (0, 0, 0, 0);
    let mut expected = vec![0; MAX_FRAME_LEN];
    while sent < count || received < count || messages < count / 10 || link.wants_write() {
        let mut message = [0; 64];
        // Not asked for more than is due: a close may stand right behind it.
        while messages < count / 10 {
            let Some(len) = link.recv_control(&mut message).unwrap() else {
                break;
            };
            assert_eq!(message[..len], u32::to_le_bytes(messages));
            messages += 1;
        }
        let (rx, tx) = link.split();
        while received < count {
            let Some((offload, frame)) = rx.peek().unwrap() else {
                break;
            };
            let len = frame_len(received);
            fill(received, &mut expected[..len]);
            assert!(frame == &expected[..len], "frame {received} is wrong");
            assert_eq!(offload.gso_size, received as u16);
            received += 1;
            rx.consume();
        }
        rx.flush();
        while sent < count && answered == sent / 10 {
            let len = frame_len(sent);
            let Some(room) = tx.reserve(len).unwrap() else {
                break;
            };
            fill(sent, room);
            let gso_size = sent as u16;
            tx.commit(
                len,
                OffloadHeader {
                    gso_size,
                    ..OffloadHeader::NONE
                },
            );
            sent += 1;
        }
        tx.flush();
        while answered < sent / 10 && link.send_control(&u32::to_le_bytes(answered)).unwrap() {
            answered += 1;
        }
        let tx_room = (sent < count).then(|| frame_len(sent));
        let expects = received < count || messages < count / 10;
        if expects || link.wants_write() {
            sleep(&mut link, fd, expects, tx_room);
        }
    }
    assert_eq!(link.rx().dropped_records(), 0);
    link.close();
    assert!(!link.wants_write(), "the peer took everything else");
    loop {
        match link.split().0.peek() {
            Ok(None) => {}
            Ok(Some(_)) => panic!("a frame too many"),
            Err(error) => return assert_eq!(error, LinkError::Closed),
        }
        let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
        poll(&mut fds, None).unwrap();
    }
}

#[test]
fn two_threads_exchange_frames_of_every_length_over_a_unix_stream() {
    for (framing, count) in [(Framing::Prefixed, 2000), (Framing::Serial, 300)] {
        let (left, right) = UnixStream::pair().unwrap();
        let left = StreamFd::new(left.into()).unwrap();
        let right = StreamFd::new(right.into()).unwrap();
        let other = thread::spawn(move || exchange(&right, framing, count));
        exchange(&left, framing, count);
        other.join().unwrap();
    }
}

#[test]
fn a_peer_that_goes_away_closes_the_link() {
    let (left, right) = UnixStream::pair().unwrap();
    let fd = StreamFd::new(left.into()).unwrap();
    let mut link = link_over(&fd, Framing::Prefixed, 1514);
    assert_eq!(link.arm(None), Ok(true));
    drop(right);
    assert_eq!(link.split().0.peek(), Err(LinkError::Closed));
}

#[test]
fn a_peer_that_speaks_http_is_a_framing_fault() {
    use std::io::Write;
    let (left, mut right) = UnixStream::pair().unwrap();
    let fd = StreamFd::new(left.into()).unwrap();
    let mut link = link_over(&fd, Framing::Prefixed, 1514);
    right.write_all(b"GET /").unwrap();
    let fault = LinkError::Fault(PeerFault::Framing);
    assert_eq!(link.split().0.peek(), Err(fault));
}

/// Both ends of a new pty, the second one raw.
fn pty() -> (StreamFd, StreamFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let path = std::ffi::OsStr::from_bytes(name.as_bytes());
    let slave = File::options().read(true).write(true).open(path).unwrap();
    let slave = StreamFd::new_raw_terminal(slave.into()).unwrap();
    (StreamFd::new(master).unwrap(), slave)
}

#[test]
fn a_pty_carries_a_serial_link_both_ways() {
    let (master, slave) = pty();
    let guest = slave.clone();
    let other = thread::spawn(move || exchange_on_pty(&guest));
    exchange_on_pty(&master);
    other.join().unwrap();
    drop(slave);
}

#[test]
fn a_terminal_that_is_hung_up_closes_the_link() {
    let (master, slave) = pty();
    let mut link = link_over(&master, Framing::Serial, 1514);
    assert_eq!(link.arm(None), Ok(true));
    drop(slave);
    assert_eq!(link.split().0.peek(), Err(LinkError::Closed));
}

fn pty_frame_len(number: u32) -> usize {
    100 + number as usize * 170
}

/// Sends frames that hold every byte a terminal could misunderstand, and takes
/// as many.
fn exchange_on_pty(fd: &StreamFd) {
    const COUNT: u32 = 50;
    let mut link = link_over(fd, Framing::Serial, 9000);
    let (mut sent, mut received) = (0, 0);
    while sent < COUNT || received < COUNT || link.wants_write() {
        let (rx, tx) = link.split();
        while let Some((_, frame)) = rx.peek().unwrap() {
            let mut expected = vec![0; pty_frame_len(received)];
            fill(received, &mut expected);
            assert!(frame == &expected[..], "frame {received} is wrong");
            received += 1;
            rx.consume();
        }
        while sent < COUNT {
            let len = pty_frame_len(sent);
            let Some(room) = tx.reserve(len).unwrap() else {
                break;
            };
            fill(sent, room);
            tx.commit(len, OffloadHeader::NONE);
            sent += 1;
        }
        tx.flush();
        let expects = received < COUNT;
        if expects || link.wants_write() {
            let tx_room = (sent < COUNT).then(|| pty_frame_len(sent));
            sleep(&mut link, fd, expects, tx_room);
        }
    }
}

#[test]
fn what_is_no_terminal_is_not_made_raw() {
    let (left, _right) = UnixStream::pair().unwrap();
    let error = StreamFd::new_raw_terminal(left.into()).unwrap_err();
    let error = std::io::Error::from(error);
    assert_eq!(error.raw_os_error(), Some(25), "ENOTTY: {error}");
}
