//! A back end for tests: the other half of the ring, as wilful as a test wants it.

use super::FrontRing;
use crate::shared_mem::SharedMem;
use crate::shared_mem::testing::{pages, view};
use core::marker::PhantomData;
use xen_abi::sring::{REQ_EVENT, REQ_PROD, RING, RSP_EVENT, RSP_PROD};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The back end of a ring.
pub(crate) struct BackRing<Req, Rsp> {
    pub(crate) shared: SharedMem,
    pub(crate) req_cons: u32,
    pub(crate) rsp_prod: u32,
    messages: PhantomData<(Req, Rsp)>,
}

/// Makes the two ends of a ring.
pub(crate) fn pair<Req, Rsp>() -> (FrontRing<Req, Rsp>, BackRing<Req, Rsp>)
where
    Req: IntoBytes + FromBytes + Immutable,
    Rsp: IntoBytes + FromBytes + Immutable,
{
    let page = pages(1);
    // SAFETY: `pages` leaked the page, so it stays mapped; the only other user is the SharedMem of the back end.
    #[allow(unsafe_code, reason = "a test's own page")]
    let front = unsafe { FrontRing::new(page) };
    (front, BackRing { shared: view(page, 1), req_cons: 0, rsp_prod: 0, messages: PhantomData })
}

impl<Req, Rsp> BackRing<Req, Rsp>
where
    Req: IntoBytes + FromBytes + Immutable,
    Rsp: IntoBytes + FromBytes + Immutable,
{
    /// Takes the next request, if any.
    pub(crate) fn pop(&mut self) -> Option<Req> {
        let prod: u32 = self.shared.read(REQ_PROD);
        (prod != self.req_cons).then(|| {
            let offset = self.offset(self.req_cons);
            self.req_cons = self.req_cons.wrapping_add(1);
            self.shared.read(offset)
        })
    }

    /// Writes a response and shows it; tells whether the front end asked for an event.
    pub(crate) fn push(&mut self, response: Rsp) -> bool {
        let offset = self.offset(self.rsp_prod);
        self.shared.write(offset, response);
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
        self.shared.write(RSP_PROD, self.rsp_prod);
        self.shared.read::<u32>(RSP_EVENT) == self.rsp_prod
    }

    /// Claims any response index.
    pub(crate) fn claim(&mut self, rsp_prod: u32) {
        self.shared.write(RSP_PROD, rsp_prod);
    }

    /// Asks for an event when `nr_requests` more requests are there.
    pub(crate) fn request_event(&mut self, nr_requests: u32) {
        self.shared.write(REQ_EVENT, self.req_cons.wrapping_add(nr_requests));
    }

    fn offset(&self, index: u32) -> usize {
        let slot = index % FrontRing::<Req, Rsp>::NR_SLOTS;
        RING + slot as usize * FrontRing::<Req, Rsp>::SLOT_BYTES
    }
}
