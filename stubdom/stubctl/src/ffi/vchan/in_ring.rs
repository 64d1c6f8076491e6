//! The ring that a vchan's client reads, emptied in place: a write to a descriptor takes its bytes from the shared pages, so
//! that dom0 copies each byte once.
//!
//! **Takes** a descriptor to write to, or a private buffer. **Gives** how many bytes went there, and whether the server wants
//! an event. **Never** decides anything by what is in the ring, which the server may change at any time; believes no index
//! of the server: the consumer's is kept here, a producer's that is further from it than the ring is long is
//! [`Nonsense`].

use super::shared::{Nonsense, RIGHT, Shared};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use xen_abi::vchan::{VCHAN_NOTIFY_READ, VCHAN_NOTIFY_WRITE};

/// The reading end of a client's ring.
pub(crate) struct InRing {
    shared: Rc<Shared>,
    /// Runs freely through all of u32; the position is its remainder.
    cons: u32,
}

impl InRing {
    /// Takes the pages, of a ring that nobody has read yet.
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        let cons = shared.cons(RIGHT).load(Ordering::Relaxed);
        Self { shared, cons }
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.shared.right.len() as usize
    }

    /// How many bytes the server has written that were not taken yet.
    ///
    /// # Errors
    /// Its index makes no sense.
    pub(crate) fn nr_ready(&self) -> Result<usize, Nonsense> {
        // The bytes are read after the index that covers them.
        let nr_ready = self.shared.prod(RIGHT).load(Ordering::Acquire).wrapping_sub(self.cons);
        if nr_ready <= self.shared.right.len() { Ok(nr_ready as usize) } else { Err(Nonsense) }
    }

    /// Asks for an event when the server has written; look at [`InRing::nr_ready`] again afterwards.
    pub(crate) fn request_event(&self) {
        self.shared.srv_notify().fetch_or(VCHAN_NOTIFY_WRITE, Ordering::SeqCst);
    }

    /// Moves what is there into `out`, as far as it goes; gives how many bytes.
    ///
    /// # Errors
    /// The server's index makes no sense.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize, Nonsense> {
        let (mut rest, mut nr) = (out, 0);
        for piece in self.ready(rest.len())? {
            let (now, later) = rest.split_at_mut(piece.iov_len);
            // SAFETY: the piece lies in the ring, which is mapped as long as `shared` lives; `now` is private memory as long
            // as the piece.
            unsafe { ptr::copy_nonoverlapping(piece.iov_base.cast(), now.as_mut_ptr(), now.len()) };
            nr += now.len();
            rest = later;
        }
        self.publish(nr);
        Ok(nr)
    }

    /// Writes at most `len` bytes to a descriptor, from what is there; gives how many.
    ///
    /// # Errors
    /// The descriptor's; `InvalidData` when the server's index makes no sense.
    pub(crate) fn write_to(&mut self, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        let pieces = self.ready(len)?;
        // SAFETY: the descriptor is borrowed and so open; both pieces lie in the ring, which is mapped as long as `shared`
        // lives and which no reference points into.
        let nr = unsafe { libc::writev(to.as_raw_fd(), pieces.as_ptr(), 2) };
        let nr = usize::try_from(nr).map_err(|_| io::Error::last_os_error())?;
        self.publish(nr);
        Ok(nr)
    }

    /// Tells whether the server asked for an event about what was read, and takes its wish off the page.
    pub(crate) fn take_wish(&self) -> bool {
        let wishes = self.shared.cli_notify().fetch_and(!VCHAN_NOTIFY_READ, Ordering::SeqCst);
        wishes & VCHAN_NOTIFY_READ != 0
    }

    /// Where at most `len` bytes are that are there.
    fn ready(&self, len: usize) -> Result<[libc::iovec; 2], Nonsense> {
        Ok(self.shared.right.pieces(self.cons, len.min(self.nr_ready()?)))
    }

    fn publish(&mut self, nr_bytes: usize) {
        // PANIC: never; no more was read than is there, which is a u32.
        self.cons = self.cons.wrapping_add(u32::try_from(nr_bytes).expect("more than the ring"));
        // The bytes are read before the server may overwrite them.
        self.shared.cons(RIGHT).store(self.cons, Ordering::Release);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::shared::tests as shared;
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;

    /// What the server of a ring sees.
    pub(crate) struct Far(Rc<Shared>);

    /// An empty ring and its server.
    pub(crate) fn pair(index: u32) -> (InRing, Far) {
        let shared = Rc::new(shared::in_private_memory(index));
        (InRing::new(Rc::clone(&shared)), Far(shared))
    }

    impl Far {
        /// Writes as the server would, into room that there is.
        pub(crate) fn put(&self, bytes: &[u8]) {
            let prod = self.0.prod(RIGHT).load(Ordering::SeqCst);
            shared::put(self.0.right, prod, bytes);
            let nr = u32::try_from(bytes.len()).unwrap();
            self.0.prod(RIGHT).store(prod.wrapping_add(nr), Ordering::SeqCst);
        }

        /// Writes nonsense.
        pub(crate) fn lie(&self) {
            self.0.prod(RIGHT).fetch_add(shared::RING_BYTES + 1, Ordering::SeqCst);
        }
    }

    #[test]
    fn bytes_go_round_the_ring_and_the_indices_round_their_type() {
        let (mut ring, far) = pair(u32::MAX - 5000);
        for round in 0..20_u8 {
            let sent: Vec<u8> = (0..3000_u32).map(|i| (i / 9).to_le_bytes()[0] ^ round).collect();
            far.put(&sent);
            assert_eq!(ring.nr_ready(), Ok(3000));
            let mut head = [0; 8];
            assert_eq!(ring.read(&mut head), Ok(8));
            let (mut reader, writer) = io::pipe().unwrap();
            assert_eq!(ring.write_to(writer.as_fd(), 1000).unwrap(), 1000);
            assert_eq!(ring.write_to(writer.as_fd(), 9000).unwrap(), 1992);
            drop(writer);
            let mut got = head.to_vec();
            reader.read_to_end(&mut got).unwrap();
            assert!(got == sent, "round {round}");
            assert_eq!(ring.read(&mut head), Ok(0));
        }
    }

    #[test]
    fn an_index_that_makes_no_sense_moves_nothing() {
        let (mut ring, Far(far)) = pair(9);
        let set = |index: &std::sync::atomic::AtomicU32, value| index.store(value, Ordering::SeqCst);
        set(far.prod(RIGHT), 9 + shared::RING_BYTES + 1);
        assert_eq!((ring.nr_ready(), ring.read(&mut [0; 4])), (Err(Nonsense), Err(Nonsense)));
        let error = ring.write_to(io::stdout().as_fd(), 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        set(far.prod(RIGHT), 8);
        assert_eq!(ring.read(&mut [0; 4]), Err(Nonsense), "it went back");
        set(far.cons(RIGHT), 0);
        set(far.prod(RIGHT), 9);
        assert_eq!(ring.read(&mut [0; 4]), Ok(0), "our own index is believed");
    }

    #[test]
    fn wishes_are_made_and_taken() {
        let (ring, Far(far)) = pair(0);
        ring.request_event();
        assert_eq!(far.srv_notify().load(Ordering::SeqCst), VCHAN_NOTIFY_WRITE);
        assert!(!ring.take_wish());
        far.cli_notify().store(VCHAN_NOTIFY_READ | VCHAN_NOTIFY_WRITE, Ordering::SeqCst);
        assert!(ring.take_wish() && !ring.take_wish());
        assert_eq!(far.cli_notify().load(Ordering::SeqCst), VCHAN_NOTIFY_WRITE);
    }
}
