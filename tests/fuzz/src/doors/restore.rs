//! A whole restore on a fake Xen that fails, stops short and fragments: stream, session, planner, engine.

use crate::choices::Choices;
use crate::streams;
use migration::engine::{Config, Service};
use migration::fake::{FakeDom0, FakeXen};
use migration::restore::Restore;
use migration::xen::Xen;
use xen_abi::types::{Domid, Gfn, Order, Port};

const HOST_FRAMES: u64 = 4096;

/// Restores a drawn stream.
///
/// # Panics
/// The target ever owns more than it may, a frame is left without a gfn or mapped, bytes are neither taken nor refused, or
/// the report is not what Xen says.
pub fn restore(input: &[u8]) {
    let mut choices = Choices::new(input);
    let stream = streams::draw(&mut choices);
    let mut xen = host(&mut choices);
    let (max_pages, nr_frames) = (xen.max_pages, xen.nr_free());
    let mut dom0 = FakeDom0 { refuses_blobs: choices.one_in(32), ..FakeDom0::default() };
    dom0.fail_call = choices.one_in(16).then(|| choices.index(3));
    let service = Service { port: Port::new(1), domid: Domid::DOM0 };
    let map_bytes = choices.pick(&[1 << 20, 1 << 20, 1 << 13, 0]).unwrap_or(0);
    let config = Config { max_pages, map_bytes, store: service, console: service };
    let Ok(mut restore) = Restore::new(config, &mut xen) else { return };
    feed(&stream, &mut restore, &mut xen, &mut dom0, &mut choices);
    let outcome = restore.close(&mut xen);
    assert_eq!((xen.nr_orphans(), xen.nr_mapped()), (0, 0), "frames without a gfn, and mapped ones");
    assert_eq!(xen.nr_free() + xen.nr_owned(), nr_frames, "frames of the host");
    if let Ok(report) = outcome {
        assert_eq!((report.target.nr_owned, report.target.nr_expected), (xen.nr_owned(), xen.nr_owned()));
    }
}

fn host(choices: &mut Choices<'_>) -> FakeXen {
    let mut xen = FakeXen::new(HOST_FRAMES, choices.pick(&[3000, 3000, 1024, 700, 513, 1]).unwrap_or(3000));
    if choices.one_in(4) {
        xen.max_order = choices.pick(&[Order::PAGE_4K, Order::PAGE_1G]).unwrap_or(Order::PAGE_4K);
    }
    if choices.one_in(4) {
        xen.max_extents = choices.index(40);
    }
    if choices.one_in(4) {
        xen.fragment(Order::PAGE_2M, choices.index(9));
    }
    xen.fail_call = choices.one_in(2).then(|| choices.index(60));
    if choices.one_in(8) {
        xen.fail_name = choices.pick(&["map", "populate", "decrease", "set_param", "current_reservation"]);
    }
    if choices.one_in(8) {
        xen.unmappable = (0..4).map(|_| Gfn::new(choices.below(3000))).collect();
    }
    xen
}

/// Hands the bytes over in pieces, contents unseen or not, until they are taken or refused.
fn feed(
    stream: &[u8],
    restore: &mut Restore,
    xen: &mut FakeXen,
    dom0: &mut FakeDom0,
    choices: &mut Choices<'_>,
) {
    let mut rest = stream;
    while !rest.is_empty() && restore.report().is_none() {
        let len = rest.len().min(1 + choices.index(20_000));
        let nr_unseen = u32::try_from(len).unwrap_or(u32::MAX).min(restore.nr_unseen());
        let nr_taken = if nr_unseen > 0 && choices.one_in(2) {
            restore.fill(nr_unseen, |slot, offset| xen.fill(slot, offset, &rest[..nr_unseen as usize]))
                as usize
        } else {
            let Ok(nr_taken) = restore.push(&rest[..len], xen, dom0) else { return };
            nr_taken
        };
        assert!(nr_taken > 0, "bytes that are neither taken nor refused, at {}", restore.place());
        assert!(xen.nr_owned() <= xen.max_pages, "the target owns more than it may");
        rest = &rest[nr_taken..];
    }
}
