//! Whatever a stream says, the target owns no frame without a gfn, nothing stays mapped, and nobody panics.
#![no_main]

use libfuzzer_sys::fuzz_target;
use migration::engine::{Config, Service};
use migration::fake::{FakeDom0, FakeXen};
use migration::restore::Restore;
use xen_abi::types::{Domid, Port};

const HOST_FRAMES: u64 = 4096;
const MAX_PAGES: u64 = 3000;

fuzz_target!(|input: (u16, Option<u8>, &[u8])| {
    let (cut, fail_call, bytes) = input;
    let mut xen = FakeXen::new(HOST_FRAMES, MAX_PAGES);
    xen.fail_call = fail_call.map(usize::from);
    let mut dom0 = FakeDom0::default();
    let service = Service { port: Port::new(1), domid: Domid::DOM0 };
    let config = Config { max_pages: MAX_PAGES, map_bytes: 1 << 20, store: service, console: service };
    let Ok(mut restore) = Restore::new(config, &mut xen) else { return };
    for piece in bytes.chunks(usize::from(cut).max(1)) {
        if restore.push(piece, &mut xen, &mut dom0).is_err() {
            break;
        }
    }
    let outcome = restore.close(&mut xen);
    assert_eq!((xen.nr_orphans(), xen.nr_mapped()), (0, 0));
    assert_eq!(xen.nr_free() + xen.nr_owned(), HOST_FRAMES);
    if let Ok(report) = outcome {
        assert_eq!((report.target.nr_owned, report.target.nr_expected), (xen.nr_owned(), xen.nr_owned()));
    }
});
