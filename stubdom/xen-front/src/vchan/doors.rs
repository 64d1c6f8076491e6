//! A channel against a peer that writes anything.
#![allow(unsafe_code, reason = "opens two views of the same pages")]

use super::channel::Channel;
use crate::doors::Shared;
use crate::shared_mem::SharedMem;
use alloc::vec;
use xen_abi::types::{Gref, PAGE_SIZE};

/// Drives a channel: each four bytes are a step.
pub(crate) fn drive(input: &[u8]) {
    let (page, left, right) = (Shared::new(PAGE_SIZE), Shared::new(PAGE_SIZE), Shared::new(2 * PAGE_SIZE));
    let view = |shared: &Shared| -> SharedMem {
        // SAFETY: the views are this function's locals, declared behind `page`, `left` and `right`: they go first.
        unsafe { shared.view() }
    };
    let mut peer = view(&page);
    let mut channel = Channel::new(view(&page), view(&left), view(&right));
    channel.open([11, 22, 33].map(Gref::new).into_iter());
    let mut room = vec![0; 3 * PAGE_SIZE];
    // Bytes that are used up are used again, turned, so that few make many steps.
    let steps = (0..64_u32).flat_map(|turn| input.as_chunks::<4>().0.iter().map(move |step| (turn, step)));
    for (turn, [kind, at, low, high]) in steps.take(256) {
        let value = u32::from_le_bytes([*low, *high, 0, 0]).rotate_left(turn);
        let len = value as usize % (room.len() + 1);
        match kind.wrapping_add(turn.to_le_bytes()[0]) % 8 {
            // The indices and the bytes between them, and the rest of the page.
            0 | 1 => peer.write(usize::from(at % 8) * 4, value),
            2 => peer.write(usize::from(*at) * 4, value),
            3 => drop(channel.read(&mut room[..len])),
            4 => drop(channel.write(&room[..len])),
            5 => drop(
                channel
                    .take(len, |ring, offset, len| assert!(offset + len <= ring.len(), "outside the ring")),
            ),
            6 => drop((channel.is_readable(), channel.client())),
            _ => channel.close(),
        }
    }
}
