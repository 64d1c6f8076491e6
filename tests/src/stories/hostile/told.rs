//! What the operator is told of each damage.

/// How the restore of a damaged stream ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Told {
    /// stubctl's line goes on like this behind the offset; `*` stands for any words.
    Refused(&'static str),
    /// libxl finds it itself, with these words, after the stub has restored its part: the save helper must not read a
    /// byte behind END.
    ByLibxl(&'static str),
    /// It is none: the guest is restored, without a word.
    Restored,
    /// It is none, and stubctl warns with these words.
    RestoredWithAWarning(&'static str),
    /// It is none, and the guest owns one page less.
    RestoredWithAHole,
}

use Told::{ByLibxl, Refused, Restored, RestoredWithAHole, RestoredWithAWarning};

/// By the damage's name on nest-stream's command line.
pub(super) const DAMAGES: &[(&str, Told)] = &[
    ("marker", Refused("header: expected the marker 0xffffffffffffffff, got 0x00ffffffffffffff")),
    ("id", Refused("header: expected 0x58454e46 (XENF), got 0x58454e47")),
    ("version-old", Refused("header: expected version 2 or 3, got 1")),
    ("version-new", Refused("header: expected version 2 or 3, got 9")),
    ("byte-order", Refused("header: expected a little-endian stream, got a big-endian one")),
    ("options-reserved", Refused("header: expected no option but byte order, got 0x0040")),
    ("image-reserved", Refused("header: expected zero in a reserved field, got 0x1000000")),
    ("guest-type-pv", Refused("header: expected an HVM or PVH guest (2), got a PV guest (1)")),
    ("guest-type-unknown", Refused("header: expected an HVM or PVH guest (2), got guest type 99")),
    ("page-shift", Refused("header: expected page shift 12, got 13")),
    ("domain-reserved", Refused("header: expected zero in a reserved field, got 0x1")),
    ("length-short", Refused("record PAGE_DATA: expected entries of 4096 bytes, got ")),
    ("length-long", Refused("record PAGE_DATA: expected entries of 4096 bytes, got ")),
    ("length-huge", Refused("record PAGE_DATA: expected at most 134217728 bytes, got 2147483640")),
    ("length-tiny", Refused("record PAGE_DATA: expected at least 8 bytes, got 4")),
    ("count-more", Refused("record PAGE_DATA: expected entries of 4096 bytes, got ")),
    ("count-less", Refused("record PAGE_DATA: expected entries of 4096 bytes, got ")),
    ("count-huge", Refused("record PAGE_DATA: expected 34359738368 bytes, got ")),
    (
        "count-zero",
        Refused(
            "record PAGE_DATA: expected * pages with contents, as the length says, got a list that names 0",
        ),
    ),
    ("pages-reserved", Refused("record PAGE_DATA: expected zero in a reserved field, got 0x1")),
    ("pfn-reserved", Refused("record PAGE_DATA: expected bits 59 to 52 of a page to be zero, got 0x0080")),
    ("pfn-beyond", Refused("record PAGE_DATA: expected pages below gfn:0x1000000000, got gfn:0x20000000")),
    ("pfn-at-end", Refused("record PAGE_DATA: expected pages below gfn:0x1000000000, got gfn:0x1000000000")),
    ("page-type", Refused("record PAGE_DATA: expected a type that pages have, got 0x5 for gfn:0x")),
    (
        "too-many-pages",
        Refused(
            "record PAGE_DATA: expected a guest of at most * pages, got gfn:0x10* beyond them: raise its maxmem",
        ),
    ),
    ("static-data-end-missing", Refused("record PAGE_DATA: expected STATIC_DATA_END before this record")),
    (
        "static-data-end-twice",
        Refused("record STATIC_DATA_END: expected STATIC_DATA_END once, got a second one"),
    ),
    ("static-data-end-body", Refused("record STATIC_DATA_END: expected 0 bytes, got 8")),
    (
        "static-data-end-in-v2",
        Refused("record STATIC_DATA_END: expected no STATIC_DATA_END in a version 2 stream"),
    ),
    (
        "policy-late",
        Refused("record X86_CPUID_POLICY: expected no policy after the static data were complete"),
    ),
    ("cpuid-length", Refused("record X86_CPUID_POLICY: expected entries of 24 bytes, got ")),
    ("msr-length", Refused("record X86_MSR_POLICY: expected entries of 16 bytes, got ")),
    ("tsc-length", Refused("record X86_TSC_INFO: expected 24 bytes, got 16")),
    ("tsc-reserved", Refused("record X86_TSC_INFO: expected zero in a reserved field, got 0x1")),
    ("params-count", Refused("record HVM_PARAMS: expected * bytes, got ")),
    ("params-reserved", Refused("record HVM_PARAMS: expected zero in a reserved field, got 0x1")),
    ("param-index", Refused("record HVM_PARAMS: expected an HVM parameter, got index 64")),
    ("context-empty", Refused("record HVM_CONTEXT: expected at least 1 bytes, got 0")),
    ("context-long", Refused("record HVM_CONTEXT: expected at most 4194304 bytes, got 4194312")),
    ("context-missing", Refused("record END: expected an HVM_CONTEXT record before END, got none")),
    ("context-twice", Refused("record HVM_CONTEXT: expected HVM_CONTEXT once, got a second one")),
    ("padding", Refused("record of type 0x8000007e: expected zero padding, got 0x01")),
    ("end-body", Refused("record END: expected 0 bytes, got 8")),
    ("data-after-end", ByLibxl("Unrecognised record")),
    (
        "unknown-record",
        Refused(
            "record of type 0x0000007e: expected a kind of record that is known here, got a mandatory one",
        ),
    ),
    (
        "pv-record",
        Refused("record X86_PV_INFO: expected records of an HVM or PVH guest, got one of a PV guest"),
    ),
    (
        "checkpoint",
        Refused("record CHECKPOINT: expected a plain stream, got a checkpointed one (Remus, COLO)"),
    ),
    ("garbage", Refused("header: expected the marker 0xffffffffffffffff, got 0x")),
    ("optional-record", Restored),
    ("version2", Restored),
    ("params-first", Restored),
    ("verify", Restored),
    (
        "verify-differs",
        RestoredWithAWarning(
            "expected the pages behind VERIFY to be as they were sent before, got 1 that differ",
        ),
    ),
    ("hole-later", RestoredWithAHole),
];

/// Whether `text` begins with the pattern, in which `*` stands for any words.
pub(super) fn matches(text: &str, pattern: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let rest = text.strip_prefix(first);
    pieces
        .try_fold(rest, |rest, piece| rest?.split_once(piece).map(|(_, rest)| Some(rest)))
        .flatten()
        .is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_met_from_its_start_on() {
        assert!(matches("record X: expected 7 bytes, got 8", "record X: expected * bytes, got "));
        assert!(matches("record X: expected 7", "record X"));
        assert!(!matches("a record X: expected 7", "record X"));
        assert!(!matches("record X: expected 7 pages", "record X: expected * bytes, got "));
    }
}
