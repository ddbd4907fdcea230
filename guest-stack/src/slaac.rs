//! Stateless address configuration (RFC 4862): a machine that is shown router
//! advertisements and says what follows. It sends and stores nothing elsewhere.
//!
//! smoltcp has one of its own, but an `Interface` with it switched on forgets the
//! timers of its sockets, asks to be polled without end where no router answers,
//! and panics on a prefix longer than an address.
//!
//! | state | solicitation timer | advertisement |
//! | --- | --- | --- |
//! | soliciting (up to 3, 4 s apart) | send one; after the third, wait silently | take prefix and router; stop soliciting |
//! | listening | | take prefix and router |
//!
//! Left out: duplicate address detection, temporary addresses, more than one
//! prefix in one advertisement (the last one counts), recursive DNS servers.

use core::net::Ipv6Addr;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{Ipv6Cidr, NdiscPrefixInfoFlags, NdiscPrefixInformation};

use crate::config::with_interface_id;
use crate::timers::earlier;

/// RFC 4861, section 10.
const MAX_SOLICITATIONS: u8 = 3;
const SOLICITATION_INTERVAL: Duration = Duration::from_secs(4);
/// An advertisement does not shorten the life of an address below this.
const TWO_HOURS: Duration = Duration::from_secs(2 * 3600);
/// Prefixes that are kept; further ones are ignored.
const MAX_PREFIXES: usize = 2;

/// The machine.
#[derive(Debug)]
pub(crate) struct Slaac {
    mac: [u8; 6],
    solicit_at: Option<Instant>,
    solicitations: u8,
    prefixes: heapless::Vec<(Ipv6Cidr, Instant), MAX_PREFIXES>,
    router: Option<(Ipv6Addr, Instant)>,
}

impl Slaac {
    pub(crate) fn new(mac: [u8; 6], now: Instant) -> Self {
        Self {
            mac,
            solicit_at: Some(now),
            solicitations: MAX_SOLICITATIONS,
            prefixes: heapless::Vec::new(),
            router: None,
        }
    }

    /// The cable was plugged in again: asks for routers anew and keeps what it
    /// has as long as that is valid.
    pub(crate) fn solicit_again(&mut self, now: Instant) {
        self.solicit_at = Some(now);
        self.solicitations = MAX_SOLICITATIONS;
    }

    /// Whether a router solicitation is due; it counts as sent.
    pub(crate) fn poll_solicit(&mut self, now: Instant) -> bool {
        if self.solicit_at.is_none_or(|at| at > now) {
            return false;
        }
        self.solicitations -= 1;
        self.solicit_at = (self.solicitations > 0).then_some(now + SOLICITATION_INTERVAL);
        true
    }

    /// A valid advertisement came from `router`. Says whether addresses or the
    /// router changed.
    pub(crate) fn handle_advertisement(
        &mut self,
        router: Ipv6Addr,
        lifetime: Duration,
        prefix: Option<NdiscPrefixInformation>,
        now: Instant,
    ) -> bool {
        self.solicit_at = None;
        let mut changed = false;
        if lifetime > Duration::ZERO {
            changed |= self.router().is_none_or(|known| known != router);
            self.router = Some((router, now + lifetime));
        } else if self.router() == Some(router) {
            self.router = None;
            changed = true;
        }
        if let Some(prefix) = prefix {
            changed |= self.handle_prefix(&prefix, now);
        }
        changed
    }

    fn handle_prefix(&mut self, prefix: &NdiscPrefixInformation, now: Instant) -> bool {
        // RFC 4862, 5.5.3; the interface identifier is 64 bits (RFC 4291).
        let usable = prefix.flags.contains(NdiscPrefixInfoFlags::ADDRCONF)
            && prefix.prefix_len == 64
            && !prefix.prefix.is_unicast_link_local()
            && !prefix.prefix.is_multicast()
            && !prefix.prefix.is_unspecified()
            && prefix.preferred_lifetime <= prefix.valid_lifetime;
        if !usable {
            return false;
        }
        let octets = prefix.prefix.octets();
        let [a, b, c, d, e, f, g, h, ..] = octets;
        let address = with_interface_id([a, b, c, d, e, f, g, h], self.mac);
        let address = Ipv6Cidr::new(address, 64);
        let valid_until = now + prefix.valid_lifetime;
        if let Some((_, known)) = self
            .prefixes
            .iter_mut()
            .find(|(known, _)| *known == address)
        {
            // RFC 4862, 5.5.3 e: nobody proves who sent an advertisement, so one
            // alone does not end an address.
            if prefix.valid_lifetime > TWO_HOURS || valid_until > *known {
                *known = valid_until;
            } else {
                *known = (*known).min(now + TWO_HOURS);
            }
            return false;
        }
        prefix.valid_lifetime > Duration::ZERO && self.prefixes.push((address, valid_until)).is_ok()
    }

    /// Drops what is not valid any more; says whether anything went.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let before = self.prefixes.len();
        self.prefixes.retain(|(_, until)| *until > now);
        let gone = self.router.is_some_and(|(_, until)| until <= now);
        if gone {
            self.router = None;
        }
        gone || self.prefixes.len() != before
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let ends = self.prefixes.iter().map(|(_, until)| *until);
        let ends = ends.chain(self.router.map(|(_, until)| until));
        earlier(ends.min(), self.solicit_at)
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = Ipv6Cidr> + '_ {
        self.prefixes.iter().map(|(address, _)| *address)
    }

    pub(crate) fn router(&self) -> Option<Ipv6Addr> {
        self.router.map(|(router, _)| router)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);

    fn prefix(len: u8, valid: u64) -> NdiscPrefixInformation {
        NdiscPrefixInformation {
            prefix_len: len,
            flags: NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: Duration::from_secs(valid),
            preferred_lifetime: Duration::from_secs(valid.min(60)),
            prefix: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0),
        }
    }

    #[test]
    fn three_solicitations_are_sent_and_then_it_is_silent() {
        let mut slaac = Slaac::new(MAC, Instant::ZERO);
        let mut sent = 0;
        let mut now = Instant::ZERO;
        while let Some(at) = slaac.deadline() {
            now = at;
            sent += u32::from(slaac.poll_solicit(now));
        }
        assert_eq!((sent, now.secs()), (3, 8));
    }

    #[test]
    fn an_address_follows_from_a_prefix_and_goes_with_it() {
        let mut slaac = Slaac::new(MAC, Instant::ZERO);
        let lifetime = Duration::from_secs(1800);
        let now = Instant::from_secs(1);
        assert!(slaac.handle_advertisement(ROUTER, lifetime, Some(prefix(64, 600)), now));
        let address = slaac.addresses().next().unwrap();
        assert_eq!(address.to_string(), "2001:db8::ff:fe00:1/64");
        assert_eq!(slaac.router(), Some(ROUTER));
        assert_eq!(slaac.deadline(), Some(Instant::from_secs(601)));
        assert!(slaac.expire(Instant::from_secs(601)));
        assert_eq!(slaac.addresses().next(), None);
        assert_eq!(slaac.router(), Some(ROUTER));
        assert!(slaac.handle_advertisement(ROUTER, Duration::ZERO, None, now));
        assert_eq!(slaac.router(), None);
    }

    #[test]
    fn one_forged_advertisement_does_not_take_an_address_away() {
        let mut slaac = Slaac::new(MAC, Instant::ZERO);
        let lifetime = Duration::from_secs(1800);
        let day = 24 * 3600;
        slaac.handle_advertisement(ROUTER, lifetime, Some(prefix(64, day)), Instant::ZERO);
        // RFC 4862, 5.5.3 e: not below two hours at once …
        assert!(!slaac.handle_advertisement(ROUTER, lifetime, Some(prefix(64, 0)), Instant::ZERO));
        let hour = |hours: i64| Instant::from_secs(hours * 3600);
        assert!(slaac.addresses().next().is_some());
        // … and what has less than two hours left keeps what it has.
        slaac.handle_advertisement(ROUTER, lifetime, Some(prefix(64, 1)), hour(1));
        slaac.expire(hour(2) - Duration::from_secs(1));
        assert!(slaac.addresses().next().is_some());
        slaac.expire(hour(2));
        assert!(slaac.addresses().next().is_none());
    }

    #[test]
    fn a_prefix_of_another_length_is_no_prefix() {
        for len in [0, 48, 63, 65, 128, 129, 255] {
            let mut slaac = Slaac::new(MAC, Instant::ZERO);
            slaac.handle_advertisement(
                ROUTER,
                Duration::ZERO,
                Some(prefix(len, 600)),
                Instant::ZERO,
            );
            assert_eq!(slaac.addresses().next(), None, "{len}");
        }
    }

    use alloc::string::ToString;
}
