//! The system calls of a TAP: ioctls on its descriptor, and reads and writes
//! that take raw memory.
//!
//! Frame bytes lie in memory that an untrusted guest writes at the same time,
//! so no Rust reference to them may exist; the standard library and rustix only
//! take references, hence libc here. Called by [`Tap`](super::Tap) alone.

use std::ffi::{CStr, c_int, c_uint};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::ioctl::{IntegerSetter, Opcode, Setter, Updater};

/// A piece of memory to be written to a TAP: a pointer and a length, without
/// any claim that the bytes hold still.
#[repr(transparent)]
#[derive(Debug, Clone, Copy)]
pub struct RawSlice(libc::iovec);

impl RawSlice {
    /// Nothing.
    pub const EMPTY: Self = Self::new(std::ptr::null(), 0);

    /// `len` bytes from `start` on.
    pub const fn new(start: *const u8, len: usize) -> Self {
        Self(libc::iovec {
            // The kernel only reads through it; iovec has one type for both.
            iov_base: start.cast_mut().cast(),
            iov_len: len,
        })
    }

    /// Where it begins, and how long it is.
    #[cfg(feature = "simulation")]
    pub(crate) fn parts(self) -> (*const u8, usize) {
        (self.0.iov_base.cast_const().cast(), self.0.iov_len)
    }
}

/// Reads `header` and then at most `len` bytes to `start`, as one frame.
///
/// # Safety
/// `start` is valid for writes of `len` bytes for the length of the call.
pub(super) unsafe fn readv(
    fd: BorrowedFd<'_>,
    header: &mut [u8],
    start: *mut u8,
    len: usize,
) -> io::Result<usize> {
    let parts = [
        libc::iovec {
            iov_base: header.as_mut_ptr().cast(),
            iov_len: header.len(),
        },
        libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        },
    ];
    // SAFETY: the descriptor is open while borrowed; the header is borrowed for
    // the call, and the rest is writable, as the caller promises.
    let count = unsafe { libc::readv(fd.as_raw_fd(), parts.as_ptr(), 2) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// Writes all `parts` as one frame.
///
/// # Safety
/// Each part is valid for reads of its length for the length of the call.
pub(super) unsafe fn writev(fd: BorrowedFd<'_>, parts: &[RawSlice]) -> io::Result<usize> {
    let count = c_int::try_from(parts.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the descriptor is open while borrowed; RawSlice is a transparent
    // iovec, `count` of them lie at the pointer; each is readable, as the
    // caller promises.
    let count = unsafe { libc::writev(fd.as_raw_fd(), parts.as_ptr().cast(), count) };
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}

/// What an attached descriptor is.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) name: String,
    flags: c_int,
}

impl Attachment {
    pub(super) fn is_tap(&self) -> bool {
        self.flags & libc::IFF_TAP != 0
    }

    pub(super) fn is_persistent(&self) -> bool {
        self.flags & libc::IFF_PERSIST != 0
    }

    // There is no such question for packet information: TUNGETIFF shows
    // IFF_NOFILTER in the bit of IFF_NO_PI.
    pub(super) fn has_vnet_header(&self) -> bool {
        self.flags & libc::IFF_VNET_HDR != 0
    }
}

/// Asks which interface a descriptor is attached to (`TUNGETIFF`).
pub(super) fn attachment(fd: impl AsFd) -> io::Result<Attachment> {
    // SAFETY: an ifreq is plain data, all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one ifreq to the pointer, which is what Updater
    // passes; on a descriptor of another driver it is unknown and fails.
    unsafe {
        let ioctl = Updater::<{ libc::TUNGETIFF as Opcode }, _>::new(&mut request);
        rustix::ioctl::ioctl(fd, ioctl)?;
    }
    // SAFETY: the flags are the union's member that TUNGETIFF fills.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    // SAFETY: c_char and u8 have the same layout.
    let name: &[u8; libc::IFNAMSIZ] = unsafe { &*(&raw const request.ifr_name).cast() };
    let name = CStr::from_bytes_until_nul(name)
        .map_err(|_| io::ErrorKind::InvalidData)?
        .to_string_lossy()
        .into_owned();
    // The flags are an unsigned 16-bit set in a signed field.
    let flags = c_int::from(flags.cast_unsigned());
    Ok(Attachment { name, flags })
}

/// Says which work the reader of the descriptor does itself (`TUNSETOFFLOAD`):
/// a set of `TUN_F_*` bits. It holds for the device, and on a persistent TAP
/// beyond this descriptor, so whoever opens one sets it.
pub(super) fn set_offloads(fd: impl AsFd, bits: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value, as a set of bits.
    unsafe {
        let ioctl = IntegerSetter::<{ libc::TUNSETOFFLOAD as Opcode }>::new_usize(bits as usize);
        rustix::ioctl::ioctl(fd, ioctl)?;
    }
    Ok(())
}

/// Sets the length of the virtio header in front of each frame
/// (`TUNSETVNETHDRSZ`).
pub(super) fn set_vnet_header_len(fd: impl AsFd, len: usize) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int through the pointer.
    unsafe {
        let ioctl = Setter::<{ libc::TUNSETVNETHDRSZ as Opcode }, c_int>::new(len as c_int);
        rustix::ioctl::ioctl(fd, ioctl)?;
    }
    Ok(())
}

/// Opens the driver's device and attaches to the TAP `name`, or makes it, with a
/// virtio header in front of each frame (`TUNSETIFF`). The name is short enough.
pub(super) fn open_with_vnet_header(device: &str, name: &str) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    // SAFETY: an ifreq is plain data, all zero is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // One byte stays zero behind the longest name.
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1]
        .iter_mut()
        .zip(name.bytes())
    {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq through the pointer.
    unsafe {
        let ioctl = Updater::<{ libc::TUNSETIFF as Opcode }, _>::new(&mut request);
        rustix::ioctl::ioctl(&file, ioctl)?;
    }
    Ok(file.into())
}

/// Whether this kernel cuts UDP super-frames on TAPs: from Linux 6.2 on. To ask by
/// `TUNSETOFFLOAD` would change a TAP that serves a guest.
pub(super) fn cuts_udp() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    version(&release).is_some_and(|version| version >= (6, 2))
}

/// The two numbers that a kernel's release begins with.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Sets the carrier that the kernel sees on the interface (`TUNSETCARRIER`).
pub(super) fn set_carrier(fd: impl AsFd, on: bool) -> io::Result<()> {
    // SAFETY: TUNSETCARRIER reads one int through the pointer.
    unsafe {
        let ioctl = Setter::<{ libc::TUNSETCARRIER as Opcode }, c_int>::new(c_int::from(on));
        rustix::ioctl::ioctl(fd, ioctl)?;
    }
    Ok(())
}

/// Opens the network namespace that the interface lives in (`TUNGETDEVNETNS`).
pub(super) fn network_namespace(fd: impl AsFd) -> io::Result<OwnedFd> {
    // SAFETY: TUNGETDEVNETNS takes no argument.
    let ns = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), libc::TUNGETDEVNETNS as _) };
    if ns < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel made this descriptor for this call; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(ns) })
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn a_release_begins_with_two_numbers() {
        assert_eq!(version("6.18.2-arch1-1"), Some((6, 18)));
        assert_eq!(version("5.4-rc1"), Some((5, 4)));
        assert_eq!(version("7"), None);
        assert_eq!(version(""), None);
    }
}
