//! `sched.h`.

pub const SCHEDOP_yield: u64 = 0;
pub const SCHEDOP_shutdown: u64 = 2;
pub const SCHEDOP_poll: u64 = 3;
pub const SHUTDOWN_poweroff: u32 = 0;
pub const SHUTDOWN_suspend: u32 = 2;
pub const SHUTDOWN_crash: u32 = 3;
/// Most ports of one [`SCHEDOP_poll`] (`do_poll` of Xen's scheduler).
pub const SCHEDOP_POLL_MAX_PORTS: usize = 128;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SchedPoll {
    pub ports: u64,
    pub nr_ports: u32,
    pub timeout: u64,
}
