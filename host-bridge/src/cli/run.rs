//! `host-bridge run`: flags, log, rights and signals around the
//! [`Daemon`](crate::daemon::Daemon).

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;
use std::time::Duration;

use tokio::runtime::Builder;

use super::Failure;
use crate::daemon::Bound;
use crate::keeper::{self, Shelf};
use crate::sandbox::{Parts, Restriction, confine, filter_calls, has_net_admin};
use crate::settings::{Options, Settings, SettingsError};
use crate::signals::{Signals, TERM};
use crate::store::Store;
use crate::workers::Workers;

/// How long the guests' ends may take before the process ends without them;
/// the kernel then frees what is left.
const LAST_ORDERS: Duration = Duration::from_secs(10);

/// Flags of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// Keep guests, their connections and TAPs while the daemon is not there.
    ///
    /// This process then only keeps them, and runs the daemon as a process of its own.
    /// When that one ends, however it ends, another goes on where it was: guests notice
    /// a pause. `host-bridge restart` begins the program anew, another release of it too.
    #[arg(long)]
    keep: bool,

    #[command(flatten)]
    options: Options,
}

/// Under which the keeper passes a TAP on that it was given.
const GIVEN_TAP: &str = "given.tap";

pub(super) fn main(args: RunArgs) -> Result<(), Failure> {
    // Before anything is opened: the numbers cannot be of our own.
    let store = match args.keep {
        true => Store::none(),
        false => Store::from_env()?,
    };
    let tap_fd = match (args.options.tap_fd, store.take(GIVEN_TAP)) {
        (Some(_), Some(kept)) => Some(kept),
        (Some(number), None) => Some(inherited(number)?),
        (None, _) => None,
    };
    let given = tap_fd.as_ref().map(OwnedFd::try_clone).transpose()?;
    let settings = Settings::new(args.options.with_file()?, tap_fd)?;
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    if args.keep {
        return keep(given);
    }
    let (workers, parts) = (settings.workers, settings.sandbox);
    let daemon = Bound::with_store(settings, store)?;
    // Before there are other threads, which would keep what this one gives up.
    let files = confine(parts, &daemon.needs()?)?;
    let workers = Workers::start(workers)?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    // The last thread is there: from now on none can be started.
    let calls = match parts.calls {
        true => Some(filter_calls()?),
        false => None,
    };
    announce(parts, files, calls);
    let done = runtime.block_on(serve(daemon, workers));
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

/// Keeps what a daemon with the same command line needs to go on.
fn keep(given: Option<OwnedFd>) -> Result<(), Failure> {
    let mut shelf = Shelf::new();
    if let Some(given) = given {
        shelf.keep(GIVEN_TAP, given);
    }
    // By its name and not as the file that runs now: another release may be there.
    let program = std::env::current_exe()?;
    let args: Vec<_> = std::env::args_os()
        .skip(1)
        .filter(|arg| arg != "--keep")
        .collect();
    let worker = move || {
        let mut command = Command::new(&program);
        command.args(&args);
        command
    };
    match keeper::run(shelf, worker)? {
        0 => Ok(()),
        code => Err(Failure {
            error: "the daemon did not start: see above".into(),
            code,
        }),
    }
}

/// Tells the log which rights are left.
fn announce(parts: Parts, files: Restriction, calls: Option<usize>) {
    let capabilities = match (parts.capabilities, has_net_admin()) {
        (true, true) => "no capability but CAP_NET_ADMIN",
        (true, false) => "no capability",
        (false, _) => "all capabilities that it was started with",
    };
    let calls = match calls {
        Some(count) => format!("{count} system calls"),
        None => "all system calls".to_owned(),
    };
    let files = files.as_str();
    if parts == Parts::ALL {
        log::info!("rights: {capabilities}, {calls}, {files}");
    } else {
        log::warn!("rights, not all given up: {capabilities}, {calls}, {files}");
    }
}

async fn serve(daemon: Bound, workers: Workers) -> Result<(), Failure> {
    // First, so that no signal ends the process half way.
    let mut signals = Signals::new()?;
    let mut daemon = daemon.start(workers).await?;
    let (leaves, restart) = (daemon.is_kept(), daemon.restart_wanted());
    let (end, leaves) = tokio::select! {
        () = restart => (Ok(()), true),
        name = signals.next() => {
            // Whoever keeps the guests knows whether there is a next process.
            let leaves = leaves && name == TERM;
            match leaves {
                true => log::info!("{name}: leaving the guests to the next process"),
                false => log::info!("{name}: detaching the guests"),
            }
            (Ok(()), leaves)
        }
        error = daemon.failed() => (Err(error.into()), leaves),
    };
    let ending = async {
        match leaves {
            true => daemon.leave().await,
            false => daemon.shutdown().await,
        }
    };
    if tokio::time::timeout(LAST_ORDERS, ending).await.is_err() {
        log::warn!("not all guests could be detached in time");
    }
    end
}

/// Takes over a descriptor that this process was started with.
fn inherited(number: RawFd) -> Result<OwnedFd, SettingsError> {
    let wrong = |why: &str| SettingsError::Field {
        field: "tap_fd".to_owned(),
        why: format!("{number} {why}"),
    };
    if number < 3 {
        return Err(wrong(
            "is one of the standard streams or no descriptor: give 3 or above",
        ));
    }
    // SAFETY: the number is not -1, and the descriptor is only asked for its
    // flags, which fails if it is not open.
    let is_open = rustix::io::fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).is_ok();
    if !is_open {
        return Err(wrong(
            "is not open in this process: let the program that starts it open the TAP and pass it on",
        ));
    }
    // SAFETY: it is open. The process has only just begun, with one thread and
    // nothing opened, so the descriptor came with its start; whoever started it
    // says by the flag that it is this program's to close. Called only once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_nobody_passed_on_is_refused() {
        for (number, why) in [
            (-1, "standard streams"),
            (2, "standard streams"),
            (1_000_000, "not open"),
        ] {
            let error = inherited(number).unwrap_err().to_string();
            assert!(
                error.starts_with("tap_fd: ") && error.contains(why),
                "{error}"
            );
        }
    }
}
