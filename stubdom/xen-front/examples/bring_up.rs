//! The smallest guest: comes up, does what its command line says, sleeps until `xl shutdown`.
//!
//! It shows a stranger how to start with this crate, and the tests that what must fault does. `touch=` chooses:
//! `text` and `rodata` are written to, `data` is executed, `null` is read, `stack` is used up, `undefined` is an
//! undefined instruction, `panic` a Rust panic; `m2p` looks every machine frame up, holes included.
#![no_std]
#![no_main]
#![allow(unsafe_code, reason = "does what must fault")]

use core::hint::black_box;

use xen_abi::types::Mfn;
use xen_front::boot::Domain;
use xen_front::clock::Clock;
use xen_front::hypercall::sched::{self, Reason};
use xen_front::m2p::MachineToPhys;
use xen_front::xenstore::Xenstore;

xen_front::entry!(include_str!("../../../boot/start.S"), run);

static CONSTANT: u64 = 1;

fn run(domain: Domain) -> ! {
    let (used, free) = xen_front::heap::usage();
    log::info!("up: {} pages, {used} bytes of heap used, {free} free", domain.start_info.nr_pages);
    match domain.start_info.cmd_line().strip_prefix("touch=") {
        None => {}
        Some("clock") => clock_goes_on(domain.clock),
        Some("m2p") => look_all_frames_up(),
        Some(what) => fault(what),
    }
    serve(domain)
}

/// Sleeps until the toolstack wants us to end.
fn serve(domain: Domain) -> ! {
    let mut store = Xenstore::new(domain.store, domain.events);
    store.watch("control/shutdown", "").expect("a watch");
    log::info!("ready");
    loop {
        while store.event().expect("xenstore").is_some() {
            if store.read("control/shutdown").is_ok_and(|wish| !wish.is_empty()) {
                log::info!("done");
                sched::shutdown(Reason::Poweroff);
            }
        }
        domain.events.wait(&[store.port()], None).expect("sleep");
    }
}

fn clock_goes_on(clock: Clock) {
    let start = clock.now_ns();
    let (mut last, mut nr_steps) = (start, 0u64);
    while last < start + 100_000_000 {
        let now = clock.now_ns();
        assert!(now >= last, "system time goes back from {last} to {now}");
        nr_steps += u64::from(now > last);
        last = now;
    }
    assert!(nr_steps > 100, "system time moved {nr_steps} times in 100 ms");
    log::info!("clock: {nr_steps} steps in 100 ms");
}

fn look_all_frames_up() {
    let table = MachineToPhys::new().expect("a machine-to-phys table");
    let found = (0..1 << 22).filter(|&mfn| table.gfn(Mfn::new(mfn)).is_some()).count();
    log::info!("m2p: {found} of {} frames", 1 << 22);
}

fn fault(what: &str) {
    match what {
        // SAFETY: none: the text is not writable, and this faults.
        "text" => unsafe { (fault as *mut u8).write_volatile(0xcc) },
        // SAFETY: none: constants are not writable, and this faults.
        "rodata" => unsafe { (&raw const CONSTANT).cast_mut().write_volatile(2) },
        "data" => {
            let code = [0xc3u8]; // ret
            // SAFETY: none: the stack is not executable, and this faults.
            let function = unsafe { core::mem::transmute::<*const u8, extern "C" fn()>(code.as_ptr()) };
            function();
        }
        "null" => {
            let null = black_box(core::ptr::null::<u64>());
            // SAFETY: none: page zero is not mapped, and this faults.
            let _ = unsafe { null.read_volatile() };
        }
        "stack" => log::info!("{}", use_up_the_stack(black_box(u64::MAX))),
        // SAFETY: it ends in a handler that does not return.
        "undefined" => unsafe { core::arch::asm!("ud2") },
        "panic" => panic!("asked to"),
        other => panic!("cannot touch {other}"),
    }
    log::error!("touched {what}: no fault");
}

#[inline(never)]
fn use_up_the_stack(depth: u64) -> u64 {
    let frame = black_box([depth; 64]);
    if depth == 0 { frame[0] } else { use_up_the_stack(depth - 1) + frame[1] }
}
