//! What only dom0 may do to the target, asked of stubctl.

use crate::link::{Link, LinkError};
use control::{Apply, FromStub, ToStub};
use migration::xen::{Broker, Errno, Missing, Piece, TscInfo};

/// Asks over the control channel and waits for each answer.
pub(crate) struct Dom0<'a>(pub(crate) &'a mut Link);

impl Dom0<'_> {
    fn apply(&mut self, apply: Apply) -> Result<(), Errno> {
        self.0.send(&FromStub::Apply(apply)).map_err(errno)?;
        match self.0.await_command().map_err(errno)? {
            ToStub::Answer { result: 0 } => Ok(()),
            ToStub::Answer { result } => Err(Errno::new(result.saturating_neg())),
            other => {
                log::warn!("expected dom0's answer to {apply:?}, got {other:?}");
                Err(Errno::ECANCELED)
            }
        }
    }
}

impl Broker for Dom0<'_> {
    fn blob(&mut self, piece: Piece<'_>) -> Result<(), Errno> {
        let Piece { kind, total, offset, bytes } = piece;
        let kind = match kind {
            migration::xen::BlobKind::CpuidPolicy => control::BlobKind::CpuidPolicy,
            migration::xen::BlobKind::MsrPolicy => control::BlobKind::MsrPolicy,
            migration::xen::BlobKind::HvmContext => control::BlobKind::HvmContext,
        };
        let message = |done: usize, bytes| {
            // A blob's length is a u32, so is every place in it.
            let offset = offset.saturating_add(u32::try_from(done).unwrap_or(u32::MAX));
            FromStub::Blob { kind, total, offset, bytes }
        };
        self.0.send_pieces(bytes, message).map_err(errno)
    }

    fn static_data_done(&mut self, missing: Missing) -> Result<(), Errno> {
        self.apply(Apply::StaticData { missing_cpuid: missing.cpuid, missing_msr: missing.msr })
    }

    fn set_tsc_info(&mut self, info: TscInfo) -> Result<(), Errno> {
        let TscInfo { mode, khz, nsec, incarnation } = info;
        self.apply(Apply::TscInfo(control::TscInfo { mode, khz, nsec, incarnation }))
    }

    fn set_hvm_context(&mut self) -> Result<(), Errno> {
        self.apply(Apply::HvmContext)
    }
}

fn errno(error: LinkError) -> Errno {
    log::warn!("{error}");
    Errno::EPIPE
}
