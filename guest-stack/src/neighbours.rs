//! What neighbours said of themselves lately, for an `Interface` that is new.
//!
//! smoltcp's cache of hardware addresses goes with its `Interface`, which a
//! change of MTU, MAC or offloads replaces. Asking anew would lose the first
//! packet to everybody. So the last ARP and neighbour discovery frame of each
//! neighbour is kept and shown to the new one, which learns from it by the same
//! rules.

use alloc::collections::VecDeque;

use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::Medium;
use smoltcp::time::{Duration, Instant};

use crate::classify::ETHERNET_LEN;
use crate::sink::Sink;

/// Neighbours that are remembered, the latest: a link has a router or two, and a
/// flood of forged ones is to cost little.
const MOST: usize = 16;
/// Longest frame worth keeping: an advertisement with its option has 86 bytes.
const LONGEST: usize = 96;
/// How long such a frame is worth showing. smoltcp believes it for a minute, and
/// for another with every frame from there, so one that is no longer true does
/// not live long.
const LIFETIME: Duration = Duration::from_secs(600);

struct Heard {
    at: Instant,
    frame: heapless::Vec<u8, LONGEST>,
}

/// Frames by which neighbours can be learned.
#[derive(Default)]
pub(crate) struct Neighbours(VecDeque<Heard>);

impl Neighbours {
    /// A neighbour sent this ARP or neighbour discovery frame.
    pub(crate) fn heard(&mut self, now: Instant, frame: &[u8]) {
        let Ok(kept) = heapless::Vec::from_slice(frame) else {
            return;
        };
        // Source and EtherType: one frame of each protocol and neighbour.
        let who = |frame: &[u8]| frame.get(6..ETHERNET_LEN).map(<[u8]>::to_vec);
        self.0.retain(|old| who(&old.frame) != who(frame));
        if self.0.len() == MOST {
            self.0.pop_front();
        }
        self.0.push_back(Heard {
            at: now,
            frame: kept,
        });
    }

    /// Shows a new interface what is still true.
    pub(crate) fn teach(&mut self, interface: &mut Interface, now: Instant) {
        self.0.retain(|heard| heard.at + LIFETIME > now);
        let mut nobody = SocketSet::new([]);
        for heard in &self.0 {
            // Answers to old questions go nowhere.
            let mut sink = Sink::new(Medium::Ethernet, ETHERNET_LEN + LONGEST);
            sink.show(&heard.frame);
            interface.poll_ingress_single(now, &mut sink, &mut nobody);
        }
    }
}
