//! What the bytes of a stream say.

use super::RecordType;
use xen_abi::types::Gfn;

/// What the two headers say, once they are found sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Version of the format.
    pub version: Version,
    /// Xen version of the sender, major and minor; for the log only.
    pub xen: (u32, u32),
}

/// Version of the stream format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Until Xen 4.13; no record says that the static data are complete.
    V2,
    /// Since Xen 4.14.
    V3,
}

/// Consecutive gfns of a page list that come without contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Why there are no contents.
    pub kind: Unbacked,
    /// The first gfn.
    pub first: Gfn,
    /// How many gfns.
    pub nr_frames: u64,
}

/// Why a page of a list comes without contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unbacked {
    /// XTAB: the source has no page there.
    Hole,
    /// BROKEN: the source's page has failed; its contents are lost.
    Broken,
    /// XALLOC: the source has a page there whose contents do not matter.
    Alloc,
}

/// A piece of state that only dom0 may apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobKind {
    /// `xen_cpuid_leaf_t[]`, record X86_CPUID_POLICY.
    CpuidPolicy,
    /// `xen_msr_entry_t[]`, record X86_MSR_POLICY.
    MsrPolicy,
    /// The body of record HVM_CONTEXT.
    HvmContext,
}

/// Bytes of a blob, as they came: pieces of one blob come in order and without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Which blob.
    pub kind: BlobKind,
    /// Length of the whole blob in bytes: at most [`super::MAX_POLICY_BYTES`] or [`super::MAX_CONTEXT_BYTES`].
    pub total: u32,
    /// Where this piece starts, in bytes. 0 starts the blob anew: a later one of the same kind replaces it.
    pub offset: u32,
    /// The piece; of any length, not empty.
    pub bytes: &'a [u8],
}

/// The body of record X86_TSC_INFO, arguments of `XEN_DOMCTL_settscinfo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscInfo {
    /// `tsc_mode`.
    pub mode: u32,
    /// Guest TSC frequency in kHz.
    pub khz: u32,
    /// Elapsed time in nanoseconds.
    pub nsec: u64,
    /// Incarnation.
    pub incarnation: u32,
}

/// One `HVM_PARAM_*` and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Param {
    /// Less than [`super::MAX_PARAMS`].
    pub index: u32,
    /// The value, as the source had it.
    pub value: u64,
}

/// What the bytes say.
///
/// Every gfn in an item is what the sender claims: nothing says that it is within the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// Both headers.
    Headers(Headers),
    /// A record begins; what it holds follows as the items below. After END nothing follows.
    Record(RecordType),
    /// Pages without contents. All of a record's runs come before its [`Item::Pages`].
    Run(Run),
    /// Pages with contents, at most [`super::BATCH_PAGES`] and not none; exactly their contents follow as
    /// [`Item::Contents`].
    Pages(&'a [Gfn]),
    /// The next bytes of the contents of the last [`Item::Pages`].
    Contents(&'a [u8]),
    /// The next bytes of a blob.
    Piece(Piece<'a>),
    /// The whole of X86_TSC_INFO.
    TscInfo(TscInfo),
    /// The next parameter of HVM_PARAMS.
    Param(Param),
}
