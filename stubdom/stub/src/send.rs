//! The send of the target: from the token to the last byte in the ring.
//!
//! **Takes** turns, and dom0's answers. **Gives** the stream, into the ring. **Never** copies a page but once: from the
//! target's frame into the ring.

use crate::link::{Link, LinkError};
use crate::ring::Ring;
use crate::target::TargetXen;
use alloc::boxed::Box;
use alloc::vec::Vec;
use control::send::{Ask, BLOCK_BYTES, BLOCK_FRAMES, BLOCK_HEAD_BYTES};
use control::{FromStub, Pace, Phase, Progress, Proof, ToStub, WrongToken};
use core::fmt;
use migration::send::{self, Bits, Config, Mode, Policy, Send, Stage, Timeout, Turn};
use migration::stream::{MAX_CONTEXT_BYTES, TscInfo};
use migration::xen::{BlobKind, Errno, Output, SendBroker, XenSend};
use xen_abi::types::Gfn;
use xen_front::clock::Clock;

/// Least time between two progress messages of one phase, in nanoseconds.
const PROGRESS_NS: u64 = 200_000_000;

/// Pages that are few at any rate, as libxenguest has it (`SPP_TARGET_DIRTY_COUNT`).
const FEW_PAGES: u64 = 50;

/// Why a send ends without a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendError {
    /// The ring did not open with the token.
    Intruder,
    /// stubctl closed the ring.
    Closed,
    /// Pages of Xen's own cannot be told from the guest's.
    NoTable,
    /// The send itself.
    Send(send::Error),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Intruder => f.write_str("a connection that does not open with the token"),
            Self::Closed => f.write_str("stubctl closed the ring before the stream was complete"),
            Self::NoTable => f.write_str("Xen shows the stub no machine-to-phys table"),
            Self::Send(error) => error.fmt(f),
        }
    }
}

/// One send under way.
pub(crate) struct Sending {
    proof: Proof,
    send: Box<Send>,
    pace: Pace,
    /// When there is more to do, in nanoseconds of system time, if the operator limits the rate.
    wake_ns: Option<u64>,
}

/// How a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progressed {
    /// There is more to do at once.
    More,
    /// Something has to happen first.
    Blocked,
    /// All is in the ring.
    Complete(control::send::Sent),
}

impl Sending {
    /// Gets ready for a send.
    pub(crate) fn new(order: &control::send::Send) -> Self {
        let mode = order.live.map_or(Mode::Suspended, |limits| Mode::Live(policy(limits)));
        let config = Config { xen_version: order.xen_version, mode, verify: order.verify };
        let (proof, pace) = (Proof::new(order.token), Pace::new(PROGRESS_NS));
        Self { proof, send: Box::new(Send::new(config)), pace, wake_ns: None }
    }

    /// Tells whether the client is stubctl: the whole token has come.
    pub(crate) fn is_proven(&self) -> bool {
        self.proof.is_proven()
    }

    /// Forgets what an unproven client has sent.
    pub(crate) fn forget_client(&mut self) {
        self.proof.restart();
    }

    /// When it goes on by itself, in nanoseconds of system time.
    pub(crate) fn wake_ns(&self) -> Option<u64> {
        self.wake_ns
    }

    /// Does as much as there is room for, a batch of pages at most.
    ///
    /// # Errors
    /// What ends the send; [`SendError::Intruder`] ends only the connection.
    pub(crate) fn turn(&mut self, door: &mut Door<'_>) -> Result<Progressed, SendError> {
        self.wake_ns = None;
        if !self.is_proven() {
            let mut result = Ok(0);
            door.ring.receive(|bytes| {
                result = self.proof.take(bytes);
                result.unwrap_or(0)
            });
            let nr_taken = result.map_err(|WrongToken| SendError::Intruder)?;
            return Ok(if nr_taken > 0 { Progressed::More } else { Progressed::Blocked });
        }
        match self.send.turn(door).map_err(SendError::Send)? {
            Turn::More => Ok(Progressed::More),
            Turn::Full => Ok(Progressed::Blocked),
            Turn::At(ns) => {
                self.wake_ns = Some(ns);
                Ok(Progressed::Blocked)
            }
            Turn::Complete => Ok(Progressed::Complete(self.sent())),
        }
    }

    /// Returns how far it is, when that is worth a message: a new phase, or a while after the last.
    pub(crate) fn progress(&mut self, now_ns: u64) -> Option<Progress> {
        let phase = match self.send.stage() {
            _ if !self.is_proven() => Phase::Listening,
            Stage::Opening => Phase::Opening,
            Stage::Memory => Phase::Memory,
            Stage::Precopy => Phase::Precopy,
            Stage::Finishing => Phase::Finishing,
        };
        let (nr_bytes, tally) = (self.send.nr_bytes(), self.send.tally());
        let progress = Progress { phase, nr_bytes, nr_pages: tally.nr_pages, pass: tally.nr_passes };
        self.pace.is_due(phase, now_ns).then_some(progress)
    }

    fn sent(&self) -> control::send::Sent {
        let send::Tally { nr_pages, nr_kept, nr_passes, nr_last } = self.send.tally();
        control::send::Sent { nr_bytes: self.send.nr_bytes(), nr_pages, nr_kept, nr_passes, nr_last }
    }
}

fn policy(limits: control::send::Limits) -> Policy {
    let control::send::Limits { max_passes, downtime_ms, most_bytes_a_second, timeout } = limits;
    let timeout = timeout.map(|timeout| match timeout {
        control::send::Timeout::FinishAfter(seconds) => Timeout::FinishAfter(seconds),
        control::send::Timeout::AbortAfter(seconds) => Timeout::AbortAfter(seconds),
    });
    Policy { max_passes, few_pages: FEW_PAGES, downtime_ms, most_bytes_a_second, timeout }
}

/// All that a send has to do with: the target, the ring, dom0 and the clock.
pub(crate) struct Door<'a> {
    pub(crate) xen: &'a mut TargetXen,
    pub(crate) ring: &'a mut Ring,
    pub(crate) link: &'a mut Link,
    pub(crate) clock: Clock,
}

impl XenSend for Door<'_> {
    fn nr_slots(&self) -> usize {
        self.xen.nr_slots()
    }

    fn show(&mut self, slots: &[(usize, Gfn)], errors: &mut [i32]) {
        self.xen.show(slots, errors);
    }

    fn gfn_at(&self, slot: usize) -> Option<Gfn> {
        self.xen.gfn_at(slot)
    }

    fn release(&mut self) {
        self.xen.release();
    }

    fn special_pages(&mut self, found: &mut Vec<Gfn>) -> Result<(), Errno> {
        self.xen.special_pages(found)
    }

    fn hvm_param(&mut self, index: u32) -> Result<u64, Errno> {
        self.xen.hvm_param(index)
    }
}

impl Output for Door<'_> {
    fn room(&mut self) -> usize {
        self.ring.room()
    }

    fn put(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        self.ring.give(bytes.len(), |ring, at, len| {
            let (now, later) = rest.split_at(len);
            ring.copy_in(at, now);
            rest = later;
        });
    }

    fn put_frames(&mut self, slot: usize, offset: usize, nr_bytes: usize) {
        let Self { xen, ring, .. } = self;
        let mut from = offset;
        ring.give(nr_bytes, |ring, at, len| {
            xen.copy_shared(slot, from, ring, at, len);
            from += len;
        });
    }

    fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }
}

impl Door<'_> {
    /// Asks dom0 and waits for the answer that `pick` takes.
    fn ask<T>(&mut self, ask: Ask, pick: impl FnOnce(ToStub) -> Option<T>) -> Result<T, Errno> {
        self.link.send(&FromStub::Ask(ask)).map_err(errno)?;
        match self.link.await_command().map_err(errno)? {
            ToStub::Answer { result } if result < 0 => Err(Errno::new(result.saturating_neg())),
            answer => pick(answer).ok_or_else(|| {
                log::warn!("expected dom0's answer to {ask:?}, got {answer:?}");
                Errno::ECANCELED
            }),
        }
    }

    fn ask_for_done(&mut self, ask: Ask) -> Result<(), Errno> {
        self.ask(ask, |answer| matches!(answer, ToStub::Answer { .. }).then_some(()))
    }

    /// Asks for a bitmap and adds what follows on the ring.
    fn ask_for_bits(&mut self, ask: Ask, bits: &mut Bits) -> Result<(), Errno> {
        let bitmap = self.ask(ask, |answer| match answer {
            ToStub::Bitmap(bitmap) => Some(bitmap),
            _ => None,
        })?;
        bits.grow(bitmap.end).map_err(|_| Errno::ENOMEM)?;
        let mut block = alloc::vec![0; BLOCK_HEAD_BYTES + BLOCK_BYTES];
        for _ in 0..bitmap.nr_blocks {
            self.ring.receive_all(&mut block)?;
            let (number, bytes) = block.split_first_chunk::<BLOCK_HEAD_BYTES>().ok_or(Errno::EINVAL)?;
            bits.add(Gfn::new(u64::from(u32::from_le_bytes(*number)) * BLOCK_FRAMES), bytes);
        }
        Ok(())
    }
}

impl SendBroker for Door<'_> {
    fn present(&mut self, present: &mut Bits) -> Result<(), Errno> {
        self.ask_for_bits(Ask::Present, present)
    }

    fn start_log(&mut self) -> Result<(), Errno> {
        self.ask_for_done(Ask::StartLog)
    }

    fn nr_dirty(&mut self) -> Result<u64, Errno> {
        self.ask(Ask::CountDirty, |answer| match answer {
            ToStub::Count { nr_pages } => Some(nr_pages),
            _ => None,
        })
    }

    fn dirty(&mut self, dirty: &mut Bits) -> Result<(), Errno> {
        self.ask_for_bits(Ask::Dirty, dirty)
    }

    fn suspend(&mut self) -> Result<(), Errno> {
        self.ask_for_done(Ask::Suspend)
    }

    fn fetch(&mut self, kind: BlobKind, blob: &mut Vec<u8>) -> Result<(), Errno> {
        let asked = match kind {
            BlobKind::CpuidPolicy => control::BlobKind::CpuidPolicy,
            BlobKind::MsrPolicy => control::BlobKind::MsrPolicy,
            BlobKind::HvmContext => control::BlobKind::HvmContext,
        };
        let nr_bytes = self.ask(Ask::Fetch(asked), |answer| match answer {
            ToStub::Blob { nr_bytes } => Some(nr_bytes),
            _ => None,
        })?;
        if nr_bytes > MAX_CONTEXT_BYTES {
            return Err(Errno::E2BIG);
        }
        let nr_bytes = nr_bytes as usize;
        blob.clear();
        blob.try_reserve_exact(nr_bytes).map_err(|_| Errno::ENOMEM)?;
        blob.resize(nr_bytes, 0);
        self.ring.receive_all(blob)
    }

    fn tsc_info(&mut self) -> Result<TscInfo, Errno> {
        let info = self.ask(Ask::TscInfo, |answer| match answer {
            ToStub::TscInfo(info) => Some(info),
            _ => None,
        })?;
        let control::TscInfo { mode, khz, nsec, incarnation } = info;
        Ok(TscInfo { mode, khz, nsec, incarnation })
    }
}

fn errno(error: LinkError) -> Errno {
    log::warn!("{error}");
    Errno::EPIPE
}
