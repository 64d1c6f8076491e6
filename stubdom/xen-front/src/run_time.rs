//! The time that this vCPU has run, without what others ran in between (`struct vcpu_runstate_info`).
#![allow(unsafe_code, reason = "hands Xen memory to write to")]

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ptr::NonNull;

use alloc::boxed::Box;

use crate::clock::Clock;
use crate::hypercall::vcpu;
use crate::shared_mem::SharedMem;
use xen_abi::abi::{RUNSTATE_running, VcpuRunstateInfo};
use xen_abi::errno::Errno;

const ENTERED: usize = offset_of!(VcpuRunstateInfo, state_entry_time);
const RUNNING: usize = offset_of!(VcpuRunstateInfo, time) + RUNSTATE_running * size_of::<u64>();

/// Reads the time. Copies are the same time.
#[derive(Clone, Copy, Debug)]
pub struct RunTime {
    area: &'static SharedMem,
    clock: Clock,
}

impl RunTime {
    /// Asks Xen to tell, from now on and for ever: call it once.
    ///
    /// # Errors
    /// Xen refuses.
    pub fn new(clock: Clock) -> Result<Self, Errno> {
        let area = NonNull::from(Box::leak(Box::new(UnsafeCell::new(VcpuRunstateInfo::default()))));
        // SAFETY: leaked memory of the structure's size, of which only this address is left.
        unsafe { vcpu::register_runstate_memory_area(area.cast().as_ptr()) }?;
        // SAFETY: as above: mapped and writable for ever, touched through this value alone.
        let area = unsafe { SharedMem::new(area.cast(), size_of::<VcpuRunstateInfo>()) };
        Ok(Self { area: Box::leak(Box::new(area)), clock })
    }

    /// Returns the time in nanoseconds, Xen's own work for this vCPU included.
    pub fn ns(&self) -> u64 {
        loop {
            // Xen writes the area whenever it lets the vCPU run; so it is whole unless that happens in between.
            let entered: u64 = self.area.read(ENTERED);
            let ran: u64 = self.area.read(RUNNING);
            let now_ns = self.clock.now_ns();
            if self.area.read::<u64>(ENTERED) == entered {
                return ran.saturating_add(now_ns.saturating_sub(entered));
            }
        }
    }
}
