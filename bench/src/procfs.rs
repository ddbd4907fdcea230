//! What `/proc` tells of a process: how often it slept, how much memory it has.

use std::fs;

use crate::Result;

/// How often the threads of a process gave up a processor by themselves, which is
/// how often they were woken.
///
/// # Errors
/// If the process is gone.
pub fn sleeps(pid: u32) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(task?.path().join("status"))?;
        sum += field(&status, "voluntary_ctxt_switches:").ok_or("no count of switches")?;
    }
    Ok(sum)
}

/// Memory of a process that is not a mapped file's: its own, and what it has
/// touched of shared memory, in KiB.
///
/// # Errors
/// If the process is gone.
pub fn memory_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let fields = ["RssAnon:", "RssShmem:"].map(|name| field(&status, name));
    Ok(fields.into_iter().sum::<Option<u64>>().ok_or("no sizes")?)
}

/// How many descriptors a process has open.
///
/// # Errors
/// If the process is gone.
pub fn descriptors(pid: u32) -> Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
}

/// How many threads a process has.
///
/// # Errors
/// If the process is gone.
pub fn threads(pid: u32) -> Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/task"))?.count() as u64)
}

/// A process, and those that it started, and theirs.
#[must_use]
pub fn with_descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children"));
            all.extend(
                children
                    .unwrap_or_default()
                    .split_whitespace()
                    .filter_map(|word| word.parse::<u32>().ok()),
            );
        }
        at += 1;
    }
    all
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn fields_are_read_by_their_whole_name() {
        let status = "RssAnon:\t     120 kB\nvoluntary_ctxt_switches:\t7\n\
                      nonvoluntary_ctxt_switches:\t9\n";
        assert_eq!(field(status, "RssAnon:"), Some(120));
        assert_eq!(field(status, "voluntary_ctxt_switches:"), Some(7));
        assert_eq!(field(status, "RssShmem:"), None);
    }

    #[test]
    fn a_process_that_sleeps_is_seen_to() {
        // Another process: threads of this one end while other tests run, and with them their
        // counts.
        let mut cat = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut input, mut output) = (cat.stdin.take().unwrap(), cat.stdout.take().unwrap());
        let mut echo = || {
            input.write_all(b"x").unwrap();
            output.read_exact(&mut [0]).unwrap();
            sleeps(cat.id()).unwrap()
        };
        let before = echo();
        // It may not be back at its sleep when its echo arrives.
        assert!((0..1000).any(|_| echo() > before));
        assert!(memory_kib(cat.id()).unwrap() > 0);
        cat.kill().unwrap();
        cat.wait().unwrap();
    }

    #[test]
    fn children_are_found() {
        let mut child = Command::new("sleep").arg("9").spawn().unwrap();
        let all = with_descendants(std::process::id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(all.contains(&child.id()), "{all:?}");
    }
}
