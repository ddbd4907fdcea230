//! Memory and doorbells for tests that need no operating system's.

#![allow(dead_code, reason = "each test file uses its part")]

use shm_link::doorbell::Doorbell;
use shm_link::region::Region;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

/// A region over zeroed memory that is never freed.
pub(crate) fn region(len: usize) -> Region {
    let pages = vec![Page([0; 4096]); len.div_ceil(4096)].leak();
    // SAFETY: leaked, so valid for ever; nothing else uses it.
    unsafe { Region::from_raw(pages.as_mut_ptr().cast(), len) }.unwrap()
}

/// A doorbell that counts.
#[derive(Clone, Default)]
pub(crate) struct Count(pub(crate) Arc<AtomicUsize>);

impl Doorbell for Count {
    fn ring(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Count {
    pub(crate) fn rings(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
