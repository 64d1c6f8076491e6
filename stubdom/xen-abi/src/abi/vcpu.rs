//! `vcpu.h`.

pub const VCPUOP_register_runstate_memory_area: u64 = 5;
pub const VCPUOP_stop_periodic_timer: u64 = 7;
pub const RUNSTATE_running: usize = 0;

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct VcpuRunstateInfo {
    pub state: i32,
    pub state_entry_time: u64,
    pub time: [u64; 4],
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VcpuRegisterRunstateMemoryArea {
    pub v: u64,
}
