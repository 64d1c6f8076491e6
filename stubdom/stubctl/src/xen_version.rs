//! Which Xen this is, where that decides what may be done.
//!
//! **Takes** Xen's version. **Gives** answers. **Never** guesses from behaviour: the hazard below shows only in a crash.

use std::fmt;

/// A version of Xen, as `XENVER_version` and `XENVER_extraversion` tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct XenVersion {
    pub(crate) major: u16,
    pub(crate) minor: u16,
    pub(crate) micro: u16,
}

impl XenVersion {
    /// Reads the words of the two calls; the second is ".7" in a release, "-rc" or "-unstable" before one.
    pub(crate) fn new(version: u32, extra: &str) -> Self {
        let digits = extra.strip_prefix('.').unwrap_or_default();
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let micro = digits[..end].parse().unwrap_or(0);
        // The two halves of a word.
        Self { major: (version >> 16) as u16, minor: (version & 0xffff) as u16, micro }
    }

    /// Tells whether Xen can take a marked frame out of a larger piece of free memory and keep its allocator whole.
    ///
    /// Before 4.20.4 and 4.21.2 `reserve_offlined_page` (`common/page_alloc.c`) cuts the rest of the piece at places that
    /// are not aligned to the pieces' sizes. Pages of such a piece may be given away twice later, or Xen crashes over
    /// them. It happens when a frame is marked that is free, and when a marked frame is freed beside free memory; not when
    /// the frame of the same pair (`mfn ^ 1`) is in use at that moment, since nothing is merged then. Mended by "verify
    /// buddy alignment in `reserve_offlined_page()`", June 2026.
    pub(crate) fn cuts_free_memory_soundly(self) -> bool {
        let Self { major, minor, micro } = self;
        match (major, minor) {
            (4, 20) => micro >= 4,
            (4, 21) => micro >= 2,
            other => other >= (4, 22),
        }
    }

    /// Tells whether Xen looks into the banks of machine checks, and so hands corrected errors to dom0.
    ///
    /// From 4.13 on `mca_cap_init` (`arch/x86/cpu/mcheck/mce.c`) filled the set of banks that it was about to free, so all others
    /// see an empty one: the poller and the handler of the exception. Intel's CMCI has sets of its own. Mended by "x86/mcheck: fix
    /// `mca_allbanks` updating", September 2025.
    pub(crate) fn collects_machine_checks(self) -> bool {
        let Self { major, minor, micro } = self;
        match (major, minor) {
            (4, 13..=18) => false,
            (4, 19) => micro >= 4,
            (4, 20) => micro >= 2,
            _ => true,
        }
    }
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_micro_version_is_the_number_behind_the_point() {
        let read = |extra| XenVersion::new(4 << 16 | 17, extra).to_string();
        assert_eq!(read(".7"), "4.17.7");
        assert_eq!(read(".12-pre"), "4.17.12");
        assert_eq!(read("-unstable"), "4.17.0");
        assert_eq!(read(""), "4.17.0");
    }

    #[test]
    fn free_memory_is_cut_soundly_from_the_mended_releases_on() {
        let sound = |minor: u32, extra| XenVersion::new(4 << 16 | minor, extra).cuts_free_memory_soundly();
        for (minor, extra) in [(17, ".7"), (19, ".9"), (20, ".3"), (21, ".1"), (21, "-rc")] {
            assert!(!sound(minor, extra), "4.{minor}{extra}");
        }
        for (minor, extra) in [(20, ".4"), (21, ".2"), (22, ".0"), (23, "-unstable")] {
            assert!(sound(minor, extra), "4.{minor}{extra}");
        }
        assert!(XenVersion::new(5 << 16, ".0").cuts_free_memory_soundly());
    }

    #[test]
    fn machine_checks_are_collected_before_the_fault_and_from_the_mended_releases_on() {
        let collects = |minor: u32, extra| XenVersion::new(4 << 16 | minor, extra).collects_machine_checks();
        for (minor, extra) in [(13, ".0"), (17, ".7"), (18, ".6"), (19, ".3"), (20, ".1")] {
            assert!(!collects(minor, extra), "4.{minor}{extra}");
        }
        for (minor, extra) in [(12, ".4"), (19, ".4"), (20, ".2"), (21, "-rc"), (22, ".0")] {
            assert!(collects(minor, extra), "4.{minor}{extra}");
        }
    }
}
