//! The ring that a vchan's client writes, filled in place: a read from a descriptor lands in the shared pages, so that
//! dom0 copies each byte once.
//!
//! **Takes** a descriptor to read from, or bytes. **Gives** how many went in, and whether the server wants an event.
//! **Never** reads what is in the ring, and believes no index of the server: the producer's is kept here, a consumer's
//! that is further from it than the ring is long is [`Nonsense`].
//!
//! Layout: `xen/include/public/io/libxenvchan.h`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// `struct ring_shared`.
#[repr(C)]
pub(super) struct RingShared {
    pub(super) cons: AtomicU32,
    pub(super) prod: AtomicU32,
}

/// `struct vchan_interface`, up to its list of grants.
#[repr(C)]
pub(super) struct VchanInterface {
    pub(super) left: RingShared,
    pub(super) right: RingShared,
    pub(super) left_order: u16,
    pub(super) right_order: u16,
    pub(super) cli_live: AtomicU8,
    pub(super) srv_live: AtomicU8,
    pub(super) cli_notify: AtomicU8,
    pub(super) srv_notify: AtomicU8,
}

/// `VCHAN_NOTIFY_WRITE`: the other end wants an event when data was written.
pub(super) const VCHAN_NOTIFY_WRITE: u8 = 1;
/// `VCHAN_NOTIFY_READ`: this end wants an event when data was read.
pub(super) const VCHAN_NOTIFY_READ: u8 = 2;

/// The server's index is further from ours than the ring is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nonsense;

/// The writing end of a client's ring.
pub(crate) struct OutRing {
    interface: NonNull<VchanInterface>,
    buffer: NonNull<u8>,
    nr_bytes: u32,
    /// Runs freely through all of u32; the position is its remainder.
    prod: u32,
}

impl OutRing {
    /// Takes the two mappings, of a ring that is still empty.
    ///
    /// # Safety
    /// While the value lives, `interface` is a mapped, writable page that starts with a `struct vchan_interface`, and
    /// `buffer` is mapped, writable and shared for `nr_bytes`, a power of two; no Rust reference to the buffer exists.
    pub(super) unsafe fn new(interface: *mut VchanInterface, buffer: *mut u8, nr_bytes: u32) -> Self {
        // PANIC: libxenvchan gives no handle without both mappings.
        let mapped = "a vchan without its mappings";
        let (interface, buffer) =
            (NonNull::new(interface).expect(mapped), NonNull::new(buffer).expect(mapped));
        let mut ring = Self { interface, buffer, nr_bytes, prod: 0 };
        ring.prod = ring.shared().left.prod.load(Ordering::Relaxed);
        ring
    }

    /// Its length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.nr_bytes as usize
    }

    /// How many bytes the server has not taken yet.
    ///
    /// # Errors
    /// Its index makes no sense.
    pub(crate) fn nr_waiting(&self) -> Result<usize, Nonsense> {
        // What the server has read may be overwritten after its index was seen.
        let nr_waiting = self.prod.wrapping_sub(self.shared().left.cons.load(Ordering::Acquire));
        if nr_waiting <= self.nr_bytes { Ok(nr_waiting as usize) } else { Err(Nonsense) }
    }

    /// Asks for an event when the server has read; look at [`OutRing::nr_waiting`] again afterwards.
    pub(crate) fn request_event(&self) {
        self.shared().srv_notify.fetch_or(VCHAN_NOTIFY_READ, Ordering::SeqCst);
    }

    /// Reads at most `len` bytes from a descriptor into the room there is; gives how many, 0 at the end of the file.
    ///
    /// # Errors
    /// The descriptor's; `WouldBlock` when the server's index makes no sense.
    pub(crate) fn read_from(&mut self, from: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
        let pieces = self.room(len)?;
        // SAFETY: the descriptor is borrowed and so open; both pieces lie in the buffer, which is mapped and writable
        // and which no reference points into (`new`).
        let nr = unsafe { libc::readv(from.as_raw_fd(), pieces.as_ptr(), 2) };
        let nr = usize::try_from(nr).map_err(|_| io::Error::last_os_error())?;
        self.publish(nr);
        Ok(nr)
    }

    /// Copies as much of `bytes` as there is room for; gives how many.
    ///
    /// # Errors
    /// `WouldBlock` when the server's index makes no sense.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        for piece in self.room(bytes.len())? {
            let (now, later) = rest.split_at(piece.iov_len.min(rest.len()));
            // SAFETY: the piece lies in the buffer, which is mapped and writable (`new`); `now` is private memory no
            // longer than the piece.
            unsafe { ptr::copy_nonoverlapping(now.as_ptr(), piece.iov_base.cast(), now.len()) };
            rest = later;
        }
        let nr = bytes.len() - rest.len();
        self.publish(nr);
        Ok(nr)
    }

    /// Tells whether the server asked for an event about what was written, and takes its wish off the page.
    pub(crate) fn take_wish(&self) -> bool {
        self.shared().cli_notify.fetch_and(!VCHAN_NOTIFY_WRITE, Ordering::SeqCst) & VCHAN_NOTIFY_WRITE != 0
    }

    /// The room for at most `len` bytes: up to the end of the ring, and from its start.
    fn room(&self, len: usize) -> io::Result<[libc::iovec; 2]> {
        let nr_waiting = self.nr_waiting().map_err(|Nonsense| io::ErrorKind::WouldBlock)?;
        let len = len.min(self.len() - nr_waiting);
        let position = self.prod as usize & (self.len() - 1);
        let first = len.min(self.len() - position);
        let piece = |offset: usize, iov_len| {
            // SAFETY: the offset is less than the buffer's length.
            let base = unsafe { self.buffer.add(offset) };
            libc::iovec { iov_base: base.as_ptr().cast(), iov_len }
        };
        Ok([piece(position, first), piece(0, len - first)])
    }

    fn publish(&mut self, nr_bytes: usize) {
        // PANIC: never; no more was written than there is room, which is a u32.
        self.prod = self.prod.wrapping_add(u32::try_from(nr_bytes).expect("more than the ring"));
        // The bytes are there before the index that covers them.
        self.shared().left.prod.store(self.prod, Ordering::Release);
    }

    fn shared(&self) -> &VchanInterface {
        // SAFETY: the page is mapped while `self` lives (`new`); all that is read of it is atomic, so that the server
        // may write there at any time.
        unsafe { self.interface.as_ref() }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    pub(crate) const RING_BYTES: u32 = 4096;

    /// What the server of a ring sees.
    pub(crate) struct Far {
        page: &'static VchanInterface,
        buffer: *mut u8,
    }

    /// An empty ring and its server. Both mappings leak: a test's few pages.
    pub(crate) fn pair(prod: u32) -> (OutRing, Far) {
        let side = || RingShared { cons: AtomicU32::new(prod), prod: AtomicU32::new(prod) };
        let page = Box::leak(Box::new(VchanInterface {
            left: side(),
            right: side(),
            left_order: 12,
            right_order: 12,
            cli_live: AtomicU8::new(1),
            srv_live: AtomicU8::new(1),
            cli_notify: AtomicU8::new(VCHAN_NOTIFY_WRITE),
            srv_notify: AtomicU8::new(0),
        }));
        let page = ptr::from_mut(page);
        let buffer = Box::into_raw(vec![0_u8; RING_BYTES as usize].into_boxed_slice()).cast::<u8>();
        // SAFETY: both are leaked memory of these sizes.
        let ring = unsafe { OutRing::new(page, buffer, RING_BYTES) };
        // SAFETY: leaked above; all that is written behind it is atomic.
        (ring, Far { page: unsafe { &*page }, buffer })
    }

    impl Far {
        /// Takes what the indices say is there, as the server would.
        pub(crate) fn take(&self) -> Vec<u8> {
            let (cons, prod) =
                (self.page.left.cons.load(Ordering::SeqCst), self.page.left.prod.load(Ordering::SeqCst));
            let at = |index: u32| self.buffer.wrapping_add((index % RING_BYTES) as usize);
            // SAFETY: inside the leaked buffer.
            let byte = |offset| unsafe { at(cons.wrapping_add(offset)).read() };
            let bytes = (0..prod.wrapping_sub(cons)).map(byte).collect();
            self.page.left.cons.store(prod, Ordering::SeqCst);
            bytes
        }
    }

    #[test]
    fn bytes_read_from_a_file_go_round_the_ring_and_the_indices_round_their_type() {
        let (mut ring, far) = pair(u32::MAX - 5000);
        for round in 0..20_u8 {
            let sent: Vec<u8> = (0..3000_u32).map(|i| (i / 9).to_le_bytes()[0] ^ round).collect();
            let (reader, mut writer) = io::pipe().unwrap();
            writer.write_all(&sent).unwrap();
            assert_eq!(ring.write(&sent[..8]).unwrap(), 8);
            assert_eq!(ring.read_from(reader.as_fd(), 4000).unwrap(), 3000);
            assert_eq!(ring.nr_waiting(), Ok(3008));
            assert!(far.take() == [&sent[..8], &sent].concat());
        }
    }

    #[test]
    fn a_full_ring_takes_no_more() {
        let (mut ring, far) = pair(77);
        assert_eq!(ring.write(&[7; 5000]).unwrap(), 4096);
        assert_eq!(ring.write(b"x").unwrap(), 0);
        assert_eq!(far.take(), [7; 4096]);
    }

    #[test]
    fn the_server_hears_of_new_bytes_once_for_each_wish() {
        let (mut ring, far) = pair(0);
        ring.write(b"x").unwrap();
        assert!(ring.take_wish());
        assert!(!ring.take_wish());
        ring.request_event();
        assert_eq!(far.page.srv_notify.load(Ordering::SeqCst), VCHAN_NOTIFY_READ);
    }

    #[test]
    fn an_index_that_makes_no_sense_is_refused() {
        let (mut ring, far) = pair(100);
        far.page.left.cons.store(101, Ordering::SeqCst);
        assert_eq!(ring.nr_waiting(), Err(Nonsense));
        assert!(ring.write(b"x").is_err());
        far.page.left.prod.store(0, Ordering::SeqCst);
        far.page.left.cons.store(100, Ordering::SeqCst);
        assert_eq!(ring.write(b"x").unwrap(), 1, "our own index is believed");
    }
}
