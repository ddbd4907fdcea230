//! What a segment and a poll cost the guest's stack with many connections around,
//! beside one connection; and what an idle connection holds.
//!
//! The stack is measured alone, by `guest-stack`'s example `cost`, which stands
//! beside this program.

use std::process::Command;

use crate::Result;
use crate::measure::{Comparison, Side};
use crate::report::Metric;

/// Segments or polls of one run, some 0.2 s.
const COUNT: &str = "200000";
/// A socket's buffers: what smoltcp's own socket holds from the start.
const BUFFERS_BYTES: f64 = 2.0 * 65_535.0;

pub(super) fn comparisons() -> Vec<Comparison> {
    let mut all = Vec::new();
    for (kind, words) in [
        ("one-of", "a segment, one speaks"),
        ("each-of", "a segment, each speaks"),
        ("poll-of", "a poll"),
    ] {
        for others in [100, 1000, 10_000] {
            all.push(flat(kind, words, others));
        }
    }
    all.push(memory());
    all
}

fn flat(kind: &'static str, words: &str, others: usize) -> Comparison {
    let name = format!("flat cost: {words}, of {others}");
    let metric = Metric::less(&name, "ns").goal(1.3);
    Comparison::alone(name, "one connection", vec![metric], move |side, _| {
        let others = match side {
            Side::Ours => others,
            Side::Peer => 1,
        };
        Ok(vec![cost(&[&format!("{kind}-{others}"), COUNT])?])
    })
}

fn memory() -> Comparison {
    let name = "memory of an idle connection";
    let metric = Metric::less(name, "bytes");
    let peer = "smoltcp's buffers of 64 KB";
    Comparison::alone(name, peer, vec![metric], |side, _| {
        Ok(vec![match side {
            Side::Ours => cost(&["memory"])?,
            Side::Peer => BUFFERS_BYTES,
        }])
    })
}

/// The first figure that the example prints.
fn cost(words: &[&str]) -> Result<f64> {
    let program = std::env::current_exe()?.with_file_name("examples/cost");
    let output = Command::new(&program)
        .args(words)
        .output()
        .map_err(|error| {
            format!(
                "{}: {error}: build it with `cargo build --release -p guest-stack --example cost`",
                program.display()
            )
        })?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).ok_or_else(|| format!("the example says {text:?}").into())
}

fn parse(text: &str) -> Option<f64> {
    let (_, figure) = text.split_once(": ")?;
    figure.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_stands_behind_the_name() {
        assert_eq!(parse("one-of-100: 412 ns each, 20000 times\n"), Some(412.0));
        assert_eq!(parse(""), None);
    }
}
