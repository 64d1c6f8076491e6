//! What was asked of the fake, call by call.

use alloc::vec::Vec;
use core::fmt;
use xen_abi::types::Order;

/// One call and what it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `XENMEM_populate_physmap`.
    Populate {
        /// Order of the extents.
        order: Order,
        /// How many were asked for.
        nr_asked: usize,
        /// How many were done.
        nr_done: usize,
    },
    /// `XENMEM_decrease_reservation`.
    Decrease {
        /// Order of the extents.
        order: Order,
        /// How many were asked for.
        nr_asked: usize,
        /// How many were done.
        nr_done: usize,
    },
    /// `mmu_update` that maps.
    Map {
        /// How many frames were asked for.
        nr_asked: usize,
    },
    /// `mmu_update` that empties the window.
    Unmap,
    /// One slot was emptied.
    UnmapAt {
        /// Which.
        slot: usize,
    },
    /// Any other.
    Other(&'static str),
}

impl Call {
    /// Tells whether the call did less than it was asked for.
    pub fn is_short(&self) -> bool {
        match *self {
            Self::Populate { nr_asked, nr_done, .. } | Self::Decrease { nr_asked, nr_done, .. } => {
                nr_done < nr_asked
            }
            Self::Map { .. } | Self::Unmap | Self::UnmapAt { .. } | Self::Other(_) => false,
        }
    }

    fn kind(&self) -> &'static str {
        match *self {
            Self::Populate { order: Order::PAGE_1G, .. } => "populate 1G",
            Self::Populate { order: Order::PAGE_2M, .. } => "populate 2M",
            Self::Populate { .. } => "populate 4K",
            Self::Decrease { order: Order::PAGE_2M, .. } => "decrease 2M",
            Self::Decrease { .. } => "decrease 4K",
            Self::Map { .. } => "map",
            Self::Unmap => "unmap",
            Self::UnmapAt { .. } => "unmap_at",
            Self::Other(name) => name,
        }
    }
}

/// The calls in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger(pub Vec<Call>);

impl Ledger {
    /// Counts the calls of a kind: "populate 2M", "map", "decrease 4K", a name of [`Call::Other`].
    pub fn count(&self, kind: &str) -> usize {
        self.0.iter().filter(|call| call.kind() == kind).count()
    }

    /// Counts the calls that did less than they were asked for.
    pub fn nr_short(&self) -> usize {
        self.0.iter().filter(|call| call.is_short()).count()
    }
}

/// Prints one line a call.
impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for call in &self.0 {
            match *call {
                Call::Populate { nr_asked, nr_done, .. } | Call::Decrease { nr_asked, nr_done, .. } => {
                    writeln!(f, "{} {nr_done}/{nr_asked}", call.kind())?;
                }
                Call::Map { nr_asked } => writeln!(f, "map {nr_asked}")?,
                Call::UnmapAt { slot } => writeln!(f, "{} slot {slot}", call.kind())?,
                Call::Unmap | Call::Other(_) => writeln!(f, "{}", call.kind())?,
            }
        }
        Ok(())
    }
}
