//! Runs comparisons: ours and the peer in turn, and what came of it into the
//! table and the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use crate::Result;
use crate::report::{Case, Metric, Path, Skipped};
use crate::target::{Setup, Target, Traffic};

/// How much is run.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Pairs of a comparison.
    pub pairs: usize,
    /// How long one run of one side takes, about.
    pub time: Duration,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Ours.
    Ours,
    /// The peer's.
    Peer,
}

/// What one run gave.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// One value per metric.
    pub values: Vec<f64>,
    /// What passed the target's interface meanwhile.
    pub traffic: Option<Traffic>,
}

/// One run of one side.
type RunOnce = Box<dyn FnMut(&mut Lab, Side) -> Result<Run>>;

/// Ours beside one peer.
pub struct Comparison {
    /// What `--list` and the filters see.
    pub name: String,
    /// Who the peer is.
    pub peer_name: String,
    /// What each run gives.
    pub metrics: Vec<Metric>,
    /// One run of one side.
    pub run: RunOnce,
    /// What the comparison needs running, so that the rest can be ended.
    pub setups: Vec<Setup>,
    /// Judges by which way the bytes went.
    pub check: fn(&Path) -> std::result::Result<(), String>,
}

impl Comparison {
    /// Two targets, measured by the same client.
    pub fn of_targets(
        name: impl Into<String>,
        ours: Setup,
        peer: Setup,
        metrics: Vec<Metric>,
        measure: impl Fn(&mut Target, Side, Duration) -> Result<Vec<f64>> + 'static,
    ) -> Self {
        let run = move |lab: &mut Lab, side: Side| {
            let time = lab.plan.time;
            let target = lab.target(match side {
                Side::Ours => ours,
                Side::Peer => peer,
            })?;
            let before = target.traffic()?;
            let values = measure(target, side, time)?;
            let traffic = Some(target.traffic()?.since(before));
            Ok(Run { values, traffic })
        };
        Self {
            name: name.into(),
            peer_name: peer.name(),
            metrics,
            run: Box::new(run),
            setups: vec![ours, peer],
            check: |_| Ok(()),
        }
    }

    /// Something that needs no target.
    pub fn alone(
        name: impl Into<String>,
        peer_name: impl Into<String>,
        metrics: Vec<Metric>,
        run: impl Fn(Side, Duration) -> Result<Vec<f64>> + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            peer_name: peer_name.into(),
            metrics,
            run: Box::new(move |lab, side| {
                Ok(Run {
                    values: run(side, lab.plan.time)?,
                    traffic: None,
                })
            }),
            setups: Vec::new(),
            check: |_| Ok(()),
        }
    }

    /// With a judgement of the way that our packets went.
    #[must_use]
    pub fn checked(self, check: fn(&Path) -> std::result::Result<(), String>) -> Self {
        Self { check, ..self }
    }
}

/// The targets that run now.
pub struct Lab {
    /// How much is run.
    pub plan: Plan,
    targets: HashMap<Setup, Target>,
}

impl Lab {
    /// Ends the target, if it runs.
    pub fn end(&mut self, setup: Setup) {
        self.targets.remove(&setup);
    }

    /// The target, started if it does not run.
    ///
    /// # Errors
    /// Why it does not start.
    pub fn target(&mut self, setup: Setup) -> Result<&mut Target> {
        use std::collections::hash_map::Entry;
        match self.targets.entry(setup) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => Ok(entry.insert(setup.start()?)),
        }
    }
}

/// Runs comparisons and reports.
pub struct Runner {
    lab: Lab,
    json: Option<File>,
    cases: Vec<Case>,
    failed: usize,
}

impl Runner {
    /// A runner that writes a line per case to `json`.
    pub fn new(plan: Plan, json: Option<File>) -> Self {
        Self {
            lab: Lab {
                plan,
                targets: HashMap::new(),
            },
            json,
            cases: Vec::new(),
            failed: 0,
        }
    }

    /// All comparisons, one after the other; one that fails stops none.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn run(&mut self, comparisons: Vec<Comparison>) -> Result<()> {
        let count = comparisons.len();
        for (number, mut comparison) in comparisons.into_iter().enumerate() {
            let progress = Progress {
                name: comparison.name.clone(),
                number: number + 1,
                count,
            };
            self.lab
                .targets
                .retain(|setup, _| comparison.setups.contains(setup));
            match self.compare(&mut comparison, &progress) {
                Ok(cases) => {
                    progress.clear();
                    for case in cases {
                        println!("{}", case.row());
                        self.write(&case)?;
                        self.cases.push(case);
                    }
                }
                Err(error) => {
                    progress.clear();
                    // Whatever it was, the next one starts afresh.
                    self.lab.targets.clear();
                    let why = error.to_string();
                    // A peer that is not there, or does not work, is no failure.
                    self.failed += usize::from(!why.starts_with(PEER));
                    println!(
                        "{:<44} beside {}: no figure: {why}",
                        comparison.name, comparison.peer_name
                    );
                    self.write(&Skipped {
                        case: &comparison.name,
                        peer_name: &comparison.peer_name,
                        skipped: &why,
                    })?;
                }
            }
        }
        self.lab.targets.clear();
        Ok(())
    }

    fn compare(&mut self, comparison: &mut Comparison, progress: &Progress) -> Result<Vec<Case>> {
        let mut turn = |side| (comparison.run)(&mut self.lab, side);
        // One of each first, uncounted: page faults, frequencies, neighbours.
        progress.show("warming up");
        turn(Side::Ours).map_err(|error| format!("ours: {error}"))?;
        turn(Side::Peer).map_err(|error| format!("{PEER}{error}"))?;
        let pairs = self.lab.plan.pairs;
        let mut runs = Vec::new();
        for pair in 0..pairs {
            progress.show(&format!("pair {} of {pairs}", pair + 1));
            let mut turn = |side| (comparison.run)(&mut self.lab, side);
            let ours = turn(Side::Ours).map_err(|error| format!("ours: {error}"))?;
            let peer = turn(Side::Peer).map_err(|error| format!("{PEER}{error}"))?;
            runs.push((ours, peer));
        }
        let path = |pick: fn(&(Run, Run)) -> &Run| {
            let all = runs.iter().map(|run| pick(run).traffic);
            let sum = all.sum::<Option<Traffic>>()?;
            Some(sum.path())
        };
        let (ours_path, peer_path) = (path(|pair| &pair.0), path(|pair| &pair.1));
        if let Some(path) = &ours_path {
            (comparison.check)(path)?;
        }
        let metrics = comparison.metrics.iter().enumerate();
        let case = |(index, metric): (usize, &Metric)| {
            let pairs: Vec<_> = runs
                .iter()
                .map(|(ours, peer)| (ours.values[index], peer.values[index]))
                .collect();
            Case {
                ours_packet_bytes: ours_path,
                peer_packet_bytes: peer_path,
                ..Case::from_pairs(metric, &comparison.peer_name, &pairs)
            }
        };
        Ok(metrics.map(case).collect())
    }

    fn write(&mut self, line: &impl serde::Serialize) -> Result<()> {
        if let Some(json) = &mut self.json {
            writeln!(json, "{}", serde_json::to_string(line)?)?;
        }
        Ok(())
    }

    /// The cases so far.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// How many comparisons failed.
    pub fn failed(&self) -> usize {
        self.failed
    }
}

/// How an error of the peer begins.
const PEER: &str = "peer: ";
/// Words for a program that is missing.
pub const NOT_INSTALLED: &str = "peer not installed";

/// What runs now, on the terminal.
struct Progress {
    name: String,
    number: usize,
    count: usize,
}

impl Progress {
    fn show(&self, what: &str) {
        if std::io::stderr().is_terminal() {
            eprint!(
                "\r\x1b[K[{}/{}] {}: {what}",
                self.number, self.count, self.name
            );
        }
    }

    fn clear(&self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}
