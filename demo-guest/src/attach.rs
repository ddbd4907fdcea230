//! The ways to the bridge: shared memory with doorbells, or a byte stream.
//!
//! The main loop is the same for both. A way makes a link, says what to wait for
//! while nothing is to be done, and notices when the bridge is gone.

use std::fmt;
use std::fs::File;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use shm_link::doorbell::Doorbell;
use shm_link::link::{FrameRx, Link, MAX_FRAME_LEN};
use shm_link::linux::address::Address;
use shm_link::linux::attach::Attachment;
use shm_link::linux::event::EventFd;
use shm_link::shm::ShmLink;
use shm_link::stream::fd::StreamFd;
use shm_link::stream::{Framing, StreamLink};

use crate::Error;

/// How long one attempt to attach may take.
const ATTACH_TIMEOUT: Duration = Duration::from_secs(10);

/// An attachment to the bridge, beside the link that the stack has.
pub(crate) trait Attached: Sized {
    /// Where the bridge is.
    type Place: fmt::Display;
    /// What the frames go over.
    type Link: Link + Send + 'static;

    /// Attaches anew.
    fn attach(place: &Self::Place) -> Result<(Self, Self::Link), Error>;

    /// Attaches again, after the bridge was gone: as the same guest, where that can be
    /// said.
    fn attach_again(&self, place: &Self::Place) -> Result<(Self, Self::Link), Error> {
        Self::attach(place)
    }

    /// What wakes the guest, given its link.
    fn wakers(&self, link: &Self::Link) -> [PollFd<'_>; 2];

    /// Takes note of which wakers are ready, and of whether the stack has found the link's
    /// end; `false`: the bridge is gone.
    fn woken(&self, ready: [bool; 2], ended: bool, link: &mut Self::Link) -> bool;

    /// Says goodbye where the end of the process does not.
    fn leave(&self, _link: &mut Self::Link) {}
}

/// Memory shared with the bridge.
pub(crate) struct Memory(Attachment);

/// Rings the bridge.
#[derive(Clone)]
pub(crate) struct HostBell(Arc<EventFd>);

impl Doorbell for HostBell {
    fn ring(&self) {
        self.0.ring();
    }
}

impl Memory {
    fn over(attachment: Attachment) -> Result<(Self, ShmLink<HostBell>), Error> {
        let bell = HostBell(Arc::new(attachment.ring_host.try_clone()?));
        // SAFETY: a guest trusts its host: the bridge keeps to the layout.
        let link = unsafe { ShmLink::attach(attachment.memory.region(), bell) }?;
        Ok((Self(attachment), link))
    }
}

impl Attached for Memory {
    type Place = Address;
    type Link = ShmLink<HostBell>;

    fn attach(place: &Address) -> Result<(Self, Self::Link), Error> {
        Self::over(Attachment::connect(place, ATTACH_TIMEOUT)?)
    }

    fn attach_again(&self, place: &Address) -> Result<(Self, Self::Link), Error> {
        let id = self.0.id;
        Self::over(Attachment::connect_again(place, id, ATTACH_TIMEOUT)?)
    }

    fn wakers(&self, _: &Self::Link) -> [PollFd<'_>; 2] {
        [
            PollFd::new(&self.0.doorbell, PollFlags::IN),
            PollFd::new(&self.0.socket, PollFlags::IN),
        ]
    }

    fn woken(&self, [rung, socket]: [bool; 2], _: bool, _: &mut Self::Link) -> bool {
        if rung {
            self.0.doorbell.drain();
        }
        !socket || self.0.daemon_alive()
    }
}

/// Where a byte stream to the bridge is.
pub(crate) enum StreamPlace {
    /// A unix socket.
    Socket(Address),
    /// A serial line.
    Line(PathBuf),
}

impl fmt::Display for StreamPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Line(device) => device.display().fmt(f),
        }
    }
}

impl StreamPlace {
    fn open(&self) -> Result<(StreamFd, Framing), Error> {
        Ok(match self {
            Self::Socket(address) => {
                let address = match address.path() {
                    Some(path) => SocketAddr::from_pathname(path)?,
                    None => abstract_name(&address.to_string())?,
                };
                let socket = UnixStream::connect_addr(&address)?;
                (StreamFd::new(socket.into())?, Framing::Prefixed)
            }
            Self::Line(device) => {
                let line = File::options().read(true).write(true).open(device)?;
                (StreamFd::new_raw_terminal(line.into())?, Framing::Serial)
            }
        })
    }
}

/// The name behind the @ that people write.
fn abstract_name(text: &str) -> Result<SocketAddr, Error> {
    use std::os::linux::net::SocketAddrExt;
    let name = text.strip_prefix('@').unwrap_or(text);
    Ok(SocketAddr::from_abstract_name(name)?)
}

/// A byte stream to the bridge.
pub(crate) struct Stream {
    fd: StreamFd,
}

impl Attached for Stream {
    type Place = StreamPlace;
    type Link = StreamLink<StreamFd, StreamFd, Vec<u8>>;

    fn attach(place: &StreamPlace) -> Result<(Self, Self::Link), Error> {
        let opened = place.open();
        let (fd, framing) = opened.map_err(|error| format!("opening {place}: {error}"))?;
        let end = || (fd.clone(), vec![0; framing.buffer_len(MAX_FRAME_LEN)]);
        let link = StreamLink::new(framing, MAX_FRAME_LEN, end(), end())?;
        Ok((Self { fd }, link))
    }

    fn wakers(&self, link: &Self::Link) -> [PollFd<'_>; 2] {
        let mut events = PollFlags::empty();
        events.set(PollFlags::IN, link.wants_read());
        events.set(PollFlags::OUT, link.wants_write());
        // There is only one.
        [
            PollFd::new(&self.fd, events),
            PollFd::new(&self.fd, PollFlags::empty()),
        ]
    }

    fn woken(&self, [ready, _]: [bool; 2], ended: bool, link: &mut Self::Link) -> bool {
        // Who writes notices the end first, and may leave frames unread.
        !ended && (!ready || link.split().0.peek().is_ok())
    }

    fn leave(&self, link: &mut Self::Link) {
        link.close();
    }
}
