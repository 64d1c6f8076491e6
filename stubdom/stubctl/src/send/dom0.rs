//! What only dom0 knows of a guest that is sent, or may do to it.
//!
//! **Takes** the stub's questions. **Gives** answers, and the bytes that follow them on the ring. **Never** names another
//! domain than its own guest; never leaves the log of its writes on.

use crate::ffi::sending::{Backing, LogBuffer, Policies};
use crate::ffi::xenctrl::{XenError, Xenctrl};
use control::BlobKind;
use control::send::{BLOCK_BYTES, BLOCK_FRAMES, Bitmap};
use xen_abi::types::{Domid, Gfn};

/// What follows an answer on the ring.
pub(crate) type Bytes = Vec<u8>;

/// Dom0's part in one send.
pub(crate) struct Dom0<'a> {
    xen: &'a Xenctrl,
    guest: Domid,
    /// Xen may log the guest's writes.
    is_logging: bool,
    log: Option<LogBuffer<'a>>,
    /// Bit `i`: gfn `i` had memory when the stub last asked.
    present: Vec<u8>,
    policies: Option<Policies>,
    /// How many pages have failed: their contents are lost.
    nr_broken: u64,
}

impl<'a> Dom0<'a> {
    /// Serves the send of `guest` and of no other domain.
    pub(crate) fn new(xen: &'a Xenctrl, guest: Domid) -> Self {
        Self { xen, guest, is_logging: false, log: None, present: Vec::new(), policies: None, nr_broken: 0 }
    }

    /// Which gfns have memory. What had some before is not looked at again: what has become of it shows when it is mapped.
    pub(crate) fn present(&mut self) -> Result<(Bitmap, Bytes), XenError> {
        let end = self.xen.end_gfn(self.guest)?;
        let nr_bytes = usize::try_from(end.raw().div_ceil(8)).unwrap_or(usize::MAX);
        self.present.resize(nr_bytes.max(self.present.len()), 0);
        let mut first = Gfn::new(0);
        while first < end {
            first = self.look(first, end)?;
        }
        if self.nr_broken > 0 {
            log::warn!("{} pages of the guest have failed: they are sent as holes", self.nr_broken);
        }
        Ok(blocks(end, &self.present))
    }

    /// Looks at the gfns from `first` on that were holes; gives where to go on.
    fn look(&mut self, first: Gfn, end: Gfn) -> Result<Gfn, XenError> {
        let byte = usize::try_from(first.raw() / 8).unwrap_or(usize::MAX);
        if self.present.get(byte) == Some(&u8::MAX) {
            return Ok(Gfn::new(first.raw() + 8));
        }
        let backings = self.xen.backings(self.guest, first, end)?;
        for (gfn, backing) in (first.raw()..).zip(&backings) {
            self.nr_broken += u64::from(*backing == Backing::Broken);
            let byte = usize::try_from(gfn / 8).ok().and_then(|byte| self.present.get_mut(byte));
            if let (Backing::Memory, Some(byte)) = (backing, byte) {
                *byte |= 1 << (gfn % 8);
            }
        }
        Ok(Gfn::new(first.raw() + backings.len() as u64))
    }

    /// Has writes logged from now on.
    pub(crate) fn start_log(&mut self) -> Result<(), XenError> {
        self.log = Some(LogBuffer::new(self.xen, self.xen.end_gfn(self.guest)?)?);
        self.is_logging = true;
        self.xen.start_log(self.guest)
    }

    /// How many pages the log has.
    pub(crate) fn nr_logged(&self) -> Result<u64, XenError> {
        self.xen.nr_logged(self.guest)
    }

    /// Takes the log, which is empty then.
    pub(crate) fn dirty(&mut self, is_suspended: bool) -> Result<(Bitmap, Bytes), XenError> {
        let end = self.xen.end_gfn(self.guest)?;
        let mut log = match self.log.take() {
            Some(log) if log.end() >= end => log,
            _ => LogBuffer::new(self.xen, end)?,
        };
        let answer = log.take(self.guest, is_suspended).map(|bitmap| blocks(end, bitmap));
        self.log = Some(log);
        answer
    }

    /// Ends the log; nothing to do when there is none.
    pub(crate) fn end_log(&mut self) -> Result<(), XenError> {
        if std::mem::take(&mut self.is_logging) { self.xen.end_log(self.guest) } else { Ok(()) }
    }

    /// A piece of state.
    pub(crate) fn fetch(&mut self, kind: BlobKind) -> Result<Bytes, XenError> {
        if kind == BlobKind::HvmContext {
            return self.xen.hvm_context(self.guest);
        }
        let policies = match self.policies.take() {
            Some(policies) => policies,
            None => self.xen.cpu_policies(self.guest)?,
        };
        let policies = self.policies.insert(policies);
        Ok(if kind == BlobKind::CpuidPolicy { policies.leaves.clone() } else { policies.msrs.clone() })
    }
}

/// A bitmap as it follows on the ring: blocks of zeroes are left out.
fn blocks(end: Gfn, bitmap: &[u8]) -> (Bitmap, Bytes) {
    let nr_bytes = usize::try_from(end.raw().div_ceil(BLOCK_FRAMES)).unwrap_or(usize::MAX) * BLOCK_BYTES;
    let bitmap = &bitmap[..bitmap.len().min(nr_bytes)];
    let (mut bytes, mut nr_blocks) = (Vec::new(), 0);
    for (number, block) in (0_u32..).zip(bitmap.chunks(BLOCK_BYTES)) {
        if block.iter().any(|byte| *byte != 0) {
            bytes.extend_from_slice(&number.to_le_bytes());
            bytes.extend_from_slice(block);
            bytes.resize(bytes.len() + BLOCK_BYTES - block.len(), 0);
            nr_blocks += 1;
        }
    }
    (Bitmap { end, nr_blocks }, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_zeroes_are_left_out_and_the_last_is_filled_up() {
        let mut bitmap = vec![0; 3 * BLOCK_BYTES - 100];
        bitmap[BLOCK_BYTES] = 7;
        bitmap[3 * BLOCK_BYTES - 101] = 9;
        let end = Gfn::new(3 * BLOCK_FRAMES - 800);
        let (answer, bytes) = blocks(end, &bitmap);
        assert_eq!(answer, Bitmap { end, nr_blocks: 2 });
        assert_eq!(bytes.len(), 2 * (4 + BLOCK_BYTES));
        assert_eq!((&bytes[..5], &bytes[4 + BLOCK_BYTES..][..4]), (&[1, 0, 0, 0, 7][..], &[2, 0, 0, 0][..]));
        assert_eq!(bytes[bytes.len() - 101], 9);
        assert_eq!(blocks(Gfn::new(64), &[0; 8]), (Bitmap { end: Gfn::new(64), nr_blocks: 0 }, Vec::new()));
    }
}
