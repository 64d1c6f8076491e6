use super::*;
use xen_abi::types::Mfn;

const INTEL: Processor = Processor { is_amd: false, family: 6 };
const OPTERON: Processor = Processor { is_amd: true, family: 0x15 };
const ZEN: Processor = Processor { is_amd: true, family: 0x19 };

/// As Xen's driver fills it: status, misc, addr, mcgstatus, ip, tsc, time; vendor, ...; cs, bank, cpu, finished; mcgcap; zeroes.
#[rustfmt::skip]
const RECORD: [u8; 112] = [
    0x91, 0x00, 0x01, 0x00, 0xc0, 0x00, 0x00, 0x8c, // VAL, MISCV, ADDRV; 3 corrected; memory read, channel 1
    0x86, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, // physical, known to 2^6 bytes
    0x40, 0x50, 0x34, 0x12, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x07, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, // bank 7
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x14, 0x0c, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, // 20 banks, CMCI_P, TES_P, SER_P
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

const STATUS: usize = 0;
const MISC: usize = 8;
const ADDRESS: usize = 16;
const BANK: usize = 65;
const MCGCAP: usize = 80;

/// The record with other registers.
fn with(changes: &[(usize, u64)]) -> [u8; 112] {
    let mut record = RECORD;
    for &(offset, value) in changes {
        match offset {
            BANK => record[BANK] = u8::try_from(value).unwrap(),
            _ => record[offset..offset + 8].copy_from_slice(&value.to_le_bytes()),
        }
    }
    record
}

fn corrected(mfn: u64, errors: u64) -> Option<Finding> {
    Some(Finding::Corrected(Report { mfn: Mfn::new(mfn), errors }))
}

/// Why it is not counted.
fn why(record: &[u8], processor: Processor) -> String {
    match decode(record, processor) {
        Some(Finding::NotCounted(why)) => why,
        other => panic!("expected an error that is not counted, got {other:?}"),
    }
}

#[test]
fn intels_controller_names_a_page_and_counts() {
    assert_eq!(decode(&RECORD, INTEL), corrected(0x12345, 3));
    assert_eq!(decode(&with(&[(MCGCAP, 0x0100_0014)]), INTEL), corrected(0x12345, 1), "no CMCI_P, no count");
    let none = with(&[(STATUS, 0x8c00_0000_0001_0091)]);
    assert_eq!(decode(&none, INTEL), corrected(0x12345, 1), "a count of 0");
}

#[test]
fn a_linux_of_its_own_gives_longer_records() {
    let mut record = RECORD.to_vec();
    record.resize(128, 0);
    assert_eq!(decode(&record, INTEL), corrected(0x12345, 3));
}

#[test]
fn an_error_that_is_not_valid_is_nothing() {
    assert_eq!(decode(&with(&[(STATUS, 0x0c00_00c0_0001_0091)]), INTEL), None);
    assert_eq!(decode(&RECORD[..MCGCAP], INTEL), None, "a record that is too short");
}

#[test]
fn what_is_not_corrected_is_not_counted() {
    let uncorrected = with(&[(STATUS, 0xbd00_0000_4000_00cf)]);
    assert!(why(&uncorrected, INTEL).contains("not corrected"));
    let deferred = with(&[(STATUS, 0x9c00_1100_0008_0813), (BANK, 4)]);
    assert!(why(&deferred, OPTERON).contains("not corrected"));
}

#[test]
fn an_error_of_a_cache_is_not_one_of_memory() {
    let cache = with(&[(STATUS, 0x9400_0000_0000_0151)]);
    assert!(why(&cache, INTEL).contains("not one of memory"));
    assert!(why(&cache, OPTERON).contains("not one of memory"));
}

#[test]
fn an_address_that_names_no_page_is_not_counted() {
    assert!(why(&with(&[(STATUS, 0x8800_00c0_0001_0091)]), INTEL).contains("has no address"));
    assert!(why(&with(&[(MISC, 0x9e)]), INTEL).contains("2^30 bytes"));
    assert!(why(&with(&[(MISC, 0x46)]), INTEL).contains("no physical address"));
    assert!(why(&with(&[(ADDRESS, 0)]), INTEL).contains("not known"));
    assert_eq!(decode(&with(&[(MISC, 0x8c)]), INTEL), corrected(0x12345, 3), "2^12 bytes are a page");
    let imprecise = with(&[(MISC, 0x9e), (MCGCAP, 0xc14)]);
    assert_eq!(decode(&imprecise, INTEL), corrected(0x12345, 3), "without SER_P, MISC is something else");
}

#[test]
fn amds_north_bridge_names_a_page_and_zen_does_not() {
    let ecc = with(&[(STATUS, 0x9c00_4100_0008_0813), (BANK, 4)]);
    assert_eq!(decode(&ecc, OPTERON), corrected(0x12345, 1));
    assert!(why(&ecc, ZEN).contains("memory channel"));
    assert!(why(&with(&[(STATUS, 0x9c00_4100_0008_0813)]), OPTERON).contains("not one of memory"), "bank 7");
}

#[test]
fn bits_above_any_processors_addresses_are_cut() {
    let high = with(&[(ADDRESS, 0xfff0_0000_1234_5000)]);
    assert_eq!(decode(&high, INTEL), corrected(0x12345, 3));
}

#[test]
fn the_processor_is_read_from_cpuinfo() {
    let amd = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t: 1\n";
    assert_eq!(Processor::parse(amd), ZEN);
    assert_eq!(Processor::parse("vendor_id\t: GenuineIntel\ncpu family\t: 6\n"), INTEL);
    assert_eq!(Processor::parse(""), Processor::default());
}
