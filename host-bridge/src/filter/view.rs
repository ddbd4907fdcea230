//! The part of a frame that a layer's check looks at.
//!
//! The filter sees only the first bytes of a frame, so "the header is not
//! there" has two meanings: the frame ends (the guest's mistake) or the copy
//! ends (too long a chain of headers). [`View`] keeps them apart.

use crate::counters::DropReason;

/// The visible beginning of a layer that is `len` bytes long.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    seen: &'a [u8],
    len: usize,
}

impl<'a> View<'a> {
    /// A layer of `len` bytes of which `head` shows the beginning.
    pub(super) fn new(head: &'a [u8], len: usize) -> Self {
        Self {
            seen: head.get(..len).unwrap_or(head),
            len,
        }
    }

    /// The visible bytes.
    pub(super) fn seen(self) -> &'a [u8] {
        self.seen
    }

    /// How long the layer is, visible or not.
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// The reason to name when a header did not fit into [`seen`](Self::seen).
    pub(super) fn short(self) -> DropReason {
        if self.seen.len() < self.len {
            DropReason::HeaderChain
        } else {
            DropReason::Truncated
        }
    }

    /// The first `len` bytes.
    pub(super) fn first(self, len: usize) -> Result<&'a [u8], DropReason> {
        if len > self.len {
            return Err(DropReason::Truncated);
        }
        self.seen.get(..len).ok_or(DropReason::HeaderChain)
    }

    /// What follows the first `len` bytes, which must be visible.
    pub(super) fn skip(self, len: usize) -> Result<Self, DropReason> {
        self.first(len)?;
        Ok(Self {
            seen: self.seen.get(len..).unwrap_or_default(),
            len: self.len.saturating_sub(len),
        })
    }

    /// The same layer without padding: it says itself that it has `len` bytes.
    pub(super) fn cut(self, len: usize) -> Result<Self, DropReason> {
        if len > self.len {
            return Err(DropReason::Truncated);
        }
        Ok(Self::new(self.seen, len))
    }
}
