//! What one client does once: a transfer, a page, an echo. On the kernel's TCP; every
//! byte is compared. Says at which point it failed, and judges nothing.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use demo_guest::pattern::Pattern;
use sha2::{Digest, Sha256};

/// How long a connect may take.
const CONNECT: Duration = Duration::from_secs(20);
/// Bytes per call.
const PIECE: usize = 64 << 10;

/// Why a client got no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// No connection came about.
    Connect(io::Error),
    /// The connection broke, or was silent for too long.
    Broke(io::Error),
    /// Other bytes came than were to come.
    Wrong(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => write!(f, "connecting: {error}"),
            Self::Broke(error) => write!(f, "{error}"),
            Self::Wrong(what) => write!(f, "wrong: {what}"),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Broke(error)
    }
}

/// Connects to something that may be silent for so long from then on.
pub(super) fn open(to: SocketAddr, silence: Duration) -> Result<TcpStream, Failure> {
    let open = || {
        let stream = TcpStream::connect_timeout(&to, CONNECT)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(silence))?;
        Ok(stream)
    };
    open().map_err(Failure::Connect)
}

/// Slows transfers down to a rate, and bounds their silence.
pub(super) struct Pace {
    silence: Duration,
    bytes_per_second: f64,
    start: Instant,
    moved: u64,
}

impl Pace {
    /// So fast at the most, and never silent for longer than that.
    pub(super) fn new(bytes_per_second: f64, silence: Duration) -> Self {
        Self {
            silence,
            bytes_per_second,
            start: Instant::now(),
            moved: 0,
        }
    }

    /// Takes note of bytes, and sleeps if they came too early. What was missed in an
    /// outage is not made up.
    fn moved(&mut self, bytes: usize) {
        self.moved += bytes as u64;
        let due = Duration::from_secs_f64(self.moved as f64 / self.bytes_per_second);
        let elapsed = self.start.elapsed();
        match due.checked_sub(elapsed) {
            Some(early) => thread::sleep(early),
            None if elapsed > due + Duration::from_secs(1) => {
                *self = Self::new(self.bytes_per_second, self.silence);
            }
            None => {}
        }
    }
}

/// Sends so many bytes to the guest's sink; the guest's hash is compared.
pub(super) fn send(to: SocketAddr, bytes: u64, seed: u64, pace: &mut Pace) -> Result<(), Failure> {
    let mut stream = open(to, pace.silence)?;
    let (mut pattern, mut hash) = (Pattern::new(seed), Sha256::new());
    let mut buffer = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let piece = &mut buffer[..left.min(PIECE as u64) as usize];
        pattern.fill(piece);
        hash.update(&*piece);
        stream.write_all(piece)?;
        left -= piece.len() as u64;
        pace.moved(piece.len());
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let hex: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let expected = format!("{bytes} {hex}\n");
    match answer == expected {
        true => Ok(()),
        false => Err(Failure::Wrong(format!(
            "the guest received {answer:?}, not {expected:?}"
        ))),
    }
}

/// Fetches so many bytes from the guest's source and compares each.
pub(super) fn fetch(
    from: SocketAddr,
    bytes: u64,
    seed: u64,
    pace: &mut Pace,
) -> Result<(), Failure> {
    let mut stream = open(from, pace.silence)?;
    stream.write_all(format!("{bytes} {seed}\n").as_bytes())?;
    compare(&mut stream, Pattern::new(seed), bytes, pace)
}

/// Fetches a page of so many bytes on a connection of its own and compares it.
pub(super) fn page(from: SocketAddr, bytes: u64, pace: &mut Pace) -> Result<(), Failure> {
    let mut stream = open(from, pace.silence)?;
    let request =
        format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: {from}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 1000 || stream.read(&mut byte)? == 0 {
            return Err(Failure::Wrong(format!(
                "a head of {:?}",
                String::from_utf8_lossy(&head)
            )));
        }
        head.push(byte[0]);
    }
    if !head.starts_with(b"HTTP/1.1 200 OK\r\n") {
        return Err(Failure::Wrong(format!(
            "{:?}",
            String::from_utf8_lossy(&head)
        )));
    }
    compare(&mut stream, Pattern::new(0), bytes, pace)
}

fn compare(
    stream: &mut TcpStream,
    mut pattern: Pattern,
    bytes: u64,
    pace: &mut Pace,
) -> Result<(), Failure> {
    let (mut buffer, mut expected) = (vec![0; PIECE], vec![0; PIECE]);
    let mut received = 0;
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        pattern.fill(&mut expected[..n]);
        if buffer[..n] != expected[..n] {
            return Err(Failure::Wrong(format!(
                "other bytes between {received} and {}",
                received + n as u64
            )));
        }
        received += n as u64;
        pace.moved(n);
    }
    match received == bytes {
        true => Ok(()),
        false => Err(Failure::Wrong(format!("{received} bytes of {bytes}"))),
    }
}

/// Sends something to the guest's echo and compares what comes back.
pub(super) fn echo(stream: &mut TcpStream, bytes: usize, seed: u64) -> Result<Duration, Failure> {
    let (mut sent, mut received) = (vec![0; bytes], vec![0; bytes]);
    Pattern::new(seed).fill(&mut sent);
    let start = Instant::now();
    stream.write_all(&sent)?;
    stream.read_exact(&mut received)?;
    match sent == received {
        true => Ok(start.elapsed()),
        false => Err(Failure::Wrong("an echo of other bytes".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn serve(talk: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || talk(listener.accept().unwrap().0));
        address
    }

    fn fast() -> Pace {
        Pace::new(f64::INFINITY, Duration::from_secs(20))
    }

    #[test]
    fn a_wrong_byte_anywhere_is_seen() {
        for wrong in [None, Some(0), Some(99_999)] {
            let from = serve(move |mut stream| {
                stream.read_exact(&mut [0; 9]).unwrap();
                let mut bytes = vec![0; 100_000];
                Pattern::new(7).fill(&mut bytes);
                if let Some(at) = wrong {
                    bytes[at] ^= 1;
                }
                let _ = stream.write_all(&bytes);
            });
            let result = fetch(from, 100_000, 7, &mut fast());
            match wrong {
                None => result.unwrap(),
                Some(_) => assert!(matches!(result, Err(Failure::Wrong(_))), "{result:?}"),
            }
        }
    }

    #[test]
    fn a_stream_that_ends_early_and_one_that_breaks_are_told_apart() {
        let from = serve(|mut stream| {
            let mut line = [0; 9];
            stream.read_exact(&mut line).unwrap();
        });
        assert!(matches!(
            fetch(from, 100_000, 7, &mut fast()),
            Err(Failure::Wrong(_))
        ));
        // What was not read makes a reset of the close.
        let from = serve(|mut stream| {
            stream.read_exact(&mut [0]).unwrap();
        });
        assert!(matches!(
            fetch(from, 100_000, 7, &mut fast()),
            Err(Failure::Broke(_))
        ));
    }

    #[test]
    fn a_sink_that_saw_other_bytes_is_found_out() {
        let to = serve(|mut stream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all[50] ^= 4;
            let hash = Sha256::digest(&all);
            let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
            let _ = writeln!(stream, "{} {hex}", all.len());
        });
        assert!(matches!(
            send(to, 1000, 3, &mut fast()),
            Err(Failure::Wrong(_))
        ));
    }

    #[test]
    fn a_pace_is_kept() {
        let mut pace = Pace::new(1e6, Duration::from_secs(20));
        let start = Instant::now();
        for _ in 0..5 {
            pace.moved(10_000);
        }
        assert!(start.elapsed() >= Duration::from_millis(49));
    }
}
