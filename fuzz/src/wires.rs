//! Byte streams and the attach socket.

use std::os::fd::OwnedFd;

use embedded_io::{ErrorKind, ErrorType, Read, ReadReady, Write, WriteReady};
use rustix::event::EventfdFlags;
use rustix::fs::MemfdFlags;
use shm_link::link::{FrameRx, Link, MAX_CONTROL_LEN, MAX_FRAME_LEN};
use shm_link::linux::ivshmem::{ClientSetup, Step};
use shm_link::stream::{Framing, StreamLink};

use crate::input::Input;

/// Gives its bytes in pieces, then ends.
struct Source<'a> {
    input: Input<'a>,
    piece: usize,
}

impl ErrorType for Source<'_> {
    type Error = ErrorKind;
}

impl ReadReady for Source<'_> {
    fn read_ready(&mut self) -> Result<bool, ErrorKind> {
        Ok(true)
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, ErrorKind> {
        let piece = self.input.bytes(buf.len().min(self.piece));
        buf[..piece.len()].copy_from_slice(piece);
        Ok(piece.len())
    }
}

/// Takes everything.
struct Sink;

impl ErrorType for Sink {
    type Error = ErrorKind;
}

impl WriteReady for Sink {
    fn write_ready(&mut self) -> Result<bool, ErrorKind> {
        Ok(true)
    }
}

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> Result<usize, ErrorKind> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

/// Any bytes on a stream: frames and messages of bounded length, a fault, or the end.
pub(crate) fn stream(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let framing = match input.byte() & 1 {
        0 => Framing::Prefixed,
        _ => Framing::Serial,
    };
    let piece = usize::from(input.byte()) + 1;
    let len = bytes.len();
    let source = Source { input, piece };
    let buffer = || vec![0; framing.buffer_len(MAX_FRAME_LEN)];
    let ends = ((source, buffer()), (Sink, buffer()));
    let mut link = StreamLink::new(framing, MAX_FRAME_LEN, ends.0, ends.1).expect("room enough");
    let mut message = [0; MAX_CONTROL_LEN];
    // Each turn takes a record, or the end.
    for _ in 0..len + 2 {
        match link.recv_control(&mut message) {
            Ok(Some(n)) => assert!(n <= MAX_CONTROL_LEN),
            Ok(None) => {}
            Err(_) => return,
        }
        let (rx, _) = link.split();
        match rx.peek() {
            Ok(Some((_, frame))) => assert!((1..=MAX_FRAME_LEN).contains(&frame.len())),
            Ok(None) => {}
            Err(_) => return,
        }
        rx.consume();
    }
    panic!("the stream does not end");
}

/// Any server at the attach socket, as the client sees it.
pub(crate) fn attach(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut client = ClientSetup::default();
    while !input.is_empty() {
        let value = match input.byte() % 6 {
            0 => 0,
            1 => 1,
            2 => -1,
            3 => i64::from(input.word()),
            4 => -i64::from(input.word()),
            _ => input.long().cast_signed(),
        };
        let fd: Option<OwnedFd> = match input.byte() % 3 {
            0 => None,
            1 => rustix::event::eventfd(0, EventfdFlags::CLOEXEC).ok(),
            _ => rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).ok(),
        };
        match client.handle_message(value, fd) {
            Ok(Step::More(next)) => client = next,
            Ok(Step::Done(_)) | Err(_) => return,
        }
    }
}
