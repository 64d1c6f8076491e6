//! Writes the seeds: sound streams, small ones, for both targets.
//!
//! The targets take their other inputs from the first bytes (`arbitrary`): the cut, then whether a call fails.

use migration::sample::{Entry, Writer};
use migration::stream::RecordType;
use std::path::Path;
use xen_abi::types::Gfn;

fn main() -> std::io::Result<()> {
    for (target, inputs) in [("stream", &[0xff, 0xff][..]), ("restore", &[0xff, 0xff, 0])] {
        let folder = Path::new("corpus").join(target);
        std::fs::create_dir_all(&folder)?;
        for (name, writer) in streams() {
            std::fs::write(folder.join(name), [inputs, &writer.bytes].concat())?;
        }
    }
    Ok(())
}

fn streams() -> [(&'static str, Writer); 4] {
    let gfn = Gfn::new;
    let mut full = Writer::begin();
    full.pages(&[Entry::Data(gfn(1), 0), Entry::Hole(gfn(2)), Entry::Alloc(gfn(3)), Entry::Broken(gfn(4))]);
    full.record(RecordType::new(0x8000_0042), b"optional");
    full.record(RecordType::VERIFY, &[]);
    full.pages(&[Entry::Data(gfn(1), 1)]);
    full.finish(&[(1, 1), (17, 3)]);
    let mut old = Writer::new(2);
    old.pages(&[Entry::Data(gfn(0x200), 0)]);
    old.finish(&[(1, 0x200)]);
    let mut without_contents = Writer::begin();
    without_contents.pages(&(0..1500).map(|raw| Entry::Alloc(gfn(raw))).collect::<Vec<_>>());
    without_contents.pages(&(300..900).map(|raw| Entry::Hole(gfn(raw))).collect::<Vec<_>>());
    without_contents.pages(&(800..2000).map(|raw| Entry::Alloc(gfn(raw))).collect::<Vec<_>>());
    without_contents.finish(&[]);
    let mut empty = Writer::begin();
    empty.finish(&[]);
    [("full", full), ("version-2", old), ("without-contents", without_contents), ("empty", empty)]
}
