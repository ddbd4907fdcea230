//! A user-space relay: what one TAP gives is written to the other. It has nothing
//! to do per frame but two system calls, so it is what a bridge process costs at
//! the least when both ends are the kernel's.

use host_bridge::tap::{RawSlice, Tap, TapKind, TapSource};
use rustix::event::{PollFd, PollFlags, poll};
use shm_link::offload::Offloads;

use super::ready;
use crate::Result;

/// Longest frame with its Ethernet header.
const MAX_FRAME_LEN: usize = 65_550;
/// Frames of one direction before the other has its turn.
const TURN: usize = 64;

/// Flags of `bench peer relay`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The TAPs, which exist.
    #[arg(num_args = 2)]
    taps: Vec<String>,
    /// With virtio headers and offloads.
    #[arg(long)]
    offloads: bool,
    /// Never sleep.
    #[arg(long)]
    spin: bool,
}

/// Relays for ever.
pub(super) fn run(options: &Options) -> Result<()> {
    let open = |name: &String| -> Result<Tap> {
        let name = name.clone();
        let kind = match options.offloads {
            true => TapKind::VnetHeader,
            false => TapKind::Plain,
        };
        let tap = Tap::open_as(TapSource::Existing { name }, kind)?;
        let all = Offloads::CHECKSUM
            .union(Offloads::TSO4)
            .union(Offloads::TSO6);
        tap.set_offloads(all)?;
        Ok(tap)
    };
    let taps = options.taps.iter().map(open).collect::<Result<Vec<_>>>()?;
    let [a, b] = &taps[..] else {
        return Err("two TAPs are needed".into());
    };
    let mut buffer = vec![0; MAX_FRAME_LEN];
    ready()?;
    loop {
        let moved = relay(a, b, &mut buffer) + relay(b, a, &mut buffer);
        if moved == 0 && !options.spin {
            let mut fds = [a, b].map(|tap| PollFd::new(tap, PollFlags::IN));
            rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
        }
    }
}

/// Moves what is there, up to a turn; says how many frames that were.
fn relay(from: &Tap, to: &Tap, buffer: &mut [u8]) -> usize {
    for moved in 0..TURN {
        // SAFETY: the buffer is this long, and borrowed for the call.
        let read = unsafe { from.read_raw(buffer.as_mut_ptr(), buffer.len()) };
        let Ok((len, offload)) = read else {
            return moved;
        };
        let parts = [RawSlice::new(buffer.as_ptr(), len), RawSlice::EMPTY];
        // SAFETY: as above. What the kernel does not take is lost.
        let _ = unsafe { to.writev_raw(offload, parts) };
    }
    TURN
}
