//! `event_channel.h`.

use zerocopy::FromBytes;

pub const EVTCHNOP_bind_interdomain: u64 = 0;
pub const EVTCHNOP_close: u64 = 3;
pub const EVTCHNOP_send: u64 = 4;
pub const EVTCHNOP_alloc_unbound: u64 = 6;

#[derive(Clone, Copy, Debug, FromBytes)]
#[repr(C)]
pub struct EvtchnAllocUnbound {
    pub dom: u16,
    pub remote_dom: u16,
    pub port: u32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct EvtchnBindInterdomain {
    pub remote_dom: u16,
    pub remote_port: u32,
    pub local_port: u32,
}
