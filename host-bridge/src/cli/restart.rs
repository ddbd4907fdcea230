//! `host-bridge restart`: another process in place of the daemon's.

use std::io::Write;

use super::{AdminArgs, Failure, output};

/// Flags of `restart`.
#[derive(Debug, clap::Args)]
pub(super) struct RestartArgs {
    #[command(flatten)]
    admin: AdminArgs,
}

pub(super) fn main(args: &RestartArgs) -> Result<(), Failure> {
    let ports = args.admin.client()?.restart()?;
    output::quietly(|out| out.write_all(output::table(&ports, None).as_bytes()))
}
