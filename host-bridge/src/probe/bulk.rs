//! Many bytes in one direction, checked to the last one.
//!
//! The guest offers two TCP services. Its *sink* reads to the end of the stream
//! and then answers one line, `<bytes> <SHA-256 in hex>\n`. Its *source* reads
//! one line, `<bytes> <seed>\n`, sends that many bytes of the [pattern] of that
//! seed, and closes. All numbers are decimal.
//!
//! [pattern]: super::pattern

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::ProbeError;
use super::pattern::Pattern;
use super::stream::BoundedStream;

/// The guest's sink.
pub const SINK_PORT: u16 = 5001;
/// The guest's source.
pub const SOURCE_PORT: u16 = 5002;

/// Bytes per read and write call: past this, larger ones gain nothing here.
const CHUNK: usize = 256 * 1024;
/// Longest answer line of the sink: a 20-digit number, a hash, two separators.
const MAX_ANSWER: usize = 20 + 64 + 2;

/// How a transfer went.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BulkReport {
    /// Bytes that arrived, by the receiver's count.
    pub bytes: u64,
    /// From the first byte or request to the end of the answer; connecting and
    /// checking afterwards are not in it.
    pub elapsed: Duration,
    /// Whether exactly the bytes arrived that were sent.
    pub checksum_ok: bool,
}

impl BulkReport {
    /// The rate in bits per second.
    pub fn bits_per_second(&self) -> f64 {
        // u64 to f64 loses what is below a millionth of a percent.
        self.bytes as f64 * 8.0 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Sends `bytes` bytes of the pattern of `seed` to the sink at `addr`, within
/// `limit`.
///
/// # Errors
/// [`ProbeError`]. A wrong count or hash is no error but a report that says so.
pub fn bulk_send(
    addr: SocketAddr,
    bytes: u64,
    seed: u64,
    limit: Duration,
) -> Result<BulkReport, ProbeError> {
    let doing = format!("sending {bytes} bytes to {addr}");
    let mut stream = BoundedStream::connect(addr, limit, doing)?;
    let start = Instant::now();
    for_each_chunk(bytes, seed, |chunk| stream.write_all(chunk))?;
    stream.shutdown_write()?;
    let answer = stream.read_to_end(MAX_ANSWER)?;
    let elapsed = start.elapsed();

    let (received, hash) = parse_answer(&answer).ok_or_else(|| {
        let what = format!(
            "{:?} is not a count and a hash",
            String::from_utf8_lossy(&answer)
        );
        ProbeError::answer(stream.doing(), what)
    })?;
    let mut expected = Sha256::new();
    for_each_chunk(bytes, seed, |chunk| {
        expected.update(chunk);
        Ok(())
    })?;
    let checksum_ok = received == bytes && hash == expected.finalize().as_slice();
    Ok(BulkReport {
        bytes: received,
        elapsed,
        checksum_ok,
    })
}

/// Asks the source at `addr` for `bytes` bytes of the pattern of `seed`, and
/// reads them within `limit`.
///
/// # Errors
/// [`ProbeError`]; more bytes than asked for are one. Other or fewer bytes are
/// no error but a report that says so.
pub fn bulk_receive(
    addr: SocketAddr,
    bytes: u64,
    seed: u64,
    limit: Duration,
) -> Result<BulkReport, ProbeError> {
    let doing = format!("receiving {bytes} bytes from {addr}");
    let mut stream = BoundedStream::connect(addr, limit, doing)?;
    let mut pattern = Pattern::new(seed);
    let (mut buf, mut expected) = (vec![0; CHUNK], vec![0; CHUNK]);
    let (mut received, mut same) = (0, true);
    let start = Instant::now();
    stream.write_all(format!("{bytes} {seed}\n").as_bytes())?;
    loop {
        // `read` never says more than fits into `buf`, which is as long as `expected`.
        let (got, expected) = match stream.read(&mut buf)? {
            0 => break,
            n => (&buf[..n], &mut expected[..n]),
        };
        received += got.len() as u64;
        if received > bytes {
            return Err(ProbeError::answer(
                stream.doing(),
                "more bytes than were asked for",
            ));
        }
        pattern.fill(expected);
        same &= got == expected;
    }
    let elapsed = start.elapsed();
    Ok(BulkReport {
        bytes: received,
        elapsed,
        checksum_ok: same && received == bytes,
    })
}

fn for_each_chunk(
    bytes: u64,
    seed: u64,
    mut each: impl FnMut(&[u8]) -> Result<(), ProbeError>,
) -> Result<(), ProbeError> {
    let mut pattern = Pattern::new(seed);
    let mut buf = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let len = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        pattern.fill(&mut buf[..len]);
        each(&buf[..len])?;
        left -= len as u64;
    }
    Ok(())
}

/// `<bytes> <64 hex digits>\n`, and nothing else.
fn parse_answer(line: &[u8]) -> Option<(u64, [u8; 32])> {
    let (count, hex) = str::from_utf8(line)
        .ok()?
        .strip_suffix('\n')?
        .split_once(' ')?;
    let (pairs, []) = hex.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let pairs: &[[u8; 2]; 32] = pairs.try_into().ok()?;
    let mut hash = [0; 32];
    for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
        let digit = |c: &u8| char::from(*c).to_digit(16);
        *byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
    }
    Some((count.parse().ok()?, hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    const LIMIT: Duration = Duration::from_secs(60);
    /// Not a multiple of a word, a chunk or a page.
    const BYTES: u64 = 5 * 1024 * 1024 + 3;

    fn serve(talk: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        thread::spawn(move || talk(listener.accept().unwrap().0));
        addr
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    fn sink(mut stream: TcpStream, harm: impl FnOnce(&mut Vec<u8>)) {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        harm(&mut all);
        writeln!(stream, "{} {}", all.len(), hex(&Sha256::digest(&all))).unwrap();
    }

    fn source(stream: TcpStream, harm: impl FnOnce(&mut Vec<u8>)) {
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).unwrap();
        let (bytes, seed) = line.trim_end().split_once(' ').unwrap();
        let mut all = vec![0; bytes.parse().unwrap()];
        Pattern::new(seed.parse().unwrap()).fill(&mut all);
        harm(&mut all);
        // A probe that has seen enough closes early.
        let _ = (&stream).write_all(&all);
    }

    #[test]
    fn a_good_sink_confirms_every_byte() {
        for bytes in [0, 1, BYTES] {
            let addr = serve(|s| sink(s, |_| {}));
            let report = bulk_send(addr, bytes, 42, LIMIT).unwrap();
            assert_eq!((report.bytes, report.checksum_ok), (bytes, true));
        }
    }

    #[test]
    fn a_sink_that_saw_other_bytes_is_found_out() {
        let addr = serve(|s| sink(s, |all| all[1_000_000] ^= 1));
        assert!(!bulk_send(addr, BYTES, 42, LIMIT).unwrap().checksum_ok);

        let addr = serve(|s| sink(s, |all| all.truncate(100)));
        let report = bulk_send(addr, BYTES, 42, LIMIT).unwrap();
        assert_eq!((report.bytes, report.checksum_ok), (100, false));
    }

    #[test]
    fn a_good_source_delivers_the_pattern() {
        for bytes in [0, 1, BYTES] {
            let addr = serve(|s| source(s, |_| {}));
            let report = bulk_receive(addr, bytes, 7, LIMIT).unwrap();
            assert_eq!((report.bytes, report.checksum_ok), (bytes, true));
            assert!(report.bits_per_second().is_finite());
        }
    }

    #[test]
    fn a_source_that_sends_other_bytes_is_found_out() {
        let addr = serve(|s| source(s, |all| all[4_000_000] ^= 0x80));
        let report = bulk_receive(addr, BYTES, 7, LIMIT).unwrap();
        assert_eq!((report.bytes, report.checksum_ok), (BYTES, false));

        let addr = serve(|s| source(s, |all| all.truncate(1000)));
        let report = bulk_receive(addr, BYTES, 7, LIMIT).unwrap();
        assert_eq!((report.bytes, report.checksum_ok), (1000, false));

        let addr = serve(|s| source(s, |all| all.push(0)));
        let error = bulk_receive(addr, BYTES, 7, LIMIT).unwrap_err();
        assert!(matches!(error, ProbeError::Answer { .. }), "{error}");
    }

    #[test]
    fn an_answer_that_is_no_count_and_hash_is_an_error() {
        let hash = "0".repeat(64);
        for answer in [
            String::new(),
            "12\n".into(),
            format!("x {hash}\n"),
            format!("12 {hash}"),
            format!("12 {hash}0\n"),
            format!("12 {}g\n", &hash[1..]),
            format!("12 {hash}\nmore"),
        ] {
            assert_eq!(parse_answer(answer.as_bytes()), None, "{answer:?}");
        }
        assert_eq!(
            parse_answer(format!("12 {hash}\n").as_bytes()),
            Some((12, [0; 32]))
        );

        let addr = serve(|mut s| {
            s.read_to_end(&mut Vec::new()).unwrap();
            s.write_all(b"nonsense").unwrap();
        });
        let error = bulk_send(addr, 10, 1, LIMIT).unwrap_err();
        assert!(error.to_string().contains("nonsense"), "{error}");
    }

    #[test]
    fn a_trickle_of_bytes_ends_at_the_limit() {
        let addr = serve(|mut s| while s.write_all(&[0]).is_ok() {});
        let limit = Duration::from_millis(50);
        let error = bulk_receive(addr, u64::MAX, 1, limit).unwrap_err();
        assert!(
            matches!(error, ProbeError::Timeout { after, .. } if after == limit),
            "{error}"
        );
    }

    #[test]
    fn a_silent_source_ends_at_the_limit() {
        let addr = serve(|mut s| drop(s.read_to_end(&mut Vec::new())));
        let error = bulk_receive(addr, 10, 1, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, ProbeError::Timeout { .. }), "{error}");
    }
}
