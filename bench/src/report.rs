//! One JSON line per case, and a table for people.

use serde::{Deserialize, Serialize};

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// As with throughput.
    More,
    /// As with time.
    Less,
}

/// One figure that a comparison gives.
#[derive(Debug, Clone)]
pub struct Metric {
    /// What was measured.
    pub case: String,
    /// Unit of ours and the peer's.
    pub unit: &'static str,
    /// Which way is better.
    pub better: Better,
    /// The ratio that is wanted: at least so much where more is better, at most
    /// where less is.
    pub goal: Option<f64>,
}

impl Metric {
    /// More is better.
    pub fn more(case: impl Into<String>, unit: &'static str) -> Self {
        Self {
            case: case.into(),
            unit,
            better: Better::More,
            goal: None,
        }
    }

    /// Less is better.
    pub fn less(case: impl Into<String>, unit: &'static str) -> Self {
        Self {
            better: Better::Less,
            ..Self::more(case, unit)
        }
    }

    /// With a wanted ratio.
    #[must_use]
    pub fn goal(self, ratio: impl Into<Option<f64>>) -> Self {
        Self {
            goal: ratio.into(),
            ..self
        }
    }
}

/// Mean size of the packets that passed the interface during the runs, in bytes:
/// super-frames or not.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Path {
    /// Towards the target.
    pub to_target: f64,
    /// From it.
    pub from_target: f64,
}

/// One case: ours beside one peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Case {
    /// What was measured.
    pub case: String,
    /// Unit of `ours` and `peer`.
    pub unit: String,
    /// Which way is better.
    pub better: Better,
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
    /// Smallest and largest of our runs.
    pub ours_range: (f64, f64),
    /// Smallest and largest of the peer's runs.
    pub peer_range: (f64, f64),
    /// Pairs that were run.
    pub runs: usize,
    /// The ratio that is wanted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<f64>,
    /// Mean size of our packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ours_packet_bytes: Option<Path>,
    /// Mean size of the peer's packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_packet_bytes: Option<Path>,
}

/// A comparison that gave no figure.
#[derive(Debug, Clone, Serialize)]
pub struct Skipped<'a> {
    /// What was to be measured.
    pub case: &'a str,
    /// Who the peer is.
    pub peer_name: &'a str,
    /// Why it was not.
    pub skipped: &'a str,
}

impl Case {
    /// The case that these pairs of (ours, peer) make.
    ///
    /// # Panics
    /// Without a pair.
    pub fn from_pairs(metric: &Metric, peer_name: &str, pairs: &[(f64, f64)]) -> Self {
        let ratios: Vec<f64> = pairs
            .iter()
            .map(|&(ours, peer)| ratio(ours, peer))
            .collect();
        let ours: Vec<f64> = pairs.iter().map(|pair| pair.0).collect();
        let peer: Vec<f64> = pairs.iter().map(|pair| pair.1).collect();
        Self {
            case: metric.case.clone(),
            unit: metric.unit.to_owned(),
            better: metric.better,
            ratio_range: range(&ratios),
            ours_range: range(&ours),
            peer_range: range(&peer),
            ours: median(ours),
            peer: median(peer),
            peer_name: peer_name.to_owned(),
            ratio: median(ratios),
            runs: pairs.len(),
            goal: metric.goal,
            ours_packet_bytes: None,
            peer_packet_bytes: None,
        }
    }

    /// Whether the wanted ratio was reached, if one is wanted.
    pub fn reached(&self) -> Option<bool> {
        let goal = self.goal?;
        Some(match self.better {
            Better::More => self.ratio >= goal,
            Better::Less => self.ratio <= goal,
        })
    }

    /// The case as a row of the table.
    pub fn row(&self) -> String {
        let (low, high) = self.ratio_range;
        let goal = match (self.goal, self.better, self.reached()) {
            (Some(goal), Better::More, Some(true)) => format!(">= {goal} ok"),
            (Some(goal), Better::Less, Some(true)) => format!("<= {goal} ok"),
            (Some(goal), Better::More, _) => format!(">= {goal} MISSED"),
            (Some(goal), Better::Less, _) => format!("<= {goal} MISSED"),
            (None, Better::More, _) => String::new(),
            (None, Better::Less, _) => "(less is better)".to_owned(),
        };
        format!(
            "{:<44} {:>9} {:>9} {:<10} {:<42} {:>5.2} ({low:.2}-{high:.2}, {}) {goal}",
            self.case,
            figure(self.ours),
            figure(self.peer),
            self.unit,
            self.peer_name,
            self.ratio,
            self.runs
        )
    }
}

/// A table in Markdown: ratios only, which is all that other machines can compare.
pub fn markdown(cases: &[Case]) -> String {
    let mut table = "| case | beside | ratio (least to greatest, pairs) | wanted |\n\
                     | --- | --- | --- | --- |\n"
        .to_owned();
    for case in cases {
        let less = match case.better {
            Better::More => "",
            Better::Less => " (less is better)",
        };
        let verdict = match case.reached() {
            Some(true) => "",
            Some(false) | None => ", **missed**",
        };
        let wanted = match (case.goal, case.better) {
            (Some(goal), Better::More) => format!("at least {goal}{verdict}"),
            (Some(goal), Better::Less) => format!("at most {goal}{verdict}"),
            (None, _) => String::new(),
        };
        let (low, high) = case.ratio_range;
        table += &format!(
            "| {}{less} | {} | {:.2} ({low:.2} to {high:.2}, {}) | {wanted} |\n",
            case.case, case.peer_name, case.ratio, case.runs
        );
    }
    table
}

/// The table's heading.
pub fn heading() -> String {
    format!(
        "{:<44} {:>9} {:>9} {:<10} {:<42} {:>5} (range, pairs) goal",
        "case", "ours", "peer", "unit", "peer is", "ratio"
    )
}

/// Ours to the peer's; one where both are nothing.
fn ratio(ours: f64, peer: f64) -> f64 {
    if ours == 0.0 && peer == 0.0 {
        1.0
    } else {
        ours / peer
    }
}

fn range(values: &[f64]) -> (f64, f64) {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(0.0, f64::max);
    (low, high)
}

/// Three or four digits of it.
fn figure(value: f64) -> String {
    match value {
        v if v >= 1000.0 => format!("{v:.0}"),
        v if v >= 100.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
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
        let metric = Metric::more("x", "GB/s");
        let case = Case::from_pairs(&metric, "y", &[(2.0, 1.0), (3.0, 3.0), (9.0, 1.0)]);
        assert_eq!((case.ratio, case.ours, case.peer), (2.0, 3.0, 1.0));
        assert_eq!(case.ratio_range, (1.0, 9.0));
        assert_eq!(case.ours_range, (2.0, 9.0));
    }

    #[test]
    fn a_goal_is_a_floor_where_more_is_better_and_a_ceiling_where_less_is() {
        let reached = |metric: Metric, ours| {
            Case::from_pairs(&metric.goal(0.8), "y", &[(ours, 10.0)]).reached()
        };
        assert_eq!(reached(Metric::more("x", "GB/s"), 9.0), Some(true));
        assert_eq!(reached(Metric::more("x", "GB/s"), 7.0), Some(false));
        assert_eq!(reached(Metric::less("x", "µs"), 9.0), Some(false));
        assert_eq!(reached(Metric::less("x", "µs"), 7.0), Some(true));
        let missed = Case::from_pairs(&Metric::more("x", "GB/s").goal(0.8), "y", &[(1.0, 2.0)]);
        let row = "| x | y | 0.50 (0.50 to 0.50, 1) | at least 0.8, **missed** |";
        assert_eq!(markdown(&[missed]).lines().last(), Some(row));
        let without = Case::from_pairs(&Metric::less("x", "µs"), "y", &[(1.0, 1.0)]);
        assert_eq!(without.reached(), None);
    }
}
