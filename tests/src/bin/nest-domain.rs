//! Runs in dom0: what Xen says of a domain that nothing else tells, for stories that compare it before and after.
//!
//! `nest-domain DOMID [FIRST:END]...` prints how many pages the domain owns and may own, the frame of its `shared_info`, and
//! for each range of gfns (decimal or 0x...) the runs of equal memory types, by their numbers (`hvmmem_type_t`).
#![allow(unsafe_code, reason = "asking about another domain is a call into Xen's C libraries")]

use clap::Parser;
use e2e::foreign::gfn_range;
use e2e::xenctrl::Xenctrl;
use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ops::Range;
use std::process::ExitCode;
use std::ptr::{self, NonNull};
use xen_abi::abi::DomctlGetdomaininfo;

/// `__HYPERVISOR_hvm_op` and `HVMOP_get_mem_type` (`xen.h`, `hvm/hvm_op.h`).
const HVM_OP: c_uint = 34;
const GET_MEM_TYPE: u64 = 15;

const PAGE_KIB: u64 = 4;

/// `struct xen_hvm_get_mem_type`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct GetMemType {
    domid: u16,
    mem_type: u16,
    pad: [u16; 2],
    pfn: u64,
}

#[link(name = "xencall")]
unsafe extern "C" {
    fn xencall_open(logger: *mut c_void, flags: c_uint) -> *mut c_void;
    fn xencall_alloc_buffer(handle: *mut c_void, size: usize) -> *mut c_void;
    fn xencall2(handle: *mut c_void, op: c_uint, first: u64, second: u64) -> c_int;
}

/// Says what Xen knows of a domain.
#[derive(Parser)]
struct Arguments {
    /// The domain's number.
    domid: u16,
    /// Runs of guest frame numbers whose memory types to tell, of an HVM or PVH domain.
    #[arg(value_parser = gfn_range)]
    gfns: Vec<Range<u64>>,
}

fn main() -> ExitCode {
    match tell(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nest-domain: {error}");
            ExitCode::FAILURE
        }
    }
}

fn tell(arguments: &Arguments) -> io::Result<()> {
    let domid = arguments.domid;
    let domains = Xenctrl::open()?.domains()?;
    let Some(info) = domains.iter().find(|info| info.domain == domid) else {
        return Err(io::Error::other(format!("no domain {domid}")));
    };
    let DomctlGetdomaininfo { tot_pages, max_pages, shared_info_frame, .. } = info;
    println!("pages={tot_pages} max_kib={} shared_info={shared_info_frame:#x}", max_pages * PAGE_KIB);
    if arguments.gfns.is_empty() {
        return Ok(());
    }
    let asker = Asker::open(domid)?;
    for gfns in &arguments.gfns {
        runs(gfns.clone(), |gfn| asker.mem_type(gfn))?
            .iter()
            .for_each(|(run, kind)| println!("{:#x}:{:#x} {kind}", run.start, run.end));
    }
    Ok(())
}

/// Consecutive gfns of one type each.
fn runs(gfns: Range<u64>, mem_type: impl Fn(u64) -> io::Result<u16>) -> io::Result<Vec<(Range<u64>, u16)>> {
    let mut runs: Vec<(Range<u64>, u16)> = Vec::new();
    for gfn in gfns {
        let kind = mem_type(gfn)?;
        match runs.last_mut() {
            Some((run, last)) if *last == kind => run.end = gfn + 1,
            _ => runs.push((gfn..gfn + 1, kind)),
        }
    }
    Ok(runs)
}

/// The way to a domain's memory types.
struct Asker {
    handle: NonNull<c_void>,
    domid: u16,
    /// Memory that Xen may write to.
    buffer: NonNull<GetMemType>,
}

impl Asker {
    fn open(domid: u16) -> io::Result<Self> {
        // SAFETY: a null logger and no flags are what the header offers for the defaults.
        let handle = unsafe { xencall_open(ptr::null_mut(), 0) };
        let handle = NonNull::new(handle).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the handle is open until the process ends.
        let buffer = unsafe { xencall_alloc_buffer(handle.as_ptr(), size_of::<GetMemType>()) };
        let buffer = NonNull::new(buffer.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { handle, domid, buffer })
    }

    fn mem_type(&self, gfn: u64) -> io::Result<u16> {
        let question = GetMemType { domid: self.domid, pfn: gfn, ..GetMemType::default() };
        // SAFETY: the buffer is ours, has the structure's size and begins at a page.
        unsafe { self.buffer.as_ptr().write_volatile(question) };
        // SAFETY: the handle is open until the process ends, and Xen writes to the buffer only, which is as long as the
        // structure that the call names.
        let done = unsafe {
            xencall2(self.handle.as_ptr(), HVM_OP, GET_MEM_TYPE, self.buffer.as_ptr().addr() as u64)
        };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: as above, and all its bytes are initialised.
        Ok(unsafe { self.buffer.as_ptr().read_volatile() }.mem_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_type_are_one_run() {
        let found = runs(3..8, |gfn| Ok(u16::from(gfn >= 6) * 4)).unwrap();
        assert_eq!(found, [(3..6, 0), (6..8, 4)]);
        assert!(runs(3..8, |_| Err(io::Error::other("no"))).is_err());
    }

    #[test]
    fn the_structure_is_as_long_as_xens() {
        assert_eq!(size_of::<GetMemType>(), 16);
    }
}
