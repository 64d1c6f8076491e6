//! Frames, domains, ports and orders: Xen's words (`xen/include/xen/mm.h`) as distinct types.
//!
//! None of them has arithmetic operators or `From<u64>`: a number becomes a frame only through `new`, and every
//! step over the end is visible at the call.

use crate::abi::{DOMID_FIRST_RESERVED, DOMID_SELF};
use core::fmt;

/// Size of a page in bytes; x86 Xen knows no other granule (`XEN_PAGE_SIZE`).
pub const PAGE_SIZE: usize = 4096;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

macro_rules! frame {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Takes a raw frame number.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// Gives the raw frame number back.
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// Returns the frame `nr_frames` higher, or `None` past the end of the number space.
            pub const fn checked_add(self, nr_frames: u64) -> Option<Self> {
                match self.0.checked_add(nr_frames) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// Tells whether an extent of `order` may start here.
            pub const fn is_aligned(self, order: Order) -> bool {
                self.0 & (order.nr_frames() - 1) == 0
            }

            /// Returns how many frames this one is from the start of the extent of `order` that holds it.
            #[allow(clippy::cast_possible_truncation, reason = "below the frames of an extent, 2^18 at most")]
            pub const fn offset_in(self, order: Order) -> usize {
                (self.0 & (order.nr_frames() - 1)) as usize
            }

            /// Returns the first frame of the extent of `order` that holds this frame.
            pub const fn align_down(self, order: Order) -> Self {
                Self(self.0 & !(order.nr_frames() - 1))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, ":{:#x}"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        }
    };
}

frame! {
    /// Guest frame number: a page of a guest's own address space.
    Gfn, "gfn"
}
frame! {
    /// Machine frame number: a page of the host's memory.
    Mfn, "mfn"
}
frame! {
    /// Pseudo-physical frame number: a PV guest's own numbering; in a migration stream of an HVM guest it equals
    /// the gfn.
    Pfn, "pfn"
}

/// A domain identifier (`domid_t`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(transparent)]
pub struct Domid(u16);

impl Domid {
    /// Domain 0.
    pub const DOM0: Self = Self(0);
    /// The caller itself (`DOMID_SELF`).
    pub const SELF: Self = Self(DOMID_SELF);

    /// Takes a raw domain identifier.
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// Gives the raw domain identifier back.
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// Tells whether this identifier names no domain of the toolstack's (`DOMID_FIRST_RESERVED` and above): Xen itself,
    /// the owner of I/O memory, the caller.
    pub const fn is_reserved(self) -> bool {
        self.0 >= DOMID_FIRST_RESERVED
    }
}

impl fmt::Debug for Domid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "d{}", self.0)
    }
}

impl fmt::Display for Domid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// An event channel port of the calling domain (`evtchn_port_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(transparent)]
pub struct Port(u32);

impl Port {
    /// Takes a raw port number.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// Gives the raw port number back.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// A grant reference of the granting domain (`grant_ref_t`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Gref(u32);

impl Gref {
    /// Takes a raw grant reference.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// Gives the raw grant reference back.
    pub const fn raw(self) -> u32 {
        self.0
    }
}

/// log2 of the number of frames of an extent (`extent_order`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[repr(transparent)]
pub struct Order(u8);

impl Order {
    /// One 4 KiB page.
    pub const PAGE_4K: Self = Self(0);
    /// One 2 MiB superpage.
    pub const PAGE_2M: Self = Self(9);
    /// One 1 GiB superpage.
    pub const PAGE_1G: Self = Self(18);

    /// Gives the raw order back.
    pub const fn raw(self) -> u32 {
        self.0 as u32
    }

    /// Returns how many 4 KiB frames an extent of this order has.
    pub const fn nr_frames(self) -> u64 {
        1 << self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_aligns_down_to_the_start_of_its_superpage() {
        let gfn = Gfn::new(0x1a2b3);
        assert_eq!(gfn.align_down(Order::PAGE_2M), Gfn::new(0x1a200));
        assert!(!gfn.is_aligned(Order::PAGE_2M));
        assert!(Gfn::new(0x1a200).is_aligned(Order::PAGE_2M));
        assert!(!Gfn::new(0x1a200).is_aligned(Order::PAGE_1G));
        assert_eq!(
            [Order::PAGE_4K, Order::PAGE_2M, Order::PAGE_1G].map(|order| gfn.offset_in(order)),
            [0, 0xb3, 0x1a2b3]
        );
    }

    #[test]
    fn adding_past_the_last_frame_is_none() {
        assert_eq!(Mfn::new(u64::MAX).checked_add(1), None);
        assert_eq!(Mfn::new(7).checked_add(2), Some(Mfn::new(9)));
    }
}
