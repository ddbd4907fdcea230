//! Attaches shared-memory guests to Linux TAP interfaces.
//!
//! ```text
//!             ┌──────────────────── Port ────────────────────┐
//!   guest ──► │ ring ─► to_host:  filter ─ impairment ─► TAP │ ──► kernel
//!         ◄── │ ring ◄─ to_guest: impairment ◄────────── TAP │ ◄──
//!         ◄─► │ control ◄─► session: MAC, addresses, MTU     │
//!             └──────────────────────▲───────────────────────┘
//!   server: attach sockets ─► Bridge: all ports ◄─ admin: status, set
//! ```
//!
//! It moves frames and never speaks TCP for a guest. Each port is a task; where it
//! shares memory with its guest, one more task, the pump, moves the frames of both
//! directions, neither of which waits for the other. Behind a byte stream the port's
//! own task does it all. A file uses only those above it:
//!
//! | file | what it holds |
//! | --- | --- |
//! | [`error`] | what the environment can refuse, in words that say what to do |
//! | `units` | numbers with a unit, in settings |
//! | [`log_limit`] | a bound on the lines that others make the daemon log |
//! | [`counters`] | frames in, out, and dropped by reason; the ledger |
//! | [`filter`] | may this guest send this frame? A pure function |
//! | [`impair`] | loss, delay, reordering and so on, on purpose |
//! | [`limit`] | bytes and frames per second, without harm |
//! | [`netlink`] | MTU, addresses and bridges of host interfaces |
//! | [`tap`] | a TAP: opened, read and written |
//! | [`probe`] | small clients that check a guest from the host's side |
//! | [`namespace`] | a network namespace of one's own |
//! | [`child`] | child processes that die with their parent |
//! | `signals` | those that end a daemon |
//! | `policy` | what a port's task tells its pumps |
//! | `kick` | ringing an eventfd without ever waiting |
//! | [`bell`] | eventfds for tokio tasks |
//! | `pump` | the hot loops: one per direction, or one for a byte stream |
//! | `session` | the control machine, and what follows from its events |
//! | [`store`] | what outlives the process |
//! | [`port`] | one guest: its TAP, session and pumps |
//! | [`workers`] | threads that ports run on |
//! | [`allowance`] | memory that guests may have the daemon use |
//! | [`bridge`] | all ports; what a monitor embeds |
//! | [`plan`] | which guest gets which addresses |
//! | [`sandbox`] | the rights that the daemon gives up after its start |
//! | [`server`] | the attach sockets and serial lines |
//! | [`admin`] | the admin socket, both ends |
//! | [`settings`] | flags and configuration file, checked |
//! | [`daemon`] | sockets, checks at the start, a clean end |
//! | [`keeper`] | keeps what outlives a daemon's process |
//! | [`cli`] | the `host-bridge` command |
//!
//! A monitor that owns the guest's memory needs this much:
//!
//! ```no_run
//! use host_bridge::bell::Doorbells;
//! use host_bridge::bridge::{AttachedPort, Bridge};
//! use host_bridge::port::PortConfig;
//! use shm_link::control::{NetworkConfig, Prefixed};
//! use shm_link::region::Region;
//!
//! async fn attach(
//!     bridge: &Bridge,
//!     region: Region,
//!     doorbells: Doorbells,
//! ) -> Result<AttachedPort, Box<dyn std::error::Error>> {
//!     let mut network = NetworkConfig::new([0x02, 0, 0, 0, 0, 1], 1500);
//!     let _ = network.v4.push(Prefixed::new("10.88.0.2".parse()?, 30));
//!     let mut config = PortConfig::new("vm0", network);
//!     config.host_addresses.push("10.88.0.1/30".parse()?);
//!     Ok(bridge.attach(region, doorbells, config).await?)
//! }
//! ```
//!
//! # Trust
//! A guest is malicious by definition. Of each frame the first 256 bytes are
//! copied once; the copy is judged, and the kernel is given the copy and, behind
//! it, the rest of the frame, which nobody judged. Whatever breaks the layout or
//! the control protocol ends that guest's port. Who may open the attach socket
//! may have a guest here, and who may open the admin socket may change any port:
//! both ask each client for its user, and take the daemon's own and root; the
//! settings can name more for the attach sockets.
//!
//! # Limits
//! One frame per system call, of up to 64 KB where segmentation was agreed on. Up to
//! 4,096 guests at one attach socket.
//! The library gives up no rights; `host-bridge run` does ([`sandbox`]).
//!
//! `docs/STACK.md` in the repository has the theory of operation.

pub mod error;

pub mod log_limit;
mod units;

pub mod counters;

pub mod filter;
pub mod impair;
pub mod limit;

pub mod netlink;
pub mod tap;

pub mod probe;

pub mod namespace;

pub mod child;
mod signals;
mod policy;
mod kick;
pub mod bell;
mod pump;
mod session;
pub mod store;
pub mod port;
pub mod workers;
pub mod allowance;
pub mod bridge;
pub mod plan;
pub mod sandbox;
pub mod server;

pub mod admin;
pub mod settings;
pub mod daemon;
pub mod keeper;
pub mod cli;
