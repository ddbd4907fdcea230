//! The kernel in a namespace of its own: over veth, or behind two TAPs that a
//! process relays.

use super::tools::{ip, ip_in, reachable, start_ready};
use super::{Interface, Target, Version};
use crate::Result;
use crate::peer;
use crate::service::Service;

/// A kernel server in a namespace of its own.
pub(super) fn server() -> Result<(host_bridge::child::Helper, u32)> {
    let mut server = start_ready(peer::command(&["kernel", "--private"])?)?;
    let pid = server.child_mut().id();
    Ok((server, pid))
}

/// Joins two namespaces by a pair of interfaces.
pub(super) fn over_veth() -> Result<Target> {
    let (server, pid) = server()?;
    let _ = ip("link delete veth-here");
    ip("link add veth-here type veth peer name veth-there")?;
    ip(&format!("link set veth-there netns {pid}"))?;
    join(pid, "veth-here", "veth-there", 81)?;
    target(vec![("server", server)], "veth-here", 81)
}

/// Joins two namespaces by two TAPs and a process that relays.
pub(super) fn behind_relay(offloads: bool, spin: bool) -> Result<Target> {
    let (server, pid) = server()?;
    let vnet = if offloads { "vnet_hdr" } else { "" };
    for tap in ["relay-here", "relay-there"] {
        let _ = ip(&format!("link delete {tap}"));
        ip(&format!("tuntap add dev {tap} mode tap {vnet}"))?;
    }
    let mut words = vec!["relay", "relay-here", "relay-there"];
    words.extend(offloads.then_some("--offloads"));
    words.extend(spin.then_some("--spin"));
    let relay = start_ready(peer::command(&words)?)?;
    ip(&format!("link set relay-there netns {pid}"))?;
    join(pid, "relay-here", "relay-there", 83)?;
    let processes = vec![("relay", relay), ("server", server)];
    target(processes, "relay-here", 83)
}

/// Gives both ends addresses.
fn join(pid: u32, here: &str, there: &str, net: u8) -> Result<()> {
    ip(&format!("address add 10.{net}.0.1/24 dev {here}"))?;
    ip(&format!("address add fd{net}::1/64 dev {here} nodad"))?;
    ip(&format!("link set {here} up"))?;
    ip_in(pid, &format!("address add 10.{net}.0.2/24 dev {there}"))?;
    ip_in(pid, &format!("address add fd{net}::2/64 dev {there} nodad"))?;
    ip_in(pid, &format!("link set {there} up"))
}

fn target(
    processes: Vec<(&'static str, host_bridge::child::Helper)>,
    here: &str,
    net: u8,
) -> Result<Target> {
    let target = Target {
        v4: format!("10.{net}.0.2").parse()?,
        v6: format!("fd{net}::2").parse()?,
        all_v4: Vec::new(),
        interface: Interface {
            pid: std::process::id(),
            name: here.to_owned(),
            faces_target: true,
        },
        client_in: None,
        processes,
        admin: None,
    };
    reachable(target.address(Version::V4, Service::Echo))?;
    reachable(target.address(Version::V6, Service::Echo))?;
    Ok(target)
}
