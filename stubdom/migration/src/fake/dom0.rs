//! The other end of the broker.

use crate::xen::{BlobKind, Broker, Errno, Missing, Piece, TscInfo};
use alloc::vec::Vec;

/// A dom0 that keeps what it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeDom0 {
    /// The CPUID policy, as far as it has come.
    pub cpuid_policy: Vec<u8>,
    /// The MSR policy, as far as it has come.
    pub msr_policy: Vec<u8>,
    /// The HVM context, as far as it has come.
    pub hvm_context: Vec<u8>,
    /// What was missing when the static data were complete.
    pub static_data: Option<Missing>,
    /// TSC information.
    pub tsc_info: Option<TscInfo>,
    /// How often the HVM context was applied.
    pub nr_contexts: u32,
    /// Calls so far, pieces of blobs not counted.
    pub nr_calls: usize,
    /// The call, counted from 0, that fails.
    pub fail_call: Option<usize>,
    /// Whether pieces of blobs are refused.
    pub refuses_blobs: bool,
}

impl FakeDom0 {
    fn call(&mut self) -> Result<(), Errno> {
        let fails = self.fail_call == Some(self.nr_calls);
        self.nr_calls += 1;
        if fails { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

impl Broker for FakeDom0 {
    fn blob(&mut self, piece: Piece<'_>) -> Result<(), Errno> {
        let blob = match piece.kind {
            BlobKind::CpuidPolicy => &mut self.cpuid_policy,
            BlobKind::MsrPolicy => &mut self.msr_policy,
            BlobKind::HvmContext => &mut self.hvm_context,
        };
        if piece.offset == 0 {
            blob.clear();
        }
        assert_eq!(blob.len(), piece.offset as usize, "pieces come in order and without gaps");
        blob.extend_from_slice(piece.bytes);
        assert!(blob.len() <= piece.total as usize, "a blob is not longer than announced");
        if self.refuses_blobs { Err(Errno::ENOMEM) } else { Ok(()) }
    }

    fn static_data_done(&mut self, missing: Missing) -> Result<(), Errno> {
        self.call()?;
        self.static_data = Some(missing);
        Ok(())
    }

    fn set_tsc_info(&mut self, info: TscInfo) -> Result<(), Errno> {
        self.call()?;
        self.tsc_info = Some(info);
        Ok(())
    }

    fn set_hvm_context(&mut self) -> Result<(), Errno> {
        self.call()?;
        self.nr_contexts += 1;
        Ok(())
    }
}
