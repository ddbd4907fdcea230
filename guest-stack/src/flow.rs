//! The table of everything that smoltcp polls: one small socket set each.
//!
//! ```text
//!   5-tuple ──map──► slot ──► Flow { set: one tcp::Socket }      ┐
//!                    slot ──► UdpSocket { set: one udp::Socket } ├─ dirty list
//!                    slot ──► HalfOpen, TimeWait (no socket)     ├─ timer order
//!                    slot ──► Quiet (DHCP, large echo replies)   ┘  waiting for a neighbour
//! ```
//! A segment finds its slot by hash, is fed to that set alone, and the slot goes
//! on the dirty list; nothing ever walks over all slots but a change of address.
//! This file keeps the order; what a slot does is decided in `tcp`, `udp` and
//! `egress`.

use alloc::boxed::Box;
use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::hash::{BuildHasher, Hash};

use hashbrown::HashMap;
use siphasher::sip::SipHasher13;
use smoltcp::iface::SocketSet;
use smoltcp::time::Instant;
use smoltcp::wire::IpEndpoint;

use crate::tcp::connection::Flow;
use crate::tcp::half_open::HalfOpen;
use crate::tcp::listener::Listener;
use crate::tcp::time_wait::TimeWait;
use crate::timers::Timers;
use crate::udp::UdpSocket;

/// The two ends of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FlowKey {
    /// Our end.
    pub(crate) local: IpEndpoint,
    /// The other end.
    pub(crate) remote: IpEndpoint,
}

/// Hashing under a key that the wire does not know, so that nobody can choose
/// addresses that fall into one place of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seeded([u64; 2]);

impl Seeded {
    pub(crate) const fn new(seed: [u64; 2]) -> Self {
        Self(seed)
    }
}

impl BuildHasher for Seeded {
    type Hasher = SipHasher13;

    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

/// Names a slot as long as what it held is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Handle {
    pub(crate) index: u32,
    generation: u32,
}

/// A socket set that belongs to the stack itself.
pub(crate) struct Quiet {
    pub(crate) set: SocketSet<'static>,
}

/// What a slot holds.
pub(crate) enum Entry {
    Free,
    HalfOpen(HalfOpen),
    Flow(Box<Flow>),
    TimeWait(TimeWait),
    Listener(Box<Listener>),
    Udp(Box<UdpSocket>),
    Quiet(Box<Quiet>),
}

impl Entry {
    /// Works on the entry's socket set, if it has one that may still be polled.
    pub(crate) fn with_set<R>(&mut self, f: impl FnOnce(&mut SocketSet<'_>) -> R) -> Option<R> {
        match self {
            Self::Flow(flow) => flow.with_live_set(f),
            Self::Udp(udp) => Some(f(&mut udp.set)),
            Self::Quiet(quiet) => Some(f(&mut quiet.set)),
            Self::Free | Self::HalfOpen(_) | Self::TimeWait(_) | Self::Listener(_) => None,
        }
    }
}

struct Slot {
    generation: u32,
    /// On the dirty list.
    dirty: bool,
    /// In the timer order.
    deadline: Option<Instant>,
    entry: Entry,
}

/// The table.
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    keys: HashMap<FlowKey, u32, Seeded>,
    dirty: VecDeque<u32>,
    /// Slots whose last attempt to send met an unknown neighbour.
    waiting: BTreeSet<u32>,
    timers: Timers,
    /// Slots that are neither free nor TIME-WAIT.
    live: usize,
}

impl Table {
    pub(crate) fn new(hasher: Seeded) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            keys: HashMap::with_hasher(hasher),
            dirty: VecDeque::new(),
            waiting: BTreeSet::new(),
            timers: Timers::default(),
            live: 0,
        }
    }

    /// Slots that hold something other than TIME-WAIT.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// Puts an entry into a free slot.
    pub(crate) fn insert(&mut self, entry: Entry) -> Handle {
        self.live += usize::from(!matches!(entry, Entry::TimeWait(_)));
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.entry = entry;
            return Handle {
                index,
                generation: slot.generation,
            };
        }
        // Memory ends long before 2³² slots.
        let index = self.slots.len() as u32;
        self.slots.push(Slot {
            generation: 0,
            dirty: false,
            deadline: None,
            entry,
        });
        Handle {
            index,
            generation: 0,
        }
    }

    /// Empties a slot and gives what it held. Its key, if it had one, must have
    /// been [forgotten](Self::forget_key).
    pub(crate) fn remove(&mut self, index: u32) -> Entry {
        self.set_deadline(index, None);
        self.set_waiting(index, false);
        let slot = &mut self.slots[index as usize];
        let entry = core::mem::replace(&mut slot.entry, Entry::Free);
        if matches!(entry, Entry::Free) {
            return entry;
        }
        self.live -= usize::from(!matches!(entry, Entry::TimeWait(_)));
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        entry
    }

    /// Puts another entry into an occupied slot, whose name stays valid.
    pub(crate) fn replace(&mut self, index: u32, entry: Entry) {
        let slot = &mut self.slots[index as usize];
        self.live -= usize::from(!matches!(slot.entry, Entry::TimeWait(_)));
        self.live += usize::from(!matches!(entry, Entry::TimeWait(_)));
        slot.entry = entry;
    }

    /// The slot's entry. `index` must have come from this table.
    pub(crate) fn entry(&mut self, index: u32) -> &mut Entry {
        &mut self.slots[index as usize].entry
    }

    /// The entry that a handle names, if it is still there.
    pub(crate) fn named(&mut self, handle: Handle) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(handle.index as usize)?;
        (slot.generation == handle.generation).then_some(&mut slot.entry)
    }

    /// The name of an occupied slot.
    pub(crate) fn handle(&self, index: u32) -> Handle {
        Handle {
            index,
            generation: self.slots[index as usize].generation,
        }
    }

    pub(crate) fn find(&self, key: &FlowKey) -> Option<u32> {
        self.keys.get(key).copied()
    }

    pub(crate) fn set_key(&mut self, key: FlowKey, index: u32) {
        self.keys.insert(key, index);
    }

    /// Takes a key away from a slot; a key that another slot has by now stays.
    pub(crate) fn forget_key(&mut self, key: &FlowKey, index: u32) {
        if self.find(key) == Some(index) {
            self.keys.remove(key);
        }
    }

    /// Puts a slot on the dirty list, once.
    pub(crate) fn mark(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push_back(index);
        }
    }

    /// Takes the slot that is dirty for longest. It may have been emptied since.
    pub(crate) fn next_dirty(&mut self) -> Option<u32> {
        let index = self.dirty.pop_front()?;
        self.slots[index as usize].dirty = false;
        Some(index)
    }

    /// Whether something happened to a slot since its last turn.
    pub(crate) fn is_dirty(&self, index: u32) -> bool {
        self.slots[index as usize].dirty
    }

    /// Takes a slot off the dirty list if it was the last to be marked.
    pub(crate) fn unmark_last(&mut self, index: u32) {
        if self.dirty.back() == Some(&index) {
            self.dirty.pop_back();
            self.slots[index as usize].dirty = false;
        }
    }

    /// Puts a slot back where it was taken from.
    pub(crate) fn mark_first(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !slot.dirty {
            slot.dirty = true;
            self.dirty.push_front(index);
        }
    }

    pub(crate) fn any_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub(crate) fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// Sets or clears a slot's deadline.
    pub(crate) fn set_deadline(&mut self, index: u32, deadline: Option<Instant>) {
        let slot = &mut self.slots[index as usize];
        let before = core::mem::replace(&mut slot.deadline, deadline);
        self.timers.change(index, before, deadline);
    }

    /// The earliest deadline of all slots.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.earliest()
    }

    /// Takes out a slot whose deadline has come.
    pub(crate) fn next_expired(&mut self, now: Instant) -> Option<u32> {
        let index = self.timers.expired(now)?;
        self.slots[index as usize].deadline = None;
        Some(index)
    }

    /// Remembers whether a slot waits for a neighbour's hardware address.
    pub(crate) fn set_waiting(&mut self, index: u32, waiting: bool) {
        if waiting {
            self.waiting.insert(index);
        } else if !self.waiting.is_empty() {
            self.waiting.remove(&index);
        }
    }

    /// Whether a slot waits for a neighbour's hardware address.
    pub(crate) fn waits(&self, index: u32) -> bool {
        self.waiting.contains(&index)
    }

    /// A neighbour may have answered: all that wait try again.
    pub(crate) fn mark_waiting(&mut self) {
        for index in &self.waiting {
            let slot = &mut self.slots[*index as usize];
            if !slot.dirty {
                slot.dirty = true;
                self.dirty.push_back(*index);
            }
        }
    }

    /// Every occupied slot; for changes of configuration only.
    pub(crate) fn occupied(&self) -> Vec<u32> {
        let occupied = |(index, slot): (usize, &Slot)| {
            (!matches!(slot.entry, Entry::Free)).then_some(index as u32)
        };
        self.slots.iter().enumerate().filter_map(occupied).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::time_wait::TimeWait;
    use smoltcp::wire::IpAddress;

    fn key(port: u16) -> FlowKey {
        FlowKey {
            local: IpEndpoint::new(IpAddress::v4(10, 0, 0, 1), 80),
            remote: IpEndpoint::new(IpAddress::v4(10, 0, 0, 2), port),
        }
    }

    fn entry(port: u16) -> Entry {
        Entry::TimeWait(TimeWait::for_test(key(port)))
    }

    #[test]
    fn a_handle_dies_with_what_it_named_though_the_slot_is_used_again() {
        let mut table = Table::new(Seeded::new([0, 0]));
        let first = table.insert(entry(1));
        assert!(table.named(first).is_some());
        table.remove(first.index);
        let second = table.insert(entry(2));
        assert_eq!(first.index, second.index);
        assert!(table.named(first).is_none());
        assert!(table.named(second).is_some());
    }

    #[test]
    fn a_slot_is_dirty_once_and_in_the_order_of_marking() {
        let mut table = Table::new(Seeded::new([0, 0]));
        let a = table.insert(entry(1)).index;
        let b = table.insert(entry(2)).index;
        table.mark(b);
        table.mark(a);
        table.mark(b);
        assert_eq!(table.next_dirty(), Some(b));
        assert_eq!(table.next_dirty(), Some(a));
        assert_eq!(table.next_dirty(), None);
    }

    #[test]
    fn a_key_that_moved_to_another_slot_is_not_forgotten_with_the_first() {
        let mut table = Table::new(Seeded::new([0, 0]));
        let a = table.insert(entry(1)).index;
        let b = table.insert(entry(1)).index;
        table.set_key(key(1), a);
        table.set_key(key(1), b);
        table.forget_key(&key(1), a);
        assert_eq!(table.find(&key(1)), Some(b));
        table.forget_key(&key(1), b);
        assert_eq!(table.find(&key(1)), None);
    }

    #[test]
    fn entries_without_a_socket_are_small() {
        assert!(size_of::<HalfOpen>() <= 208, "{}", size_of::<HalfOpen>());
        assert!(size_of::<Slot>() <= 256, "{}", size_of::<Slot>());
        std::println!(
            "half-open {}, TIME-WAIT {}, slot {}, flow {}, smoltcp socket {}, interface {}",
            size_of::<HalfOpen>(),
            size_of::<TimeWait>(),
            size_of::<Slot>(),
            size_of::<Flow>(),
            size_of::<smoltcp::iface::SocketStorage<'_>>(),
            size_of::<smoltcp::iface::Interface>(),
        );
    }
}
