//! Bulk TCP for about so long, with the bytes counted and sampled at both ends.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use demo_guest::pattern::Cycle;
use socket2::{Domain, Socket, Type};

use crate::Result;

/// Longest read and write, in bytes.
const PIECE: usize = 128 << 10;
/// What the kernel's senders go by: Linux's own default, whatever the machine has been
/// told. BBR paces, which brings whoever receives from it to the same rate.
const CONGESTION: &str = "cubic";
/// How long a peer may be silent.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of payload.
    pub bytes: u64,
    /// How long that took.
    pub elapsed: Duration,
}

impl Moved {
    /// 10⁹ bits per second.
    pub fn gbit(&self) -> f64 {
        self.bytes as f64 * 8e-9 / self.elapsed.as_secs_f64()
    }
}

/// Sends to a counting server until `time` is over and it has said that everything
/// arrived.
///
/// # Errors
/// A connection that breaks; a server that counted otherwise.
pub fn send(to: SocketAddr, time: Duration) -> Result<Moved> {
    send_over(connect_as_linux_does(to)?, to, time)
}

/// The same by the machine's own congestion control.
///
/// # Errors
/// As for [`send`].
pub fn send_as_told(to: SocketAddr, time: Duration) -> Result<Moved> {
    send_over(connect(to)?, to, time)
}

/// A connection over which the kernel sends by what Linux does by default.
///
/// # Errors
/// Nobody there; a kernel without it.
pub fn connect_as_linux_does(to: SocketAddr) -> Result<TcpStream> {
    connect_with(to, as_linux_does)
}

/// Has the kernel send over this socket, or over those that it accepts, by what Linux does
/// by default. Only before there is a connection: one that BBR began is paced for ever.
///
/// # Errors
/// A kernel without it.
pub fn as_linux_does(socket: &Socket) -> std::io::Result<()> {
    socket.set_tcp_congestion(CONGESTION.as_bytes())
}

fn send_over(mut stream: TcpStream, to: SocketAddr, time: Duration) -> Result<Moved> {
    let mut cycle = Cycle::new(PIECE);
    let start = Instant::now();
    while start.elapsed() < time {
        let n = stream.write(cycle.next_piece())?;
        cycle.advance(n);
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let elapsed = start.elapsed();
    let bytes = cycle.position();
    match answer.trim().parse::<u64>() {
        Ok(counted) if counted == bytes => Ok(Moved { bytes, elapsed }),
        _ => Err(format!("{to} was sent {bytes} bytes, and says {:?}", answer.trim()).into()),
    }
}

/// Receives from an endless server for `time`.
///
/// # Errors
/// A connection that breaks or brings wrong bytes.
pub fn receive(from: SocketAddr, time: Duration) -> Result<Moved> {
    let mut stream = connect(from)?;
    let mut buffer = vec![0; PIECE];
    let mut cycle = Cycle::new(0);
    stream.write_all(b"!")?;
    let start = Instant::now();
    while start.elapsed() < time {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Err(format!("{from} stopped after {} bytes", cycle.position()).into());
        }
        if !cycle.continues(&buffer[..n]) {
            return Err(format!("{from} sent wrong bytes before {}", cycle.position()).into());
        }
    }
    Ok(Moved {
        bytes: cycle.position(),
        elapsed: start.elapsed(),
    })
}

/// Several of them at once; the sum, over the time of the slowest.
///
/// # Errors
/// The first that fails.
pub fn several(
    streams: usize,
    time: Duration,
    addr: SocketAddr,
    one: fn(SocketAddr, Duration) -> Result<Moved>,
) -> Result<Moved> {
    // The main thread's children must not be bound to these: they start none.
    thread::scope(|scope| {
        let start = || scope.spawn(move || one(addr, time).map_err(|error| error.to_string()));
        let threads: Vec<_> = (0..streams).map(|_| start()).collect();
        let mut sum = Moved {
            bytes: 0,
            elapsed: Duration::ZERO,
        };
        for thread in threads {
            let moved = thread.join().map_err(|_| "a client panicked")??;
            sum.bytes += moved.bytes;
            sum.elapsed = sum.elapsed.max(moved.elapsed);
        }
        Ok(sum)
    })
}

fn connect(addr: SocketAddr) -> Result<TcpStream> {
    connect_with(addr, |_| Ok(()))
}

fn connect_with(
    addr: SocketAddr,
    prepare: impl Fn(&Socket) -> std::io::Result<()>,
) -> Result<TcpStream> {
    let open = || {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        prepare(&socket)?;
        socket.connect_timeout(&addr.into(), PATIENCE)?;
        Ok(TcpStream::from(socket))
    };
    let stream =
        open().map_err(|error: std::io::Error| format!("connecting to {addr}: {error}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}
