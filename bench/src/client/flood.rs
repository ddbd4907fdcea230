//! A flood of SYNs with forged sources, from the kernel's side, at a given rate.
//!
//! The sources are of 198.18.0.0/15, which is set aside for benchmarks (RFC 2544): nobody is
//! there, so the answers go nowhere. Like all traffic of a benchmark it stays in the
//! network namespace.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::Result;

/// As often the flood looks how many are due.
const TICK: Duration = Duration::from_millis(1);

/// A running flood. It ends when it is dropped.
#[derive(Debug)]
pub struct SynFlood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl SynFlood {
    /// Starts to send so many SYNs per second.
    ///
    /// # Errors
    /// If this user may open no raw socket.
    pub fn start(to: SocketAddrV4, per_second: u64) -> Result<Self> {
        // IPPROTO_RAW: headers are ours, the kernel fills in the header's checksum.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (stopped, count) = (stop.clone(), sent.clone());
        let thread = thread::spawn(move || {
            let (start, mut number) = (Instant::now(), 0u64);
            while !stopped.load(Relaxed) {
                let due = (start.elapsed().as_secs_f64() * per_second as f64) as u64;
                while number < due {
                    number += 1;
                    // Without room in the TAP's queue it is lost, as in any flood.
                    if socket.send_to(&syn(to, number), &to.into()).is_ok() {
                        count.fetch_add(1, Relaxed);
                    }
                }
                thread::sleep(TICK);
            }
        });
        Ok(Self {
            stop,
            sent,
            thread: Some(thread),
        })
    }

    /// How many the kernel took so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }
}

impl Drop for SynFlood {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// SYN number `number`: each from another address and port.
fn syn(to: SocketAddrV4, number: u64) -> [u8; 40] {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    let source = Ipv4Addr::from(0xc612_0000 | (mixed as u32 & 0x1_ffff));
    let mut packet = [0; 40];
    packet[..4].copy_from_slice(&[0x45, 0, 0, 40]);
    packet[8..10].copy_from_slice(&[64, 6]);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    let port = 1024 + (mixed >> 20) as u16 % 60_000;
    packet[20..22].copy_from_slice(&port.to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..28].copy_from_slice(&(number as u32).to_be_bytes());
    // 20 bytes of header, SYN, a window.
    packet[32..36].copy_from_slice(&[0x50, 2, 0xff, 0xff]);
    let sum = checksum(&packet);
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

/// RFC 9293, 3.1: over the segment and its pseudo-header.
fn checksum(packet: &[u8; 40]) -> u16 {
    let pairs = packet[12..].chunks_exact(2);
    let mut sum: u32 = pairs
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    sum += 6 + 20;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syns_are_well_formed_and_differ() {
        let to = "10.77.0.2:80".parse().unwrap();
        let mut seen = std::collections::HashSet::new();
        for number in 1..10_000 {
            let packet = syn(to, number);
            assert_eq!(packet[12], 198);
            assert!((18..=19).contains(&packet[13]));
            // With its checksum in place the sum is what it must be.
            assert_eq!(checksum(&packet), 0);
            seen.insert(packet[12..22].to_vec());
        }
        assert!(seen.len() > 9900, "{}", seen.len());
    }
}
