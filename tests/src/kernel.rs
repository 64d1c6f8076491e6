//! The distribution's kernel without its wrapping.
//!
//! **Takes** a bzImage. **Gives** the ELF image that is packed in it. **Never** changes a byte of that.
//!
//! Whoever builds a PV or PVH domain from a bzImage (Xen for dom0, libxenguest for guests) unpacks it first, which takes
//! longer on a translated processor than all else of `xl create`. An HVM guest unpacks itself: it needs the bzImage.

use crate::error::{Doing, Error, Result};
use crate::tool;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

/// The boot sector and setup header, as Linux's `Documentation/arch/x86/boot.rst` lays them out.
const SETUP_SECTS: usize = 0x1f1;
const MAGIC: std::ops::Range<usize> = 0x202..0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;

/// Behind the packed image stands the size of the unpacked one.
const TRAILER_BYTES: usize = 4;

/// What unpacks a kernel, by how the packed one begins.
const UNPACKERS: &[(&[u8], &str)] = &[(b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd")];

/// Unpacks a bzImage to a file.
///
/// # Errors
/// It is no bzImage, or packed by another program than Debian's kernels are.
pub fn unpack(bzimage: &Path, elf: &Path) -> Result<()> {
    let doing = || format!("unpacking {}", bzimage.display());
    let image = fs::read(bzimage).doing(doing())?;
    let packed =
        payload(&image).ok_or_else(|| Error::new(doing(), "not a bzImage of boot protocol 2.08 or later"))?;
    let unpacker = UNPACKERS.iter().find(|(magic, _)| packed.starts_with(magic));
    let (_, program) = unpacker.ok_or_else(|| {
        let start = &packed[..packed.len().min(6)];
        Error::new(doing(), format!("expected a payload of xz or zstd, got {start:02x?}"))
    })?;
    let [part, fresh] = ["packed", "new"].map(|end| elf.with_extension(end));
    fs::write(&part, packed).doing(doing())?;
    let unpacked = File::create(&fresh).doing(doing())?;
    tool::status(Command::new(program).arg("-dc").arg(&part).stdout(unpacked))?;
    fs::remove_file(&part).doing(doing())?;
    fs::rename(&fresh, elf).doing(doing())
}

/// The packed kernel of a bzImage, without its trailer.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| usize::try_from(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?)).ok();
    if image.get(MAGIC)? != b"HdrS" {
        return None;
    }
    let nr_sectors = match image.get(SETUP_SECTS)? {
        0 => 4, // by the boot protocol
        number => usize::from(*number),
    };
    let start = ((nr_sectors + 1) * SECTOR_BYTES).checked_add(word(PAYLOAD_OFFSET)?)?;
    let end = start.checked_add(word(PAYLOAD_LENGTH)?.checked_sub(TRAILER_BYTES)?)?;
    image.get(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sectors of setup, and a payload of eight bytes at 16 bytes behind them.
    fn bzimage() -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR_BYTES + 16];
        image[SETUP_SECTS] = 2;
        image[MAGIC].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH] = 8;
        image.extend(*b"abcdSIZE");
        image
    }

    #[test]
    fn the_payload_is_found_without_its_trailer() {
        assert_eq!(payload(&bzimage()), Some(&b"abcd"[..]));
    }

    #[test]
    fn what_is_no_bzimage_or_cut_off_has_none() {
        let mut other = bzimage();
        other[MAGIC.start] = 0;
        assert_eq!(payload(&other), None);
        assert_eq!(payload(&bzimage()[..3 * SECTOR_BYTES + 18]), None);
        assert_eq!(payload(b""), None);
    }
}
