//! libxencall: hypercalls by their numbers and structures, for which every Xen has the same library.
//!
//! **Takes** the structures of `xen_abi`. **Gives** what Xen makes of them; an error is a positive errno. **Never** guesses
//! a layout: the control interfaces change from release to release, so each is opened with a version that Xen accepts and
//! whose layouts `xen_abi` was compared with.
#![allow(unsafe_code, reason = "libxencall has a C interface")]

use super::xenctrl::XenError;
use crate::xen_version::XenVersion;
use std::ffi::{c_int, c_long, c_uint, c_void};
use std::fmt;
use std::ops::RangeInclusive;
use std::ptr::{self, NonNull};
use std::slice;
use xen_abi::abi::*;
use xen_abi::types::Domid;
use zerocopy::{FromBytes, Immutable, IntoBytes};

#[repr(C)]
struct XenCall {
    _opaque: [u8; 0],
}

#[link(name = "xencall")]
unsafe extern "C" {
    fn xencall_open(logger: *mut c_void, open_flags: c_uint) -> *mut XenCall;
    fn xencall_close(xcall: *mut XenCall) -> c_int;
    fn xencall4(xcall: *mut XenCall, op: c_uint, arg1: u64, arg2: u64, arg3: u64, arg4: u64) -> c_int;
    fn xencall2L(xcall: *mut XenCall, op: c_uint, arg1: u64, arg2: u64) -> c_long;
    fn xencall_alloc_buffer(xcall: *mut XenCall, size: usize) -> *mut c_void;
    fn xencall_free_buffer(xcall: *mut XenCall, p: *mut c_void);
}

/// Hypercalls cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OpenError {
    /// A call failed.
    Call(XenError),
    /// Xen's control interface is none of those known here.
    Interface(UnknownInterface),
}

/// Xen accepts no version of a control interface that is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnknownInterface {
    /// Which Xen.
    pub(crate) version: XenVersion,
    /// The interface.
    pub(crate) interface: &'static str,
    /// The versions that were tried.
    pub(crate) tried: RangeInclusive<u32>,
}

impl fmt::Display for UnknownInterface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, interface, tried } = self;
        write!(
            f,
            "Xen {version} accepts none of the {interface} versions {:#x} to {:#x}, which are those of Xen 4.17 to 4.22",
            tried.start(),
            tried.end()
        )
    }
}

impl std::error::Error for UnknownInterface {}

impl From<XenError> for OpenError {
    fn from(error: XenError) -> Self {
        Self::Call(error)
    }
}

/// The structure of a control operation that holds numbers and no address.
pub(super) trait Plain: FromBytes + IntoBytes + Immutable {}

impl Plain for () {}
impl Plain for DomctlGetdomaininfo {}
impl Plain for DomctlMaxMem {}
impl Plain for DomctlSubscribe {}
impl Plain for DomctlAddressSize {}
impl Plain for DomctlSetTarget {}
impl Plain for DomctlTscInfo {}
impl Plain for DomctlVmEventOp {}
impl Plain for SysctlAvailheap {}
impl Plain for SysctlPhysinfo {}

/// The way to Xen.
pub(crate) struct Hypercalls {
    handle: NonNull<XenCall>,
    domctl_version: u32,
    sysctl_version: u32,
}

impl Hypercalls {
    /// Opens it.
    ///
    /// # Errors
    /// Not in dom0, not root, no privcmd driver; or a Xen whose control interfaces are not known here.
    pub(crate) fn open() -> Result<Self, OpenError> {
        // SAFETY: a null logger means standard error; no flags; the handle is used from this thread only.
        let handle = unsafe { xencall_open(ptr::null_mut(), 0) };
        let failed = || XenError { call: "xencall_open", domid: None, errno: super::last_errno() };
        let handle = NonNull::new(handle).ok_or_else(failed)?;
        let mut calls = Self { handle, domctl_version: 0, sysctl_version: 0 };
        calls.domctl_version = calls.choose("domctl", XEN_DOMCTL_INTERFACE_VERSIONS, |version| {
            let mut domctl =
                calls.domctl_of(XEN_DOMCTL_getdomaininfo, Domid::DOM0, &DomctlGetdomaininfo::default());
            domctl.interface_version = version;
            // SAFETY: the structure holds no address.
            unsafe { calls.call_on(__HYPERVISOR_domctl, &mut domctl) }
        })?;
        calls.sysctl_version = calls.choose("sysctl", XEN_SYSCTL_INTERFACE_VERSIONS, |version| {
            let mut sysctl = calls.sysctl_of(XEN_SYSCTL_physinfo, &SysctlPhysinfo::default());
            sysctl.interface_version = version;
            // SAFETY: the structure holds no address.
            unsafe { calls.call_on(__HYPERVISOR_sysctl, &mut sysctl) }
        })?;
        Ok(calls)
    }

    fn choose(
        &self,
        interface: &'static str,
        versions: RangeInclusive<u32>,
        ask: impl Fn(u32) -> Result<(), i32>,
    ) -> Result<u32, OpenError> {
        match accepted(versions.clone(), ask) {
            Ok(Some(version)) => Ok(version),
            Ok(None) => Err(OpenError::Interface(UnknownInterface {
                version: self.version()?,
                interface,
                tried: versions,
            })),
            Err(errno) => Err(XenError { call: interface, domid: None, errno }.into()),
        }
    }

    /// Which Xen runs.
    pub(crate) fn version(&self) -> Result<XenVersion, XenError> {
        let failed = |errno| XenError { call: "xen_version", domid: None, errno };
        let mut extra = Buffer::<u8>::new(self, XEN_EXTRAVERSION_LEN).map_err(failed)?;
        // SAFETY: this command takes no argument.
        let version = unsafe { self.call(__HYPERVISOR_xen_version, [XENVER_version, 0, 0, 0]) };
        let args = [XENVER_extraversion, extra.address(), 0, 0];
        // SAFETY: this command writes an `xen_extraversion_t`, for which `extra` has room.
        unsafe { self.call(__HYPERVISOR_xen_version, args) }.map_err(failed)?;
        let extra = extra.words();
        let end = extra.iter().position(|byte| *byte == 0).unwrap_or(extra.len());
        Ok(XenVersion::new(version.map_err(failed)?, &String::from_utf8_lossy(&extra[..end])))
    }

    /// A control operation on a domain that takes and gives numbers only.
    pub(super) fn domctl<Op: Plain>(&self, cmd: u32, domid: Domid, op: Op) -> Result<Op, i32> {
        let mut op = op;
        // SAFETY: the structure holds no address.
        unsafe { self.domctl_with(cmd, domid, &mut op) }.map(|()| op)
    }

    /// A control operation on a domain; `op` is what Xen made of it, also of one that failed.
    ///
    /// # Safety
    /// Addresses in `op` are those of live [`Buffer`]s that are as long as `op` says, or null.
    pub(super) unsafe fn domctl_with<Op: FromBytes + IntoBytes + Immutable>(
        &self,
        cmd: u32,
        domid: Domid,
        op: &mut Op,
    ) -> Result<(), i32> {
        let mut domctl = self.domctl_of(cmd, domid, op);
        // SAFETY: the caller vouches for the addresses.
        let done = unsafe { self.call_on(__HYPERVISOR_domctl, &mut domctl) };
        *op = domctl.op();
        done
    }

    /// A control operation on the host that takes and gives numbers only.
    pub(super) fn sysctl<Op: Plain>(&self, cmd: u32, op: Op) -> Result<Op, i32> {
        let mut op = op;
        // SAFETY: the structure holds no address.
        unsafe { self.sysctl_with(cmd, &mut op) }.map(|()| op)
    }

    /// A control operation on the host; `op` is what Xen made of it, also of one that failed.
    ///
    /// # Safety
    /// As [`Hypercalls::domctl_with`].
    pub(super) unsafe fn sysctl_with<Op: FromBytes + IntoBytes + Immutable>(
        &self,
        cmd: u32,
        op: &mut Op,
    ) -> Result<(), i32> {
        let mut sysctl = self.sysctl_of(cmd, op);
        // SAFETY: the caller vouches for the addresses.
        let done = unsafe { self.call_on(__HYPERVISOR_sysctl, &mut sysctl) };
        *op = sysctl.op();
        done
    }

    /// The structure of a control operation on a domain, in the version that this Xen accepts.
    pub(super) fn domctl_of<Op: IntoBytes + Immutable>(&self, cmd: u32, domid: Domid, op: &Op) -> Domctl {
        Domctl { interface_version: self.domctl_version, ..Domctl::new(cmd, domid.raw(), op) }
    }

    /// The structure of a control operation on the host, in the version that this Xen accepts.
    pub(super) fn sysctl_of<Op: IntoBytes + Immutable>(&self, cmd: u32, op: &Op) -> Sysctl {
        Sysctl { interface_version: self.sysctl_version, ..Sysctl::new(cmd, op) }
    }

    /// A hypercall whose one argument is a structure; Xen may change it.
    ///
    /// # Safety
    /// As [`Hypercalls::call`], for the addresses in `arg`.
    pub(super) unsafe fn call_on<T: FromBytes + Copy>(&self, op: u64, arg: &mut T) -> Result<(), i32> {
        let mut buffer = Buffer::<T>::new(self, 1)?;
        buffer.words()[0] = *arg;
        // SAFETY: the buffer is as large as the structure; the caller vouches for the addresses in it.
        let done = unsafe { self.call(op, [buffer.address(), 0, 0, 0]) };
        *arg = buffer.words()[0];
        done.map(drop)
    }

    /// A sub-operation on a structure; Xen may change it.
    ///
    /// # Safety
    /// As [`Hypercalls::call`], for the addresses in `arg`.
    pub(super) unsafe fn sub_op<T: FromBytes + Copy>(
        &self,
        op: u64,
        cmd: u64,
        nr: u64,
        arg: &mut T,
    ) -> Result<(), i32> {
        let mut buffer = Buffer::<T>::new(self, 1)?;
        buffer.words()[0] = *arg;
        // SAFETY: the buffer is as large as the structure; the caller vouches for the addresses in it.
        let done = unsafe { self.call(op, [cmd, buffer.address(), nr, 0]) };
        *arg = buffer.words()[0];
        done.map(drop)
    }

    /// `memory_op`, whose result may be longer than an `int`.
    ///
    /// # Safety
    /// As [`Hypercalls::call`], for the addresses in `arg`.
    pub(super) unsafe fn memory_op<T: FromBytes + Copy>(&self, cmd: u64, arg: &mut T) -> Result<u64, i32> {
        let mut buffer = Buffer::<T>::new(self, 1)?;
        buffer.words()[0] = *arg;
        let (op, handle) = (op_number(__HYPERVISOR_memory_op), self.handle.as_ptr());
        // SAFETY: the handle is open; the buffer is as large as the structure; the caller vouches for the addresses in it.
        let rc = unsafe { xencall2L(handle, op, cmd, buffer.address()) };
        let done = u64::try_from(rc).map_err(|_| super::last_errno());
        *arg = buffer.words()[0];
        done
    }

    /// Hypercalls one after another, in one call; each entry has its result afterwards.
    ///
    /// # Safety
    /// As [`Hypercalls::call`], for each of them.
    pub(super) unsafe fn multicall(&self, entries: &mut [MulticallEntry]) -> Result<(), i32> {
        let mut list = Buffer::of(self, entries)?;
        let args = [list.address(), entries.len() as u64, 0, 0];
        // SAFETY: the list is a buffer of as many entries; the caller vouches for what they name.
        unsafe { self.call(__HYPERVISOR_multicall, args) }?;
        entries.copy_from_slice(list.words());
        Ok(())
    }

    /// Any hypercall.
    ///
    /// # Safety
    /// Addresses among the arguments, and in what they point to, are those of live [`Buffer`]s that are as long as Xen
    /// expects.
    pub(super) unsafe fn call(&self, op: u64, args: [u64; 4]) -> Result<u32, i32> {
        let [first, second, third, fourth] = args;
        // SAFETY: the handle is open; the caller vouches for the arguments.
        let rc = unsafe { xencall4(self.handle.as_ptr(), op_number(op), first, second, third, fourth) };
        u32::try_from(rc).map_err(|_| super::last_errno())
    }
}

impl Drop for Hypercalls {
    fn drop(&mut self) {
        // SAFETY: the handle is open, every buffer borrowed `self` and is gone.
        unsafe { xencall_close(self.handle.as_ptr()) };
    }
}

/// The first version that Xen does not refuse as another's (`EACCES`); `Err` is another errno.
fn accepted(versions: RangeInclusive<u32>, ask: impl Fn(u32) -> Result<(), i32>) -> Result<Option<u32>, i32> {
    for version in versions {
        match ask(version) {
            Err(libc::EACCES) => {}
            done => return done.map(|()| Some(version)),
        }
    }
    Ok(None)
}

fn op_number(op: u64) -> c_uint {
    // PANIC: never; hypercalls are numbered below 64.
    c_uint::try_from(op).expect("a hypercall's number")
}

/// Memory that Xen may read and write while a hypercall runs; zero at first.
pub(super) struct Buffer<'a, T> {
    owner: &'a Hypercalls,
    start: NonNull<T>,
    len: usize,
}

impl<'a, T: FromBytes + Copy> Buffer<'a, T> {
    /// Allocates room for `len` values; `Err` is a positive errno.
    pub(super) fn new(owner: &'a Hypercalls, len: usize) -> Result<Self, i32> {
        let size = len.checked_mul(size_of::<T>()).ok_or(libc::E2BIG)?.max(1);
        // SAFETY: the handle is open; the buffer is page aligned and zeroed.
        let start = unsafe { xencall_alloc_buffer(owner.handle.as_ptr(), size) };
        Ok(Self { owner, start: NonNull::new(start.cast()).ok_or_else(super::last_errno)?, len })
    }

    /// Allocates a buffer and copies values there.
    pub(super) fn of(owner: &'a Hypercalls, values: &[T]) -> Result<Self, i32> {
        let mut buffer = Self::new(owner, values.len())?;
        buffer.words().copy_from_slice(values);
        Ok(buffer)
    }

    /// The address, as a hypercall's argument.
    pub(super) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// What is there.
    pub(super) fn words(&mut self) -> &mut [T] {
        // SAFETY: the buffer has room for `len` values, is aligned, zeroed at first (any bits are a value of `T`),
        // exclusively borrowed, and Xen writes only during a hypercall.
        unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Buffer<'_, T> {
    fn drop(&mut self) {
        // SAFETY: the buffer came from this handle and nothing points there after this.
        unsafe { xencall_free_buffer(self.owner.handle.as_ptr(), self.start.as_ptr().cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_xen_does_not_refuse() {
        let xen = |speaks| move |version| if version == speaks { Ok(()) } else { Err(libc::EACCES) };
        assert_eq!(accepted(0x15..=0x18, xen(0x15)), Ok(Some(0x15)));
        assert_eq!(accepted(0x15..=0x18, xen(0x18)), Ok(Some(0x18)));
        assert_eq!(accepted(0x15..=0x18, xen(0x19)), Ok(None));
        assert_eq!(accepted(0x15..=0x18, |_| Err(libc::EPERM)), Err(libc::EPERM), "no root");
    }

    #[test]
    fn an_unknown_xen_is_told_with_what_was_tried() {
        let version = XenVersion::new(4 << 16 | 23, ".0");
        let error = UnknownInterface { version, interface: "domctl", tried: 0x15..=0x18 };
        let line = "Xen 4.23.0 accepts none of the domctl versions 0x15 to 0x18, which are those of Xen 4.17 to 4.22";
        assert_eq!(error.to_string(), line);
    }
}
