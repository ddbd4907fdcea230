//! What needs a process of its own: private networks, children that die with
//! their parent, and a process that gave up its rights. This program starts itself again, once per case; it has
//! no test harness, because the harness runs threads.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use host_bridge::child::Helper;
use host_bridge::namespace::{NamespaceError, enter_private_network};
use host_bridge::netlink::Netlink;
use host_bridge::probe::ProbeError;
use host_bridge::probe::ping::ping;
use host_bridge::sandbox::{Needs, Parts, Restriction, confine, filter_calls};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// Exit code of a case that may not run here.
const NOT_PERMITTED: i32 = 77;
const LONG: Duration = Duration::from_secs(20);

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("enter") => enter(),
        Some("enter-as-user") => enter_as_user(),
        Some("ping-without-raw-sockets") => ping_without_raw_sockets(),
        Some("confined") => confined(),
        Some("parent") => parent(),
        Some("wait") => wait_for_ever(),
        // The harness's own arguments do not matter here.
        Some(_) | None => run_tests(),
    }
}

fn run_tests() {
    in_a_private_network("enter");
    in_a_private_network("enter-as-user");
    in_a_private_network("ping-without-raw-sockets");
    a_helper_dies_with_its_parent();
    what_was_given_up_is_gone();
}

/// Runs one case and says how it went.
fn in_a_private_network(case: &str) {
    let Output { status, stderr, .. } = itself(case).output().unwrap();
    let stderr = String::from_utf8_lossy(&stderr);
    if status.code() == Some(NOT_PERMITTED) {
        println!(
            "{case} ... skipped: needs root, or user namespaces and a /dev/net/tun for all: {stderr}"
        );
        let required = std::env::var("REQUIRE_PRIVILEGED").is_ok_and(|v| v == "1");
        assert!(!required, "REQUIRE_PRIVILEGED=1, and {case} was skipped");
        return;
    }
    assert!(status.success(), "{case}: {status}\n{stderr}");
    println!("{case} ... ok");
}

fn itself(case: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .arg(case)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn enter_or_skip() {
    match enter_private_network() {
        Ok(()) => {}
        Err(e @ (NamespaceError::Refused { .. } | NamespaceError::NoTun { .. })) => {
            eprint!("{e}");
            std::process::exit(NOT_PERMITTED);
        }
        Err(e) => panic!("{e}"),
    }
}

/// A private network has the loopback interface and nothing else, it works,
/// and the process may configure it.
fn enter() {
    let outside = std::fs::read_link("/proc/self/ns/net").unwrap();
    enter_or_skip();
    assert_ne!(std::fs::read_link("/proc/self/ns/net").unwrap(), outside);
    let interfaces = std::fs::read_to_string("/proc/net/dev").unwrap();
    let names: Vec<&str> = interfaces
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    assert_eq!(names, ["lo"]);

    let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let netlink = Netlink::connect().unwrap();
        let address = format!("{link_local}/64").parse().unwrap();
        netlink.add_address(1, address).await.unwrap();
    });
    for (addr, scope_id) in [
        (IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
        (IpAddr::V6(Ipv6Addr::LOCALHOST), 0),
        (IpAddr::V6(link_local), 1),
    ] {
        wait_until_answered(addr, scope_id);
        let report = ping(addr, scope_id, 5, LONG).unwrap();
        assert_eq!((report.sent, report.received), (5, 5), "{addr}");
        let rtt = report.rtt.unwrap();
        assert!(rtt.min <= rtt.median && rtt.median <= rtt.max && rtt.max < LONG);
    }
    // An address to which no route leads.
    let error = ping(Ipv4Addr::new(192, 0, 2, 1).into(), 0, 1, LONG).unwrap_err();
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
}

/// Without the right to raw sockets, ping takes the kernel's own echo sockets
/// where its setting allows them, and else says what is missing.
fn ping_without_raw_sockets() {
    enter_or_skip();
    drop_capability(CapabilitySet::NET_RAW);
    let localhost = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for addr in localhost {
        let error = ping(addr, 0, 1, LONG).unwrap_err();
        assert!(matches!(error, ProbeError::NoIcmpSocket), "{error}");
    }
    // Group 0, which is root's here and the mapped one in a user namespace.
    if std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").is_err() {
        eprint!("a writable /proc/sys");
        std::process::exit(NOT_PERMITTED);
    }
    for addr in localhost {
        assert_eq!(ping(addr, 0, 3, LONG).unwrap().received, 3, "{addr}");
    }
}

fn drop_capability(capability: CapabilitySet) {
    let mut sets = capabilities(None).unwrap();
    sets.effective.remove(capability);
    sets.permitted.remove(capability);
    set_capabilities(None, sets).unwrap();
}

/// The kernel finishes adding an IPv6 address some time after it said so.
fn wait_until_answered(addr: IpAddr, scope_id: u32) {
    let start = Instant::now();
    while ping(addr, scope_id, 1, Duration::from_millis(20))
        .unwrap()
        .received
        == 0
    {
        assert!(start.elapsed() < LONG, "{addr} never answers");
    }
}

/// The same for a process that must take the way of an ordinary user.
fn enter_as_user() {
    drop_capability(CapabilitySet::SYS_ADMIN);
    let outside = std::fs::read_link("/proc/self/ns/user").unwrap();
    enter();
    assert_ne!(std::fs::read_link("/proc/self/ns/user").unwrap(), outside);
}

/// Starts a helper, says its id, and lives until it is killed.
fn parent() {
    let mut helper = Helper::spawn(itself("wait")).unwrap();
    println!("{}", helper.child_mut().id());
    wait_for_ever();
}

fn wait_for_ever() -> ! {
    loop {
        std::thread::park();
    }
}

fn a_helper_dies_with_its_parent() {
    let mut parent = itself("parent").spawn().unwrap();
    let mut line = String::new();
    BufReader::new(parent.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let helper = Pid::from_raw(line.trim().parse().unwrap()).unwrap();
    let helper = pidfd_open(helper, PidfdFlags::empty()).unwrap();
    assert_eq!(
        ended_within(&helper, Duration::ZERO),
        Ok(false),
        "the helper runs"
    );

    parent.kill().unwrap();
    parent.wait().unwrap();
    let ended = ended_within(&helper, LONG);
    assert_eq!(ended, Ok(true), "the helper outlived its parent");
    let mut complaints = String::new();
    parent
        .stderr
        .as_mut()
        .unwrap()
        .read_to_string(&mut complaints)
        .unwrap();
    assert_eq!(complaints, "");
    println!("a helper dies with its parent ... ok");
}

fn ended_within(pidfd: &std::os::fd::OwnedFd, timeout: Duration) -> Result<bool, Errno> {
    let timeout = Timespec::try_from(timeout).unwrap();
    let ready = rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&timeout))?;
    Ok(ready == 1)
}

/// In a process of its own: gives up what the daemon gives up, tries what it may not
/// do any more, and at last what only an intruder would do.
fn what_was_given_up_is_gone() {
    use std::os::unix::process::ExitStatusExt;
    let Output {
        status,
        stderr,
        stdout,
    } = itself("confined").output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
    );
    assert_eq!(out, "all refused\n", "{status}\n{err}");
    assert_eq!(status.signal(), Some(libc::SIGSYS), "{status}\n{err}");
    println!("confined ... ok");
}

fn confined() {
    let needs = Needs {
        devices: vec!["/dev/null".into()],
        ..Needs::default()
    };
    let restriction = confine(Parts::ALL, &needs).unwrap();
    // Before the filter, which would refuse it as well.
    if restriction == Restriction::Full {
        let kind = |error: std::io::Error| error.kind();
        let denied = std::io::ErrorKind::PermissionDenied;
        assert_eq!(std::fs::read("/etc/passwd").map_err(kind), Err(denied));
        assert_eq!(std::fs::write("/tmp/new", "").map_err(kind), Err(denied));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0");
        assert_eq!(tcp.map(drop).map_err(kind), Err(denied));
    } else {
        assert_eq!(restriction, Restriction::Unsupported);
    }
    std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/null")
        .unwrap();
    let (filtered, is_filtered) = std::sync::mpsc::channel::<()>();
    let (reply, replied) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let _ = is_filtered.recv();
        // It was there before the filter was.
        reply
            .send(std::net::UdpSocket::bind("127.0.0.1:0").is_err())
            .unwrap();
    });
    filter_calls().unwrap();
    filtered.send(()).unwrap();
    assert!(replied.recv().unwrap(), "a thread is not filtered");
    thread.join().unwrap();

    let refused = std::thread::Builder::new().spawn(|| ());
    assert!(refused.is_err(), "a thread was started");
    // SAFETY: the calls fail; a mapping that does not is of nobody's memory.
    unsafe {
        let (read_exec, private) = (
            libc::PROT_READ | libc::PROT_EXEC,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        let code = libc::mmap(std::ptr::null_mut(), 4096, read_exec, private, -1, 0);
        assert_eq!(code, libc::MAP_FAILED);
        assert_eq!(*libc::__errno_location(), libc::EPERM);
        assert_eq!(libc::fork(), -1);
        assert_eq!(libc::kill(1, 0), -1);
        assert_eq!(*libc::__errno_location(), libc::EPERM);
        // Puts a character into a terminal's input, as if somebody had typed it.
        assert_eq!(libc::ioctl(0, libc::TIOCSTI, c"x".as_ptr()), -1);
        assert_eq!(*libc::__errno_location(), libc::EPERM);
    }
    println!("all refused");
    let argv = [c"/bin/true".as_ptr(), std::ptr::null()];
    // SAFETY: both lists end with a null; the process ends here.
    unsafe { libc::execve(argv[0], argv.as_ptr(), argv[1..].as_ptr()) };
    unreachable!("a program was executed");
}
