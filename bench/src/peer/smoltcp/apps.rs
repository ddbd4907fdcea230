//! The services on smoltcp's sockets: each socket listens, serves one client, and
//! listens again.

use demo_guest::pattern::Cycle;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use crate::peer::Serve;
use crate::service::{PIECE, Service, page};

/// All sockets, and where each client is.
pub(super) struct Apps {
    clients: Vec<Client>,
    buffer_bytes: usize,
    piece: Vec<u8>,
    page: Vec<u8>,
}

struct Client {
    handle: SocketHandle,
    service: Service,
    cycle: Cycle,
    held: Vec<u8>,
    /// Bytes of an answer, or of an echo, that found no room yet.
    pending: Vec<u8>,
    answered: bool,
}

impl Apps {
    /// Makes the sockets and lets them listen.
    pub(super) fn new(
        serve: &[Serve],
        buffer_bytes: usize,
        sockets: &mut SocketSet<'static>,
    ) -> Self {
        let all = serve
            .iter()
            .flat_map(|serve| std::iter::repeat_n(serve.service, serve.sockets));
        let clients = all.map(|service| Client {
            handle: sockets.add(listening(service, buffer_bytes)),
            service,
            cycle: fresh_cycle(service),
            held: Vec::new(),
            pending: Vec::new(),
            answered: false,
        });
        Self {
            clients: clients.collect(),
            buffer_bytes,
            piece: vec![0; PIECE],
            page: page(),
        }
    }

    /// Gives every client a turn; says whether something was done.
    pub(super) fn run(&mut self, sockets: &mut SocketSet<'static>) -> bool {
        let mut busy = false;
        for client in &mut self.clients {
            let socket: &mut Socket = sockets.get_mut(client.handle);
            match socket.state() {
                State::Listen | State::SynSent | State::SynReceived => continue,
                // Nobody needs what a socket in TIME-WAIT keeps: a benchmark's
                // client does not use its port again so soon.
                State::Closed | State::TimeWait => {
                    *socket = listening(client.service, self.buffer_bytes);
                    client.begin_again();
                    busy = true;
                }
                _ => busy |= client.serve(socket, &mut self.piece, &self.page),
            }
        }
        busy
    }

    /// Whether a client is there.
    pub(super) fn active(&self, sockets: &SocketSet<'static>) -> bool {
        let state = |client: &Client| sockets.get::<Socket>(client.handle).state();
        let active = |client| !matches!(state(client), State::Listen | State::Closed);
        self.clients.iter().any(active)
    }
}

impl Client {
    fn begin_again(&mut self) {
        self.cycle = fresh_cycle(self.service);
        self.held.clear();
        self.pending.clear();
        self.answered = false;
    }

    fn serve(&mut self, socket: &mut Socket, piece: &mut [u8], page: &[u8]) -> bool {
        let mut busy = self.send_pending(socket);
        match self.service {
            Service::Count => {
                while socket.can_recv() {
                    let Ok(n) = socket.recv_slice(piece) else {
                        break;
                    };
                    busy = true;
                    if !self.cycle.continues(&piece[..n]) {
                        socket.abort();
                        return true;
                    }
                }
                if !socket.may_recv() && !self.answered {
                    self.answered = true;
                    let answer = format!("{}\n", self.cycle.position());
                    self.pending.extend_from_slice(answer.as_bytes());
                    busy = true;
                }
            }
            Service::Endless => {
                if !socket.may_recv() {
                    socket.abort();
                    return true;
                }
                if socket.can_recv() {
                    // The byte after which it begins.
                    self.held.push(0);
                    let _ = socket.recv_slice(piece);
                }
                while !self.held.is_empty() && socket.can_send() {
                    let Ok(n) = socket.send_slice(self.cycle.next_piece()) else {
                        break;
                    };
                    self.cycle.advance(n);
                    busy = true;
                }
            }
            Service::Echo => {
                while self.pending.is_empty() && socket.can_recv() {
                    let Ok(n) = socket.recv_slice(piece) else {
                        break;
                    };
                    self.pending.extend_from_slice(&piece[..n]);
                    busy |= self.send_pending(socket);
                }
                self.answered = !socket.may_recv();
            }
            Service::Http => {
                while socket.can_recv() {
                    let Ok(n) = socket.recv_slice(piece) else {
                        break;
                    };
                    self.held.extend_from_slice(&piece[..n]);
                    busy = true;
                }
                let whole = self.held.windows(4).any(|four| four == b"\r\n\r\n");
                if whole && !self.answered {
                    self.answered = true;
                    self.pending.extend_from_slice(page);
                }
            }
        }
        busy |= self.send_pending(socket);
        if self.answered && self.pending.is_empty() && socket.may_send() {
            socket.close();
            busy = true;
        }
        busy
    }

    fn send_pending(&mut self, socket: &mut Socket) -> bool {
        match socket.send_slice(&self.pending) {
            Ok(n @ 1..) => {
                self.pending.drain(..n);
                true
            }
            Ok(0) | Err(_) => false,
        }
    }
}

fn fresh_cycle(service: Service) -> Cycle {
    Cycle::new(if service == Service::Endless {
        PIECE
    } else {
        0
    })
}

fn listening(service: Service, buffer_bytes: usize) -> Socket<'static> {
    let buffer = || SocketBuffer::new(vec![0; buffer_bytes]);
    let mut socket = Socket::new(buffer(), buffer());
    // Their defaults delay a lone segment of 64 KB, and a message in parts.
    socket.set_ack_delay(None);
    socket.set_nagle_enabled(false);
    socket
        .listen(service.port())
        .expect("a fresh socket, and a port that is not 0");
    socket
}
