//! Everything that takes bytes from outside, as functions of bytes.
//!
//! Each target takes any bytes, must return, and checks what must hold of what it
//! parsed. The fuzzer (`fuzz_targets/`) calls them with bytes of its own making, the
//! test `corpus` with those that were kept. A target that fails panics.
//!
//! | file | targets |
//! | --- | --- |
//! | `control` | messages, and both machines of the control channel |
//! | `memory` | superblock, ring and records, by operations, with a peer that scribbles |
//! | `wires` | byte streams, the attach handshake |
//! | `frames` | the filter, the offload header, what the bridge cuts, the guest's classifier and stack |
//! | `kept` | what a daemon gives its keeper and finds again: messages, records |
//! | `texts` | settings, the admin protocol, addresses, impairments, limits |

mod control;
mod frames;
mod input;
mod kept;
mod memory;
mod texts;
mod wires;

/// A target: it takes any bytes.
pub type Target = fn(&[u8]);

/// All targets by name; `corpus/NAME` has their inputs.
pub const TARGETS: &[(&str, Target)] = &[
    ("admin", texts::admin),
    ("attach", wires::attach),
    ("classify", frames::classify),
    ("control_guest", control::guest),
    ("control_host", control::host),
    ("control_messages", control::messages),
    ("filter", frames::filter),
    ("finish", frames::finish),
    ("kept_record", kept::record),
    ("offload", frames::offload),
    ("records", memory::records),
    ("ring", memory::ring),
    ("settings", texts::settings),
    ("shelf", kept::shelf),
    ("stack", frames::stack),
    ("stream", wires::stream),
    ("superblock", memory::superblock),
    ("texts", texts::texts),
];

/// Calls the target of this name.
///
/// # Panics
/// If there is none, or if it fails.
pub fn call(name: &str, bytes: &[u8]) {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let (_, target) = found.expect("a target of this name");
    target(bytes);
}
