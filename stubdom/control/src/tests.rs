use super::*;

fn feed(deframer: &mut Deframer, bytes: &[u8]) {
    deframer.spare()[..bytes.len()].copy_from_slice(bytes);
    deframer.advance(bytes.len());
}

#[test]
fn a_message_survives_every_cut_of_its_bytes() {
    let message = FromStub::Blob { kind: BlobKind::HvmContext, total: 9, offset: 4, bytes: b"hello" };
    let mut out = [0; MAX_MESSAGE_BYTES + 2];
    let bytes = encode(&message, &mut out).unwrap();
    for cut in 0..bytes.len() {
        let mut deframer = Deframer::new();
        feed(&mut deframer, &bytes[..cut]);
        assert_eq!(deframer.message::<FromStub<'_>>(), Ok(None));
        feed(&mut deframer, &bytes[cut..]);
        assert_eq!(deframer.message(), Ok(Some(message)));
        deframer.consume();
        assert_eq!(deframer.message::<FromStub<'_>>(), Ok(None));
    }
}

#[test]
fn two_messages_in_one_read_come_out_in_order() {
    let mut deframer = Deframer::new();
    let mut out = [0; MAX_MESSAGE_BYTES + 2];
    feed(&mut deframer, encode(&ToStub::Hello { version: VERSION }, &mut out).unwrap());
    feed(&mut deframer, encode(&ToStub::Shutdown, &mut out).unwrap());
    assert_eq!(deframer.message(), Ok(Some(ToStub::Hello { version: VERSION })));
    deframer.consume();
    assert_eq!(deframer.message(), Ok(Some(ToStub::Shutdown)));
}

#[test]
fn a_length_beyond_the_bound_is_refused_before_its_bytes_come() {
    let mut deframer = Deframer::new();
    feed(&mut deframer, &[0xff, 0xff]);
    assert_eq!(deframer.message::<ToStub>(), Err(FrameError::TooLong { got: 0xffff }));
}

#[test]
fn bytes_left_over_inside_a_frame_are_malformed() {
    let mut deframer = Deframer::new();
    let mut out = [0; MAX_MESSAGE_BYTES + 2];
    let len = encode(&ToStub::Shutdown, &mut out).unwrap().len();
    out[0] += 1;
    feed(&mut deframer, &out[..len + 1]);
    assert_eq!(deframer.message::<ToStub>(), Err(FrameError::Malformed { len: len - 1 }));
}

#[test]
fn the_longest_blob_piece_fits_a_message() {
    let mut out = [0; MAX_MESSAGE_BYTES + 2];
    let bytes = [0xa5; BLOB_CHUNK_BYTES];
    let message =
        FromStub::Blob { kind: BlobKind::HvmContext, total: u32::MAX, offset: u32::MAX, bytes: &bytes };
    assert!(encode(&message, &mut out).is_ok());
}

#[test]
fn counts_of_hypercalls_are_nine_numbers_on_the_wire() {
    let counts = Hypercalls { populate_physmap: 1, mmu_update: 200, other: 3, ..Hypercalls::default() };
    let mut out = [0; 32];
    let bytes = postcard::to_slice(&counts, &mut out).unwrap();
    assert_eq!(bytes, [1, 0, 0, 0xc8, 0x01, 0, 0, 0, 0, 3]);
}
