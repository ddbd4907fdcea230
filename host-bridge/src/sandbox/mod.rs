//! The rights that the daemon gives up after its start.
//!
//! A guest's bytes are read by this process, so a mistake in it is to be worth as
//! little as possible to whoever finds one. `host-bridge run` calls, in this order,
//! and nothing else does; a monitor that embeds the bridge may do the same:
//!
//! | when | what | file |
//! | --- | --- | --- |
//! | sockets bound, one thread | [`confine`]: no new privileges, no capability but the one needed, no files but those needed | `capabilities`, `files` |
//! | all threads started | [`filter_calls`]: no system calls but those needed, on every thread | `calls` |
//!
//! What a thread has given up, the threads that it starts never had; that is why the
//! first step comes before the runtime. The second comes after it, so that starting
//! threads and processes is not on the list of what is allowed.
//!
//! Nothing here knows of guests. Each part can be left out ([`Parts`]).

mod calls;
mod capabilities;
mod files;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use self::calls::filter_calls;
pub use self::capabilities::{has_net_admin, without_net_admin};
pub use self::files::Restriction;

/// Which parts are in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Capabilities are dropped.
    pub capabilities: bool,
    /// System calls are filtered.
    pub calls: bool,
    /// Files are out of reach (Landlock).
    pub files: bool,
}

/// What the process still needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// It makes TAPs or sets them up: CAP_NET_ADMIN.
    pub net_admin: bool,
    /// Device files that it opens again and again.
    pub devices: Vec<PathBuf>,
    /// Directories in which it opens device files that come and go.
    pub device_directories: Vec<PathBuf>,
    /// Directories from which it removes its sockets' files at the end.
    pub socket_directories: Vec<PathBuf>,
}

/// Why the rights could not be given up. The process must not go on as if they
/// were.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The kernel does not let the process drop its capabilities.
    #[error(
        "giving up capabilities: {0}; --keep-capabilities goes on without, with all the rights of \
         the user"
    )]
    Capabilities(#[source] io::Error),
    /// The kernel does not filter system calls for this process.
    #[error("filtering system calls: {0}; --no-seccomp goes on without")]
    Calls(String),
    /// A file that is needed cannot be found, or the kernel refuses the rules.
    #[error("restricting files: {0}; --no-landlock goes on without")]
    Files(String),
}

/// The first step, for the calling thread and all that it starts. Says how far files
/// are out of reach.
///
/// # Errors
/// [`SandboxError`]. What was given up by then stays so.
pub fn confine(parts: Parts, needs: &Needs) -> Result<Restriction, SandboxError> {
    if parts != Parts::NONE {
        rustix::thread::set_no_new_privs(true)
            .map_err(|errno| SandboxError::Capabilities(errno.into()))?;
    }
    if parts.capabilities {
        capabilities::keep_only(needs.net_admin)
            .map_err(|errno| SandboxError::Capabilities(errno.into()))?;
    }
    match parts.files {
        true => files::restrict(needs),
        false => Ok(Restriction::Off),
    }
}

impl Parts {
    /// All parts.
    pub const ALL: Self = Self {
        capabilities: true,
        calls: true,
        files: true,
    };
    /// No part: the process keeps everything.
    pub const NONE: Self = Self {
        capabilities: false,
        calls: false,
        files: false,
    };
}

/// The directory of a file that is named by `path`.
pub fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}
