//! The stack shared between tasks and threads.
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`platform`] | what the faces need from the kernel or process they run in |
//! | [`asynchronous`] | [`Network`](asynchronous::Network), the driver, and futures |
//! | [`blocking`] | the same in the manner of `std::net` |
//!
//! One lock stands around the stack. A driver (a thread, a task, an interrupt's
//! bottom half) polls it and sleeps on the link's doorbell; whoever writes to a
//! stream sends the segments itself, under the lock, without waking the driver,
//! unless the driver has to wake up earlier than it meant to.

pub mod asynchronous;
pub mod blocking;
pub mod platform;
