//! The front end's half of Xen's standard shared ring (`xen/include/public/io/ring.h`).
//!
//! **Takes** a granted page and two message types. **Gives** slots for requests, copies of responses, and the answer
//! to "must the peer be notified?". **Never** believes the peer's producer index before it is checked against what was
//! asked for: more responses than requests is [`RingError`], after which the connection is over.
//!
//! One request gets one response, and the ring never holds more requests than it has slots. Indices run freely through
//! all of `u32`; a slot is an index modulo the size, a power of two.
#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]

use crate::shared_mem::SharedMem;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::{Ordering, fence};
use xen_abi::sring::{REQ_EVENT, REQ_PROD, RING, RSP_EVENT, RSP_PROD, nr_slots, slot_bytes};
use xen_abi::types::PAGE_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What is wrong with a ring: the peer claims responses to requests that nobody made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingError {
    /// The peer's producer index.
    pub rsp_prod: u32,
    /// The responses taken so far.
    pub rsp_cons: u32,
    /// The requests made so far.
    pub req_prod: u32,
}

impl core::fmt::Display for RingError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { rsp_prod, rsp_cons, req_prod } = self;
        write!(f, "ring: response index {rsp_prod:#x} of the peer, expected {rsp_cons:#x} to {req_prod:#x}")
    }
}

impl core::error::Error for RingError {}

/// Whether the peer sleeps and must be woken by its event channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a peer that is not notified may sleep forever"]
pub enum Notify {
    /// Send the event.
    Wanted,
    /// The peer will look by itself.
    NotWanted,
}

/// The front end of a ring of one page.
#[derive(Debug)]
pub struct FrontRing<Req, Rsp> {
    shared: SharedMem,
    indices: Indices,
    messages: PhantomData<(Req, Rsp)>,
}

impl<Req: IntoBytes + Immutable, Rsp: FromBytes> FrontRing<Req, Rsp> {
    /// How many slots the ring has (`__RING_SIZE`).
    pub const NR_SLOTS: u32 = nr_slots::<Req, Rsp>();

    /// A slot holds a request or a response (`union NAME_sring_entry`).
    const SLOT_BYTES: usize = slot_bytes::<Req, Rsp>();

    /// Initialises the ring in a page (`XEN_FRONT_RING_INIT`).
    ///
    /// # Safety
    /// As [`SharedMem::new`], for the [`PAGE_SIZE`] bytes from `page`, which is aligned to a page.
    #[allow(unsafe_code, reason = "passes the obligations of SharedMem::new on to the caller")]
    pub unsafe fn new(page: NonNull<u8>) -> Self {
        // SAFETY: the caller keeps the obligations of SharedMem::new for this page.
        let mut shared = unsafe { SharedMem::new(page, PAGE_SIZE) };
        shared.zero();
        shared.write(REQ_EVENT, 1_u32);
        shared.write(RSP_EVENT, 1_u32);
        Self { shared, indices: Indices::new(Self::NR_SLOTS), messages: PhantomData }
    }

    /// Returns how many requests may still be made (`RING_FREE_REQUESTS`).
    pub const fn nr_free(&self) -> u32 {
        self.indices.nr_free()
    }

    /// Returns the slot that the next request takes.
    pub const fn next_slot(&self) -> u32 {
        self.indices.slot(self.indices.req_prod)
    }

    /// Writes a request that the peer sees at the next [`FrontRing::publish`]; false when the ring is full.
    #[must_use]
    pub fn push(&mut self, request: Req) -> bool {
        let full = self.nr_free() == 0;
        if !full {
            self.shared.write(self.offset(self.next_slot()), request);
            self.indices.req_prod = self.indices.req_prod.wrapping_add(1);
        }
        !full
    }

    /// Shows the peer every request pushed so far (`RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`).
    pub fn publish(&mut self) -> Notify {
        let (old, new) = (self.indices.published, self.indices.req_prod);
        fence(Ordering::Release); // the peer sees the requests before the index that covers them
        self.shared.write(REQ_PROD, new);
        self.indices.published = new;
        fence(Ordering::SeqCst); // the index is out before we ask whether the peer still looks
        notify(old, new, self.shared.read(REQ_EVENT))
    }

    /// Takes the next response and the slot it stands in, or `None` when there is none yet.
    ///
    /// # Errors
    /// The peer's index is nonsense; nothing was taken.
    pub fn pop(&mut self) -> Result<Option<(u32, Rsp)>, RingError> {
        if self.nr_responses()? == 0 {
            return Ok(None);
        }
        let slot = self.indices.slot(self.indices.rsp_cons);
        let response = self.shared.read(self.offset(slot));
        self.indices.rsp_cons = self.indices.rsp_cons.wrapping_add(1);
        Ok(Some((slot, response)))
    }

    /// Asks for an event at the next response and tells whether one is there already
    /// (`RING_FINAL_CHECK_FOR_RESPONSES`): if so, look again instead of sleeping.
    ///
    /// # Errors
    /// The peer's index is nonsense.
    pub fn request_event(&mut self) -> Result<bool, RingError> {
        self.shared.write(RSP_EVENT, self.indices.rsp_cons.wrapping_add(1));
        fence(Ordering::SeqCst); // the wish is out before the last look
        Ok(self.nr_responses()? != 0)
    }

    /// Returns how many responses wait to be taken.
    ///
    /// # Errors
    /// The peer's index is nonsense.
    pub fn nr_responses(&self) -> Result<u32, RingError> {
        let rsp_prod = self.shared.read(RSP_PROD);
        fence(Ordering::Acquire); // the responses are read after the index that covers them
        self.indices.nr_responses(rsp_prod)
    }

    const fn offset(&self, slot: u32) -> usize {
        RING.wrapping_add((slot as usize).wrapping_mul(Self::SLOT_BYTES)) // below a page: `slot` is below NR_SLOTS
    }
}

/// The front end's private indices; all arithmetic of the ring is here.
#[derive(Clone, Copy, Debug)]
struct Indices {
    /// The next request to write.
    req_prod: u32,
    /// `req_prod` as the peer sees it.
    published: u32,
    /// The next response to take.
    rsp_cons: u32,
    /// A power of two.
    nr_slots: u32,
}

impl Indices {
    const fn new(nr_slots: u32) -> Self {
        Self { req_prod: 0, published: 0, rsp_cons: 0, nr_slots }
    }

    const fn slot(&self, index: u32) -> u32 {
        index & self.nr_slots.wrapping_sub(1)
    }

    const fn nr_free(&self) -> u32 {
        // The two never drift apart by more than `nr_slots`: `push` asks here first.
        self.nr_slots.wrapping_sub(self.req_prod.wrapping_sub(self.rsp_cons))
    }

    /// Checks the peer's producer index against the requests that it can have seen.
    const fn nr_responses(&self, rsp_prod: u32) -> Result<u32, RingError> {
        let nr_responses = rsp_prod.wrapping_sub(self.rsp_cons);
        if nr_responses > self.published.wrapping_sub(self.rsp_cons) {
            return Err(RingError { rsp_prod, rsp_cons: self.rsp_cons, req_prod: self.published });
        }
        Ok(nr_responses)
    }
}

/// The peer wants an event if the index it waits for lies in what was just published, `old + 1 ..= new`.
const fn notify(old: u32, new: u32, event: u32) -> Notify {
    if new.wrapping_sub(event) < new.wrapping_sub(old) { Notify::Wanted } else { Notify::NotWanted }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
