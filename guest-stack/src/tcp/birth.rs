//! How a TCP socket comes to life with an initial sequence number of our choice.
//!
//! smoltcp takes initial sequence numbers from a small generator inside its
//! `Interface`, which anybody can predict who has seen a few of its outputs, and
//! makes a whole socket for every SYN. Here the number is a keyed hash of the
//! addresses plus a clock (RFC 6528), so it can be computed before there is a
//! socket: the SYN is answered from a small record, and the socket is made when
//! the handshake is complete. Then a short-lived `Interface` is seeded so that
//! its generator's next output is that number, and the new socket is taken
//! through the handshake in it.
//!
//! This knows smoltcp's generator (PCG, `rand.rs`) and that `Interface::new`
//! draws from it once. Should either change, [`accepted`] and [`connecting`]
//! notice and give `None`, and the tests below fail.

use core::hash::{BuildHasher, Hash, Hasher};

use smoltcp::iface::{Config, Interface};
use smoltcp::phy::Medium;
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint};

use super::memory::TcpCell;
use super::segment::{MAX_LEN, Segment};
use crate::classify::u32_at;
use crate::flow::FlowKey;
use crate::sink::Sink;

/// The generator's multiplier and increment.
const MULTIPLIER: u64 = 0xbb2e_fcec_3c39_611d;
const INCREMENT: u64 = 0x7590_ef39;

/// The initial sequence number of a connection (RFC 6528): a clock that ticks
/// every 4 µs plus a hash of the addresses under a secret key.
pub(crate) fn initial_sequence(hasher: &impl BuildHasher, key: &FlowKey, now: Instant) -> u32 {
    let mut state = hasher.build_hasher();
    b"isn".hash(&mut state);
    key.hash(&mut state);
    // Both are meant to wrap.
    (state.finish() as u32).wrapping_add((now.total_micros() / 4) as u32)
}

/// The inverse of the multiplier modulo 2⁶⁴, by Newton's iteration.
const fn inverse(odd: u64) -> u64 {
    let mut inverse = odd;
    let mut round = 0;
    // Correct to 3 bits at first; every round doubles them.
    while round < 5 {
        inverse = inverse.wrapping_mul(2u64.wrapping_sub(odd.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
}

const INVERSE: u64 = inverse(MULTIPLIER);

/// The seed after which the generator's second output is `isn`.
fn seed_for(isn: u32) -> u64 {
    let mut low = 0;
    loop {
        // A state below 2⁶¹ gives its bits 29 to 60.
        let second = u64::from(isn) << 29 | low;
        let first = second.wrapping_sub(INCREMENT).wrapping_mul(INVERSE);
        // The first output becomes an identifier that must not be zero, else
        // a further one is drawn.
        let output = (first >> (29 - (first >> 61))) as u32;
        if (output ^ (output >> 16)) as u16 != 0 {
            return first.wrapping_sub(INCREMENT).wrapping_mul(INVERSE);
        }
        low += 1;
    }
}

/// The sequence number of a bare segment without IP options.
fn sequence(packet: &[u8]) -> Option<u32> {
    let header_len = if packet.first()? >> 4 == 4 { 20 } else { 40 };
    u32_at(packet, header_len + 4)
}

/// Settings of an `Interface` whose generator's next output is `isn`. Whoever
/// needs one makes it in place: it is large, and passing it on copies it.
fn seeded(isn: u32) -> Config {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed_for(isn);
    config
}

/// Gives an interface without addresses one.
fn set_address(interface: &mut Interface, local: IpAddress) {
    let prefix_len = match local {
        IpAddress::Ipv4(_) => 32,
        IpAddress::Ipv6(_) => 128,
    };
    interface.update_ip_addrs(|addresses| {
        // The table is empty.
        let _ = addresses.push(IpCidr::new(local, prefix_len));
    });
}

/// Takes a socket through the handshake up to its SYN|ACK, which was sent with
/// `isn` already: `syn` is the segment that began it. Afterwards the socket
/// waits for the ACK. `None`: it sent another sequence number.
#[inline(never)]
pub(crate) fn accepted(
    mut cell: TcpCell,
    syn: &Segment,
    isn: u32,
    mtu: usize,
    now: Instant,
) -> Option<TcpCell> {
    let mut packet = [0; MAX_LEN];
    let packet = &mut packet[..syn.packet_len()];
    syn.write_packet(packet);
    let mut sink = Sink::new(Medium::Ip, mtu);
    let mut interface = Interface::new(seeded(isn), &mut sink, now);
    set_address(&mut interface, syn.dst);
    let local = IpEndpoint::new(syn.dst, syn.tcp.dst_port);
    cell.with(|socket| socket.listen(local)).ok()?;
    sink.show(packet);
    cell.with_set(|set| {
        interface.poll_ingress_single(now, &mut sink, set);
        interface.poll_egress(now, &mut sink, set);
    });
    let sent = sequence(&sink.written)?;
    let state = cell.with(|socket| socket.state());
    (state == tcp::State::SynReceived && sent == isn).then_some(cell)
}

/// Lets a socket begin a handshake from `key.local` to `key.remote` whose SYN
/// will have the sequence number `isn`.
#[inline(never)]
pub(crate) fn connecting(
    mut cell: TcpCell,
    key: &FlowKey,
    isn: u32,
    mtu: usize,
    now: Instant,
) -> Option<TcpCell> {
    let mut sink = Sink::new(Medium::Ip, mtu);
    let mut interface = Interface::new(seeded(isn), &mut sink, now);
    let begun = cell.with(|socket| socket.connect(interface.context(), key.remote, key.local));
    begun.is_ok().then_some(cell)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::memory::Pool;
    use crate::tcp::options::TcpOptions;
    use smoltcp::wire::{TcpControl, TcpRepr, TcpSeqNumber};

    fn key(v6: bool) -> FlowKey {
        let (a, b) = if v6 {
            (
                IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 1),
                IpAddress::v6(0xfd00, 0, 0, 0, 0, 0, 0, 2),
            )
        } else {
            (IpAddress::v4(10, 0, 0, 1), IpAddress::v4(10, 0, 0, 2))
        };
        FlowKey {
            local: IpEndpoint::new(a, 80),
            remote: IpEndpoint::new(b, 4000),
        }
    }

    fn syn(key: &FlowKey) -> Segment {
        Segment {
            src: key.remote.addr,
            dst: key.local.addr,
            hop_limit: 64,
            tcp: TcpRepr {
                src_port: key.remote.port,
                dst_port: key.local.port,
                control: TcpControl::Syn,
                seq_number: TcpSeqNumber(77),
                ack_number: None,
                window_len: 64_000,
                window_scale: Some(7),
                max_seg_size: Some(1460),
                sack_permitted: true,
                sack_ranges: [None; 3],
                timestamp: None,
                payload: &[],
            },
        }
    }

    #[test]
    fn an_accepted_socket_has_the_chosen_initial_sequence_number() {
        for v6 in [false, true] {
            for isn in [0, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX, 0x1234_5678] {
                let key = key(v6);
                let socket = Pool::new(0).socket(&TcpOptions::default());
                let cell = accepted(socket, &syn(&key), isn, 1500, Instant::ZERO);
                assert!(cell.is_some(), "v6 {v6}, isn {isn}");
            }
        }
    }

    #[test]
    fn a_connecting_socket_has_the_chosen_initial_sequence_number() {
        for v6 in [false, true] {
            for isn in [0, 5, u32::MAX, 0xdead_beef] {
                let key = key(v6);
                let socket = Pool::new(0).socket(&TcpOptions::default());
                let mut cell = connecting(socket, &key, isn, 1500, Instant::ZERO).unwrap();
                let mut sink = Sink::new(Medium::Ip, 1500);
                let mut interface = Interface::new(seeded(0), &mut sink, Instant::ZERO);
                set_address(&mut interface, key.local.addr);
                cell.with_set(|set| interface.poll_egress(Instant::ZERO, &mut sink, set));
                assert_eq!(sequence(&sink.written), Some(isn));
            }
        }
    }

    #[test]
    fn sequence_numbers_of_one_connection_grow_with_the_clock_and_differ_between_connections() {
        let hasher = crate::flow::Seeded::new([1, 2]);
        let (a, b) = (key(false), key(true));
        let first = initial_sequence(&hasher, &a, Instant::ZERO);
        let later = initial_sequence(&hasher, &a, Instant::from_secs(1));
        assert_eq!(later.wrapping_sub(first), 250_000);
        assert_ne!(first, initial_sequence(&hasher, &b, Instant::ZERO));
        let other_seed = crate::flow::Seeded::new([1, 3]);
        assert_ne!(first, initial_sequence(&other_seed, &a, Instant::ZERO));
    }
}
