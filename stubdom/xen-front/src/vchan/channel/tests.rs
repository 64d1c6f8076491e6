#![allow(clippy::cast_possible_truncation, reason = "the values of these tests are small")]

use super::*;
use crate::shared_mem::testing::{pages, view};
use std::vec::Vec;
use xen_abi::types::PAGE_SIZE;

/// libxenvchan's client, as far as the shared memory goes.
struct TestClient {
    page: SharedMem,
    left: SharedMem,
    right: SharedMem,
}

impl TestClient {
    fn connect(&mut self) {
        self.page.write(CLI_LIVE, 1_u8);
        self.page.write(SRV_NOTIFY, VCHAN_NOTIFY_WRITE);
    }

    fn close(&mut self) {
        self.page.write(CLI_LIVE, 0_u8);
    }

    fn write(&mut self, bytes: &[u8]) {
        let prod: u32 = self.page.read(LEFT + PROD);
        for (i, byte) in bytes.iter().enumerate() {
            self.left.write((prod as usize + i) % self.left.len(), *byte);
        }
        self.page.write(LEFT + PROD, prod.wrapping_add(bytes.len() as u32));
    }

    fn read(&mut self, nr_bytes: usize) -> Vec<u8> {
        let cons: u32 = self.page.read(RIGHT + CONS);
        let bytes = (0..nr_bytes).map(|i| self.right.read((cons as usize + i) % self.right.len())).collect();
        self.page.write(RIGHT + CONS, cons.wrapping_add(nr_bytes as u32));
        bytes
    }

    fn read_all(&mut self) -> Vec<u8> {
        let prod: u32 = self.page.read(RIGHT + PROD);
        let cons: u32 = self.page.read(RIGHT + CONS);
        self.read(prod.wrapping_sub(cons) as usize)
    }
}

fn channel() -> (Channel, TestClient) {
    let (page, left, right) = (pages(1), pages(1), pages(2));
    let mut channel = Channel::new(view(page, 1), view(left, 1), view(right, 2));
    channel.open([11, 22, 33].map(Gref::new).into_iter());
    (channel, TestClient { page: view(page, 1), left: view(left, 1), right: view(right, 2) })
}

fn read(channel: &mut Channel, room: usize) -> Vec<u8> {
    let mut out = std::vec![0; room];
    let (len, _) = channel.read(&mut out).expect("sane indices");
    out.truncate(len);
    out
}

#[test]
fn the_page_says_what_libxenvchan_looks_for() {
    let (_, client) = channel();
    let mut head = [0; 36];
    client.page.copy_out(0, &mut head);
    let mut expected = [0; 36];
    expected[16..24].copy_from_slice(&[12, 0, 13, 0, 2, 1, VCHAN_NOTIFY_WRITE, 0]);
    expected[24..36].copy_from_slice(&[11, 0, 0, 0, 22, 0, 0, 0, 33, 0, 0, 0]);
    assert_eq!(head, expected);
}

#[test]
fn bytes_go_both_ways_and_round_the_rings() {
    let (mut channel, mut client) = channel();
    client.connect();
    assert_eq!(channel.client(), Client::Connected);
    let text: Vec<u8> = (0..1500_u32).map(|i| i as u8).collect();
    for _ in 0..50 {
        client.write(&text);
        assert_eq!(read(&mut channel, 4000), text);
        assert_eq!(channel.write(&text).map(|(len, _)| len), Ok(text.len()));
        assert_eq!(client.read_all(), text);
    }
}

#[test]
fn a_write_stops_at_the_end_of_the_room() {
    let (mut channel, mut client) = channel();
    client.connect();
    let bytes = std::vec![7; 2 * PAGE_SIZE + 1];
    assert_eq!(channel.write(&bytes).map(|(len, _)| len), Ok(2 * PAGE_SIZE));
    assert_ne!(client.page.read::<u8>(CLI_NOTIFY) & VCHAN_NOTIFY_READ, 0);
    assert_eq!(channel.write(&bytes).map(|(len, _)| len), Ok(0));
    client.read(10);
    assert_eq!(channel.write(&bytes).map(|(len, _)| len), Ok(10));
}

#[test]
fn the_client_is_notified_exactly_when_it_asked() {
    let (mut channel, mut client) = channel();
    client.connect();
    assert_eq!(channel.write(b"x"), Ok((1, Notify::Wanted)));
    assert_eq!(channel.write(b"y"), Ok((1, Notify::NotWanted)));
    client.write(b"z");
    client.page.fetch_or(SRV_NOTIFY, VCHAN_NOTIFY_READ);
    let mut out = [0; 8];
    assert_eq!(channel.read(&mut out), Ok((1, Notify::Wanted)));
    assert_eq!(channel.read(&mut out), Ok((0, Notify::NotWanted)));
}

#[test]
fn a_client_that_waits_for_room_hears_of_half_the_ring_or_of_its_emptiness() {
    let (mut channel, mut client) = channel();
    client.connect();
    client.page.fetch_or(SRV_NOTIFY, VCHAN_NOTIFY_READ);
    client.write(&[7; PAGE_SIZE]);
    let mut out = [0; PAGE_SIZE / 2];
    assert_eq!(channel.read(&mut out[..2000]), Ok((2000, Notify::NotWanted)));
    assert_eq!(channel.read(&mut out[..48]), Ok((48, Notify::Wanted)));
    assert_eq!(channel.read(&mut out), Ok((2048, Notify::NotWanted)), "it has not asked again");
    client.page.fetch_or(SRV_NOTIFY, VCHAN_NOTIFY_READ);
    client.write(&[7; 20]);
    assert_eq!(channel.read(&mut out[..19]), Ok((19, Notify::NotWanted)));
    assert_eq!(channel.read(&mut out), Ok((1, Notify::Wanted)));
}

#[test]
fn reading_less_than_wanted_asks_for_an_event_at_the_next_write() {
    let (mut channel, mut client) = channel();
    client.connect();
    client.page.fetch_and(CLI_NOTIFY, 0);
    client.write(b"abc");
    assert_eq!(read(&mut channel, 2), b"ab");
    assert_eq!(client.page.read::<u8>(CLI_NOTIFY), 0);
    assert_eq!(read(&mut channel, 2), b"c");
    assert_eq!(client.page.read::<u8>(CLI_NOTIFY), VCHAN_NOTIFY_WRITE);
}

#[test]
fn a_nonsense_index_is_an_error_and_moves_nothing() {
    let (mut channel, mut client) = channel();
    client.connect();
    for theirs in [PAGE_SIZE as u32 + 1, 1 << 31, u32::MAX] {
        client.page.write(LEFT + PROD, theirs);
        let error = VchanError { theirs, ours: 0, ring_bytes: PAGE_SIZE as u32 };
        assert_eq!(channel.read(&mut [0; 8]), Err(error));
    }
    for theirs in [1, 1 << 31, u32::MAX - 2 * PAGE_SIZE as u32] {
        client.page.write(RIGHT + CONS, theirs);
        let error = VchanError { theirs, ours: 0, ring_bytes: 2 * PAGE_SIZE as u32 };
        assert_eq!(channel.write(b"hello"), Err(error));
    }
}

#[test]
fn scribbling_over_the_servers_own_indices_changes_nothing() {
    let (mut channel, mut client) = channel();
    client.connect();
    client.write(b"abcdef");
    client.page.write(LEFT + CONS, 77_u32);
    client.page.write(LEFT_ORDER, 31_u16);
    assert_eq!(read(&mut channel, 3), b"abc");
    assert_eq!(client.page.read::<u32>(LEFT + CONS), 3);
    client.page.write(RIGHT + PROD, 99_u32);
    assert_eq!(channel.write(b"hi").map(|(len, _)| len), Ok(2));
    assert_eq!(client.read_all(), b"hi");
}

#[test]
fn what_a_client_wrote_before_it_closed_can_still_be_read_and_another_can_follow() {
    let (mut channel, mut client) = channel();
    client.connect();
    client.write(b"bye");
    client.close();
    assert_eq!(channel.client(), Client::Gone);
    assert_eq!(read(&mut channel, 8), b"bye");
    channel.open([11, 22, 33].map(Gref::new).into_iter());
    assert_eq!(channel.client(), Client::Awaited);
    client.connect();
    client.write(b"hello again");
    assert_eq!(read(&mut channel, 100), b"hello again");
}

#[test]
fn what_is_given_in_place_goes_round_the_ring() {
    let (mut channel, mut client) = channel();
    client.connect();
    let bytes: Vec<u8> = (0..6000).map(|i| (i % 251) as u8).collect();
    for _ in 0..5 {
        let mut done = 0;
        let given = channel.give(bytes.len(), |ring, offset, len| {
            ring.copy_in(offset, &bytes[done..done + len]);
            done += len;
        });
        assert_eq!(given.expect("sane indices").0, 6000);
        assert_eq!(client.read_all(), bytes);
    }
}

#[test]
fn a_writer_without_room_is_told_of_room() {
    let (mut channel, mut client) = channel();
    client.connect();
    assert_eq!(channel.room(1), Ok(2 * PAGE_SIZE));
    assert_eq!(client.page.read::<u8>(CLI_NOTIFY) & VCHAN_NOTIFY_READ, 0);
    let filled = channel.give(usize::MAX, |_, _, _| {}).expect("sane indices");
    assert_eq!((filled.0, channel.room(1)), (2 * PAGE_SIZE, Ok(0)));
    assert_eq!(client.page.read::<u8>(CLI_NOTIFY) & VCHAN_NOTIFY_READ, VCHAN_NOTIFY_READ);
    client.read(5);
    assert_eq!(channel.room(1), Ok(5));
}

#[test]
fn an_index_of_the_reader_that_makes_no_sense_ends_it() {
    let (mut channel, mut client) = channel();
    client.connect();
    client.page.write(RIGHT + CONS, 1_u32);
    let error = VchanError { theirs: 1, ours: 0, ring_bytes: 2 * PAGE_SIZE as u32 };
    assert_eq!(channel.room(1), Err(error));
    assert_eq!(channel.give(1, |_, _, _| panic!("nothing is written")), Err(error));
}
