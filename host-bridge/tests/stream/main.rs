//! Guests behind byte streams attach to a real bridge with real TAPs, in a
//! private network.

#[path = "../attach/common.rs"]
#[allow(dead_code, reason = "this file uses its part")]
mod common;
mod guest;
mod lines;
mod sockets;
