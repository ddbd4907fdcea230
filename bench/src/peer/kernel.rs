//! The kernel's TCP as a server: a thread per connection, and an epoll loop for
//! HTTP. It stands behind veth, the relay, pasta and slirp4netns.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::thread;

use demo_guest::pattern::Cycle;
use host_bridge::namespace::enter_private_network;
use socket2::{Domain, Socket, Type};

use super::ready;
use crate::Result;
use crate::client::bulk::as_linux_does;
use crate::service::{PIECE, Service};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// Serves on all addresses, for ever.
pub(super) fn run(private: bool) -> Result<()> {
    if private {
        enter_private_network()?;
    }
    let mut threads = Vec::new();
    for service in Service::ALL {
        let listener = listen(service.port())?;
        threads.push(thread::spawn(move || match service {
            Service::Http => super::kernel_http::serve(&listener),
            other => serve(&listener, other),
        }));
    }
    ready()?;
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

/// A listener for both IP versions.
fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    let address = std::net::SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    socket.bind(&address.into())?;
    as_linux_does(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn serve(listener: &TcpListener, service: Service) {
    for stream in listener.incoming().flatten() {
        thread::spawn(move || {
            // A client that goes ends its connection, not the server.
            let _ = match service {
                Service::Count => count(stream),
                Service::Endless => endless(stream),
                Service::Echo => echo(stream),
                Service::Http => Ok(()),
            };
        });
    }
}

fn count(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut cycle = Cycle::new(0);
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return writeln!(stream, "{}", cycle.position());
        }
        if !cycle.continues(&buffer[..n]) {
            return writeln!(stream, "wrong bytes before {}", cycle.position());
        }
    }
}

fn endless(mut stream: TcpStream) -> std::io::Result<()> {
    let mut cycle = Cycle::new(PIECE);
    stream.read_exact(&mut [0])?;
    loop {
        let n = stream.write(cycle.next_piece())?;
        cycle.advance(n);
    }
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; PIECE];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n])?;
    }
}
