//! What stands behind a process that maps connections to sockets of the host:
//! passt, pasta, slirp4netns, as Debian packages them.
//!
//! pasta and slirp4netns carry a kernel in a namespace of its own. Their way in
//! stalled here where pasta forwards a port, so the guest connects to the host,
//! as containers mostly do, and the bytes go either way.

use std::fs;
use std::io::ErrorKind;
use std::process::{Command, Stdio};

use host_bridge::child::Helper;

use super::tools::{ip, reachable, start_ready, until_ok};
use super::{Interface, Target, Version};
use crate::Result;
use crate::client::inside;
use crate::measure::NOT_INSTALLED;
use crate::peer;
use crate::service::Service;

/// What the three take for the way out, and the guest's address from.
const HOST: &str = "10.99.0.1";
const GATEWAY: &str = "10.99.0.254";

/// An interface with a default route, which passt and pasta want to see.
fn uplink() -> Result<()> {
    let _ = ip("link delete up-here");
    ip("link add up-here type veth peer name up-there")?;
    ip("link set up-there up")?;
    ip(&format!("address add {HOST}/24 dev up-here"))?;
    ip("link set up-here up")?;
    ip(&format!("route add default via {GATEWAY}"))?;
    // They give up their rights before they bind.
    Ok(fs::write(
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
        "0",
    )?)
}

/// smoltcp in one process on passt's socket; the client connects to the host.
pub(super) fn passt(service: Service) -> Result<Target> {
    uplink()?;
    let serve = format!("{service}:16");
    let mut words = vec!["smoltcp", "--on", "passt", "--serve", &serve];
    words.extend(["--v4", HOST, "--v6", "fd99::2", "--gateway", GATEWAY]);
    let server = start_ready(peer::command(&words)?)?;
    let target = Target {
        v4: HOST.parse()?,
        v6: "fd99::2".parse()?,
        all_v4: Vec::new(),
        // The client's end of its connection to passt.
        interface: Interface {
            pid: std::process::id(),
            name: "lo".to_owned(),
            faces_target: true,
        },
        client_in: None,
        processes: vec![("smoltcp", server)],
        admin: None,
    };
    reachable(target.address(Version::V4, service))?;
    Ok(target)
}

/// A namespace behind pasta.
pub(super) fn pasta(mtu: u16) -> Result<Target> {
    installed("pasta")?;
    uplink()?;
    let server = start_ready(peer::command(&["kernel"])?)?;
    // As root Debian's pasta cannot set up its namespace, so it runs as nobody,
    // for whom the device must be there. It ends when its command does, and that
    // when its input ends, which it does with this process.
    let script = format!(
        "mount -t tmpfs tmpfs /dev/net && mknod -m 666 /dev/net/tun c 10 200 && \
         exec setpriv --reuid=65534 --regid=65534 --clear-groups --pdeathsig KILL \
         pasta -f -q --config-net -m {mtu} -- sh -c 'read line'"
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]);
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    command.stderr(Stdio::null());
    let mut pasta = Helper::spawn(command)?;
    let pid = pasta.child_mut().id();
    let inside = until_ok("pasta's namespace", || {
        shell_of(pid).ok_or("it has no command yet")
    })?;
    kernel_target(
        GATEWAY,
        inside,
        "up-here",
        vec![("pasta", pasta), ("server", server)],
    )
}

/// A namespace behind slirp4netns.
pub(super) fn slirp4netns(mtu: u16) -> Result<Target> {
    installed("slirp4netns")?;
    let server = start_ready(peer::command(&["kernel"])?)?;
    let mut holder = start_ready(peer::command(&["hold"])?)?;
    let inside = holder.child_mut().id();
    let mut command = Command::new("slirp4netns");
    command.args(["-c", &format!("--mtu={mtu}"), &inside.to_string(), "tap0"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(Stdio::null());
    let slirp = Helper::spawn(command)?;
    let processes = vec![
        ("slirp4netns", slirp),
        ("holder", holder),
        ("server", server),
    ];
    kernel_target("10.0.2.2", inside, "tap0", processes)
}

fn kernel_target(
    host: &str,
    inside: u32,
    interface: &str,
    processes: Vec<(&'static str, Helper)>,
) -> Result<Target> {
    let target = Target {
        v4: host.parse()?,
        v6: "fd99::fe".parse()?,
        all_v4: Vec::new(),
        interface: Interface {
            pid: inside,
            name: interface.to_owned(),
            faces_target: false,
        },
        client_in: Some(inside),
        processes,
        admin: None,
    };
    let server = target.address(Version::V4, Service::Count);
    until_ok("the way to the host", || inside::connect(inside, server))?;
    Ok(target)
}

fn installed(name: &str) -> Result<()> {
    match Command::new(name).arg("--version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Err(format!("{NOT_INSTALLED}: {name}").into())
        }
        _ => Ok(()),
    }
}

/// The shell that a process started in another network namespace.
fn shell_of(pid: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let is_it = |child: &&str| {
        let name = fs::read_to_string(format!("/proc/{child}/comm"));
        name.is_ok_and(|name| name.trim() == "sh") && namespace(child) != namespace("self")
    };
    children.split_whitespace().find(is_it)?.parse().ok()
}
