//! From the entry point to `main`: everything a PV domain finds at start, taken once, in order.
#![allow(unsafe_code, reason = "takes over the machine at its entry point")]

use alloc::boxed::Box;

use crate::clock::Clock;
use crate::console;
use crate::events::Events;
use crate::hypercall::vcpu;
use crate::memory::{self, Memory};
use crate::shared_mem::SharedMem;
use crate::start_info::{self, StartInfo};
use crate::traps;
use xen_abi::abi;
/// What the domain builder wrote, for [`entry!`](crate::entry).
pub use xen_abi::abi::StartInfo as RawStartInfo;
use xen_abi::errno::Errno;
use xen_abi::pte::Flags;
use xen_abi::types::{Mfn, PAGE_SIZE, Port};

/// The image's own addresses, as the entry's assembly hands them over.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Image {
    /// Where pfn 0 is mapped.
    pub virt_base: usize,
    /// Executable code.
    pub text_start: usize,
    /// End of the executable code.
    pub text_end: usize,
    /// Constants.
    pub rodata_start: usize,
    /// End of the constants.
    pub rodata_end: usize,
    /// The page below the stack.
    pub stack_guard: usize,
}

impl Image {
    /// Returns the rights of the page at `va`; `None` for the guard, which must not be mapped.
    pub(crate) fn rights(&self, va: usize) -> Option<Flags> {
        if va == self.stack_guard {
            None
        } else if (self.text_start..self.text_end).contains(&va) {
            Some(Flags::TEXT)
        } else if (self.rodata_start..self.rodata_end).contains(&va) {
            Some(Flags::RO)
        } else {
            Some(Flags::DATA)
        }
    }
}

/// A ring page shared with a daemon in dom0.
#[derive(Debug)]
pub struct RingPage {
    /// The page.
    pub page: SharedMem,
    /// Our end of its event channel.
    pub port: Port,
}

/// What a PV domain has at start.
pub struct Domain {
    /// What the builder said.
    pub start_info: StartInfo,
    /// Our memory.
    pub memory: Memory,
    /// Our event channels.
    pub events: Events,
    /// System time.
    pub clock: Clock,
    /// The xenstore ring.
    pub store: RingPage,
}

/// Why the domain could not start.
#[derive(Clone, Copy, Debug)]
pub enum Error {
    /// The start information is wrong.
    StartInfo(start_info::Error),
    /// Memory could not be set up.
    Memory(memory::Error),
    /// Xen refused a call.
    Refused(Errno),
    /// A ring page is not ours.
    Ring(Mfn),
}

/// Takes over the machine.
///
/// Order matters: the traps first, so that every later mistake is reported; the console as soon as memory is there.
///
/// # Safety
/// Called once, by the entry of a PV kernel, with the address of its start information and of a true [`Image`].
pub unsafe fn take_over(start_info: *const abi::StartInfo, image: *const Image) -> Domain {
    // SAFETY: the caller's obligation, passed on.
    match unsafe { bring_up(start_info, image) } {
        Ok(domain) => domain,
        Err(error) => panic!("cannot start: {error:?}"),
    }
}

unsafe fn bring_up(start_info: *const abi::StartInfo, image: *const Image) -> Result<Domain, Error> {
    traps::install().map_err(Error::Refused)?;
    // SAFETY: the builder's structure is mapped, and nobody writes to it.
    let info = StartInfo::parse(unsafe { &*start_info }).map_err(Error::StartInfo)?;
    // SAFETY: the assembly's constant.
    let image = unsafe { image.read() };
    // SAFETY: both are true; nothing has used memory outside the image yet.
    let mut memory = unsafe { Memory::init(&info, &image) }.map_err(Error::Memory)?;
    let shared_info = memory.map_machine(info.shared_info).map_err(Error::Memory)?;
    let shared_info: &'static SharedMem = Box::leak(Box::new(shared_info));
    traps::set_shared_info(shared_info);
    let (events, clock) = (Events::new(shared_info), Clock::new(shared_info));

    // SAFETY: the builder's console page, taken once.
    let page = unsafe { memory.builder_page(info.console.mfn) }.ok_or(Error::Ring(info.console.mfn))?;
    console::init(page, info.console.port, events, clock);
    vcpu::stop_periodic_timer().map_err(Error::Refused)?;

    // SAFETY: the builder's xenstore page, taken once.
    let page = unsafe { memory.builder_page(info.store.mfn) }.ok_or(Error::Ring(info.store.mfn))?;
    let store = RingPage { page, port: info.store.port };
    Ok(Domain { start_info: info, memory, events, clock, store })
}

/// Makes `$main`, a `fn(Domain) -> !`, the entry of a PV kernel whose first instructions are `$asm`.
///
/// The assembly calls `{start}` with the start information's address in rdi and that of an [`Image`] in rsi, on a stack
/// of its own, and places the ELF notes. Use it once in a binary, with the feature `kernel`.
#[macro_export]
macro_rules! entry {
    ($asm:expr, $main:path) => {
        ::core::arch::global_asm!($asm, start = sym xen_front_start, options(att_syntax));

        extern "C" fn xen_front_start(
            start_info: *const $crate::boot::RawStartInfo,
            image: *const $crate::boot::Image,
        ) -> ! {
            let main: fn($crate::boot::Domain) -> ! = $main;
            // SAFETY: called once, by the entry's assembly, with the two addresses it documents.
            main(unsafe { $crate::boot::take_over(start_info, image) })
        }
    };
}

const _: () = assert!(size_of::<abi::SharedInfo>() <= PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_writable_and_executable() {
        let image = Image {
            virt_base: 0x1000,
            text_start: 0x1000,
            text_end: 0x3000,
            rodata_start: 0x3000,
            rodata_end: 0x4000,
            stack_guard: 0x5000,
        };
        let rights: [_; 6] = core::array::from_fn(|page| image.rights(0x1000 * (page + 1)));
        let text = Some(Flags::TEXT);
        assert_eq!(rights, [text, text, Some(Flags::RO), Some(Flags::DATA), None, Some(Flags::DATA)]);
        assert!(rights.iter().flatten().all(|flags| flags.contains(Flags::NX) != (*flags == Flags::TEXT)));
        assert!(!Flags::TEXT.contains(Flags::RW));
    }
}
