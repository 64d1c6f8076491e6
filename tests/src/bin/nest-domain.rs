//! Runs in dom0: what Xen says of a domain that nothing else tells, for stories that compare it before and after.
//!
//! `nest-domain` prints how much memory Xen has free, in KiB, and how many domains there are besides dom0, dying ones
//! among them. `nest-domain DOMID [FIRST:END]...` prints how many pages the domain owns and may own, the frame of its `shared_info`, and
//! for each range of gfns (decimal or 0x...) the runs of equal memory types, by their numbers (`hvmmem_type_t`).
#![allow(unsafe_code, reason = "asking about another domain is a call into Xen's C libraries")]

use clap::Parser;
use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::io;
use std::ops::Range;
use std::process::ExitCode;
use std::ptr::{self, NonNull};

/// `__HYPERVISOR_hvm_op` and `HVMOP_get_mem_type` (`xen.h`, `hvm/hvm_op.h`).
const HVM_OP: c_uint = 34;
const GET_MEM_TYPE: u64 = 15;

/// There is no domain with this number or a higher one.
const ESRCH: i32 = 3;

/// `struct xen_hvm_get_mem_type`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct GetMemType {
    domid: u16,
    mem_type: u16,
    pad: [u16; 2],
    pfn: u64,
}

/// `xc_dominfo_t`; what stands behind `max_memkb` is of no interest.
#[repr(C)]
#[derive(Clone, Copy)]
struct DomInfo {
    domid: u32,
    ssidref: u32,
    flags: c_uint,
    shutdown_reason: c_uint,
    nr_pages: c_ulong,
    nr_outstanding_pages: c_ulong,
    nr_shared_pages: c_ulong,
    nr_paged_pages: c_ulong,
    shared_info_frame: c_ulong,
    cpu_time: u64,
    max_memkb: c_ulong,
    rest: [u64; 16],
}

/// `xc_physinfo_t`; what stands behind `free_pages` is of no interest.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PhysInfo {
    of_processors: [u32; 10],
    total_pages: u64,
    free_pages: u64,
    rest: [u64; 16],
}

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_interface_open(logger: *mut c_void, builder_logger: *mut c_void, flags: c_uint) -> *mut c_void;
    fn xc_physinfo(xen: *mut c_void, info: *mut PhysInfo) -> c_int;
    fn xc_domain_getinfo(xen: *mut c_void, first: u32, max: c_uint, info: *mut DomInfo) -> c_int;
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
    /// The domain's number; without one it is all of the host.
    domid: Option<u16>,
    /// Runs of guest frame numbers whose memory types to tell, of an HVM or PVH domain.
    #[arg(value_parser = range)]
    gfns: Vec<Range<u64>>,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    let ends = text.split_once(':').and_then(|(first, end)| Some(number(first).ok()?..number(end).ok()?));
    ends.ok_or_else(|| "expected FIRST:END, decimal or 0x...".to_owned())
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
    let xen = Xen::open()?;
    let Some(domid) = arguments.domid else {
        println!("free_kib={} guests={}", xen.free_pages()? * 4, xen.nr_guests()?);
        return Ok(());
    };
    let domain = xen.domain_from(domid.into())?.filter(|found| found.domid == u32::from(domid));
    let Some(DomInfo { nr_pages, max_memkb, shared_info_frame, .. }) = domain else {
        return Err(io::Error::other(format!("no domain {domid}")));
    };
    println!("pages={nr_pages} max_kib={max_memkb} shared_info={shared_info_frame:#x}");
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

/// The way to Xen, open until the process ends.
struct Xen(NonNull<c_void>);

impl Xen {
    fn open() -> io::Result<Self> {
        // SAFETY: null loggers and no flags are what the header offers for the defaults.
        let xen = unsafe { xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
        NonNull::new(xen).map(Self).ok_or_else(io::Error::last_os_error)
    }

    fn free_pages(&self) -> io::Result<u64> {
        let mut info = PhysInfo::default();
        // SAFETY: the handle is open; the structure has the layout of the header, with room behind it.
        match unsafe { xc_physinfo(self.0.as_ptr(), &raw mut info) } {
            0 => Ok(info.free_pages),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn nr_guests(&self) -> io::Result<usize> {
        let mut nr_guests = 0;
        let mut next = 1;
        while let Some(domain) = self.domain_from(next)? {
            nr_guests += 1;
            next = domain.domid + 1;
        }
        Ok(nr_guests)
    }

    /// The first domain from this number on.
    fn domain_from(&self, first: u32) -> io::Result<Option<DomInfo>> {
        // SAFETY: the structure consists of numbers only, for which zeroes are values.
        let mut info: DomInfo = unsafe { std::mem::zeroed() };
        // SAFETY: the handle is open; the structure has the layout of the header, with room behind it, for the one domain
        // that is asked for.
        match unsafe { xc_domain_getinfo(self.0.as_ptr(), first, 1, &raw mut info) } {
            1 => Ok(Some(info)),
            0 => Ok(None),
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(ESRCH) => Ok(None),
                error => Err(error),
            },
        }
    }
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
    fn a_range_is_two_numbers() {
        assert_eq!(range("0xfe000:1048576"), Ok(0xfe000..0x10_0000));
        assert!(range("7").is_err() && range("7:x").is_err());
    }

    #[test]
    fn the_structures_are_as_long_as_xens() {
        assert_eq!(size_of::<GetMemType>(), 16);
        assert_eq!(std::mem::offset_of!(DomInfo, nr_pages), 16);
        assert_eq!(std::mem::offset_of!(DomInfo, max_memkb), 64);
        assert_eq!(std::mem::offset_of!(PhysInfo, free_pages), 48);
    }
}
