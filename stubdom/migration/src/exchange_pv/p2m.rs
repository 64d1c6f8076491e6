//! Following a PV guest to its p2m (`arch_shared_info`, `xen/include/public/arch-x86/xen.h`).
//!
//! Every number here is the guest's. Only frames that it owns can be read or written through [`PvGuest`], so a broken p2m
//! leads to a refusal and nowhere else.

use super::{Error, PvGuest, WORDS, Words, mapped};
use crate::xen::Errno;
use alloc::boxed::Box;
use alloc::vec::Vec;
use xen_abi::pte::MAX_FRAME;
use xen_abi::types::{Mfn, Pfn};

/// Where a guest says that its p2m is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// One list in its virtual memory (`p2m_cr3`, `p2m_vaddr`).
    Linear {
        /// The page table that maps it.
        cr3: Mfn,
        /// Its virtual address.
        vaddr: u64,
    },
    /// A tree of three levels (`pfn_to_mfn_frame_list_list`).
    Tree(Mfn),
}

/// The frames of a p2m.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Frames {
    /// Those that hold the entries, in order; each has 512.
    pub(super) leaves: Vec<Mfn>,
    /// Those that lead there.
    pub(super) nodes: Vec<Mfn>,
}

/// Finds the frames of a p2m of `max_pfn` entries.
pub(super) fn find<X: PvGuest>(root: Root, max_pfn: u64, xen: &mut X) -> Result<Frames, Error> {
    let mut reader = Reader::default();
    let mut frames = Frames::default();
    for first_pfn in (0..max_pfn).step_by(WORDS) {
        let leaf = match root {
            Root::Linear { cr3, vaddr } => reader.walk(cr3, vaddr.wrapping_add(first_pfn * 8), xen),
            Root::Tree(top) => reader.descend(top, first_pfn, xen),
        };
        frames.leaves.push(leaf.ok_or(Error::NoP2m { pfn: Pfn::new(first_pfn) })?);
    }
    // What `shared_info` or the tree names by its number. The tables below `cr3` are found from there and may move.
    frames.nodes.push(match root {
        Root::Linear { cr3, .. } => cr3,
        Root::Tree(top) => top,
    });
    frames.nodes.extend(reader.visited);
    Ok(frames)
}

/// Keeps the frame of each level that was read last: neighbours share all but the leaf.
#[derive(Debug, Default)]
struct Reader {
    kept: [Option<(Mfn, Box<Words>)>; 4],
    visited: Vec<Mfn>,
}

impl Reader {
    /// The frame that `vaddr` leads to.
    fn walk<X: PvGuest>(&mut self, cr3: Mfn, vaddr: u64, xen: &mut X) -> Option<Mfn> {
        (0..4).rev().try_fold(cr3, |table, level| {
            let entry = self.word(level, table, vaddr >> (12 + 9 * level), xen).ok()?;
            mapped(entry)
        })
    }

    /// The frame at the end of the tree.
    fn descend<X: PvGuest>(&mut self, top: Mfn, first_pfn: u64, xen: &mut X) -> Option<Mfn> {
        let leaf = first_pfn / WORDS as u64;
        let mid = frame(self.word(1, top, leaf / WORDS as u64, xen).ok()?)?;
        if self.visited.last() != Some(&mid) {
            self.visited.push(mid);
        }
        frame(self.word(0, mid, leaf, xen).ok()?)
    }

    /// A word of a frame; `index` counts modulo 512.
    fn word<X: PvGuest>(&mut self, level: usize, mfn: Mfn, index: u64, xen: &mut X) -> Result<u64, Errno> {
        let index = usize::try_from(index % WORDS as u64).unwrap_or_default();
        match &self.kept[level] {
            Some((kept, words)) if *kept == mfn => Ok(words[index]),
            _ => {
                let mut words = Box::new([0; WORDS]);
                xen.read(&[mfn], core::slice::from_mut(&mut *words))?;
                Ok(self.kept[level].insert((mfn, words)).1[index])
            }
        }
    }
}

/// The frame that an entry of a p2m, or of the tree, names. The two highest bits mark a grant mapped there and memory of a
/// device; all ones is a hole.
pub(super) fn frame(entry: u64) -> Option<Mfn> {
    (entry != 0 && entry <= MAX_FRAME).then_some(Mfn::new(entry))
}
