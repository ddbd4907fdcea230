//! The comparisons, a file per question.

mod bulk;
mod connections;
mod flat;
mod hostile;
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
    all.extend(hostile::comparisons());
    all
}

/// Whether it takes so long that the quick mode leaves it to the full one: a burst of ten
/// thousand takes a quarter of a minute, and pasta stalls until patience ends.
pub fn takes_long(comparison: &Comparison) -> bool {
    let from_pasta =
        comparison.name.contains("from guest") && comparison.peer_name.contains("pasta");
    comparison.name.contains("connects at once") || from_pasta
}
