//! What only dom0 may do to the target, done on the stub's request.
//!
//! **Takes** blobs in pieces and requests. **Gives** 0 or `-errno`, and remembers why. **Never** names another domain
//! than its own target; never holds more than [`MAX_BLOB_BYTES`] of a kind, and only what truly came.

use crate::ffi::xenctrl::Xenctrl;
use crate::libxl::Libxl;
use control::{Apply, BlobKind};
use std::fmt;
use xen_abi::abi::{XEN_CPUID_LEAF_BYTES, XEN_MSR_ENTRY_BYTES};
use xen_abi::types::Domid;

/// Longest blob; the HVM context of a guest with 128 vCPUs is about 1 MiB.
const MAX_BLOB_BYTES: u32 = 4 << 20;

/// `XGR_SDD_MISSING_CPUID` and `XGR_SDD_MISSING_MSR` (`xenguest.h`).
const MISSING_CPUID: u32 = 1 << 0;
const MISSING_MSR: u32 = 1 << 1;

/// A stub that does not keep to the protocol of blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BlobError {
    /// Longer than [`MAX_BLOB_BYTES`].
    TooLong {
        /// Which blob.
        kind: BlobKind,
        /// The length that the stub announced.
        total: u32,
    },
    /// A piece that does not follow the one before.
    OutOfOrder {
        /// Which blob.
        kind: BlobKind,
        /// Where the piece should start.
        expected: usize,
        /// Where it starts.
        got: u32,
    },
}

impl fmt::Display for BlobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { kind, total } => {
                write!(f, "the stub announced {total} bytes of {kind:?}, expected at most {MAX_BLOB_BYTES}")
            }
            Self::OutOfOrder { kind, expected, got } => {
                write!(f, "the stub sent {kind:?} from byte {got}, expected it to go on at {expected}")
            }
        }
    }
}

impl std::error::Error for BlobError {}

/// A blob as far as it came.
#[derive(Debug, Default)]
struct Blob {
    bytes: Vec<u8>,
    total: u32,
}

impl Blob {
    fn add(&mut self, kind: BlobKind, total: u32, offset: u32, piece: &[u8]) -> Result<(), BlobError> {
        if total > MAX_BLOB_BYTES {
            return Err(BlobError::TooLong { kind, total });
        }
        if offset == 0 {
            *self = Self { bytes: Vec::new(), total };
        }
        let expected = self.bytes.len();
        let fits = expected + piece.len() <= self.total as usize;
        if offset as usize != expected || total != self.total || !fits {
            return Err(BlobError::OutOfOrder { kind, expected, got: offset });
        }
        self.bytes.extend_from_slice(piece);
        Ok(())
    }

    fn is_missing(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whole entries of `entry_bytes` each, or nothing at all.
    fn is_whole(&self, entry_bytes: usize) -> bool {
        self.bytes.len() == self.total as usize && self.bytes.len().is_multiple_of(entry_bytes)
    }
}

/// The broker of one target.
pub(crate) struct Broker<'a> {
    xen: &'a Xenctrl,
    target: Domid,
    libxl: Libxl,
    cpuid: Blob,
    msrs: Blob,
    context: Blob,
    /// Why the last request failed.
    refusal: Option<String>,
}

/// A request that was not done.
struct Refusal {
    /// Positive.
    errno: i32,
    text: String,
}

impl Refusal {
    fn new(errno: i32, text: impl fmt::Display) -> Self {
        Self { errno, text: text.to_string() }
    }
}

impl<'a> Broker<'a> {
    /// Serves `target` and no other domain.
    pub(crate) fn new(xen: &'a Xenctrl, target: Domid, libxl: Libxl) -> Self {
        let [cpuid, msrs, context] = Default::default();
        Self { xen, target, libxl, cpuid, msrs, context, refusal: None }
    }

    /// Takes a piece of a blob.
    ///
    /// # Errors
    /// The stub does not keep to the protocol.
    pub(crate) fn blob(
        &mut self,
        kind: BlobKind,
        total: u32,
        offset: u32,
        piece: &[u8],
    ) -> Result<(), BlobError> {
        let blob = match kind {
            BlobKind::CpuidPolicy => &mut self.cpuid,
            BlobKind::MsrPolicy => &mut self.msrs,
            BlobKind::HvmContext => &mut self.context,
        };
        blob.add(kind, total, offset, piece)
    }

    /// Does what the stub asks for; gives 0 or `-errno`.
    pub(crate) fn apply(&mut self, request: Apply) -> i32 {
        let result = match request {
            Apply::StaticData { missing_cpuid, missing_msr } => self.static_data(missing_cpuid, missing_msr),
            Apply::TscInfo(info) => {
                self.xen.set_tsc_info(self.target, info).map_err(|error| Refusal::new(error.errno, error))
            }
            Apply::HvmContext => self.hvm_context(),
        };
        match result {
            Ok(()) => 0,
            Err(Refusal { errno, text }) => {
                self.refusal = Some(text);
                -errno
            }
        }
    }

    /// Why the last request that failed did.
    pub(crate) fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// The policies, then libxl's part; the same order and the same calls as libxenguest's
    /// `x86_static_data_complete` and `handle_static_data_end`.
    fn static_data(&mut self, missing_cpuid: bool, missing_msr: bool) -> Result<(), Refusal> {
        if (missing_cpuid, missing_msr) != (self.cpuid.is_missing(), self.msrs.is_missing()) {
            return Err(Refusal::new(libc::EPROTO, "the stub announced CPU policies that it did not send"));
        }
        if !self.cpuid.is_whole(XEN_CPUID_LEAF_BYTES) || !self.msrs.is_whole(XEN_MSR_ENTRY_BYTES) {
            return Err(Refusal::new(libc::EINVAL, self.odd_policy()));
        }
        if !missing_cpuid || !missing_msr {
            self.xen
                .set_cpu_policy(self.target, &self.cpuid.bytes, &self.msrs.bytes)
                .map_err(|error| Refusal::new(error.errno, error))?;
        }
        let flag = |missing, flag| if missing { flag } else { 0 };
        let missing = flag(missing_cpuid, MISSING_CPUID) | flag(missing_msr, MISSING_MSR);
        match self.libxl.static_data_done(missing) {
            Ok(0) => Ok(()),
            Ok(rc) => Err(Refusal::new(libc::EINVAL, format_args!("libxl's static_data_done failed: {rc}"))),
            Err(error) => Err(Refusal::new(libc::EIO, format_args!("libxl does not answer: {error}"))),
        }
    }

    fn odd_policy(&self) -> String {
        format!(
            "CPUID policy of {} bytes and MSR policy of {}, expected whole entries of {XEN_CPUID_LEAF_BYTES} and {XEN_MSR_ENTRY_BYTES}",
            self.cpuid.bytes.len(),
            self.msrs.bytes.len()
        )
    }

    fn hvm_context(&mut self) -> Result<(), Refusal> {
        if self.context.is_missing() || !self.context.is_whole(1) {
            return Err(Refusal::new(libc::EPROTO, "the stub asked for an HVM context that it did not send"));
        }
        let done = self.xen.hvm_setcontext(self.target, &self.context.bytes);
        done.map_err(|error| Refusal::new(error.errno, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: BlobKind = BlobKind::HvmContext;

    #[test]
    fn pieces_in_order_make_a_blob() {
        let mut blob = Blob::default();
        blob.add(KIND, 5, 0, b"abc").unwrap();
        assert!(!blob.is_whole(1));
        blob.add(KIND, 5, 3, b"de").unwrap();
        assert_eq!(blob.bytes, b"abcde");
        assert!(blob.is_whole(1) && !blob.is_whole(2));
    }

    #[test]
    fn a_second_blob_replaces_the_first() {
        let mut blob = Blob::default();
        blob.add(KIND, 3, 0, b"abc").unwrap();
        blob.add(KIND, 1, 0, b"x").unwrap();
        assert_eq!(blob.bytes, b"x");
        assert!(blob.is_whole(1));
    }

    #[test]
    fn a_gap_an_overlap_and_an_excess_are_refused() {
        let mut blob = Blob::default();
        blob.add(KIND, 8, 0, b"abc").unwrap();
        let error = |expected, got| Err(BlobError::OutOfOrder { kind: KIND, expected, got });
        assert_eq!(blob.add(KIND, 8, 4, b"d"), error(3, 4));
        assert_eq!(blob.add(KIND, 8, 2, b"d"), error(3, 2));
        assert_eq!(blob.add(KIND, 9, 3, b"d"), error(3, 3));
        assert_eq!(blob.add(KIND, 8, 3, b"defghi"), error(3, 3));
    }

    #[test]
    fn an_announced_length_beyond_the_bound_is_refused() {
        let total = MAX_BLOB_BYTES + 1;
        assert_eq!(Blob::default().add(KIND, total, 0, b""), Err(BlobError::TooLong { kind: KIND, total }));
    }
}
