//! Ours: `host-bridge run` and one `demo-guest`, each a process of its own, and a
//! TAP in this namespace.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use host_bridge::admin::AdminClient;
use host_bridge::child::Helper;
use host_bridge::port::{PortState, PortStatus};

use super::tools::{reachable, until_ok};
use super::{Interface, Offloads, Ours, Target, Version};
use crate::Result;
use crate::service::Service;

/// Abstract sockets: they live in this network namespace and go with it.
pub(crate) const SOCKET: &str = "@bench";
pub(crate) const ADMIN: &str = "@bench-admin";

/// Starts the daemon and one guest.
pub(super) fn start(options: Ours) -> Result<Target> {
    let mtu = options.mtu.to_string();
    let mut words = vec!["--mtu", &mtu, "--max-guests", "64"];
    if options.offloads == Offloads::None {
        words.push("--no-offloads");
    }
    if let Some(how) = options.impaired {
        words.extend(["--impair-to-host", how, "--impair-to-guest", how]);
    }
    let daemon = daemon(&words)?;
    let admin = admin()?;
    until_ok("the daemon", || admin.status(None))?;
    let mut processes = vec![("daemon", daemon)];
    for _ in 0..options.guests {
        processes.push(("guest", guest("bench", options.offloads)?));
    }
    let ports = until_ok("the guests", || running(&admin, options.guests))?;
    let v4 = |port: &PortStatus| address(port, IpAddr::is_ipv4);
    let first = ports.first().ok_or("no guest")?;
    let target = Target {
        v4: v4(first)?,
        v6: address(first, IpAddr::is_ipv6)?,
        all_v4: ports.iter().map(v4).collect::<Result<_>>()?,
        interface: Interface {
            pid: std::process::id(),
            name: first.tap.clone(),
            faces_target: true,
        },
        client_in: None,
        processes,
        admin: Some(admin),
    };
    for guest in &target.all_v4 {
        reachable(SocketAddr::new(*guest, Service::Echo.port()))?;
    }
    reachable(target.address(Version::V6, Service::Echo))?;
    Ok(target)
}

/// The first address of a guest that is wanted.
pub(super) fn address(port: &PortStatus, wanted: fn(&IpAddr) -> bool) -> Result<IpAddr> {
    let all = port.addresses.iter();
    let mut parsed = all.filter_map(|text| text.split('/').next()?.parse().ok());
    Ok(parsed.find(wanted).ok_or("the guest lacks an address")?)
}

/// Starts a daemon with these flags.
pub(super) fn daemon(words: &[&str]) -> Result<Helper> {
    let mut command = Command::new(program("host-bridge")?);
    command.args(["run", "--socket", SOCKET, "--admin", ADMIN]);
    command.args(words);
    spawn(command)
}

/// Starts a daemon with these flags and nothing else.
pub(crate) fn daemon_with(words: &[&str]) -> Result<Helper> {
    let mut command = Command::new(program("host-bridge")?);
    command.arg("run").args(words);
    spawn(command)
}

/// Starts a guest that waits for the daemon to come back.
pub(crate) fn lasting_guest(place: &[&str], name: &str) -> Result<Helper> {
    let mut command = Command::new(program("demo-guest")?);
    command.args(place).args(["--name", name]);
    // It warns of every restart.
    command.env("RUST_LOG", "error");
    spawn(command)
}

/// Starts a guest.
pub(super) fn guest(name: &str, offloads: Offloads) -> Result<Helper> {
    let mut command = Command::new(program("demo-guest")?);
    command.args(["--socket", SOCKET, "--once", "--name", name]);
    command.args((offloads == Offloads::NotGuest).then_some("--no-offloads"));
    spawn(command)
}

/// Starts a guest that obeys lines on its standard input, and answers on its output.
pub(super) fn obedient_guest(name: &str) -> Result<Helper> {
    let mut command = Command::new(program("demo-guest")?);
    command.args(["--socket", SOCKET, "--once", "--name", name, "--commands"]);
    spawn_with(command, Stdio::piped)
}

/// The daemon's administrator.
pub(crate) fn admin() -> Result<AdminClient> {
    Ok(AdminClient::new(ADMIN.parse()?))
}

fn spawn(command: Command) -> Result<Helper> {
    spawn_with(command, Stdio::null)
}

fn spawn_with(mut command: Command, stdio: fn() -> Stdio) -> Result<Helper> {
    command.stdin(stdio()).stdout(stdio());
    let chosen = command.get_envs().any(|(name, _)| name == "RUST_LOG");
    if !chosen && std::env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", "warn");
    }
    let words = format!("{command:?}");
    Ok(Helper::spawn(command).map_err(|error| format!("{words}: {error}"))?)
}

/// The program beside this one, or the one that the environment names.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let variable = name.to_uppercase().replace('-', "_");
    let path = match std::env::var_os(&variable) {
        Some(path) => path.into(),
        None => std::env::current_exe()?.with_file_name(name),
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(format!(
        "there is no {}: build it with `cargo build --release --bin {name}`, or set {variable}",
        path.display()
    )
    .into())
}

/// All ports, if so many run.
pub(super) fn running(admin: &AdminClient, guests: u16) -> Result<Vec<PortStatus>> {
    let mut ports = admin.status(None)?;
    ports.retain(|port| port.state == PortState::Running);
    if ports.len() == usize::from(guests) {
        return Ok(ports);
    }
    Err(format!("{} of {guests} guests run", ports.len()).into())
}
