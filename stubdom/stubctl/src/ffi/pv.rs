//! What dom0 does to a PV guest's page tables and frames.
//!
//! `mmu_update` names the owner of the tables and says how many updates were done, for which libxenctrl's function has no
//! way. `XENMEM_exchange` gets a list of results with the new frame's pfn; without it the machine-to-phys table would have
//! none, which shows when the guest is saved.
#![allow(unsafe_code, reason = "hypercalls with buffers; each block names them")]

use super::foreign::ForeignMemory;
use super::hypercalls::{Buffer, Hypercalls};
use super::xenctrl::{XenError, Xenctrl, done};
use migration::exchange_pv::{PageType, Table, Update, WORDS};
use xen_abi::abi::*;
use xen_abi::grant_entry::Version;
use xen_abi::types::{Domid, Mfn, Pfn, Port};
use zerocopy::FromBytes;

/// `vcpu_guest_context_t`, as words.
type VcpuContext = [u64; VCPU_GUEST_CONTEXT_BYTES / 8];

/// What of a suspended vCPU leads to frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VcpuFrames {
    /// `start_info`, if this is the vCPU that suspended the guest.
    pub(crate) start_info: Mfn,
    /// The descriptor table's frames.
    pub(crate) gdt: Vec<Mfn>,
    /// Kernel's and user's page table.
    pub(crate) roots: [Mfn; 2],
}

impl Xenctrl {
    /// Stops all vCPUs of a domain; returns when they stand (`XEN_DOMCTL_pausedomain`). Pauses are counted.
    pub(crate) fn pause(&self, domid: Domid) -> Result<(), XenError> {
        done(self.calls().domctl(XEN_DOMCTL_pausedomain, domid, ()), "XEN_DOMCTL_pausedomain", domid)
    }

    /// Takes a pause back (`XEN_DOMCTL_unpausedomain`).
    pub(crate) fn unpause(&self, domid: Domid) -> Result<(), XenError> {
        done(self.calls().domctl(XEN_DOMCTL_unpausedomain, domid, ()), "XEN_DOMCTL_unpausedomain", domid)
    }

    /// Lets a suspended PV guest go on where it suspended, as after a cancelled suspension: its hypercall returns 1
    /// (`XEN_DOMCTL_resumedomain`).
    pub(crate) fn resume(&self, domid: Domid) -> Result<(), XenError> {
        if !self.domain_info(domid)?.is_some_and(|info| info.suspended) {
            return done(Err(libc::EINVAL), "XEN_DOMCTL_resumedomain", domid);
        }
        let resume = || {
            let DomctlAddressSize { size } =
                self.calls().domctl(XEN_DOMCTL_get_address_size, domid, DomctlAddressSize::default())?;
            let mut context = self.vcpu_context(domid, 0)?;
            set_return_value(&mut context, size, 1);
            self.set_vcpu_context(domid, 0, &context)?;
            self.calls().domctl(XEN_DOMCTL_resumedomain, domid, ())
        };
        done(resume(), "XEN_DOMCTL_resumedomain", domid)
    }

    /// Has Xen send an event through this port of the guest when it has suspended, *instead of* telling xenstored of the
    /// shutdown (`XEN_DOMCTL_subscribe`); `None` has it tell xenstored again.
    pub(crate) fn subscribe_for_suspend(&self, domid: Domid, port: Option<Port>) -> Result<(), XenError> {
        let op = DomctlSubscribe { port: port.map_or(0, Port::raw) };
        done(self.calls().domctl(XEN_DOMCTL_subscribe, domid, op), "XEN_DOMCTL_subscribe", domid).map(drop)
    }

    /// Makes a port of the guest to which dom0 may bind (`EVTCHNOP_alloc_unbound`).
    pub(crate) fn alloc_unbound(&self, domid: Domid) -> Result<Port, XenError> {
        let mut arg = EvtchnAllocUnbound { dom: domid.raw(), remote_dom: Domid::DOM0.raw(), port: 0 };
        let op = __HYPERVISOR_event_channel_op;
        // SAFETY: the structure holds no address.
        let made = unsafe { self.calls().sub_op(op, EVTCHNOP_alloc_unbound, 0, &mut arg) };
        done(made, "EVTCHNOP_alloc_unbound", domid).map(|()| Port::new(arg.port))
    }

    /// Reads the frames that a vCPU refers to; `None` for one that was never started.
    pub(crate) fn vcpu_frames(&self, domid: Domid, vcpu: u32) -> Result<Option<VcpuFrames>, XenError> {
        match self.vcpu_context(domid, vcpu) {
            Err(libc::ENODATA) => Ok(None),
            context => done(context, "XEN_DOMCTL_getvcpucontext", domid).map(|found| Some(frames_of(&found))),
        }
    }

    fn vcpu_context(&self, domid: Domid, vcpu: u32) -> Result<Box<VcpuContext>, i32> {
        let mut context = Buffer::<VcpuContext>::new(self.calls(), 1)?;
        let mut op = DomctlVcpucontext { vcpu, pad: 0, ctxt: context.address() };
        // SAFETY: the buffer has room for a `vcpu_guest_context_t`, and lives until after the call.
        unsafe { self.calls().domctl_with(XEN_DOMCTL_getvcpucontext, domid, &mut op) }?;
        Ok(Box::new(context.words()[0]))
    }

    fn set_vcpu_context(&self, domid: Domid, vcpu: u32, context: &VcpuContext) -> Result<(), i32> {
        let context = Buffer::of(self.calls(), std::slice::from_ref(context))?;
        let mut op = DomctlVcpucontext { vcpu, pad: 0, ctxt: context.address() };
        // SAFETY: the buffer holds a `vcpu_guest_context_t`, and lives until after the call.
        unsafe { self.calls().domctl_with(XEN_DOMCTL_setvcpucontext, domid, &mut op) }
    }

    /// `MMUEXT_PIN_Ln_TABLE`; `Err` is a positive errno.
    pub(crate) fn pin(&self, domid: Domid, mfn: Mfn, level: u8) -> Result<(), i32> {
        self.mmuext(domid, MMUEXT_PIN_L1_TABLE + u32::from(level).saturating_sub(1), mfn)
    }

    /// `MMUEXT_UNPIN_TABLE`; `Err` is a positive errno.
    pub(crate) fn unpin(&self, domid: Domid, mfn: Mfn) -> Result<(), i32> {
        self.mmuext(domid, MMUEXT_UNPIN_TABLE, mfn)
    }

    fn mmuext(&self, domid: Domid, cmd: u32, mfn: Mfn) -> Result<(), i32> {
        let op = Buffer::of(self.calls(), &[MmuextOp { cmd, arg1: mfn.raw(), arg2: 0 }])?;
        let args = [op.address(), 1, 0, domid.raw().into()];
        // SAFETY: the buffer holds the one operation announced; no count is asked for.
        unsafe { self.calls().call(__HYPERVISOR_mmuext_op, args) }.map(drop)
    }

    /// Copies a guest's grant table.
    pub(crate) fn grant_table(&self, domid: Domid) -> Result<(Version, Vec<u8>), XenError> {
        let mut arg = GnttabGetVersion { dom: domid.raw(), pad: 0, version: 0 };
        // SAFETY: the structure holds no address.
        let asked = unsafe { self.grant_table_op(GNTTABOP_get_version, &mut arg) };
        done(asked, "GNTTABOP_get_version", domid)?;
        let version = if arg.version == 2 { Version::V2 } else { Version::V1 };
        let frames = done(self.grant_frames(domid), "GNTTABOP_setup_table", domid)?;
        let mut words = vec![[0_u64; WORDS]; frames.len()];
        let memory = ForeignMemory::open(domid)?;
        done(memory.read(&frames, &mut words), "xenforeignmemory_map", domid)?;
        Ok((version, words.as_flattened().iter().flat_map(|word| word.to_le_bytes()).collect()))
    }

    /// The frames of a guest's grant table, of either version.
    fn grant_frames(&self, domid: Domid) -> Result<Vec<Mfn>, i32> {
        let mut size =
            GnttabQuerySize { dom: domid.raw(), nr_frames: 0, max_nr_frames: 0, status: GNTST_okay };
        // SAFETY: the structure holds no address.
        unsafe { self.grant_table_op(GNTTABOP_query_size, &mut size) }?;
        let nr_frames = if size.status == GNTST_okay { size.nr_frames } else { return Err(libc::EINVAL) };
        let mut list = Buffer::<u64>::new(self.calls(), nr_frames as usize)?;
        let mut table =
            GnttabSetupTable { dom: domid.raw(), nr_frames, status: GNTST_okay, frame_list: list.address() };
        // SAFETY: the list has room for as many frames as are asked for, and lives until after the call.
        unsafe { self.grant_table_op(GNTTABOP_setup_table, &mut table) }?;
        if table.status != GNTST_okay {
            return Err(libc::EINVAL);
        }
        Ok(list.words().iter().map(|mfn| Mfn::new(*mfn)).collect())
    }

    /// # Safety
    /// As [`Hypercalls::call`], for the addresses in `arg`.
    unsafe fn grant_table_op<T: FromBytes + Copy>(&self, cmd: u64, arg: &mut T) -> Result<(), i32> {
        // SAFETY: the caller vouches for the addresses; this is the one operation announced.
        unsafe { self.calls().sub_op(__HYPERVISOR_grant_table_op, cmd, 1, arg) }
    }
}

fn frames_of(context: &VcpuContext) -> VcpuFrames {
    let at = |offset: usize| context[offset / 8];
    let gdt_frames = &context[VCPU_GUEST_CONTEXT_GDT_FRAMES / 8..];
    let nr_gdt_frames = at(VCPU_GUEST_CONTEXT_GDT_ENTS).min(16 * 512).div_ceil(512);
    let gdt = gdt_frames.iter().zip(0..nr_gdt_frames).map(|(mfn, _)| Mfn::new(*mfn)).collect();
    let root = |register: usize| Mfn::new(at(VCPU_GUEST_CONTEXT_CTRLREG + 8 * register) >> 12);
    VcpuFrames { start_info: Mfn::new(at(VCPU_GUEST_CONTEXT_RDX)), gdt, roots: [root(3), root(1)] }
}

/// Sets what the hypercall that a vCPU is in returns; `width` is that of the guest's addresses, in bits.
fn set_return_value(context: &mut VcpuContext, width: u32, value: u32) {
    if width == 32 {
        let word = &mut context[VCPU_GUEST_CONTEXT_X86_32_EAX / 8];
        // The upper half of the word, as the assertion below says.
        *word = *word & 0xffff_ffff | u64::from(value) << 32;
    } else {
        context[VCPU_GUEST_CONTEXT_RAX / 8] = value.into();
    }
}

const _: () = assert!(VCPU_GUEST_CONTEXT_X86_32_EAX % 8 == 4 && VCPU_GUEST_CONTEXT_RAX.is_multiple_of(8));

impl Hypercalls {
    /// `mmu_update` of page tables that `domid` owns and that map its own frames; `Err` tells how many updates were done
    /// and a positive errno.
    pub(crate) fn mmu_update(&self, domid: Domid, updates: &[Update]) -> Result<(), (usize, i32)> {
        let nothing_done = |errno| (0, errno);
        let raw = |update: &Update| MmuUpdate {
            ptr: update.table.raw() << 12 | (update.index as u64) << 3,
            val: update.value,
        };
        let list: Vec<_> = updates.iter().map(raw).collect();
        let list = Buffer::of(self, &list).map_err(nothing_done)?;
        let mut nr_done = Buffer::<u32>::new(self, 1).map_err(nothing_done)?;
        // Owner of the frames in the lower half, owner of the tables plus one in the upper.
        let foreigndom = u64::from(domid.raw()) | (u64::from(domid.raw()) + 1) << 16;
        let args = [list.address(), updates.len() as u64, nr_done.address(), foreigndom];
        // SAFETY: the buffers hold what Xen reads and writes: as many updates, and one count.
        let done = unsafe { self.call(__HYPERVISOR_mmu_update, args) };
        done.map(drop).map_err(|errno| (nr_done.words()[0] as usize, errno))
    }

    /// What `XENMEM_exchange` takes for one frame, for which Xen chooses another and calls it `pfn`; `Err` is a positive
    /// errno.
    pub(super) fn exchange_of(&self, domid: Domid, old: Mfn, pfn: Pfn) -> Result<Exchange<'_>, i32> {
        let (from, to) = (Buffer::of(self, &[old.raw()])?, Buffer::of(self, &[pfn.raw()])?);
        let one = |extent_start: &Buffer<'_, u64>| MemoryReservation {
            extent_start: extent_start.address(),
            nr_extents: 1,
            extent_order: 0,
            mem_flags: 0,
            domid: domid.raw(),
        };
        let call = Buffer::of(self, &[MemoryExchange { in_: one(&from), out: one(&to), nr_exchanged: 0 }])?;
        Ok(Exchange { call, _from: from, to })
    }

    /// `XEN_DOMCTL_getpageframeinfo3` for at most 1024 frames; `Err` is a positive errno.
    pub(crate) fn page_types(&self, domid: Domid, mfns: &[Mfn], types: &mut [PageType]) -> Result<(), i32> {
        let frames: Vec<u64> = mfns.iter().map(|mfn| mfn.raw()).collect();
        let mut array = Buffer::of(self, &frames)?;
        let mut op = DomctlGetpageframeinfo3 { num: frames.len() as u64, array: array.address() };
        // SAFETY: the array has as many entries as are announced, and lives until after the call.
        unsafe { self.domctl_with(XEN_DOMCTL_getpageframeinfo3, domid, &mut op) }?;
        for (page_type, word) in types.iter_mut().zip(array.words()) {
            *page_type = page_type_of(*word);
        }
        Ok(())
    }
}

/// An exchange of one frame, with its two lists of one entry.
pub(super) struct Exchange<'a> {
    call: Buffer<'a, MemoryExchange>,
    _from: Buffer<'a, u64>,
    to: Buffer<'a, u64>,
}

impl Exchange<'_> {
    pub(super) fn address(&self) -> u64 {
        self.call.address()
    }

    /// The frame that Xen has put there, once it has.
    pub(super) fn new_frame(&mut self) -> Mfn {
        Mfn::new(self.to.words()[0])
    }
}

fn page_type_of(word: u64) -> PageType {
    const BROKEN: u64 = XEN_DOMCTL_PFINFO_BROKEN >> XEN_DOMCTL_PFINFO_LTAB_SHIFT;
    match (word >> XEN_DOMCTL_PFINFO_LTAB_SHIFT) & 0xf {
        // And above: frames that are not the guest's.
        BROKEN.. => PageType::Foreign,
        // The lower three bits are 1 to 4.
        nibble if nibble & 7 != 0 => {
            let level = (nibble & 7) as u8;
            PageType::Table(Table { level, is_pinned: word & XEN_DOMCTL_PFINFO_LPINTAB != 0 })
        }
        _ => PageType::Data,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_page_type_word_has_its_level_and_its_pin() {
        let table = |level, is_pinned| PageType::Table(Table { level, is_pinned });
        assert_eq!(page_type_of(0), PageType::Data);
        assert_eq!(page_type_of(1 << 28), table(1, false));
        assert_eq!(page_type_of(4 << 28 | 1 << 31), table(4, true));
        assert_eq!(page_type_of(0xf << 28), PageType::Foreign);
        assert_eq!(page_type_of(0xd << 28), PageType::Foreign);
    }

    #[test]
    fn a_context_names_its_frames() {
        let mut context = [0; VCPU_GUEST_CONTEXT_BYTES / 8];
        (context[616 / 8], context[4960 / 8]) = (0x77, 16);
        (context[4832 / 8], context[4984 / 8 + 3]) = (0x55, 0x1234_5000);
        let frames = frames_of(&context);
        assert_eq!((frames.start_info, frames.gdt), (Mfn::new(0x77), vec![Mfn::new(0x55)]));
        assert_eq!(frames.roots, [Mfn::new(0x12345), Mfn::new(0)]);
    }

    #[test]
    fn a_return_value_goes_where_the_guests_width_has_it() {
        let mut context = [u64::MAX; VCPU_GUEST_CONTEXT_BYTES / 8];
        set_return_value(&mut context, 64, 1);
        assert_eq!((context[74], context[75], context[76]), (u64::MAX, 1, u64::MAX), "rax is at 600");
        let mut context = [u64::MAX; VCPU_GUEST_CONTEXT_BYTES / 8];
        set_return_value(&mut context, 32, 1);
        assert_eq!((context[67], context[75]), (0x1_ffff_ffff, u64::MAX), "eax is at 540");
    }
}
