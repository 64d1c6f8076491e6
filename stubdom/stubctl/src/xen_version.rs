//! Which Xen this is, where that decides what may be done.
//!
//! **Takes** Xen's version. **Gives** answers. **Never** guesses from behaviour: the hazard below shows only in a crash.

use std::fmt;

/// A version of Xen, as `XENVER_version` and `XENVER_extraversion` tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct XenVersion {
    pub(crate) major: u16,
    pub(crate) minor: u16,
    /// `None` before the first release of a line.
    pub(crate) micro: Option<u16>,
}

impl XenVersion {
    /// Reads the words of the two calls; the second is ".7" in a release, "-rc" or "-unstable" before the first of a line,
    /// ".7-pre" between two releases.
    ///
    /// Xen calls itself ".7-pre" from the day on which ".6" is out: mendings that ".7" has may still be missing. So such a
    /// Xen counts as the release before, and one that is before the first of its line has no `micro`.
    pub(crate) fn new(version: u32, extra: &str) -> Self {
        let digits = extra.strip_prefix('.').unwrap_or_default();
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        let (digits, rest) = digits.split_at(end);
        let is_release = !["-pre", "-rc"].iter().any(|before| rest.starts_with(before));
        let micro: Option<u16> = digits.parse().ok();
        let micro = if is_release { micro } else { micro.and_then(|micro| micro.checked_sub(1)) };
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
            (4, 20) => micro >= Some(4),
            (4, 21) => micro >= Some(2),
            (4, 22) => micro.is_some(),
            other => other > (4, 22),
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
            (4, 19) => micro >= Some(4),
            (4, 20) => micro >= Some(2),
            _ => true,
        }
    }
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.micro {
            Some(micro) => write!(f, "{}.{}.{micro}", self.major, self.minor),
            None => write!(f, "{}.{} before its release", self.major, self.minor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_micro_version_is_the_number_behind_the_point() {
        let read = |extra| XenVersion::new(4 << 16 | 17, extra).to_string();
        assert_eq!(read(".7"), "4.17.7");
        assert_eq!(read(".12-pre"), "4.17.11", "not all of 4.17.12 need be in it");
        assert_eq!(read(".4-rc1"), "4.17.3");
        assert_eq!(read("-unstable"), "4.17 before its release");
        assert_eq!(read(".0-rc"), "4.17 before its release");
        assert_eq!(read("-rc"), "4.17 before its release");
        assert_eq!(read(".7+deb12u1"), "4.17.7", "a distribution's mark");
    }

    #[test]
    fn free_memory_is_cut_soundly_from_the_mended_releases_on() {
        let sound = |minor: u32, extra| XenVersion::new(4 << 16 | minor, extra).cuts_free_memory_soundly();
        for (minor, extra) in [
            (17, ".7"),
            (19, ".9"),
            (20, ".3"),
            (20, ".4-pre"),
            (21, ".1"),
            (21, ".2-pre"),
            (21, "-rc"),
            (22, "-rc"),
            (22, "-unstable"),
        ] {
            assert!(!sound(minor, extra), "4.{minor}{extra}");
        }
        for (minor, extra) in
            [(20, ".4"), (20, ".5-pre"), (21, ".2"), (22, ".0"), (22, ".1-pre"), (23, "-unstable")]
        {
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
