//! What a pump has behind it: something that takes and gives frames, and the time.
//!
//! A port's is its TAP, and the clock of the machine. A simulation brings its own,
//! in which everything can be repeated. Counts nothing and never waits.

use std::io;
use std::time::Instant;

use shm_link::offload::OffloadHeader;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::tap::{RawSlice, Tap, TapKind, TapTrouble, classify};

/// The far side of a pump.
pub(crate) trait Wire {
    /// The time, by which frames are held back and limited.
    fn now(&self) -> Instant;

    /// Whether it completes frames that leave something undone.
    fn completes(&self) -> bool;

    /// Takes the next frame and what is left to do for it, cut off at `len` bytes;
    /// `None`: there is none now.
    ///
    /// # Errors
    /// The reason why there will never be one again.
    ///
    /// # Safety
    /// `start` is valid for writes of `len` bytes.
    unsafe fn read(&self, start: *mut u8, len: usize)
    -> io::Result<Option<(usize, OffloadHeader)>>;

    /// Gives a frame away, the first part followed by the second.
    ///
    /// # Errors
    /// What [`classify`] makes sense of.
    ///
    /// # Safety
    /// The parts are valid for reads. Others may write them at the same time.
    unsafe fn write(&self, offload: OffloadHeader, parts: [RawSlice; 2]) -> io::Result<()>;
}

impl Wire for AsyncFd<Tap> {
    #[inline]
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn completes(&self) -> bool {
        self.get_ref().kind() == TapKind::VnetHeader
    }

    #[inline]
    unsafe fn read(
        &self,
        start: *mut u8,
        len: usize,
    ) -> io::Result<Option<(usize, OffloadHeader)>> {
        // What only means "not now" is reported as such, so that `try_io` forgets
        // the readiness: it would come back at once otherwise, for ever.
        let result = self.try_io(Interest::READABLE, |tap| {
            loop {
                // SAFETY: promised by the caller.
                let error = match unsafe { tap.read_raw(start, len) } {
                    Ok(read) => return Ok(Ok(read)),
                    Err(error) => error,
                };
                match classify(&error) {
                    TapTrouble::Interrupted => {}
                    TapTrouble::NotNow
                    | TapTrouble::Down
                    | TapTrouble::NoRoom
                    | TapTrouble::BadFrame => return Err(io::ErrorKind::WouldBlock.into()),
                    TapTrouble::Gone | TapTrouble::Broken => return Ok(Err(error)),
                }
            }
        });
        match result {
            Ok(read) => read.map(Some),
            Err(_not_now) => Ok(None),
        }
    }

    #[inline]
    unsafe fn write(&self, offload: OffloadHeader, parts: [RawSlice; 2]) -> io::Result<()> {
        // SAFETY: promised by the caller.
        unsafe { self.get_ref().writev_raw(offload, parts) }
    }
}
