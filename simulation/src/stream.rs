//! Byte streams between a guest and its port: a socket, or a serial line.
//!
//! Two queues of bounded length. What is written is rung for, and so is room that was
//! waited for; the world brings the rings to the other side. A socket ends with either
//! side; a line stays, and may lose and change bytes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::rc::Rc;

use embedded_io::{ErrorKind, ErrorType, Read, ReadReady, Write, WriteReady};
use shm_link::stream::Framing;

use crate::guest::Bell;
use crate::random::Random;

/// The guest's end, and the host's.
pub(crate) const GUEST: usize = 0;
pub(crate) const HOST: usize = 1;

/// One direction.
#[derive(Default)]
struct Queue {
    bytes: VecDeque<u8>,
    /// The writer found too little room.
    full: bool,
    /// Something came that the reader has not been told of, or room the writer.
    edges: [bool; 2],
}

const READER: usize = 0;
const WRITER: usize = 1;

struct State {
    /// By who writes.
    queues: [Queue; 2],
    capacity: usize,
    /// Whose end is gone.
    gone: [bool; 2],
    /// What the survivor is told after the last byte.
    resets: bool,
    /// Bytes in a million that are lost or changed.
    noise: u64,
    random: Random,
}

/// A stream. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Line {
    state: Rc<RefCell<State>>,
    pub(crate) framing: Framing,
    bells: [Bell; 2],
}

/// What a stream is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LinePlan {
    /// A serial line, or a socket.
    pub(crate) serial: bool,
    /// Bytes that wait in each direction.
    pub(crate) capacity: usize,
    /// Bytes in a million that are lost or changed.
    pub(crate) noise: u64,
}

impl Line {
    /// A new one; `bells` are rung by the guest's end and by the host's.
    pub(crate) fn new(plan: LinePlan, bells: &[Bell; 2], mut random: Random) -> Self {
        let state = State {
            queues: Default::default(),
            capacity: plan.capacity,
            gone: [false; 2],
            resets: random.percent(50),
            noise: plan.noise,
            random,
        };
        Self {
            state: Rc::new(RefCell::new(state)),
            framing: match plan.serial {
                true => Framing::Serial,
                false => Framing::Prefixed,
            },
            bells: bells.clone(),
        }
    }

    /// One end of it.
    pub(crate) fn end(&self, side: usize) -> LineEnd {
        LineEnd {
            line: self.clone(),
            side,
        }
    }

    /// Whether it outlives its ends.
    fn stays(&self) -> bool {
        self.framing == Framing::Serial
    }

    /// A process opens this end: it is told what there is.
    pub(crate) fn opens(&self, side: usize) {
        let queues = &mut self.state.borrow_mut().queues;
        queues[1 - side].edges[READER] = true;
        queues[side].edges[WRITER] = true;
    }

    /// Some of the last that was written at this end was not written.
    pub(crate) fn cut(&self, side: usize) {
        let state = &mut *self.state.borrow_mut();
        let unread = state.queues[side].bytes.len();
        let lost = state.random.below(unread as u64 + 1) as usize;
        state.queues[side].bytes.truncate(unread - lost);
    }

    /// Whether the process at this end is gone, and the stream with it.
    pub(crate) fn is_gone(&self, side: usize) -> bool {
        self.state.borrow().gone[side]
    }

    /// The process at this end is gone.
    pub(crate) fn dies(&self, side: usize) {
        if self.stays() {
            return;
        }
        let state = &mut *self.state.borrow_mut();
        state.gone[side] = true;
        state.queues[1 - side].bytes.clear();
        state.queues[side].edges[READER] = true;
        state.queues[1 - side].edges[WRITER] = true;
        self.bells[side].ring_once();
    }

    /// Whether this end has something to read, a fault too, or room to write.
    pub(crate) fn is_ready(&self, side: usize) -> [bool; 2] {
        let state = self.state.borrow();
        let gone = state.gone[1 - side];
        [
            gone || !state.queues[1 - side].bytes.is_empty(),
            gone || state.queues[side].bytes.len() < state.capacity,
        ]
    }

    /// Whether one of the wanted edges came since the last call that said so.
    pub(crate) fn takes_edge(&self, side: usize, input: bool, output: bool) -> bool {
        let queues = &mut self.state.borrow_mut().queues;
        // One of them at a time, as whoever waits for several things is woken by one.
        (input && std::mem::take(&mut queues[1 - side].edges[READER]))
            || (output && std::mem::take(&mut queues[side].edges[WRITER]))
    }

    /// Puts bytes into it that no link made.
    pub(crate) fn scribble(&self, random: &mut Random) {
        let state = &mut *self.state.borrow_mut();
        let queue = &mut state.queues[GUEST];
        let len = random.between(1, 40) as usize;
        match random.below(3) {
            // Some more, some fewer, some others.
            0 => queue
                .bytes
                .extend((0..len).map(|_| random.next_u64() as u8)),
            1 => queue.bytes.truncate(queue.bytes.len().saturating_sub(len)),
            _ => {
                let unread = queue.bytes.len() as u64;
                if let Some(byte) = queue.bytes.get_mut(random.below(unread) as usize) {
                    *byte = random.next_u64() as u8;
                }
            }
        }
        queue.edges[READER] = true;
        self.bells[GUEST].ring_once();
    }
}

/// One end of a stream; clones are the same one.
#[derive(Clone)]
pub(crate) struct LineEnd {
    line: Line,
    side: usize,
}

/// The other end is gone, or there is nothing to wait for.
#[derive(Debug)]
pub(crate) struct Trouble(ErrorKind);

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl core::error::Error for Trouble {}

impl embedded_io::Error for Trouble {
    fn kind(&self) -> ErrorKind {
        self.0
    }
}

impl ErrorType for LineEnd {
    type Error = Trouble;
}

impl ReadReady for LineEnd {
    fn read_ready(&mut self) -> Result<bool, Trouble> {
        Ok(self.line.is_ready(self.side)[READER])
    }
}

impl WriteReady for LineEnd {
    fn write_ready(&mut self) -> Result<bool, Trouble> {
        Ok(self.line.is_ready(self.side)[WRITER])
    }
}

impl Read for LineEnd {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Trouble> {
        let state = &mut *self.line.state.borrow_mut();
        let queue = &mut state.queues[1 - self.side];
        if queue.bytes.is_empty() {
            return match (state.gone[1 - self.side], state.resets) {
                (true, true) => Err(Trouble(ErrorKind::ConnectionReset)),
                (true, false) => Ok(0),
                (false, _) => Err(Trouble(ErrorKind::Interrupted)),
            };
        }
        // As much as a read happens to find.
        let most = buf.len().min(queue.bytes.len());
        let len = match state.random.percent(20) {
            true => 1 + state.random.below(most as u64) as usize,
            false => most,
        };
        for (place, byte) in buf.iter_mut().zip(queue.bytes.drain(..len)) {
            *place = byte;
        }
        if std::mem::take(&mut queue.full) {
            queue.edges[WRITER] = true;
            self.line.bells[self.side].ring_once();
        }
        Ok(len)
    }
}

impl Write for LineEnd {
    fn write(&mut self, buf: &[u8]) -> Result<usize, Trouble> {
        let state = &mut *self.line.state.borrow_mut();
        if state.gone[1 - self.side] {
            return Err(Trouble(ErrorKind::BrokenPipe));
        }
        let queue = &mut state.queues[self.side];
        let room = state.capacity.saturating_sub(queue.bytes.len());
        if room == 0 {
            return Err(Trouble(ErrorKind::Interrupted));
        }
        let len = buf.len().min(room);
        for byte in &buf[..len] {
            match state.random.below(1_000_000) < state.noise {
                false => queue.bytes.push_back(*byte),
                true if state.random.percent(30) => {}
                true => queue.bytes.push_back(state.random.next_u64() as u8),
            }
        }
        queue.full = len == room;
        queue.edges[READER] = true;
        self.line.bells[self.side].ring_once();
        Ok(len)
    }

    fn flush(&mut self) -> Result<(), Trouble> {
        Ok(())
    }
}
