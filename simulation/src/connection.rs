//! One connection as it is planned and as it went, and one end of it as an
//! application.
//!
//! A client writes eight bytes that name the connection, and then a pattern; the
//! server writes a pattern of its own. Each end knows every byte that the other
//! writes. [`End`] is stepped by its guest whenever the stack woke it: an application
//! that was not woken does nothing, so a lost wake-up is a connection that stands
//! still.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Wake, Waker};

use guest_stack::error::StreamError;
use guest_stack::sockets::Sockets;
use guest_stack::tcp::TcpStreamId;
use guest_stack::tcp::stream::Shutdown;

use crate::clock::Nanos;

/// Bytes that name the connection, at the beginning of what the client writes.
pub(crate) const NAME_LEN: u64 = 8;

/// In what order the two ends write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Both whenever they can.
    Free,
    /// The server when it has seen the client's end.
    AfterEnd,
    /// So many bytes each, in turn, the client first.
    Turns(u64),
}

/// A pause that an end makes in its reading.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pause {
    /// After so many bytes.
    pub(crate) at: u64,
    pub(crate) time: Nanos,
}

/// Client and server, as numbers.
pub(crate) const CLIENT: usize = 0;
/// See [`CLIENT`].
pub(crate) const SERVER: usize = 1;

/// A connection as it is planned.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) at: Nanos,
    /// The guests of client and server.
    pub(crate) guests: [usize; 2],
    pub(crate) v6: bool,
    /// Bytes that each end writes.
    pub(crate) bytes: [u64; 2],
    pub(crate) order: Order,
    /// Bytes that each end writes and reads at a time, at most.
    pub(crate) chunk: [u64; 2],
    pub(crate) pauses: [Option<Pause>; 2],
    /// This end aborts after reading so many bytes.
    pub(crate) abort: Option<(usize, u64)>,
    pub(crate) buffers: (usize, usize),
    pub(crate) nodelay: bool,
}

/// How an end ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All bytes there, both ends seen.
    Clean,
    Failed(StreamError),
    Aborted,
    /// Its guest died.
    Died,
}

/// A connection as it went.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) plan: Plan,
    /// The client's address and the server's, once it was begun.
    pub(crate) addresses: Option<(IpAddr, IpAddr)>,
    /// The client's port.
    pub(crate) port: u16,
    pub(crate) outcomes: [Option<Outcome>; 2],
    /// Bytes that each end read, all of them right.
    pub(crate) read: [u64; 2],
    /// It need not end well, because of what was done to it; and when its ends give up.
    pub(crate) doomed: Option<Nanos>,
    pub(crate) done_at: Nanos,
    /// When an end read last, and the longest time between two reads.
    pub(crate) heard: Option<Nanos>,
    pub(crate) longest_pause: Nanos,
}

impl Connection {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            plan,
            addresses: None,
            port: 0,
            outcomes: [None; 2],
            read: [0; 2],
            doomed: None,
            done_at: 0,
            heard: None,
            longest_pause: 0,
        }
    }

    /// Whether nothing more will happen to it.
    pub(crate) fn is_over(&self) -> bool {
        match self.doomed {
            // The other end may never have heard of it.
            Some(_) => self.outcomes[CLIENT].is_some(),
            None => self.outcomes.iter().all(Option::is_some),
        }
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.outcomes == [Some(Outcome::Clean); 2]
    }

    /// It may fail from now on.
    pub(crate) fn doom(&mut self, at: Nanos) {
        if !self.is_clean() {
            self.doomed.get_or_insert(at);
        }
    }
}

/// Byte `at` of what the end `side` of connection `id` writes.
fn byte(id: u64, side: usize, at: u64) -> u8 {
    if side == CLIENT && at < NAME_LEN {
        return id.to_le_bytes()[at as usize];
    }
    let mix = (id * 2 + side as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((at ^ mix).wrapping_mul(0xd6e8_feb8_6659_fd93) >> 56) as u8
}

/// Set when the stack has something for an end.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        // ORDERING: one thread.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One end, in its guest.
pub(crate) struct End {
    pub(crate) stream: TcpStreamId,
    pub(crate) side: usize,
    /// The connection's number, once it is known.
    pub(crate) id: Option<usize>,
    name: [u8; NAME_LEN as usize],
    written: u64,
    read: u64,
    shut: bool,
    seen_end: bool,
    paused_until: Option<Nanos>,
    has_paused: bool,
    flag: Arc<Flag>,
    waker: Waker,
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stepped {
    /// It did something.
    Moved,
    /// It has nothing to do.
    Idle,
    /// It is over.
    Over,
}

/// What is wrong with the bytes that arrived.
#[derive(Debug)]
pub(crate) struct Wrong(pub(crate) String);

impl End {
    pub(crate) fn new(stream: TcpStreamId, side: usize, id: Option<usize>) -> Self {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        Self {
            stream,
            side,
            id,
            name: [0; NAME_LEN as usize],
            written: 0,
            read: 0,
            shut: false,
            seen_end: false,
            paused_until: None,
            has_paused: false,
            waker: flag.clone().into(),
            flag,
        }
    }

    /// Whether the stack woke it, or a pause is over, since it was stepped last.
    pub(crate) fn is_woken(&self, now: Nanos) -> bool {
        // ORDERING: one thread.
        self.flag.0.load(Ordering::Relaxed) || self.paused_until.is_some_and(|at| at <= now)
    }

    /// When it is to be stepped whatever happens.
    pub(crate) fn due(&self) -> Option<Nanos> {
        self.paused_until
    }

    /// Writes and reads what can be written and read.
    pub(crate) fn step(
        &mut self,
        sockets: &mut Sockets,
        connections: &mut [Connection],
        now: Nanos,
    ) -> Result<Stepped, Wrong> {
        // ORDERING: one thread.
        self.flag.0.store(false, Ordering::Relaxed);
        // Before it looks: what comes afterwards wakes it again.
        let _ = sockets.tcp_wake_reader(self.stream, &self.waker);
        let _ = sockets.tcp_wake_writer(self.stream, &self.waker);
        let moved = match self.exchange(sockets, connections, now) {
            Ok(moved) => moved,
            Err(Ended::Wrong(wrong)) => return Err(wrong),
            Err(Ended::Stream(error)) => {
                sockets.tcp_close(self.stream);
                self.over(connections, Outcome::Failed(error), now);
                return Ok(Stepped::Over);
            }
        };
        let Some(id) = self.id else {
            return Ok(if moved { Stepped::Moved } else { Stepped::Idle });
        };
        let connection = &mut connections[id];
        if connection.read[self.side] != self.read {
            connection.read[self.side] = self.read;
            let before = connection.heard.replace(now).unwrap_or(now);
            connection.longest_pause = connection.longest_pause.max(now - before);
        }
        if let Some((side, at)) = connection.plan.abort
            && side == self.side
            && self.read >= at
        {
            sockets.tcp_abort(self.stream);
            connection.doom(now + 2 * crate::clock::SECOND);
            self.over(connections, Outcome::Aborted, now);
            return Ok(Stepped::Over);
        }
        if self.shut && self.seen_end {
            sockets.tcp_close(self.stream);
            self.over(connections, Outcome::Clean, now);
            return Ok(Stepped::Over);
        }
        Ok(if moved { Stepped::Moved } else { Stepped::Idle })
    }

    /// Gives up.
    pub(crate) fn abort(
        &mut self,
        sockets: &mut Sockets,
        connections: &mut [Connection],
        now: Nanos,
    ) {
        sockets.tcp_abort(self.stream);
        self.over(connections, Outcome::Aborted, now);
    }

    /// Notes how it ended.
    pub(crate) fn over(&mut self, connections: &mut [Connection], outcome: Outcome, now: Nanos) {
        if let Some(id) = self.id {
            connections[id].outcomes[self.side].get_or_insert(outcome);
            connections[id].done_at = now;
        }
    }

    fn exchange(
        &mut self,
        sockets: &mut Sockets,
        connections: &[Connection],
        now: Nanos,
    ) -> Result<bool, Ended> {
        if self.side == CLIENT {
            match sockets.tcp_connected(self.stream) {
                Err(StreamError::WouldBlock) => return Ok(false),
                other => other?,
            }
        }
        let mut moved = self.write(sockets, connections)?;
        if self.paused_until.is_none_or(|at| at <= now) {
            self.paused_until = None;
            moved |= self.read(sockets, connections, now)?;
        }
        // What was read may allow to write.
        moved |= self.write(sockets, connections)?;
        Ok(moved)
    }

    fn write(&mut self, sockets: &mut Sockets, connections: &[Connection]) -> Result<bool, Ended> {
        let Some(id) = self.id else { return Ok(false) };
        if self.shut {
            return Ok(false);
        }
        let plan = &connections[id].plan;
        let total = plan.bytes[self.side];
        let allowed = match plan.order {
            Order::Free => total,
            Order::AfterEnd if self.side == CLIENT || self.seen_end => total,
            Order::AfterEnd => 0,
            // When the other end has nothing more to say, nobody waits for it.
            Order::Turns(_) if self.seen_end => total,
            Order::Turns(turn) if self.side == CLIENT => {
                (NAME_LEN + (self.read / turn + 1) * turn).min(total)
            }
            Order::Turns(turn) => (self.read.saturating_sub(NAME_LEN) / turn * turn).min(total),
        };
        let mut moved = false;
        let mut buffer = [0; 4096];
        while self.written < allowed {
            let len = (allowed - self.written)
                .min(plan.chunk[self.side])
                .min(4096);
            let chunk = &mut buffer[..len as usize];
            for (at, place) in (self.written..).zip(chunk.iter_mut()) {
                *place = byte(id as u64, self.side, at);
            }
            match sockets.tcp_send(self.stream, chunk) {
                Ok(taken) => {
                    self.written += taken as u64;
                    moved = true;
                }
                Err(StreamError::WouldBlock) => return Ok(moved),
                Err(error) => return Err(error.into()),
            }
        }
        if self.written == total {
            sockets.tcp_shutdown(self.stream, Shutdown::Write)?;
            self.shut = true;
            moved = true;
        }
        Ok(moved)
    }

    fn read(
        &mut self,
        sockets: &mut Sockets,
        connections: &[Connection],
        now: Nanos,
    ) -> Result<bool, Ended> {
        let mut moved = false;
        let mut buffer = [0; 4096];
        while !self.seen_end {
            let mut len = match self.id {
                Some(id) => connections[id].plan.chunk[self.side].min(4096),
                None => NAME_LEN - self.read,
            };
            let pause = self
                .id
                .and_then(|id| connections[id].plan.pauses[self.side]);
            if let Some(pause) = pause.filter(|_| !self.has_paused) {
                if self.read >= pause.at {
                    self.has_paused = true;
                    self.paused_until = Some(now + pause.time);
                    return Ok(moved);
                }
                len = len.min(pause.at - self.read);
            }
            match sockets.tcp_recv(self.stream, &mut buffer[..len as usize]) {
                Ok(0) => {
                    self.seen_end = true;
                    moved = true;
                }
                Ok(taken) => {
                    self.check(&buffer[..taken], connections)?;
                    moved = true;
                }
                Err(StreamError::WouldBlock) => return Ok(moved),
                Err(error) => return Err(error.into()),
            }
        }
        match self.id {
            Some(id) => {
                let expected = connections[id].plan.bytes[1 - self.side];
                if self.read != expected {
                    return Err(Ended::Wrong(Wrong(format!(
                        "connection {id} (port {}): the {} saw the end after {} bytes of {expected}",
                        connections[id].port,
                        self.who(),
                        self.read
                    ))));
                }
            }
            None => return Err(Ended::Stream(StreamError::ConnectionAborted)),
        }
        Ok(moved)
    }

    fn who(&self) -> &'static str {
        match self.side {
            CLIENT => "client",
            _ => "server",
        }
    }

    fn check(&mut self, bytes: &[u8], connections: &[Connection]) -> Result<(), Ended> {
        let wrong = |text| Err(Ended::Wrong(Wrong(text)));
        let Some(id) = self.id else {
            // The server learns whom it talks to.
            let at = self.read as usize;
            self.name[at..at + bytes.len()].copy_from_slice(bytes);
            self.read += bytes.len() as u64;
            if self.read == NAME_LEN {
                let id = u64::from_le_bytes(self.name);
                if id >= connections.len() as u64 {
                    return wrong(format!("a connection says that it is number {id:#x}"));
                }
                self.id = Some(id as usize);
            }
            return Ok(());
        };
        for (at, found) in (self.read..).zip(bytes) {
            let expected = byte(id as u64, 1 - self.side, at);
            if *found != expected {
                return wrong(format!(
                    "connection {id}: byte {at} of the {}'s is {found:#04x}, not {expected:#04x}",
                    if self.side == CLIENT {
                        "server"
                    } else {
                        "client"
                    },
                ));
            }
        }
        self.read += bytes.len() as u64;
        let total = connections[id].plan.bytes[1 - self.side];
        if self.read > total {
            return wrong(format!("connection {id}: more than {total} bytes arrived"));
        }
        Ok(())
    }
}

/// Why an exchange stopped for good.
enum Ended {
    Stream(StreamError),
    Wrong(Wrong),
}

impl From<StreamError> for Ended {
    fn from(error: StreamError) -> Self {
        Self::Stream(error)
    }
}
