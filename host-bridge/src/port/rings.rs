//! The control rings of a port whose guest shares memory with the host: messages
//! in and out, and what has to be announced before a sleep.
//!
//! Whoever owns the port carries the messages to and from its session, rings and
//! sleeps.

use shm_link::fault::PeerFault;
use shm_link::link::MAX_CONTROL_LEN;
use shm_link::offload::OffloadHeader;
use shm_link::record::{RecordReader, RecordWriter};
use shm_link::ring::{Arm, Wake};
use shm_link::shm::read_message;

use super::status::PortEnd;
use crate::session::Session;

/// The host's halves.
pub(super) struct ControlRings {
    rx: RecordReader,
    tx: RecordWriter,
    /// The guest closed the control pipe.
    closed: bool,
}

impl ControlRings {
    pub(super) fn new(rx: RecordReader, tx: RecordWriter) -> Self {
        Self {
            rx,
            tx,
            closed: false,
        }
    }

    /// Whether the guest closed the pipe: nothing will come any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Sends what the session has to say, as far as there is room.
    pub(super) fn transmit(&mut self, session: &mut Session) -> Result<Wake, PeerFault> {
        while let Some(message) = session.poll_transmit() {
            if !self.tx.write(message, OffloadHeader::NONE)? {
                break;
            }
            session.transmitted();
        }
        Ok(self.tx.publish())
    }

    /// The next message of the guest.
    pub(super) fn receive(&mut self, buf: &mut [u8]) -> Result<Option<usize>, PeerFault> {
        read_message(&mut self.rx, buf)
    }

    /// Gives the room of received messages back.
    pub(super) fn give_back(&mut self) -> Wake {
        self.rx.publish()
    }

    /// Announces sleep until the session can send what it has to, and, where it
    /// takes messages, until there is one.
    pub(super) fn arm(
        &mut self,
        session: &mut Session,
        takes_message: bool,
    ) -> Result<Arm, PortEnd> {
        if self.closed {
            return Ok(Arm::Sleep);
        }
        let wants_room = session.poll_transmit().is_some();
        if wants_room && self.tx.arm(MAX_CONTROL_LEN)? == Arm::Awake {
            return self.awake(session);
        }
        if takes_message && self.rx.arm()? == Arm::Awake {
            self.tx.disarm();
            return self.awake(session);
        }
        Ok(Arm::Sleep)
    }

    /// Takes the announcement back.
    pub(super) fn disarm(&self) {
        self.rx.disarm();
        self.tx.disarm();
    }

    /// Says that it is over. The guest is still to be rung.
    pub(super) fn close(&mut self) {
        let _ = self.rx.close().or(self.tx.close());
    }

    /// Something happened: work, or the end of the control pipe.
    fn awake(&mut self, session: &Session) -> Result<Arm, PortEnd> {
        self.closed = self.tx.is_peer_closed() || self.rx.is_finished()?;
        if self.closed && !session.is_running() {
            // The pumps wait for a configuration that nobody will ask for.
            return Err(PortEnd::Closed);
        }
        Ok(Arm::Awake)
    }
}
