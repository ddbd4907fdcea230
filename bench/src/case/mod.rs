//! The comparisons, a file per question.

mod bulk;
mod latency;
mod link;

use crate::measure::Comparison;

/// All of them, in the order of the report.
pub fn all() -> Vec<Comparison> {
    let mut all = link::comparisons();
    all.extend(bulk::comparisons());
    all.extend(latency::comparisons());
    all
}
