//! What the program says when something is not as it should be, and with which
//! exit code.

use std::os::unix::process::CommandExt;

use host_bridge::tap::{Tap, TapSource};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use crate::common::in_private_network;
use crate::support::{host_bridge, ip, run, stderr, stdout, succeed};

/// Runs the program, which must fail with `code`, and gives its words.
fn refused(code: i32, args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    stderr(&output)
}

#[test]
fn a_wrong_command_line_is_a_usage_error() {
    for (args, words) in [
        (&["fly"][..], "unrecognized subcommand"),
        (&["run", "--mtu", "x"], "--mtu"),
        (&["run", "--socket", "relative"], "absolute path"),
        (&["run", "--impair-to-host", "lots"], "has no value"),
        (&["run", "--allow-ethertype", "lldp"], "0x88cc"),
        (&["run", "--net4", "10.0.0.1/24"], "net4: 10.0.0.1/24"),
        (&["run", "--tap-fd", "1"], "tap_fd: 1"),
        (&["run", "--config", "/no/such/file"], "/no/such/file"),
        (&["set", "guest0"], "required arguments"),
        (
            &["set", "guest0", "--carrier", "maybe"],
            "possible values: on, off",
        ),
        (
            &["status", "--admin", "relative"],
            "--admin relative: a socket address",
        ),
        (&["status", "--watch", "0"], "1..=3600"),
    ] {
        let said = refused(2, args);
        assert!(said.contains(words), "{args:?}: {said}");
    }
}

#[test]
fn the_help_names_the_default_and_the_unit_of_each_setting() {
    let help = succeed(&["run", "--help"]);
    for words in [
        "/run/host-bridge.sock",
        "Default 1500",
        "Default 524288",
        "in bytes, without the Ethernet header",
        "default 64",
    ] {
        assert!(help.contains(words), "{words}: {help}");
    }
    assert!(succeed(&["status", "--help"]).contains("/run/host-bridge.sock.admin"));
    assert!(stdout(&run(&["--version"])).starts_with("host-bridge "));
}

#[test]
fn without_a_daemon_status_says_how_to_start_one() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("none");
    let stale = directory.path().join("stale");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for address in [
        missing.to_str().unwrap(),
        stale.to_str().unwrap(),
        "@no-such-daemon",
    ] {
        let words = refused(1, &["status", "--admin", address]);
        assert!(
            words.contains(address) && words.contains("host-bridge run"),
            "{words}"
        );
    }
}

#[test]
fn what_the_system_lacks_is_said_before_the_first_guest_comes() {
    in_private_network(|| async {
        let daemon = |args: &[&str]| {
            let mut all = vec!["run", "--socket", "@attach", "--admin", "off"];
            all.extend(args);
            refused(1, &all)
        };
        let words = daemon(&["--bridge", "br7", "--net4", "10.0.0.0/24"]);
        assert!(
            words.contains("bridge br7 does not exist") && words.contains("ip link add br7"),
            "{words}"
        );
        let words = daemon(&["--bridge", "lo", "--net4", "10.0.0.0/24"]);
        assert!(words.contains("lo is not a bridge"), "{words}");
        let words = daemon(&["--tap", "none"]);
        assert!(words.contains("no persistent TAP named none"), "{words}");
        let words = daemon(&["--memory", "5mib"]);
        assert!(
            words.contains("memory aside for a guest") && words.contains("0 KiB for all guests"),
            "{words}"
        );
        ip("link add guest0 type bridge").unwrap();
        let words = daemon(&[]);
        assert!(words.contains("guest0 exists already"), "{words}");
        let busy = Tap::open(TapSource::Create {
            name: Some("busy".into()),
        })
        .unwrap();
        let words = daemon(&["--tap", "busy"]);
        assert!(words.contains("busy is in use"), "{words}");
        drop(busy);

        let words = refused(
            1,
            &["run", "--socket", "/no/such/directory/x", "--admin", "off"],
        );
        assert!(words.contains("directory does not exist"), "{words}");
        let file = tempfile::NamedTempFile::new().unwrap();
        let words = refused(1, &["run", "--socket", file.path().to_str().unwrap()]);
        assert!(words.contains("a file of this name exists"), "{words}");
    });
}

#[test]
fn without_the_capability_the_daemon_says_what_it_needs() {
    in_private_network(|| async {
        let mut command = host_bridge(&["run", "--socket", "@attach", "--admin", "off"]);
        // SAFETY: one system call, which allocates nothing.
        unsafe {
            command.pre_exec(|| {
                Ok(remove_capability_from_bounding_set(
                    CapabilitySet::NET_ADMIN,
                )?)
            });
        }
        let output = command.output().unwrap();
        let words = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{words}");
        assert!(words.contains("CAP_NET_ADMIN"), "{words}");
    });
}
