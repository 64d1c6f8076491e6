//! The way out: a guest's memory and state to a stream that every receiver of version 3 takes.
//!
//! The rooms, in the order in which data travel; none knows a room below it:
//!
//! | room | takes | gives |
//! |---|---|---|
//! | [`Policy`] | what the passes came to | whether the guest is suspended now |
//! | [`trace`] | bitmaps of dom0's | which pages come next |
//! | [`window`] | batches of gfns | the slots that show them |
//! | [`writer`] | records | bytes, and where contents go between them |
//!
//! [`Send`] puts them together. It writes records in the order of libxenguest's sender (`xg_sr_save.c`,
//! `xg_sr_save_x86_hvm.c`): policies, STATIC_DATA_END, memory, X86_TSC_INFO, HVM_CONTEXT, HVM_PARAMS, END.

mod bits;
mod error;
mod policy;
pub mod trace;
pub mod window;
pub mod writer;

use crate::stream::{BATCH_PAGES, Param, RecordType};
use crate::xen::{BlobKind, Output, SendBroker, XenSend};
use alloc::vec::Vec;
use core::fmt;
use trace::Trace;
use window::{Found, View};
use writer::{Due, Entry, Writer};
use xen_abi::abi as hvm;
use xen_abi::types::{Gfn, PAGE_SIZE};

pub use bits::Bits;
pub use error::Error;
pub use policy::{Decision, Passed, Policy, Timeout};

/// The HVM parameters that travel where they are not 0, in the order of libxenguest's sender (`xg_sr_save_x86_hvm.c`).
const PARAMS: [u32; 16] = [
    hvm::HVM_PARAM_STORE_PFN,
    hvm::HVM_PARAM_IOREQ_PFN,
    hvm::HVM_PARAM_BUFIOREQ_PFN,
    hvm::HVM_PARAM_PAGING_RING_PFN,
    hvm::HVM_PARAM_MONITOR_RING_PFN,
    hvm::HVM_PARAM_SHARING_RING_PFN,
    hvm::HVM_PARAM_VM86_TSS_SIZED,
    hvm::HVM_PARAM_CONSOLE_PFN,
    hvm::HVM_PARAM_ACPI_IOPORTS_LOCATION,
    hvm::HVM_PARAM_VIRIDIAN,
    hvm::HVM_PARAM_IDENT_PT,
    hvm::HVM_PARAM_VM_GENERATION_ID_ADDR,
    hvm::HVM_PARAM_IOREQ_SERVER_PFN,
    hvm::HVM_PARAM_NR_IOREQ_SERVER_PAGES,
    hvm::HVM_PARAM_X87_FIP_WIDTH,
    hvm::HVM_PARAM_MCA_CAP,
];

/// How a guest is to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// The running Xen's major and minor version, for the header.
    pub xen_version: (u32, u32),
    /// When the guest is suspended.
    pub mode: Mode,
    /// Whether all pages come once more at the end, for the receiver to compare.
    pub verify: bool,
}

/// When the guest is suspended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Before its memory is read.
    Suspended,
    /// After passes over its memory while it runs, as the policy says.
    Live(Policy),
}

/// How far a send is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing is written.
    Opening,
    /// A pass while the guest runs; when it began, and how many bytes had gone out by then.
    Live(Policy, Mark),
    /// The pass while the guest is suspended.
    Last,
    /// All pages once more.
    Verify,
    /// END is written.
    Ended,
    /// END has gone out.
    Complete,
    /// It ended otherwise.
    Failed(Error),
}

/// A moment of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    ns: u64,
    nr_bytes: u64,
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is more to do at once.
    More,
    /// The output has no room.
    Full,
    /// The operator's limit of bytes a second: there is more to do at this time, in nanoseconds.
    At(u64),
    /// All has gone out.
    Complete,
}

/// Where a send is, for an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Headers and static data.
    Opening,
    /// Memory, for the first time.
    Memory,
    /// Memory that was written meanwhile.
    Precopy,
    /// The guest is suspended: the rest of its memory, and its state.
    Finishing,
}

/// What has been sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pages with contents, repeats counted.
    pub nr_pages: u64,
    /// Of them, those that were mapped from a pass before.
    pub nr_kept: u64,
    /// Passes begun.
    pub nr_passes: u32,
    /// Pages with contents after the guest was suspended; those for comparing not counted.
    pub nr_last: u64,
}

/// The send of one target.
///
/// ```
/// use migration::send::{Config, Error, Send, Turn};
/// use migration::xen::{Output, SendBroker, XenSend};
///
/// fn send<D: XenSend + Output + SendBroker>(config: Config, door: &mut D) -> Result<u64, Error> {
///     let mut send = Send::new(config);
///     loop {
///         match send.turn(door)? {
///             Turn::Complete => return Ok(send.nr_bytes()),
///             Turn::More | Turn::Full | Turn::At(_) => {} // a real caller sleeps until there is room
///         }
///     }
/// }
/// ```
pub struct Send {
    config: Config,
    state: State,
    writer: Writer,
    trace: Trace,
    view: View,
    began_ns: u64,
    tally: Tally,
    /// The batch under way, and what its page list says.
    batch: Vec<Gfn>,
    entries: Vec<Entry>,
    /// The slots of the batch's pages with contents, in order, and how many bytes of those have gone out.
    slots: Vec<usize>,
    nr_copied: usize,
}

impl fmt::Debug for Send {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Send").field("state", &self.state).field("tally", &self.tally).finish_non_exhaustive()
    }
}

impl Send {
    /// Makes the send of a target; nothing is asked of anybody yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Opening,
            writer: Writer::default(),
            trace: Trace::new(Bits::default()),
            view: View::default(),
            began_ns: 0,
            tally: Tally::default(),
            batch: Vec::with_capacity(BATCH_PAGES),
            entries: Vec::with_capacity(BATCH_PAGES),
            slots: Vec::with_capacity(BATCH_PAGES),
            nr_copied: 0,
        }
    }

    /// Writes what there is room for, and then prepares the next batch or takes the next step.
    ///
    /// # Errors
    /// What ended the send: no frame is held then, the guest is whole, and every later call returns the same. Whoever
    /// suspended the guest resumes it.
    pub fn turn<D: XenSend + Output + SendBroker>(&mut self, door: &mut D) -> Result<Turn, Error> {
        if let State::Failed(error) = self.state {
            return Err(error);
        }
        self.advance(door).inspect_err(|error| {
            door.release();
            self.state = State::Failed(*error);
        })
    }

    /// Returns how many bytes have gone out.
    pub fn nr_bytes(&self) -> u64 {
        self.writer.nr_bytes()
    }

    /// Returns what has been sent so far.
    pub fn tally(&self) -> Tally {
        Tally { nr_passes: self.trace.nr_passes(), ..self.tally }
    }

    /// Tells where the send is.
    pub fn stage(&self) -> Stage {
        match self.state {
            State::Opening => Stage::Opening,
            State::Live(..) if self.trace.nr_passes() > 1 => Stage::Precopy,
            State::Live(..) => Stage::Memory,
            State::Last if self.trace.nr_passes() == 1 => Stage::Memory,
            _ => Stage::Finishing,
        }
    }

    fn advance<D: XenSend + Output + SendBroker>(&mut self, door: &mut D) -> Result<Turn, Error> {
        if !self.drain(door) {
            return Ok(Turn::Full);
        }
        let state = self.state;
        match state {
            State::Opening => self.open(door)?,
            State::Live(policy, mark) => return self.live(policy, mark, door),
            State::Last | State::Verify if self.next_batch(door)? => {}
            State::Last if self.config.verify => self.begin_verification(),
            State::Last | State::Verify => self.finish(door)?,
            State::Ended | State::Complete => {
                self.state = State::Complete;
                return Ok(Turn::Complete);
            }
            State::Failed(error) => return Err(error),
        }
        Ok(Turn::More)
    }

    /// The next step of a pass while the guest runs.
    fn live<D: XenSend + Output + SendBroker>(
        &mut self,
        policy: Policy,
        mark: Mark,
        door: &mut D,
    ) -> Result<Turn, Error> {
        let next_ns = self.began_ns.saturating_add(policy.next_ns(self.nr_bytes()));
        if door.now_ns() < next_ns {
            return Ok(Turn::At(next_ns));
        }
        if !self.next_batch(door)? {
            self.end_live_pass(policy, mark, door)?;
        }
        Ok(Turn::More)
    }

    fn begin_verification(&mut self) {
        self.writer.record(RecordType::VERIFY, &[]);
        self.trace.begin_again();
        self.state = State::Verify;
    }

    /// Puts out what is due, as far as there is room; tells whether that was all.
    fn drain<D: Output>(&mut self, door: &mut D) -> bool {
        loop {
            let room = door.room();
            let nr_bytes = match self.writer.due() {
                Due::Nothing => return true,
                _ if room == 0 => return false,
                Due::Bytes(bytes) => {
                    let bytes = &bytes[..bytes.len().min(room)];
                    door.put(bytes);
                    bytes.len()
                }
                Due::Contents(_) => self.copy(room, door),
            };
            self.writer.pass(nr_bytes);
        }
    }

    /// Puts out at most `room` bytes of the batch's contents, from slots that stand in a row; returns how many.
    fn copy<D: Output>(&mut self, room: usize, door: &mut D) -> usize {
        let (first, offset) = (self.nr_copied / PAGE_SIZE, self.nr_copied % PAGE_SIZE);
        let slots = &self.slots[first..];
        let is_next = |pair: &&[usize]| pair[1] == pair[0] + 1;
        let nr_slots = 1 + slots.windows(2).take_while(is_next).count();
        let nr_bytes = room.min(nr_slots * PAGE_SIZE - offset);
        door.put_frames(slots[0], offset, nr_bytes);
        self.nr_copied += nr_bytes;
        nr_bytes
    }

    fn open<D: XenSend + Output + SendBroker>(&mut self, door: &mut D) -> Result<(), Error> {
        self.writer.headers(self.config.xen_version);
        self.fetch(BlobKind::CpuidPolicy, RecordType::X86_CPUID_POLICY, door)?;
        self.fetch(BlobKind::MsrPolicy, RecordType::X86_MSR_POLICY, door)?;
        self.writer.record(RecordType::STATIC_DATA_END, &[]);
        match self.config.mode {
            Mode::Suspended => door.suspend().map_err(Error::Suspend)?,
            Mode::Live(_) => door.start_log().map_err(Error::StartLog)?,
        }
        self.began_ns = door.now_ns();
        let mut present = Bits::default();
        door.present(&mut present).map_err(Error::Present)?;
        self.trace = Trace::new(present);
        self.view = View::new(door.nr_slots());
        self.look_for_special_pages(door)?;
        self.state = match self.config.mode {
            Mode::Suspended => State::Last,
            Mode::Live(policy) => State::Live(policy, Mark { ns: door.now_ns(), nr_bytes: self.nr_bytes() }),
        };
        Ok(())
    }

    /// Writes a blob of dom0's as a record, unless it is empty.
    fn fetch<D: SendBroker>(
        &mut self,
        kind: BlobKind,
        record: RecordType,
        door: &mut D,
    ) -> Result<(), Error> {
        let mut blob = Vec::new();
        door.fetch(kind, &mut blob).map_err(|errno| Error::Fetch { kind, errno })?;
        if !blob.is_empty() {
            self.writer.record(record, &blob);
        }
        Ok(())
    }

    fn look_for_special_pages<D: XenSend>(&mut self, door: &mut D) -> Result<(), Error> {
        let mut special = Vec::new();
        door.special_pages(&mut special).map_err(Error::Special)?;
        // One that came into the window while it was still the guest's may not stay there.
        self.view.forget(&special, door);
        self.trace.note_special(special);
        Ok(())
    }

    /// Maps and writes the next batch of the pass; tells whether there was one.
    fn next_batch<D: XenSend>(&mut self, door: &mut D) -> Result<bool, Error> {
        self.trace.next_batch(self.view.span(), &mut self.batch);
        if self.batch.is_empty() {
            return Ok(false);
        }
        let trace = &self.trace;
        let wanted = self.batch.iter().copied().filter(|gfn| trace.may_be_mapped(*gfn));
        self.tally.nr_kept += self.view.show(wanted, door)?;
        self.entries.clear();
        self.slots.clear();
        self.nr_copied = 0;
        let mut found = self.view.found().iter().peekable();
        for &gfn in &self.batch {
            let here = found.next_if(|found| found.gfn == gfn);
            if let Some(Found { slot: Some(slot), .. }) = here {
                self.slots.push(*slot);
                self.entries.push(Entry::Data(gfn));
            } else {
                self.entries.push(Entry::Hole(gfn));
            }
            self.trace.note(gfn, matches!(here, Some(Found { slot: Some(_), .. })));
        }
        let nr_pages = self.slots.len() as u64;
        self.tally.nr_pages += nr_pages;
        if self.state == State::Last {
            self.tally.nr_last += nr_pages;
        }
        self.writer.pages(&self.entries);
        Ok(true)
    }

    fn end_live_pass<D: XenSend + Output + SendBroker>(
        &mut self,
        policy: Policy,
        mark: Mark,
        door: &mut D,
    ) -> Result<(), Error> {
        let now_ns = door.now_ns();
        let nr_dirty = door.nr_dirty().map_err(Error::Log)?.saturating_add(self.trace.nr_due());
        let decision = policy.decide(Passed {
            nr_passes: self.trace.nr_passes(),
            nr_bytes: self.nr_bytes() - mark.nr_bytes,
            took_ns: now_ns.saturating_sub(mark.ns),
            elapsed_ns: now_ns.saturating_sub(self.began_ns),
            nr_dirty,
        });
        match decision {
            Decision::Abort(seconds) => return Err(Error::Timeout { seconds, nr_dirty }),
            Decision::Again => {
                self.begin_pass(door)?;
                self.state = State::Live(policy, Mark { ns: now_ns, nr_bytes: self.nr_bytes() });
            }
            Decision::Suspend => {
                door.suspend().map_err(Error::Suspend)?;
                self.begin_pass(door)?;
                // Before Xen 4.22 the log does not see memory that the guest gets meanwhile.
                let mut present = Bits::default();
                door.present(&mut present).map_err(Error::Present)?;
                self.trace.add_found(present)?;
                self.state = State::Last;
            }
        }
        Ok(())
    }

    /// Begins a pass over what was written since the last one, and what stands in the window and has changed its place.
    fn begin_pass<D: XenSend + SendBroker>(&mut self, door: &mut D) -> Result<(), Error> {
        let mut dirty = Bits::default();
        dirty.grow(self.trace.end())?;
        door.dirty(&mut dirty).map_err(Error::Log)?;
        self.look_for_special_pages(door)?;
        self.view.each_stale(door, |gfn| self.trace.insist(gfn));
        self.trace.begin_pass(&dirty);
        Ok(())
    }

    /// The guest's memory has gone out: lets go of it, and writes its state.
    fn finish<D: XenSend + SendBroker>(&mut self, door: &mut D) -> Result<(), Error> {
        door.release();
        self.writer.tsc_info(door.tsc_info().map_err(Error::TscInfo)?);
        self.fetch(BlobKind::HvmContext, RecordType::HVM_CONTEXT, door)?;
        let mut params = Vec::with_capacity(PARAMS.len());
        for index in PARAMS {
            let value = door.hvm_param(index).map_err(|errno| Error::Param { index, errno })?;
            if value != 0 {
                params.push(Param { index, value });
            }
        }
        self.writer.params(&params);
        self.writer.record(RecordType::END, &[]);
        self.state = State::Ended;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
