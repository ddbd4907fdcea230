//! The admin socket against clients that do not keep to the rules.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;

use host_bridge::admin::protocol::MAX_REQUEST_LEN;

use crate::common::{PATIENCE, in_private_network};
use crate::support::{DaemonProcess, LivingGuest};

const STATUS: &str = "{\"v\":1,\"request\":{\"status\":{}}}\n";

struct Client(BufReader<UnixStream>);

impl Client {
    fn connect(daemon: &DaemonProcess) -> Self {
        let socket = UnixStream::connect(daemon.admin()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(BufReader::new(socket))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn receive(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    fn ask(&mut self, bytes: &[u8]) -> String {
        self.send(bytes);
        self.receive()
    }
}

#[test]
fn a_request_that_is_not_understood_is_answered_and_the_connection_goes_on() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let mut client = Client::connect(&daemon);
        let mut long = vec![b'x'; 10 * MAX_REQUEST_LEN];
        long.push(b'\n');
        for (request, words) in [
            (&b"nonsense\n"[..], "not understood"),
            (b"\n", "not understood"),
            (b"\xff\xfe\n", "not understood"),
            (b"{\"v\":9,\"request\":{}}\n", "speaks version 1"),
            (b"{\"v\":1,\"request\":{\"halt\":{}}}\n", "unknown variant"),
            (&long, "longer than 65536 bytes"),
        ] {
            let answer = client.ask(request);
            let start = "{\"v\":1,\"response\":{\"error\":{\"why\":\"";
            assert!(
                answer.starts_with(start) && answer.contains(words),
                "{answer}"
            );
        }
        let empty = "{\"v\":1,\"response\":{\"status\":{\"ports\":[]}}}\n";
        assert_eq!(client.ask(STATUS.as_bytes()), empty);
        // Several in one write, and one in pieces.
        client.send(STATUS.repeat(3).as_bytes());
        for _ in 0..3 {
            assert_eq!(client.receive(), empty);
        }
        let (head, tail) = STATUS.as_bytes().split_at(9);
        client.send(head);
        assert_eq!(client.ask(tail), empty);
    });
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let _guest = LivingGuest::attach(|_| ());
        let mut slow = Client::connect(&daemon);
        // Until the daemon stops reading because nobody reads its answers.
        slow.0.get_mut().set_nonblocking(true).unwrap();
        let batch = STATUS.repeat(1000);
        let mut stuck = 0;
        while stuck < 50 {
            match slow.0.get_mut().write(batch.as_bytes()) {
                // How much of the batch it took does not matter.
                Ok(taken) => {
                    assert!(taken > 0);
                    stuck = 0;
                }
                Err(error) => {
                    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
                    stuck += 1;
                    // Each status is another client, served beside the slow one.
                    daemon.until_states(&["running"]);
                }
            }
        }
        daemon.succeed(&["set", "guest0", "--mtu", "1400"]);
    });
}

#[test]
fn one_client_too_many_is_told_so() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let mut clients: Vec<_> = (0..16).map(|_| Client::connect(&daemon)).collect();
        for client in &mut clients {
            assert!(client.ask(STATUS.as_bytes()).contains("ports"));
        }
        let words = daemon.fail(&["status"]);
        assert!(
            words.contains("16 clients administer this daemon already"),
            "{words}"
        );
        assert!(clients[15].ask(STATUS.as_bytes()).contains("ports"));
        // The daemon sees one go some time later.
        clients.pop();
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            let mut client = Client::connect(&daemon);
            client.send(STATUS.as_bytes());
            if client.receive().contains("ports") {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "no room again");
        }
    });
}

#[test]
fn a_guest_that_does_not_acknowledge_is_named_after_a_while() {
    in_private_network(|| async {
        let daemon = DaemonProcess::start(&[]);
        let guest = LivingGuest::attach(|_| ()).stop();
        let words = daemon.fail(&["set", "guest0", "--mtu", "1300"]);
        assert!(
            words.contains("guest0 has not acknowledged within 10 seconds"),
            "{words}"
        );
        drop(guest);
    });
}

#[test]
fn another_user_may_not_administer_through_an_abstract_name() {
    in_private_network(|| async {
        let _daemon = DaemonProcess::start(&["--admin", "@open"]);
        // SAFETY: only this thread's user changes: the system calls do not touch
        // the process's other threads.
        let asked = std::thread::spawn(|| unsafe {
            assert_eq!(libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534), 0);
            let address: shm_link::linux::address::Address = "@open".parse().unwrap();
            let mut socket = UnixStream::connect_addr(&address.socket_addr().unwrap()).unwrap();
            let mut answer = String::new();
            let _ = socket.write_all(STATUS.as_bytes());
            socket.read_to_string(&mut answer).ok();
            answer
        });
        let answer = asked.join().unwrap();
        assert!(
            answer.contains("it belongs to user 65534, and only root and the users with"),
            "{answer}"
        );
    });
}
