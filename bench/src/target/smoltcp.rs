//! smoltcp in one process on a TAP of this namespace.

use super::tools::{ip, reachable, start_ready};
use super::{Direct, Interface, Target, Version};
use crate::Result;
use crate::peer;
use crate::peer::smoltcp::On;

const TAP: &str = "direct";

/// Makes the TAP and starts smoltcp on it.
pub(super) fn start(options: Direct) -> Result<Target> {
    let (vnet, on) = match options.on {
        On::PlainTap => ("", "plain-tap"),
        On::OffloadedTap => ("vnet_hdr", "offloaded-tap"),
        On::Passt => return Err("passt is no TAP".into()),
    };
    // One of an earlier target may be there still.
    let _ = ip(&format!("link delete {TAP}"));
    ip(&format!("tuntap add dev {TAP} mode tap {vnet}"))?;
    ip(&format!("address add 10.82.0.1/24 dev {TAP}"))?;
    ip(&format!("address add fd82::1/64 dev {TAP} nodad"))?;
    ip(&format!("link set {TAP} up"))?;
    let serve = format!("{}:{}", options.service, options.sockets);
    let buffer = options.buffer_bytes.to_string();
    let mut words = vec!["smoltcp", "--on", on, "--tap", TAP, "--serve", &serve];
    words.extend(["--v4", "10.82.0.2", "--v6", "fd82::2", "--buffer", &buffer]);
    if options.spin {
        words.push("--spin");
    }
    let server = start_ready(peer::command(&words)?)?;
    let target = Target {
        v4: "10.82.0.2".parse()?,
        v6: "fd82::2".parse()?,
        all_v4: Vec::new(),
        interface: Interface {
            pid: std::process::id(),
            name: TAP.to_owned(),
            faces_target: true,
        },
        client_in: None,
        processes: vec![("smoltcp", server)],
        admin: None,
    };
    reachable(target.address(Version::V4, options.service))?;
    reachable(target.address(Version::V6, options.service))?;
    Ok(target)
}
