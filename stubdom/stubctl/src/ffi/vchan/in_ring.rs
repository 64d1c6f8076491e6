//! The ring that a vchan's client reads, emptied in place: a write to a descriptor takes its bytes from the shared pages, so
//! that dom0 copies each byte once.
//!
//! **Takes** a descriptor to write to, or a private buffer. **Gives** how many bytes went there, and whether the server wants
//! an event. **Never** decides anything by what is in the ring, which the server may change at any time; believes no index
//! of the server: one that is further from ours than the ring is long is [`Nonsense`].
//!
//! Layout: `xen/include/public/io/libxenvchan.h`.

use super::out_ring::{Nonsense, VCHAN_NOTIFY_READ, VCHAN_NOTIFY_WRITE, VchanInterface};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering;

/// The reading end of a client's ring.
pub(crate) struct InRing {
    interface: NonNull<VchanInterface>,
    buffer: NonNull<u8>,
    nr_bytes: u32,
    /// Runs freely through all of u32; the position is its remainder.
    cons: u32,
}

impl InRing {
    /// Takes the two mappings, of a ring that nobody has read yet.
    ///
    /// # Safety
    /// While the value lives, `interface` is a mapped, writable page that starts with a `struct vchan_interface`, and
    /// `buffer` is mapped, readable and shared for `nr_bytes`, a power of two; no Rust reference to the buffer exists.
    pub(super) unsafe fn new(interface: *mut VchanInterface, buffer: *mut u8, nr_bytes: u32) -> Self {
        // PANIC: libxenvchan gives no handle without both mappings.
        let mapped = "a vchan without its mappings";
        let (interface, buffer) =
            (NonNull::new(interface).expect(mapped), NonNull::new(buffer).expect(mapped));
        let mut ring = Self { interface, buffer, nr_bytes, cons: 0 };
        ring.cons = ring.shared().right.cons.load(Ordering::Relaxed);
        ring
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.nr_bytes as usize
    }

    /// How many bytes the server has written that were not taken yet.
    ///
    /// # Errors
    /// Its index makes no sense.
    pub(crate) fn nr_ready(&self) -> Result<usize, Nonsense> {
        // The bytes are looked at after the index that covers them.
        let nr_ready = self.shared().right.prod.load(Ordering::Acquire).wrapping_sub(self.cons);
        if nr_ready <= self.nr_bytes { Ok(nr_ready as usize) } else { Err(Nonsense) }
    }

    /// Asks for an event when the server has written; look at [`InRing::nr_ready`] again afterwards.
    pub(crate) fn request_event(&self) {
        self.shared().srv_notify.fetch_or(VCHAN_NOTIFY_WRITE, Ordering::SeqCst);
    }

    /// Moves what is there into `out`, as far as it goes; gives how many bytes.
    ///
    /// # Errors
    /// The server's index makes no sense.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> Result<usize, Nonsense> {
        let mut nr_done = 0;
        for piece in self.ready(out.len())? {
            // SAFETY: the piece lies in the buffer, which is mapped (`new`); what is left of `out` is private memory and at
            // least as long, since the pieces together are no longer than `out`.
            unsafe {
                ptr::copy_nonoverlapping(piece.iov_base.cast(), out[nr_done..].as_mut_ptr(), piece.iov_len);
            }
            nr_done += piece.iov_len;
        }
        self.publish(nr_done);
        Ok(nr_done)
    }

    /// Writes at most `len` bytes to a descriptor, from what is there; gives how many.
    ///
    /// # Errors
    /// The descriptor's; `InvalidData` when the server's index makes no sense.
    pub(crate) fn write_to(&mut self, to: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        let pieces = self.ready(len).map_err(|Nonsense| io::ErrorKind::InvalidData)?;
        // SAFETY: the descriptor is borrowed and so open; both pieces lie in the buffer, which is mapped and which no
        // reference points into (`new`).
        let nr = unsafe { libc::writev(to.as_raw_fd(), pieces.as_ptr(), 2) };
        let nr = usize::try_from(nr).map_err(|_| io::Error::last_os_error())?;
        self.publish(nr);
        Ok(nr)
    }

    /// Tells whether the server asked for an event about what was read, and takes its wish off the page.
    pub(crate) fn take_wish(&self) -> bool {
        self.shared().cli_notify.fetch_and(!VCHAN_NOTIFY_READ, Ordering::SeqCst) & VCHAN_NOTIFY_READ != 0
    }

    /// Where at most `len` bytes are that are there: up to the end of the ring, and from its start.
    fn ready(&self, len: usize) -> Result<[libc::iovec; 2], Nonsense> {
        let len = len.min(self.nr_ready()?);
        let position = self.cons as usize & (self.len() - 1);
        let first = len.min(self.len() - position);
        let piece = |offset: usize, iov_len| {
            // SAFETY: the offset is less than the buffer's length.
            let base = unsafe { self.buffer.add(offset) };
            libc::iovec { iov_base: base.as_ptr().cast(), iov_len }
        };
        Ok([piece(position, first), piece(0, len - first)])
    }

    fn publish(&mut self, nr_bytes: usize) {
        // PANIC: never; no more was read than is there, which is a u32.
        self.cons = self.cons.wrapping_add(u32::try_from(nr_bytes).expect("more than the ring"));
        // The bytes are read before the server may overwrite them.
        self.shared().right.cons.store(self.cons, Ordering::Release);
    }

    fn shared(&self) -> &VchanInterface {
        // SAFETY: the page is mapped while `self` lives (`new`); all that is read of it is atomic, so that the server
        // may write there at any time.
        unsafe { self.interface.as_ref() }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::out_ring::RingShared;
    use super::*;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicU8, AtomicU32};

    pub(crate) const RING_BYTES: u32 = 4096;

    /// What the server of a ring sees.
    pub(crate) struct Far {
        page: &'static VchanInterface,
        buffer: *mut u8,
    }

    /// An empty ring and its server. Both mappings leak: a test's few pages.
    pub(crate) fn pair(index: u32) -> (InRing, Far) {
        let side = || RingShared { cons: AtomicU32::new(index), prod: AtomicU32::new(index) };
        let page = ptr::from_mut(Box::leak(Box::new(VchanInterface {
            left: side(),
            right: side(),
            left_order: 12,
            right_order: 12,
            cli_live: AtomicU8::new(1),
            srv_live: AtomicU8::new(1),
            cli_notify: AtomicU8::new(0),
            srv_notify: AtomicU8::new(0),
        })));
        let buffer = Box::into_raw(vec![0_u8; RING_BYTES as usize].into_boxed_slice()).cast::<u8>();
        // SAFETY: both are leaked memory of these sizes.
        let ring = unsafe { InRing::new(page, buffer, RING_BYTES) };
        // SAFETY: leaked above; all that is written behind it is atomic.
        (ring, Far { page: unsafe { &*page }, buffer })
    }

    impl Far {
        /// Writes as the server would, into room that there is.
        pub(crate) fn put(&self, bytes: &[u8]) {
            let prod = self.page.right.prod.load(Ordering::SeqCst);
            for (nr, byte) in (0_u32..).zip(bytes) {
                let place = prod.wrapping_add(nr) % RING_BYTES;
                // SAFETY: inside the leaked buffer.
                unsafe { self.buffer.wrapping_add(place as usize).write(*byte) };
            }
            let nr = u32::try_from(bytes.len()).unwrap();
            self.page.right.prod.store(prod.wrapping_add(nr), Ordering::SeqCst);
        }

        /// Writes nonsense.
        pub(crate) fn lie(&self) {
            self.page.right.prod.fetch_add(RING_BYTES + 1, Ordering::SeqCst);
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
        }
    }

    #[test]
    fn an_index_that_makes_no_sense_moves_nothing() {
        let (mut ring, far) = pair(9);
        far.lie();
        assert_eq!((ring.nr_ready(), ring.read(&mut [0; 4])), (Err(Nonsense), Err(Nonsense)));
        let error = ring.write_to(std::io::stdout().as_fd(), 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn wishes_are_made_and_taken() {
        let (ring, far) = pair(0);
        ring.request_event();
        assert_eq!(far.page.srv_notify.load(Ordering::SeqCst), VCHAN_NOTIFY_WRITE);
        assert!(!ring.take_wish());
        far.page.cli_notify.store(VCHAN_NOTIFY_READ | VCHAN_NOTIFY_WRITE, Ordering::SeqCst);
        assert!(ring.take_wish() && !ring.take_wish());
        assert_eq!(far.page.cli_notify.load(Ordering::SeqCst), VCHAN_NOTIFY_WRITE);
    }
}
