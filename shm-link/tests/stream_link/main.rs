//! The link over byte streams: chunks of any size, damage, back pressure, ends.
//! No real stream here; `stream_fd.rs` has those.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `common` | a stream that misbehaves as it is told |
//! | `random` | whatever the bytes and the chunks are |
//! | `turns` | room, sleeping, the order of frames and messages, the end |
//! | `strangers` | peers that speak something else, restart, or are drowned in noise |

mod common;
mod random;
mod turns;
mod strangers;
