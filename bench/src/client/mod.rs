//! Clients on the kernel's TCP, the same for ours and for every peer.

pub mod bulk;
pub mod burst;
pub mod flood;
pub mod http;
pub mod inside;
pub mod pingpong;
