//! Memory that two processes share: a sealed memfd and its mapping.
//!
//! The side that makes the memory calls [`SharedMemory::create`] and passes the
//! descriptor on; the other side calls [`SharedMemory::from_fd`]. The size is
//! sealed before anybody else sees the descriptor: a memfd that can shrink
//! under a mapping kills the process that touches the lost pages (SIGBUS).
//!
//! Pages come into being when they are first written. Where memory is short
//! (a cgroup's limit), that is when the shortage shows, as for any memory.

use core::fmt;
use core::ptr::NonNull;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::region::Region;

/// Largest memory that is made or accepted, in bytes (1 GiB): far above what
/// the rings of one guest need, and low enough to map several hundred times.
pub const MAX_MEMORY_LEN: usize = 1 << 30;

/// Shared memory, mapped readable and writable, with the descriptor it came from.
///
/// Regions taken from it keep the mapping alive; the descriptor is closed when
/// this value is dropped.
#[derive(Debug)]
pub struct SharedMemory {
    fd: OwnedFd,
    mapping: Arc<Mapping>,
}

/// Why memory could not be made, or a received descriptor not be used.
#[derive(Debug)]
pub enum MemoryError {
    /// The size is zero or above [`MAX_MEMORY_LEN`].
    Size {
        /// The size that was asked for or found, in bytes.
        bytes: u64,
    },
    /// The descriptor can shrink under its mapping, or is no memfd at all.
    NotSealed,
    /// The kernel refused.
    System {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size { bytes } => write!(
                f,
                "shared memory of {bytes} bytes is not possible: between 1 and {MAX_MEMORY_LEN} bytes are"
            ),
            Self::NotSealed => f.write_str(
                "the shared memory's size is not fixed: the side that makes it must seal it against shrinking",
            ),
            Self::System { doing, source } => write!(f, "cannot {doing}: {source}"),
        }
    }
}

impl core::error::Error for MemoryError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::System { source, .. } => Some(source),
            Self::Size { .. } | Self::NotSealed => None,
        }
    }
}

impl SharedMemory {
    /// Makes `len` bytes of zeroed memory that can neither shrink nor grow nor
    /// be sealed any further. `name` is what `/proc/<pid>/maps` shows for it.
    ///
    /// QEMU makes a PCI BAR of the memory; for its sake `len` is a power of two.
    ///
    /// # Errors
    /// [`MemoryError::Size`] or [`MemoryError::System`].
    pub fn create(name: &str, len: usize) -> Result<Self, MemoryError> {
        let bytes = len as u64;
        if len == 0 || len > MAX_MEMORY_LEN {
            return Err(MemoryError::Size { bytes });
        }
        let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(|e| system("make a memfd", e))?;
        rustix::fs::ftruncate(&fd, bytes).map_err(|e| system("set the memfd's size", e))?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(|e| system("seal the memfd", e))?;
        Self::map(fd, len)
    }

    /// Maps memory that another process made and sent.
    ///
    /// # Errors
    /// [`MemoryError::NotSealed`] if its maker could still shrink it,
    /// [`MemoryError::Size`] or [`MemoryError::System`].
    pub fn from_fd(fd: OwnedFd) -> Result<Self, MemoryError> {
        // The seal first: only behind it does the size that is read next stay true.
        // A descriptor that knows no seals is not a memfd.
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(|_| MemoryError::NotSealed)?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(MemoryError::NotSealed);
        }
        let stat = rustix::fs::fstat(&fd).map_err(|e| system("read the memory's size", e))?;
        match usize::try_from(stat.st_size) {
            Ok(len @ 1..=MAX_MEMORY_LEN) => Self::map(fd, len),
            _ => Err(MemoryError::Size {
                bytes: stat.st_size.unsigned_abs(),
            }),
        }
    }

    fn map(fd: OwnedFd, len: usize) -> Result<Self, MemoryError> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no
        // existing memory. Its bytes are reached only through `Region`, which
        // makes no reference to them, and they stay there: the file cannot
        // shrink (both callers made sure).
        let base =
            unsafe { rustix::mm::mmap(core::ptr::null_mut(), len, prot, MapFlags::SHARED, &fd, 0) }
                .map_err(|e| system("map the shared memory", e))?;
        let base = NonNull::new(base.cast::<u8>())
            .ok_or_else(|| system("map the shared memory", rustix::io::Errno::FAULT))?;
        Ok(Self {
            fd,
            mapping: Arc::new(Mapping { base, len }),
        })
    }

    /// The memory as a region. Every region from here views the same bytes and
    /// keeps them mapped.
    pub fn region(&self) -> Region {
        let owner: Arc<dyn Send + Sync> = Arc::clone(&self.mapping) as _;
        // SAFETY: the mapping covers base..base + len, readable and writable,
        // until the last clone of `owner` is dropped. Nothing else in this
        // module touches the bytes.
        unsafe { Region::with_owner(self.mapping.base.as_ptr(), self.mapping.len, owner) }
            .expect("the kernel maps memory at page boundaries, which are multiples of 64")
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// Always false: empty memory is refused.
    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }

    /// The descriptor, to be passed to the other side.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A mapping; unmapped when the memory and all its regions are gone.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: an address and a length; the mapping belongs to the process, not to a
// thread, and this type gives no access to the bytes.
unsafe impl Send for Mapping {}
// SAFETY: as for Send.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the range that `mmap` gave; every region holds a
        // reference to `self`, so none is left that could touch it.
        // It cannot fail: the range is mapped and page-aligned.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

fn system(doing: &'static str, errno: rustix::io::Errno) -> MemoryError {
    MemoryError::System {
        doing,
        source: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;
    use std::string::ToString;

    fn memfd(len: u64, seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::ftruncate(&fd, len).unwrap();
        rustix::fs::fcntl_add_seals(&fd, seals).unwrap();
        fd
    }

    #[test]
    fn two_mappings_of_one_memory_see_the_same_bytes() {
        let ours = SharedMemory::create("test", 8192).unwrap();
        let theirs = SharedMemory::from_fd(ours.fd().try_clone_to_owned().unwrap()).unwrap();
        assert_eq!((ours.len(), theirs.len()), (8192, 8192));
        assert_ne!(ours.region().as_ptr(), theirs.region().as_ptr());

        ours.region().copy_in(5000, b"hello").unwrap();
        let mut seen = [0; 5];
        theirs.region().copy_out(5000, &mut seen).unwrap();
        assert_eq!(&seen, b"hello");
    }

    #[test]
    fn the_other_side_can_neither_resize_nor_reseal_the_memory() {
        let memory = SharedMemory::create("test", 8192).unwrap();
        let theirs = memory.fd().try_clone_to_owned().unwrap();
        assert_eq!(rustix::fs::ftruncate(&theirs, 4096), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&theirs, 16384), Err(Errno::PERM));
        assert_eq!(
            rustix::fs::fcntl_add_seals(&theirs, SealFlags::WRITE),
            Err(Errno::PERM)
        );
    }

    #[test]
    fn a_region_outlives_the_memory_it_came_from() {
        let memory = SharedMemory::create("test", 4096).unwrap();
        let region = memory.region().part(64, 128).unwrap();
        drop(memory);
        region.copy_in(0, b"still here").unwrap();
        let mut seen = [0; 10];
        region.copy_out(0, &mut seen).unwrap();
        assert_eq!(&seen, b"still here");
    }

    #[test]
    fn the_mapping_goes_with_its_last_region() {
        let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
        let name = "test-unmapped-at-last";
        let memory = SharedMemory::create(name, 4096).unwrap();
        let region = memory.region();
        drop(memory);
        assert!(maps().contains(name));
        drop(region);
        assert!(!maps().contains(name));
    }

    #[test]
    fn memory_that_can_shrink_is_refused() {
        let refused = SharedMemory::from_fd(memfd(4096, SealFlags::GROW));
        assert!(matches!(refused, Err(MemoryError::NotSealed)));
    }

    #[test]
    fn a_descriptor_that_is_no_memory_is_refused() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(matches!(
            SharedMemory::from_fd(socket.into()),
            Err(MemoryError::NotSealed)
        ));
    }

    #[test]
    fn impossible_sizes_are_refused_with_the_size_in_the_message() {
        let too_long = MAX_MEMORY_LEN as u64 + 1;
        assert!(matches!(
            SharedMemory::create("test", 0),
            Err(MemoryError::Size { bytes: 0 })
        ));
        assert!(matches!(
            SharedMemory::from_fd(memfd(0, SealFlags::SHRINK)),
            Err(MemoryError::Size { bytes: 0 })
        ));
        let refused = SharedMemory::from_fd(memfd(too_long, SealFlags::SHRINK)).unwrap_err();
        assert!(refused.to_string().contains(&too_long.to_string()));
        assert!(SharedMemory::create("test", MAX_MEMORY_LEN + 1).is_err());
    }

    #[test]
    fn memory_that_may_not_be_written_is_refused() {
        let fd = memfd(4096, SealFlags::SHRINK | SealFlags::WRITE);
        assert!(matches!(
            SharedMemory::from_fd(fd),
            Err(MemoryError::System { .. })
        ));
    }
}
