#![allow(clippy::cast_possible_truncation, reason = "the values of these tests are small")]

use super::*;
use crate::grants::{Access, Lease};
use crate::ring::RingError;
use crate::ring::testing::{BackRing, pair};
use crate::shared_mem::SharedMem;
use crate::shared_mem::testing::{pages, view};
use std::vec::Vec;
use xen_abi::netif::{ExtraInfo, XEN_NETIF_EXTRA_TYPE_GSO};
use xen_abi::types::{Gref, PAGE_SIZE};

const FIRST_GREF: u32 = 8;

/// A back end that copies into granted pages as netback does, and only into those.
struct TestBack {
    ring: BackRing<RxRequest, RxResponse>,
    memory: SharedMem,
    entries: SharedMem,
}

impl TestBack {
    fn entry(&self, slot: usize) -> u16 {
        self.entries.read(slot * 8)
    }

    /// Puts data into the next buffer, as one slot.
    fn data(&mut self, bytes: &[u8], flags: RxFlags) {
        let request = self.ring.pop().expect("a buffer");
        let slot = usize::from(request.id);
        assert_eq!(request.gref, FIRST_GREF + slot as u32);
        assert_eq!(self.entry(slot), 1, "the page is not ours to write");
        self.memory.copy_in(slot * PAGE_SIZE, bytes);
        let response =
            RxResponse { id: request.id, offset: 0, flags: flags.bits(), status: bytes.len() as i16 };
        self.ring.push(response);
    }

    /// Sends an aggregate as netback does: full pages, with an extra after the first.
    fn aggregate(&mut self, bytes: &[u8]) {
        let mut chunks = bytes.chunks(PAGE_SIZE).peekable();
        let first = chunks.next().expect("data");
        let flags = RxFlags::DATA_VALIDATED | RxFlags::CSUM_BLANK | RxFlags::EXTRA_INFO | RxFlags::MORE_DATA;
        self.data(first, flags);
        self.ring.pop().expect("a buffer");
        let extra = ExtraInfo { kind: XEN_NETIF_EXTRA_TYPE_GSO, flags: 0, u: [1448, 1, 0] };
        self.ring.push(zerocopy::transmute!(extra));
        while let Some(chunk) = chunks.next() {
            let more = if chunks.peek().is_some() { RxFlags::MORE_DATA } else { RxFlags::empty() };
            self.data(chunk, more);
        }
    }
}

fn queue() -> (RxQueue, TestBack) {
    let (front, ring) = pair();
    let (base, table) = (pages(NR_RX_PAGES), pages(1));
    let leases = (0..NR_RX_SLOTS)
        .map(|i| {
            // SAFETY: the entry lies in the table's page.
            #[allow(unsafe_code, reason = "a test's own grant table")]
            let at = unsafe { table.add(i * 8) };
            // SAFETY: the page is leaked and touched as SharedMem only.
            #[allow(unsafe_code, reason = "a test's own grant table")]
            let entry = unsafe { SharedMem::new(at, 8) };
            Lease::new(Gref::new(FIRST_GREF + i as u32), entry, Access::ReadWrite)
        })
        .collect();
    // SAFETY: fresh pages; the test's back end writes them only while they are lent.
    #[allow(unsafe_code, reason = "a test's own pages")]
    let buffers = unsafe { Buffers::new(base, NR_RX_PAGES, leases) };
    let mut queue = RxQueue::new(front, buffers);
    assert_eq!(queue.refill(), Notify::Wanted);
    (queue, TestBack { ring, memory: view(base, NR_RX_PAGES), entries: view(table, 1) })
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251 + seed) as u8).collect()
}

#[test]
fn aggregates_come_in_whole_round_and_round_the_ring() {
    let (mut queue, mut back) = queue();
    for round in 0..100 {
        let sent = bytes(65_589 - round * 13, round);
        back.aggregate(&sent);
        let frame = queue.frame().expect("no error").expect("a frame");
        assert!(frame.bytes == sent, "round {round}");
        assert!(frame.checksum_good);
        let _ = queue.refill();
    }
    assert_eq!(queue.counters.nr_frames, 100);
}

#[test]
fn small_frames_come_in_one_by_one() {
    let (mut queue, mut back) = queue();
    back.data(b"first", RxFlags::DATA_VALIDATED);
    back.data(b"second", RxFlags::empty());
    let first = queue.frame().expect("no error").expect("a frame");
    assert_eq!((&*first.bytes, first.checksum_good), (&b"first"[..], true));
    let second = queue.frame().expect("no error").expect("a frame");
    assert_eq!((&*second.bytes, second.checksum_good), (&b"second"[..], false));
    assert!(queue.frame().expect("no error").is_none());
}

#[test]
fn a_frame_that_is_not_all_there_yet_waits() {
    let (mut queue, mut back) = queue();
    back.data(&bytes(PAGE_SIZE, 1), RxFlags::MORE_DATA);
    assert!(queue.frame().expect("no error").is_none());
    assert_eq!(queue.request_event(), Ok(false));
    back.data(b"rest", RxFlags::empty());
    assert_eq!(queue.request_event(), Ok(true));
    let frame = queue.frame().expect("no error").expect("a frame");
    assert_eq!(frame.bytes.len(), PAGE_SIZE + 4);
}

#[test]
fn the_back_end_loses_a_page_before_its_bytes_are_looked_at() {
    let (mut queue, mut back) = queue();
    assert_eq!(back.entry(0), 1);
    back.data(b"frame", RxFlags::empty());
    queue.frame().expect("no error").expect("a frame");
    assert_eq!((back.entry(0), back.entry(1)), (0, 1));
    let _ = queue.refill();
    assert_eq!(back.entry(0), 1);
}

#[test]
fn a_page_that_the_back_end_holds_on_to_is_an_error() {
    let (mut queue, mut back) = queue();
    back.data(b"frame", RxFlags::empty());
    back.entries.write(0, 1_u16 | 16);
    assert_eq!(queue.frame().map(|_| ()), Err(NetError::StillInUse { slot: 0 }));
    let mut leases = queue.into_leases();
    assert!(!leases[0].take_back());
    back.entries.write(0, 1_u16);
    assert!(leases.iter_mut().all(Lease::take_back));
    assert!((0..NR_RX_SLOTS).all(|slot| back.entry(slot) == 0));
}

#[test]
fn a_nonsense_index_ends_the_connection() {
    let (mut queue, mut back) = queue();
    back.ring.claim(257);
    let error = RingError { rsp_prod: 257, rsp_cons: 0, req_prod: 256 };
    assert_eq!(queue.frame().map(|_| ()), Err(NetError::Ring(error)));
}

#[test]
fn any_garbage_in_the_ring_is_a_frame_or_an_error_but_no_panic() {
    let mut seed = 1_u64;
    for _ in 0..200 {
        let (mut queue, mut back) = queue();
        for slot in 0..NR_RX_SLOTS {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let noise = (seed >> 16).to_ne_bytes();
            let mut response: RxResponse = zerocopy::transmute!(noise);
            // Mostly plausible, so that the noise gets past the first check.
            response.id = if seed.is_multiple_of(97) { response.id } else { slot as u16 };
            response.offset &= 0x3ff;
            response.status &= 0x7ff;
            response.flags &= 0xf;
            back.ring.pop();
            back.ring.push(response);
        }
        let mut nr_bytes = 0;
        while let Ok(Some(frame)) = queue.frame() {
            nr_bytes += frame.bytes.len();
        }
        assert!(nr_bytes <= NR_RX_SLOTS * PAGE_SIZE);
    }
}
