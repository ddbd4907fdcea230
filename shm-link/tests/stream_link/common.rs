//! A byte stream that misbehaves as it is told, and links over it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use embedded_io::{ErrorKind, ErrorType, Read, ReadReady, Write, WriteReady};
use shm_link::fault::LinkError;
use shm_link::link::{FrameRx, FrameTx, Link, MAX_CONTROL_LEN, MAX_FRAME_LEN};
use shm_link::offload::OffloadHeader;
use shm_link::stream::{Framing, StreamLink};

pub(crate) const FRAMINGS: [Framing; 2] = [Framing::Prefixed, Framing::Serial];

/// One direction of a byte stream, and how it misbehaves.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    pub(crate) bytes: VecDeque<u8>,
    pub(crate) capacity: usize,
    pub(crate) ended: bool,
    pub(crate) broken: Option<ErrorKind>,
    /// Most bytes that the next reads or writes move; 0 is "not ready". When it
    /// runs out, everything goes through.
    pub(crate) chunks: VecDeque<usize>,
    /// Whether a chunk of 0 shows as an interrupted call after "ready".
    pub(crate) surprising: bool,
}

impl Wire {
    pub(crate) fn is_ready(&mut self, possible: bool) -> bool {
        if !possible {
            return false;
        }
        match self.chunks.front() {
            Some(0) if !self.surprising => {
                self.chunks.pop_front();
                false
            }
            _ => true,
        }
    }

    pub(crate) fn chunk(&mut self, most: usize) -> Result<usize, ErrorKind> {
        match self.chunks.pop_front() {
            Some(0) => Err(ErrorKind::Interrupted),
            Some(chunk) => Ok(chunk.min(most)),
            None => Ok(most),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct End(pub(crate) Rc<RefCell<Wire>>);

impl End {
    pub(crate) fn new(capacity: usize) -> Self {
        Self(Rc::new(RefCell::new(Wire {
            capacity,
            ..Wire::default()
        })))
    }

    pub(crate) fn feed(&self, bytes: &[u8]) {
        self.0.borrow_mut().bytes.extend(bytes);
    }

    pub(crate) fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().bytes.drain(..).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.borrow().bytes.len()
    }

    pub(crate) fn end(&self) {
        self.0.borrow_mut().ended = true;
    }
}

impl ErrorType for End {
    type Error = ErrorKind;
}

impl ReadReady for End {
    fn read_ready(&mut self) -> Result<bool, ErrorKind> {
        let mut wire = self.0.borrow_mut();
        let possible = !wire.bytes.is_empty() || wire.ended || wire.broken.is_some();
        Ok(wire.is_ready(possible))
    }
}

impl Read for End {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, ErrorKind> {
        assert!(!buf.is_empty(), "a read into nothing looks like the end");
        let mut wire = self.0.borrow_mut();
        if let Some(kind) = wire.broken {
            return Err(kind);
        }
        if wire.bytes.is_empty() {
            assert!(wire.ended, "this read would have waited");
            return Ok(0);
        }
        let most = buf.len().min(wire.bytes.len());
        let len = wire.chunk(most)?;
        for (to, byte) in buf.iter_mut().zip(wire.bytes.drain(..len)) {
            *to = byte;
        }
        Ok(len)
    }
}

impl WriteReady for End {
    fn write_ready(&mut self) -> Result<bool, ErrorKind> {
        let mut wire = self.0.borrow_mut();
        let possible = wire.bytes.len() < wire.capacity || wire.broken.is_some();
        Ok(wire.is_ready(possible))
    }
}

impl Write for End {
    fn write(&mut self, buf: &[u8]) -> Result<usize, ErrorKind> {
        assert!(!buf.is_empty());
        let mut wire = self.0.borrow_mut();
        if let Some(kind) = wire.broken {
            return Err(kind);
        }
        let room = wire.capacity - wire.bytes.len();
        assert!(room > 0, "this write would have waited");
        let len = wire.chunk(buf.len().min(room))?;
        wire.bytes.extend(&buf[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> Result<(), ErrorKind> {
        Ok(())
    }
}

pub(crate) type TestLink = StreamLink<End, End, Vec<u8>>;

pub(crate) fn link_of(
    framing: Framing,
    max_frame_len: usize,
    reader: &End,
    writer: &End,
) -> TestLink {
    let buf = || vec![0xee; framing.buffer_len(max_frame_len)];
    let (rx, tx) = ((reader.clone(), buf()), (writer.clone(), buf()));
    StreamLink::new(framing, max_frame_len, rx, tx).unwrap()
}

/// A link that sends into a wire, and one that receives out of it.
pub(crate) struct Pair {
    pub(crate) sender: TestLink,
    pub(crate) receiver: TestLink,
    pub(crate) wire: End,
}

impl Pair {
    pub(crate) fn new(framing: Framing) -> Self {
        Self::with(framing, MAX_FRAME_LEN, usize::MAX)
    }

    pub(crate) fn with(framing: Framing, max_frame_len: usize, capacity: usize) -> Self {
        let (wire, back) = (End::new(capacity), End::new(usize::MAX));
        Self {
            sender: link_of(framing, max_frame_len, &back, &wire),
            receiver: link_of(framing, max_frame_len, &wire, &back),
            wire,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Item {
    Frame(OffloadHeader, Vec<u8>),
    Control(Vec<u8>),
}

pub(crate) fn frame(bytes: impl Into<Vec<u8>>) -> Item {
    Item::Frame(OffloadHeader::NONE, bytes.into())
}

/// Sends; `false`: no room now.
pub(crate) fn try_send(link: &mut TestLink, item: &Item) -> Result<bool, LinkError> {
    match item {
        Item::Frame(offload, bytes) => {
            let (_, tx) = link.split();
            let Some(room) = tx.reserve(bytes.len())? else {
                return Ok(false);
            };
            room.copy_from_slice(bytes);
            tx.commit(bytes.len(), *offload);
            tx.flush();
            Ok(true)
        }
        Item::Control(bytes) => link.send_control(bytes),
    }
}

pub(crate) fn send(link: &mut TestLink, item: &Item) {
    assert_eq!(try_send(link, item), Ok(true));
}

pub(crate) fn recv(link: &mut TestLink) -> Result<Option<Item>, LinkError> {
    let mut buf = [0; MAX_CONTROL_LEN];
    if let Some(len) = link.recv_control(&mut buf)? {
        return Ok(Some(Item::Control(buf[..len].to_vec())));
    }
    let (rx, _) = link.split();
    let item = rx
        .peek()?
        .map(|(offload, bytes)| Item::Frame(offload, bytes.to_vec()));
    if item.is_some() {
        let again = rx.peek()?.map(|(o, bytes)| Item::Frame(o, bytes.to_vec()));
        assert_eq!(again, item, "peeking does not change anything");
        rx.consume();
        rx.flush();
    }
    Ok(item)
}

/// Everything that is to be had, and how it ended, if it did.
pub(crate) fn recv_all(link: &mut TestLink, wire: &End) -> (Vec<Item>, Option<LinkError>) {
    let mut items = Vec::new();
    loop {
        match recv(link) {
            Ok(Some(item)) => items.push(item),
            Ok(None) => {
                let asleep = link.arm(None) == Ok(true);
                let wire = wire.0.borrow();
                let idle = wire.bytes.is_empty() && !wire.ended;
                if asleep && (idle || wire.chunks.is_empty()) {
                    return (items, None);
                }
            }
            Err(error) => return (items, Some(error)),
        }
    }
}
