//! The stub's part in a send: the ring that its target leaves by, and what dom0 hears of it.

use super::{CommandError, PROOF_NS, Stub};
use crate::ring::Ring;
use crate::send::{Door, Progressed, SendError, Sending};
use control::{FromStub, Phase};
use stub_net::Stream;

impl Stub {
    pub(super) fn begin_send(&mut self, order: &control::send::Send) -> Result<(), CommandError> {
        let xen = self.xen.as_mut().ok_or(CommandError::Unpaired)?;
        if !xen.has_machine_to_phys() {
            return Err(CommandError::Send(SendError::NoTable));
        }
        xen.open_send_window(&mut self.memory).map_err(CommandError::Window)?;
        let ring = match self.way_out.take() {
            Some(ring) => ring,
            None => {
                Ring::outgoing(&self.memory, &mut self.grants, self.events).map_err(CommandError::Ring)?
            }
        };
        self.way_out.insert(ring).listen(&mut self.store);
        self.sending = Some(Sending::new(order));
        self.status.phase(&mut self.store, Phase::Listening);
        self.say(&FromStub::Listening);
        Ok(())
    }

    /// Goes on with a send, a batch of pages or as much as there is room for; says whether there is more to do at once.
    pub(crate) fn send(&mut self) -> bool {
        let (Some(sending), Some(xen), Some(ring)) = (&mut self.sending, &mut self.xen, &mut self.way_out)
        else {
            return false;
        };
        ring.follow(&mut self.store);
        let (stream, now_ns) = (ring.stream(), self.clock.now_ns());
        let mut door = Door { xen, ring, link: &mut self.link, clock: self.clock };
        let mut result = match stream {
            Stream::Open => sending.turn(&mut door),
            Stream::Ended if sending.is_proven() => Err(SendError::Closed),
            Stream::Ended => Err(SendError::Intruder),
            Stream::Listening | Stream::Closed => Ok(Progressed::Blocked),
        };
        let is_unproven = stream == Stream::Open && !sending.is_proven();
        self.prove_by_ns = is_unproven.then(|| self.prove_by_ns.unwrap_or(now_ns + PROOF_NS));
        let is_late = self.prove_by_ns.is_some_and(|by_ns| now_ns >= by_ns);
        if is_late {
            result = Err(SendError::Intruder);
        }
        match result {
            Ok(Progressed::Complete(sent)) => self.complete_send(sent),
            Ok(_) => self.tell_progress(),
            Err(SendError::Intruder) => self.turn_away_from_send(),
            Err(error) => self.fail(&CommandError::Send(error)),
        }
        result == Ok(Progressed::More)
    }

    fn complete_send(&mut self, sent: control::send::Sent) {
        self.sending = None;
        let control::send::Sent { nr_bytes, nr_pages, nr_passes, .. } = sent;
        log::info!("sent: {nr_pages} pages in {nr_passes} passes, {nr_bytes} bytes");
        self.status.phase(&mut self.store, Phase::Sent);
        self.say(&FromStub::Sent(sent));
    }

    /// Drops a client of the way out that is not stubctl, and waits for the next.
    fn turn_away_from_send(&mut self) {
        self.prove_by_ns = None;
        log::warn!("dropped a client of the way out: it did not open with the token");
        if let Some(sending) = &mut self.sending {
            sending.forget_client();
        }
        if let Some(ring) = &mut self.way_out {
            ring.listen(&mut self.store);
        }
    }
}
