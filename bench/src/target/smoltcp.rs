//! smoltcp in one process on a TAP of this namespace, or in several, each on its own.

use std::net::{IpAddr, SocketAddr};

use host_bridge::child::Helper;

use super::tools::{ip, reachable, start_ready};
use super::{Direct, Interface, Target, Version};
use crate::Result;
use crate::peer;
use crate::peer::smoltcp::On;

const TAP: &str = "direct";

/// Makes the TAPs and starts smoltcp on each.
pub(super) fn start(options: Direct) -> Result<Target> {
    let many = 0..options.processes;
    let (processes, all_v4): (Vec<_>, Vec<_>) = many
        .map(|number| one(options, number))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .unzip();
    let target = Target {
        v4: *all_v4.first().ok_or("no process")?,
        v6: "fd82::2".parse()?,
        all_v4,
        interface: Interface {
            pid: std::process::id(),
            name: format!("{TAP}0"),
            faces_target: true,
        },
        client_in: None,
        processes,
        admin: None,
    };
    for one in &target.all_v4 {
        reachable(SocketAddr::new(*one, options.service.port()))?;
    }
    reachable(target.address(Version::V6, options.service))?;
    Ok(target)
}

/// One of them.
fn one(options: Direct, number: u8) -> Result<((&'static str, Helper), IpAddr)> {
    let (vnet, on) = match options.on {
        On::PlainTap => ("", "plain-tap"),
        On::OffloadedTap => ("vnet_hdr", "offloaded-tap"),
        On::Passt => return Err("passt is no TAP".into()),
    };
    let tap = format!("{TAP}{number}");
    let (v4, v6) = (format!("10.82.{number}"), format!("fd82:{number:x}"));
    let v6 = if number == 0 { "fd82" } else { &v6 };
    // One of an earlier target may be there still.
    let _ = ip(&format!("link delete {tap}"));
    ip(&format!("tuntap add dev {tap} mode tap {vnet}"))?;
    ip(&format!("address add {v4}.1/24 dev {tap}"))?;
    ip(&format!("address add {v6}::1/64 dev {tap} nodad"))?;
    ip(&format!("link set {tap} up"))?;
    let serve = format!("{}:{}", options.service, options.sockets);
    let buffer = options.buffer_bytes.to_string();
    let (v4, v6) = (format!("{v4}.2"), format!("{v6}::2"));
    let mut words = vec!["smoltcp", "--on", on, "--tap", &tap, "--serve", &serve];
    words.extend(["--v4", &v4, "--v6", &v6, "--buffer", &buffer]);
    if options.spin {
        words.push("--spin");
    }
    let server = start_ready(peer::command(&words)?)?;
    Ok((("smoltcp", server), v4.parse()?))
}
