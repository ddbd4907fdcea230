//! `run --keep` and `restart`: what the keeper does and does not do. That guests and
//! connections go on is shown with guests that have a stack (`demo-guest`'s tests).

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use host_bridge::tap::{Tap, TapSource};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Pid, Signal, kill_process};
use shm_link::linux::address::Address;

use crate::common::{PATIENCE, in_private_network};
use crate::rights::check_rights;
use crate::support::{DaemonProcess, LivingGuest, PASSED_FD, ip, run, stderr};

/// The daemon that a keeper runs now.
fn worker(keeper: &DaemonProcess) -> Option<i32> {
    let pid = keeper.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.split_whitespace().next()?.parse().ok()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what} does not come true");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills the daemon and waits for the next.
fn replace(keeper: &DaemonProcess) {
    let before = worker(keeper).unwrap();
    kill_process(Pid::from_raw(before).unwrap(), Signal::KILL).unwrap();
    until("another daemon", || {
        worker(keeper).is_some_and(|now| now != before)
    });
    // It answers once it has the guests.
    keeper.succeed(&["status"]);
}

fn open_files(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn names_of_open_files(pid: i32) -> Vec<std::path::PathBuf> {
    let links = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    links
        .filter_map(|link| fs::read_link(link.ok()?.path()).ok())
        .collect()
}

#[test]
fn whoever_goes_on_has_no_more_rights_than_the_one_before() {
    in_private_network(|| async {
        let keeper = DaemonProcess::start(&["--keep"]);
        for _ in 0..2 {
            // CAP_NET_ADMIN.
            check_rights(worker(&keeper).unwrap(), 1 << 12);
            replace(&keeper);
        }
        let (status, _) = keeper.end(Signal::TERM);
        assert!(status.success());
    });
}

#[test]
fn nobody_but_the_worker_is_heard() {
    in_private_network(|| async {
        let keeper = DaemonProcess::start(&["--keep"]);
        let guest = LivingGuest::attach(|guest| {
            guest.resolve_gateway();
        });
        let environment = fs::read(format!("/proc/{}/environ", worker(&keeper).unwrap())).unwrap();
        let address: Address = String::from_utf8_lossy(&environment)
            .split('\0')
            .find_map(|line| line.strip_prefix("NOTIFY_SOCKET="))
            .and_then(|address| address.parse().ok())
            .unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        socket
            .connect_addr(&address.socket_addr().unwrap())
            .unwrap();
        replace(&keeper);
        let before = open_files(keeper.pid());
        for text in [
            "FDSTORE=1\nFDNAME=guest7.tap",
            "FDSTOREREMOVE=1\nFDNAME=guest0.tap",
            "FDSTOREREMOVE=1\nFDNAME=guest0.connection",
        ] {
            let fds = [socket.as_fd()];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            let bytes = [rustix::io::IoSlice::new(text.as_bytes())];
            let bytes = bytes
                .each_ref()
                .map(|slice| rustix::io::IoSlice::new(slice));
            rustix::net::sendmsg(&socket, &bytes, &mut control, SendFlags::empty()).unwrap();
        }
        let tap = ip("link show dev guest0");
        replace(&keeper);
        assert_eq!(open_files(keeper.pid()), before);
        assert_eq!(ip("link show dev guest0"), tap);
        assert_eq!(keeper.ports().len(), 1);
        drop(guest);
        keeper.until_states(&[]);
    });
}

#[test]
fn a_daemon_that_cannot_start_ends_its_keeper_with_its_words() {
    in_private_network(|| async {
        for (args, code) in [
            (&["--socket", "/no/such/directory/socket"][..], 1),
            (
                &[
                    "--socket",
                    "@free",
                    "--bridge",
                    "nothing",
                    "--net4",
                    "10.9.0.0/24",
                ],
                1,
            ),
            (&["--socket", "@free", "--net4", "10.9.0.0/31"], 2),
        ] {
            let mut all = vec!["run", "--keep", "--admin", "@admin"];
            all.extend(args);
            let output = run(&all);
            assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
            assert!(stderr(&output).contains("host-bridge: "), "{output:?}");
        }
    });
}

#[test]
fn socket_files_stay_from_one_daemon_to_the_next_and_go_with_the_keeper() {
    in_private_network(|| async {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("attach");
        let keeper = DaemonProcess::start(&["--keep", "--socket", path.to_str().unwrap()]);
        let admin = keeper.admin();
        let inode = |path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).unwrap());
        let before = [inode(&path), inode(&admin)];
        assert_eq!(keeper.succeed(&["restart"]), "no guest is attached\n");
        replace(&keeper);
        assert!(fs::metadata(&path).unwrap().file_type().is_socket());
        assert_eq!([inode(&path), inode(&admin)], before);
        let (status, _) = keeper.end(Signal::INT);
        assert!(status.success());
        assert!(!path.exists() && !admin.exists());
    });
}

#[test]
fn guests_come_and_go_and_leave_nothing_with_the_keeper() {
    in_private_network(|| async {
        let keeper = DaemonProcess::start(&["--keep"]);
        // After a whole life the keeper has heard all of it.
        replace(&keeper);
        let before = open_files(keeper.pid());
        for round in 0..20 {
            let guest = LivingGuest::attach(|guest| {
                guest.resolve_gateway();
            });
            if round % 5 == 0 {
                replace(&keeper);
            }
            drop(guest);
            keeper.until_states(&[]);
        }
        let deadline = Instant::now() + PATIENCE;
        while open_files(keeper.pid()) != before {
            assert!(
                Instant::now() < deadline,
                "{before} open files before, and now {:?}",
                names_of_open_files(keeper.pid())
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}

#[test]
fn a_tap_that_was_passed_on_serves_the_next_daemon_too() {
    in_private_network(|| async {
        let name = Some("passed".to_owned());
        let tap = Tap::open(TapSource::Create { name }).unwrap();
        let number = PASSED_FD.to_string();
        let keeper = DaemonProcess::start_with_tap(&["--keep", "--tap-fd", &number], &tap);
        drop(tap);
        for _ in 0..3 {
            let guest = LivingGuest::attach(|guest| {
                guest.resolve_gateway();
            });
            assert_eq!(keeper.ports()[0]["tap"], "passed");
            replace(&keeper);
            assert_eq!(keeper.ports()[0]["tap"], "passed");
            drop(guest);
            keeper.until_states(&[]);
            assert!(ip("link show dev passed").is_some());
        }
        keeper.end(Signal::TERM);
        assert_eq!(ip("link show dev passed"), None);
    });
}

#[test]
fn a_program_that_is_not_there_for_a_moment_is_waited_for() {
    in_private_network(|| async {
        let keeper = DaemonProcess::start_as(0, &["--keep"]).unwrap();
        let program = keeper.directory.path().join("host-bridge");
        let aside = program.with_extension("aside");
        let guest = LivingGuest::attach(|guest| {
            guest.resolve_gateway();
        });
        let tap = ip("link show dev guest0");
        fs::rename(&program, &aside).unwrap();
        kill_process(
            Pid::from_raw(worker(&keeper).unwrap()).unwrap(),
            Signal::KILL,
        )
        .unwrap();
        keeper.until_logged("no worker can be started");
        fs::rename(&aside, &program).unwrap();
        until("another daemon", || worker(&keeper).is_some());
        assert_eq!(keeper.ports().len(), 1);
        assert_eq!(ip("link show dev guest0"), tap);
        drop(guest);
    });
}
