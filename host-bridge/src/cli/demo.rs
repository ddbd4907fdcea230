//! `host-bridge demo`: the main job, shown and checked.
//!
//! The demo enters a network namespace of its own, starts a daemon and a guest
//! there as two processes joined by shared memory and eventfds only, and is
//! itself the kernel's client: it pings, fetches, sends and receives through the
//! kernel's own TCP/IP. Everything it makes lives in the namespace (its sockets
//! are abstract) and ends with it, however it ends.

use std::env;
use std::error::Error;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::Failure;
use crate::admin::AdminClient;
use crate::child::Helper;
use crate::namespace::enter_private_network;
use crate::port::{PortChange, PortState, PortStatus};
use crate::probe::bulk::{BulkReport, SINK_PORT, SOURCE_PORT, bulk_receive, bulk_send};
use crate::probe::http::http_get;
use crate::probe::ping::ping;
use crate::probe::udp::{ECHO_PORT, sizes_for, udp_echo};
use ipnet::IpNet;

const SOCKET: &str = "@demo";
const ADMIN: &str = "@demo-admin";
const GUEST: &str = "demo-guest";
/// How long anything but a bulk transfer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one bulk transfer may take.
const BULK_PATIENCE: Duration = Duration::from_secs(120);
const HTTP_PORT: u16 = 80;
const PINGS: u32 = 10;

/// Flags of `demo`.
#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// The guest's program [default: demo-guest, beside this one].
    #[arg(long, value_name = "FILE")]
    guest: Option<PathBuf>,

    /// Megabytes of each bulk transfer, 1 to 10000.
    #[arg(long, value_name = "MB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    megabytes: u64,

    /// Longest packet on the link.
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u16).range(1280..))]
    mtu: u16,

    /// Afterwards open a shell in the private network, to try things by hand.
    #[arg(long)]
    shell: bool,
}

pub(super) fn main(args: &DemoArgs) -> Result<(), Failure> {
    let guest = find_guest(args.guest.as_deref())?;
    enter_private_network()?;
    println!(
        "A guest with its own TCP/IP stack, a TAP, and the kernel, in a private network namespace.\n"
    );
    let mut daemon = start_daemon(args.mtu)?;
    let admin = AdminClient::new(ADMIN.parse()?);
    wait_for("the daemon", &mut [&mut daemon], || {
        admin.status(None).is_ok()
    })?;
    let mut guest = start_guest(&guest)?;
    let running =
        || matches!(admin.status(None).as_deref(), Ok([port]) if port.state == PortState::Running);
    wait_for(
        "the guest's configuration",
        &mut [&mut daemon, &mut guest],
        running,
    )?;
    let port = the_port(&admin)?;
    introduce(&port, &mut daemon, &mut guest);

    let mut report = Report::default();
    check(&mut report, &admin, &port, args)?;
    report.total();
    if args.shell {
        shell(&port)?;
    }
    // The guest first, so that the daemon sees it go.
    guest.stop(PATIENCE)?;
    daemon.stop(PATIENCE)?;
    match report.failed {
        0 => Ok(()),
        failed => Err(Failure::from(format!(
            "{failed} of {} checks failed",
            report.done
        ))),
    }
}

/// Everything that must hold.
fn check(
    report: &mut Report,
    admin: &AdminClient,
    port: &PortStatus,
    args: &DemoArgs,
) -> Result<(), Failure> {
    let addresses = guest_addresses(port)?;
    let bytes = args.megabytes * 1_000_000;
    for &address in &addresses {
        report.line(
            format!("ping {address}"),
            ping(address, 0, PINGS, PATIENCE),
            |pings| {
                let median = pings.rtt.as_ref().map_or(Duration::ZERO, |rtt| rtt.median);
                (
                    pings.received == pings.sent,
                    format!(
                        "{} of {} answered, median {median:.0?}",
                        pings.received, pings.sent
                    ),
                )
            },
        );
    }
    for &address in &addresses {
        let target = SocketAddr::new(address, HTTP_PORT);
        report.line(
            format!("http://{target}/"),
            http_get(target, "/", PATIENCE),
            |page| {
                (
                    page.status == 200 && !page.body.is_empty(),
                    format!("status {}, {} bytes", page.status, page.body.len()),
                )
            },
        );
    }
    for (seed, &address) in addresses.iter().enumerate() {
        let version = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let sink = SocketAddr::new(address, SINK_PORT);
        let sent = bulk_send(sink, bytes, seed as u64, BULK_PATIENCE);
        report.line(
            format!("{} MB to the guest, {version}", args.megabytes),
            sent,
            |bulk| rate(bulk, bytes),
        );
        let source = SocketAddr::new(address, SOURCE_PORT);
        let received = bulk_receive(source, bytes, seed as u64, BULK_PATIENCE);
        report.line(
            format!("{} MB from the guest, {version}", args.megabytes),
            received,
            |bulk| rate(bulk, bytes),
        );
    }
    for &address in &addresses {
        let target = SocketAddr::new(address, ECHO_PORT);
        let sizes = sizes_for(target, usize::from(args.mtu));
        let largest = sizes.iter().max().copied().unwrap_or_default();
        report.line(
            format!("datagrams to {address}"),
            udp_echo(target, &sizes, PATIENCE),
            |echo| {
                let words = format!(
                    "{} of {} echoed, up to {largest} bytes",
                    echo.echoed,
                    sizes.len()
                );
                (echo.missing.is_empty() && echo.corrupted == 0, words)
            },
        );
    }
    let smaller = args.mtu - (args.mtu - 1280) / 2;
    let change = PortChange {
        mtu: Some(smaller),
        ..PortChange::default()
    };
    report.line(
        format!("MTU to {smaller} while running"),
        admin.change(&port.name, change),
        |port| {
            (
                port.mtu == smaller,
                format!("acknowledged by the guest, configuration {}", port.serial),
            )
        },
    );
    let counters = the_port(admin)?.counters;
    let ledger = counters
        .guest_to_host
        .check_ledger()
        .and(counters.host_to_guest.check_ledger());
    report.line("every frame accounted for".to_owned(), ledger, |()| {
        let (from, to) = (&counters.guest_to_host, &counters.host_to_guest);
        let dropped = from.dropped() + to.dropped();
        (
            true,
            format!(
                "{} from the guest, {} to it, {dropped} dropped",
                from.frames_in, to.frames_in
            ),
        )
    });
    Ok(())
}

fn rate(bulk: BulkReport, wanted: u64) -> (bool, String) {
    let verdict = if bulk.checksum_ok {
        "checksum right"
    } else {
        "CHECKSUM WRONG"
    };
    let gbit = bulk.bits_per_second() / 1e9;
    (
        bulk.checksum_ok && bulk.bytes == wanted,
        format!("{gbit:.2} Gbit/s, {verdict}"),
    )
}

/// The lines of the report.
#[derive(Default)]
struct Report {
    done: usize,
    failed: usize,
}

impl Report {
    /// Prints one line; an error is a failed check.
    fn line<T, E: Display>(
        &mut self,
        what: String,
        result: Result<T, E>,
        judge: impl FnOnce(T) -> (bool, String),
    ) {
        let (held, words) = match result {
            Ok(value) => judge(value),
            Err(error) => (false, error.to_string()),
        };
        self.done += 1;
        self.failed += usize::from(!held);
        println!(
            "  {:<6}{what:<32} {words}",
            if held { "ok" } else { "FAILED" }
        );
    }

    fn total(&self) {
        match self.failed {
            0 => println!("\nAll {} checks held.", self.done),
            failed => println!("\n{failed} of {} checks FAILED.", self.done),
        }
    }
}

/// The guest's program: the one asked for, or the one beside this program.
fn find_guest(asked: Option<&Path>) -> Result<PathBuf, Failure> {
    let path = match asked {
        Some(path) => path.to_owned(),
        None => env::current_exe()?.with_file_name(GUEST),
    };
    if path.is_file() {
        return Ok(path);
    }
    Err(Failure::from(format!(
        "there is no guest at {}: build it with `cargo build --release -p {GUEST}`, or name it with --guest",
        path.display()
    )))
}

fn start_daemon(mtu: u16) -> Result<Helper, Box<dyn Error>> {
    let mut command = Command::new(env::current_exe()?);
    command.args([
        "run",
        "--socket",
        SOCKET,
        "--admin",
        ADMIN,
        "--max-guests",
        "4",
    ]);
    command.args([
        "--net4",
        "10.77.0.0/24",
        "--net6",
        "fd77::/64",
        "--mtu",
        &mtu.to_string(),
    ]);
    quiet(&mut command);
    Ok(Helper::spawn(command).map_err(|error| format!("starting the daemon: {error}"))?)
}

fn start_guest(program: &Path) -> Result<Helper, Box<dyn Error>> {
    let mut command = Command::new(program);
    command.args(["--socket", SOCKET, "--name", "demo", "--once"]);
    quiet(&mut command);
    Ok(Helper::spawn(command)
        .map_err(|error| format!("starting {}: {error}", program.display()))?)
}

/// Only warnings of a child are worth a line in the report.
fn quiet(command: &mut Command) {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    if env::var_os("RUST_LOG").is_none() {
        command.env("RUST_LOG", "warn");
    }
}

/// Waits until `done`, or until one of the children it depends on has ended.
fn wait_for(
    what: &str,
    children: &mut [&mut Helper],
    done: impl Fn() -> bool,
) -> Result<(), Box<dyn Error>> {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        for child in children.iter_mut() {
            if let Some(status) = child.wait_timeout(Duration::ZERO)? {
                return Err(format!(
                    "waiting for {what}: a process ended ({status}); its words are above"
                )
                .into());
            }
        }
        if Instant::now() > deadline {
            return Err(format!(
                "{what} did not come within {PATIENCE:?}; RUST_LOG=debug shows more"
            )
            .into());
        }
        sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn the_port(admin: &AdminClient) -> Result<PortStatus, Box<dyn Error>> {
    let port = admin.status(None)?.into_iter().next();
    Ok(port.ok_or("the guest's port is gone; RUST_LOG=debug shows more")?)
}

fn guest_addresses(port: &PortStatus) -> Result<Vec<IpAddr>, Box<dyn Error>> {
    let nets = port.addresses.iter().map(|text| text.parse::<IpNet>());
    Ok(nets
        .map(|net| net.map(|net| net.addr()))
        .collect::<Result<_, _>>()?)
}

fn introduce(port: &PortStatus, daemon: &mut Helper, guest: &mut Helper) {
    println!(
        "  bridge  process {}, TAP {}",
        daemon.child_mut().id(),
        port.tap
    );
    println!(
        "  guest   process {}, \"{}\", MAC {}",
        guest.child_mut().id(),
        port.guest,
        port.mac
    );
    println!(
        "  agreed  {}, MTU {}\n",
        port.addresses.join(", "),
        port.mtu
    );
}

/// Lets the user look around; nothing here is checked.
fn shell(port: &PortStatus) -> Result<(), Box<dyn Error>> {
    let shell = env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    println!(
        "\nA shell in the private network; the guest is at {}. Exit it to end the demo.",
        port.addresses.join(" and ")
    );
    let mut shell = Helper::spawn(Command::new(shell))?;
    shell.child_mut().wait()?;
    Ok(())
}
