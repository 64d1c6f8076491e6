//! The calls that exchanging pages needs, and what dom0 sees of it.

use super::{Call, FakeXen, Offline};
use crate::xen::{Access, Errno, PageType, XenExchange};
use alloc::vec::Vec;
use xen_abi::types::{Gfn, Gref, Mfn, Order, PAGE_SIZE};

/// What a guest has Xen keep in a page of its, which Xen pins for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pinned {
    /// `VCPUOP_register_vcpu_info`.
    VcpuInfo,
    /// `EVTCHNOP_expand_array`.
    EventArray,
    /// `EVTCHNOP_init_control`.
    ControlBlock,
}

impl Pinned {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::VcpuInfo, Self::EventArray, Self::ControlBlock];

    /// What a page of the kind looks like.
    fn page(self) -> Vec<u8> {
        let (words, rest): (&[u32], u32) = match self {
            // Events, mask, two registers; version, padding, counter, system time, multiplier, shift.
            Self::VcpuInfo => {
                (&[0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0x1234, 1, 0x777, 1, 0x8000_1234, 0x1ff], 0x5555_5555)
            }
            Self::EventArray => (&[0, 1 << 31, 1 << 31 | 7], 1 << 30),
            Self::ControlBlock => (&[1 << 7, 0, 3, 0, 0, 0, 0, 0, 0, 5], 0),
        };
        let words = words.iter().copied().chain(core::iter::repeat(rest));
        words.take(PAGE_SIZE / 4).flat_map(u32::to_le_bytes).collect()
    }
}

impl FakeXen {
    /// Xen's system time, in nanoseconds.
    pub const NOW_NS: u64 = 1 << 40;

    /// What [`FakeXen::back_end`] copies.
    pub const COPIED: &[u8] = b"received by a back end";

    /// Has Xen pin a page and keep this in it.
    pub fn pin(&mut self, gfn: Gfn, pinned: Pinned) {
        self.write(gfn, &pinned.page());
        if let Some(mfn) = self.frame(gfn) {
            self.hold(mfn);
        }
    }

    /// Marks a frame offline (`XEN_SYSCTL_page_offline_op`), as dom0 does before an exchange.
    pub fn offline(&mut self, mfn: Mfn) {
        self.host.offline(mfn);
    }

    /// Returns what Xen says of a frame.
    pub fn offline_status(&self, mfn: Mfn) -> Offline {
        self.host.offline_status(mfn)
    }

    /// Returns how many frames were retired while the other frame of the pair was free.
    pub fn nr_cut_out(&self) -> usize {
        self.host.nr_cut_out()
    }

    /// Takes a reference on a frame, as a backend or Xen itself does.
    pub fn hold(&mut self, mfn: Mfn) {
        self.host.take_ref(mfn);
    }

    /// Drops such a reference.
    pub fn let_go(&mut self, mfn: Mfn) {
        self.unref(mfn);
    }

    /// Tells whether one entry of the physmap maps the whole region of `gfn`.
    pub fn is_superpage(&self, gfn: Gfn) -> bool {
        self.superpages.contains(&gfn.align_down(Order::PAGE_2M))
    }

    /// Writes bytes at the start of a page, as the guest does.
    pub fn write(&mut self, gfn: Gfn, bytes: &[u8]) {
        if let Some(mfn) = self.frame(gfn) {
            self.host.contents_mut(mfn)[..bytes.len()].copy_from_slice(bytes);
        }
    }
}

impl XenExchange for FakeXen {
    fn map_at(&mut self, first: usize, access: Access, gfns: &[Gfn], errors: &mut [i32]) {
        assert!(gfns.len() == errors.len() && first + gfns.len() <= self.window.len(), "slots of the window");
        let fails = self.fails() || self.fail_name == Some("map");
        self.ledger.0.push(Call::Map { nr_asked: gfns.len() });
        for (slot, (gfn, error)) in (first..).zip(gfns.iter().zip(errors)) {
            if let Some((mfn, _)) = self.window[slot].take() {
                self.unref(mfn);
            }
            *error = if fails { Errno::ENOMEM.raw() } else { self.map_slot(slot, *gfn, access) };
        }
    }

    fn unmap_at(&mut self, slot: usize) {
        let _ = self.fails(); // it cannot, but its caller may die
        self.ledger.0.push(Call::UnmapAt { slot });
        let (mfn, _) = self.window[slot].take().expect("a slot that shows something");
        self.unref(mfn);
    }

    fn copy(&mut self, from: usize, to: usize) {
        let bytes = self.host.contents(self.slot(from, Access::Read));
        let to = self.slot(to, Access::Write);
        *self.host.contents_mut(to) = bytes;
    }

    fn read(&self, slot: usize, page: &mut [u8; PAGE_SIZE]) {
        *page = self.host.contents(self.slot(slot, Access::Read));
    }

    fn equal(&self, left: usize, right: usize) -> bool {
        let contents = |slot| self.host.contents(self.slot(slot, Access::Read));
        contents(left) == contents(right)
    }

    fn gfn(&self, mfn: Mfn) -> Option<Gfn> {
        self.machine_to_phys.get(&mfn).copied()
    }

    fn retain_orphans(&mut self, frames: &mut Vec<Mfn>) {
        frames.retain(|mfn| self.host.is_used(*mfn) && !self.machine_to_phys.contains_key(mfn));
    }

    fn move_page(&mut self, from: Gfn, to: Gfn) -> Result<(), Errno> {
        self.call("move_page", |xen| {
            let mfn = xen.frame(from).ok_or(Errno::EINVAL)?;
            if xen.physmap.contains_key(&to) && !xen.remove(to) {
                return Err(Errno::EINVAL);
            }
            xen.displace(from);
            xen.split(from);
            if xen.unmovable.contains(&to) {
                return Err(Errno::ENOMEM);
            }
            xen.place(to, mfn);
            xen.page_types.remove(&to);
            Ok(())
        })
    }

    fn page_type(&mut self, gfn: Gfn) -> Result<PageType, Errno> {
        self.call("page_type", |xen| {
            let populated = if xen.physmap.contains_key(&gfn) { PageType::Ram } else { PageType::None };
            Ok(xen.page_types.get(&gfn).copied().unwrap_or(populated))
        })
    }

    fn set_read_only(&mut self, gfn: Gfn) -> Result<(), Errno> {
        self.call("set_read_only", |xen| {
            xen.page_types.insert(gfn, PageType::ReadOnly);
            Ok(())
        })
    }

    fn note_modified(&mut self, _first: Gfn, _nr_frames: u64) -> Result<(), Errno> {
        self.call("note_modified", |_| Ok(()))
    }

    fn param(&mut self, index: u32) -> Result<u64, Errno> {
        self.call("param", |xen| Ok(xen.params.get(&index).copied().unwrap_or(0)))
    }

    fn grant_in_force(&mut self, first: Gfn, nr_frames: u64) -> Result<Option<(Gfn, Gref)>, Errno> {
        self.call("grant_in_force", |xen| {
            let end = first.checked_add(nr_frames).ok_or(Errno::EINVAL)?;
            Ok(xen.granted.range(first..end).next().map(|(gfn, gref)| (*gfn, *gref)))
        })
    }

    fn is_grant_table(&mut self, mfn: Mfn) -> Result<bool, Errno> {
        self.call("is_grant_table", |xen| {
            Ok(xen.grant_table.iter().any(|gfn| xen.physmap.get(gfn) == Some(&mfn)))
        })
    }
}
