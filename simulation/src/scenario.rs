//! What a seed means: guests, links, loads and faults.
//!
//! Drawn once, before anything runs; the world then does as it says.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use host_bridge::impair::ImpairConfig;
use host_bridge::limit::{LimitConfig, Limits};
use host_bridge::port::PortChange;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use shm_link::superblock::{Layout, LayoutOptions, PipePlace, RingPlace};

use crate::clock::{MICROSECOND, MILLISECOND, Nanos, SECOND};
use crate::connection::{Order, Pause, Plan};
use crate::datagrams::Asking;
use crate::random::Random;
use crate::services::PREFIX;
use crate::stream::LinePlan;

/// A guest and its port.
#[derive(Debug, Clone)]
pub(crate) struct GuestPlan {
    pub(crate) index: usize,
    /// Bytes of the rings, to the host and to the guest.
    pub(crate) rings: (usize, usize),
    pub(crate) mtu: u16,
    pub(crate) v6: bool,
    /// Whether its port may leave checksums and segmentation to others.
    pub(crate) offloads: bool,
    /// Whether it may itself.
    pub(crate) its_offloads: bool,
    pub(crate) impair_to_host: ImpairConfig,
    pub(crate) impair_to_guest: ImpairConfig,
    pub(crate) limits: Limits,
    pub(crate) budget: usize,
    /// Of what it accepts.
    pub(crate) buffers: (usize, usize),
    pub(crate) nodelay: bool,
    pub(crate) backlog: usize,
    pub(crate) hostile: bool,
    /// Writes of its port that the kernel has no memory for, in thousandths.
    pub(crate) refused: u64,
    /// The byte stream between it and its port, if they share no memory.
    pub(crate) line: Option<LinePlan>,
    /// It finds its addresses by DHCP, leased for so many seconds, and by router
    /// advertisements.
    pub(crate) lease: Option<u32>,
}

impl GuestPlan {
    pub(crate) fn mac(&self) -> [u8; 6] {
        [2, 0, 0, 0, 0, 0x10 + self.index as u8]
    }

    /// Its addresses, anew each time it is given others.
    pub(crate) fn addresses(&self, round: u8) -> Addresses {
        let host = 10 + self.index as u8;
        if self.lease.is_some() {
            // RFC 4291, appendix A
            let [a, b, c, d, e, f] = self.mac();
            let id = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
            let made = u128::from(PREFIX) | u128::from(u64::from_be_bytes(id));
            return Addresses {
                v4: Ipv4Addr::new(10, 0, 200, host),
                v6: self.v6.then(|| Ipv6Addr::from(made)),
            };
        }
        Addresses {
            v4: Ipv4Addr::new(10, 0, round, host),
            v6: self
                .v6
                .then(|| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, round.into(), host.into())),
        }
    }

    /// Where its rings lie.
    pub(crate) fn layout(&self) -> Layout {
        let options = |bytes: usize| bytes.max(8192);
        let layout = Layout::new(LayoutOptions {
            to_host_bytes: options(self.rings.0),
            to_guest_bytes: options(self.rings.1),
        });
        let layout = layout.expect("sizes in range");
        // Smaller than anybody would make them, but allowed.
        let shrink = |place: RingPlace, capacity| RingPlace { capacity, ..place };
        Layout {
            frames: PipePlace {
                to_host: shrink(layout.frames.to_host, self.rings.0),
                to_guest: shrink(layout.frames.to_guest, self.rings.1),
            },
            ..layout
        }
    }
}

/// The addresses of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// The one of a family that is in use.
    pub(crate) fn of(self, v6: bool) -> IpAddr {
        match self.v6.filter(|_| v6) {
            Some(v6) => v6.into(),
            None => self.v4.into(),
        }
    }

    pub(crate) fn nets(self) -> Vec<IpNet> {
        // The prefixes hold every round's addresses.
        let v4 = Ipv4Net::new(self.v4, 16).expect("a prefix");
        let v6 = self.v6.map(|v6| Ipv6Net::new(v6, 64).expect("a prefix"));
        std::iter::once(v4.into())
            .chain(v6.map(IpNet::from))
            .collect()
    }
}

/// Where a host that comes back finds its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// On the region that both had: the guest need not know.
    Same,
    /// On a new one, which the guest is given so much later.
    New(Nanos),
}

/// Something that is done to the network.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// `kill -9` of a port's host, perhaps in the middle of a turn; back after a time.
    KillHost {
        port: usize,
        midway: bool,
        down: Nanos,
        memory: Memory,
    },
    /// A planned end of the port; back after a time.
    DetachHost {
        port: usize,
        down: Nanos,
        memory: Memory,
    },
    /// The guest dies, perhaps in the middle of a turn; another takes its place.
    KillGuest {
        guest: usize,
        midway: bool,
        down: Nanos,
    },
    /// The guest does nothing for a time.
    FreezeGuest { guest: usize, time: Nanos },
    /// The host does nothing for a time.
    FreezeHost { port: usize, time: Nanos },
    /// An administrator changes something.
    Change {
        port: usize,
        change: Box<PortChange>,
    },
    /// The guest gets other addresses.
    Renumber { port: usize },
    /// Somebody deletes the port's interface, and it cannot be made again for a time.
    DeleteTap { port: usize, down: Nanos },
    /// A doorbell rings for nothing.
    Spurious { port: usize, guest: bool },
}

/// Everything that follows from a seed.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) guests: Vec<GuestPlan>,
    pub(crate) connections: Vec<Plan>,
    pub(crate) askings: Vec<Asking>,
    pub(crate) faults: Vec<(Nanos, Fault)>,
    /// How late a doorbell may come: seldom so late, in percent, and at the most.
    pub(crate) late_bells: (u64, Nanos),
    /// By when everything must have ended.
    pub(crate) patience: Nanos,
}

/// How bad the network is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    Fair,
    Mild,
    Foul,
}

/// A direction's impairments. Bits are flipped on the way to the guest only: two flips
/// of one frame may cancel each other in a TCP checksum, and that would be nobody's
/// mistake.
fn impair(weather: Weather, to_guest: bool, random: &mut Random) -> ImpairConfig {
    let mut parts = Vec::new();
    let mut chance = |key: &str, likely: u64, most: u64| {
        if random.percent(likely) {
            // In hundredths of a percent.
            let value = random.spread(1, most * 100);
            parts.push(format!("{key}={}.{:02}%", value / 100, value % 100));
        }
    };
    match weather {
        Weather::Fair => return ImpairConfig::default(),
        Weather::Mild => {
            chance("loss", 60, 2);
            chance("dup", 30, 2);
            chance("reorder", 40, 5);
            if to_guest {
                chance("corrupt", 30, 1);
            }
        }
        Weather::Foul => {
            chance("loss", 80, 20);
            chance("dup", 40, 10);
            chance("reorder", 50, 30);
            if to_guest {
                chance("corrupt", 40, 5);
            }
        }
    }
    if parts.iter().any(|part| part.starts_with("reorder")) {
        parts.push(format!("gap={}", random.spread(1, 10)));
    }
    if random.percent(60) {
        let delay = random.spread(50, 200_000);
        parts.push(format!("delay={delay}us"));
        if random.percent(40) {
            parts.push(format!("jitter={}us", random.below(delay)));
        }
    }
    if random.percent(20) {
        parts.push(format!("rate={}kbit", random.spread(500, 100_000)));
    }
    if random.percent(20) {
        parts.push(format!("limit={}", random.spread(20, 1000)));
    }
    parts.push(format!("seed={}", random.next_u64()));
    parts.join(",").parse().expect("impairments that exist")
}

fn limit(random: &mut Random) -> LimitConfig {
    let text = match random.below(10) {
        0 => format!("rate={}kbit", random.spread(1000, 1_000_000)),
        1 => format!("frames={}", random.spread(200, 100_000)),
        2 => format!(
            "rate={}kbit,burst={}b",
            random.spread(1000, 100_000),
            random.spread(64, 65_536)
        ),
        _ => "off".to_owned(),
    };
    text.parse().expect("a limit that exists")
}

fn buffers(random: &mut Random) -> (usize, usize) {
    let sizes = [2048, 4096, 16_384, 65_535, 65_535, 262_143];
    (*random.pick(&sizes), *random.pick(&sizes))
}

fn weather(random: &mut Random) -> Weather {
    match random.below(10) {
        0..=3 => Weather::Fair,
        4..=6 => Weather::Mild,
        _ => Weather::Foul,
    }
}

fn guest(index: usize, v6: bool, mtu: u16, hostile: bool, random: &mut Random) -> GuestPlan {
    let sizes: &[usize] = match mtu {
        0..=1500 => &[4096, 8192, 16_384, 65_536, 524_288, 524_288, 524_288],
        1501..=9000 => &[32_768, 65_536, 524_288],
        9001.. => &[524_288],
    };
    let weather = weather(random);
    let rings = (*random.pick(sizes), *random.pick(sizes));
    let offloads = random.below(100);
    GuestPlan {
        index,
        rings,
        mtu,
        v6,
        offloads: offloads < 80,
        its_offloads: offloads < 60,
        impair_to_host: impair(weather, false, random),
        impair_to_guest: impair(weather, true, random),
        limits: Limits {
            to_host: limit(random),
            to_guest: limit(random),
        },
        budget: *random.pick(&[64, 64, 64, 1, 3, 16, 256]),
        buffers: buffers(random),
        nodelay: random.percent(50),
        backlog: *random.pick(&[1, 4, 16, 128]),
        hostile,
        refused: if random.percent(10) {
            random.spread(1, 50)
        } else {
            0
        },
        line: None,
        lease: None,
    }
}

fn connection(window: Nanos, guests: &[GuestPlan], small: bool, random: &mut Random) -> Plan {
    let client = random.below(guests.len() as u64) as usize;
    let others = random.between(1, guests.len() as u64 - 1) as usize;
    let server = (client + others) % guests.len();
    let most = if small { 3000 } else { 200_000 };
    let bytes = |random: &mut Random| match random.below(8) {
        0 => 0,
        1 => random.spread(1, 100),
        _ => random.spread(1, most),
    };
    let bytes = [crate::connection::NAME_LEN + bytes(random), bytes(random)];
    let pause = |total: u64, random: &mut Random| {
        random.percent(10).then(|| Pause {
            at: random.below(total + 1),
            time: random.spread(MILLISECOND, 5 * SECOND),
        })
    };
    Plan {
        at: random.below(window),
        guests: [client, server],
        v6: guests[client].v6 && guests[server].v6 && random.percent(50),
        bytes,
        order: match random.below(6) {
            0 => Order::AfterEnd,
            1 => Order::Turns(random.spread(bytes[0].max(bytes[1]) / 50 + 1, 20_000)),
            _ => Order::Free,
        },
        chunk: [random.spread(16, 4096), random.spread(16, 4096)],
        pauses: [pause(bytes[1], random), pause(bytes[0], random)],
        abort: random
            .percent(8)
            .then(|| (random.below(2) as usize, random.below(2000))),
        buffers: buffers(random),
        nodelay: random.percent(50),
    }
}

fn fault(guests: &[GuestPlan], v6: bool, mtu: u16, random: &mut Random) -> Fault {
    let port = random.below(guests.len() as u64) as usize;
    let down = random.spread(100 * MICROSECOND, 2 * SECOND);
    let memory = match random.percent(60) {
        true => Memory::Same,
        false => Memory::New(random.spread(10 * MICROSECOND, 500 * MILLISECOND)),
    };
    let change = |change| Fault::Change {
        port,
        change: Box::new(change),
    };
    match random.below(14) {
        0..=2 => Fault::KillHost {
            port,
            midway: random.percent(50),
            down,
            memory,
        },
        3 => Fault::DetachHost { port, down, memory },
        4 => Fault::KillGuest {
            guest: port,
            midway: random.percent(50),
            down,
        },
        5 => Fault::FreezeGuest {
            guest: port,
            time: down,
        },
        6 => Fault::FreezeHost { port, time: down },
        7 => Fault::Renumber { port },
        8 => change(PortChange {
            mtu: Some(random.between(if v6 { 1280 } else { 576 }, mtu.into()) as u16),
            ..PortChange::default()
        }),
        9..=10 => {
            let weather = weather(random);
            change(PortChange {
                impair_to_host: Some(impair(weather, false, random)),
                impair_to_guest: Some(impair(weather, true, random)),
                ..PortChange::default()
            })
        }
        11 => change(PortChange {
            limit_to_host: Some(limit(random)),
            limit_to_guest: Some(limit(random)),
            ..PortChange::default()
        }),
        12 => change(PortChange {
            carrier: Some(false),
            ..PortChange::default()
        }),
        _ => Fault::Spurious {
            port,
            guest: random.percent(50),
        },
    }
}

impl Scenario {
    /// Two guests on good links and one connection of so many bytes, for a
    /// measurement; `impair` is what both ports do to frames for their guests.
    pub(crate) fn bulk(seed: u64, bytes: u64, impair: &str) -> Self {
        let plan = |index| GuestPlan {
            index,
            rings: (524_288, 524_288),
            mtu: 1500,
            v6: false,
            offloads: true,
            its_offloads: true,
            impair_to_host: ImpairConfig::default(),
            impair_to_guest: match impair {
                "" => ImpairConfig::default(),
                // Each direction has losses of its own.
                some => format!("{some},seed={}", seed * 2 + index as u64)
                    .parse()
                    .expect("impairments that exist"),
            },
            limits: Limits::default(),
            budget: 64,
            buffers: (262_143, 262_143),
            nodelay: true,
            backlog: 16,
            hostile: false,
            refused: 0,
            line: None,
            lease: None,
        };
        let connection = Plan {
            at: 10 * MILLISECOND,
            guests: [0, 1],
            v6: false,
            bytes: [bytes, 0],
            order: Order::Free,
            chunk: [4096, 4096],
            pauses: [None, None],
            abort: None,
            buffers: (262_143, 262_143),
            nodelay: true,
        };
        Self {
            seed,
            guests: vec![plan(0), plan(1)],
            connections: vec![connection],
            askings: Vec::new(),
            faults: Vec::new(),
            late_bells: (0, 0),
            patience: 24 * 3600 * SECOND,
        }
    }

    /// Whether bits are flipped anywhere, at any time.
    pub(crate) fn flips_bits(&self) -> bool {
        let guests = self.guests.iter().map(|plan| &plan.impair_to_guest);
        let changes = self.faults.iter().filter_map(|(_, fault)| match fault {
            Fault::Change { change, .. } => change.impair_to_guest.as_ref(),
            _ => None,
        });
        let mut all = guests.chain(changes);
        all.any(|impair| impair.to_string().contains("corrupt"))
    }

    /// The same with guests behind byte streams, interfaces that are deleted, and addresses
    /// by DHCP and router advertisements.
    pub(crate) fn wider(mut self) -> Self {
        let random = &mut Random::new(self.seed, 4);
        for plan in &mut self.guests {
            let serial = match random.below(10) {
                0..=3 => continue,
                4..=7 => false,
                _ => true,
            };
            let capacities = match serial {
                false => [4096, 16_384, 65_536, 212_992],
                true => [1024, 4096, 4096, 16_384],
            };
            // At the most a fifth of the longest frames is damaged.
            let most = 200_000 / u64::from(plan.mtu);
            plan.line = Some(LinePlan {
                serial,
                capacity: *random.pick(&capacities),
                noise: match serial && random.percent(70) {
                    true => random.below(most + 1),
                    false => 0,
                },
            });
        }
        let last = self.faults.last().map_or(SECOND, |fault| fault.0);
        for _ in 0..*random.pick(&[0, 0, 1, 3]) {
            let port = random.below(self.guests.len() as u64) as usize;
            let down = random.spread(MICROSECOND, SECOND);
            self.faults
                .push((random.below(last + 1), Fault::DeleteTap { port, down }));
        }
        let faults = &self.faults;
        for (port, plan) in self.guests.iter_mut().enumerate() {
            // Where much is lost an address may be, too, and nobody would be to blame; not one
            // that is leased for a day.
            let changes = |fault: &Fault| match fault {
                Fault::Change { port: of, change } => {
                    *of == port && change.impair_to_host.is_some()
                }
                _ => false,
            };
            let fair = plan.impair_to_host.is_transparent()
                && plan.impair_to_guest.is_transparent()
                && plan.line.is_none_or(|line| line.noise == 0)
                && !faults.iter().any(|(_, fault)| changes(fault));
            if !plan.hostile && random.percent(60) {
                plan.lease = match fair {
                    true => Some(*random.pick(&[60, 120, 600, 86_400])),
                    false => Some(86_400),
                };
            }
        }
        let guests = &self.guests;
        self.faults.retain(|(_, fault)| match fault {
            Fault::Renumber { port } => guests[*port].lease.is_none(),
            _ => true,
        });
        self.faults.sort_by_key(|fault| fault.0);
        self
    }

    /// Whether there are a DHCP server and a router.
    pub(crate) fn is_served(&self) -> bool {
        self.guests.iter().any(|plan| plan.lease.is_some())
    }

    /// What `seed` means.
    pub(crate) fn draw(seed: u64) -> Self {
        let random = &mut Random::new(seed, 1);
        let v6 = random.percent(50);
        let lowest = if v6 { 1280 } else { 576 };
        let mtu = *random.pick(&[1500, 1500, 1500, 1400, lowest, 4000, 9000, 65_521]);
        let honest = *random.pick(&[2, 2, 2, 3]);
        let mut guests: Vec<GuestPlan> = (0..honest)
            .map(|index| guest(index, v6, mtu, false, random))
            .collect();
        let window = random.spread(10 * MILLISECOND, 20 * SECOND);
        let (count, small) = match random.below(8) {
            0 => (random.spread(30, 120), true),
            _ => (random.spread(1, 12), false),
        };
        let connections = (0..count)
            .map(|_| connection(window, &guests, small, random))
            .collect();
        let mut faults = Vec::new();
        let mtu_step = random.spread(1, 50 * MILLISECOND);
        for _ in 0..*random.pick(&[0, 1, 2, 4, 8]) {
            let at = random.below(window);
            let fault = fault(&guests, v6, mtu, random);
            match &fault {
                Fault::Change { port, change } if change.carrier == Some(false) => {
                    let back = PortChange {
                        carrier: Some(true),
                        ..PortChange::default()
                    };
                    let later = at + random.spread(MILLISECOND, 10 * SECOND);
                    let (port, change) = (*port, Box::new(back));
                    faults.push((later, Fault::Change { port, change }));
                }
                Fault::Change { change, .. } if change.mtu.is_some() => {
                    // An MTU is a property of the network: all ports get it, one after
                    // the other.
                    for port in 0..guests.len() {
                        // In the same order on every port, or they would end apart.
                        let later = at + port as u64 * mtu_step;
                        let change = change.clone();
                        faults.push((later, Fault::Change { port, change }));
                    }
                    continue;
                }
                _ => {}
            }
            faults.push((at, fault));
        }
        if random.percent(25) {
            guests.push(guest(honest, v6, mtu, true, random));
        }
        faults.sort_by_key(|fault| fault.0);
        let late_bells = match random.percent(30) {
            true => (
                random.spread(1, 50),
                random.spread(100 * MICROSECOND, 50 * MILLISECOND),
            ),
            false => (0, 0),
        };
        Self {
            seed,
            guests,
            connections,
            askings: Vec::new(),
            faults,
            late_bells,
            patience: 2 * 3600 * SECOND,
        }
    }
}
