//! memcpy and its kin: what the compiler expects of every image, and the copies to and from shared memory.
//!
//! `rep movsq` moves 8 bytes a step; `rep movsb` is as fast on hardware with ERMS but eight times slower under an
//! emulator.
#![allow(unsafe_code, reason = "raw memory is their subject")]

use core::arch::asm;

/// Copies `len` bytes upwards.
///
/// # Safety
/// `from` is readable and `to` writable for `len` bytes; `to` does not lie inside `from..from + len`.
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the string instructions access exactly `len` bytes on both sides, ascending; DF is clear by the ABI.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            tail = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Copies `len` bytes downwards.
///
/// # Safety
/// `from` is readable and `to` writable for `len` bytes; `from` does not lie inside `to..to + len`, except at its start.
#[cfg(any(feature = "kernel", test))]
unsafe fn copy_down(to: *mut u8, from: *const u8, len: usize) {
    let tail = len % 8;
    let (to_end, from_end) = (to.wrapping_add(len).wrapping_sub(1), from.wrapping_add(len).wrapping_sub(1));
    // SAFETY: with DF set the bytes above the last whole word go first, then the words; exactly `len` bytes on both
    // sides; DF is cleared again, as the ABI wants. rdi and rsi point to a word's first byte before movsq: 7 below.
    unsafe {
        asm!(
            "std",
            "rep movsb",
            "sub rdi, 7",
            "sub rsi, 7",
            "mov rcx, {words}",
            "rep movsq",
            "cld",
            words = in(reg) len / 8,
            inout("rcx") tail => _,
            inout("rdi") to_end => _,
            inout("rsi") from_end => _,
            options(nostack),
        );
    }
}

/// Fills `len` bytes with `byte`.
///
/// # Safety
/// `to` is writable for `len` bytes.
pub(crate) unsafe fn fill(to: *mut u8, byte: u8, len: usize) {
    let word = u64::from_ne_bytes([byte; 8]);
    // SAFETY: the string instructions write exactly `len` bytes, ascending; DF is clear by the ABI.
    unsafe {
        asm!(
            "rep stosq",
            "mov rcx, {tail}",
            "rep stosb",
            tail = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            in("rax") word,
            options(nostack, preserves_flags),
        );
    }
}

/// Compares `len` bytes as memcmp does.
///
/// # Safety
/// Both sides are readable for `len` bytes.
pub(crate) unsafe fn compare(left: *const u8, right: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's obligation, for the words it looks at.
    let start = unsafe { equal_words(left, right, len / 8) } * 8;
    for offset in start..len {
        // SAFETY: below `len`, the caller's obligation.
        let a = unsafe { left.wrapping_add(offset).read_volatile() };
        // SAFETY: as above.
        let b = unsafe { right.wrapping_add(offset).read_volatile() };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// Returns how many words, from the first, are equal.
///
/// # Safety
/// Both sides are readable for `nr` words of 8 bytes.
unsafe fn equal_words(left: *const u8, right: *const u8, nr: usize) -> usize {
    for index in 0..nr {
        // SAFETY: below `nr`, the caller's obligation.
        let a = unsafe { left.cast::<u64>().wrapping_add(index).read_unaligned() };
        // SAFETY: as above.
        let b = unsafe { right.cast::<u64>().wrapping_add(index).read_unaligned() };
        if a != b {
            return index;
        }
    }
    nr
}

/// The C functions that compiled code calls.
#[cfg(feature = "kernel")]
mod symbols {
    use super::{compare, copy, copy_down, fill};

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        // SAFETY: memcpy's own contract.
        unsafe { copy(to, from, len) };
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        if (to as usize).wrapping_sub(from as usize) >= len {
            // SAFETY: `to` is not inside the source.
            unsafe { copy(to, from, len) };
        } else {
            // SAFETY: `to` is inside the source, so `from` is not inside the destination past its start.
            unsafe { copy_down(to, from, len) };
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        let [byte, ..] = byte.to_le_bytes();
        // SAFETY: memset's own contract.
        unsafe { fill(to, byte, len) };
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
        // SAFETY: memcmp's own contract.
        unsafe { compare(left, right, len) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
        // SAFETY: bcmp's own contract.
        unsafe { compare(left, right, len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_every_length_and_offset_move_exactly_their_bytes() {
        let source: [u8; 64] = core::array::from_fn(|i| u8::try_from(i + 1).unwrap());
        for offset in 0..9 {
            for len in 0..40 {
                let mut to = [0u8; 64];
                // SAFETY: both arrays are 64 bytes; offset + len is at most 48.
                unsafe { copy(to.as_mut_ptr().wrapping_add(offset), source.as_ptr().wrapping_add(3), len) };
                assert_eq!(&to[offset..offset + len], &source[3..3 + len]);
                assert!(to[..offset].iter().chain(&to[offset + len..]).all(|&byte| byte == 0));
            }
        }
    }

    #[test]
    fn a_copy_downwards_survives_overlap() {
        for shift in 0..20 {
            for len in 0..40 {
                let mut bytes: [u8; 64] = core::array::from_fn(|i| u8::try_from(i).unwrap());
                let mut expected = bytes;
                expected.copy_within(2..2 + len, 2 + shift);
                let base = bytes.as_mut_ptr();
                // SAFETY: 2 + shift + len is at most 62.
                unsafe { copy_down(base.wrapping_add(2 + shift), base.wrapping_add(2), len) };
                assert_eq!(bytes, expected, "shift {shift} len {len}");
            }
        }
    }

    #[test]
    fn comparison_finds_the_first_difference() {
        let left: [u8; 40] = [7; 40];
        for at in 0..40 {
            let mut right = left;
            right[at] = 9;
            // SAFETY: both arrays are 40 bytes.
            assert_eq!(unsafe { compare(left.as_ptr(), right.as_ptr(), 40) }, -2);
            // SAFETY: `at` is below 40.
            assert_eq!(unsafe { compare(left.as_ptr(), right.as_ptr(), at) }, 0);
        }
    }

    #[test]
    fn a_fill_writes_exactly_its_bytes() {
        for len in 0..40 {
            let mut to = [0u8; 48];
            // SAFETY: 4 + len is below 48.
            unsafe { fill(to.as_mut_ptr().wrapping_add(4), 0xa5, len) };
            assert!(to[4..4 + len].iter().all(|&byte| byte == 0xa5));
            assert!(to[..4].iter().chain(&to[4 + len..]).all(|&byte| byte == 0));
        }
    }
}
