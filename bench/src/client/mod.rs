//! Clients on the kernel's TCP, the same for ours and for every peer.

pub mod bulk;
pub mod pingpong;
