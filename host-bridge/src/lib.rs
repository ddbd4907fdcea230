//! Attaches shared-memory guests to Linux TAP interfaces.

pub mod error;

pub mod counters;

pub mod filter;
pub mod impair;

pub mod netlink;
pub mod tap;

pub mod probe;

pub mod namespace;

pub mod child;
mod policy;
pub mod bell;
mod pump;
mod session;
pub mod port;
pub mod bridge;
pub mod plan;
pub mod server;

pub mod admin;
pub mod settings;
pub mod daemon;
pub mod cli;
