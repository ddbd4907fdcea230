//! How much memory the guests of a daemon may have it use, together.
//!
//! A guest's rings and buffers become memory as they are used, and where a control group
//! has too little of it the kernel kills the daemon, again after each start. So what a
//! guest may come to use is set aside when it attaches, and the one for whom there is too
//! little is turned away in words, while the others notice nothing.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shm_link::superblock::Layout;

use crate::error::BridgeError;

/// What daemon and keeper use without guests (5 MB and 3 MB were measured), and some to
/// spare.
const OWN_BYTES: u64 = 12 << 20;
/// What a guest costs besides its rings: 0.1 MB was measured, and one without offloads has
/// a super-frame cut for it.
const GUEST_BYTES: u64 = 192 << 10;
/// How long a guest waits for what another may give back; its own patience is longer.
const PATIENCE: Duration = Duration::from_millis(300);
/// The buffers of a byte stream.
const STREAM_BYTES: u64 = 384 << 10;

/// Bytes that may be used, and how many are. Clones are the same.
#[derive(Debug, Clone)]
pub struct Allowance {
    /// For all guests together; `None`: as much as there is.
    allowed: Option<u64>,
    used: Arc<AtomicU64>,
}

impl Allowance {
    /// As much as there is.
    pub fn unlimited() -> Self {
        Self::of(None)
    }

    /// What is left for guests of `bytes` that the whole daemon may use. Impairment
    /// stages, whose frames an administrator allows, are not counted.
    pub fn within(bytes: u64) -> Self {
        Self::of(Some(bytes.saturating_sub(OWN_BYTES)))
    }

    fn of(allowed: Option<u64>) -> Self {
        Self {
            allowed,
            used: Arc::default(),
        }
    }

    /// What all guests together may use; `None`: as much as there is.
    pub(crate) fn allowed(&self) -> Option<u64> {
        self.allowed
    }

    /// Sets aside what a guest with such rings may come to use.
    ///
    /// # Errors
    /// [`BridgeError::Memory`] if there is not as much.
    pub(crate) fn for_rings(&self, layout: &Layout) -> Result<Share, BridgeError> {
        self.take(of_rings(layout))
    }

    /// The same for one that has them already: it may use them whatever is allowed now.
    pub(crate) fn for_kept_rings(&self, layout: &Layout) -> Share {
        let bytes = of_rings(layout);
        // ORDERING: a count; nothing hangs on it.
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.share(bytes)
    }

    /// The same for a guest behind a byte stream.
    ///
    /// # Errors
    /// As for [`for_rings`](Self::for_rings).
    pub(crate) fn for_stream(&self) -> Result<Share, BridgeError> {
        self.take(GUEST_BYTES + STREAM_BYTES)
    }

    /// Tries for a moment, since somebody may just be going.
    ///
    /// # Errors
    /// As `take` says at last.
    pub(crate) async fn soon(
        &self,
        take: impl Fn(&Self) -> Result<Share, BridgeError>,
    ) -> Result<Share, BridgeError> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match take(self) {
                Err(_) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(PATIENCE / 10).await;
                }
                taken => return taken,
            }
        }
    }

    fn take(&self, bytes: u64) -> Result<Share, BridgeError> {
        let allowed = self.allowed.unwrap_or(u64::MAX);
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= allowed);
        // ORDERING: a count; nothing hangs on it.
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        match taken {
            Ok(_) => Ok(self.share(bytes)),
            Err(used) => Err(BridgeError::Memory {
                needed: bytes,
                used,
                allowed,
            }),
        }
    }

    fn share(&self, bytes: u64) -> Share {
        Share {
            used: self.used.clone(),
            bytes,
        }
    }
}

/// What was set aside for a guest; dropped, it is free for another.
#[derive(Debug)]
pub(crate) struct Share {
    used: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Share {
    fn drop(&mut self) {
        // ORDERING: a count; nothing hangs on it.
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The rings to their last byte, whoever touches it first, and the rest.
pub(crate) fn of_rings(layout: &Layout) -> u64 {
    GUEST_BYTES + layout.used_len() as u64
}

/// What this process's control group, or one around it, lets it use; `None`: none says
/// (cgroups(7), both versions).
pub fn of_control_group() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    limit_of(&groups, &mounts, |file| fs::read_to_string(file).ok())
}

fn limit_of(groups: &str, mounts: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mut least = None::<u64>;
    for group in groups.lines() {
        // 0::/path, or 4:memory:/path
        let mut fields = group.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (kind, option, file) = match controllers {
            "" => ("cgroup2", None, "memory.max"),
            some if some.split(',').any(|name| name == "memory") => {
                ("cgroup", Some("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        let Some(root) = mount_point(mounts, kind, option) else {
            continue;
        };
        let path = path.trim_start_matches('/');
        for part in Path::new(path).ancestors() {
            let limit = read(&Path::new(root).join(part).join(file));
            // Without a limit it says "max", or in version 1 a number beyond all memory.
            let limit = limit.and_then(|text| text.trim().parse().ok());
            least = least
                .into_iter()
                .chain(limit.filter(|bytes| *bytes < 1 << 60))
                .min();
        }
    }
    least
}

/// Where a hierarchy is mounted.
fn mount_point<'a>(mounts: &'a str, kind: &str, option: Option<&str>) -> Option<&'a str> {
    mounts.lines().find_map(|mount| {
        let mut fields = mount.split(' ').skip(1);
        let (point, its_kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        let has = |wanted| options.split(',').any(|option| option == wanted);
        (its_kind == kind && option.is_none_or(has)).then_some(point)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use shm_link::superblock::LayoutOptions;

    const MOUNTS: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";

    #[test]
    fn the_least_limit_of_all_groups_around_counts_in_both_versions() {
        let limit = |groups: &str, files: &[(&str, &str)]| {
            limit_of(groups, MOUNTS, |path| {
                let file = files.iter().find(|(name, _)| Path::new(name) == path)?;
                Some(file.1.to_owned())
            })
        };
        let v2 = "0::/a/b\n";
        let root = "/sys/fs/cgroup/unified";
        let files = [
            (&*format!("{root}/a/b/memory.max"), "max\n"),
            (&*format!("{root}/a/memory.max"), "33554432\n"),
        ];
        assert_eq!(limit(v2, &files), Some(32 << 20));
        assert_eq!(limit("0::/\n", &files), None);
        let v1 = "5:cpu:/\n4:memory:/x\n0::/\n";
        let files = [
            (
                "/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
                "16777216\n",
            ),
            (
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "9223372036854771712\n",
            ),
        ];
        assert_eq!(limit(v1, &files), Some(16 << 20));
        assert_eq!(limit("4:memory:/y\n", &files), None);
        for nonsense in ["", "\n:\n::\n4\n", "4:memory:/../../etc\n"] {
            assert_eq!(limit(nonsense, &files), None, "{nonsense:?}");
        }
    }

    #[test]
    fn what_a_guest_may_use_is_set_aside_and_free_again_when_it_is_gone() {
        let layout = Layout::new(LayoutOptions::default()).unwrap();
        let each = of_rings(&layout);
        let allowance = Allowance::within(OWN_BYTES + 2 * each);
        let first = allowance.for_rings(&layout).unwrap();
        let _second = allowance.for_rings(&layout).unwrap();
        let refused = allowance.for_stream().unwrap_err().to_string();
        assert!(refused.contains("--memory"), "{refused}");
        drop(first);
        let _stream = allowance.for_stream().unwrap();
        assert!(allowance.for_rings(&layout).is_err());
        // Who is there already stays, whatever is allowed.
        let kept = allowance.for_kept_rings(&layout);
        drop(kept);
        assert!(Allowance::within(0).for_stream().is_err());
        assert!(Allowance::unlimited().for_rings(&layout).is_ok());
    }
}
