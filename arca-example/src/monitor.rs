//! The monitor's side: `host-bridge` inside the monitor's own tokio runtime.

use std::error::Error;

use host_bridge::bell::Doorbells;
use host_bridge::bridge::{AttachedPort, Bridge};
use host_bridge::port::PortConfig;
use shm_link::control::{NetworkConfig, Prefixed};
use shm_link::region::Region;

/// Gives the guest a network: 10.88.0.2/30, with this host at 10.88.0.1. `base`
/// is where the memory shared with the guest begins in the monitor; `offset` and
/// `len` are what the guest is told. Of `doorbells`, `rung_by_guest` is
/// registered as an ioeventfd and `ring_guest` as an irqfd.
///
/// # Errors
/// A misaligned piece, or what the system says to a new TAP.
///
/// # Safety
/// The piece stays mapped until the port is closed, and the monitor makes no Rust
/// reference into it.
pub async unsafe fn attach_network(
    bridge: &Bridge,
    base: *mut u8,
    offset: usize,
    len: usize,
    doorbells: Doorbells,
) -> Result<AttachedPort, Box<dyn Error>> {
    // SAFETY: promised by the caller.
    let region = unsafe { Region::from_raw(base.wrapping_add(offset), len) }?;
    let mut network = NetworkConfig::new([0x02, 0x53, 0x4c, 0x01, 0x00, 0x00], 1500);
    let _ = network.v4.push(Prefixed::new("10.88.0.2".parse()?, 30));
    network.gateway4 = Some("10.88.0.1".parse()?);
    let mut config = PortConfig::new("arca0", network);
    config.host_addresses.push("10.88.0.1/30".parse()?);
    Ok(bridge.attach(region, doorbells, config).await?)
}
