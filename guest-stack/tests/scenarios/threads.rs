//! The blocking face with real threads: one driver per stack, sleeping on a
//! doorbell, and threads that wait in reads, writes and accepts.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use embedded_io::{Read, Write};
use guest_stack::error::{StreamError, UdpError};
use guest_stack::face::asynchronous::Network;
use guest_stack::face::blocking::{TcpListener, TcpStream, UdpSocket};
use guest_stack::face::platform::StdPlatform;
use guest_stack::tcp::stream::Shutdown;
use guest_stack::time::Instant;

use crate::common::{Cable, TestLink, host, pattern, stack};

type Net = Network<TestLink, StdPlatform>;

/// A doorbell that remembers one ring.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Bell {
    fn ring(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_all();
    }

    fn wait(&self, timeout: Option<Duration>) {
        let mut rung = self.0.lock().unwrap();
        while !*rung {
            match timeout {
                None => rung = self.1.wait(rung).unwrap(),
                Some(timeout) => {
                    rung = self.1.wait_timeout(rung, timeout).unwrap().0;
                    break;
                }
            }
        }
        *rung = false;
    }
}

/// Runs `test` between two stacks with a driver thread each.
fn between(test: impl FnOnce(Net, Net)) {
    let cable = Cable::new(1);
    let stop = Arc::new(AtomicBool::new(false));
    let parts = [0, 1].map(|side| {
        let bell = Arc::new(Bell::default());
        let rings = Arc::clone(&bell);
        cable.set_bell(side, Arc::new(move || rings.ring()));
        let rings = Arc::clone(&bell);
        let platform = StdPlatform::new(move || rings.ring());
        let net = Network::new(stack(&cable, side), platform);
        let driver = {
            let (net, bell, stop) = (net.clone(), Arc::clone(&bell), Arc::clone(&stop));
            thread::spawn(move || {
                net.run(|until: Option<Instant>| {
                    if stop.load(Ordering::SeqCst) {
                        return ControlFlow::Break(());
                    }
                    bell.wait(until.map(|until| net.platform().duration_until(until)));
                    ControlFlow::Continue(())
                });
            })
        };
        (net, bell, driver)
    });
    test(parts[0].0.clone(), parts[1].0.clone());
    stop.store(true, Ordering::SeqCst);
    for (_, bell, driver) in parts {
        bell.ring();
        driver.join().unwrap();
    }
}

#[test]
fn threads_echo_through_blocking_streams() {
    between(|client, server| {
        let listener = TcpListener::bind(&server, 7, 16).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..4 {
                    let (mut stream, _) = listener.accept().unwrap();
                    scope.spawn(move || {
                        let mut buffer = [0; 4096];
                        loop {
                            let len = stream.read(&mut buffer).unwrap();
                            if len == 0 {
                                return;
                            }
                            stream.write_all(&buffer[..len]).unwrap();
                        }
                    });
                }
            });
            for number in 0..4 {
                let client = client.clone();
                scope.spawn(move || {
                    let to = host(1, number % 2 == 0, 7);
                    let stream = TcpStream::connect(&client, to).unwrap();
                    let words = pattern(400_000, number + 1);
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            (&stream).write_all(&words).unwrap();
                            stream.shutdown(Shutdown::Write).unwrap();
                        });
                        let mut got = vec![0; words.len()];
                        (&stream).read_exact(&mut got).unwrap();
                        assert!(got == words);
                        assert_eq!((&stream).read(&mut [0; 1]), Ok(0));
                    });
                });
            }
        });
    });
}

#[test]
fn a_read_timeout_runs_out_and_the_stream_is_unharmed() {
    between(|client, server| {
        let listener = TcpListener::bind(&server, 7, 16).unwrap();
        let stream = TcpStream::connect(&client, host(1, false, 7)).unwrap();
        let (peer, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(20)));
        assert_eq!(stream.recv(&mut [0; 8]), Err(StreamError::TimedOut));
        stream.set_read_timeout(None);
        peer.send(b"now").unwrap();
        assert_eq!(stream.recv(&mut [0; 8]), Ok(3));
        let socket = UdpSocket::bind(&client, 0).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20)));
        assert_eq!(socket.recv_from(&mut [0; 8]), Err(UdpError::TimedOut));
    });
}

#[test]
fn a_writer_waits_for_a_reader_that_is_slow() {
    between(|client, server| {
        let listener = TcpListener::bind(&server, 7, 16).unwrap();
        let mut stream = TcpStream::connect(&client, host(1, true, 7)).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let words = pattern(1_000_000, 5);
        thread::scope(|scope| {
            scope.spawn(|| stream.write_all(&words).unwrap());
            let mut got = vec![0; words.len()];
            for piece in got.chunks_mut(1000) {
                peer.read_exact(piece).unwrap();
            }
            assert!(got == words);
        });
        stream.acknowledged().unwrap();
    });
}

#[test]
fn datagrams_cross_between_threads() {
    between(|client, server| {
        let server = UdpSocket::bind(&server, 7).unwrap();
        let client = UdpSocket::bind(&client, 0).unwrap();
        client.send_to(b"there", host(1, false, 7)).unwrap();
        let (_, from) = server.recv_from(&mut [0; 8]).unwrap();
        server.send_to(b"and back", from).unwrap();
        assert_eq!(client.recv_from(&mut [0; 8]), Ok((8, host(1, false, 7))));
    });
}
