//! The names of records (`docs/specs/libxc-migration-stream`, `xg_sr_stream_format.h`).

use core::fmt;

/// A record's type, as it stands in its header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecordType(u32);

macro_rules! record_types {
    ($($(#[$doc:meta])* $name:ident = $raw:literal,)*) => {
        impl RecordType {
            $($(#[$doc])* pub const $name: Self = Self($raw);)*

            /// Returns the specification's name; `None` for a number that it does not know.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($raw => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

record_types! {
    /// The stream ends with this record.
    END = 0x00,
    /// Page numbers, then the contents of those that have any.
    PAGE_DATA = 0x01,
    /// PV only: guest width and page table levels.
    X86_PV_INFO = 0x02,
    /// PV only: the frames of its pfn to mfn table.
    X86_PV_P2M_FRAMES = 0x03,
    /// PV only: registers.
    X86_PV_VCPU_BASIC = 0x04,
    /// PV only: extended registers.
    X86_PV_VCPU_EXTENDED = 0x05,
    /// PV only: XSAVE state.
    X86_PV_VCPU_XSAVE = 0x06,
    /// PV only: the shared info page.
    SHARED_INFO = 0x07,
    /// Arguments of `XEN_DOMCTL_settscinfo`.
    X86_TSC_INFO = 0x08,
    /// The blob of `XEN_DOMCTL_sethvmcontext`.
    HVM_CONTEXT = 0x09,
    /// Pairs for `HVMOP_set_param`.
    HVM_PARAMS = 0x0a,
    /// Deprecated: a toolstack's own state.
    TOOLSTACK = 0x0b,
    /// PV only: model-specific registers.
    X86_PV_VCPU_MSRS = 0x0c,
    /// From here on pages are compared, not written.
    VERIFY = 0x0d,
    /// Remus and COLO: a consistent state is complete.
    CHECKPOINT = 0x0e,
    /// COLO's way back.
    CHECKPOINT_DIRTY_PFN_LIST = 0x0f,
    /// The static data are complete.
    STATIC_DATA_END = 0x10,
    /// `xen_cpuid_leaf_t[]`.
    X86_CPUID_POLICY = 0x11,
    /// `xen_msr_entry_t[]`.
    X86_MSR_POLICY = 0x12,
}

impl RecordType {
    /// Takes a raw number.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// Gives the raw number back.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Tells whether a receiver that does not know the record may pass over it (`REC_TYPE_OPTIONAL`).
    pub const fn is_optional(self) -> bool {
        self.0 & (1 << 31) != 0
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "of type {:#010x}", self.0),
        }
    }
}

impl fmt::Debug for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
