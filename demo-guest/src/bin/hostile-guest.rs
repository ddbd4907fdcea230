//! A guest that attacks its host and its neighbours with all that it was given.
//!
//! The tests and the benchmark run it beside guests that work. It has no stack. In each
//! of its lives it attaches, behaves for a moment where the attack needs that, and then
//! does one thing as fast as it can until it is cut off; then it comes back at once.
//! What it did it says on its standard output when that ends, or every tenth of a second:
//! `LIVES ACTIONS`. It never sends anything anywhere but through its own region.
//!
//! | attack | what it does |
//! | --- | --- |
//! | `scribble` | two threads write over the region, at random and by design, and ring |
//! | `frames` | frames of 60 bytes to the gateway, or to the first target |
//! | `arp` | requests for every address of its network |
//! | `syn` | SYNs to the targets from ever other ports |
//! | `control` | pings on the control channel |
//! | `wait` | publishes a byte at a time and asks to be woken for each that comes |
//! | `come-and-go` | attaches and leaves |
//! | `burn` | nothing but use a processor: what the others are compared with |

use std::error::Error;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use shm_link::control::{
    GuestControl, GuestEvent, GuestOffer, GuestState, NetworkConfig, VersionRange,
};
use shm_link::doorbell::{Doorbell, Wait};
use shm_link::link::{FrameRx, FrameTx, Link, MAX_CONTROL_LEN};
use shm_link::linux::address::Address;
use shm_link::linux::attach::Attachment;
use shm_link::linux::event::EventFd;
use shm_link::offload::{OffloadHeader, Offloads};
use shm_link::region::Region;
use shm_link::ring::RING_HEADER_LEN;
use shm_link::shm::ShmLink;
use shm_link::superblock::{Layout, RingPlace};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How long a life may take to begin.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one life scribbles before it makes sure that it is noticed.
const LIFE: Duration = Duration::from_millis(200);
/// Writes between two rings of the doorbell.
const BURST: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Attack {
    Scribble,
    Frames,
    Arp,
    Syn,
    Control,
    Wait,
    ComeAndGo,
    Burn,
}

/// A guest that attacks its host and its neighbours.
#[derive(Parser)]
struct Options {
    /// Where the daemon listens.
    #[arg(long)]
    socket: Address,
    /// What to do.
    #[arg(long, value_enum)]
    attack: Attack,
    /// Whom to attack, where that is a matter of choice.
    #[arg(long)]
    target: Vec<SocketAddrV4>,
    /// What decides what is written.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rest so long after each burst, in microseconds: an attack that costs little itself.
    #[arg(long, default_value_t = 0)]
    rest_us: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut random = Random(options.seed);
    let (mut lives, mut actions) = (0u64, 0u64);
    let mut told = Instant::now();
    loop {
        let result = live(&options, &mut random, &mut |n| {
            actions += n;
            if told.elapsed() > Duration::from_millis(100) {
                told = Instant::now();
                tell(lives, actions);
            }
        });
        lives += 1;
        // Turned away, or cut off in the middle: it tries again at once.
        if result.is_err() {
            thread::sleep(Duration::from_millis(1));
        }
        if told.elapsed() > Duration::from_millis(100) {
            told = Instant::now();
            tell(lives, actions);
        }
    }
}

/// Whoever listened may be gone.
fn tell(lives: u64, actions: u64) {
    let _ = writeln!(std::io::stdout(), "{lives} {actions}");
}

/// One life, until it is cut off. `did` counts what was done.
fn live(options: &Options, random: &mut Random, did: &mut dyn FnMut(u64)) -> Result<()> {
    if options.attack == Attack::Burn {
        let start = Instant::now();
        while start.elapsed() < LIFE {
            std::hint::spin_loop();
        }
        did(1);
        return Ok(());
    }
    let attachment = Attachment::connect(&options.socket, PATIENCE)?;
    if options.attack == Attack::ComeAndGo {
        did(1);
        return Ok(());
    }
    if options.attack == Attack::Scribble {
        // Half of its lives begin well, so that its frames are looked at.
        if random.next().is_multiple_of(2) {
            drop(Guest::begin(&attachment)?);
        }
        return scribble(&attachment, options, random, did);
    }
    let mut guest = Guest::begin(&attachment)?;
    let frames = guest.frames(options)?;
    let mut number = 0u32;
    while attachment.daemon_alive() {
        let mut done = 0;
        for _ in 0..BURST {
            number = number.wrapping_add(1);
            done += u64::from(match options.attack {
                Attack::Control => guest.ping(number)?,
                Attack::Wait => guest.asks_to_be_woken(&attachment.memory.region())?,
                _ => guest.send(
                    &frames[number as usize % frames.len()],
                    number,
                    options.attack,
                )?,
            });
        }
        guest.discard()?;
        attachment.ring_host.ring();
        did(done);
        rest(options);
    }
    Ok(())
}

fn rest(options: &Options) {
    if options.rest_us > 0 {
        thread::sleep(Duration::from_micros(options.rest_us));
    }
}

// ---- Scribbling ----------------------------------------------------------------

/// Two threads write over the region until the daemon has had enough.
fn scribble(
    attachment: &Attachment,
    options: &Options,
    random: &mut Random,
    did: &mut dyn FnMut(u64),
) -> Result<()> {
    let region = attachment.memory.region();
    let layout = Layout::find(&region)?;
    let over = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let other = {
        let (region, over, count) = (region.clone(), over.clone(), count.clone());
        let (mut random, rest) = (Random(random.next()), options.rest_us);
        thread::spawn(move || {
            // ORDERING: nothing depends on when it is seen.
            while !over.load(Ordering::Relaxed) {
                for _ in 0..BURST {
                    write_something(&region, &layout, &mut random);
                }
                count.fetch_add(BURST as u64, Ordering::Relaxed);
                if rest > 0 {
                    thread::sleep(Duration::from_micros(rest));
                }
            }
        })
    };
    let start = Instant::now();
    while attachment.daemon_alive() {
        for _ in 0..BURST {
            write_something(&region, &layout, random);
        }
        if start.elapsed() > LIFE {
            // What it wrote was never looked at: this is.
            for ring in [layout.control.to_host, layout.frames.to_host] {
                region.copy_in(ring.offset, &u64::MAX.to_le_bytes())?;
            }
        }
        attachment.ring_host.ring();
        // ORDERING: a count.
        did(count.swap(0, Ordering::Relaxed) + BURST as u64);
        rest(options);
    }
    over.store(true, Ordering::Relaxed);
    other.join().map_err(|_| "the other thread panicked")?;
    Ok(())
}

/// One write: a cursor, a flag, a wait word, a record's header, a control message, a word of
/// the superblock, or anything anywhere. Mostly something that could nearly be true.
fn write_something(region: &Region, layout: &Layout, random: &mut Random) {
    let rings = [
        layout.control.to_host,
        layout.control.to_guest,
        layout.frames.to_host,
        layout.frames.to_guest,
    ];
    let ring = rings[random.below(4)];
    let word = |offset: usize| {
        let mut bytes = [0; 8];
        let _ = region.copy_out(offset, &mut bytes);
        u64::from_le_bytes(bytes)
    };
    // The header's words: see docs/STACK.md, section 2.
    let written = match random.below(8) {
        0 | 1 => {
            let at = ring.offset + [0, 128][random.below(2)];
            let steps = [
                1,
                8,
                16,
                32,
                1600,
                ring.capacity as u64,
                ring.capacity as u64 + 16,
                u64::MAX,
            ];
            let step = steps[random.below(steps.len())];
            let value = match random.below(4) {
                0 => word(at).wrapping_sub(step),
                1 => [0, u64::MAX, 1 << 63, !15][random.below(4)],
                _ => word(at).wrapping_add(step),
            };
            region.copy_in(at, &value.to_le_bytes())
        }
        2 => {
            let at = ring.offset + [8, 136][random.below(2)];
            // Rarely, because a closed ring is the end of a life.
            let value = if random.below(64) == 0 {
                random.next() as u32
            } else {
                0
            };
            region.copy_in(at, &value.to_le_bytes())
        }
        3 => {
            let at = ring.offset + [256, 384][random.below(2)];
            let value = [
                0,
                1,
                u64::MAX,
                word(ring.offset),
                word(ring.offset + 128).wrapping_add(1),
            ][random.below(5)];
            region.copy_in(at, &value.to_le_bytes())
        }
        4 | 5 => write_record(region, ring, word(ring.offset), random),
        6 => region.copy_in(random.below(4096) & !7, &random.next().to_le_bytes()),
        _ => region.copy_in(
            random.below(region.len() - 8) & !7,
            &random.next().to_le_bytes(),
        ),
    };
    // All of these offsets lie inside.
    debug_assert!(written.is_ok());
}

/// A record's header, and the first bytes of a body, where the next record begins or near it.
fn write_record(
    region: &Region,
    ring: RingPlace,
    tail: u64,
    random: &mut Random,
) -> std::result::Result<(), shm_link::region::RegionError> {
    let near = (random.below(4) * 16) as u64;
    let at = (tail.wrapping_sub(near) % ring.capacity as u64) as usize & !15;
    let lengths = [
        0,
        1,
        14,
        42,
        60,
        1514,
        1515,
        65_550,
        65_551,
        0xffff_ffff,
        ring.capacity as u32,
        1 << 31,
    ];
    let mut record = [0; 64];
    record[..4].copy_from_slice(&lengths[random.below(lengths.len())].to_le_bytes());
    // flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
    let sizes = [0u16, 1, 14, 34, 54, 66, 536, 1448, 1460, 0x7fff, 0xffff];
    record[4] = [0, 1, 2, 3, 0xff][random.below(5)];
    record[5] = [0, 1, 4, 5, 0x81, 0xff][random.below(6)];
    for field in 0..5 {
        let value = sizes[random.below(sizes.len())];
        record[6 + field * 2..][..2].copy_from_slice(&value.to_le_bytes());
    }
    match random.below(3) {
        // A frame's, or a message's, own bytes: a hello, a configure, a ping, an update.
        0 => record[16..24].copy_from_slice(b"NGlink!\n"),
        1 => record[16..18]
            .copy_from_slice(&[1u16, 2, 3, 4, 5, 0x8003, 0xffff][random.below(7)].to_le_bytes()),
        _ => record[28..30]
            .copy_from_slice(&[0x0800u16, 0x0806, 0x86dd][random.below(3)].to_be_bytes()),
    }
    for byte in &mut record[30..] {
        *byte = random.next() as u8;
    }
    let room = (ring.capacity - at).min(record.len());
    region.copy_in(ring.offset + RING_HEADER_LEN + at, &record[..room])
}

// ---- Floods --------------------------------------------------------------------

#[derive(Clone)]
struct Bell<'a>(&'a EventFd);

impl Doorbell for Bell<'_> {
    fn ring(&self) {
        self.0.ring();
    }
}

/// A guest that was configured, without a stack.
struct Guest<'a> {
    link: ShmLink<Bell<'a>>,
    layout: Layout,
    doorbell: &'a EventFd,
    control: GuestControl,
    config: NetworkConfig,
}

impl<'a> Guest<'a> {
    /// Says hello and waits for a configuration.
    fn begin(attachment: &'a Attachment) -> Result<Self> {
        let region = attachment.memory.region();
        let layout = Layout::find(&region)?;
        // SAFETY: the daemon keeps to the layout, and what this program writes over it it
        // writes through regions.
        let link = unsafe { ShmLink::attach(region, Bell(&attachment.ring_host)) }?;
        let offer = GuestOffer {
            session: std::process::id(),
            versions: VersionRange::SUPPORTED,
            features: 0,
            max_mtu: 1500,
            can_receive: Offloads::NONE,
            can_send: Offloads::NONE,
            name: "hostile".try_into().map_err(|_| "the name")?,
        };
        let mut guest = Self {
            link,
            layout,
            doorbell: &attachment.doorbell,
            control: GuestControl::new(offer),
            config: NetworkConfig::new([0; 6], 1500),
        };
        let deadline = Instant::now() + PATIENCE;
        while guest.control.state() != GuestState::Running {
            guest.converse()?;
            guest.wait(deadline)?;
        }
        Ok(guest)
    }

    fn converse(&mut self) -> Result<()> {
        let mut buffer = [0; MAX_CONTROL_LEN];
        while let Some(message) = self.control.poll_transmit() {
            if !self.link.send_control(message)? {
                break;
            }
            self.control.transmitted();
        }
        while let Some(len) = self.link.recv_control(&mut buffer)? {
            if let Some(GuestEvent::Configured(config)) =
                self.control.handle_message(&buffer[..len])?
            {
                self.config = config;
            }
        }
        Ok(())
    }

    fn wait(&mut self, deadline: Instant) -> Result<()> {
        let left = deadline
            .checked_duration_since(Instant::now())
            .ok_or("no answer")?;
        if self.link.arm(None)? {
            self.doorbell
                .wait(Some(left.min(Duration::from_millis(20))));
        }
        self.link.disarm();
        Ok(())
    }

    /// The MAC of an address of its network.
    fn resolve(&mut self, address: Ipv4Addr) -> Result<[u8; 6]> {
        let deadline = Instant::now() + PATIENCE;
        let request = self.arp_request(address)?;
        loop {
            self.send(&request, 0, Attack::Arp)?;
            self.wait(deadline)?;
            let (rx, _) = self.link.split();
            let mut found = None;
            while let Some((_, frame)) = rx.peek()? {
                if frame.len() >= 42
                    && frame[12..14] == [8, 6]
                    && frame[21] == 2
                    && frame[28..32] == address.octets()
                {
                    found = frame[22..28].try_into().ok();
                }
                rx.consume();
            }
            rx.flush();
            if let Some(mac) = found {
                return Ok(mac);
            }
        }
    }

    fn arp_request(&self, target: Ipv4Addr) -> Result<Vec<u8>> {
        let own = self.config.v4.first().ok_or("no address")?.addr;
        let mut frame = vec![0xff; 6];
        frame.extend(self.config.mac);
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend(self.config.mac);
        frame.extend(own.octets());
        frame.extend([0; 6]);
        frame.extend(target.octets());
        Ok(frame)
    }

    /// The frames of a flood, to be sent in turn.
    fn frames(&mut self, options: &Options) -> Result<Vec<Vec<u8>>> {
        let own = self.config.v4.first().ok_or("no address")?.addr;
        let gateway = self.config.gateway4.unwrap_or(own);
        match options.attack {
            Attack::Arp => (1..=254)
                .map(|last| {
                    let [a, b, c, _] = own.octets();
                    self.arp_request(Ipv4Addr::new(a, b, c, last))
                })
                .collect(),
            Attack::Frames | Attack::Syn => {
                let mut targets = options.target.clone();
                if targets.is_empty() {
                    targets.push(SocketAddrV4::new(gateway, 9));
                }
                targets
                    .iter()
                    .map(|target| {
                        let mac = self.resolve(*target.ip())?;
                        Ok(packet(mac, self.config.mac, own, *target, options.attack))
                    })
                    .collect()
            }
            Attack::Scribble
            | Attack::Control
            | Attack::Wait
            | Attack::ComeAndGo
            | Attack::Burn => Ok(vec![Vec::new()]),
        }
    }

    /// Sends a frame if there is room; a SYN gets a source port and number of its own.
    fn send(&mut self, frame: &[u8], number: u32, attack: Attack) -> Result<bool> {
        let (_, tx) = self.link.split();
        let Some(room) = tx.reserve(frame.len())? else {
            tx.flush();
            return Ok(false);
        };
        room.copy_from_slice(frame);
        if attack == Attack::Syn {
            let port = 1024 + (number % 60_000) as u16;
            room[34..36].copy_from_slice(&port.to_be_bytes());
            room[38..42].copy_from_slice(&number.to_be_bytes());
            let sum = checksum(&room[26..34], &room[34..54]);
            room[50..52].copy_from_slice(&sum.to_be_bytes());
        }
        tx.commit(frame.len(), OffloadHeader::NONE);
        tx.flush();
        Ok(true)
    }

    /// Sends a ping of version 1 and throws answers away.
    fn ping(&mut self, number: u32) -> Result<bool> {
        let mut message = [2, 0, 0, 0, 0, 0, 0, 0];
        message[4..].copy_from_slice(&number.to_le_bytes());
        let sent = self.link.send_control(&message)?;
        let mut buffer = [0; MAX_CONTROL_LEN];
        while self.link.recv_control(&mut buffer)?.is_some() {}
        Ok(sent)
    }

    /// Asks to be woken for whatever is done next, on every ring.
    fn asks_to_be_woken(&mut self, region: &Region) -> Result<bool> {
        for ring in [self.layout.control.to_host, self.layout.frames.to_host] {
            region.copy_in(ring.offset + 256, &1u64.to_le_bytes())?;
        }
        for ring in [self.layout.control.to_guest, self.layout.frames.to_guest] {
            region.copy_in(ring.offset + 384, &1u64.to_le_bytes())?;
        }
        let gateway = self.config.gateway4.ok_or("no gateway")?;
        let request = self.arp_request(gateway)?;
        self.send(&request, 0, Attack::Arp)
    }

    /// Throws away what came.
    fn discard(&mut self) -> Result<()> {
        let (rx, _) = self.link.split();
        while rx.peek()?.is_some() {
            rx.consume();
        }
        rx.flush();
        Ok(())
    }
}

/// 60 bytes: a datagram, or a SYN whose port, number and checksum are yet to come.
fn packet(
    to: [u8; 6],
    from: [u8; 6],
    own: Ipv4Addr,
    target: SocketAddrV4,
    attack: Attack,
) -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&from);
    let (protocol, len) = if attack == Attack::Syn {
        (6, 40u16)
    } else {
        (17, 46)
    };
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    frame[22] = 64;
    frame[23] = protocol;
    frame[26..30].copy_from_slice(&own.octets());
    frame[30..34].copy_from_slice(&target.ip().octets());
    let sum = checksum(&frame[14..34], &[]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame[36..38].copy_from_slice(&target.port().to_be_bytes());
    if attack == Attack::Syn {
        // Header of 20 bytes, SYN, a window.
        frame[46..50].copy_from_slice(&[0x50, 2, 0xff, 0xff]);
    } else {
        frame[34..36].copy_from_slice(&9u16.to_be_bytes());
        frame[38..40].copy_from_slice(&26u16.to_be_bytes());
    }
    frame
}

/// RFC 1071: over an IPv4 header, or over a segment behind its two addresses.
fn checksum(first: &[u8], segment: &[u8]) -> u16 {
    let pairs = first.chunks(2).chain(segment.chunks(2));
    let mut sum: u32 = pairs
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    if !segment.is_empty() {
        // The rest of the pseudo-header; the checksum's own place is still zero.
        sum += 6 + segment.len() as u32;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
