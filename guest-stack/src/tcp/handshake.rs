//! From a SYN to a stream: handshakes that others begin.
//!
//! Called by `ingress` for segments of no connection and of handshakes under way,
//! and by `egress` when the timer of one comes. What a segment means is decided
//! in `half_open`; a full backlog never resets anybody. A SYN for whose record there is
//! no place is answered with a `cookie`.

use shm_link::link::FrameTx;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;
use smoltcp::wire::{Ipv4Packet, TcpControl, TcpPacket, TcpRepr};

use super::connection::Flow;
use super::half_open::{HalfOpen, Target, Verdict};
use super::recovery::Promises;
use super::segment::{Received, Segment};
use super::{TcpStreamId, birth, cookie};
use crate::classify::{self, Class, ETHERNET_LEN, Kind, TCP_ACK, TCP_RST, TCP_SYN, TcpHeader};
use crate::context::Context;
use crate::device::Wire;
use crate::flow::{Entry, FlowKey, Handle};
use crate::ingress::Ending;
use crate::registry;
use crate::sockets::Sockets;

impl Sockets {
    /// What receives a connection to this address and port, if anything does.
    pub(super) fn target(&mut self, key: &FlowKey) -> Option<Target> {
        let index = self.listeners.find(&key.local.addr, key.local.port);
        let listener = index.and_then(|index| {
            let handle = self.table.handle(index);
            match self.table.entry(index) {
                Entry::Listener(listener) => Some((handle, listener.options)),
                _ => None,
            }
        });
        let callback = self.registry.accept_options(key.local.port);
        let options = callback.or(listener.map(|(_, options)| options))?;
        Some(Target {
            listener: listener.map(|(handle, _)| handle),
            options,
        })
    }

    /// Connections and sockets of all kinds, without handshakes under way and TIME-WAIT.
    pub(super) fn connections(&self) -> usize {
        self.table.live() - self.half_open
    }

    /// Whether a listener takes one more connection or handshake. An accept
    /// callback alone always does.
    fn has_room(&mut self, key: &FlowKey, listener: Option<Handle>, handshake: bool) -> bool {
        if self.registry.accept_options(key.local.port).is_some() {
            return true;
        }
        match listener.and_then(|handle| self.table.named(handle)) {
            Some(Entry::Listener(listener)) => {
                listener.queue.len() < listener.backlog
                    && (!handshake || listener.half_open < listener.backlog)
            }
            _ => false,
        }
    }

    /// A segment of no connection: perhaps the beginning of one. `None`: it is
    /// not for us.
    pub(crate) fn receive_syn(
        &mut self,
        now: Instant,
        key: FlowKey,
        received: Received<'_>,
        tx: &mut dyn FrameTx,
    ) -> Option<Ending> {
        if received.tcp.flags & (TCP_SYN | TCP_ACK | TCP_RST) != TCP_SYN {
            return None;
        }
        let target = self.target(&key)?;
        let listener = target.listener;
        let limits = self.config.limits;
        let Some(syn) = self.parse(received) else {
            return Some(Ending::Malformed);
        };
        if syn.control != TcpControl::Syn || key.remote.port == 0 {
            return Some(Ending::Malformed);
        }
        if self.connections() >= limits.connections || !self.has_room(&key, listener, false) {
            return Some(Ending::BacklogFull);
        }
        let mac = classify::source(received.frame)?;
        let timeout = limits.half_open_timeout;
        let full = self.half_open >= limits.half_open;
        if full || !self.has_room(&key, listener, true) {
            // A listener has room for as many as it wants to have waiting; without a place
            // for a record nobody gets in, to none of them.
            if !limits.syn_cookies || !full && !self.is_flooded(listener, now) {
                return Some(Ending::BacklogFull);
            }
            if !self.gave_cookies(now) {
                self.spent.forget();
            }
            self.cookies_until = Some(now + cookie::LIFETIME);
            self.counters.tcp_cookies_sent += 1;
            let isn = cookie::bake(&self.hasher, &key, &syn, now);
            let forgotten = HalfOpen::new(key, mac, target, isn, &syn, now, timeout);
            self.send_segment(&forgotten.syn_ack(self.io.mtu), mac, tx);
            return Some(Ending::Tcp);
        }
        let isn = birth::initial_sequence(&self.hasher, &key, now);
        let half_open = HalfOpen::new(key, mac, target, isn, &syn, now, timeout);
        let answer = half_open.syn_ack(self.io.mtu);
        self.keep(half_open);
        self.send_segment(&answer, mac, tx);
        Some(Ending::Tcp)
    }

    /// Whether half the places for handshakes are held by peers that do not exist or do not
    /// answer, or were lately: records expire all together, and the next are young. A crowd
    /// that answers is not given cookies: it would be told that it is connected, with no
    /// room for it.
    fn is_flooded(&mut self, listener: Option<Handle>, now: Instant) -> bool {
        if self.gave_cookies(now) {
            return true;
        }
        let most = self.config.limits.half_open;
        let places = match listener.and_then(|handle| self.table.named(handle)) {
            Some(Entry::Listener(listener)) => listener.backlog.min(most),
            _ => most,
        };
        2 * self.silent_half_open >= places
    }

    /// Enters a handshake under way; gives its slot.
    fn keep(&mut self, half_open: HalfOpen) -> u32 {
        let (key, deadline) = (half_open.key, half_open.deadline());
        let listener = half_open.listener;
        let index = self.table.insert(Entry::HalfOpen(half_open)).index;
        self.table.set_key(key, index);
        self.table.set_deadline(index, Some(deadline));
        self.half_open += 1;
        if let Some(Entry::Listener(listener)) = listener.and_then(|l| self.table.named(l)) {
            listener.half_open += 1;
        }
        index
    }

    /// A segment of no connection, or one that its handshake's record does not explain:
    /// perhaps it brings back a cookie, and is the last ACK of a handshake that was not
    /// kept. `None`: it is not.
    pub(crate) fn receive_cookie(
        &mut self,
        now: Instant,
        key: FlowKey,
        received: Received<'_>,
        tx: &mut dyn FrameTx,
    ) -> Option<Ending> {
        if !self.may_follow_a_cookie(now, received.tcp) {
            return None;
        }
        let target = self.target(&key)?;
        let (isn, irs) = (
            received.tcp.ack.wrapping_sub(1),
            received.tcp.seq.wrapping_sub(1),
        );
        let syn = cookie::check(&self.hasher, &key, irs, isn, now)?;
        let Some(ack) = self.parse(received) else {
            return Some(Ending::Malformed);
        };
        // It believes itself connected, so it has a record to wait in, beside those of a
        // flood.
        if self.half_open >= 2 * self.config.limits.half_open {
            return Some(Ending::BacklogFull);
        }
        let mac = classify::source(received.frame)?;
        if !self.spent.spend(key, isn) {
            // Its connection was there and is gone.
            if !self.limiter.permit(now) {
                return Some(Ending::ReplyLimited);
            }
            self.feed_nobody(now, received.frame, tx);
            return Some(Ending::Tcp);
        }
        if let Some(index) = self.table.find(&key) {
            // The SYN came once more when there was a place for it.
            self.forget_half_open(index);
        }
        let numbers = [isn, irs];
        let half_open = HalfOpen::remembered(key, mac, target, numbers, syn, ack.window_len, now);
        self.counters.tcp_cookies_taken += 1;
        let index = self.keep(half_open);
        Some(self.establish(now, index, received, tx))
    }

    /// Whether cookies may come back still.
    fn gave_cookies(&self, now: Instant) -> bool {
        self.cookies_until.is_some_and(|until| now <= until)
    }

    fn may_follow_a_cookie(&self, now: Instant, tcp: &TcpHeader) -> bool {
        self.gave_cookies(now) && tcp.flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_ACK
    }

    /// A segment to a listener that brings no cookie back, while some are about: the one
    /// that did may have been lost on its way, or found the queue full, and comes again.
    /// So nobody is reset; it is dropped. `None`: it cannot be such a segment.
    pub(crate) fn is_behind_a_cookie(
        &mut self,
        now: Instant,
        key: &FlowKey,
        tcp: &TcpHeader,
    ) -> Option<Ending> {
        if !self.may_follow_a_cookie(now, tcp) {
            return None;
        }
        self.target(key).map(|_| Ending::BacklogFull)
    }

    /// Parses a TCP segment, its checksum too unless the link vouched for it, and
    /// that of its IPv4 header, for which no link vouches.
    pub(super) fn parse<'f>(&self, received: Received<'f>) -> Option<TcpRepr<'f>> {
        let Received { packet, frame, .. } = received;
        let bytes = frame.get(packet.payload.clone())?;
        if packet.is_ipv4() {
            let header = Ipv4Packet::new_checked(frame.get(ETHERNET_LEN..)?).ok()?;
            if !header.verify_checksum() {
                return None;
            }
        }
        let segment = TcpPacket::new_checked(bytes).ok()?;
        let checksums = if self.io.rx_checksum {
            ChecksumCapabilities::ignored()
        } else {
            ChecksumCapabilities::default()
        };
        TcpRepr::parse(&segment, &packet.src, &packet.dst, &checksums).ok()
    }

    pub(super) fn send_segment(&mut self, segment: &Segment, mac: [u8; 6], tx: &mut dyn FrameTx) {
        let own = self.net.mac;
        let mut wire = Wire {
            tx,
            state: &mut self.io,
        };
        // Without room it is lost, as segments may be: it is sent again.
        let _ = wire.send(segment.frame_len(), |frame| {
            segment.write_frame(frame, own, mac);
        });
    }

    /// A segment of a handshake under way.
    pub(crate) fn receive_half_open(
        &mut self,
        now: Instant,
        index: u32,
        received: Received<'_>,
        tx: &mut dyn FrameTx,
    ) -> Ending {
        if self.parse(received).is_none() {
            return Ending::Malformed;
        }
        let mtu = self.io.mtu;
        let Entry::HalfOpen(half_open) = self.table.entry(index) else {
            return Ending::Malformed;
        };
        let key = half_open.key;
        match half_open.judge(received.tcp) {
            Verdict::Ignore => Ending::Tcp,
            Verdict::Repeat => {
                half_open.sent_again();
                let (answer, mac) = (half_open.syn_ack(mtu), half_open.mac);
                self.send_segment(&answer, mac, tx);
                Ending::Tcp
            }
            Verdict::Forget => {
                self.forget_half_open(index);
                Ending::Tcp
            }
            Verdict::Replace => {
                self.forget_half_open(index);
                self.receive_syn(now, key, received, tx)
                    .unwrap_or(Ending::Malformed)
            }
            Verdict::Reset => {
                // The record may be of a SYN that came twice, the first of which was given a
                // cookie.
                let cookie = self
                    .receive_cookie(now, key, received, tx)
                    .or_else(|| self.is_behind_a_cookie(now, &key, received.tcp));
                if let Some(ending) = cookie {
                    return ending;
                }
                if !self.limiter.permit(now) {
                    return Ending::ReplyLimited;
                }
                self.feed_nobody(now, received.frame, tx);
                Ending::Tcp
            }
            Verdict::Complete => self.establish(now, index, received, tx),
        }
    }

    /// The last ACK of a handshake came: makes the stream.
    fn establish(
        &mut self,
        now: Instant,
        index: u32,
        received: Received<'_>,
        tx: &mut dyn FrameTx,
    ) -> Ending {
        let mtu = self.io.mtu;
        let Entry::HalfOpen(half_open) = self.table.entry(index) else {
            return Ending::Malformed;
        };
        let (key, mac, options) = (half_open.key, half_open.mac, half_open.options);
        let (syn, isn, irs) = (half_open.syn(), half_open.isn, half_open.irs);
        let round_trip = half_open.round_trip(now);
        // The listener may have been closed, or another opened, since the SYN.
        let Some(Target { listener, .. }) = self.target(&key) else {
            self.forget_half_open(index);
            self.feed_nobody(now, received.frame, tx);
            return Ending::Tcp;
        };
        let most = self.config.limits.connections;
        if self.connections() >= most || !self.has_room(&key, listener, false) {
            if let Entry::HalfOpen(half_open) = self.table.entry(index) {
                if half_open.wait_for_room(now, received.tcp.window) {
                    self.silent_half_open -= 1;
                }
                let deadline = half_open.deadline();
                let joins = !core::mem::replace(&mut half_open.in_row, true);
                self.table.set_deadline(index, Some(deadline));
                if joins {
                    self.join_row(index, listener);
                }
            }
            return Ending::BacklogFull;
        }
        let cell = birth::accepted(self.pool.socket(&options), &syn, isn, mtu, now);
        self.uncount_half_open(index);
        let Some(cell) = cell else {
            self.table.forget_key(&key, index);
            self.table.remove(index);
            self.feed_nobody(now, received.frame, tx);
            return Ending::Malformed;
        };
        let mut flow = Flow::new(key, cell, options);
        let syn = syn.tcp;
        let promises = Promises::new(syn.window_scale, syn.sack_permitted, syn.max_seg_size);
        flow.recovery.begun_by(promises);
        flow.measures_segments(mtu);
        flow.recovery
            .synchronized(isn.wrapping_add(1), irs.wrapping_add(1), round_trip);
        flow.recovery.begins(round_trip);
        if received.tcp.data_len > 0 {
            flow.recovery.only_guessed();
        }
        self.table.replace(index, Entry::Flow(flow.into()));
        self.table.set_deadline(index, None);
        self.feed_segment(now, index, received, tx);
        let id = TcpStreamId(self.table.handle(index));
        let established = matches!(
            self.tcp_state(id),
            Ok(State::Established | State::CloseWait)
        );
        if !established {
            self.tcp_abort(id);
            return Ending::Tcp;
        }
        self.counters.tcp_established += 1;
        if self.call_acceptor(now, id, key, mac, tx) == registry::Verdict::Pass {
            self.enqueue(id, listener);
        }
        Ending::Tcp
    }

    /// A handshake begins to wait for room in its listener's queue.
    fn join_row(&mut self, index: u32, listener: Option<Handle>) {
        let handle = self.table.handle(index);
        let Some(Entry::Listener(of)) = listener.and_then(|listener| self.table.named(listener))
        else {
            return;
        };
        of.waiting.push_back(handle);
        if of.waiting.len() > 2 * of.backlog {
            // No more than a backlog of them are still there; others are forgotten by now.
            let mut row = core::mem::take(&mut of.waiting);
            row.retain(|waits| matches!(self.table.named(*waits), Some(Entry::HalfOpen(_))));
            if let Some(Entry::Listener(of)) = listener.and_then(|l| self.table.named(l)) {
                of.waiting = row;
            }
        }
    }

    /// There is room for a connection: the first that answered and found none has its turn,
    /// and need not say it again.
    pub(super) fn next_in_row(&mut self, listener: Handle) {
        while let Some(Entry::Listener(listener)) = self.table.named(listener)
            && let Some(first) = listener.waiting.pop_front()
        {
            if let Some(Entry::HalfOpen(half_open)) = self.table.named(first) {
                half_open.in_row = false;
                self.table.mark(first.index);
                return;
            }
        }
    }

    /// The turn of a handshake that waited for room.
    pub(crate) fn let_in(&mut self, index: u32, now: Instant, tx: &mut dyn FrameTx) {
        let own = self.net.mac;
        let Entry::HalfOpen(half_open) = self.table.entry(index) else {
            return;
        };
        if !half_open.answered {
            return;
        }
        let answer = half_open.answer();
        let mut frame = alloc::vec![0; answer.frame_len()];
        answer.write_frame(&mut frame, half_open.mac, own);
        if let Some(Class::Ip(packet)) = classify::classify(&frame)
            && let Kind::Tcp(tcp) = packet.kind
        {
            let received = Received {
                packet: &packet,
                tcp: &tcp,
                frame: &frame,
            };
            self.establish(now, index, received, tx);
        }
    }

    fn call_acceptor(
        &mut self,
        now: Instant,
        id: TcpStreamId,
        key: FlowKey,
        source: [u8; 6],
        tx: &mut dyn FrameTx,
    ) -> registry::Verdict {
        let Some(mut running) = self.registry.tcp.start(key.local.port) else {
            return registry::Verdict::Pass;
        };
        let mut context = Context {
            sockets: self,
            tx,
            now,
            source: Some(source),
        };
        let (_, handler) = &mut running.handler;
        let verdict = handler(&mut context, id, key.remote.into());
        self.registry.tcp.finish(running);
        verdict
    }

    fn uncount_half_open(&mut self, index: u32) {
        let Entry::HalfOpen(half_open) = self.table.entry(index) else {
            return;
        };
        let (listener, silent) = (half_open.listener, half_open.silent);
        self.half_open -= 1;
        self.silent_half_open -= usize::from(silent);
        if let Some(Entry::Listener(listener)) = listener.and_then(|l| self.table.named(l)) {
            listener.half_open -= 1;
        }
    }

    /// Forgets a handshake without a word.
    pub(crate) fn forget_half_open(&mut self, index: u32) {
        self.uncount_half_open(index);
        if let Entry::HalfOpen(half_open) = self.table.entry(index) {
            let key = half_open.key;
            self.table.forget_key(&key, index);
            self.table.remove(index);
        }
    }

    /// The timer of a handshake came.
    pub(crate) fn half_open_expired(&mut self, index: u32, now: Instant, tx: &mut dyn FrameTx) {
        let mtu = self.io.mtu;
        let Entry::HalfOpen(half_open) = self.table.entry(index) else {
            return;
        };
        let before = half_open.silent;
        if half_open.repeat(now) {
            let silent = half_open.silent && !before;
            let (answer, mac) = (half_open.syn_ack(mtu), half_open.mac);
            let deadline = half_open.deadline();
            self.silent_half_open += usize::from(silent);
            self.table.set_deadline(index, Some(deadline));
            self.send_segment(&answer, mac, tx);
        } else {
            self.counters.tcp_half_open_expired += 1;
            self.forget_half_open(index);
        }
    }
}
