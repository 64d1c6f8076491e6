use super::*;
use crate::stream::{Headers, Unbacked};
use alloc::vec::Vec;

/// Feeds records, given by type, to a session of this version; returns its steps up to the first error.
fn steps(version: Version, records: &[RecordType]) -> (Vec<Step<'static>>, Option<Error>) {
    let mut session = Session::new();
    let mut steps = Vec::new();
    let headers = Item::Headers(Headers { version, xen: (4, 17) });
    for item in core::iter::once(headers).chain(records.iter().copied().map(Item::Record)) {
        match session.step(item) {
            Ok(step) => steps.extend(step),
            Err(error) => return (steps, Some(error)),
        }
    }
    (steps, None)
}

use RecordType as R;

const ALL_MISSING: Missing = Missing { cpuid: true, msr: true };
const NONE_MISSING: Missing = Missing { cpuid: false, msr: false };

#[test]
fn a_version_3_stream_applies_static_data_where_it_says_so() {
    let records =
        [R::X86_CPUID_POLICY, R::X86_MSR_POLICY, R::STATIC_DATA_END, R::PAGE_DATA, R::HVM_CONTEXT, R::END];
    let expected = [Step::StaticData(NONE_MISSING), Step::Finish];
    assert_eq!(steps(Version::V3, &records), (expected.to_vec(), None));
}

#[test]
fn a_missing_policy_is_told() {
    let records = [R::X86_MSR_POLICY, R::STATIC_DATA_END];
    let missing = Missing { cpuid: true, msr: false };
    assert_eq!(steps(Version::V3, &records).0, [Step::StaticData(missing)]);
}

#[test]
fn a_version_2_stream_applies_static_data_before_its_first_pages() {
    let records = [R::PAGE_DATA, R::PAGE_DATA, R::HVM_CONTEXT, R::END];
    let expected = [Step::StaticData(ALL_MISSING), Step::Finish];
    assert_eq!(steps(Version::V2, &records), (expected.to_vec(), None));
}

#[test]
fn context_and_parameters_come_in_either_order() {
    for pair in [[R::HVM_CONTEXT, R::HVM_PARAMS], [R::HVM_PARAMS, R::HVM_CONTEXT]] {
        let records = [R::STATIC_DATA_END, R::PAGE_DATA, pair[0], pair[1], R::X86_TSC_INFO, R::END];
        assert_eq!(steps(Version::V3, &records).1, None);
    }
}

#[test]
fn optional_records_are_passed_over_anywhere() {
    let optional = R::new(0x8000_0001);
    let records = [optional, R::STATIC_DATA_END, optional, R::HVM_CONTEXT, optional, R::END];
    assert_eq!(steps(Version::V3, &records).1, None);
}

#[test]
fn what_may_not_come_is_an_error_of_its_own() {
    let cases: [(Version, &[RecordType], Error); 9] = [
        (Version::V3, &[R::PAGE_DATA], Error::BeforeStaticDataEnd),
        (Version::V3, &[R::HVM_PARAMS], Error::BeforeStaticDataEnd),
        (Version::V3, &[R::END], Error::BeforeStaticDataEnd),
        (Version::V3, &[R::STATIC_DATA_END, R::STATIC_DATA_END], Error::SecondStaticDataEnd),
        (Version::V2, &[R::STATIC_DATA_END], Error::StaticDataEndInV2),
        (Version::V3, &[R::STATIC_DATA_END, R::X86_CPUID_POLICY], Error::LatePolicy),
        (Version::V2, &[R::PAGE_DATA, R::X86_MSR_POLICY], Error::LatePolicy),
        (Version::V3, &[R::STATIC_DATA_END, R::END], Error::NoContext),
        (Version::V3, &[R::STATIC_DATA_END, R::HVM_CONTEXT, R::HVM_CONTEXT], Error::SecondContext),
    ];
    for (version, records, error) in cases {
        assert_eq!(steps(version, records).1, Some(error), "{version:?} {records:?}");
    }
}

#[test]
fn after_verify_pages_are_compared() {
    let mut session = Session::new();
    let gfns = [Gfn::new(1)];
    let verify = [R::STATIC_DATA_END, R::VERIFY];
    session.step(Item::Headers(Headers { version: Version::V3, xen: (4, 17) })).expect("headers");
    for (record, purpose) in verify.into_iter().zip([Use::Fill, Use::Compare]) {
        session.step(Item::Record(record)).expect("in order");
        assert_eq!(session.step(Item::Pages(&gfns)), Ok(Some(Step::Pages(purpose, &gfns))));
        assert_eq!(session.step(Item::Contents(b"x")), Ok(Some(Step::Contents(purpose, b"x"))));
    }
}

#[test]
fn runs_pass_through() {
    let run = Run { kind: Unbacked::Hole, first: Gfn::new(3), nr_frames: 2 };
    assert_eq!(Session::new().step(Item::Run(run)), Ok(Some(Step::Run(run))));
}
