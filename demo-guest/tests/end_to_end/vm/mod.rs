//! The guest that is a machine: the image of `vm-guest`, booted by a stock QEMU
//! under TCG, which runs everywhere.

mod machine;
mod many;
mod restarts;
mod whole;
