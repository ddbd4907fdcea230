//! `bench`: runs the comparisons and prints a table, and a JSON line per case.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bench::report::{Case, heading};
use bench::ring::Ring;
use clap::Parser;

/// Measures this project beside its peers, pair by pair.
#[derive(Parser)]
struct Options {
    /// Pairs per case.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Milliseconds per run.
    #[arg(long, default_value_t = 400)]
    time_ms: u64,
    /// Where to write a JSON line per case.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> std::io::Result<()> {
    let options = Options::parse();
    let mut json = options.json.as_ref().map(File::create).transpose()?;
    println!("{}", heading());
    let time = Duration::from_millis(options.time_ms);
    for len in [64, 1514, 65_000] {
        for peer in [Ring::Rtrb, Ring::Ringbuf, Ring::Bbqueue] {
            let rate = |ring: Ring| ring.rate(len, time) / 1e6;
            // One of each first, uncounted: page faults, frequencies.
            rate(Ring::ShmLink);
            let pairs: Vec<_> = (0..options.pairs)
                .map(|_| (rate(Ring::ShmLink), rate(peer)))
                .collect();
            let case = Case::from_pairs(
                &format!("ring, {len} byte frames"),
                "Mframe/s",
                peer.name(),
                &pairs,
            );
            println!("{}", case.row());
            if let Some(json) = &mut json {
                writeln!(json, "{}", serde_json::to_string(&case)?)?;
            }
        }
    }
    Ok(())
}
