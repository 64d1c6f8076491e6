//! Exchange of frames under a PV guest, with dom0's rights: Xen ties a stub to HVM and PVH guests only.
//!
//! **Takes** a PV guest and frames of it. **Gives** a verdict on each. **Never** decides what may move: that is
//! `migration::exchange_pv`, for which this is Xen; and never suspends a guest for frames of which it is known before that
//! they stay.
//!
//! The guest is suspended once for all frames of a call. Each is marked in the call to Xen that exchanges it.

use crate::error::Error;
use crate::ffi::foreign::ForeignMemory;
use crate::ffi::hypercalls::Hypercalls;
use crate::ffi::marking::Cpu;
use crate::host::{Host, home};
use crate::marks::Marks;
use crate::pv_suspend::{SuspendError, Suspended};
use crate::standstill::Lock;
use crate::verdict::Refused;
use migration::exchange_pv::{
    Error as ExchangeError, Exchanged, Exchanger, Facts, PageType, PvGuest, Refusal, Role, Root, Update,
    WORDS, Words, grants,
};
use migration::xen::Errno;
use std::mem::offset_of;
use std::time::Duration;
use xen_abi::abi::SharedInfo;
use xen_abi::types::{Domid, Mfn, Pfn};

/// What came of a frame.
pub(crate) type Outcome = Result<Exchanged, Refused>;

/// What came of the frames.
pub(crate) struct Report {
    /// Each frame, in the order asked for.
    pub(crate) frames: Vec<Outcome>,
    /// How long the guest stood still; `None` when it stands for good, or was not suspended.
    pub(crate) stood: Option<Duration>,
}

/// Exchanges frames of one PV guest.
///
/// After [`ExchangeError::Lost`] the guest stays paused, and frames that come later are not tried.
///
/// # Errors
/// No frame was touched: there is no such guest, it does not suspend, its memory cannot be surveyed.
pub(crate) fn run(host: &Host, marks: &Marks<'_>, domid: Domid, mfns: &[Mfn]) -> Result<Report, Error> {
    let cpu = match marks.cpu_for_pv()? {
        Ok(cpu) => cpu,
        Err(refused) => return Ok(Report { frames: vec![Err(refused); mfns.len()], stood: None }),
    };
    let _lock = Lock::take(host, domid)?;
    let mut xen =
        Dom0 { host, domid, cpu, memory: ForeignMemory::open(domid)?, hypercalls: Hypercalls::open()? };
    let known = xen.known(mfns)?;
    if let Some(frames) = known.iter().map(|refused| refused.clone().map(Err)).collect() {
        return Ok(Report { frames, stood: None });
    }
    let suspended = Suspended::new(host, domid)?;
    let mut exchanger = Exchanger::new(xen.facts(Moment::Suspended)?, mfns, &mut xen)?;
    let mut frames = Vec::with_capacity(mfns.len());
    for (&mfn, known) in mfns.iter().zip(known) {
        if let Some(refused) = known.or(marks.beside_free(mfn)?) {
            frames.push(Err(refused));
            continue;
        }
        let outcome = exchanger.exchange(mfn, &mut xen);
        frames.push(outcome.map_err(refused));
        if outcome.is_err_and(|error| !error.leaves_guest_intact()) {
            suspended.leave();
            return Ok(Report { frames, stood: None });
        }
    }
    Ok(Report { frames, stood: Some(suspended.end()) })
}

fn refused(error: ExchangeError) -> Refused {
    Refused::new(error.name(), error.to_string())
}

/// When the guest is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// What its vCPUs have loaded changes all the time.
    Running,
    Suspended,
}

/// Xen, as dom0 has it for one suspended PV guest.
struct Dom0<'a> {
    host: &'a Host,
    domid: Domid,
    /// Where its frames may be marked.
    cpu: Cpu,
    memory: ForeignMemory,
    hypercalls: Hypercalls,
}

impl Dom0<'_> {
    /// What keeps frames where they are, as far as the running guest shows it.
    ///
    /// # Errors
    /// It keeps all frames: the guest need not be suspended to see that.
    fn known(&mut self, mfns: &[Mfn]) -> Result<Vec<Option<Refused>>, Error> {
        let facts = self.facts(Moment::Running)?;
        let exchanger = match Exchanger::new(facts, mfns, self) {
            Ok(exchanger) => exchanger,
            // A table that went while it was read.
            Err(ExchangeError::Xen { .. }) => return Ok(vec![None; mfns.len()]),
            Err(error) => return Err(error.into()),
        };
        let known = mfns.iter().map(|&mfn| match exchanger.check(mfn) {
            // Its place may have changed under the survey.
            Ok(_) | Err(ExchangeError::Refused { refusal: Refusal::NoPfn, .. }) => None,
            Err(error) => Some(refused(error)),
        });
        Ok(known.collect())
    }

    /// Collects what is known of the guest besides its memory.
    fn facts(&self, moment: Moment) -> Result<Facts, Error> {
        let info = self.host.xen.domain_info(self.domid)?.ok_or(SuspendError::Gone(self.domid))?;
        let mut reserved = vec![(info.shared_info, Role::SharedInfo)];
        for (node, role) in [("store/ring-ref", Role::Store), ("console/ring-ref", Role::Console)] {
            let mfn = self.host.store.read_number(&home(self.domid, node))?.map(Mfn::new);
            reserved.extend(mfn.map(|mfn| (mfn, role)));
        }
        let nr_vcpus = if moment == Moment::Suspended { info.max_vcpu + 1 } else { 0 };
        for vcpu in 0..nr_vcpus {
            let Some(frames) = self.host.xen.vcpu_frames(self.domid, vcpu)? else { continue };
            reserved.extend((vcpu == 0).then_some((frames.start_info, Role::StartInfo)));
            reserved.extend(frames.gdt.iter().map(|mfn| (*mfn, Role::DescriptorTable)));
            reserved.extend(frames.roots.map(|mfn| (mfn, Role::Root)));
        }
        let (version, table) = self.host.xen.grant_table(self.domid)?;
        let (p2m, max_pfn) = self.p2m(info.shared_info)?;
        let granted = grants::granted(version, &table);
        Ok(Facts { p2m, max_pfn, max_frames: info.max_pages, reserved, granted })
    }

    /// Reads where the guest has its p2m, from its `shared_info`.
    fn p2m(&self, shared_info: Mfn) -> Result<(Option<Root>, u64), Error> {
        let mut words = [[0; WORDS]];
        let failed = |errno| crate::ffi::xenctrl::XenError {
            call: "xenforeignmemory_map",
            domid: Some(self.domid),
            errno,
        };
        self.memory.read(&[shared_info], &mut words).map_err(failed)?;
        Ok(p2m_of(&words[0]))
    }
}

fn p2m_of(shared_info: &Words) -> (Option<Root>, u64) {
    const MAX_PFN: usize = offset_of!(SharedInfo, max_pfn) / 8;
    const FRAME_LIST_LIST: usize = offset_of!(SharedInfo, pfn_to_mfn_frame_list_list) / 8;
    const P2M_CR3: usize = offset_of!(SharedInfo, p2m_cr3) / 8;
    const P2M_VADDR: usize = offset_of!(SharedInfo, p2m_vaddr) / 8;
    let root = match (shared_info[P2M_CR3], shared_info[FRAME_LIST_LIST]) {
        (0, 0 | u64::MAX) => None,
        (0, top) => Some(Root::Tree(Mfn::new(top))),
        (cr3, _) => Some(Root::Linear { cr3: Mfn::new(cr3 >> 12), vaddr: shared_info[P2M_VADDR] }),
    };
    (root, shared_info[MAX_PFN])
}

impl PvGuest for Dom0<'_> {
    fn read(&mut self, mfns: &[Mfn], pages: &mut [Words]) -> Result<(), Errno> {
        self.memory.read(mfns, pages).map_err(Errno::new)
    }

    fn write(&mut self, mfn: Mfn, page: &Words) -> Result<(), Errno> {
        self.memory.write(mfn, page).map_err(Errno::new)
    }

    fn write_word(&mut self, mfn: Mfn, index: usize, word: u64) -> Result<(), Errno> {
        self.memory.write_word(mfn, index, word).map_err(Errno::new)
    }

    fn page_types(&mut self, mfns: &[Mfn], types: &mut [PageType]) -> Result<(), Errno> {
        self.hypercalls.page_types(self.domid, mfns, types).map_err(Errno::new)
    }

    fn mmu_update(&mut self, updates: &[Update]) -> Result<(), (usize, Errno)> {
        let outcome = self.hypercalls.mmu_update(self.domid, updates);
        outcome.map_err(|(nr_done, errno)| (nr_done, Errno::new(errno)))
    }

    fn pin(&mut self, mfn: Mfn, level: u8) -> Result<(), Errno> {
        self.host.xen.pin(self.domid, mfn, level).map_err(Errno::new)
    }

    fn unpin(&mut self, mfn: Mfn) -> Result<(), Errno> {
        self.host.xen.unpin(self.domid, mfn).map_err(Errno::new)
    }

    fn exchange(&mut self, old: Mfn, pfn: Pfn) -> Result<Mfn, Errno> {
        let exchanged = self.hypercalls.mark_and_exchange(&self.host.xen, self.domid, old, pfn, self.cpu);
        exchanged.map_err(Errno::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_p2m_goes_before_a_tree() {
        let mut words = [0; WORDS];
        (words[386], words[387]) = (0x8000, 0x77);
        assert_eq!(p2m_of(&words), (Some(Root::Tree(Mfn::new(0x77))), 0x8000));
        (words[389], words[390]) = (0x1234_5000, 0xffff_8000_0000_0000);
        let linear = Root::Linear { cr3: Mfn::new(0x12345), vaddr: 0xffff_8000_0000_0000 };
        assert_eq!(p2m_of(&words), (Some(linear), 0x8000));
        (words[387], words[389]) = (u64::MAX, 0);
        assert_eq!(p2m_of(&words), (None, 0x8000));
    }
}
