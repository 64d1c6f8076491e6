//! `/dev/mcelog`: the machine checks that Xen hands to Linux in dom0.
//!
//! **Takes** records of `struct mce`. **Gives** corrected errors of pages of memory. **Never** counts an error that is not
//! corrected, not of memory, or whose address does not name one page of the machine.
//!
//! The record is Linux' `struct mce` (`arch/x86/include/uapi/asm/mce.h`), of which Xen's driver (`drivers/xen/mcelog.c`) fills
//! the first 112 bytes and leaves the processor's model out. The registers are those of Intel's manual, volume 3B,
//! "Machine-Check Architecture", and AMD's, volume 2, "Machine Check Architecture".

use super::report::Report;
use crate::ffi::sys;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use xen_abi::types::PAGE_SHIFT;

/// The bytes of a record that are looked at: up to the end of `mcgcap`.
const MIN_RECORD: usize = 88;
/// More than any kernel has: 128 bytes and 128 records at most today.
const MAX_RECORD: usize = 1024;
const MAX_RECORDS: usize = 4096;

const MCI_STATUS_VAL: u64 = 1 << 63;
const MCI_STATUS_UC: u64 = 1 << 61;
const MCI_STATUS_MISCV: u64 = 1 << 59;
const MCI_STATUS_ADDRV: u64 = 1 << 58;
const MCI_STATUS_PCC: u64 = 1 << 57;
/// AMD: the data is lost, and nobody has used it yet.
const MCI_STATUS_DEFERRED: u64 = 1 << 44;
/// Intel: corrected errors since the bank was read last.
const MCI_STATUS_CEC_SHIFT: u32 = 38;
const MCI_STATUS_CEC_MASK: u64 = 0x7fff;

/// The bank counts corrected errors.
const MCG_CMCI_P: u64 = 1 << 10;
/// MCi_MISC has the address's granularity.
const MCG_SER_P: u64 = 1 << 24;

/// `000F 0000 1MMM CCCC`: an error of a memory controller.
const MCACOD_MEMORY_MASK: u64 = 0xef80;
const MCACOD_MEMORY: u64 = 0x0080;

const MCI_MISC_LSB_MASK: u64 = 0x3f;
const MCI_MISC_MODE_SHIFT: u32 = 6;
const MCI_MISC_MODE_MASK: u64 = 7;
const MCI_MISC_MODE_PHYSICAL: u64 = 2;

/// AMD up to family 16h: the north bridge's bank, and its extended code of an ECC error.
const NORTH_BRIDGE: u8 = 4;
const XEC_ECC: u64 = 8;
const XEC_SHIFT: u32 = 16;
const XEC_MASK: u64 = 0x1f;
/// From this family on an AMD memory controller reports an address inside of its channel.
const FIRST_ZEN_FAMILY: u32 = 0x17;

/// No processor has more address bits.
const MAX_ADDRESS: u64 = (1 << 52) - 1;

/// What decides how a record is to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Processor {
    is_amd: bool,
    family: u32,
}

impl Processor {
    /// Reads the first processor of `/proc/cpuinfo`.
    pub(super) fn parse(cpuinfo: &str) -> Self {
        let word = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key))?;
            line.split_once(':').map(|(_, word)| word.trim())
        };
        let is_amd = matches!(word("vendor_id"), Some("AuthenticAMD" | "HygonGenuine"));
        Self { is_amd, family: word("cpu family").and_then(|word| word.parse().ok()).unwrap_or(0) }
    }
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Corrected errors of a page.
    Corrected(Report),
    /// Something else, which is for the log.
    NotCounted(String),
}

/// The registers of one record.
struct Record {
    status: u64,
    misc: u64,
    address: u64,
    bank: u8,
    mcgcap: u64,
}

impl Record {
    /// Offsets are those of `struct mce`.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let word = |offset: usize| {
            let bytes = bytes.get(offset..offset.checked_add(8)?)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let record = Self {
            status: word(0)?,
            misc: word(8)?,
            address: word(16)?,
            bank: *bytes.get(65)?,
            mcgcap: word(80)?,
        };
        (record.status & MCI_STATUS_VAL != 0).then_some(record)
    }

    /// Whether the contents of what failed are lost.
    fn is_lost(&self, processor: Processor) -> bool {
        let deferred = if processor.is_amd { MCI_STATUS_DEFERRED } else { 0 };
        self.status & (MCI_STATUS_UC | MCI_STATUS_PCC | deferred) != 0
    }

    fn is_of_memory(&self, processor: Processor) -> bool {
        if processor.is_amd {
            self.bank == NORTH_BRIDGE && self.status >> XEC_SHIFT & XEC_MASK == XEC_ECC
        } else {
            self.status & MCACOD_MEMORY_MASK == MCACOD_MEMORY
        }
    }

    /// Why the address names no page of the machine, if it does not.
    fn pageless(&self, processor: Processor) -> Option<String> {
        if self.status & MCI_STATUS_ADDRV == 0 {
            return Some("has no address".to_owned());
        }
        let has_granularity =
            !processor.is_amd && self.mcgcap & MCG_SER_P != 0 && self.status & MCI_STATUS_MISCV != 0;
        if !has_granularity {
            return None;
        }
        let mode = self.misc >> MCI_MISC_MODE_SHIFT & MCI_MISC_MODE_MASK;
        if mode != MCI_MISC_MODE_PHYSICAL {
            return Some(format!("has no physical address (mode {mode})"));
        }
        let lsb = self.misc & MCI_MISC_LSB_MASK;
        (lsb > PAGE_SHIFT.into()).then(|| format!("has an address that is known to 2^{lsb} bytes only"))
    }

    fn nr_errors(&self, processor: Processor) -> u64 {
        let is_counted = !processor.is_amd && self.mcgcap & MCG_CMCI_P != 0;
        if is_counted { self.status >> MCI_STATUS_CEC_SHIFT & MCI_STATUS_CEC_MASK } else { 1 }
    }
}

/// Reads a record; `None` when there is no error in it.
pub(super) fn decode(bytes: &[u8], processor: Processor) -> Option<Finding> {
    let record = Record::parse(bytes)?;
    let Record { bank, status, address, .. } = record;
    let not = |why: &str| {
        let text = format!("bank {bank}, status {status:#x}, address {address:#x}: {why}: not counted");
        Some(Finding::NotCounted(text))
    };
    if record.is_lost(processor) {
        return not("the error is not corrected, so Xen deals with it");
    }
    if processor.is_amd && processor.family >= FIRST_ZEN_FAMILY {
        return not("AMD's family 17h and later report an address of the memory channel, not of the machine");
    }
    if !record.is_of_memory(processor) {
        return not("the error is not one of memory");
    }
    if let Some(why) = record.pageless(processor) {
        return not(&format!("the error {why}"));
    }
    match Report::at_address(address & MAX_ADDRESS, record.nr_errors(processor)) {
        Ok(report) => Some(Finding::Corrected(report)),
        Err(expected) => not(&format!("expected {expected}")),
    }
}

/// The device, which this process alone reads: what one reader takes no other sees.
pub(super) struct Device {
    file: File,
    record_bytes: usize,
    nr_records: usize,
}

impl Device {
    /// Opens it.
    ///
    /// # Errors
    /// `EBUSY` when another program has it open; `InvalidData` when its records are none that are known here.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = libc::O_EXCL | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let (record_bytes, nr_records) = sys::mcelog_lengths(file.as_fd())?;
        if !(MIN_RECORD..=MAX_RECORD).contains(&record_bytes) || !(1..=MAX_RECORDS).contains(&nr_records) {
            let text = format!(
                "expected up to {MAX_RECORDS} records of {MIN_RECORD} to {MAX_RECORD} bytes, got {nr_records} of {record_bytes}"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Self { file, record_bytes, nr_records })
    }

    /// Takes all records that are there.
    pub(super) fn read(&mut self, processor: Processor) -> io::Result<Vec<Finding>> {
        // The driver gives all or nothing.
        let mut bytes = vec![0; self.record_bytes * self.nr_records];
        let nr_bytes = match self.file.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            read => read?,
        };
        bytes.truncate(nr_bytes);
        Ok(bytes.chunks_exact(self.record_bytes).filter_map(|record| decode(record, processor)).collect())
    }

    /// For waiting until there are records.
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests;
