//! passt's socket as a device of smoltcp: frames behind a length of four bytes, big
//! endian, as QEMU's stream network backend has them.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;

use host_bridge::child::Helper;
use rustix::event::{PollFd, PollFlags};
use rustix::io::FdFlags;
use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::Result;
use crate::measure::NOT_INSTALLED;
use crate::service::Service;

const LENGTH_LEN: usize = 4;
const ETHERNET_LEN: usize = 14;
/// Bytes taken out of the socket at once, and put into it.
const BATCH: usize = 256 << 10;

/// The device, and passt at its other end.
pub(super) struct Passt {
    socket: Arc<UnixStream>,
    mtu: usize,
    /// What came, from `begin` to `end`.
    rx: Vec<u8>,
    begin: usize,
    end: usize,
    /// What did not go yet.
    tx: Vec<u8>,
    _passt: Helper,
}

impl Passt {
    /// Starts passt in this namespace, with its ports forwarded to the guest.
    pub(super) fn start(mtu: usize) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let theirs = OwnedFd::from(theirs);
        rustix::io::fcntl_setfd(&theirs, FdFlags::empty())?;
        let ports = Service::ALL.map(|service| service.port().to_string());
        let mut command = Command::new("passt");
        command.args(["-f", "-q", "-F", &theirs.as_raw_fd().to_string()]);
        command.args(["-m", &mtu.to_string(), "-t", &ports.join(",")]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null());
        let passt = Helper::spawn(command).map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!("{NOT_INSTALLED}: passt"),
            _ => format!("passt: {error}"),
        })?;
        Ok(Self {
            socket: Arc::new(ours),
            mtu,
            rx: Vec::new(),
            begin: 0,
            end: 0,
            tx: Vec::with_capacity(BATCH),
            _passt: passt,
        })
    }

    /// The socket, to wait for it.
    pub(super) fn socket(&self) -> Arc<UnixStream> {
        self.socket.clone()
    }

    /// The next whole frame's place in the buffer.
    fn next(&mut self) -> Option<(usize, usize)> {
        loop {
            let held = &self.rx[self.begin..self.end];
            if let Some(head) = held.first_chunk::<LENGTH_LEN>() {
                let len = u32::from_be_bytes(*head) as usize;
                if held.len() >= LENGTH_LEN + len {
                    let start = self.begin + LENGTH_LEN;
                    self.begin = start + len;
                    return Some((start, len));
                }
            }
            self.rx.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
            if !self.read_more() {
                return None;
            }
        }
    }

    /// Takes in what there is; says whether that was anything.
    fn read_more(&mut self) -> bool {
        if self.rx.len() - self.end < BATCH {
            self.rx.resize(self.end + BATCH, 0);
        }
        match (&*self.socket).read(&mut self.rx[self.end..]) {
            Ok(n @ 1..) => {
                self.end += n;
                true
            }
            _ => false,
        }
    }

    /// Gives what waits to passt. What it does not take now, it must take later:
    /// half a frame would shift all that follow. Meanwhile what it has for us is
    /// taken in, or both would wait for each other.
    pub(super) fn flush(&mut self) {
        let mut sent = 0;
        while sent < self.tx.len() {
            match (&*self.socket).write(&self.tx[sent..]) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let events = PollFlags::IN | PollFlags::OUT;
                    let mut fds = [PollFd::new(&self.socket, events)];
                    let _ = rustix::event::poll(&mut fds, None);
                    self.read_more();
                }
                Err(_) => break,
            }
        }
        self.tx.clear();
    }
}

impl Device for Passt {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let (start, len) = self.next()?;
        Some((RxToken(&self.rx[start..start + len]), TxToken(&mut self.tx)))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken<'_>> {
        if self.tx.len() >= BATCH {
            self.flush();
        }
        Some(TxToken(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = ETHERNET_LEN + self.mtu;
        caps
    }
}

/// A received frame.
pub(super) struct RxToken<'a>(&'a [u8]);

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// Room for a frame.
pub(super) struct TxToken<'a>(&'a mut Vec<u8>);

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        self.0.extend_from_slice(&(len as u32).to_be_bytes());
        let start = self.0.len();
        self.0.resize(start + len, 0);
        write(&mut self.0[start..])
    }
}
