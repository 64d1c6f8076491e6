//! Whatever a guest does between any two calls, what arrives is what it had when it was suspended.

use super::*;
use crate::stream::{Item, Parser, RecordType};
use proptest::prelude::*;

/// A page of the guest's, often of a few.
fn gfns() -> impl Strategy<Value = Gfn> {
    prop_oneof![0..30_u64, 0..720_u64].prop_map(Gfn::new)
}

fn acts() -> impl Strategy<Value = Act> {
    // A page that is given back is written before, as Linux does by default (`xen_scrub_pages`): Xen before 4.22 does not
    // log that it goes.
    prop_oneof![
        4 => (gfns(), 1..9_u64).prop_map(|(gfn, seed)| Act::Write(gfn, seed)),
        1 => (gfns(), 1..9_u64).prop_map(|(gfn, seed)| Act::BalloonIn(gfn, seed)),
        1 => gfns().prop_map(Act::BalloonOut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_busy_guest_arrives(
        acts in prop::collection::vec((3..30_usize, acts()), 0..60),
        room in prop_oneof![Just(usize::MAX), 1000..100_000_usize],
    ) {
        let mut source = guest();
        for (nr, act) in acts {
            let acts = source.acts.entry(nr).or_default();
            if let Act::BalloonOut(gfn) = act {
                acts.push(Act::Write(gfn, 0));
            }
            acts.push(act);
        }
        send(&mut source, config(Mode::Live(BUSY)), room).expect("sound");
        assert_arrived(&source);
    }

    #[test]
    fn what_the_writer_writes_is_what_the_parser_reads(
        holes in prop::collection::vec(any::<bool>(), 1..1024),
        first in 0..1_u64 << 40,
        cut in 1..9000_usize,
    ) {
        let gfns = (first..).map(Gfn::new);
        let entry = |(gfn, is_hole): (Gfn, &bool)| if *is_hole { Entry::Hole(gfn) } else { Entry::Data(gfn) };
        let entries: Vec<Entry> = gfns.zip(&holes).map(entry).collect();
        let mut writer = Writer::default();
        writer.headers((4, 17));
        writer.record(RecordType::STATIC_DATA_END, &[]);
        writer.pages(&entries);
        let mut bytes = Vec::new();
        loop {
            let nr = match writer.due() {
                Due::Nothing => break,
                Due::Bytes(due) => {
                    let due = &due[..due.len().min(cut)];
                    bytes.extend_from_slice(due);
                    due.len()
                }
                Due::Contents(nr) => {
                    let nr = usize::try_from(nr).expect("a batch").min(cut);
                    bytes.resize(bytes.len() + nr, 0x5a);
                    nr
                }
            };
            writer.pass(nr);
        }
        prop_assert_eq!(writer.nr_bytes(), bytes.len() as u64);
        let (mut parser, mut rest) = (Parser::new(), bytes.as_slice());
        let (mut pages, mut nr_holes, mut nr_contents) = (Vec::new(), 0, 0);
        while let Some(item) = parser.next(&mut rest).expect("a sound stream") {
            match item {
                Item::Pages(gfns) => pages.extend_from_slice(gfns),
                Item::Run(run) => nr_holes += run.nr_frames,
                Item::Contents(bytes) => nr_contents += bytes.len(),
                _ => {}
            }
        }
        let with_data = |entry: &Entry| match entry { Entry::Data(gfn) => Some(*gfn), Entry::Hole(_) => None };
        let expected: Vec<Gfn> = entries.iter().filter_map(with_data).collect();
        prop_assert_eq!(nr_holes + expected.len() as u64, entries.len() as u64);
        prop_assert_eq!(nr_contents, expected.len() * PAGE_SIZE);
        prop_assert_eq!(pages, expected);
    }
}
