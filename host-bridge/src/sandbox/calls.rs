//! The list of system calls (seccomp).
//!
//! Two filters, of which the harder answer holds:
//!
//! | a call | what happens |
//! | --- | --- |
//! | on the list, and its argument too where that is looked at | it is made |
//! | that only an intruder would make: a program executed, another process traced, the kernel changed | the process ends (SIGSYS) |
//! | anything else | it fails with EPERM, and the daemon goes on |
//!
//! A call that was forgotten here, or that a newer C library makes, costs its caller
//! an error and not every guest its network. The list is short because it is read
//! from what the daemon does (`tests/cli/rights.rs` does all of it under the filter).
//! Calls of the hot path are allowed whatever their arguments: the kernel then keeps
//! the answer in a bitmap and runs no filter for them.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::SandboxError;

/// Made whatever the arguments are.
const ALWAYS: &[c_long] = &[
    // Frames, doorbells, messages.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwritev2,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_ppoll,
    libc::SYS_io_setup,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    libc::SYS_io_destroy,
    // The runtime's reactor, threads and memory.
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_uname,
    libc::SYS_geteuid,
    libc::SYS_capget,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // A thread that has just begun.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // Signals: to end by, and a panic that aborts.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_tgkill,
    // A guest's memory and descriptors.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fcntl,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_openat,
    libc::SYS_unlinkat,
    // Its connection; the kernel's network configuration.
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// The same, where only x86-64 has the older call.
#[cfg(target_arch = "x86_64")]
const ALWAYS_HERE: &[c_long] = &[
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_open,
    libc::SYS_unlink,
];
#[cfg(not(target_arch = "x86_64"))]
const ALWAYS_HERE: &[c_long] = &[];

/// Requests of `ioctl`.
const IOCTLS: &[u64] = &[
    libc::FIONBIO,
    // An interface's index by its name.
    libc::SIOCGIFINDEX,
    libc::TUNSETIFF,
    libc::TUNGETIFF,
    libc::TUNSETOFFLOAD,
    libc::TUNSETVNETHDRSZ,
    libc::TUNSETCARRIER,
    libc::TUNGETDEVNETNS,
    // Serial lines: is it one, and make it raw.
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCGETS2,
    libc::TCSETS2,
    libc::TCSETSW2,
    libc::TCSETSF2,
];

/// Families of `socket` and `socketpair`.
const FAMILIES: &[u64] = &[libc::AF_UNIX as u64, libc::AF_NETLINK as u64];

/// Operations of `prctl`: a thread's name.
const PRCTLS: &[u64] = &[libc::PR_SET_NAME as u64, PR_SET_VMA];
/// Names a piece of memory, for those who look at it from outside; the C library does
/// that. Newer than the libc crate's list.
const PR_SET_VMA: u64 = 0x5356_4d41;

/// Nothing that this process does; whoever tries is somebody else.
const NEVER: &[c_long] = &[
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_setuid,
    libc::SYS_setresuid,
    libc::SYS_setgid,
    libc::SYS_setresgid,
    libc::SYS_capset,
];

/// The second step: filters the system calls of all threads of this process, those to
/// come included. Says how many calls are left.
///
/// # Errors
/// [`SandboxError::Calls`] if the kernel has no seccomp, or a thread has a filter of
/// its own already.
pub fn filter_calls() -> Result<usize, SandboxError> {
    let why = |error: seccompiler::Error| SandboxError::Calls(explain(error));
    let allowed = allowed().map_err(|error| why(error.into()))?;
    let count = allowed.len();
    let refused = NEVER.iter().map(|&call| (call, Vec::new())).collect();
    for (rules, otherwise, matching) in [
        // First, because what the list leaves cannot install another filter.
        (refused, SeccompAction::Allow, SeccompAction::KillProcess),
        (
            allowed,
            SeccompAction::Errno(libc::EPERM as u32),
            SeccompAction::Allow,
        ),
    ] {
        let program = compile(rules, otherwise, matching).map_err(|error| why(error.into()))?;
        seccompiler::apply_filter_all_threads(&program).map_err(why)?;
    }
    Ok(count)
}

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    matching: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, matching, arch)?.try_into()
}

fn allowed() -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = ALWAYS
        .iter()
        .chain(ALWAYS_HERE)
        .map(|&call| (call, Vec::new()))
        .collect();
    rules.insert(libc::SYS_ioctl, one_of(1, IOCTLS)?);
    rules.insert(libc::SYS_socket, one_of(0, FAMILIES)?);
    rules.insert(libc::SYS_socketpair, one_of(0, FAMILIES)?);
    rules.insert(libc::SYS_prctl, one_of(0, PRCTLS)?);
    // Memory is never executable that was not so from the start.
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let not_executable = condition(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)?;
        rules.insert(call, vec![SeccompRule::new(vec![not_executable])?]);
    }
    Ok(rules)
}

/// The argument with this number is one of these. The kernel looks at 32 bits of it.
fn one_of(argument: u8, values: &[u64]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    values
        .iter()
        .map(|&value| SeccompRule::new(vec![condition(argument, SeccompCmpOp::Eq, value)?]))
        .collect()
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

fn explain(error: seccompiler::Error) -> String {
    match error {
        seccompiler::Error::Seccomp(source) | seccompiler::Error::Prctl(source)
            if source.kind() == io::ErrorKind::InvalidInput =>
        {
            format!("this kernel has no seccomp filters ({source})")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_needed_and_an_intruders() {
        let allowed = allowed().unwrap();
        for call in NEVER {
            assert!(!allowed.contains_key(call), "{call}");
        }
    }

    #[test]
    fn neither_threads_nor_processes_nor_listeners_are_on_the_list() {
        let allowed = allowed().unwrap();
        for call in [
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_connect,
            libc::SYS_listen,
            libc::SYS_kill,
            libc::SYS_io_uring_setup,
        ] {
            assert!(!allowed.contains_key(&call), "{call}");
        }
        assert!(allowed.len() < 75, "{}", allowed.len());
    }
}
