//! The guest that is a machine: the image of `vm-guest`, booted by a stock QEMU
//! under TCG, which runs everywhere, and under KVM where that executes it.

mod kvm;
mod machine;
mod many;
mod moments;
mod restarts;
mod whole;
