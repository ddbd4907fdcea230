//! The iperf3 of the system, unmodified, against the guest's server; and clients
//! that misbehave.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};

use host_bridge::child::Helper;
use serde_json::Value;

use crate::common::{Guest, PATIENCE, World, in_private_network, skip, until};

const PORT: u16 = 5201;
/// Access denied.
const DENIED: u8 = 0xff;
/// An error of the server; two numbers follow.
const ERROR: u8 = 0xfe;

fn client(guest: &Guest, more: &str) -> Command {
    let mut command = Command::new("iperf3");
    let address = guest.addresses[usize::from(more.contains("-6"))].to_string();
    command
        .args(["-J", "-c", &address])
        .args(more.split_whitespace());
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    command
}

/// Runs a client to its end.
fn run(guest: &Guest, more: &str) -> Value {
    let Output { stdout, .. } = client(guest, more).output().unwrap();
    let report: Value = serde_json::from_slice(&stdout).unwrap();
    report
}

/// A report without an error: its totals.
fn totals(guest: &Guest, more: &str) -> Value {
    let report = run(guest, more);
    assert!(report["error"].is_null(), "{more}: {}", report["error"]);
    report["end"].clone()
}

fn installed() -> bool {
    let installed = Command::new("iperf3").arg("--version").output().is_ok();
    if !installed {
        skip("iperf3");
    }
    installed
}

#[test]
fn an_unmodified_iperf3_measures_tcp_in_every_way() {
    in_private_network(|| {
        if !installed() {
            return;
        }
        let world = World::start("");
        let guest = world.guest("measured");
        for (options, streams) in [
            ("-n 3M", 1),
            ("-6 -k 20 -l 64K", 1),
            ("-R -n 3M", 1),
            ("-6 -P 4 -t 1", 4),
            ("-R -P 3 -t 1 -l 10000", 3),
            ("--bidir -P 2 -t 1", 4),
            ("-N -O 1 -t 1 -b 20M", 1),
            ("-R -O 1 -t 1 -b 20M", 1),
        ] {
            let end = totals(&guest, options);
            let each = end["streams"].as_array().unwrap();
            assert_eq!(each.len(), streams, "{options}");
            for stream in each {
                let bytes = |side: &str| stream[side]["bytes"].as_f64().unwrap();
                let (sent, received) = (bytes("sender"), bytes("receiver"));
                // The rest was under way when the client had enough.
                assert!(
                    received > 0.0 && received <= sent * 1.1,
                    "{options}: {stream}"
                );
                let paced = options.contains("-b 20M");
                let rate = stream["receiver"]["bits_per_second"].as_f64().unwrap();
                assert!(
                    !paced || (15e6..25e6).contains(&rate),
                    "{options}: {stream}"
                );
            }
        }
    });
}

#[test]
fn an_unmodified_iperf3_measures_udp_in_every_way() {
    in_private_network(|| {
        if !installed() {
            return;
        }
        let world = World::start("");
        let guest = world.guest("measured");
        for options in [
            "-u -t 1 -b 5M",
            "-6 -u -t 1 -b 5M -P 3",
            "-u -R -t 1 -b 5M --udp-counters-64bit",
            "-6 -u -R -t 1 -b 5M -P 2",
            "-u --bidir -t 1 -b 5M",
            "-u -t 1 -b 5M -O 1",
            "-u -t 1 -b 5M -l 4000",
        ] {
            let end = totals(&guest, options);
            for stream in end["streams"].as_array().unwrap() {
                let udp = &stream["udp"];
                let packets = udp["packets"].as_f64().unwrap();
                let rate = udp["bits_per_second"].as_f64().unwrap();
                assert!(
                    packets > 10.0 && (4e6..6e6).contains(&rate),
                    "{options}: {udp}"
                );
                // Nothing is lost on a quiet link at this rate, but for what the
                // machine has no time for.
                let lost = udp["lost_packets"].as_f64().unwrap();
                assert!(lost <= packets / 10.0, "{options}: {udp}");
            }
        }
    });
}

#[test]
fn the_server_is_free_again_after_clients_that_die_in_the_middle() {
    in_private_network(|| {
        if !installed() {
            return;
        }
        let world = World::start("");
        let guest = world.guest("measured");
        let moved = || {
            let counters = world.running("measured").unwrap().counters;
            counters.guest_to_host.frames_in + counters.host_to_guest.frames_in
        };
        for options in ["-t 60", "-t 60 -R -P 4", "-t 60 -u -R -b 50M"] {
            let mut victim = client(&guest, options);
            victim.stdout(Stdio::null());
            let victim = Helper::spawn(victim).unwrap();
            // Once it runs, others are told so.
            let before = moved();
            until("the test", || moved() > before + 1000);
            let error = run(&guest, "-n 1K")["error"].to_string();
            assert!(error.contains("the server is busy"), "{error}");
            drop(victim);
            until("a free seat", || run(&guest, "-n 1K")["error"].is_null());
        }
        // Nothing of the last one's traffic goes on.
        until("silence", || {
            let before = moved();
            std::thread::sleep(std::time::Duration::from_millis(100));
            moved() == before
        });
    });
}

struct Stranger(TcpStream);

impl Stranger {
    /// Takes the seat.
    fn sit(address: SocketAddr, cookie: u8) -> Self {
        let mut stranger = Self(TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        stranger.0.set_read_timeout(Some(PATIENCE)).unwrap();
        stranger.0.write_all(&[cookie; 37]).unwrap();
        assert_eq!(stranger.hear(), [9], "asked for parameters");
        stranger
    }

    fn hear<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn say(&mut self, json: &str) {
        self.0
            .write_all(&(json.len() as u32).to_be_bytes())
            .unwrap();
        self.0.write_all(json.as_bytes()).unwrap();
    }

    /// Is told iperf3's error of that number, and that this was all.
    fn expect_refusal(mut self, number: u32) {
        let answer: [u8; 9] = self.hear();
        assert_eq!(answer[0], ERROR);
        assert_eq!(answer[1..5], number.to_be_bytes());
        assert_eq!(self.0.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn clients_that_talk_nonsense_get_an_error_and_leave_the_seat() {
    in_private_network(|| {
        let world = World::start("");
        let guest = world.guest("measured");
        let address = guest.v4(PORT);
        for (json, error) in [
            ("{", 114),
            ("[]", 114),
            ("\u{0}\u{1}", 114),
            (r#"{"tcp":true,"parallel":100000}"#, 6),
            (r#"{"udp":true,"len":1}"#, 20),
            (r#"{"sctp":true}"#, 13),
        ] {
            let mut stranger = Stranger::sit(address, b'a');
            stranger.say(json);
            stranger.expect_refusal(error);
            until("a free seat", || is_free(address));
        }
        // A length that nobody would believe.
        let mut stranger = Stranger::sit(address, b'a');
        stranger.0.write_all(&[0xff; 4]).unwrap();
        stranger.expect_refusal(114);
        until("a free seat", || is_free(address));

        // A message in the middle that means nothing there; data of another test.
        let mut stranger = Stranger::sit(address, b'a');
        stranger.say(r#"{"tcp":true,"time":10}"#);
        assert_eq!(stranger.hear(), [10], "told to open its streams");
        assert!(
            !is_free(address),
            "another cookie is no stream of this test"
        );
        let mut data = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        data.write_all(&[b'a'; 37]).unwrap();
        assert_eq!(stranger.hear(), [1, 2], "told that the test runs");
        stranger.0.write_all(&[77]).unwrap();
        stranger.expect_refusal(110);
        data.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(
            !matches!(data.read(&mut [0]), Ok(1)),
            "the stream ended too"
        );
        until("a free seat", || is_free(address));

        // One that leaves without a word.
        drop(Stranger::sit(address, b'a'));
        until("a free seat", || is_free(address));
    });
}

/// Whether a client with a cookie of its own is let in.
fn is_free(address: SocketAddr) -> bool {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[b'z'; 37]).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert!([DENIED, 9].contains(&answer[0]));
    answer[0] != DENIED
}
