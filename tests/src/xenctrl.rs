//! What the programs in dom0 ask of Xen that no command of its toolstack does, by its libxenctrl (`xenctrl.h`).
//!
//! **Takes** domains and frames by their numbers. **Gives** what Xen says, or the error of the call. **Never** keeps
//! anything between calls.
#![allow(unsafe_code, reason = "libxenctrl is a library of C")]

use std::ffi::{c_int, c_uint, c_ulong, c_void};
use std::io;
use std::ptr::{self, NonNull};
use xen_abi::abi::{DOMID_XEN, DomctlGetdomaininfo, SysctlPhysinfo};

/// More domains than any story has.
const MAX_DOMAINS: usize = 64;

/// Type of a frame that is not there, in the word's own bits (`XEN_DOMCTL_PFINFO_XTAB`, `xen/domctl.h`).
const XTAB: u64 = 0xf << 28;
// `XEN_DOMCTL_SHADOW_OP_*` (`xen/domctl.h`).
const SHADOW_OP_OFF: c_uint = 0;
const SHADOW_OP_ENABLE_LOGDIRTY: c_uint = 2;

/// `struct xen_mc` (`xen/arch-x86/xen-mca.h`) as far as injecting needs it, and room for its largest command behind that.
#[repr(C)]
struct MachineCheck {
    cmd: u32,
    interface_version: u32,
    cpu: u32,
    flags: u32,
    nr_msrs: u32,
    domid: u16,
    pad: u16,
    msrs: [Msr; 8],
    rest: [u64; 32],
}

/// `struct mcinfo_msr`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Msr {
    reg: u64,
    value: u64,
}

const XEN_MCA_INTERFACE_VERSION: u32 = 0x01ec_c003;
const XEN_MC_MSRINJECT: u32 = 4;
const XEN_MC_MCEINJECT: u32 = 5;
/// Xen gives the values itself when it reads these registers, and does not write them.
const MC_MSRINJ_F_INTERPOSE: u32 = 1;

const MSR_MCG_STATUS: u64 = 0x17a;
const MSR_MC0_STATUS: u64 = 0x401;
/// A machine check is in progress, and the interrupted instruction can go on (`MCG_STATUS`).
const MCIP_RIPV: u64 = 0b101;

#[link(name = "xenctrl")]
unsafe extern "C" {
    fn xc_interface_open(logger: *mut c_void, builder_logger: *mut c_void, flags: c_uint) -> *mut c_void;
    fn xc_interface_close(xen: *mut c_void) -> c_int;
    fn xc_physinfo(xen: *mut c_void, info: *mut SysctlPhysinfo) -> c_int;
    fn xc_domain_getinfolist(
        xen: *mut c_void,
        first: u32,
        max: c_uint,
        info: *mut DomctlGetdomaininfo,
    ) -> c_int;
    fn xc_domain_setmaxmem(xen: *mut c_void, domid: u32, max_memkb: u64) -> c_int;
    fn xc_domain_ioport_mapping(
        xen: *mut c_void,
        domid: u32,
        first_gport: u32,
        first_mport: u32,
        nr_ports: u32,
        add: u32,
    ) -> c_int;
    fn xc_domain_populate_physmap(
        xen: *mut c_void,
        domid: u32,
        nr_extents: c_ulong,
        order: c_uint,
        mem_flags: c_uint,
        frames: *mut u64,
    ) -> c_int;
    fn xc_domain_decrease_reservation(
        xen: *mut c_void,
        domid: u32,
        nr_extents: c_ulong,
        order: c_uint,
        frames: *mut u64,
    ) -> c_int;
    fn xc_logdirty_control(
        xen: *mut c_void,
        domid: u32,
        op: c_uint,
        bitmap: *mut c_void,
        pages: c_ulong,
        mode: c_uint,
        stats: *mut c_void,
    ) -> i64;
    fn xc_set_broken_page_p2m(xen: *mut c_void, domid: u32, pfn: c_ulong) -> c_int;
    fn xc_mca_op(xen: *mut c_void, mc: *mut MachineCheck) -> c_int;
    fn xc_get_pfn_type_batch(xen: *mut c_void, domid: u32, nr: c_uint, frames: *mut u64) -> c_int;
}

/// The way to Xen.
#[derive(Debug)]
pub struct Xenctrl(NonNull<c_void>);

impl Xenctrl {
    /// Opens it.
    ///
    /// # Errors
    /// This is not dom0.
    pub fn open() -> io::Result<Self> {
        // SAFETY: null loggers and no flags are what the header offers for the defaults.
        let xen = unsafe { xc_interface_open(ptr::null_mut(), ptr::null_mut(), 0) };
        NonNull::new(xen).map(Self).ok_or_else(io::Error::last_os_error)
    }

    const fn handle(&self) -> *mut c_void {
        self.0.as_ptr()
    }

    /// How many pages Xen has free.
    ///
    /// # Errors
    /// Xen does not tell.
    pub fn free_pages(&self) -> io::Result<u64> {
        let mut info = SysctlPhysinfo::default();
        // SAFETY: the handle is open; the structure has the layout of the header.
        done(unsafe { xc_physinfo(self.handle(), &raw mut info) })?;
        Ok(info.free_pages)
    }

    /// All domains, dom0 first, dying ones among them.
    ///
    /// # Errors
    /// Xen does not tell.
    pub fn domains(&self) -> io::Result<Vec<DomctlGetdomaininfo>> {
        let mut all = vec![DomctlGetdomaininfo::default(); MAX_DOMAINS];
        let max = c_uint::try_from(all.len()).map_err(io::Error::other)?;
        // SAFETY: the handle is open; the array has as many elements as the call is told, each laid out as the header has it.
        let count = unsafe { xc_domain_getinfolist(self.handle(), 0, max, all.as_mut_ptr()) };
        all.truncate(usize::try_from(count).map_err(|_| io::Error::last_os_error())?);
        Ok(all)
    }

    /// Has a domain own so many KiB at most.
    ///
    /// # Errors
    /// There is no such domain.
    pub fn set_max_kib(&self, domid: u32, max_kib: u64) -> io::Result<()> {
        // SAFETY: the handle is open; the call takes numbers only.
        done(unsafe { xc_domain_setmaxmem(self.handle(), domid, max_kib) })
    }

    /// Leads a port of an HVM or PVH domain to one of the machine's.
    ///
    /// # Errors
    /// There is no such domain, or dom0 itself may not use the port.
    pub fn lead_port(&self, domid: u32, gport: u32, mport: u32) -> io::Result<()> {
        // SAFETY: the handle is open; the call takes numbers only.
        done(unsafe { xc_domain_ioport_mapping(self.handle(), domid, gport, mport, 1, 1) })
    }

    /// Gives a domain pages at these frames, as long as there are any; gives how many.
    pub fn populate(&self, domid: u32, frames: &mut [u64]) -> usize {
        // SAFETY: the handle is open, the array has as many elements as the count says, and xen_pfn_t is 64 bits wide on
        // x86-64.
        let nr_done = unsafe {
            xc_domain_populate_physmap(
                self.handle(),
                domid,
                frames.len() as c_ulong,
                0,
                0,
                frames.as_mut_ptr(),
            )
        };
        usize::try_from(nr_done).unwrap_or(0)
    }

    /// Takes the pages at these frames from a domain; gives how many it had.
    pub fn take_back(&self, domid: u32, frames: &mut [u64]) -> usize {
        // SAFETY: as for populating.
        let nr_done = unsafe {
            xc_domain_decrease_reservation(
                self.handle(),
                domid,
                frames.len() as c_ulong,
                0,
                frames.as_mut_ptr(),
            )
        };
        usize::try_from(nr_done).unwrap_or(0)
    }

    /// Ends the log of the pages that a domain writes to; tells whether there was one: Xen does not begin a second.
    pub fn end_log(&self, domid: u32) -> io::Result<bool> {
        let control = |op| {
            // SAFETY: the handle is open; these operations take neither a bitmap nor a place for statistics.
            let rc = unsafe {
                xc_logdirty_control(self.handle(), domid, op, ptr::null_mut(), 0, 0, ptr::null_mut())
            };
            if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        };
        let began = control(SHADOW_OP_ENABLE_LOGDIRTY);
        control(SHADOW_OP_OFF)?;
        match began {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Has Xen take a domain's page for broken, as it does when memory fails under an HVM guest.
    ///
    /// # Errors
    /// There is no such page.
    pub fn mark_broken(&self, domid: u32, gfn: u64) -> io::Result<()> {
        // SAFETY: the handle is open; the call takes numbers only.
        done(unsafe { xc_set_broken_page_p2m(self.handle(), domid, gfn) })
    }

    /// Has Xen find a machine check in this bank on CPU 0, as `xen-mceinj` does with a table of its own.
    ///
    /// # Errors
    /// Xen does not inject.
    pub fn inject_machine_check(&self, bank: u64, status: u64, misc: u64, address: u64) -> io::Result<()> {
        let of_bank = MSR_MC0_STATUS + 4 * bank;
        let values =
            [(MSR_MCG_STATUS, MCIP_RIPV), (of_bank, status), (of_bank + 1, address), (of_bank + 2, misc)];
        let mut inject = MachineCheck {
            cmd: XEN_MC_MSRINJECT,
            interface_version: XEN_MCA_INTERFACE_VERSION,
            cpu: 0,
            flags: MC_MSRINJ_F_INTERPOSE,
            nr_msrs: 4,
            domid: DOMID_XEN,
            pad: 0,
            msrs: [Msr::default(); 8],
            rest: [0; 32],
        };
        for (msr, (reg, value)) in inject.msrs.iter_mut().zip(values) {
            *msr = Msr { reg, value };
        }
        // SAFETY: the handle is open; the structure is as long as the header's at least.
        done(unsafe { xc_mca_op(self.handle(), &raw mut inject) })?;
        // The other command takes the CPU's number, 0, at the same place.
        inject.cmd = XEN_MC_MCEINJECT;
        // SAFETY: as before.
        done(unsafe { xc_mca_op(self.handle(), &raw mut inject) })
    }

    /// Tells of each of these frames, 1024 at most, whether a domain has memory there; mapping a hole takes a call by itself.
    ///
    /// # Errors
    /// Xen does not tell.
    pub fn have_memory(&self, domid: u32, frames: &[u64]) -> io::Result<Vec<bool>> {
        let mut types = frames.to_vec();
        let nr = c_uint::try_from(types.len()).map_err(io::Error::other)?;
        // SAFETY: the handle is open; the array has as many elements as the count says, and xen_pfn_t is 64 bits wide on
        // x86-64.
        done(unsafe { xc_get_pfn_type_batch(self.handle(), domid, nr, types.as_mut_ptr()) })?;
        Ok(types.into_iter().map(|kind| kind & XTAB != XTAB).collect())
    }
}

impl Drop for Xenctrl {
    fn drop(&mut self) {
        // SAFETY: the handle is open, and nobody uses it any more.
        unsafe { xc_interface_close(self.handle()) };
    }
}

/// What libxenctrl's return value says; a negative one names no cause but `errno`.
fn done(code: c_int) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn the_layouts_are_those_of_the_headers() {
        assert_eq!(offset_of!(MachineCheck, domid), 20);
        assert_eq!(offset_of!(MachineCheck, msrs), 24);
    }
}
