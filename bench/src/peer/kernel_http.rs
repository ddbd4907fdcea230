//! A plain HTTP server on epoll: one thread, answers and closes.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;

use crate::service::page;

/// Serves for ever; a failure of epoll itself ends it.
pub(super) fn serve(listener: &TcpListener) {
    if let Err(error) = run(listener) {
        eprintln!("the HTTP server ended: {error}");
    }
}

fn run(listener: &TcpListener) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let page = page();
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections: HashMap<RawFd, (TcpStream, Vec<u8>)> = HashMap::new();
    watch(&epoll, listener, listener.as_raw_fd())?;
    let mut events = Vec::with_capacity(256);
    loop {
        events.clear();
        match epoll::wait(&epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            let fd = event.data.u64() as RawFd;
            if fd == listener.as_raw_fd() {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    let fd = stream.as_raw_fd();
                    watch(&epoll, &stream, fd)?;
                    connections.insert(fd, (stream, Vec::new()));
                }
            } else if let Some((stream, held)) = connections.get_mut(&fd)
                && answer(stream, held, &page)
            {
                // Closing it also takes it out of the epoll set.
                connections.remove(&fd);
            }
        }
    }
}

fn watch(epoll: &OwnedFd, fd: impl std::os::fd::AsFd, name: RawFd) -> std::io::Result<()> {
    let data = epoll::EventData::new_u64(name as u64);
    Ok(epoll::add(epoll, fd, data, epoll::EventFlags::IN)?)
}

/// Reads what there is and answers a whole head; says whether the connection is
/// done.
fn answer(stream: &mut TcpStream, held: &mut Vec<u8>, page: &[u8]) -> bool {
    let mut buffer = [0; 2048];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(n) => held.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => return true,
        }
        if held.windows(4).any(|four| four == b"\r\n\r\n") {
            let _ = stream.write_all(page);
            return true;
        }
    }
}
