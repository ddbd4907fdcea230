//! A network of one's own: the process leaves the host's network namespace.
//!
//! The `demo` subcommand calls this first of all, so that its TAPs and
//! addresses exist for it and its children only and vanish with them. Root
//! just does it; another user becomes root in a user namespace of its own,
//! where the kernel allows that.

use std::fs::{self, File};
use std::io;

use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use thiserror::Error;

use crate::error::NetlinkError;
use crate::netlink::Netlink;

/// The loopback interface's index in every network namespace.
const LOOPBACK: u32 = 1;

/// Why there is no private network.
#[derive(Debug, Error)]
pub enum NamespaceError {
    /// A namespace is entered by one thread, and others would stay behind.
    #[error(
        "{count} threads run already, and a process must enter its namespace before it starts any"
    )]
    Threads {
        /// How many.
        count: usize,
    },
    /// TAPs cannot be opened, so a private network would be of no use.
    #[error("/dev/net/tun cannot be opened ({source}): {advice}")]
    NoTun {
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// The kernel does not give this user a namespace.
    #[error("no private network namespace ({source}): {advice}")]
    Refused {
        /// What the kernel said.
        source: io::Error,
        /// What to do.
        advice: &'static str,
    },
    /// The new namespace's loopback interface stays down.
    #[error(transparent)]
    Loopback(#[from] NetlinkError),
    /// The runtime or `/proc` failed.
    #[error("entering a private network namespace: {0}")]
    Io(#[from] io::Error),
}

/// Moves this process into a new network namespace in which only the loopback
/// interface exists, and is up. There the process may do everything that root
/// may: make TAPs, set addresses, open raw sockets.
///
/// Call it first in `main`, before anything starts a thread or a runtime.
///
/// # Errors
/// [`NamespaceError`], in words that say what to do.
pub fn enter_private_network() -> Result<(), NamespaceError> {
    let count = fs::read_dir("/proc/self/task")?.count();
    if count != 1 {
        return Err(NamespaceError::Threads { count });
    }
    check_tun()?;
    match unshare(UnshareFlags::NEWNET) {
        Err(Errno::PERM) => enter_as_user().map_err(refused)?,
        other => other.map_err(|e| refused(e.into()))?,
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(async { Netlink::connect()?.set_up(LOOPBACK).await })?)
}

fn check_tun() -> Result<(), NamespaceError> {
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Ok(()),
        Err(source) => {
            let advice = match source.kind() {
                io::ErrorKind::PermissionDenied => {
                    "run as root, or let this user open it (`chmod 0666 /dev/net/tun`)"
                }
                _ => "load its driver (`modprobe tun`); in a container, pass the device in",
            };
            Err(NamespaceError::NoTun { source, advice })
        }
    }
}

fn enter_as_user() -> io::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET)?;
    // An unprivileged process may map its own group only after it has given up
    // setgroups(2); user_namespaces(7).
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))
}

fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the callers pass no FILES flag, the one that can take descriptors
    // away from other threads.
    unsafe { unshare_unsafe(flags) }
}

fn refused(source: io::Error) -> NamespaceError {
    let advice = advice(|name| fs::read_to_string(format!("/proc/sys/{name}")).ok());
    NamespaceError::Refused { source, advice }
}

/// Which setting stands in the way.
fn advice(sysctl: impl Fn(&str) -> Option<String>) -> &'static str {
    let is = |name: &str, value: &str| sysctl(name).is_some_and(|text| text.trim() == value);
    if is("user/max_user_namespaces", "0") {
        "run as root, or allow user namespaces (`sysctl user.max_user_namespaces=10000`)"
    } else if is("kernel/unprivileged_userns_clone", "0") {
        "run as root, or allow user namespaces (`sysctl kernel.unprivileged_userns_clone=1`)"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "run as root, or lift AppArmor's limit (`sysctl kernel.apparmor_restrict_unprivileged_userns=0`)"
    } else {
        "run as root; in a container, allow user namespaces (its seccomp profile, or CAP_SYS_ADMIN)"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_names_the_setting_that_stands_in_the_way() {
        for (setting, value, named) in [
            (
                "user/max_user_namespaces",
                "0\n",
                "user.max_user_namespaces=",
            ),
            (
                "kernel/unprivileged_userns_clone",
                "0\n",
                "kernel.unprivileged_userns_clone=",
            ),
            (
                "kernel/apparmor_restrict_unprivileged_userns",
                "1\n",
                "AppArmor",
            ),
            ("nothing/of/this", "1\n", "container"),
        ] {
            let advice = advice(|name| (name == setting).then(|| value.to_owned()));
            assert!(
                advice.contains(named) && advice.contains("root"),
                "{setting}: {advice}"
            );
        }
    }

    #[test]
    fn a_process_with_threads_is_refused() {
        // The test harness runs this test on a thread of its own.
        let error = enter_private_network().unwrap_err();
        assert!(
            matches!(error, NamespaceError::Threads { count: 2.. }),
            "{error}"
        );
    }
}
