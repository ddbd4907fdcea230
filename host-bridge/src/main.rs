//! The `host-bridge` command. All of it is in [`host_bridge::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    host_bridge::cli::main()
}
