//! The survey: what the target's memory is made of, for `stubctl map`.

use crate::link::{Link, LinkError};
use crate::target::TargetXen;
use alloc::vec;
use alloc::vec::Vec;
use control::{BLOB_CHUNK_BYTES, FromStub, RegionKind};
use migration::survey::{Backing, Giants, backing};
use migration::xen::{Access, WINDOW_FRAMES, Xen};
use xen_abi::types::{Gfn, Mfn, Order};

/// Gfns of a region.
const REGION_FRAMES: usize = 1 << 9;

/// Maps all gfns below `end` for reading, a window at a time, and sends what is behind them.
///
/// # Errors
/// stubctl is gone.
pub(crate) fn run(end: Gfn, xen: &mut TargetXen, link: &mut Link) -> Result<(), LinkError> {
    let mut report = Sheet { kinds: Vec::with_capacity(BLOB_CHUNK_BYTES), first_region: 0 };
    let mut giants = Giants::default();
    let mut nr_frames = 0;
    let mut errors = vec![0; WINDOW_FRAMES];
    let nr_regions = end.raw().div_ceil(Order::PAGE_2M.nr_frames());
    for first in (0..nr_regions * Order::PAGE_2M.nr_frames()).step_by(WINDOW_FRAMES) {
        let gfns: Vec<Gfn> = (first..).take(WINDOW_FRAMES).map(Gfn::new).collect();
        xen.map(Access::Read, &gfns, &mut errors);
        for slot in (0..WINDOW_FRAMES).step_by(REGION_FRAMES) {
            let frames = (slot..slot + REGION_FRAMES).map(|slot| xen.mfn(slot));
            nr_frames += frames.clone().flatten().count() as u64;
            let backing = backing(frames);
            giants.add(backing);
            report.add(backing, link)?;
        }
    }
    xen.unmap();
    report.send(link)?;
    link.send(&FromStub::SurveyDone { nr_contiguous_1g: giants.nr_contiguous(), nr_frames })
}

/// Reads the machine frame behind a gfn from the window's own page table.
pub(crate) fn locate(gfn: Gfn, xen: &mut TargetXen) -> Option<Mfn> {
    xen.map(Access::Read, &[gfn], &mut [0]);
    let mfn = xen.mfn(0);
    xen.unmap();
    mfn
}

/// Region kinds on their way to stubctl.
struct Sheet {
    kinds: Vec<u8>,
    first_region: u64,
}

impl Sheet {
    fn add(&mut self, backing: Backing, link: &mut Link) -> Result<(), LinkError> {
        let kind = match backing {
            Backing::Hole => RegionKind::Hole,
            Backing::Superpage(_) => RegionKind::Superpage,
            Backing::Small => RegionKind::Small,
            Backing::Partial => RegionKind::Partial,
        };
        self.kinds.push(kind as u8);
        if self.kinds.len() == BLOB_CHUNK_BYTES { self.send(link) } else { Ok(()) }
    }

    fn send(&mut self, link: &mut Link) -> Result<(), LinkError> {
        link.send(&FromStub::Survey { first_region: self.first_region, kinds: &self.kinds })?;
        self.first_region += self.kinds.len() as u64;
        self.kinds.clear();
        Ok(())
    }
}
