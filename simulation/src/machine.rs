//! A guest's stack on whatever its link is.

use guest_stack::config::StackConfig;
use guest_stack::control::Control;
use guest_stack::sockets::Sockets;
use guest_stack::stack::{Poll, Stack};
use guest_stack::time::Instant;
use shm_link::link::{FrameTx, Link, MAX_FRAME_LEN};
use shm_link::offload::OffloadHeader;
use shm_link::region::Region;
use shm_link::shm::ShmLink;
use shm_link::stream::StreamLink;

use crate::guest::Bell;
use crate::hostile;
use crate::random::Random;
use crate::stream::{GUEST, Line, LineEnd};

/// What lies between a guest and its port.
#[derive(Clone)]
pub(crate) enum Cable {
    /// Shared memory, and the bell that the guest rings.
    Memory(Region, Bell),
    /// A byte stream.
    Line(Line),
}

/// A stack, whatever its link.
pub(crate) trait Machine {
    fn poll(&mut self, now: Instant) -> Poll;
    fn arm(&mut self) -> bool;
    fn disarm(&mut self);
    fn sockets(&mut self) -> &mut Sockets;
    /// Puts another cable of the same kind under the running stack.
    fn replace(&mut self, cable: &Cable, now: Instant) -> Result<(), String>;
    /// Whether a sleeping guest has a reason to wake up when it is rung.
    fn is_woken(&mut self, cable: &Cable) -> bool;
    /// Sends frames and messages that make no sense.
    fn send_nonsense(&mut self, mac: [u8; 6], random: &mut Random);
}

/// A stack on `cable` that begins to negotiate.
pub(crate) fn boot(
    cable: &Cable,
    config: StackConfig,
    control: Control,
    now: Instant,
) -> Result<Box<dyn Machine>, String> {
    Ok(match cable {
        Cable::Memory(..) => Box::new(Stack::with_control(
            <ShmLink<Bell> as Plug>::plug(cable)?,
            config,
            control,
            now,
        )),
        Cable::Line(_) => Box::new(Stack::with_control(
            <OverLine as Plug>::plug(cable)?,
            config,
            control,
            now,
        )),
    })
}

type OverLine = StreamLink<LineEnd, LineEnd, Vec<u8>>;

/// A link that can be made from a cable.
trait Plug: Link + Sized {
    fn plug(cable: &Cable) -> Result<Self, String>;
    fn is_woken(&mut self, cable: &Cable) -> bool;
}

impl Plug for ShmLink<Bell> {
    fn plug(cable: &Cable) -> Result<Self, String> {
        let Cable::Memory(region, bell) = cable else {
            return Err("a cable of another kind".to_owned());
        };
        // SAFETY: the host of the simulation keeps to the layout. A hostile guest changes
        // its own memory only between its steps and those of its host, or while its host
        // works: never while it looks at a frame itself.
        unsafe { Self::attach(region.clone(), bell.clone()) }.map_err(|error| error.to_string())
    }

    fn is_woken(&mut self, _: &Cable) -> bool {
        true
    }
}

impl Plug for OverLine {
    fn plug(cable: &Cable) -> Result<Self, String> {
        let Cable::Line(line) = cable else {
            return Err("a cable of another kind".to_owned());
        };
        let len = line.framing.buffer_len(MAX_FRAME_LEN);
        let end = || (line.end(GUEST), vec![0; len]);
        Self::new(line.framing, MAX_FRAME_LEN, end(), end()).map_err(|error| error.to_string())
    }

    fn is_woken(&mut self, cable: &Cable) -> bool {
        let Cable::Line(line) = cable else {
            return false;
        };
        let [readable, writable] = line.is_ready(GUEST);
        (self.wants_read() && readable) || (self.wants_write() && writable)
    }
}

impl<L: Plug> Machine for Stack<L> {
    fn poll(&mut self, now: Instant) -> Poll {
        self.poll(now)
    }

    fn arm(&mut self) -> bool {
        self.arm()
    }

    fn disarm(&mut self) {
        self.disarm();
    }

    fn sockets(&mut self) -> &mut Sockets {
        self.sockets()
    }

    fn replace(&mut self, cable: &Cable, now: Instant) -> Result<(), String> {
        self.replace_link(L::plug(cable)?, now);
        Ok(())
    }

    fn is_woken(&mut self, cable: &Cable) -> bool {
        self.link().is_woken(cable)
    }

    fn send_nonsense(&mut self, mac: [u8; 6], random: &mut Random) {
        if random.percent(30) {
            let (_, tx) = self.link().split();
            for _ in 0..random.between(1, 20) {
                let frame = hostile::frame(mac, random, tx.max_frame_len());
                if let Ok(Some(room)) = tx.reserve(frame.len()) {
                    room.copy_from_slice(&frame);
                    tx.commit(frame.len(), OffloadHeader::NONE);
                }
            }
            tx.flush();
        }
        if random.below(400) == 0 {
            let len = random.between(1, 200) as usize;
            let message: Vec<u8> = (0..len).map(|_| random.next_u64() as u8).collect();
            let _ = self.link().send_control(&message);
        }
    }
}
