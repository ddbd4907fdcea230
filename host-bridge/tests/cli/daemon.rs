//! A daemon's life: it starts, serves guests as it was told, ends cleanly.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};

use host_bridge::tap::{Tap, TapSource};
use rustix::process::Signal;

use crate::common::in_private_network;
use crate::support::{ATTACH, DaemonProcess, LivingGuest, PASSED_FD, host_bridge, ip, stderr};

#[test]
fn the_status_shows_a_guest_as_a_table_and_as_json() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        assert_eq!(daemon.succeed(&["status"]), "no guest is attached\n");
        let guest = LivingGuest::attach(|guest| {
            guest.resolve_gateway();
            let mut spoofed = guest.arp_request(guest.config.gateway4.unwrap());
            spoofed[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
            guest.send(&spoofed);
            // In order behind it.
            guest.resolve_gateway();
        });
        let table = daemon.succeed(&["status", "guest0"]);
        let lines: Vec<_> = table.lines().collect();
        assert!(
            lines[0].starts_with("PORT    TAP     STATE    GUEST  MAC"),
            "{table}"
        );
        assert!(
            lines[1].starts_with("guest0  guest0  running  raw    02:53:4c:00:00:00  1500  on"),
            "{table}"
        );
        assert!(
            lines[1].contains("2 frames, 84 B") && lines[1].ends_with("1        ok"),
            "{table}"
        );
        assert_eq!(lines[2].trim(), "addresses: 10.77.0.2/30, fd77::2/126");
        assert_eq!(lines[3].trim(), "dropped to host: spoofed-mac 1");

        let ports = daemon.ports();
        assert_eq!(ports.len(), 1);
        let port = &ports[0];
        assert_eq!(port["name"], "guest0");
        assert_eq!(port["state"], "running");
        assert_eq!(port["addresses"][0], "10.77.0.2/30");
        assert_eq!(port["carrier"], true);
        assert_eq!(port["counters"]["guest_to_host"]["frames_out"], 2);
        assert_eq!(port["counters"]["guest_to_host"]["drops"]["spoofed-mac"], 1);

        let words = daemon.fail(&["status", "guest7"]);
        assert!(words.contains("no port \"guest7\", only guest0"), "{words}");
        drop(guest);
        daemon.until_states(&[]);
    });
}

#[test]
fn a_watched_status_shows_rates_and_ends_with_its_reader() {
    in_private_network(|| async {
        use std::io::{BufRead, BufReader};
        let daemon = DaemonProcess::start(&[]);
        let _guest = LivingGuest::attach(|_| ());
        let admin = daemon.admin();
        let mut watch = host_bridge(&["status", "--watch", "1", "--admin"])
            .arg(admin)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains(" frames, ")));
        assert!(lines.any(|line| line.unwrap().contains(" frames/s, ")));
        drop(lines);
        assert!(watch.wait().unwrap().success());
    });
}

#[test]
fn set_changes_a_running_guest_and_prints_what_holds_now() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let guest = LivingGuest::attach(|_| ());
        let text = daemon.succeed(&["set", "guest0", "--mtu", "1300"]);
        assert!(text.contains(" 1300  on "), "{text}");
        let link = ip("-o link show dev guest0").unwrap();
        assert!(link.contains("mtu 1300"), "{link}");

        daemon.succeed(&[
            "set",
            "guest0",
            "--address",
            "10.9.0.2/24",
            "--address",
            "fd09::2/64",
            "--gateway",
            "10.9.0.1",
        ]);
        let text = daemon.succeed(&["set", "guest0", "--carrier", "off"]);
        assert!(text.contains(" 1300  off "), "{text}");
        daemon.succeed(&["set", "guest0", "--carrier", "on"]);

        let words = daemon.fail(&["set", "guest0", "--mtu", "100"]);
        assert!(words.contains("the MTU is below 576"), "{words}");
        let words = daemon.fail(&["set", "guest1", "--mtu", "1300"]);
        assert!(words.contains("no port \"guest1\""), "{words}");

        let changes: Vec<_> = guest.stop().changes;
        let seen: Vec<_> = changes
            .iter()
            .map(|c| (c.mtu, c.v4[0].to_string(), c.carrier))
            .collect();
        let (before, after) = ("10.77.0.2/30".to_owned(), "10.9.0.2/24".to_owned());
        assert_eq!(
            seen,
            [
                (1300, before, true),
                (1300, after.clone(), true),
                (1300, after.clone(), false),
                (1300, after, true),
            ]
        );
        assert_eq!(changes[1].v6[0].to_string(), "fd09::2/64");
        assert_eq!(changes[1].gateway4.unwrap().to_string(), "10.9.0.1");
        assert_eq!(changes[1].gateway6, None);
    });
}

#[test]
fn fault_injection_begins_and_ends_while_the_guest_runs() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&["--impair-to-guest", "delay=1ms"]);
        let guest = LivingGuest::attach(|guest| {
            guest.resolve_gateway();
        });
        let text = daemon.succeed(&["set", "guest0", "--impair-to-host", "loss=100%"]);
        assert!(text.contains("impaired to host: loss=100%"), "{text}");
        assert!(text.contains("impaired to guest: delay=1ms"), "{text}");
        let mut guest = guest.stop();
        let request = guest.arp_request(guest.config.gateway4.unwrap());
        for _ in 0..5 {
            guest.send(&request);
        }
        let deadline = std::time::Instant::now() + crate::common::PATIENCE;
        while daemon.ports()[0]["counters"]["guest_to_host"]["drops"]["impair-loss"] != 5 {
            assert!(std::time::Instant::now() < deadline, "nothing is lost");
        }
        let text = daemon.succeed(&[
            "set",
            "guest0",
            "--impair-to-host",
            "off",
            "--impair-to-guest",
            "off",
        ]);
        assert!(!text.contains("impaired"), "{text}");
        guest.resolve_gateway();
    });
}

#[test]
fn a_signal_ends_the_daemon_and_leaves_nothing() {
    in_private_network(|| async {
        for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
            let directory = tempfile::tempdir().unwrap();
            let socket = directory.path().join("attach");
            let daemon = DaemonProcess::start(&["--socket", socket.to_str().unwrap()]);
            for path in [&socket, &daemon.admin()] {
                let file = fs::metadata(path).unwrap();
                assert!(file.file_type().is_socket());
                assert_eq!(
                    file.permissions().mode() & 0o777,
                    0o600,
                    "{}",
                    path.display()
                );
            }
            let address = socket.to_str().unwrap().parse().unwrap();
            let attached =
                shm_link::linux::attach::Attachment::connect(&address, crate::common::PATIENCE)
                    .unwrap();
            assert!(ip("link show dev guest0").is_some());
            assert!(attached.daemon_alive());
            let admin = daemon.admin();
            let (status, log) = daemon.end(signal);
            assert_eq!(status.code(), Some(0), "{log}");
            assert!(!attached.daemon_alive());
            assert_eq!(ip("link show dev guest0"), None);
            assert!(!socket.exists() && !admin.exists());
            assert!(log.contains("the bridge ends"), "{log}");
        }
    });
}

#[test]
fn the_log_says_what_listens_where_and_how_to_attach() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let log = daemon.log();
        assert!(
            log.contains("guests attach at @attach: up to 64, routed, 10.77.0.0/16, fd77::/64"),
            "{log}"
        );
        assert!(
            log.contains(
                "-chardev socket,path=attach,abstract=on,id=net -device \
                 ivshmem-doorbell,chardev=net,vectors=1"
            ),
            "{log}"
        );
        let (_, log) = daemon.end(Signal::TERM);
        assert!(log.contains("SIGTERM"), "{log}");
    });
}

#[test]
fn a_stale_socket_is_taken_over_and_the_old_owner_does_not_remove_it() {
    in_private_network(|| async {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("attach");
        let args = ["--socket", socket.to_str().unwrap()];
        let daemon = DaemonProcess::start(&args);
        let sockets = daemon.directory.clone();
        daemon.end(Signal::KILL);
        assert!(socket.exists(), "a killed daemon cannot clean up");
        let daemon = DaemonProcess::start_in(sockets, &args, None);
        daemon.succeed(&["status"]);
        // What another program puts there later is not the daemon's to remove.
        fs::remove_file(&socket).unwrap();
        fs::write(&socket, "mine").unwrap();
        daemon.end(Signal::TERM);
        assert_eq!(fs::read_to_string(&socket).unwrap(), "mine");
    });
}

#[test]
fn guests_on_a_bridge_share_its_subnet() {
    in_private_network(|| async {
        ip("link add br0 type bridge").unwrap();
        ip("address add 10.5.0.1/24 dev br0").unwrap();
        ip("link set br0 up").unwrap();
        let daemon = DaemonProcess::start(&["--bridge", "br0", "--net4", "10.5.0.0/24"]);
        let _guest = LivingGuest::attach(|guest| {
            assert_eq!(guest.config.v4[0].to_string(), "10.5.0.2/24");
            guest.resolve_gateway();
        });
        let link = ip("-o link show dev guest0").unwrap();
        assert!(link.contains("master br0"), "{link}");
        assert_eq!(daemon.ports()[0]["addresses"][0], "10.5.0.2/24");
    });
}

#[test]
fn a_port_of_the_file_gives_its_guest_the_same_identity_every_time() {
    in_private_network(|| async {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            r#"
max_guests = 0
[[port]]
name = "web"
socket = "{ATTACH}"
mac = "02:00:00:00:00:07"
addresses = ["10.9.0.2/24"]
gateways = ["10.9.0.1"]
tap = "webtap"
mtu = 1400
"#
        );
        fs::write(&file, text).unwrap();
        let config = file.path().to_str().unwrap();
        let daemon = DaemonProcess::start(&["--config", config, "--socket", "@shared"]);
        for _ in 0..2 {
            let guest = LivingGuest::attach(|guest| {
                assert_eq!(guest.config.mac, [2, 0, 0, 0, 0, 7]);
                assert_eq!(guest.config.v4[0].to_string(), "10.9.0.2/24");
                assert_eq!(guest.config.mtu, 1400);
                // The host is the router: it has the gateway's address.
                guest.resolve_gateway();
            });
            let port = &daemon.ports()[0];
            assert_eq!(
                (&port["name"], &port["tap"]),
                (&"web".into(), &"webtap".into())
            );
            drop(guest);
            daemon.until_states(&[]);
        }
    });
}

#[test]
fn a_persistent_tap_serves_the_first_guest_and_stays() {
    in_private_network(|| async {
        ip("tuntap add mode tap name mine").unwrap();
        let daemon = DaemonProcess::start(&["--tap", "mine"]);
        let _first = LivingGuest::attach(|guest| {
            guest.resolve_gateway();
        });
        let _second = LivingGuest::attach(|guest| {
            guest.resolve_gateway();
        });
        let ports = daemon.ports();
        let taps: Vec<_> = ports
            .iter()
            .map(|port| port["tap"].as_str().unwrap())
            .collect();
        assert_eq!(taps, ["mine", "guest1"]);
        daemon.end(Signal::TERM);
        assert!(ip("link show dev mine").is_some());
        assert_eq!(ip("link show dev guest1"), None);
    });
}

#[test]
fn an_inherited_descriptor_serves_one_guest_after_the_other() {
    in_private_network(|| async {
        let name = Some("passed".to_owned());
        let tap = Tap::open(TapSource::Create { name }).unwrap();
        let daemon = DaemonProcess::start_with_tap(&["--tap-fd", &PASSED_FD.to_string()], &tap);
        drop(tap);
        for _ in 0..2 {
            let guest = LivingGuest::attach(|guest| {
                guest.resolve_gateway();
            });
            assert_eq!(daemon.ports()[0]["tap"], "passed");
            drop(guest);
            daemon.until_states(&[]);
            assert!(ip("link show dev passed").is_some());
        }
        daemon.end(Signal::TERM);
        assert_eq!(ip("link show dev passed"), None);
    });
}

#[test]
fn a_second_daemon_on_the_same_socket_is_refused_in_words() {
    in_private_network(|| async {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("attach");
        let path = socket.to_str().unwrap();
        let daemon = DaemonProcess::start(&["--socket", path]);
        for address in [path, "@attach-2"] {
            let other = if address == path { "@free" } else { path };
            let args = ["run", "--socket", address, "--admin", other];
            let second = host_bridge(&args).output().unwrap();
            assert_eq!(second.status.code(), Some(1));
            let words = stderr(&second);
            assert!(
                words.contains(path) && words.contains("another program listens there"),
                "{words}"
            );
        }
        assert!(socket.exists());
        daemon.succeed(&["status"]);
    });
}
