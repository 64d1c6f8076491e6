//! The ring that a vchan's client writes, filled in place: a read from a descriptor lands in the shared pages, so that
//! dom0 copies each byte once.
//!
//! **Takes** a descriptor to read from, or bytes. **Gives** how many went in, and whether the server wants an event.
//! **Never** reads what is in the ring, and believes no index of the server: the producer's is kept here, a consumer's
//! that is further from it than the ring is long is [`Nonsense`].

use super::shared::{LEFT, Nonsense, Shared};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use xen_abi::vchan::{VCHAN_NOTIFY_READ, VCHAN_NOTIFY_WRITE};

/// The writing end of a client's ring.
pub(crate) struct OutRing {
    shared: Rc<Shared>,
    /// Runs freely through all of u32; the position is its remainder.
    prod: u32,
}

impl OutRing {
    /// Takes the pages, of a ring that is still empty.
    pub(super) fn new(shared: Rc<Shared>) -> Self {
        let prod = shared.prod(LEFT).load(Ordering::Relaxed);
        Self { shared, prod }
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.shared.left.len() as usize
    }

    /// How many bytes the server has not taken yet.
    ///
    /// # Errors
    /// Its index makes no sense.
    pub(crate) fn nr_waiting(&self) -> Result<usize, Nonsense> {
        // What the server has read may be overwritten after its index was seen.
        let nr_waiting = self.prod.wrapping_sub(self.shared.cons(LEFT).load(Ordering::Acquire));
        if nr_waiting <= self.shared.left.len() { Ok(nr_waiting as usize) } else { Err(Nonsense) }
    }

    /// Asks for an event when the server has read; look at [`OutRing::nr_waiting`] again afterwards.
    pub(crate) fn request_event(&self) {
        self.shared.srv_notify().fetch_or(VCHAN_NOTIFY_READ, Ordering::SeqCst);
    }

    /// Reads at most `len` bytes from a descriptor into the room there is; gives how many, 0 at the end of the file.
    ///
    /// # Errors
    /// The descriptor's; `InvalidData` when the server's index makes no sense.
    pub(crate) fn read_from(&mut self, from: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        let pieces = self.room(len)?;
        // SAFETY: the descriptor is borrowed and so open; both pieces lie in the ring, which is mapped for writing as long as
        // `shared` lives and which no reference points into.
        let nr = unsafe { libc::readv(from.as_raw_fd(), pieces.as_ptr(), 2) };
        let nr = usize::try_from(nr).map_err(|_| io::Error::last_os_error())?;
        self.publish(nr);
        Ok(nr)
    }

    /// Copies as much of `bytes` as there is room for; gives how many.
    ///
    /// # Errors
    /// The server's index makes no sense.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<usize, Nonsense> {
        let mut rest = bytes;
        for piece in self.room(bytes.len())? {
            let (now, later) = rest.split_at(piece.iov_len.min(rest.len()));
            // SAFETY: the piece lies in the ring, which is mapped for writing as long as `shared` lives; `now` is private
            // memory no longer than the piece.
            unsafe { ptr::copy_nonoverlapping(now.as_ptr(), piece.iov_base.cast(), now.len()) };
            rest = later;
        }
        let nr = bytes.len() - rest.len();
        self.publish(nr);
        Ok(nr)
    }

    /// Tells whether the server asked for an event about what was written, and takes its wish off the page.
    pub(crate) fn take_wish(&self) -> bool {
        let wishes = self.shared.cli_notify().fetch_and(!VCHAN_NOTIFY_WRITE, Ordering::SeqCst);
        wishes & VCHAN_NOTIFY_WRITE != 0
    }

    /// The room for at most `len` bytes.
    fn room(&self, len: usize) -> Result<[libc::iovec; 2], Nonsense> {
        let nr_free = self.len() - self.nr_waiting()?;
        Ok(self.shared.left.pieces(self.prod, len.min(nr_free)))
    }

    fn publish(&mut self, nr_bytes: usize) {
        // PANIC: never; no more was written than there is room, which is a u32.
        self.prod = self.prod.wrapping_add(u32::try_from(nr_bytes).expect("more than the ring"));
        // The bytes are there before the index that covers them.
        self.shared.prod(LEFT).store(self.prod, Ordering::Release);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::shared::tests as shared;
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    /// What the server of a ring sees.
    pub(crate) struct Far(Rc<Shared>);

    /// An empty ring and its server, which wants events.
    pub(crate) fn pair(prod: u32) -> (OutRing, Far) {
        let shared = Rc::new(shared::in_private_memory(prod));
        shared.cli_notify().store(VCHAN_NOTIFY_WRITE, Ordering::SeqCst);
        (OutRing::new(Rc::clone(&shared)), Far(shared))
    }

    impl Far {
        /// Takes what the indices say is there, as the server would.
        pub(crate) fn take(&self) -> Vec<u8> {
            let index = |index: &std::sync::atomic::AtomicU32| index.load(Ordering::SeqCst);
            let (cons, prod) = (index(self.0.cons(LEFT)), index(self.0.prod(LEFT)));
            self.0.cons(LEFT).store(prod, Ordering::SeqCst);
            shared::take(self.0.left, cons, prod)
        }
    }

    #[test]
    fn bytes_read_from_a_file_go_round_the_ring_and_the_indices_round_their_type() {
        let (mut ring, far) = pair(u32::MAX - 5000);
        for round in 0..20_u8 {
            let sent: Vec<u8> = (0..3000_u32).map(|i| (i / 9).to_le_bytes()[0] ^ round).collect();
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(&sent).unwrap();
            assert_eq!(ring.write(&sent[..8]), Ok(8));
            assert_eq!(ring.read_from(reader.as_fd(), 4000).unwrap(), 3000);
            assert_eq!(ring.nr_waiting(), Ok(3008));
            assert!(far.take() == [&sent[..8], &sent].concat());
        }
    }

    #[test]
    fn a_full_ring_takes_no_more() {
        let (mut ring, far) = pair(77);
        assert_eq!(ring.write(&[7; 5000]), Ok(4096));
        assert_eq!(ring.write(b"x"), Ok(0));
        assert_eq!(far.take(), [7; 4096]);
    }

    #[test]
    fn the_server_hears_of_new_bytes_once_for_each_wish() {
        let (mut ring, far) = pair(0);
        ring.write(b"x").unwrap();
        assert!(ring.take_wish());
        assert!(!ring.take_wish());
        ring.request_event();
        assert_eq!(far.0.srv_notify().load(Ordering::SeqCst), VCHAN_NOTIFY_READ);
    }

    #[test]
    fn an_index_that_makes_no_sense_is_refused() {
        let (mut ring, far) = pair(100);
        far.0.cons(LEFT).store(101, Ordering::SeqCst);
        assert_eq!(ring.nr_waiting(), Err(Nonsense));
        assert_eq!(ring.write(b"x"), Err(Nonsense));
        far.0.prod(LEFT).store(0, Ordering::SeqCst);
        far.0.cons(LEFT).store(100, Ordering::SeqCst);
        assert_eq!(ring.write(b"x"), Ok(1), "our own index is believed");
    }
}
