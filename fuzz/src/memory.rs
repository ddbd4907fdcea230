//! What lies in the shared memory, with a peer that writes anything anywhere.

use std::alloc::Layout as Memory;
use std::collections::VecDeque;

use shm_link::fault::PeerFault;
use shm_link::link::MAX_FRAME_LEN;
use shm_link::offload::{OffloadHeader, Offloads};
use shm_link::record::{RecordReader, RecordWriter};
use shm_link::region::Region;
use shm_link::ring::{Consumer, Producer, RING_HEADER_LEN};
use shm_link::shm::HostEnd;
use shm_link::superblock::Layout;

use crate::input::Input;

const CAPACITY: usize = 4096;

/// Zeroed memory that is gone with its last region.
fn region(len: usize) -> Region {
    struct Owned(*mut u8, Memory);
    // SAFETY: nobody uses it but through the region's own accesses.
    unsafe impl Send for Owned {}
    // SAFETY: as above.
    unsafe impl Sync for Owned {}
    impl Drop for Owned {
        fn drop(&mut self) {
            // SAFETY: allocated below with this layout, and not freed yet.
            unsafe { std::alloc::dealloc(self.0, self.1) };
        }
    }
    let memory = Memory::from_size_align(len, 4096).expect("a layout");
    // SAFETY: the layout is not empty.
    let base = unsafe { std::alloc::alloc_zeroed(memory) };
    assert!(!base.is_null(), "no memory");
    let owner = std::sync::Arc::new(Owned(base, memory));
    // SAFETY: `len` bytes, valid as long as the owner, which the region keeps.
    unsafe { Region::with_owner(base, len, owner) }.expect("a region")
}

/// Any superblock: the rings that are found lie inside and can be taken.
pub(crate) fn superblock(bytes: &[u8]) {
    let memory = region(64 << 10);
    let n = bytes.len().min(4096);
    memory.copy_in(0, &bytes[..n]).expect("inside");
    if let Ok(layout) = Layout::find(&memory) {
        for place in [
            layout.control.to_host,
            layout.control.to_guest,
            layout.frames.to_host,
            layout.frames.to_guest,
        ] {
            let ring = place.region(&memory).expect("a ring inside the region");
            assert!(ring.len() <= memory.len());
        }
        let _ = HostEnd::resume(&memory, &layout);
    }
}

/// A ring of bytes is a queue, whatever the order of operations, and with a peer that
/// scribbles in its header it is a queue or a fault.
pub(crate) fn ring(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let memory = region(RING_HEADER_LEN + CAPACITY);
    let mut tx = Producer::resume(memory.clone()).expect("a new ring");
    let mut rx = Consumer::resume(memory.clone()).expect("a new ring");
    let (mut written, mut visible) = (VecDeque::new(), VecDeque::new());
    let mut honest = true;
    let mut run = || -> Result<(), PeerFault> {
        while !input.is_empty() {
            match input.byte() % 8 {
                0 | 1 => {
                    let len = usize::from(input.byte()) * 16;
                    let bytes = input.bytes(len);
                    let n = tx.write(bytes)?;
                    written.extend(&bytes[..n]);
                }
                2 | 3 => {
                    let mut to = vec![0; usize::from(input.byte()) * 16];
                    let n = rx.read(&mut to)?;
                    if honest {
                        let expected: Vec<u8> = visible.drain(..n).collect();
                        assert_eq!(to[..n], expected);
                    }
                }
                4 => {
                    let _ = tx.publish();
                    visible.append(&mut written);
                }
                5 => {
                    let _ = rx.publish();
                }
                6 => {
                    let _ = tx.arm(usize::from(input.byte()))?;
                    let _ = rx.arm()?;
                    tx.disarm();
                    rx.disarm();
                }
                _ => {
                    honest = false;
                    let at = (usize::from(input.word()) % RING_HEADER_LEN) & !7;
                    memory
                        .copy_in(at, &input.long().to_le_bytes())
                        .expect("inside");
                }
            }
            assert!(tx.writable_len()? <= CAPACITY);
            assert!(rx.readable_len()? <= CAPACITY);
        }
        Ok(())
    };
    let faulted = run().is_err();
    assert!(!(faulted && honest), "an honest peer was at fault");
}

/// Records: what is read is what was written, or a fault; and never bytes beyond the
/// ring, whatever stands in it.
pub(crate) fn records(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let memory = region(RING_HEADER_LEN + CAPACITY);
    let tx = Producer::resume(memory.clone()).expect("a new ring");
    let rx = Consumer::resume(memory.clone()).expect("a new ring");
    let mut tx = RecordWriter::new(tx, MAX_FRAME_LEN).expect("a new ring");
    let mut rx = RecordReader::new(rx, MAX_FRAME_LEN).expect("a new ring");
    let base = memory.as_ptr().as_ptr() as usize;
    let mut queue = VecDeque::new();
    let mut unpublished = VecDeque::new();
    let mut honest = true;
    let mut run = || -> Result<(), PeerFault> {
        while !input.is_empty() {
            match input.byte() % 8 {
                0 | 1 => {
                    let len = usize::from(input.word()) % (CAPACITY / 2 - 16) + 1;
                    let mut body = input.bytes(len).to_vec();
                    body.resize(len, 0x5a);
                    if tx.write(&body, OffloadHeader::NONE)? {
                        unpublished.push_back(body);
                    }
                }
                2 | 3 => {
                    let found = rx.peek()?;
                    if let Some(record) = found {
                        let start = record.body.as_ptr() as usize;
                        let inside = start >= base + RING_HEADER_LEN
                            && record.len <= CAPACITY
                            && start + record.len <= base + RING_HEADER_LEN + CAPACITY;
                        assert!(inside, "a record outside its ring");
                        let mut body = vec![0; record.len];
                        memory.copy_out(start - base, &mut body).expect("inside");
                        let _ = record.offload.check(record.len, Offloads::CHECKSUM);
                        if honest {
                            assert_eq!(Some(body), queue.pop_front());
                        }
                    } else if honest {
                        assert!(queue.is_empty(), "a record is lost");
                    }
                    rx.consume();
                }
                4 => {
                    let _ = tx.publish();
                    queue.append(&mut unpublished);
                }
                5 => {
                    let _ = rx.publish();
                }
                6 => {
                    let _ = tx.arm(usize::from(input.word()) % tx.max_len())?;
                    let _ = rx.arm()?;
                    tx.disarm();
                    rx.disarm();
                }
                _ => {
                    honest = false;
                    let at = (usize::from(input.word()) % memory.len()) & !3;
                    let n = 4.min(memory.len() - at);
                    memory
                        .copy_in(at, &input.long().to_le_bytes()[..n])
                        .expect("inside");
                }
            }
        }
        Ok(())
    };
    let faulted = run().is_err();
    assert!(!(faulted && honest), "an honest peer was at fault");
}
