//! Landlock: which files the process may still reach.
//!
//! The rules are a short list: the TAP driver's device, serial lines, and the removal
//! of the sockets' own files. Everything else in the file system, every TCP port,
//! abstract sockets and processes outside are out of reach, as far as the kernel
//! knows how. Files that are open already stay so.

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use std::path::Path;

use super::{Needs, SandboxError};

/// The newest rights that are asked for; an older kernel restricts what it knows.
const NEWEST: ABI = ABI::V6;

/// Read by the C library when it gives memory back to the kernel.
const READ_ONLY: &str = "/proc/sys/vm/overcommit_memory";

/// How far files are out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restriction {
    /// As far as this program asks for.
    Full,
    /// As far as this kernel knows how.
    Partial,
    /// Not at all: the kernel has no Landlock.
    Unsupported,
    /// Not at all: it was switched off.
    Off,
}

impl Restriction {
    /// Words for the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "files and sockets out of reach",
            Self::Partial => "files out of reach as far as this kernel knows how",
            Self::Unsupported => "files within reach: this kernel has no Landlock",
            Self::Off => "files within reach, as was asked for",
        }
    }
}

pub(super) fn restrict(needs: &Needs) -> Result<Restriction, SandboxError> {
    let why = |error: landlock::RulesetError| SandboxError::Files(error.to_string());
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(why)?;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    for path in needs.devices.iter().chain(&needs.device_directories) {
        rules = allow(rules, path, device)?;
    }
    for path in &needs.socket_directories {
        rules = allow(rules, path, AccessFs::RemoveFile.into())?;
    }
    rules = allow(rules, Path::new(READ_ONLY), AccessFs::ReadFile.into())?;
    let status = rules.restrict_self().map_err(why)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Restriction::Full,
        RulesetStatus::PartiallyEnforced => Restriction::Partial,
        RulesetStatus::NotEnforced => Restriction::Unsupported,
    })
}

/// Allows something at or below a path. What does not exist needs no rule: it is out
/// of reach either way.
fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, SandboxError> {
    let Ok(file) = PathFd::new(path) else {
        return Ok(rules);
    };
    rules
        .add_rule(PathBeneath::new(file, access))
        .map_err(|error| SandboxError::Files(format!("{}: {error}", path.display())))
}
