//! What is kept about a guest besides descriptors: how its memory is laid out, and
//! what an administrator changed since it came.
//!
//! A page of JSON in memory that only the daemon and its store hold, so unlike the
//! guest's own memory it can be believed. Rewritten whole by one system call.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::MemfdFlags;
use rustix::io::{IoSlice, IoSliceMut, ReadWriteFlags};
use serde::{Deserialize, Serialize};
use shm_link::superblock::LayoutOptions;

use crate::port::PortChange;

/// Room for the text. The longest change has four addresses of each family, gateways,
/// two limits and two impairments: under 2 KB.
const LEN: usize = 4096;

/// A guest's record. Clones are the same.
#[derive(Debug, Clone)]
pub struct Record {
    fd: Arc<OwnedFd>,
    content: Arc<Mutex<Content>>,
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    to_host_bytes: usize,
    to_guest_bytes: usize,
    change: PortChange,
}

impl Record {
    /// The record of a guest that has just come.
    pub(crate) fn new(layout: LayoutOptions) -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("record", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&fd, LEN as u64)?;
        let record = Self {
            fd: Arc::new(fd),
            content: Arc::new(Mutex::new(Content {
                to_host_bytes: layout.to_host_bytes,
                to_guest_bytes: layout.to_guest_bytes,
                change: PortChange::default(),
            })),
        };
        record.write()?;
        Ok(record)
    }

    /// The record that was kept.
    ///
    /// # Errors
    /// The system's, or that it is none.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let mut text = [0; LEN];
        let mut into = [IoSliceMut::new(&mut text)];
        let read = rustix::io::preadv2(&fd, &mut into, 0, ReadWriteFlags::empty())?;
        let text = text.get(..read).unwrap_or_default();
        let content = serde_json::from_slice(text).map_err(io::Error::other)?;
        Ok(Self {
            fd: Arc::new(fd),
            content: Arc::new(Mutex::new(content)),
        })
    }

    /// The descriptor to keep.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// How the guest's memory is laid out.
    pub fn layout(&self) -> LayoutOptions {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        LayoutOptions {
            to_host_bytes: content.to_host_bytes,
            to_guest_bytes: content.to_guest_bytes,
        }
    }

    /// All that was changed, as one change.
    pub fn change(&self) -> PortChange {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        content.change.clone()
    }

    /// Adds a change that holds now.
    ///
    /// # Errors
    /// The system's. The change holds all the same, until the next start.
    pub fn note(&self, change: &PortChange) -> io::Result<()> {
        let mut content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        content.change.merge(change);
        drop(content);
        self.write()
    }

    fn write(&self) -> io::Result<()> {
        let content = self.content.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = serde_json::to_vec(&*content).map_err(io::Error::other)?;
        if text.len() > LEN {
            return Err(io::Error::other("more was changed than fits a page"));
        }
        // Blanks after the text hide what stood there before.
        text.resize(LEN, b' ');
        let from = [IoSlice::new(&text)];
        let written = rustix::io::pwritev2(&*self.fd, &from, 0, ReadWriteFlags::empty())?;
        match written {
            LEN => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_the_same_to_the_next_process() {
        let layout = LayoutOptions {
            to_host_bytes: 8192,
            to_guest_bytes: 1 << 20,
        };
        let record = Record::new(layout).unwrap();
        let first = PortChange {
            mtu: Some(1400),
            addresses: Some(vec!["10.0.0.9/24".parse().unwrap()]),
            impair_to_host: Some("loss=5%".parse().unwrap()),
            ..PortChange::default()
        };
        let second = PortChange {
            mtu: Some(1300),
            limit_to_guest: Some("rate=10mbit".parse().unwrap()),
            ..PortChange::default()
        };
        record.note(&first).unwrap();
        record.note(&second).unwrap();
        let kept = Record::from_fd(record.fd().try_clone().unwrap()).unwrap();
        assert_eq!(kept.layout(), layout);
        let expected = PortChange {
            mtu: Some(1300),
            limit_to_guest: second.limit_to_guest,
            ..first
        };
        assert_eq!(kept.change(), expected);
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let fd = rustix::fs::memfd_create("nothing", MemfdFlags::CLOEXEC).unwrap();
        assert!(Record::from_fd(fd).is_err());
        let fd = rustix::fs::memfd_create("zeros", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, LEN as u64).unwrap();
        assert!(Record::from_fd(fd).is_err());
    }
}
