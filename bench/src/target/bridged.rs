//! Two machines on one Linux bridge of this namespace: the first serves, the second
//! sends. In between are the bridge and two ports.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::tools::{ip, ip_in, reachable, start_ready, until_ok};
use super::{Interface, Offloads, Target, Version, kernel, ours};
use crate::Result;
use crate::client::bulk::Moved;
use crate::client::inside::{self, Does};
use crate::peer;
use crate::service::Service;

/// A new bridge with the address .1 of its network. Each target has its own: both run
/// at the same time.
fn bridge(name: &str, net: u8) -> Result<()> {
    let _ = ip(&format!("link delete {name}"));
    ip(&format!("link add {name} type bridge"))?;
    ip(&format!("address add 10.{net}.0.1/24 dev {name}"))?;
    ip(&format!("link set {name} up"))
}

/// Two guests of one daemon.
pub(super) fn ours() -> Result<Target> {
    bridge("br-guests", 84)?;
    let daemon = ours::daemon(&["--bridge", "br-guests", "--net4", "10.84.0.0/24"])?;
    let admin = ours::admin()?;
    until_ok("the daemon", || admin.status(None))?;
    let server = ours::guest("server", Offloads::All)?;
    let ports = until_ok("the first guest", || ours::running(&admin, 1))?;
    let first = ports.first().ok_or("no guest")?;
    let sender = ours::obedient_guest("sender")?;
    until_ok("the second guest", || ours::running(&admin, 2))?;
    target(
        ours::address(first, IpAddr::is_ipv4)?,
        &first.tap,
        vec![("daemon", daemon), ("server", server), ("sender", sender)],
        None,
    )
}

/// Two namespaces, each with a port of veth.
pub(super) fn veth() -> Result<Target> {
    bridge("br-veth", 85)?;
    let (server, pid) = kernel::server()?;
    let mut holder = start_ready(peer::command(&["hold"])?)?;
    let inside = holder.child_mut().id();
    for (number, pid) in [(2, pid), (3, inside)] {
        let here = format!("port{number}");
        let _ = ip(&format!("link delete {here}"));
        ip(&format!("link add {here} type veth peer name there"))?;
        ip(&format!("link set there netns {pid}"))?;
        ip(&format!("link set {here} master br-veth up"))?;
        ip_in(pid, &format!("address add 10.85.0.{number}/24 dev there"))?;
        ip_in(pid, "link set there up")?;
    }
    target(
        "10.85.0.2".parse()?,
        "port2",
        vec![("server", server), ("holder", holder)],
        Some(inside),
    )
}

fn target(
    v4: IpAddr,
    interface: &str,
    processes: Vec<(&'static str, host_bridge::child::Helper)>,
    client_in: Option<u32>,
) -> Result<Target> {
    let target = Target {
        v4,
        // Nobody asks for it.
        v6: v4,
        all_v4: Vec::new(),
        interface: Interface {
            pid: std::process::id(),
            name: interface.to_owned(),
            faces_target: true,
        },
        client_in,
        processes,
        admin: None,
    };
    reachable(target.address(Version::V4, Service::Count))?;
    Ok(target)
}

impl Target {
    /// Lets the second machine on the bridge send to the first.
    ///
    /// # Errors
    /// If there is none, or it fails.
    pub fn second_sends(&mut self, time: Duration) -> Result<Moved> {
        let to = self.address(Version::V4, Service::Count);
        if let Some(pid) = self.client_in {
            return inside::bulk(pid, Does::Send, to, 1, time);
        }
        let found = self
            .processes
            .iter_mut()
            .find(|(role, _)| *role == "sender");
        let (_, sender) = found.ok_or("nobody to send")?;
        let child = sender.child_mut();
        let (Some(input), Some(output)) = (&mut child.stdin, &mut child.stdout) else {
            return Err("the second guest has no pipes".into());
        };
        writeln!(input, "flood {to} {}", time.as_millis())?;
        let mut line = String::new();
        // One line is all that it says now, so nothing is lost in the buffer.
        BufReader::new(output).read_line(&mut line)?;
        parse(&line, to).ok_or_else(|| format!("the second guest says {line:?}").into())
    }
}

/// Reads `ok COMMAND: N bytes in N us`.
fn parse(line: &str, to: SocketAddr) -> Option<Moved> {
    let rest = line.strip_prefix(&format!("ok flood {to} "))?;
    let (_, figures) = rest.split_once(": ")?;
    let (bytes, time) = figures.trim().split_once(" bytes in ")?;
    Some(Moved {
        bytes: bytes.parse().ok()?,
        elapsed: Duration::from_micros(time.strip_suffix(" us")?.parse().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_answers_is_read() {
        let to = "10.84.0.2:5003".parse().unwrap();
        let moved = parse("ok flood 10.84.0.2:5003 300: 1000 bytes in 20 us\n", to).unwrap();
        assert_eq!(
            (moved.bytes, moved.elapsed),
            (1000, Duration::from_micros(20))
        );
        assert!(parse("failed flood 10.84.0.2:5003 300: connecting\n", to).is_none());
    }
}
