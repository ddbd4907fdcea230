//! `host-bridge status`: what the ports of a running daemon are doing.

use std::io::{IsTerminal, Write, stdout};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::output::{self, Before};
use super::{AdminArgs, Failure};
use crate::admin::protocol::VERSION;
use crate::port::PortStatus;

/// Moves the cursor to the top and clears the screen.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Flags of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Show this port only.
    port: Option<String>,

    #[command(flatten)]
    admin: AdminArgs,

    /// Print JSON: {"v":1,"ports":[...]}, with --watch one object per line.
    #[arg(long)]
    json: bool,

    /// Show it again every so many seconds, with rates, until interrupted.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u16).range(1..=3600))]
    watch: Option<u16>,
}

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    v: u32,
    ports: &'a [PortStatus],
}

pub(super) fn main(args: &StatusArgs) -> Result<(), Failure> {
    let client = args.admin.client()?;
    let ask = || client.status(args.port.as_deref());
    let Some(seconds) = args.watch else {
        let ports = ask()?;
        let text = if args.json {
            serde_json::to_string_pretty(&document(&ports))? + "\n"
        } else {
            output::table(&ports, None)
        };
        return output::quietly(|out| out.write_all(text.as_bytes()));
    };
    let clear = if stdout().is_terminal() && !args.json {
        CLEAR
    } else {
        ""
    };
    let mut before: Option<Before> = None;
    loop {
        let (ports, now) = (ask()?, Instant::now());
        let text = if args.json {
            serde_json::to_string(&document(&ports))?
        } else {
            output::table(&ports, before.as_ref().map(|before| (before, now)))
        };
        output::quietly(|out| writeln!(out, "{clear}{text}"))?;
        before = Some(Before { ports, at: now });
        sleep(Duration::from_secs(seconds.into()));
    }
}

fn document(ports: &[PortStatus]) -> Document<'_> {
    Document { v: VERSION, ports }
}
