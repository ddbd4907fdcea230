//! The command line of `host-bridge`.
//!
//! | file | subcommand |
//! | --- | --- |
//! | `run.rs` | `run`: the daemon |
//! | `status.rs` | `status`: what its ports are doing |
//! | `set.rs` | `set`: change a port |
//! | `restart.rs` | `restart`: another process in its place |
//! | `demo.rs` | `demo`: everything at work in a private network |
//!
//! A subcommand parses nothing itself (clap does, here) and returns a
//! `Failure`; only [`main`] prints it and chooses the exit code.

mod output;
mod run;
mod status;
mod set;
mod restart;
mod demo;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use shm_link::linux::address::Address;

use crate::admin::AdminClient;
use crate::settings::{ADMIN_SUFFIX, DEFAULT_SOCKET, SettingsError};

/// Exit code when something failed.
const FAILED: u8 = 1;
/// Exit code when what was asked for makes no sense; clap's, too.
const USAGE: u8 = 2;

const AFTER_HELP: &str = "Exit codes: 0 done, 1 something failed, 2 the command line or the \
                          configuration file is wrong.";

/// A network for guests without a network card: moves their frames between
/// shared memory and Linux TAP interfaces.
#[derive(Debug, Parser)]
#[command(name = "host-bridge", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve guests until SIGINT, SIGTERM or SIGHUP.
    ///
    /// Needs /dev/net/tun and CAP_NET_ADMIN in its network namespace, and gives up
    /// all other rights once its sockets listen; or, as an ordinary user, persistent
    /// TAPs of its own that are set up. Logs go to stderr; RUST_LOG chooses what
    /// (default "info").
    Run(Box<run::RunArgs>),
    /// Show what a running daemon's ports are doing.
    Status(status::StatusArgs),
    /// Change a port of a running daemon, and wait for its guest to follow.
    Set(Box<set::SetArgs>),
    /// Put another process in place of a running daemon's, such as a new release.
    ///
    /// Guests, their connections and TAPs stay; they notice a pause. The configuration
    /// file is read anew. Needs a daemon that was started with --keep, or under systemd
    /// with FileDescriptorStoreMax=.
    Restart(restart::RestartArgs),
    /// Show the whole thing at work in a private network, and check it.
    ///
    /// Starts a daemon and a guest as processes of their own in a new network
    /// namespace, lets the kernel talk to the guest's TCP/IP stack, prints a
    /// report, and leaves nothing behind. Needs root, or unprivileged user
    /// namespaces and access to /dev/net/tun.
    Demo(demo::DemoArgs),
}

/// Runs the command that the process was started with.
///
/// Call it first in `main`, before any other thread and any descriptor: it may
/// enter a namespace or take over an inherited descriptor.
pub fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run::main(*args),
        Command::Status(args) => status::main(&args),
        Command::Set(args) => set::main(*args),
        Command::Restart(args) => restart::main(&args),
        Command::Demo(args) => demo::main(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("host-bridge: {}", failure.error);
            ExitCode::from(failure.code)
        }
    }
}

/// Why a command failed.
#[derive(Debug)]
struct Failure {
    error: Box<dyn Error>,
    code: u8,
}

impl<E: Into<Box<dyn Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let code = if error.is::<SettingsError>() {
            USAGE
        } else {
            FAILED
        };
        Self { error, code }
    }
}

/// Where the daemon is, for commands that ask it.
#[derive(Debug, clap::Args)]
struct AdminArgs {
    /// The daemon's admin socket: a path or @name.
    #[arg(long, value_name = "ADDR", default_value_t = default_admin())]
    admin: String,
}

fn default_admin() -> String {
    format!("{DEFAULT_SOCKET}{ADMIN_SUFFIX}")
}

impl AdminArgs {
    fn client(&self) -> Result<AdminClient, Failure> {
        match self.admin.parse::<Address>() {
            Ok(address) => Ok(AdminClient::new(address)),
            Err(error) => Err(Failure {
                error: format!("--admin {}: {error}", self.admin).into(),
                code: USAGE,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_in_settings_are_usage_errors_and_others_are_not() {
        let mistake = SettingsError::Field {
            field: "mtu".into(),
            why: "no".into(),
        };
        assert_eq!(Failure::from(mistake).code, USAGE);
        assert_eq!(Failure::from("no such thing").code, FAILED);
    }
}
