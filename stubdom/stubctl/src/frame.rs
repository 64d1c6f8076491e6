//! What Xen says of a machine frame, in words.
//!
//! **Takes** the words of `XEN_SYSCTL_page_offline_op`. **Gives** types. **Never** drops a bit that decides something.

use std::fmt;
use xen_abi::abi::{
    PG_OFFLINE_NOT_CONV_RAM, PG_OFFLINE_OFFLINED, PG_OFFLINE_OWNED, PG_OFFLINE_OWNER_SHIFT,
    PG_OFFLINE_STATUS_BROKEN, PG_OFFLINE_STATUS_OFFLINE_PENDING, PG_OFFLINE_STATUS_OFFLINED,
    PG_OFFLINE_XENPAGE,
};
use xen_abi::types::Domid;

/// What a query says of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct State(u32);

impl State {
    pub(crate) const fn new(word: u32) -> Self {
        Self(word)
    }

    /// Out of use for good.
    pub(crate) fn is_offlined(self) -> bool {
        self.0 & PG_OFFLINE_STATUS_OFFLINED != 0
    }

    /// Marked, and still in use.
    pub(crate) fn is_pending(self) -> bool {
        self.0 & PG_OFFLINE_STATUS_OFFLINE_PENDING != 0
    }

    /// Known to have lost its contents.
    pub(crate) fn is_broken(self) -> bool {
        self.0 & PG_OFFLINE_STATUS_BROKEN != 0
    }

    /// Whether there is nothing to tell.
    pub(crate) fn is_ordinary(self) -> bool {
        !self.is_offlined() && !self.is_pending() && !self.is_broken()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.is_broken(), self.is_offlined(), self.is_pending()) {
            (false, true, _) => "offline",
            (false, false, true) => "pending",
            (true, true, _) => "offline, broken",
            (true, false, true) => "pending, broken",
            (true, false, false) => "broken",
            (false, false, false) => "online",
        })
    }
}

/// Whose a frame is, as marking it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Nobody's: it is offline now.
    Free,
    /// A domain's: it stays in use until the domain lets go of it.
    Domain(Domid),
    /// Xen's own.
    Xen,
    /// It is no ordinary memory.
    NotRam,
    /// Xen found no owner: somebody is just taking or freeing it.
    Nobody,
}

impl Owner {
    /// Reads the word that marking a frame offline returned.
    pub(crate) fn of_mark(word: u32) -> Self {
        // The domid is the upper half.
        let domid = Domid::new((word >> PG_OFFLINE_OWNER_SHIFT) as u16);
        match word {
            word if word & PG_OFFLINE_OWNED != 0 && domid.is_reserved() => Self::Xen,
            word if word & PG_OFFLINE_NOT_CONV_RAM != 0 => Self::NotRam,
            word if word & PG_OFFLINE_XENPAGE != 0 => Self::Xen,
            word if word & PG_OFFLINE_OWNED != 0 => Self::Domain(domid),
            word if word & PG_OFFLINE_OFFLINED != 0 => Self::Free,
            _ => Self::Nobody,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_stands_in_the_upper_half() {
        assert_eq!(Owner::of_mark(0x0007_1004), Owner::Domain(Domid::new(7)));
        assert_eq!(Owner::of_mark(0x0000_1004), Owner::Domain(Domid::DOM0));
        assert_eq!(Owner::of_mark(0x7ff2_0104), Owner::Xen);
        assert_eq!(Owner::of_mark(0x7ff1_1004), Owner::Xen);
        assert_eq!(Owner::of_mark(0x0000_0002), Owner::Free);
        assert_eq!(Owner::of_mark(0x0000_0808), Owner::NotRam);
        assert_eq!(Owner::of_mark(0x7ff4_0408), Owner::Nobody);
    }

    #[test]
    fn a_state_has_a_word() {
        assert_eq!(State::new(0).to_string(), "online");
        assert_eq!(State::new(1 << 1).to_string(), "offline");
        assert_eq!(State::new(1 << 3).to_string(), "pending");
        assert_eq!(State::new(1 << 3 | 1 << 4).to_string(), "pending, broken");
        assert!(State::new(0).is_ordinary() && !State::new(1 << 4).is_ordinary());
    }
}
