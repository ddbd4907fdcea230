//! The way into Rust, and what the loader left behind.
//!
//! `boot.s` is the entry; it calls `start` in `main.rs` with the address of the
//! start info, which [`StartInfo`] reads. QEMU's `-kernel` and every other PVH
//! loader gives it. It knows nothing of devices.

use core::ffi::CStr;

#[cfg(not(test))]
core::arch::global_asm!(include_str!("boot.s"), options(att_syntax));

const MAGIC: u32 = 0x336e_c578;
const RAM: u32 = 1;

/// `struct hvm_start_info`, version 1.
#[repr(C)]
struct Raw {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
    memory_map: u64,
    memory_map_entries: u32,
    reserved: u32,
}

#[repr(C)]
struct MemoryMapEntry {
    address: u64,
    len: u64,
    kind: u32,
    reserved: u32,
}

/// What the loader says.
pub struct StartInfo(&'static Raw);

impl StartInfo {
    /// Finds it; `None`: this is no PVH loader, or one without a memory map.
    ///
    /// # Safety
    /// `address` is what the loader left in `ebx`, and its memory is untouched.
    pub unsafe fn at(address: u32) -> Option<Self> {
        // SAFETY: promised by the caller; the first 4 GiB are mapped.
        let raw = unsafe { &*(address as usize as *const Raw) };
        (raw.magic == MAGIC && raw.version >= 1).then_some(Self(raw))
    }

    /// The kernel command line; what is no UTF-8 is as if absent.
    pub fn command_line(&self) -> &'static str {
        if self.0.command_line == 0 {
            return "";
        }
        // SAFETY: the loader put a C string there.
        let line = unsafe { CStr::from_ptr(self.0.command_line as usize as *const _) };
        line.to_str().unwrap_or("")
    }

    /// The end of the memory that begins at or below `address` and goes on
    /// without a gap; at most 4 GiB, which is what is mapped.
    pub fn memory_end(&self, address: u64) -> u64 {
        // SAFETY: the loader put that many entries there.
        let entries = unsafe {
            core::slice::from_raw_parts(
                self.0.memory_map as usize as *const MemoryMapEntry,
                self.0.memory_map_entries as usize,
            )
        };
        let around = entries.iter().find(|entry| {
            entry.kind == RAM && (entry.address..entry.address + entry.len).contains(&address)
        });
        around.map_or(address, |entry| (entry.address + entry.len).min(1 << 32))
    }
}
