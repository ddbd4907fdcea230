//! What the bridge hears when this kernel dies.
//!
//! A panic may come at any place, also inside the stack and with its lock held,
//! so nothing of it is used: a second link is made on the same region. The rings
//! stay open, so a kernel that is started after this one can go on with them.

use core::fmt::Write;

use shm_link::control::message::{FromGuest, Message};
use shm_link::control::{Level, MAX_TEXT_LEN, MAX_WORDS_LEN};
use shm_link::link::{Link, MAX_CONTROL_LEN};
use shm_link::region::Region;
use shm_link::shm::ShmLink;

use crate::ivshmem::HostBell;
use crate::lock::Mutex;

static WAY: Mutex<Option<(Region, HostBell)>> = Mutex::new(None);

/// The code of a goodbye after a panic.
const PANICKED: u32 = 1;
/// Ids that the conversation itself does not reach.
const REPORT_ID: u32 = u32::MAX - 1;
const GOODBYE_ID: u32 = u32::MAX;

/// Remembers how the bridge is reached.
pub fn prepare(region: Region, bell: HostBell) {
    *WAY.lock() = Some((region, bell));
}

/// Text of a bounded length; what is too long is cut off.
struct Clipped<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Clipped<N> {
    fn new(words: impl core::fmt::Display) -> Self {
        let mut clipped = Self {
            bytes: [0; N],
            len: 0,
        };
        // It cannot fail: what does not fit is dropped.
        let _ = write!(clipped, "{words}");
        clipped
    }

    fn as_str(&self) -> &str {
        core::str::from_utf8(&self.bytes[..self.len]).unwrap_or("")
    }
}

impl<const N: usize> Write for Clipped<N> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for char in text.chars() {
            if self.len + char.len_utf8() > N {
                break;
            }
            self.len += char.encode_utf8(&mut self.bytes[self.len..]).len();
        }
        Ok(())
    }
}

/// Tells the bridge, if there was one, and rings it. Only the panic handler calls
/// this, once.
pub fn send(words: impl core::fmt::Display) {
    let Some((region, bell)) = WAY.try_lock().and_then(|way| way.clone()) else {
        return;
    };
    // SAFETY: the bridge is trusted, as before; the link that the stack has is
    // not used any more.
    let Ok(mut link) = (unsafe { ShmLink::attach(region, bell) }) else {
        return;
    };
    let text = Clipped::<MAX_TEXT_LEN>::new(&words);
    let short = Clipped::<MAX_WORDS_LEN>::new(&words);
    let messages = [
        Message {
            id: REPORT_ID,
            body: FromGuest::Report {
                level: Level::Panic,
                text: text.as_str(),
            },
        },
        Message {
            id: GOODBYE_ID,
            body: FromGuest::Goodbye {
                code: PANICKED,
                words: short.as_str(),
            },
        },
    ];
    for message in messages {
        let mut bytes = [0; MAX_CONTROL_LEN];
        if let Ok(len) = message.encode(&mut bytes) {
            // With the ring full there is nobody to listen.
            let _ = link.send_control(&bytes[..len]);
        }
    }
}
