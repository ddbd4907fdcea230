//! The network behind the ports: one Ethernet segment, and what stands in for a TAP.
//!
//! A frame goes to every other port, as on a bridge that has not learned yet, unless
//! its destination is another guest's address. What an interface does not take (a
//! super-frame, an unfinished checksum) is completed on the way, and what is longer
//! than its MTU is dropped, as by the kernel. Queues are bounded.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Instant;

use host_bridge::port::stepped::Ether;
use shm_link::offload::{GSO_NONE, GSO_UDP_L4, OffloadHeader, Offloads};
use shm_link::region::Region;

use crate::clock::{Clock, Nanos};
use crate::hostile;
use crate::random::Random;
use crate::segment::complete;

/// Frames that wait at an interface, as Linux has it (`txqueuelen`).
const QUEUE: usize = 1000;
const ETHERNET: usize = 14;

type Frame = (OffloadHeader, Vec<u8>);

/// A port's interface.
pub(crate) struct Tap {
    pub(crate) mac: [u8; 6],
    to_port: VecDeque<Frame>,
    from_port: VecDeque<Frame>,
    mtu: u16,
    carrier: bool,
    offloads: Offloads,
    /// Somebody deleted it, and it can be made again after this time.
    deleted: Option<Nanos>,
    /// Writes that the kernel has no memory for, in thousandths.
    pub(crate) refused: u64,
    pub(crate) random: Random,
    /// Frames and bytes since it was asked last.
    work: (u64, u64),
    pub(crate) log: Vec<String>,
    /// Memory that a hostile guest changes while its host looks at it.
    pub(crate) scribbled: Option<Region>,
    /// Frames that found the queue full or were too long.
    pub(crate) dropped: u64,
}

impl Tap {
    pub(crate) fn new(mac: [u8; 6], random: Random) -> Self {
        Self {
            mac,
            to_port: VecDeque::new(),
            from_port: VecDeque::new(),
            mtu: 1500,
            carrier: false,
            offloads: Offloads::NONE,
            refused: 0,
            random,
            work: (0, 0),
            log: Vec::new(),
            scribbled: None,
            dropped: 0,
            deleted: None,
        }
    }

    pub(crate) fn has_frames(&self) -> bool {
        !self.to_port.is_empty()
    }

    /// Whether it has a frame, or trouble.
    pub(crate) fn is_readable(&self) -> bool {
        self.has_frames() || self.deleted.is_some()
    }

    /// Frames and bytes moved since the last call.
    pub(crate) fn take_work(&mut self) -> (u64, u64) {
        std::mem::take(&mut self.work)
    }

    pub(crate) fn take_sent(&mut self) -> VecDeque<Frame> {
        std::mem::take(&mut self.from_port)
    }

    /// Somebody deletes it; it can be made again after a time.
    pub(crate) fn delete(&mut self, down: Nanos) {
        self.dropped += self.to_port.len() as u64;
        self.to_port.clear();
        self.deleted = Some(down);
    }

    /// For how long it cannot be made again, if somebody deleted it.
    pub(crate) fn deleted(&self) -> Option<Nanos> {
        self.deleted
    }

    /// A port makes it.
    pub(crate) fn open(&mut self) {
        self.deleted = None;
    }

    fn check(&self) -> io::Result<()> {
        match self.deleted {
            // EBADFD
            Some(_) => Err(io::Error::from_raw_os_error(77)),
            None => Ok(()),
        }
    }

    /// The process that had it open is gone, and with it what was queued.
    pub(crate) fn close(&mut self) {
        self.dropped += self.to_port.len() as u64;
        self.to_port.clear();
        self.carrier = false;
    }

    /// A frame of the network arrives.
    fn deliver(&mut self, (offload, frame): &Frame) {
        if !self.carrier || self.deleted.is_some() {
            self.dropped += 1;
            return;
        }
        let taken = match offload.gso_type {
            GSO_NONE => offload.is_plain() || self.offloads.contains(Offloads::CHECKSUM),
            GSO_UDP_L4 => self.offloads.contains(Offloads::USO),
            _ => self.offloads.contains(Offloads::TSO4.union(Offloads::TSO6)),
        };
        let frames = match taken {
            true => vec![(*offload, frame.clone())],
            false => {
                let whole = complete(*offload, frame.clone()).unwrap_or_default();
                whole
                    .into_iter()
                    .map(|f| (OffloadHeader::NONE, f))
                    .collect()
            }
        };
        for (offload, frame) in frames {
            let packet = match offload.gso_type {
                GSO_NONE => frame.len() - ETHERNET.min(frame.len()),
                kind => {
                    let header = if kind == GSO_UDP_L4 { 8 } else { 20 };
                    usize::from(offload.gso_size) + usize::from(offload.csum_start) + header
                        - ETHERNET
                }
            };
            if packet > usize::from(self.mtu) || self.to_port.len() >= QUEUE {
                self.dropped += 1;
            } else {
                self.to_port.push_back((offload, frame));
            }
        }
    }

    fn interfere(&mut self) {
        if let Some(region) = &self.scribbled
            && self.random.percent(5)
        {
            hostile::scribble(region, &mut self.random);
        }
    }
}

/// The port's hold on its interface.
pub(crate) struct Handle {
    pub(crate) tap: Rc<RefCell<Tap>>,
    pub(crate) clock: Clock,
}

impl Ether for Handle {
    fn now(&self) -> Instant {
        self.clock.host()
    }

    fn take(&self, max_len: usize) -> io::Result<Option<Frame>> {
        let mut tap = self.tap.borrow_mut();
        tap.check()?;
        let Some((offload, mut frame)) = tap.to_port.pop_front() else {
            return Ok(None);
        };
        frame.truncate(max_len);
        tap.work.0 += 1;
        tap.work.1 += frame.len() as u64;
        tap.interfere();
        Ok(Some((offload, frame)))
    }

    fn give(&self, offload: OffloadHeader, frame: Vec<u8>) -> io::Result<()> {
        let mut tap = self.tap.borrow_mut();
        tap.check()?;
        tap.work.0 += 1;
        tap.work.1 += frame.len() as u64;
        tap.interfere();
        let refused = tap.refused;
        if refused != 0 && tap.random.below(1000) < refused {
            // ENOBUFS
            return Err(io::Error::from_raw_os_error(105));
        }
        if tap.carrier && frame.len() >= ETHERNET {
            tap.from_port.push_back((offload, frame));
        }
        Ok(())
    }

    fn set(&self, mtu: u16, carrier: bool, offloads: Offloads) {
        let mut tap = self.tap.borrow_mut();
        (tap.mtu, tap.carrier, tap.offloads) = (mtu, carrier, offloads);
    }

    fn log(&self, text: &str) {
        self.tap.borrow_mut().log.push(text.to_owned());
    }
}

/// Sends a frame of the port `from` on to the others; who got it, as bits.
pub(crate) fn switch(taps: &[Rc<RefCell<Tap>>], from: usize, frame: &Frame) -> u64 {
    let destination = &frame.1[..6];
    let known = |tap: &Rc<RefCell<Tap>>| tap.borrow().mac == *destination;
    let place = taps.iter().position(known);
    let mut reached = 0;
    for (index, tap) in taps.iter().enumerate() {
        if index != from && place.is_none_or(|place| place == index) {
            tap.borrow_mut().deliver(frame);
            reached |= 1 << index;
        }
    }
    reached
}
