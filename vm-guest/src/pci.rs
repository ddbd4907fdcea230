//! PCI configuration space by ports 0xcf8 and 0xcfc, and the search for a device.
//!
//! Firmware has given every BAR an address by the time a kernel is started.

use pci_types::capability::{MsixCapability, PciCapability};
use pci_types::{
    Bar, CommandRegister, ConfigRegionAccess, EndpointHeader, HeaderType, PciAddress, PciHeader,
};
use x86_64::instructions::port::Port;

/// Access by ports.
#[derive(Clone, Copy)]
pub struct Ports;

impl Ports {
    fn select(address: PciAddress, offset: u16) {
        let word = 1 << 31
            | u32::from(address.bus()) << 16
            | u32::from(address.device()) << 11
            | u32::from(address.function()) << 8
            | u32::from(offset & 0xfc);
        // SAFETY: the port selects a register; only this file uses it.
        unsafe { Port::new(0xcf8).write(word) };
    }
}

impl ConfigRegionAccess for Ports {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        Self::select(address, offset);
        // SAFETY: reads the register just selected.
        unsafe { Port::new(0xcfc).read() }
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        Self::select(address, offset);
        // SAFETY: promised by the caller.
        unsafe { Port::new(0xcfc).write(value) }
    }
}

/// A device that was found.
pub struct Device(EndpointHeader);

impl Device {
    /// The first device with these ids, on any bus. It does not answer from then
    /// on, until it is [enabled](Self::enable).
    pub fn find(vendor: u16, device: u16) -> Option<Self> {
        let addresses = (0..=255u8).flat_map(|bus| {
            (0..32u8).flat_map(move |slot| {
                // A device without function 0 has no others.
                let address = PciAddress::new(0, bus, slot, 0);
                let functions = match PciHeader::new(address).id(Ports) {
                    (0xffff, _) => 0,
                    _ if PciHeader::new(address).has_multiple_functions(Ports) => 8,
                    _ => 1,
                };
                (0..functions).map(move |function| PciAddress::new(0, bus, slot, function))
            })
        });
        let mut headers = addresses.map(PciHeader::new);
        let found = headers.find(|header| {
            header.id(Ports) == (vendor, device)
                && matches!(header.header_type(Ports), HeaderType::Endpoint)
        })?;
        let mut header = EndpointHeader::from_header(found, Ports)?;
        // Firmware has enabled it. Whoever asks for a BAR's size writes ones to its
        // address; a device that answers would be moved there, out of KVM's reach,
        // which ends QEMU.
        header.update_command(Ports, |command| command - CommandRegister::MEMORY_ENABLE);
        Some(Self(header))
    }

    /// Where the device is.
    pub fn address(&self) -> PciAddress {
        self.0.header().address()
    }

    /// Address and length of a BAR in memory. Ask before [`enable`](Self::enable).
    pub fn bar(&self, number: u8) -> Option<(u64, u64)> {
        match self.0.bar(number, Ports)? {
            Bar::Memory32 { address, size, .. } => Some((address.into(), size.into())),
            Bar::Memory64 { address, size, .. } => Some((address, size)),
            Bar::Io { .. } => None,
        }
        .filter(|(address, _)| *address != 0)
    }

    /// Lets the device answer, and interrupt.
    pub fn enable(&mut self) {
        self.0.update_command(Ports, |command| {
            command | CommandRegister::MEMORY_ENABLE | CommandRegister::BUS_MASTER_ENABLE
        });
    }

    /// Its MSI-X capability.
    pub fn msix(&self) -> Option<MsixCapability> {
        self.0.capabilities(Ports).find_map(|found| match found {
            PciCapability::MsiX(msix) => Some(msix),
            _ => None,
        })
    }
}
