//! The asynchronous face on virtual time, with an executor that polls a task
//! only when it was woken and a driver only when it has a reason to wake up, so
//! that a lost wake-up stops the test.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use embedded_io_async::{Read, Write};
use guest_stack::error::StreamError;
use guest_stack::face::asynchronous::{Network, Step};
use guest_stack::face::platform::Platform;
use guest_stack::tcp::options::TcpOptions;
use guest_stack::tcp::stream::Shutdown;
use guest_stack::time::{Duration, Instant};

use crate::common::{Cable, Impairment, TestLink, host, pattern, stack};

#[derive(Default)]
struct Flag(AtomicBool);

impl Flag {
    fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.set();
    }
}

/// A platform on the cable's time; nothing here may block.
struct Virtual {
    cable: Cable,
    kicked: Arc<Flag>,
}

impl Platform for Virtual {
    type RawMutex = parking_lot::RawMutex;

    fn now(&self) -> Instant {
        self.cable.now()
    }

    fn current_waker(&self) -> Waker {
        unreachable!("no thread waits in this test")
    }

    fn park(&self, _: Option<Instant>) {
        unreachable!("no thread waits in this test")
    }

    fn kick_driver(&self) {
        self.kicked.set();
    }
}

type Net = Network<TestLink, Virtual>;
type Task = Pin<Box<dyn Future<Output = ()>>>;

struct World {
    cable: Cable,
    nets: [Net; 2],
    kicked: [Arc<Flag>; 2],
    rung: [Arc<Flag>; 2],
    asleep: [Option<Instant>; 2],
    tasks: Vec<Option<(Task, Arc<Flag>)>>,
}

impl World {
    fn new(impairment: Impairment) -> Self {
        let cable = Cable::new(11);
        let kicked = [Arc::new(Flag::default()), Arc::new(Flag::default())];
        let rung = [Arc::new(Flag::default()), Arc::new(Flag::default())];
        let nets = [0, 1].map(|side| {
            let bell = Arc::clone(&rung[side]);
            cable.set_bell(side, Arc::new(move || bell.set()));
            let platform = Virtual {
                cable: cable.clone(),
                kicked: Arc::clone(&kicked[side]),
            };
            kicked[side].set();
            Network::new(stack(&cable, side), platform)
        });
        cable.impair(impairment);
        Self {
            cable,
            nets,
            kicked,
            rung,
            asleep: [None; 2],
            tasks: Vec::new(),
        }
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + 'static) {
        let flag = Arc::new(Flag::default());
        flag.set();
        self.tasks.push(Some((Box::pin(task), flag)));
    }

    /// Runs until all tasks are done.
    fn run(&mut self) {
        while self.tasks.iter().any(Option::is_some) {
            let mut idle = true;
            for place in &mut self.tasks {
                let Some((task, flag)) = place else { continue };
                if !flag.take() {
                    continue;
                }
                idle = false;
                let waker = Waker::from(Arc::clone(flag));
                if task.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Ready(()) {
                    *place = None;
                }
            }
            idle &= self.drive();
            if idle {
                let arrival = self.cable.next_arrival();
                let next = self.asleep.into_iter().flatten().chain(arrival).min();
                let next = next.expect("everybody sleeps and nobody will be woken");
                self.cable.advance_to(next.max(self.cable.now()));
                // A frame that was under way rings when it arrives.
                self.rung.iter().for_each(|rung| rung.set());
            }
        }
    }

    /// Gives each driver that has a reason its turn; whether none had.
    fn drive(&mut self) -> bool {
        let mut idle = true;
        for side in 0..2 {
            let now = self.cable.now();
            let due = self.asleep[side].is_some_and(|at| at <= now);
            if !due & !self.kicked[side].take() & !self.rung[side].take() {
                continue;
            }
            idle = false;
            self.asleep[side] = loop {
                if let Step::Sleep(until) = self.nets[side].step() {
                    break until;
                }
            };
        }
        idle
    }
}

#[test]
fn streams_echo_between_tasks_on_a_lossy_wire() {
    let mut world = World::new(Impairment {
        loss: 20,
        delay: Duration::from_millis(2),
        ..Impairment::default()
    });
    let listener = world.nets[1].listen(7, 16).unwrap();
    world.spawn(async move {
        for _ in 0..3 {
            let (stream, _) = listener.accept().await.unwrap();
            let (mut from, mut to) = stream.into_split();
            let mut buffer = [0; 3000];
            loop {
                let len = from.read(&mut buffer).await.unwrap();
                if len == 0 {
                    break;
                }
                to.write_all(&buffer[..len]).await.unwrap();
            }
        }
    });
    for (number, ipv6) in [(1, false), (2, true), (3, false)] {
        let net = world.nets[0].clone();
        world.spawn(async move {
            let stream = net.connect(host(1, ipv6, 7)).await.unwrap();
            let words = pattern(150_000, number);
            let (mut from, mut to) = stream.into_split();
            let writing = async {
                to.write_all(&words).await.unwrap();
                drop(to);
            };
            let reading = async {
                let mut got = vec![0; words.len()];
                from.read_exact(&mut got).await.unwrap();
                assert!(got == words);
                assert_eq!(from.read(&mut [0; 1]).await, Ok(0));
            };
            both(writing, reading).await;
        });
    }
    world.run();
}

#[test]
fn a_stream_is_read_where_it_lies_by_who_takes_less_than_is_shown() {
    let mut world = World::new(Impairment {
        loss: 20,
        delay: Duration::from_millis(2),
        ..Impairment::default()
    });
    let listener = world.nets[1].listen(7, 16).unwrap();
    world.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        // Some are left each time, and shown again.
        let mut take = |bytes: &[u8]| {
            assert!(!bytes.is_empty());
            let taken = bytes.len().min(1000);
            got.extend_from_slice(&bytes[..taken]);
            (taken, taken)
        };
        while let Some(taken) = stream.recv_with(&mut take).await.unwrap() {
            assert!((1..=1000).contains(&taken));
        }
        assert!(got == pattern(150_000, 4));
        assert_eq!(stream.recv(&mut [0; 1]).await, Ok(0));
    });
    let net = world.nets[0].clone();
    world.spawn(async move {
        let stream = net.connect(host(1, false, 7)).await.unwrap();
        stream.send_all(&pattern(150_000, 4)).await.unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.acknowledged().await.unwrap();
    });
    world.run();
}

/// Runs two futures in one task.
async fn both(a: impl Future<Output = ()>, b: impl Future<Output = ()>) {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    let (mut a_done, mut b_done) = (false, false);
    std::future::poll_fn(|cx| {
        a_done = a_done || a.as_mut().poll(cx).is_ready();
        b_done = b_done || b.as_mut().poll(cx).is_ready();
        if a_done && b_done {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

#[test]
fn what_cannot_be_waited_for_fails_instead() {
    let mut world = World::new(Impairment::default());
    let net = world.nets[0].clone();
    let server = world.nets[1].clone();
    world.spawn(async move {
        let refused = net.connect(host(1, false, 81)).await;
        assert_eq!(refused.err(), Some(StreamError::ConnectionRefused));
        let options = TcpOptions {
            connect_timeout: Duration::from_secs(3),
            ..TcpOptions::default()
        };
        let lost = net
            .connect_with("10.0.0.77:1".parse().unwrap(), options)
            .await;
        assert_eq!(lost.err(), Some(StreamError::TimedOut));
        // A reader that waits is woken by the reset of the other end.
        let listener = server.listen(80, 4).unwrap();
        let client = net.connect(host(1, false, 80)).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        let id = client.id();
        net.with(|stack, _| stack.sockets().tcp_abort(id));
        let reset = stream.recv(&mut [0; 8]).await;
        assert_eq!(reset, Err(StreamError::ConnectionReset));
    });
    world.run();
}

#[test]
fn a_reader_is_woken_when_its_half_is_shut_by_another_task() {
    let mut world = World::new(Impairment::default());
    let listener = world.nets[1].listen(80, 4).unwrap();
    let net = world.nets[0].clone();
    let shared = Rc::new(RefCell::new(None));
    let place = Rc::clone(&shared);
    world.spawn(async move {
        let stream = net.connect(host(1, false, 80)).await.unwrap();
        let stream = Rc::new(stream);
        *place.borrow_mut() = Some(Rc::clone(&stream));
        assert_eq!(stream.recv(&mut [0; 8]).await, Ok(0));
    });
    world.spawn(async move {
        let (peer, _) = listener.accept().await.unwrap();
        let stream = shared.borrow_mut().take().unwrap();
        stream.shutdown(Shutdown::Read).unwrap();
        peer.send_all(b"for nobody").await.unwrap();
        peer.acknowledged().await.unwrap();
    });
    world.run();
}

#[test]
fn datagrams_travel_between_tasks() {
    let mut world = World::new(Impairment::default());
    let server = world.nets[1].bind_udp(7).unwrap();
    let client = world.nets[0].bind_udp(0).unwrap();
    world.spawn(async move {
        let mut buffer = [0; 100];
        for _ in 0..100 {
            let (len, from) = server.recv_from(&mut buffer).await.unwrap();
            server.send_to(&buffer[..len], from).await.unwrap();
        }
    });
    world.spawn(async move {
        for number in 0..100_u8 {
            client
                .send_to(&[number; 3], host(1, true, 7))
                .await
                .unwrap();
            let mut buffer = [0; 100];
            let (len, from) = client.recv_from(&mut buffer).await.unwrap();
            assert_eq!((&buffer[..len], from), (&[number; 3][..], host(1, true, 7)));
        }
    });
    world.run();
}

#[test]
fn a_driver_with_nothing_to_do_sleeps_without_a_deadline() {
    let mut world = World::new(Impairment::default());
    let listener = world.nets[1].listen(80, 4).unwrap();
    let net = world.nets[0].clone();
    let streams = Rc::new(RefCell::new(Vec::new()));
    let place = Rc::clone(&streams);
    world.spawn(async move {
        let stream = net.connect(host(1, false, 80)).await.unwrap();
        place.borrow_mut().push(stream);
    });
    let place = Rc::clone(&streams);
    world.spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        place.borrow_mut().push(stream);
        std::mem::forget(listener);
    });
    world.run();
    while !world.drive() {}
    assert_eq!(world.asleep, [None, None]);
    assert_eq!(streams.borrow().len(), 2);
}

#[test]
fn a_driver_with_much_to_do_lets_other_tasks_run() {
    let cable = Cable::new(1);
    let kicked = Arc::new(Flag::default());
    let platform = Virtual {
        cable: cable.clone(),
        kicked: Arc::clone(&kicked),
    };
    let net = Network::new(stack(&cable, 0), platform);
    let mut peer = cable.end(1);
    let flood = 1000;
    for _ in 0..flood {
        peer.inject(&crate::frames::udp_frame(false, 9, 9, b"x"));
    }
    let flag = Arc::new(Flag::default());
    let waker = Waker::from(Arc::clone(&flag));
    let mut context = Context::from_waker(&waker);
    let driver = net.run_async(async |_| std::ops::ControlFlow::Break(()));
    let mut driver = std::pin::pin!(driver);
    let taken = || net.with(|stack, _| stack.sockets().counters().rx_frames);
    let mut turns = 0;
    while driver.as_mut().poll(&mut context) == Poll::Pending {
        assert!(flag.take(), "it comes back by itself");
        turns += 1;
        assert!(taken() <= turns * 64, "turn {turns}");
    }
    assert_eq!(taken(), flood);
    assert!(turns >= flood / 64);
}

#[test]
fn what_sends_nothing_does_not_wake_the_driver() {
    let mut world = World::new(Impairment::default());
    while !world.drive() {}
    let net = world.nets[0].clone();
    let listener = net.listen(80, 4).unwrap();
    let socket = net.bind_udp(9).unwrap();
    assert!(!world.kicked[0].take());
    // A connection attempt does, once: the driver keeps its timers.
    let remote = host(1, false, 80);
    let connect = std::pin::pin!(net.connect(remote));
    let waker = Waker::from(Arc::new(Flag::default()));
    let first = connect.poll(&mut Context::from_waker(&waker));
    assert!(first.is_pending());
    assert!(world.kicked[0].take());
    drop((listener, socket));
}
