//! Scenarios: two stacks against each other, or one against hand-made frames,
//! all in virtual time. `etherparse` builds the frames and `pnet_packet` reads
//! them, so that neither side of a test is the stack's own opinion.

mod addresses;
mod blind;
mod callbacks;
mod common;
mod datagrams;
mod ends;
mod faces;
mod frames;
mod handshake;
mod hostile;
mod neighbours;
mod own_sockets;
mod paths;
mod recovery;
mod settings;
#[cfg(feature = "std")]
mod threads;
mod transfer;
mod windows;
mod work;
