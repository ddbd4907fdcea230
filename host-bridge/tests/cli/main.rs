//! The `host-bridge` program as its users meet it: started as a process, in a
//! private network, with a raw guest and real TAPs.

#[path = "../attach/common.rs"]
#[allow(dead_code, reason = "the attach tests use the rest")]
mod common;

mod admin;
mod daemon;
mod failures;
mod floods;
#[path = "../stream/guest.rs"]
#[allow(dead_code, reason = "the stream tests use the rest")]
mod guest;
mod hostile;
mod keeper;
mod limits;
mod refusals;
mod rights;
mod support;
