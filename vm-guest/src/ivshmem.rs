//! QEMU's `ivshmem-doorbell` device: the memory, the interrupt, the doorbell.
//!
//! See QEMU's `docs/specs/ivshmem-spec`. BAR 0 holds four registers, BAR 1 the
//! MSI-X table, BAR 2 the memory. This file is all that a kernel needs in place
//! of a network driver.

use core::fmt;

use shm_link::doorbell::Doorbell;
use shm_link::region::{Region, RegionError};

use crate::clock::apic_id;
use crate::interrupts::DOORBELL_VECTOR;
use crate::memory::map_device;
use crate::pci::{Device, Ports};

const VENDOR: u16 = 0x1af4;
const DEVICE: u16 = 0x1110;
/// Registers in BAR 0.
const IV_POSITION: u64 = 8;
const DOORBELL: u64 = 12;
/// Under which id the bridge is rung, on each guest's memory.
const HOST_ID: u32 = 0;

/// Why the device cannot be used.
#[derive(Debug)]
pub enum IvshmemError {
    /// There is none.
    Absent,
    /// It has no memory or registers where they belong, or no MSI-X: it is the
    /// plain variant, or firmware gave it no addresses.
    Incomplete(&'static str),
    /// It lies where this kernel cannot map it.
    Unreachable(u64),
    /// The memory is no region.
    Region(RegionError),
}

impl fmt::Display for IvshmemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str(
                "there is no ivshmem device: start QEMU with -device ivshmem-doorbell,chardev=…,vectors=1",
            ),
            Self::Incomplete(what) => write!(f, "the ivshmem device has no {what}"),
            Self::Unreachable(address) => write!(f, "a BAR lies at {address:#x}, too high"),
            Self::Region(error) => error.fmt(f),
        }
    }
}

/// Rings the host: one store to a register.
#[derive(Clone, Copy)]
pub struct HostBell {
    register: u64,
}

impl Doorbell for HostBell {
    fn ring(&self) {
        // SAFETY: the register is mapped for good; a store to it does nothing to
        // memory. The vector, in the low half, is 0.
        unsafe { (self.register as usize as *mut u32).write_volatile(HOST_ID << 16) }
    }
}

/// The device, ready.
pub struct Ivshmem {
    /// The memory shared with the host.
    pub region: Region,
    /// Rings the host.
    pub host_bell: HostBell,
    /// This guest's number among those of the daemon, from 1.
    pub id: u32,
}

impl Ivshmem {
    /// Finds the device and makes it interrupt with [`DOORBELL_VECTOR`] whenever
    /// the host rings. Call it once.
    ///
    /// # Errors
    /// [`IvshmemError`].
    pub fn open() -> Result<Self, IvshmemError> {
        let mut device = Device::find(VENDOR, DEVICE).ok_or(IvshmemError::Absent)?;
        let bar = |device: &Device, number, what| {
            let bar = device.bar(number).ok_or(IvshmemError::Incomplete(what))?;
            match map_device(bar.0, bar.1) {
                true => Ok(bar),
                false => Err(IvshmemError::Unreachable(bar.0)),
            }
        };
        let (registers, _) = bar(&device, 0, "registers (BAR 0)")?;
        let (memory, len) = bar(&device, 2, "memory (BAR 2)")?;
        let mut msix = device.msix().ok_or(IvshmemError::Incomplete("MSI-X"))?;
        let (table, _) = bar(&device, msix.table_bar(), "MSI-X table")?;
        device.enable();
        let entry = (table + u64::from(msix.table_offset())) as usize as *mut u32;
        let message = [
            0xfee0_0000 | u32::from(apic_id()) << 12,
            0,
            u32::from(DOORBELL_VECTOR),
            0, // not masked
        ];
        for (at, word) in message.into_iter().enumerate() {
            // SAFETY: the table has at least one entry of four words.
            unsafe { entry.add(at).write_volatile(word) };
        }
        msix.set_function_mask(false, Ports);
        msix.set_enabled(true, Ports);
        // SAFETY: the register is mapped.
        let id = unsafe { ((registers + IV_POSITION) as usize as *const u32).read_volatile() };
        // SAFETY: the BAR stays where it is, and only this region uses it.
        let region = unsafe { Region::from_raw(memory as usize as *mut u8, len as usize) };
        log::info!(
            "ivshmem at {}: {} KiB at {memory:#x}, guest number {id}",
            device.address(),
            len >> 10
        );
        Ok(Self {
            region: region.map_err(IvshmemError::Region)?,
            host_bell: HostBell {
                register: registers + DOORBELL,
            },
            id,
        })
    }
}
