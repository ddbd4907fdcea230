//! Bulk transfer with a check: a sink that hashes, a source of a known pattern;
//! and a sink and a source that check little, because hashing would be what is
//! measured.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::fmt::Write as _;

use guest_stack::face::asynchronous::TcpStream;
use guest_stack::face::platform::Platform;
use guest_stack::tcp::stream::Shutdown;
use sha2::{Digest, Sha256};
use shm_link::link::Link;

use crate::pattern::{Cycle, Pattern};

/// Longest request line of the source.
const MAX_LINE: usize = 64;
/// Longest read and write of the measured services.
const PIECE: usize = 64 << 10;

/// Reads to the end and answers how much it was, and its SHA-256.
pub(super) async fn sink<L: Link, P: Platform>(stream: TcpStream<L, P>) {
    let mut buffer = vec![0; 64 << 10];
    let (mut total, mut hash) = (0u64, Sha256::new());
    loop {
        match stream.recv(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => {
                total += n as u64;
                hash.update(&buffer[..n]);
            }
            Err(_) => return,
        }
    }
    let mut answer = format!("{total} ");
    for byte in hash.finalize() {
        let _ = write!(answer, "{byte:02x}");
    }
    answer.push('\n');
    let _ = stream.send_all(answer.as_bytes()).await;
    let _ = stream.shutdown(Shutdown::Write);
}

/// Reads `<bytes> <seed>` and sends that many bytes of the seed's pattern.
pub(super) async fn source<L: Link, P: Platform>(stream: TcpStream<L, P>) {
    let Some((mut left, seed)) = request(&stream).await else {
        let _ = stream
            .send_all(b"say: <bytes> <seed>, both decimal, and a line feed\n")
            .await;
        return;
    };
    let mut pattern = Pattern::new(seed);
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let n = left.min(buffer.len() as u64) as usize;
        pattern.fill(&mut buffer[..n]);
        if stream.send_all(&buffer[..n]).await.is_err() {
            return;
        }
        left -= n as u64;
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Reads a [`Cycle`] to its end and answers how much it was, or says where a byte was
/// not the next.
pub(super) async fn count<L: Link, P: Platform>(stream: TcpStream<L, P>) {
    let mut buffer = vec![0; PIECE];
    let mut cycle = Cycle::new(0);
    let answer = loop {
        match stream.recv(&mut buffer).await {
            Ok(0) => break format!("{}\n", cycle.position()),
            Ok(n) if cycle.continues(&buffer[..n]) => {}
            Ok(_) => break format!("wrong bytes before {}\n", cycle.position()),
            Err(_) => return,
        }
    };
    let _ = stream.send_all(answer.as_bytes()).await;
    let _ = stream.shutdown(Shutdown::Write);
}

/// After a first byte from the client, sends a [`Cycle`] for as long as somebody
/// takes it.
pub(super) async fn endless<L: Link, P: Platform>(stream: TcpStream<L, P>) {
    let mut cycle = Cycle::new(PIECE);
    if stream.recv(&mut [0]).await != Ok(1) {
        return;
    }
    while let Ok(n) = stream.send(cycle.next_piece()).await {
        cycle.advance(n);
    }
}

async fn request<L: Link, P: Platform>(stream: &TcpStream<L, P>) -> Option<(u64, u64)> {
    let mut line = String::new();
    let mut byte = [0];
    while line.len() < MAX_LINE {
        if stream.recv(&mut byte).await.ok()? == 0 {
            return None;
        }
        if byte[0] == b'\n' {
            let (bytes, seed) = line.trim_end().split_once(' ')?;
            return Some((bytes.parse().ok()?, seed.parse().ok()?));
        }
        line.push(char::from(byte[0]));
    }
    None
}
