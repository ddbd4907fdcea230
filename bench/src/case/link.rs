//! The link's rings beside ring crates.

use crate::measure::{Comparison, Side};
use crate::report::Metric;
use crate::ring::Ring;

pub(super) fn comparisons() -> Vec<Comparison> {
    let lens = [64, 1514, 65_000];
    let peers = [Ring::Rtrb, Ring::Ringbuf, Ring::Bbqueue];
    let pairs = lens
        .into_iter()
        .flat_map(|len| peers.map(|peer| (len, peer)));
    pairs
        .map(|(len, peer)| {
            let name = format!("link, {len} byte frames");
            let metric = Metric::more(&name, "Mframe/s").goal(1.0);
            Comparison::alone(name, peer.name(), vec![metric], move |side, time| {
                let ring = match side {
                    Side::Ours => Ring::ShmLink,
                    Side::Peer => peer,
                };
                Ok(vec![ring.rate(len, time) / 1e6])
            })
        })
        .collect()
}
