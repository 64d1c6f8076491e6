//! Xen's error numbers (`xen/include/public/errno.h`), which are Linux's.

use core::fmt;

/// A positive errno, as a hypercall returns it negated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Errno(i32);

impl Errno {
    /// Not permitted: the domain lies outside the caller's rights.
    pub const EPERM: Self = Self(1);
    /// No such frame, node or domain.
    pub const ENOENT: Self = Self(2);
    /// No such domain.
    pub const ESRCH: Self = Self(3);
    /// Too many or too large.
    pub const E2BIG: Self = Self(7);
    /// Try again.
    pub const EAGAIN: Self = Self(11);
    /// No memory.
    pub const ENOMEM: Self = Self(12);
    /// Access denied: the interface version does not match (`do_domctl`).
    pub const EACCES: Self = Self(13);
    /// A bad address in an argument.
    pub const EFAULT: Self = Self(14);
    /// In use.
    pub const EBUSY: Self = Self(16);
    /// There already.
    pub const EEXIST: Self = Self(17);
    /// An argument is wrong; of a map also: no frame behind this gfn.
    pub const EINVAL: Self = Self(22);
    /// The far side is gone.
    pub const EPIPE: Self = Self(32);
    /// No such hypercall.
    pub const ENOSYS: Self = Self(38);
    /// Given up on request.
    pub const ECANCELED: Self = Self(125);

    /// Takes a positive error number.
    pub const fn new(raw: i32) -> Self {
        Self(raw)
    }

    /// Gives the positive error number back.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// Splits what a hypercall left in `rax` into a value and an error.
    ///
    /// # Errors
    /// The hypercall's.
    pub fn check(rax: i64) -> Result<u64, Self> {
        match u64::try_from(rax) {
            Ok(value) => Ok(value),
            Err(_) => Err(Self(i32::try_from(rax.unsigned_abs()).unwrap_or(i32::MAX))),
        }
    }

    /// Takes the C name of an error, as xenstored spells them.
    pub fn from_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(raw, _)| Self(*raw))
    }

    /// Returns the C name, of the errors that Xen, xenstored or dom0 answer with.
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|(raw, _)| *raw == self.0).map(|(_, name)| *name)
    }
}

pub(crate) const NAMES: [(i32, &str); 24] = [
    (1, "EPERM"),
    (2, "ENOENT"),
    (3, "ESRCH"),
    (5, "EIO"),
    (7, "E2BIG"),
    (11, "EAGAIN"),
    (12, "ENOMEM"),
    (13, "EACCES"),
    (14, "EFAULT"),
    (16, "EBUSY"),
    (17, "EEXIST"),
    (21, "EISDIR"),
    (22, "EINVAL"),
    (28, "ENOSPC"),
    (30, "EROFS"),
    (32, "EPIPE"),
    (38, "ENOSYS"),
    (39, "ENOTEMPTY"),
    (61, "ENODATA"),
    (95, "EOPNOTSUPP"),
    (104, "ECONNRESET"),
    (106, "EISCONN"),
    (110, "ETIMEDOUT"),
    (125, "ECANCELED"),
];

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_result_is_its_errno() {
        assert_eq!(Errno::check(-22), Err(Errno::EINVAL));
        assert_eq!(Errno::check(512), Ok(512));
        assert_eq!(Errno::check(i64::MIN), Err(Errno::new(i32::MAX)));
    }

    #[test]
    fn a_name_and_its_number_lead_to_each_other() {
        assert_eq!(Errno::from_name("EACCES"), Some(Errno::EACCES));
        assert_eq!(Errno::EACCES.name(), Some("EACCES"));
        assert_eq!(Errno::from_name("EWHATEVER"), None);
        assert_eq!(std::format!("{}, {}", Errno::ENOENT, Errno::new(77)), "ENOENT, errno 77");
    }
}
