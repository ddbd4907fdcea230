//! One message forth, the same back, again and again; how long each took.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::bulk::connect_as_linux_does;
use crate::Result;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Quantiles of the round trips.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RoundTrips {
    /// Half took no longer, in µs.
    pub p50_us: f64,
    /// 99 % took no longer, in µs.
    pub p99_us: f64,
    /// How many there were.
    pub count: usize,
}

/// Sends messages of `len` bytes to an echo server for `time`, with `pause`
/// before each. The client sleeps in its read, as clients do.
///
/// # Errors
/// A connection that breaks, or an echo that differs.
pub fn run(to: SocketAddr, len: usize, pause: Duration, time: Duration) -> Result<RoundTrips> {
    let mut stream = connect_as_linux_does(to)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut message = vec![0; len];
    let mut echo = vec![0; len];
    let mut trips = Vec::new();
    let start = Instant::now();
    let mut number = 0u8;
    while start.elapsed() < time || trips.len() < 2 {
        if !pause.is_zero() {
            sleep(pause);
        }
        number = number.wrapping_add(1);
        message.fill(number);
        let begin = Instant::now();
        stream.write_all(&message)?;
        stream.read_exact(&mut echo)?;
        trips.push(begin.elapsed());
        if message != echo {
            return Err(format!("{to} echoed something else").into());
        }
    }
    Ok(quantiles(trips))
}

fn quantiles(mut trips: Vec<Duration>) -> RoundTrips {
    trips.sort_unstable();
    let at = |part: f64| trips[((trips.len() - 1) as f64 * part).round() as usize];
    RoundTrips {
        p50_us: at(0.5).as_secs_f64() * 1e6,
        p99_us: at(0.99).as_secs_f64() * 1e6,
        count: trips.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_sorted_trips() {
        let trips = (0..=100).rev().map(Duration::from_micros).collect();
        let quantiles = quantiles(trips);
        assert_eq!((quantiles.p50_us, quantiles.p99_us), (50.0, 99.0));
        assert_eq!(quantiles.count, 101);
    }
}
