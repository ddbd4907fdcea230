//! `host-bridge run`: flags, log, rights and signals around the
//! [`Daemon`](crate::daemon::Daemon).

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;
use crate::daemon::Bound;
use crate::sandbox::{Parts, Restriction, confine, filter_calls, has_net_admin};
use crate::settings::{Options, Settings, SettingsError};
use crate::workers::Workers;

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
    let (workers, parts) = (settings.workers, settings.sandbox);
    let daemon = Bound::new(settings)?;
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
