//! The migration stub domain: receives its target's stream, populates and fills the target, sends it, and serves stubctl.
//!
//! One vCPU, no upcalls, one loop: look at everything that may have happened, then sleep in `SCHEDOP_poll` until
//! something does.
#![no_std]
#![no_main]

extern crate alloc;

mod broker;
mod calls;
mod exchange;
mod life;
mod link;
mod net;
mod patience;
mod receive;
mod ring;
mod send;
mod status;
mod stub;
mod survey;
mod target;

use stub::Stub;
use xen_front::boot::Domain;

xen_front::entry!(include_str!("../../../boot/start.S"), run);

fn run(domain: Domain) -> ! {
    let mut stub = match Stub::start(domain) {
        Ok(stub) => stub,
        Err(error) => panic!("cannot start: {error:?}"),
    };
    loop {
        stub.follow_store();
        stub.obey();
        if !stub.receive() && !stub.send() {
            stub.sleep();
        }
    }
}
