//! What a daemon gives its keeper, and what the next one finds there.

use std::os::fd::OwnedFd;

use host_bridge::keeper::Shelf;
use host_bridge::store::Record;
use rustix::fs::MemfdFlags;

use crate::input::Input;

/// A descriptor that costs nothing.
fn descriptor() -> OwnedFd {
    rustix::fs::memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("memory")
}

/// Messages to the keeper, each with up to three descriptors.
pub(crate) fn shelf(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut shelf = Shelf::new();
    while !input.is_empty() {
        let descriptors = usize::from(input.byte() % 4);
        let len = usize::from(input.byte());
        let message = input.bytes(len);
        let before = shelf.len();
        shelf.hear(
            message,
            std::iter::repeat_with(descriptor)
                .take(descriptors)
                .collect(),
        );
        // Descriptors come from where they are, and from nowhere else.
        assert!(shelf.len() <= before + descriptors);
        assert_eq!(shelf.entries().count(), shelf.len());
        for (name, _) in shelf.entries() {
            assert!((1..=255).contains(&name.len()), "{name:?}");
            assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{name:?}");
        }
    }
}

/// A guest's record: what is understood is the same to the next process, and to the one
/// after it.
pub(crate) fn record(bytes: &[u8]) {
    let fd = descriptor();
    rustix::io::write(&fd, bytes).expect("memory");
    let Ok(record) = Record::from_fd(fd) else {
        return;
    };
    let change = record.change();
    // One that is too long is refused, and holds in this process all the same.
    if record.note(&change).is_err() {
        return;
    }
    let kept = record.fd().try_clone().expect("a descriptor");
    let next = Record::from_fd(kept).expect("what was just written");
    assert_eq!(next.layout(), record.layout());
    assert_eq!(next.change(), record.change());
}
