//! The migration stub domain.
#![no_std]
#![no_main]

extern crate alloc;

#[allow(dead_code, reason = "the main loop that uses it follows")]
mod net;

use xen_front::boot::Domain;
use xen_front::hypercall::version;

xen_front::entry!(include_str!("../../../boot/start.S"), run);

fn run(domain: Domain) -> ! {
    let (major, minor) = version::version().unwrap_or_default();
    log::info!("stub domain on Xen {major}.{minor}, {:?}", domain.start_info);
    log::info!("heap: {:?} bytes used, free", xen_front::heap::usage());
    loop {
        if let Err(errno) = domain.events.wait(&[domain.store.port], None) {
            panic!("poll: {errno}");
        }
        domain.events.take(domain.store.port);
    }
}
