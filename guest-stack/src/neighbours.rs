//! What neighbours said of themselves lately, for smoltcp's cache of hardware addresses.
//!
//! The cache goes with its `Interface`, which a change of MTU, MAC or offloads
//! replaces. Asking anew would lose the first packet to everybody. So the last ARP
//! and neighbour discovery frame of each neighbour is kept and shown to the new
//! one, which learns from it by the same rules.
//!
//! And the cache takes in whoever speaks: a storm of ARP would push those out that
//! connections need. So in a storm what the neighbours said that were asked for is
//! shown again, before the cache is full of others.

use alloc::collections::VecDeque;

use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::Medium;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{IpAddress, Ipv4Address, Ipv6Address};

use crate::classify::{ETHERNET_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV6, PROTOCOL_ICMPV6};
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
/// How long smoltcp believes it.
const BELIEVED: Duration = Duration::from_secs(60);
/// Frames of neighbours after which those that were asked for are shown again: half
/// of what smoltcp's cache has room for (`.cargo/config.toml`).
const STORM: usize = 32;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Where ICMPv6 begins, behind an IPv6 header without extensions.
const ICMPV6: usize = ETHERNET_LEN + 40;

struct Heard {
    at: Instant,
    /// Whom it is about.
    who: IpAddress,
    frame: heapless::Vec<u8, LONGEST>,
}

/// Frames by which neighbours can be learned.
#[derive(Default)]
pub(crate) struct Neighbours {
    heard: VecDeque<Heard>,
    /// Frames since the last reminder.
    since: usize,
}

/// The neighbours that were asked for last.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    latest: heapless::Deque<IpAddress, MOST>,
    /// The last one, until somebody takes note of it.
    last: Option<IpAddress>,
}

impl Asked {
    /// This frame is sent.
    pub(crate) fn sent(&mut self, frame: &[u8]) {
        let Some(target) = question(frame) else {
            return;
        };
        self.last = Some(target);
        if !self.contains(&target) {
            if self.latest.is_full() {
                self.latest.pop_front();
            }
            // There is room now.
            let _ = self.latest.push_back(target);
        }
    }

    /// Whom was asked for since this was called last.
    pub(crate) fn take_last(&mut self) -> Option<IpAddress> {
        self.last.take()
    }

    fn contains(&self, who: &IpAddress) -> bool {
        self.latest.iter().any(|asked| asked == who)
    }
}

/// Whom a frame asks for, if it is an ARP request or a neighbour solicitation.
fn question(frame: &[u8]) -> Option<IpAddress> {
    match ethertype(frame)? {
        ETHERTYPE_ARP if *frame.get(21)? == 1 => v4(frame, 38),
        ETHERTYPE_IPV6 if icmpv6(frame)? == SOLICITATION => v6(frame, ICMPV6 + 8),
        _ => None,
    }
}

/// Whom a frame is for that is for one only, be it sent to all: an ARP frame, or a neighbour
/// solicitation.
fn target(frame: &[u8]) -> Option<IpAddress> {
    match ethertype(frame)? {
        ETHERTYPE_ARP => v4(frame, 38),
        ETHERTYPE_IPV6 if icmpv6(frame)? == SOLICITATION => v6(frame, ICMPV6 + 8),
        _ => None,
    }
}

/// Whose hardware address a frame tells.
fn subject(frame: &[u8]) -> Option<IpAddress> {
    match ethertype(frame)? {
        ETHERTYPE_ARP => v4(frame, 28),
        ETHERTYPE_IPV6 => match icmpv6(frame)? {
            SOLICITATION => v6(frame, ETHERNET_LEN + 8),
            ADVERTISEMENT => v6(frame, ICMPV6 + 8),
            _ => None,
        },
        _ => None,
    }
}

fn ethertype(frame: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]))
}

/// The type of a message without extension headers before it.
fn icmpv6(frame: &[u8]) -> Option<u8> {
    (*frame.get(ETHERNET_LEN + 6)? == PROTOCOL_ICMPV6).then_some(*frame.get(ICMPV6)?)
}

fn v4(frame: &[u8], at: usize) -> Option<IpAddress> {
    let octets: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
    Some(Ipv4Address::from(octets).into())
}

fn v6(frame: &[u8], at: usize) -> Option<IpAddress> {
    let octets: [u8; 16] = frame.get(at..at + 16)?.try_into().ok()?;
    Some(Ipv6Address::from(octets).into())
}

impl Neighbours {
    /// A neighbour sent this ARP or neighbour discovery frame, which was shown to
    /// `interface`.
    pub(crate) fn heard(
        &mut self,
        now: Instant,
        frame: &[u8],
        asked: &Asked,
        interface: &mut Interface,
    ) {
        // smoltcp learns nothing from a question to somebody else.
        if target(frame).is_none_or(|target| interface.has_ip_addr(target)) {
            self.keep(now, frame, asked);
        }
        self.since += 1;
        if self.since >= STORM {
            self.since = 0;
            self.show(interface, now, |who| asked.contains(who));
        }
    }

    fn keep(&mut self, now: Instant, frame: &[u8], asked: &Asked) {
        let (Some(who), Ok(frame)) = (subject(frame), heapless::Vec::from_slice(frame)) else {
            return;
        };
        self.heard.retain(|old| old.who != who);
        if self.heard.len() == MOST {
            let stranger = self.heard.iter().position(|old| !asked.contains(&old.who));
            self.heard.remove(stranger.unwrap_or(0));
        }
        self.heard.push_back(Heard {
            at: now,
            who,
            frame,
        });
    }

    /// Whether smoltcp should know a neighbour: it said something within the last minute.
    pub(crate) fn heard_of(&self, now: Instant, who: &IpAddress) -> bool {
        let mut heard = self.heard.iter();
        heard.any(|heard| heard.who == *who && heard.at + BELIEVED > now)
    }

    /// Shows a new interface what is still true.
    pub(crate) fn teach(&mut self, interface: &mut Interface, now: Instant) {
        self.show(interface, now, |_| true);
    }

    fn show(
        &mut self,
        interface: &mut Interface,
        now: Instant,
        wanted: impl Fn(&IpAddress) -> bool,
    ) {
        self.heard.retain(|heard| heard.at + LIFETIME > now);
        let mut nobody = SocketSet::new([]);
        for heard in self.heard.iter().filter(|heard| wanted(&heard.who)) {
            // Answers to old questions go nowhere.
            let mut sink = Sink::new(Medium::Ethernet, ETHERNET_LEN + LONGEST);
            sink.show(&heard.frame);
            interface.poll_ingress_single(now, &mut sink, &mut nobody);
        }
    }
}
