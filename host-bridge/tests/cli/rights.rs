//! What the daemon may still do once it serves: read from `/proc`, and tried out.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Instant;

use host_bridge::child::Helper;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use shm_link::linux::attach::Attachment;
use shm_link::stream::Framing;

use crate::common::{PATIENCE, RawGuest, in_private_network};
use crate::guest::StreamGuest;
use crate::support::{DaemonProcess, LivingGuest, ip};

/// CAP_NET_ADMIN in the masks of `/proc/PID/status`.
const NET_ADMIN: u64 = 1 << 12;
/// The user whom nobody is.
const NOBODY: u32 = 65534;

/// What each thread of a process has left.
pub(crate) fn check_rights(daemon: i32, capabilities: u64) {
    let tasks = fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
    let mut threads = 0;
    for task in tasks {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.strip_prefix(':')).unwrap().trim()
        };
        let mask = |name: &str| u64::from_str_radix(field(name), 16).unwrap();
        assert_eq!(mask("CapEff"), capabilities, "{status}");
        assert_eq!(mask("CapPrm"), capabilities, "{status}");
        assert_eq!(mask("CapBnd"), capabilities, "{status}");
        assert_eq!(mask("CapInh"), 0, "{status}");
        assert_eq!(mask("CapAmb"), 0, "{status}");
        assert_eq!(field("NoNewPrivs"), "1", "{status}");
        assert_eq!(field("Seccomp"), "2", "{status}");
        assert_eq!(field("Seccomp_filters"), "2", "{status}");
        threads += 1;
    }
    // The main thread and the workers.
    assert!(threads >= 2, "{threads}");
}

/// Watches which calls of a running process fail for want of permission.
struct Watched {
    strace: Helper,
    record: tempfile::NamedTempFile,
}

impl Watched {
    fn attach(daemon: &DaemonProcess) -> Self {
        let record = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("strace");
        command
            .args(["-f", "-p", &daemon.pid().to_string(), "-o"])
            .arg(record.path())
            .stderr(Stdio::null());
        let strace = Helper::spawn(command).expect("strace is installed");
        let watched = Self { strace, record };
        let deadline = Instant::now() + PATIENCE;
        while !watched.traced(daemon) {
            assert!(Instant::now() < deadline, "strace does not attach");
            std::thread::yield_now();
        }
        watched
    }

    /// Whether every thread is watched.
    fn traced(&self, daemon: &DaemonProcess) -> bool {
        let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
        tasks.map(|task| task.unwrap().path()).all(|task| {
            let status = fs::read_to_string(task.join("status")).unwrap();
            !status.contains("TracerPid:\t0\n")
        })
    }

    /// The calls that failed, once the process has ended, and how many there were.
    fn refused(mut self) -> (Vec<String>, usize) {
        self.strace.wait_timeout(PATIENCE).unwrap();
        let record = fs::read_to_string(self.record.path()).unwrap();
        let refused = record
            .lines()
            .filter(|line| line.contains("= -1 EPERM") || line.contains("= -1 EACCES"));
        (refused.map(str::to_owned).collect(), record.lines().count())
    }
}

/// A serial line: the guest's end, and the device.
fn line() -> (OwnedFd, String) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_bytes();
    let name = std::ffi::OsString::from_vec(name).into_string().unwrap();
    (master, name)
}

#[test]
fn all_that_the_daemon_does_it_does_with_one_capability_and_a_short_list_of_calls() {
    in_private_network(|| async {
        let (master, device) = line();
        let sockets = tempfile::tempdir().unwrap();
        let stream = sockets.path().join("stream");
        let daemon = DaemonProcess::start(&[
            "--serial",
            &device,
            "--stream",
            stream.to_str().unwrap(),
            "--workers",
            "3",
        ]);
        assert!(daemon.log().contains("no capability but CAP_NET_ADMIN, "));
        check_rights(daemon.pid(), NET_ADMIN);
        let watched = Watched::attach(&daemon);

        // Guests of each kind come, speak, are changed and go, twice.
        let mut at_line = StreamGuest::attach(master, Framing::Serial);
        let mac = at_line.resolve_gateway();
        at_line.ping(mac, 1);
        for round in 0..2 {
            let guest = LivingGuest::attach(|guest| {
                guest.resolve_gateway();
            });
            let socket = UnixStream::connect(&stream).unwrap();
            let mut behind_stream = StreamGuest::attach(socket, Framing::Prefixed);
            let mac = behind_stream.resolve_gateway();
            behind_stream.ping(mac, round);
            assert_eq!(daemon.ports().len(), 3);
            daemon.succeed(&["set", "guest1", "--mtu", "1300", "--carrier", "off"]);
            daemon.succeed(&["set", "guest1", "--mtu", "1500", "--carrier", "on"]);
            daemon.succeed(&["set", "guest1", "--address", "10.77.0.6/30"]);
            daemon.succeed(&["set", "guest1", "--impair-to-guest", "delay=1ms"]);
            daemon.succeed(&["set", "guest1", "--impair-to-guest", "off"]);
            daemon.fail(&["set", "guest9", "--mtu", "1300"]);
            drop(guest);
            drop(behind_stream);
            daemon.until_states(&["running"]);
        }
        // A guest that breaks the rules is cut off.
        let hostile = RawGuest::attach();
        rustix::io::pwrite(hostile.memory.fd(), &[0xff; 64 << 10], 8 << 10).unwrap();
        hostile.ring();
        daemon.until_states(&["running"]);
        check_rights(daemon.pid(), NET_ADMIN);

        let (status, log) = daemon.end(Signal::TERM);
        assert!(status.success(), "{log}");
        assert!(!stream.exists(), "the socket's file is removed");
        let (refused, calls) = watched.refused();
        assert!(calls > 1000, "strace saw only {calls} calls");
        assert_eq!(refused, Vec::<String>::new(), "{log}");
    });
}

#[test]
fn without_the_sandbox_the_daemon_keeps_what_it_was_started_with() {
    in_private_network(|| async {
        let mine = fs::read_to_string("/proc/thread-self/status").unwrap();
        let field = |status: &str, name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            line.unwrap().to_owned()
        };
        for (flags, seccomp, capabilities_kept) in [
            (&["--no-sandbox"][..], "0", true),
            (&["--no-seccomp"], "0", false),
            (&["--keep-capabilities"], "2", true),
            (&["--no-landlock"], "2", false),
        ] {
            let daemon = DaemonProcess::start(flags);
            let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
            assert!(
                field(&status, "Seccomp:").ends_with(seccomp),
                "{flags:?}: {status}"
            );
            let kept = field(&status, "CapEff") == field(&mine, "CapEff");
            assert_eq!(kept, capabilities_kept, "{flags:?}: {status}");
            assert!(
                daemon.log().contains("rights, not all given up"),
                "{flags:?}"
            );
        }
    });
}

#[test]
fn taps_that_are_set_up_need_no_capability_at_all() {
    in_private_network(|| async {
        ip("tuntap add mode tap name mine user 0").unwrap();
        ip("address add 10.77.0.1/30 dev mine").unwrap();
        ip("link set mine up").unwrap();
        let args = [
            "--tap",
            "mine",
            "--max-guests",
            "1",
            "--net4",
            "10.77.0.0/24",
        ];
        let daemon = DaemonProcess::start(&args);
        assert!(
            daemon.log().contains("rights: no capability, "),
            "{}",
            daemon.log()
        );
        check_rights(daemon.pid(), 0);
        for _ in 0..2 {
            let guest = LivingGuest::attach(|guest| {
                guest.resolve_gateway();
            });
            drop(guest);
            daemon.until_states(&[]);
        }
        daemon.end(Signal::TERM);
        // One that still has to be set up needs it.
        ip("address flush dev mine").unwrap();
        let daemon = DaemonProcess::start(&args);
        check_rights(daemon.pid(), NET_ADMIN);
        let _guest = LivingGuest::attach(|guest| {
            guest.resolve_gateway();
        });
    });
}

#[test]
fn an_ordinary_user_runs_the_daemon_on_persistent_taps_of_its_own() {
    in_private_network(|| async {
        // A /dev/net/tun for all, as distributions have it, for this thread and its
        // children.
        // SAFETY: only this thread's view of mounts changes.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        let shared = tempfile::tempdir().unwrap();
        fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o777)).unwrap();
        rustix::mount::mount(
            "devices",
            shared.path(),
            c"tmpfs",
            MountFlags::empty(),
            None,
        )
        .unwrap();
        let node = shared.path().join("tun");
        let mode = rustix::fs::Mode::from_bits_retain(0o666);
        let device = rustix::fs::makedev(10, 200);
        let kind = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, &node, kind, mode, device).unwrap();
        fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
        rustix::mount::mount_bind(&node, "/dev/net/tun").unwrap();
        assert!(
            fs::metadata("/dev/net/tun")
                .unwrap()
                .file_type()
                .is_char_device()
        );

        ip("tuntap add mode tap name mine user 65534").unwrap();
        let args = [
            "--tap",
            "mine",
            "--max-guests",
            "1",
            "--net4",
            "10.77.0.0/24",
        ];
        let refused = DaemonProcess::start_as(NOBODY, &args)
            .map(drop)
            .unwrap_err();
        assert!(
            refused.contains("10.77.0.1/30") && refused.contains("`ip address add`"),
            "{refused}"
        );
        ip("address add 10.77.0.1/30 dev mine").unwrap();
        ip("link set mine up").unwrap();
        let daemon = DaemonProcess::start_as(NOBODY, &args).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        for line in [
            "Uid:\t65534\t65534\t65534\t65534",
            "CapPrm:\t0000000000000000",
            "CapEff:\t0000000000000000",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
        ] {
            assert!(status.contains(line), "{line}\n{status}");
        }
        let guest = LivingGuest::attach(|guest| {
            guest.resolve_gateway();
        });
        // What it may not do is said, and the guest goes on.
        daemon.succeed(&["set", "guest0", "--mtu", "1300"]);
        daemon.until_logged("setting the MTU of mine: ");
        drop(guest);
        daemon.until_states(&[]);
    });
}

/// Tries to attach as another user; says whether the daemon sent anything.
fn attaches_as(user: u32) -> bool {
    // SAFETY: only this thread's user changes: the system call does not touch the
    // process's other threads.
    let tried = std::thread::spawn(move || unsafe {
        assert_eq!(libc::syscall(libc::SYS_setresuid, user, user, user), 0);
        Attachment::connect(&crate::common::address(), PATIENCE).is_ok()
    });
    tried.join().unwrap()
}

#[test]
fn only_named_users_may_attach_even_at_an_abstract_address() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        assert!(attaches_as(0));
        assert!(!attaches_as(NOBODY));
        for _ in 0..20 {
            assert!(!attaches_as(NOBODY));
        }
        daemon.until_logged("a guest was turned away: it belongs to user 65534");
        daemon.until_logged("more of these are not told of");
        daemon.end(Signal::TERM);

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("attach");
        let file = directory.path().join("bridge.toml");
        fs::write(&file, "allow_users = [1234]\n").unwrap();
        let daemon = DaemonProcess::start(&["--config", file.to_str().unwrap()]);
        assert!(attaches_as(1234));
        assert!(attaches_as(0));
        assert!(!attaches_as(NOBODY));
        daemon.end(Signal::TERM);

        // A path is open to all who are then asked who they are.
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let at_path = ["--socket", path.to_str().unwrap()];
        let daemon = DaemonProcess::start(&at_path);
        assert_eq!(mode(), 0o600);
        daemon.end(Signal::TERM);
        let _daemon = DaemonProcess::start(&[&at_path[..], &["--allow-user", "1234"]].concat());
        assert_eq!(mode(), 0o666);
    });
}
