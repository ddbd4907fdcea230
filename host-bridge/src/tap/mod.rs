//! A Linux TAP interface: the host's end of a guest's link.
//!
//! The port opens one [`Tap`] per guest and gives it to the two pumps, which
//! read and write whole Ethernet frames straight from and to the rings. The
//! descriptor never blocks. Addresses, MTU and bridges are set elsewhere, in
//! [`netlink`](crate::netlink); nothing here waits or logs.
//!
//! Two kinds: plain TAPs (through `tun-tap`), with nothing in front of a frame,
//! and TAPs with a virtio header in front of each, on which frames may be 64 KB
//! long and their checksums unfinished. One frame per system call in both.

mod sys;

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, FdFlags};
use rustix::net::{AddressFamily, SocketType, netdevice};
use shm_link::offload::{OFFLOAD_HEADER_LEN, OffloadHeader, Offloads};
use tun_tap::{Iface, Mode};

pub use self::sys::RawSlice;
use crate::error::TapError;

/// The driver's device file.
const DEVICE: &str = "/dev/net/tun";
/// Longest name of an interface, in bytes (`IFNAMSIZ` without the closing zero).
const MAX_NAME_LEN: usize = 15;

/// What there is.
pub(crate) const ALL_OFFLOADS: Offloads = TCP_OFFLOADS.union(Offloads::USO);
/// All that kernels before Linux 6.2 know.
pub(crate) const TCP_OFFLOADS: Offloads = Offloads::CHECKSUM
    .union(Offloads::TSO4)
    .union(Offloads::TSO6);

/// Where a TAP comes from.
#[derive(Debug)]
pub enum TapSource {
    /// A new TAP, which goes when the [`Tap`] does. The name may be a pattern
    /// with one `%d`, for which the kernel takes the first free number; without
    /// a name it is `tap%d`.
    Create {
        /// The name or pattern.
        name: Option<String>,
    },
    /// A persistent TAP that somebody made before; it stays.
    Existing {
        /// Its name.
        name: String,
    },
    /// A descriptor that is attached to a TAP already, opened by a process with
    /// more rights. It must have been attached with `IFF_TAP | IFF_NO_PI`; the
    /// kernel gives no way to check the second.
    Fd(OwnedFd),
    /// The same, of a TAP that serves a guest already: nothing of it is changed, and
    /// frames on their way stay there.
    Kept(OwnedFd),
}

/// How frames look on the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TapKind {
    /// Frames as they are.
    Plain,
    /// An [`OffloadHeader`] of 12 bytes in front
    /// of each frame. The kernel finishes what the header leaves undone, and
    /// leaves undone what [`Tap::set_offloads`] allows.
    VnetHeader,
}

impl TapKind {
    /// How many bytes of header precede each frame, in both directions.
    pub const fn header_len(self) -> usize {
        match self {
            Self::Plain => 0,
            Self::VnetHeader => OFFLOAD_HEADER_LEN,
        }
    }
}

/// An open TAP interface.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
    kind: TapKind,
    persistent: bool,
    kept: bool,
    ifindex: Option<u32>,
}

impl Tap {
    /// Opens a plain TAP.
    ///
    /// # Errors
    /// As for [`open_as`](Self::open_as).
    pub fn open(source: TapSource) -> Result<Self, TapError> {
        Self::open_as(source, TapKind::Plain)
    }

    /// Opens a TAP of this kind: non-blocking, closed on exec, with all offloads
    /// off for now. A descriptor that was passed in is of the kind it is.
    ///
    /// # Errors
    /// [`TapError`], in words for the administrator.
    pub fn open_as(source: TapSource, kind: TapKind) -> Result<Self, TapError> {
        match source {
            TapSource::Create { name } => Self::create(name.as_deref().unwrap_or("tap%d"), kind),
            TapSource::Existing { name } => Self::attach(&name, kind),
            TapSource::Fd(fd) => Self::adopt(fd, false),
            TapSource::Kept(fd) => Self::adopt(fd, true),
        }
    }

    fn create(name: &str, kind: TapKind) -> Result<Self, TapError> {
        check_name(name, true)?;
        let taken = || TapError::NameTaken {
            name: name.to_owned(),
        };
        if index_of(name)?.is_some() {
            return Err(taken());
        }
        let tap = Self::from_fd(open_iface(name, kind)?, name)?;
        if tap.persistent {
            // Somebody made it between the look and the open.
            return Err(taken());
        }
        Ok(tap)
    }

    fn attach(name: &str, kind: TapKind) -> Result<Self, TapError> {
        check_name(name, false)?;
        let missing = || TapError::NoSuchTap {
            name: name.to_owned(),
        };
        if index_of(name)?.is_none() {
            return Err(missing());
        }
        let tap = Self::from_fd(open_iface(name, kind)?, name)?;
        if !tap.persistent {
            // It went between the look and the open, which made a new one.
            return Err(missing());
        }
        Ok(tap)
    }

    fn adopt(fd: OwnedFd, kept: bool) -> Result<Self, TapError> {
        let attachment = sys::attachment(&fd).map_err(|_| TapError::NotATapDescriptor)?;
        if !attachment.is_tap() {
            return Err(TapError::NotATapDescriptor);
        }
        let is_here = in_this_network_namespace(&fd);
        Self::set_up(fd, attachment, is_here, kept)
    }

    fn from_fd(fd: OwnedFd, name: &str) -> Result<Self, TapError> {
        let attachment = sys::attachment(&fd).map_err(io_error("examining", name))?;
        Self::set_up(fd, attachment, true, false)
    }

    fn set_up(
        fd: OwnedFd,
        attachment: sys::Attachment,
        is_here: bool,
        kept: bool,
    ) -> Result<Self, TapError> {
        let name = &attachment.name;
        rustix::io::ioctl_fionbio(&fd, true)
            .map_err(|e| io_error("making non-blocking", name)(e.into()))?;
        rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)
            .map_err(|e| io_error("protecting from child processes", name)(e.into()))?;
        if !kept {
            sys::set_offloads(&fd, 0).map_err(io_error("switching off the offloads of", name))?;
        }
        let kind = match attachment.has_vnet_header() {
            true => TapKind::VnetHeader,
            false => TapKind::Plain,
        };
        if kind == TapKind::VnetHeader {
            sys::set_vnet_header_len(&fd, kind.header_len())
                .map_err(io_error("setting the header length of", name))?;
        }
        Ok(Self {
            ifindex: if is_here { index_of(name)? } else { None },
            persistent: attachment.is_persistent(),
            kept,
            kind,
            name: attachment.name,
            fd,
        })
    }

    /// The interface's name, as the kernel gave it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface's index, to configure it by. `None` when the descriptor
    /// was passed in from another network namespace (or from one that this
    /// process may not look at): then the interface cannot be configured from
    /// here.
    pub fn ifindex(&self) -> Option<u32> {
        self.ifindex
    }

    /// Whether the interface stays when this descriptor is closed.
    pub fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Whether it serves a guest already.
    pub fn is_kept(&self) -> bool {
        self.kept
    }

    /// How frames look on the descriptor.
    pub fn kind(&self) -> TapKind {
        self.kind
    }

    /// What the kernel can leave undone in frames from it, and finish in frames to it.
    pub fn capable(&self) -> Offloads {
        match self.kind {
            TapKind::Plain => Offloads::NONE,
            TapKind::VnetHeader if sys::cuts_udp() => ALL_OFFLOADS,
            TapKind::VnetHeader => TCP_OFFLOADS,
        }
    }

    /// What frames from the kernel may leave undone from now on. Says what the
    /// kernel agreed to: an older one knows no USO. A plain TAP agrees to
    /// nothing.
    ///
    /// # Errors
    /// The system's, as [`classify`] explains.
    pub fn set_offloads(&self, wanted: Offloads) -> io::Result<Offloads> {
        if self.kind == TapKind::Plain {
            return Ok(Offloads::NONE);
        }
        match sys::set_offloads(&self.fd, tun_bits(wanted)) {
            Ok(()) => Ok(wanted),
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                let wanted = wanted.intersection(TCP_OFFLOADS);
                sys::set_offloads(&self.fd, tun_bits(wanted)).map(|()| wanted)
            }
            Err(error) => Err(error),
        }
    }

    /// Says whether the cable is plugged in: the kernel reports it to whoever
    /// watches the interface, and sends nothing while it is not.
    ///
    /// # Errors
    /// The system's, as [`classify`] explains.
    pub fn set_carrier(&self, on: bool) -> io::Result<()> {
        sys::set_carrier(&self.fd, on)
    }

    /// Whether the interface is still there.
    ///
    /// # Errors
    /// The system's, as [`classify`] explains: it is not.
    pub fn check(&self) -> io::Result<()> {
        sys::attachment(&self.fd).map(drop)
    }

    /// Reads one frame to `start`, and says how long it is and what is left to do
    /// for it. A frame that is longer than `len` loses its end without a sign:
    /// give room for MTU, Ethernet header and a VLAN tag, or for 64 KB where
    /// segmentation was left to the reader.
    ///
    /// # Safety
    /// `start` is valid for writes of `len` bytes for the length of the call.
    /// Others may read and write them at the same time.
    ///
    /// # Errors
    /// The system's, as [`classify`] explains.
    pub unsafe fn read_raw(
        &self,
        start: *mut u8,
        len: usize,
    ) -> io::Result<(usize, OffloadHeader)> {
        // What the kernel does not fill in stays zero.
        let mut header = [0; OFFLOAD_HEADER_LEN];
        let used = &mut header[..self.kind.header_len()];
        // SAFETY: the caller's promise is the same.
        let read = unsafe { sys::readv(self.fd.as_fd(), used, start, len) }?;
        Ok((
            read.saturating_sub(self.kind.header_len()),
            OffloadHeader::from_bytes(header),
        ))
    }

    /// Writes `parts`, one behind the other, as one frame for which `offload` is
    /// left to do. All or nothing. On a plain TAP nothing may be left to do.
    ///
    /// # Safety
    /// Each part is valid for reads of its length for the length of the call.
    /// Others may read and write them at the same time.
    ///
    /// # Errors
    /// The system's, as [`classify`] explains.
    pub unsafe fn writev_raw(
        &self,
        offload: OffloadHeader,
        parts: [RawSlice; 2],
    ) -> io::Result<()> {
        let header = offload.to_bytes();
        let [first, second] = parts;
        let all = [RawSlice::new(header.as_ptr(), header.len()), first, second];
        let used = match self.kind {
            TapKind::Plain => &all[1..],
            TapKind::VnetHeader => &all[..],
        };
        // SAFETY: the caller's promise for its parts; the header is ours.
        unsafe { sys::writev(self.fd.as_fd(), used) }.map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// What an error of [`Tap::read_raw`] or [`Tap::writev_raw`] means for the pump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TapTrouble {
    /// Nothing to read or no room to write now: wait for readiness.
    NotNow,
    /// A signal came in between: try again.
    Interrupted,
    /// The interface is administratively down (`EIO`): this frame is lost, later
    /// ones may pass.
    Down,
    /// The kernel has no memory for this frame (`ENOBUFS`, `ENOMEM`): it is
    /// lost.
    NoRoom,
    /// The kernel will not have this frame: too short or too long (`EINVAL`,
    /// `EMSGSIZE`).
    BadFrame,
    /// The interface was deleted (`EBADFD`): the TAP must be opened anew.
    Gone,
    /// Anything else: this descriptor is of no more use.
    Broken,
}

/// Sorts an error of a read or a write.
pub fn classify(error: &io::Error) -> TapTrouble {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN) => TapTrouble::NotNow,
        Some(Errno::INTR) => TapTrouble::Interrupted,
        Some(Errno::IO) => TapTrouble::Down,
        Some(Errno::NOBUFS | Errno::NOMEM) => TapTrouble::NoRoom,
        Some(Errno::INVAL | Errno::MSGSIZE) => TapTrouble::BadFrame,
        Some(Errno::BADFD) => TapTrouble::Gone,
        _ => TapTrouble::Broken,
    }
}

/// Checks a name by the kernel's rules, so that the kernel neither shortens it
/// nor refuses it without a word.
fn check_name(name: &str, pattern_allowed: bool) -> Result<(), TapError> {
    let invalid = |why| {
        Err(TapError::InvalidName {
            name: name.to_owned(),
            why,
        })
    };
    let plain = if pattern_allowed {
        name.replacen("%d", "", 1)
    } else {
        name.to_owned()
    };
    if name.is_empty() {
        return invalid("it is empty");
    }
    if name.len() > MAX_NAME_LEN {
        return invalid("it is longer than 15 bytes");
    }
    if name == "." || name == ".." {
        return invalid("\".\" and \"..\" are reserved");
    }
    if plain.contains('%') {
        return invalid(if pattern_allowed {
            "\"%\" may only stand in a single \"%d\""
        } else {
            "it contains \"%\""
        });
    }
    if plain.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
        return invalid("it contains a space, \"/\", \":\" or a control character");
    }
    Ok(())
}

/// The index of the interface of this name in this network namespace.
fn index_of(name: &str) -> Result<Option<u32>, TapError> {
    let look_up = || {
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::DGRAM, None)?;
        netdevice::name_to_index(socket, name)
    };
    match look_up() {
        Ok(index) => Ok(Some(index)),
        Err(Errno::NODEV) => Ok(None),
        Err(errno) => Err(io_error("looking up", name)(errno.into())),
    }
}

fn open_iface(name: &str, kind: TapKind) -> Result<OwnedFd, TapError> {
    let opened = match kind {
        TapKind::Plain => Iface::without_packet_info(name, Mode::Tap).map(|iface| {
            // SAFETY: into_raw_fd gives the descriptor away; nobody else closes it.
            unsafe { OwnedFd::from_raw_fd(iface.into_raw_fd()) }
        }),
        TapKind::VnetHeader => sys::open_with_vnet_header(DEVICE, name),
    };
    opened.map_err(|error| explain(name, error))
}

/// The kernel's bits for a set of offloads (`TUN_F_*` in linux/if_tun.h).
fn tun_bits(offloads: Offloads) -> u32 {
    const TABLE: [(Offloads, u32); 4] = [
        (Offloads::CHECKSUM, 0x01),
        (Offloads::TSO4, 0x02),
        (Offloads::TSO6, 0x04),
        // USO4 and USO6, which the kernel takes only together.
        (Offloads::USO, 0x20 | 0x40),
    ];
    let set = TABLE
        .iter()
        .filter(|(offload, _)| offloads.contains(*offload));
    set.fold(0, |bits, (_, bit)| bits | bit)
}

/// Finds out what made opening or attaching fail: both happen in one go.
fn explain(name: &str, error: io::Error) -> TapError {
    let attach_failed = OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .is_ok();
    let owned = || name.to_owned();
    match (Errno::from_io_error(&error), attach_failed) {
        (Some(Errno::ACCESS | Errno::PERM), false) => TapError::DeviceDenied,
        (Some(Errno::NOENT | Errno::NODEV | Errno::NXIO), false) => TapError::DeviceMissing,
        (Some(Errno::ACCESS | Errno::PERM), true) => TapError::NotPermitted { name: owned() },
        (Some(Errno::BUSY), true) => TapError::Busy { name: owned() },
        (Some(Errno::INVAL), true) => TapError::NotATap { name: owned() },
        (Some(Errno::NFILE), true) if name.contains('%') => {
            TapError::NoFreeName { pattern: owned() }
        }
        _ => io_error("opening", name)(error),
    }
}

fn in_this_network_namespace(tap: &OwnedFd) -> bool {
    let same = || -> io::Result<bool> {
        let theirs = rustix::fs::fstat(sys::network_namespace(tap)?)?;
        let ours = rustix::fs::stat("/proc/thread-self/ns/net")?;
        Ok((theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino))
    };
    same().unwrap_or(false)
}

fn io_error(doing: &'static str, name: &str) -> impl FnOnce(io::Error) -> TapError {
    move |source| TapError::Io {
        doing,
        name: name.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_refuse_are_refused_with_a_reason() {
        for (name, why) in [
            ("", "empty"),
            ("sixteen-bytes-xx", "longer than 15"),
            (".", "reserved"),
            ("..", "reserved"),
            ("a/b", "\"/\""),
            ("a b", "space"),
            ("a:b", "\":\""),
            ("a\0b", "control"),
            ("t%d%d", "single"),
            ("t%s", "single"),
        ] {
            let error = check_name(name, true).expect_err(name).to_string();
            assert!(error.contains(why), "{name:?}: {error}");
        }
        assert!(check_name("tap%d", false).is_err());
    }

    #[test]
    fn ordinary_names_and_one_pattern_are_accepted() {
        for name in ["tap0", "fifteen-bytes-x", "guest.7", "tap%d", "a%db"] {
            assert!(check_name(name, true).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_descriptor_that_is_no_tap_is_refused() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert!(matches!(
            Tap::open(TapSource::Fd(reader)),
            Err(TapError::NotATapDescriptor)
        ));
    }

    #[test]
    fn errors_are_sorted_by_what_the_pump_must_do() {
        for (errno, trouble) in [
            (Errno::AGAIN, TapTrouble::NotNow),
            (Errno::INTR, TapTrouble::Interrupted),
            (Errno::IO, TapTrouble::Down),
            (Errno::NOBUFS, TapTrouble::NoRoom),
            (Errno::INVAL, TapTrouble::BadFrame),
            (Errno::BADFD, TapTrouble::Gone),
            (Errno::FAULT, TapTrouble::Broken),
        ] {
            assert_eq!(classify(&errno.into()), trouble);
        }
    }
}
