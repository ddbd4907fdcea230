//! A device without a wire: shows smoltcp one packet at most and keeps only the
//! last one that it writes. Sockets are taken through a step in it that nobody
//! outside shall see.

use alloc::vec::Vec;

use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

/// The device.
pub(crate) struct Sink<'a> {
    pub(crate) show: Option<&'a [u8]>,
    pub(crate) medium: Medium,
    /// In the terms of the medium: with the Ethernet header, if it has one.
    pub(crate) mtu: usize,
    pub(crate) verify: bool,
    pub(crate) written: Vec<u8>,
}

impl<'a> Sink<'a> {
    pub(crate) fn new(medium: Medium, mtu: usize) -> Self {
        Self {
            show: None,
            medium,
            mtu,
            verify: true,
            written: Vec::new(),
        }
    }

    pub(crate) fn show(&mut self, packet: &'a [u8]) {
        self.show = Some(packet);
    }
}

impl Device for Sink<'_> {
    type RxToken<'t>
        = Show<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Keep<'t>
    where
        Self: 't;

    fn receive(&mut self, _now: Instant) -> Option<(Show<'_>, Keep<'_>)> {
        Some((Show(self.show.take()?), Keep(&mut self.written)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Keep<'_>> {
        Some(Keep(&mut self.written))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = self.medium;
        caps.max_transmission_unit = self.mtu;
        if !self.verify {
            caps.checksum = ChecksumCapabilities::ignored();
        }
        caps
    }
}

/// The packet that is shown.
pub(crate) struct Show<'t>(&'t [u8]);

impl phy::RxToken for Show<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// Room for the last packet written.
pub(crate) struct Keep<'t>(&'t mut Vec<u8>);

impl phy::TxToken for Keep<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        self.0.clear();
        self.0.resize(len, 0);
        write(self.0)
    }
}
