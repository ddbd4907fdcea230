//! `bench`: runs the comparisons and prints a table, and a JSON line per case.
//! `scripts/bench.sh` builds what it needs and calls it.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bench::client::inside;
use bench::measure::{Plan, Runner};
use bench::peer::Peer;
use bench::report::{Case, heading, markdown};
use bench::{Result, case, plot, soak};
use clap::{Parser, Subcommand};
use host_bridge::namespace::enter_private_network;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Measures this project beside its peers, pair by pair, in a private network.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
    /// About two minutes: few and short pairs, without what takes long (the default).
    #[arg(long)]
    quick: bool,
    /// More and longer pairs.
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Pairs per case, instead of what the mode says.
    #[arg(long)]
    pairs: Option<usize>,
    /// Milliseconds per run, instead of what the mode says.
    #[arg(long)]
    time_ms: Option<u64>,
    /// Where to write a JSON line per case.
    #[arg(long, overrides_with = "json")]
    json: Option<PathBuf>,
    /// A directory for figures, as SVG and PNG.
    #[arg(long, overrides_with = "plots")]
    plots: Option<PathBuf>,
    /// Run nothing: print such a file of JSON lines as a table in Markdown, and draw
    /// its figures.
    #[arg(long, conflicts_with = "json")]
    from: Option<PathBuf>,
    /// Name the comparisons and run none.
    #[arg(long)]
    list: bool,
    /// Only comparisons in whose name or peer's name one of these occurs; words
    /// joined by + must all occur.
    filters: Vec<String>,
}

#[derive(Subcommand)]
enum Command {
    /// A peer's program; the benchmark starts these itself.
    #[command(subcommand, hide = true)]
    Peer(Peer),
    /// A long run under mixed load, with restarts and changes: see scripts/soak.sh.
    Soak(soak::Options),
    /// A client in another namespace; the benchmark starts it itself.
    #[command(hide = true)]
    Client(inside::Options),
}

fn main() -> ExitCode {
    let options = Options::parse();
    let ended = match &options.command {
        Some(Command::Peer(peer)) => peer.run().map(|()| true),
        Some(Command::Client(client)) => client.run().map(|()| true),
        Some(Command::Soak(soak)) => soak.run(),
        None => run(&options),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether every comparison gave a figure.
fn run(options: &Options) -> Result<bool> {
    if let Some(file) = &options.from {
        let text = std::fs::read_to_string(file)?;
        // Lines without a figure say why there is none.
        let cases: Vec<Case> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        print!("{}", markdown(&cases));
        plot(options, &cases)?;
        return Ok(true);
    }
    let mut comparisons = case::all();
    comparisons.retain(|comparison| {
        let text = format!("{} | {}", comparison.name, comparison.peer_name);
        chosen(&text, &options.filters)
    });
    if options.list {
        for comparison in comparisons {
            println!("{} | {}", comparison.name, comparison.peer_name);
        }
        return Ok(true);
    }
    if !options.full && options.filters.is_empty() {
        comparisons.retain(|comparison| !case::takes_long(comparison));
    }
    if comparisons.is_empty() {
        return Err("no comparison has such a name; --list names them".into());
    }
    let (pairs, time_ms) = if options.full { (7, 1000) } else { (2, 150) };
    let plan = Plan {
        pairs: options.pairs.unwrap_or(pairs).max(1),
        time: Duration::from_millis(options.time_ms.unwrap_or(time_ms)),
    };
    let json = options.json.as_ref().map(File::create).transpose()?;
    enter_private_network()?;
    prepare()?;
    println!("{}", heading());
    let mut runner = Runner::new(plan, json);
    runner.run(comparisons)?;
    plot(options, runner.cases())?;
    Ok(runner.failed() == 0)
}

fn plot(options: &Options, cases: &[Case]) -> Result<()> {
    if let Some(directory) = &options.plots {
        for file in plot::draw(cases, directory)? {
            println!("drawn: {}", file.display());
        }
    }
    Ok(())
}

/// Room for ten thousand connections, in this process, its children and this
/// namespace.
fn prepare() -> Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")?;
    Ok(())
}

/// Whether a comparison's name is asked for.
fn chosen(text: &str, filters: &[String]) -> bool {
    let all_in = |filter: &String| filter.split('+').all(|word| text.contains(word));
    filters.is_empty() || filters.iter().any(all_in)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_with_a_plus_wants_every_word() {
        let filters = ["bulk+veth".to_owned(), "ring".to_owned()];
        assert!(chosen("bulk v4 | kernel over veth", &filters));
        assert!(chosen("ring", &filters));
        assert!(!chosen("bulk v4 | relay", &filters));
        assert!(chosen("anything", &[]));
    }
}
