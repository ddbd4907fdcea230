//! The comparisons, a file per question.

mod bulk;
mod connections;
mod flat;
mod idle;
mod latency;
mod link;
mod many;

use crate::measure::Comparison;

/// All of them, in the order of the report.
pub fn all() -> Vec<Comparison> {
    let mut all = link::comparisons();
    all.extend(bulk::comparisons());
    all.extend(latency::comparisons());
    all.extend(idle::comparisons());
    all.extend(flat::comparisons());
    all.extend(connections::comparisons());
    all.extend(many::comparisons());
    all
}
