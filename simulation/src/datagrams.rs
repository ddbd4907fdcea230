//! Datagrams between guests: one asks, another echoes, and both know every byte.
//!
//! UDP loses what the network loses, so what must hold is less than for a connection:
//! nothing arrives that was not sent, and whoever goes on asking is answered in the end.
//! Where nothing is done to the network, everything that was asked is answered once.
//! Runs without them mean what they meant before there were any.

use std::net::SocketAddr;

use guest_stack::error::UdpError;
use guest_stack::sockets::Sockets;
use guest_stack::udp::UdpId;
use host_bridge::limit::Limits;

use crate::clock::{MILLISECOND, NEVER, Nanos, SECOND};
use crate::connection::{CLIENT, SERVER, Wrong};
use crate::random::Random;
use crate::scenario::{Addresses, GuestPlan, Scenario};

/// Where every guest echoes.
pub(crate) const ECHO_PORT: u16 = 7001;

/// Exchange, number, whether it is an answer.
const HEAD: usize = 13;
/// The longest that is never cut into fragments, of which each has a checksum of its own
/// in the link's eyes and none in IP's: two flips may cancel each other.
const SHORT: usize = 548;
/// The longest that smoltcp reassembles.
const LONG: usize = 4000;
/// Until a question that was not answered is asked again, when no more are planned.
const AGAIN: Nanos = SECOND;
/// Until the stack is asked again that had no address or no room.
const LATER: Nanos = 10 * MILLISECOND;

/// What one guest asks another, as it is planned.
#[derive(Debug, Clone)]
pub(crate) struct Asking {
    pub(crate) at: Nanos,
    pub(crate) guests: [usize; 2],
    pub(crate) v6: bool,
    pub(crate) len: usize,
    /// Datagrams at once, so often, so far apart.
    pub(crate) burst: u32,
    pub(crate) times: u32,
    pub(crate) every: Nanos,
}

impl Scenario {
    /// The same with datagrams besides.
    pub(crate) fn with_datagrams(mut self) -> Self {
        let random = &mut Random::new(self.seed, 3);
        let honest: Vec<&GuestPlan> = self.guests.iter().filter(|plan| !plan.hostile).collect();
        let last = self.connections.iter().map(|plan| plan.at).max();
        let longest = match self.flips_bits() {
            true => SHORT,
            false => LONG,
        };
        let count = random.spread(1, 6);
        let askings = (0..count).map(|_| {
            let client = random.below(honest.len() as u64) as usize;
            let others = random.between(1, honest.len() as u64 - 1) as usize;
            let server = (client + others) % honest.len();
            Asking {
                at: random.below(last.unwrap_or(0) + SECOND),
                guests: [client, server],
                v6: honest[client].v6 && honest[server].v6 && random.percent(50),
                len: random.spread(HEAD as u64, longest as u64) as usize,
                burst: *random.pick(&[1, 1, 2, 7, 40]),
                times: random.spread(1, 50) as u32,
                every: random.spread(MILLISECOND / 10, SECOND),
            }
        });
        self.askings = askings.collect();
        self
    }

    /// Whether nothing is done to the network and all that is in it.
    pub(crate) fn is_calm(&self) -> bool {
        let calm = |plan: &GuestPlan| {
            let impairments = [&plan.impair_to_host, &plan.impair_to_guest];
            impairments.iter().all(|impair| impair.is_transparent())
                && plan.limits == Limits::default()
                && plan.refused == 0
                && !plan.hostile
                && plan.line.is_none_or(|line| line.noise == 0)
        };
        self.faults.is_empty() && self.guests.iter().all(calm)
    }
}

/// An exchange as it went.
#[derive(Debug)]
pub(crate) struct Exchange {
    plan: Asking,
    id: u32,
    /// Numbers that were used.
    sent: u32,
    /// The first of the questions that must be answered.
    decisive: Option<u32>,
    bursts: u32,
    next: Nanos,
    len: usize,
    pub(crate) answers: u64,
    over: bool,
}

impl Exchange {
    pub(crate) fn new(id: usize, plan: Asking) -> Self {
        Self {
            id: id as u32,
            sent: 0,
            decisive: None,
            bursts: 0,
            next: plan.at,
            len: plan.len,
            answers: 0,
            over: false,
            plan,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    fn is_of(&self, guest: usize) -> bool {
        !self.over && self.plan.guests[CLIENT] == guest
    }

    /// Whether all that was sent was answered, on a network that loses nothing.
    pub(crate) fn check_calm(&self) -> Result<(), String> {
        // More at once than a queue of a socket holds may be lost there.
        let crowd = self.plan.burst > 7;
        match crowd || self.answers == u64::from(self.sent) {
            true => Ok(()),
            false => Err(format!("on a good network datagrams are lost: {self:?}")),
        }
    }

    /// Sends what is due; whether it did.
    fn ask(&mut self, socket: UdpId, sockets: &mut Sockets, there: Addresses, now: Nanos) -> bool {
        let to = SocketAddr::new(there.of(self.plan.v6), ECHO_PORT);
        let planned = self.bursts < self.plan.times;
        let count = if planned { self.plan.burst } else { 1 };
        for asked in 0..count {
            let datagram = write(self.id, self.sent, false, self.len);
            match sockets.udp_send_to(socket, &datagram, to) {
                Ok(()) => self.sent += 1,
                Err(UdpError::MessageTooLong) => {
                    // Over IPv6 nothing is cut.
                    self.len = self.len.min(SHORT);
                    self.next = now;
                    return true;
                }
                // The rest of a burst that finds no room is lost.
                Err(_) if asked > 0 => break,
                Err(_) => {
                    self.next = now + LATER;
                    return false;
                }
            }
        }
        self.bursts = self.bursts.saturating_add(1);
        if !planned {
            self.decisive.get_or_insert(self.sent - 1);
        }
        self.next = now + if planned { self.plan.every } else { AGAIN };
        true
    }

    /// An answer came.
    fn hear(&mut self, datagram: &[u8]) -> Result<(), Wrong> {
        let number = read(datagram, true)
            .filter(|(id, number)| *id == self.id && *number < self.sent)
            .map(|(_, number)| number);
        let number = number.ok_or_else(|| {
            Wrong(format!(
                "{self:?} was answered with {} other bytes",
                datagram.len()
            ))
        })?;
        self.answers += 1;
        self.over |= self.decisive.is_some_and(|decisive| number >= decisive);
        Ok(())
    }
}

/// A guest's part in all exchanges.
pub(crate) struct Datagrams {
    echo: UdpId,
    /// Exchanges that it began, by their numbers.
    own: Vec<(usize, UdpId)>,
}

impl Datagrams {
    pub(crate) fn new(sockets: &mut Sockets) -> Result<Self, String> {
        let echo = sockets.udp_bind(ECHO_PORT);
        let echo = echo.map_err(|error| error.to_string())?;
        Ok(Self {
            echo,
            own: Vec::new(),
        })
    }

    /// Echoes, asks and hears what there is; whether there was anything.
    pub(crate) fn step(
        &mut self,
        sockets: &mut Sockets,
        guest: usize,
        exchanges: &mut [Exchange],
        addresses: &[Addresses],
        now: Nanos,
    ) -> Result<bool, Wrong> {
        let mut moved = self.echo(sockets, exchanges.len())?;
        for (number, exchange) in exchanges.iter_mut().enumerate() {
            if !exchange.is_of(guest) {
                continue;
            }
            let own = self.own.iter().find(|own| own.0 == number);
            let socket = match own {
                Some((_, socket)) => *socket,
                None if exchange.next > now => continue,
                None => {
                    let socket = sockets.udp_bind(0).map_err(|e| Wrong(e.to_string()))?;
                    self.own.push((number, socket));
                    socket
                }
            };
            let mut buffer = [0; 1 + LONG];
            while let Ok((len, _)) = sockets.udp_recv_from(socket, &mut buffer) {
                exchange.hear(&buffer[..len])?;
                moved = true;
            }
            if exchange.is_over() {
                sockets.udp_close(socket);
                self.own.retain(|own| own.0 != number);
            } else if exchange.next <= now {
                let there = addresses[exchange.plan.guests[SERVER]];
                moved |= exchange.ask(socket, sockets, there, now);
            }
        }
        Ok(moved)
    }

    fn echo(&self, sockets: &mut Sockets, exchanges: usize) -> Result<bool, Wrong> {
        let mut buffer = [0; 1 + LONG];
        let mut moved = false;
        while let Ok((len, from)) = sockets.udp_recv_from(self.echo, &mut buffer) {
            let known = read(&buffer[..len], false).filter(|(id, _)| (*id as usize) < exchanges);
            let (id, number) = known
                .ok_or_else(|| Wrong(format!("{from} asked with {len} bytes that nobody wrote")))?;
            // Without room it is lost, as datagrams may be.
            let _ = sockets.udp_send_to(self.echo, &write(id, number, true, len), from);
            moved = true;
        }
        Ok(moved)
    }

    /// When the guest has something to ask.
    pub(crate) fn due(guest: usize, exchanges: &[Exchange]) -> Nanos {
        let own = exchanges.iter().filter(|exchange| exchange.is_of(guest));
        own.map(|exchange| exchange.next).min().unwrap_or(NEVER)
    }

    /// Its guest dies, and with it what it began.
    pub(crate) fn die(&self, exchanges: &mut [Exchange]) {
        for (number, _) in &self.own {
            exchanges[*number].over = true;
        }
    }

    /// Sockets that are there.
    pub(crate) fn sockets(&self) -> usize {
        1 + self.own.len()
    }
}

/// A datagram whose every byte follows from these.
fn write(id: u32, number: u32, answer: bool, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    bytes.extend(id.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    bytes.push(answer.into());
    bytes.extend((len as u32).to_be_bytes());
    let mut random = Random::new(u64::from(id) << 32 | u64::from(number), 4);
    while bytes.len() < len {
        bytes.extend(random.next_u64().to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Which exchange and which number, if it is as it was written.
fn read(bytes: &[u8], answer: bool) -> Option<(u32, u32)> {
    let number = |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (id, number) = (number(0)?, number(4)?);
    (write(id, number, answer, bytes.len()) == bytes).then_some((id, number))
}
