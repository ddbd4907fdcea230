//! One JSON line per case, and a table for people.

use serde::Serialize;

/// One case: ours beside one peer.
#[derive(Debug, Clone, Serialize)]
pub struct Case {
    /// What was measured.
    pub case: String,
    /// Unit of `ours` and `peer`; more is better.
    pub unit: String,
    /// Median of our runs.
    pub ours: f64,
    /// Median of the peer's runs.
    pub peer: f64,
    /// Who the peer is.
    pub peer_name: String,
    /// Median of the ratios ours to peer, pair by pair.
    pub ratio: f64,
    /// Smallest and largest of the ratios.
    pub ratio_range: (f64, f64),
    /// Pairs that were run.
    pub runs: usize,
}

impl Case {
    /// The case that these pairs of (ours, peer) make.
    ///
    /// # Panics
    /// Without a pair.
    pub fn from_pairs(case: &str, unit: &str, peer_name: &str, pairs: &[(f64, f64)]) -> Self {
        let ratios: Vec<f64> = pairs.iter().map(|(ours, peer)| ours / peer).collect();
        let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        let high = ratios.iter().copied().fold(0.0, f64::max);
        Self {
            case: case.to_owned(),
            unit: unit.to_owned(),
            ours: median(pairs.iter().map(|pair| pair.0).collect()),
            peer: median(pairs.iter().map(|pair| pair.1).collect()),
            peer_name: peer_name.to_owned(),
            ratio: median(ratios),
            ratio_range: (low, high),
            runs: pairs.len(),
        }
    }

    /// The case as a row of the table.
    pub fn row(&self) -> String {
        let (low, high) = self.ratio_range;
        format!(
            "{:<34} {:>10.3} {:>10.3} {:<9} {:<26} {:>6.2}  ({low:.2} to {high:.2}, {} pairs)",
            self.case, self.ours, self.peer, self.unit, self.peer_name, self.ratio, self.runs
        )
    }
}

/// The table's heading.
pub fn heading() -> String {
    format!(
        "{:<34} {:>10} {:>10} {:<9} {:<26} {:>6}",
        "case", "ours", "peer", "unit", "peer is", "ratio"
    )
}

/// The middle value, or the mean of the two.
///
/// # Panics
/// Without a value.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_pairs_and_not_of_the_medians() {
        let case = Case::from_pairs("x", "GB/s", "y", &[(2.0, 1.0), (3.0, 3.0), (9.0, 1.0)]);
        assert_eq!((case.ratio, case.ours, case.peer), (2.0, 3.0, 1.0));
        assert_eq!(case.ratio_range, (1.0, 9.0));
    }
}
