//! A guest without a stack at the far end of a byte stream.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use shm_link::control::{GuestControl, GuestEvent, NetworkConfig};
use shm_link::fault::LinkError;
use shm_link::link::{FrameRx, FrameTx, Link, MAX_CONTROL_LEN, MAX_FRAME_LEN};
use shm_link::offload::OffloadHeader;
use shm_link::stream::fd::StreamFd;
use shm_link::stream::{Framing, StreamLink};

use crate::common::{PATIENCE, offer};

/// How long a guest at a line waits for its configuration before it begins again.
const LINE_PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct StreamGuest {
    pub(crate) link: StreamLink<StreamFd, StreamFd, Vec<u8>>,
    pub(crate) fd: StreamFd,
    framing: Framing,
    pub(crate) control: GuestControl,
    pub(crate) config: NetworkConfig,
    pub(crate) changes: Vec<NetworkConfig>,
    /// Frames given to the link so far.
    pub(crate) sent: u64,
    /// Frames taken so far.
    pub(crate) received: u64,
    generation: u32,
}

impl StreamGuest {
    /// A guest that has said nothing yet.
    pub(crate) fn new(fd: impl Into<OwnedFd>, framing: Framing) -> Self {
        let fd = StreamFd::new(fd.into()).unwrap();
        let end = || (fd.clone(), vec![0; framing.buffer_len(MAX_FRAME_LEN)]);
        Self {
            link: StreamLink::new(framing, MAX_FRAME_LEN, end(), end()).unwrap(),
            fd,
            framing,
            control: GuestControl::new(offer()),
            config: NetworkConfig::new([2, 0, 0, 0, 0, 1], 1500),
            changes: Vec::new(),
            sent: 0,
            received: 0,
            generation: 0,
        }
    }

    /// A guest that has its configuration.
    pub(crate) fn attach(fd: impl Into<OwnedFd>, framing: Framing) -> Self {
        let mut guest = Self::new(fd, framing);
        guest.negotiate();
        guest
    }

    pub(crate) fn negotiate(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let mut again = Instant::now() + LINE_PATIENCE;
        self.config.v4.clear();
        while self.config.v4.is_empty() {
            // Frames from before stand in front of the messages.
            let idle = self.try_receive().expect("control").is_none();
            if !idle || !self.config.v4.is_empty() {
                continue;
            }
            if self.framing == Framing::Prefixed {
                self.sleep(deadline);
                continue;
            }
            // What was said before the host had opened the line is lost: guests at lines
            // begin again.
            assert!(Instant::now() < deadline, "the guest waits for too long");
            self.nap(again.saturating_duration_since(Instant::now()));
            if Instant::now() >= again {
                self.control.restart();
                again += LINE_PATIENCE;
            }
        }
    }

    /// Moves control messages both ways, up to the next frame.
    pub(crate) fn control_step(&mut self) -> Result<(), LinkError> {
        let mut buf = [0; MAX_CONTROL_LEN];
        loop {
            while let Some(message) = self.control.poll_transmit() {
                if !self.link.send_control(message)? {
                    break;
                }
                self.control.transmitted();
            }
            let received = self.link.recv_control(&mut buf)?;
            if self.generation != self.link.generation() {
                // The host was restarted.
                self.generation = self.link.generation();
                self.control.restart();
                continue;
            }
            let Some(len) = received else { return Ok(()) };
            match self.control.handle_message(&buf[..len])? {
                Some(GuestEvent::Configured(config)) => self.config = config,
                Some(GuestEvent::Changed(config)) => {
                    self.control.applied(config.serial);
                    self.changes.push(config.clone());
                    self.config = config;
                }
                _ => {}
            }
        }
    }

    /// Sleeps until the stream has something; fails at `deadline`.
    pub(crate) fn sleep(&mut self, deadline: Instant) {
        let left = deadline
            .checked_duration_since(Instant::now())
            .expect("the guest waits for too long");
        self.nap(left);
    }

    /// Sleeps until the stream has something, or for `limit`.
    pub(crate) fn nap(&mut self, limit: Duration) {
        if self.link.arm(None).unwrap_or(false) {
            let mut events = PollFlags::IN;
            if self.link.wants_write() {
                events |= PollFlags::OUT;
            }
            let mut fds = [PollFd::from_borrowed_fd(self.fd.as_fd(), events)];
            let limit = Timespec::try_from(limit).unwrap();
            poll(&mut fds, Some(&limit)).unwrap();
        }
    }

    pub(crate) fn send(&mut self, frame: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, tx) = self.link.split();
            if let Some(room) = tx.reserve(frame.len()).expect("link") {
                room.copy_from_slice(frame);
                tx.commit(frame.len(), OffloadHeader::NONE);
                tx.flush();
                self.sent += 1;
                return;
            }
            self.sleep(deadline);
        }
    }

    /// Writes bytes past the link.
    pub(crate) fn write_raw(&mut self, bytes: &[u8]) {
        self.link.split().1.flush();
        assert!(!self.link.wants_write(), "it would stand inside a record");
        assert_eq!(rustix::io::write(&self.fd, bytes), Ok(bytes.len()));
    }

    /// The next frame that is there, if one is; control messages are answered on
    /// the way.
    pub(crate) fn try_receive(&mut self) -> Result<Option<Vec<u8>>, LinkError> {
        self.control_step()?;
        let (rx, _) = self.link.split();
        let frame = rx.peek()?.map(|(_, frame)| frame.to_vec());
        rx.consume();
        rx.flush();
        self.received += u64::from(frame.is_some());
        Ok(frame)
    }

    /// The next frame that `wanted` accepts.
    pub(crate) fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.try_receive().expect("link") {
                Some(frame) if wanted(&frame) => return frame,
                Some(_) => {}
                None => self.sleep(deadline),
            }
        }
    }

    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.config.gateway4.unwrap()
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.config.v4[0].addr
    }

    /// Asks the host's address for its MAC and waits for the answer.
    pub(crate) fn resolve_gateway(&mut self) -> [u8; 6] {
        let mut frame = vec![0xff; 6];
        frame.extend(self.config.mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(self.config.mac);
        frame.extend(self.address().octets());
        frame.extend([0; 6]);
        frame.extend(self.gateway().octets());
        // The kernel drops what it sends while it has not noticed yet that the
        // carrier is there; so this asks again, as any machine does.
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.send(&frame);
            let again = Instant::now() + Duration::from_millis(200);
            while let Some(left) = again.checked_duration_since(Instant::now()) {
                match self.try_receive().expect("link") {
                    Some(reply) if is_arp_reply(&reply, self.gateway()) => {
                        return reply[22..28].try_into().unwrap();
                    }
                    Some(_) => {}
                    None => self.nap(left),
                }
            }
            assert!(Instant::now() < deadline, "the gateway does not answer");
        }
    }

    pub(crate) fn echo_request(&self, mac: [u8; 6], seq: u16, payload: usize) -> Vec<u8> {
        let (from, to) = (self.address().octets(), self.gateway().octets());
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.config.mac, mac)
            .ipv4(from, to, 64)
            .icmpv4_echo_request(7, seq)
            .write(&mut frame, &vec![seq as u8; payload])
            .unwrap();
        frame
    }

    /// Pings the host and waits for its answer.
    pub(crate) fn ping(&mut self, mac: [u8; 6], seq: u16) -> Duration {
        let start = Instant::now();
        self.send(&self.echo_request(mac, seq, 1000));
        let reply = self.receive(|frame| is_echo_reply(frame, seq));
        assert_eq!(reply[42..], vec![seq as u8; 1000]);
        start.elapsed()
    }

    pub(crate) fn datagram(&self, mac: [u8; 6], port: u16, payload: &[u8]) -> Vec<u8> {
        let (from, to) = (self.address().octets(), self.gateway().octets());
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.config.mac, mac)
            .ipv4(from, to, 64)
            .udp(4000, port)
            .write(&mut frame, payload)
            .unwrap();
        frame
    }
}

fn is_arp_reply(frame: &[u8], from: Ipv4Addr) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 6] && frame[21] == 2 && frame[28..32] == from.octets()
}

fn is_echo_reply(frame: &[u8], seq: u16) -> bool {
    frame.len() > 42
        && frame[12..14] == [8, 0]
        && frame[23] == 1
        && frame[34] == 0
        && frame[40..42] == seq.to_be_bytes()
}

/// The payload of a datagram from the host's `port`.
pub(crate) fn udp_payload(frame: &[u8], port: u16) -> Option<&[u8]> {
    let is_udp = frame.len() > 42
        && frame[12..14] == [8, 0]
        && frame[23] == 17
        && frame[34..36] == port.to_be_bytes();
    is_udp.then(|| &frame[42..])
}
