//! Linux capabilities: all but one dropped, from every set.
//!
//! Capabilities belong to threads, so this is done while there is one. Called by
//! the sandbox alone, except for the trial without the one capability.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Whether this thread may configure network interfaces, and make TAPs, now.
pub fn has_net_admin() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN))
}

/// Does `work` as if this thread had no CAP_NET_ADMIN, to see whether it is needed.
/// It must stay on this thread.
pub fn without_net_admin<T>(work: impl FnOnce() -> T) -> T {
    let Ok(sets) = capabilities(None) else {
        return work();
    };
    let less = CapabilitySets {
        effective: sets.effective - CapabilitySet::NET_ADMIN,
        ..sets
    };
    // It may always be given up and, being permitted, taken up again.
    let lowered = set_capabilities(None, less).is_ok();
    let done = work();
    if lowered {
        let _ = set_capabilities(None, sets);
    }
    done
}

/// Drops every capability but CAP_NET_ADMIN, and that too unless it is needed. It is
/// kept only where it was.
pub(super) fn keep_only(net_admin: bool) -> Result<(), Errno> {
    let kept = match net_admin {
        true => CapabilitySet::NET_ADMIN,
        false => CapabilitySet::empty(),
    };
    limit_bounding_set(kept)?;
    match clear_ambient_capability_set() {
        // A kernel from before ambient capabilities has none.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno),
    }
    let sets = capabilities(None)?;
    let kept = sets.permitted & kept;
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            // What would pass to a program that this process executes.
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Takes from the bounding set what is not kept. It bounds what a program with file
/// capabilities could gain; without CAP_SETPCAP it cannot be made smaller, and with
/// no new privileges it does not matter.
fn limit_bounding_set(kept: CapabilitySet) -> Result<(), Errno> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        if kept.contains(one) {
            continue;
        }
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The kernel knows none of this number, nor any after it.
            Err(Errno::INVAL) => break,
            Err(Errno::PERM) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
