//! Administration of a running daemon over a unix socket.
//!
//! One JSON object per line in each direction; every line is answered by one
//! line, in order, whatever was wrong with it:
//!
//! ```text
//! {"v":1,"request":{"status":{}}}
//! {"v":1,"response":{"status":{"ports":[...]}}}
//! {"v":1,"request":{"change":{"port":"guest0","change":{"mtu":1300}}}}
//! {"v":1,"response":{"changed":{"port":{...}}}}
//! {"v":1,"request":{"status":{"port":"nobody"}}}
//! {"v":1,"response":{"error":{"why":"there is no port \"nobody\""}}}
//! ```
//!
//! | file | what |
//! | --- | --- |
//! | `protocol.rs` | the lines, as types |
//! | `server.rs` | the daemon's end |
//! | `client.rs` | the command line's end |

pub mod protocol;
mod server;
mod client;

pub use self::client::{AdminClient, AdminError};
pub use self::server::AdminServer;
