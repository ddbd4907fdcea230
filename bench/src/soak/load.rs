//! The clients: threads that keep moving bytes until the run is over, and tell failures
//! that have a cause from those that must not be.
//!
//! Towards a guest that stays, a connection that was once made must never break. Only a
//! connect may fail, while the daemon is away or a link is down. Towards the guest that
//! comes and goes everything may fail, unless it was there all the while.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use demo_guest::pattern::Pattern;

use super::client::{self, Failure, Pace};
use super::random::Random;
use super::shared::Shared;

/// The guest's services.
const ECHO: u16 = 7;
const HTTP: u16 = 80;
const SINK: u16 = 5001;
const SOURCE: u16 = 5002;

/// Sizes of transfers, in bytes: some seconds of a guest's share.
const TRANSFER: (u64, u64) = (1, 12 << 20);
const PAGE: (u64, u64) = (0, 150_000);
/// Long-lived connections per guest that mostly say nothing, and the rest of their clients.
const IDLE: usize = 32;
/// What each of them carries first, in pieces: more than the guest's buffer for it, which
/// is memory only where there was something in it. So it is held from the beginning.
const WARM_UP: (u64, usize) = (30, 10_000);
const IDLE_REST: Duration = Duration::from_millis(700);
/// Rests between two requests of other clients.
const PAGE_REST: Duration = Duration::from_millis(60);
const ECHO_REST: Duration = Duration::from_millis(20);
const DATAGRAM_REST: Duration = Duration::from_millis(25);
/// How long an echo of a datagram is waited for: longer than any delay on the way.
const DATAGRAM: Duration = Duration::from_millis(250);
const LONGEST_DATAGRAM: u64 = 1200;
/// How long a guest that stays may be silent: restarts and the resends after them. And
/// the one that comes and goes, which may be gone.
const SILENCE: Duration = Duration::from_secs(90);
const VISIT_SILENCE: Duration = Duration::from_secs(20);
/// How long a transfer may take: so many times what its rate makes of it, limits and losses
/// being what they are, and this on top for restarts.
const SLOWER: f64 = 4.0;
const OUTAGES: Duration = Duration::from_secs(20);
/// Rest after a connect that failed.
const CONNECT_REST: Duration = Duration::from_millis(200);

/// Where a guest is: IPv4, IPv6.
pub(super) type Place = [IpAddr; 2];

/// Where the guests are.
pub(super) struct Places {
    /// Those that stay; the first is the witness for latency, the last is behind a byte
    /// stream, which no keeper keeps.
    pub(super) staying: Vec<Place>,
    /// The one that comes and goes.
    pub(super) passing: Place,
}

/// Starts all clients.
pub(super) fn start(
    shared: &Arc<Shared>,
    places: &Places,
    bytes_per_second: f64,
    random: &mut Random,
) -> Vec<JoinHandle<()>> {
    let mut threads = Vec::new();
    let last = places.staying.last().copied();
    let mut spawn = |work: Work, name: String, place: Place, rate: f64| {
        let random = std::cell::RefCell::new(random.fork());
        let client = Client {
            shared: shared.clone(),
            place,
            kept: Some(place) != last,
            rate,
            random,
        };
        let work = move || work(&client);
        match thread::Builder::new().name(name.clone()).spawn(work) {
            Ok(thread) => threads.push(thread),
            Err(error) => shared.error(format!("{name}: {error}")),
        }
    };
    // Each guest has one bulk stream in each direction.
    let rate = bytes_per_second / (2 * places.staying.len()).max(1) as f64;
    for (number, place) in places.staying.iter().enumerate() {
        let all: [(Work, &str, f64); 7] = [
            (Client::sends, "sends", rate),
            (Client::fetches, "fetches", rate),
            (Client::reads_pages, "pages", f64::INFINITY),
            (Client::reads_pages, "pages", f64::INFINITY),
            (Client::keeps_connections, "keeps", f64::INFINITY),
            (Client::sends_datagrams, "datagrams", f64::INFINITY),
            (Client::witnesses, "witness", f64::INFINITY),
        ];
        // The last of them only for the first guest.
        for (work, name, rate) in &all[..if number == 0 { 7 } else { 6 }] {
            spawn(*work, format!("{name}-{number}"), *place, *rate);
        }
    }
    spawn(Client::visits, "visits".to_owned(), places.passing, rate);
    threads
}

/// What a client does until the run is over.
type Work = fn(&Client);

struct Client {
    shared: Arc<Shared>,
    place: Place,
    /// Whether it stays while the daemon is replaced.
    kept: bool,
    rate: f64,
    random: std::cell::RefCell<Random>,
}

impl Client {
    fn draw(&self, (least, end): (u64, u64)) -> u64 {
        self.random.borrow_mut().within(least, end)
    }

    fn to(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.random.borrow_mut().one_of(&self.place), port)
    }

    /// Judges what came of something towards a guest that stays; says whether it went well.
    fn judge<T>(&self, what: &str, result: Result<T, Failure>) -> Option<T> {
        match result {
            Ok(value) => return Some(value),
            Err(Failure::Connect(_)) if self.shared.excused(self.kept) => {
                self.shared.count(|done| done.refused += 1);
                thread::sleep(CONNECT_REST);
            }
            Err(failure) => {
                self.shared.error(format!("{what}: {failure}"));
                thread::sleep(CONNECT_REST);
            }
        }
        None
    }

    fn sends(&self) {
        let mut pace = Pace::new(self.rate, SILENCE);
        while !self.shared.stopping() {
            let (to, bytes, seed) = (self.to(SINK), self.draw(TRANSFER), self.draw((0, u64::MAX)));
            let what = format!("sending {bytes} bytes to {to}");
            let send = || client::send(to, bytes, seed, &mut pace);
            if self.transfers(&what, bytes, send) {
                self.shared.count(|done| done.up += bytes);
            }
        }
    }

    fn fetches(&self) {
        let mut pace = Pace::new(self.rate, SILENCE);
        while !self.shared.stopping() {
            let (from, bytes, seed) = (
                self.to(SOURCE),
                self.draw(TRANSFER),
                self.draw((0, u64::MAX)),
            );
            let what = format!("fetching {bytes} bytes from {from}");
            let fetch = || client::fetch(from, bytes, seed, &mut pace);
            if self.transfers(&what, bytes, fetch) {
                self.shared.count(|done| done.down += bytes);
            }
        }
    }

    /// Does a transfer, counts it, and tells if it took too long. Says whether it went well.
    fn transfers(
        &self,
        what: &str,
        bytes: u64,
        transfer: impl FnOnce() -> Result<(), Failure>,
    ) -> bool {
        let start = Instant::now();
        let well = self.judge(what, transfer()).is_some();
        let most = OUTAGES + Duration::from_secs_f64(bytes as f64 * SLOWER / self.rate);
        let took = start.elapsed();
        if well && took > most {
            self.shared
                .error(format!("{what}: took {took:.0?}, more than {most:.0?}"));
        }
        self.shared.count(|done| done.transfers += u64::from(well));
        well
    }

    fn reads_pages(&self) {
        let mut pace = Pace::new(f64::INFINITY, SILENCE);
        while !self.shared.stopping() {
            let (from, bytes) = (self.to(HTTP), self.draw(PAGE));
            let page = client::page(from, bytes, &mut pace);
            if self
                .judge(&format!("a page of {bytes} bytes from {from}"), page)
                .is_some()
            {
                self.shared.count(|done| {
                    done.down += bytes;
                    done.pages += 1;
                });
            }
            thread::sleep(PAGE_REST);
        }
    }

    /// A connection that is to outlive everything; `None` when the run is over, and it is
    /// not wanted any more.
    fn lasting(&self, to: SocketAddr) -> Option<TcpStream> {
        self.shared.want();
        while !self.shared.stopping() {
            if let Some(stream) = self.judge(
                &format!("a lasting connection to {to}"),
                client::open(to, SILENCE),
            ) {
                self.shared.opened();
                return Some(stream);
            }
        }
        self.shared.want_no_more();
        None
    }

    fn keeps_connections(&self) {
        let mut streams = Vec::new();
        for _ in 0..IDLE {
            match self.lasting(self.to(ECHO)) {
                Some(stream) => streams.push(stream),
                None => break,
            }
            for seed in 0..WARM_UP.0 {
                if let Some(at) = streams.len().checked_sub(1) {
                    self.echoes(&mut streams, at, WARM_UP.1, seed);
                }
            }
        }
        while !self.shared.stopping() && !streams.is_empty() {
            let at = self.draw((0, streams.len() as u64)) as usize;
            self.says_something(&mut streams, at);
            thread::sleep(IDLE_REST);
        }
        // Whether those that said nothing lately are still there.
        for at in (0..streams.len()).rev() {
            self.says_something(&mut streams, at);
        }
    }

    fn says_something(&self, streams: &mut Vec<TcpStream>, at: usize) {
        let (bytes, seed) = (self.draw((1, 2000)) as usize, self.draw((0, u64::MAX)));
        self.echoes(streams, at, bytes, seed);
    }

    fn echoes(&self, streams: &mut Vec<TcpStream>, at: usize, bytes: usize, seed: u64) {
        let echo = client::echo(&mut streams[at], bytes, seed);
        if self
            .judge("an echo on a lasting connection", echo)
            .is_none()
        {
            streams.swap_remove(at);
            self.shared.lost();
        }
    }

    fn witnesses(&self) {
        let Some(mut stream) = self.lasting(SocketAddr::new(self.place[0], ECHO)) else {
            return;
        };
        let mut seed = 0;
        while !self.shared.stopping() {
            seed += 1;
            match self.judge(
                "an echo for the witness",
                client::echo(&mut stream, 64, seed),
            ) {
                Some(time) => self.shared.round_trip(time),
                None => return self.shared.lost(),
            }
            thread::sleep(ECHO_REST);
        }
    }

    fn sends_datagrams(&self) {
        let open = || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(DATAGRAM))?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = match open() {
            Ok(socket) => socket,
            Err(error) => {
                return self
                    .shared
                    .error(format!("a socket for datagrams: {error}"));
            }
        };
        let to = SocketAddr::new(self.place[0], ECHO);
        let mut number = 0u64;
        while !self.shared.stopping() {
            number += 1;
            let mut sent = vec![0; self.draw((8, LONGEST_DATAGRAM)) as usize];
            Pattern::new(number).fill(&mut sent);
            sent[..8].copy_from_slice(&number.to_le_bytes());
            // Without a way it fails, which is a loss like any other.
            let gone = socket.send_to(&sent, to).is_ok();
            let back = gone && self.comes_back(&socket, &sent, number);
            self.shared.count(|done| {
                done.datagrams += 1;
                done.echoed += u64::from(back);
            });
            thread::sleep(DATAGRAM_REST);
        }
    }

    /// Waits for the echo of datagram `number`. Earlier ones, late or doubled, are compared
    /// by their length only: they begin with their number.
    fn comes_back(&self, socket: &UdpSocket, sent: &[u8], number: u64) -> bool {
        let deadline = Instant::now() + DATAGRAM;
        let mut buffer = [0; 2 * LONGEST_DATAGRAM as usize];
        while Instant::now() < deadline {
            let Ok(len) = socket.recv(&mut buffer) else {
                continue;
            };
            let Some(head) = buffer[..len].first_chunk::<8>() else {
                self.shared.error(format!(
                    "a datagram of {len} bytes came that was never sent"
                ));
                continue;
            };
            match u64::from_le_bytes(*head) {
                this if this == number && buffer[..len] == *sent => return true,
                earlier if earlier < number => {}
                _ => self
                    .shared
                    .error(format!("datagram {number} came back with other bytes")),
            }
        }
        false
    }

    /// Uses the guest that comes and goes.
    fn visits(&self) {
        let mut pace = Pace::new(self.rate, VISIT_SILENCE);
        while !self.shared.stopping() {
            let life = self.shared.life();
            if life.is_multiple_of(2) {
                thread::sleep(CONNECT_REST);
                continue;
            }
            let (bytes, seed) = (self.draw((1, 1 << 20)), self.draw((0, u64::MAX)));
            let result = match seed % 3 {
                0 => client::send(self.to(SINK), bytes, seed, &mut pace),
                1 => client::fetch(self.to(SOURCE), bytes, seed, &mut pace),
                _ => client::page(self.to(HTTP), bytes % PAGE.1, &mut pace),
            };
            match result {
                Ok(()) => self.shared.count(|done| done.transfers += 1),
                Err(Failure::Wrong(what)) if self.shared.life() == life => {
                    self.shared
                        .error(format!("the guest that comes and goes: {what}"));
                }
                Err(_) if self.shared.life() != life || self.shared.excused(self.kept) => {
                    thread::sleep(CONNECT_REST)
                }
                Err(failure) => {
                    self.shared.error(format!(
                        "the guest that comes and goes, and was there: {failure}"
                    ));
                }
            }
        }
    }
}
