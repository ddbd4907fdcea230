//! `host-bridge run`: flags, log and signals around the
//! [`Daemon`](crate::daemon::Daemon).

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use crate::daemon::Daemon;
use crate::settings::{Options, Settings, SettingsError};

/// How long the guests' ends may take before the process ends without them;
/// the kernel then frees what is left.
const LAST_ORDERS: Duration = Duration::from_secs(10);

/// Flags of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    options: Options,
}

pub(super) fn main(args: RunArgs) -> Result<(), Failure> {
    // Before anything is opened: the number cannot be one of our own.
    let tap_fd = match args.options.tap_fd {
        Some(number) => Some(inherited(number)?),
        None => None,
    };
    let settings = Settings::new(args.options.with_file()?, tap_fd)?;
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    let runtime = Builder::new_multi_thread()
        .worker_threads(settings.workers)
        .enable_all()
        .build()?;
    let done = runtime.block_on(serve(settings));
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn serve(settings: Settings) -> Result<(), Failure> {
    // First, so that no signal ends the process half way.
    let mut signals = Signals::new()?;
    let mut daemon = Daemon::start(settings).await?;
    let end = tokio::select! {
        name = signals.next() => {
            log::info!("{name}: detaching the guests");
            Ok(())
        }
        error = daemon.failed() => Err(error.into()),
    };
    if tokio::time::timeout(LAST_ORDERS, daemon.shutdown())
        .await
        .is_err()
    {
        log::warn!("not all guests could be detached in time");
    }
    end
}

/// The signals that end the daemon.
struct Signals {
    int: Signal,
    term: Signal,
    hup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            int: signal(SignalKind::interrupt())?,
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.int.recv() => "SIGINT",
            _ = self.term.recv() => "SIGTERM",
            _ = self.hup.recv() => "SIGHUP",
        }
    }
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
