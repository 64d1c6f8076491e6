//! Runs in dom0: prints the processor time that each domain has had, a line each: its number and nanoseconds.
//!
//! Xen counts what a domain's vCPUs ran, and nothing that others ran meanwhile; dom0's own clocks cannot tell these apart.
#![allow(unsafe_code, reason = "another domain's processor time is a call into Xen's C library")]

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::process::ExitCode;
use std::ptr::{self, NonNull};

/// More domains than any story has.
const MAX_DOMAINS: u32 = 64;

/// `xen_domctl_getdomaininfo_t` of Xen 4.17 (`xen/domctl.h`, interface version 0x15).
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct DomainInfo {
    domid: u16,
    pad1: u16,
    flags: u32,
    pages: [u64; 6],
    cpu_time: u64,
    nr_online_vcpus: u32,
    max_vcpu_id: u32,
    ssidref: u32,
    handle: [u8; 16],
    cpupool: u32,
    gpaddr_bits: u8,
    pad2: [u8; 7],
    arch_config: [u32; 2],
}

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_interface_open(logger: *mut c_void, builder_logger: *mut c_void, flags: c_uint) -> *mut c_void;
    fn xc_domain_getinfolist(xen: *mut c_void, first: u32, max: c_uint, info: *mut DomainInfo) -> c_int;
}

fn main() -> ExitCode {
    match domains() {
        Ok(all) => {
            all.iter().for_each(|info| println!("{} {}", info.domid, info.cpu_time));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("nest-cpu: {error}");
            ExitCode::FAILURE
        }
    }
}

fn domains() -> io::Result<Vec<DomainInfo>> {
    // SAFETY: null loggers and no flags are what the header offers for the defaults.
    let xen = unsafe { xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
    let xen = NonNull::new(xen).ok_or_else(io::Error::last_os_error)?;
    let mut all = vec![DomainInfo::default(); MAX_DOMAINS as usize];
    // SAFETY: the handle is open until the process ends; the array has as many elements as the call is told, each laid
    // out as Xen's header has it.
    let count = unsafe { xc_domain_getinfolist(xen.as_ptr(), 0, MAX_DOMAINS, all.as_mut_ptr()) };
    all.truncate(usize::try_from(count).map_err(|_| io::Error::last_os_error())?);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};

    #[test]
    fn the_layout_is_that_of_the_header() {
        assert_eq!(offset_of!(DomainInfo, cpu_time), 56);
        assert_eq!(offset_of!(DomainInfo, arch_config), 104);
        assert_eq!(size_of::<DomainInfo>(), 112);
    }
}
