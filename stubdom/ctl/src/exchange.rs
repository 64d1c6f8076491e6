//! Exchanges with one guest: its stub, what only dom0 knows of its pages, and each exchange's three steps.
//!
//! **Takes** frames of the guest. **Gives** what came of each. **Never** lets the guest run while its stub may be
//! swapping, and never holds it longer than the swap takes.

use crate::cli::OfflineArguments;
use crate::commands::Guest;
use crate::conf::Conf;
use crate::control_channel::{ControlChannel, ControlError};
use crate::error::Error;
use crate::host::{Host, home};
use crate::pair::{self, Stub};
use crate::qmp::Qmp;
use crate::saving;
use crate::standstill::Care;
use control::exchange::{
    self as wire, Exchanged, Insured, Prepared, Reason, Repair, Reserved, Role, Swapped,
};
use control::{FromStub, ToStub};
use std::time::{Duration, Instant};
use xen_front::types::{Gfn, Mfn, Order};

/// A region that no guest uses: above hvmloader's tables and below the I/O APIC (`hvmloader/config.h`), and below libxc's
/// special pages, so that it is never the guest's highest.
const SCRATCH_REGION: Gfn = Gfn::new(0xfe200);

/// libxc's special pages, which HVM parameters name (`xg_dom_x86.c`).
const SPECIAL_PAGES: (u64, u64) = (0xfeff0, 0x10_0000);

/// Room for the new superpage and for the one that waits.
const ROOM_PAGES: u64 = 1024;

/// How long a stub may owe the end of a swap before it is destroyed.
const SWAP: Duration = Duration::from_secs(30);

/// How long the users of an old frame may take to let go of it.
pub(crate) const LET_GO: Duration = Duration::from_secs(3);

/// What came of one frame.
pub(crate) enum Step {
    /// Left as it was.
    Refused {
        /// Why, by name.
        reason: &'static str,
        /// Why, in words.
        text: String,
    },
    /// It could be exchanged.
    Fit(Prepared),
    /// It is exchanged.
    Exchanged(Exchange),
}

/// An exchange that was done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange {
    /// What was decided.
    pub(crate) prepared: Prepared,
    /// What the stub did.
    pub(crate) swapped: Swapped,
    /// What came of it.
    pub(crate) done: Exchanged,
    /// How long the guest's vCPUs stood.
    pub(crate) stood: Duration,
    /// How many old frames are the guest's still: somebody holds them and goes on using them.
    pub(crate) nr_held: u64,
}

/// What the stub says in place of what was hoped for.
type Answer<T> = Result<T, (Reason, String)>;

/// A guest, its stub, and the care that nothing stays behind.
pub(crate) struct Session<'a> {
    host: &'a Host,
    guest: Guest,
    conf: Conf,
    channel: ControlChannel,
    /// The stub, if it is to end with the session.
    stub: Option<Stub<'a>>,
    care: Care<'a>,
}

impl<'a> Session<'a> {
    /// Finds or starts the guest's stub.
    ///
    /// # Errors
    /// There is none to be had.
    pub(crate) fn open(host: &'a Host, guest: Guest, arguments: &OfflineArguments) -> Result<Self, Error> {
        let care = Care::take(host, guest.domid)?;
        let conf = guest.conf()?;
        let (channel, stub) = match pair::find(host, guest.domid)? {
            Some(stub) => {
                let (mut channel, known) = ControlChannel::open(host, stub, conf.stall_timeout)?;
                channel.pair(host, known, guest.domid, conf.stall_timeout)?;
                (channel, None)
            }
            None => {
                let stub = Stub::start(host, &conf, &guest.name, guest.domid)?;
                (stub.greet(&conf)?, Some(stub))
            }
        };
        let stub = stub.and_then(|stub| if arguments.keep { stub.keep_none() } else { Some(stub) });
        Ok(Self { host, guest, conf, channel, stub, care })
    }

    /// Exchanges one frame, or looks whether it could be.
    ///
    /// # Errors
    /// The stub or dom0 failed; the guest runs.
    pub(crate) fn exchange(&mut self, mfn: Mfn, arguments: &OfflineArguments) -> Result<Step, Error> {
        if let Some(refused) = self.refused()? {
            return Ok(refused);
        }
        let whole = !arguments.check && !arguments.split;
        if whole {
            self.care.make_room(ROOM_PAGES)?;
        }
        let scratch_region = if whole { Some(self.scratch_region()?) } else { None };
        let mut step = self.steps(mfn, scratch_region, arguments);
        if let Err(Error::Control(ControlError::Dead { .. })) = &step
            && let Err(error) = self.rescue(Repair { insured: None, scratch_region })
        {
            step = Err(error);
        }
        self.care.end_room()?;
        step
    }

    /// Replaces a stub that has died during an exchange, and has the new one put the guest right.
    fn rescue(&mut self, repair: Repair) -> Result<(), Error> {
        let rescued = rescue(self.host, &self.guest, &self.conf, repair)?;
        self.adopt(rescued);
        Ok(())
    }

    fn adopt(&mut self, (channel, stub): (ControlChannel, Stub<'a>)) {
        self.channel = channel;
        match &mut self.stub {
            Some(old) => std::mem::replace(old, stub).keep(), // dead and buried: nothing to destroy
            None => stub.keep(),
        }
    }

    /// What keeps any frame of this guest from being exchanged.
    fn refused(&self) -> Result<Option<Step>, Error> {
        let guest = self.guest.domid;
        let refused = |reason, text: String| Ok(Some(Step::Refused { reason, text }));
        if let Some(pid) = saving::saver_of(guest) {
            let text = format!(
                "the guest is being saved or migrated (process {pid}): a new frame would be missing from the stream; try \
                 again afterwards"
            );
            return refused("being-saved", text);
        }
        let devices = self.host.store.children(&format!("/local/domain/0/backend/pci/{}", guest.raw()))?;
        if !devices.is_empty() {
            let text = "the guest has passed-through PCI devices, whose DMA cannot be stopped: shut it down"
                .to_owned();
            return refused("passthrough", text);
        }
        Ok(None)
    }

    fn steps(
        &mut self,
        mfn: Mfn,
        scratch_region: Option<Gfn>,
        arguments: &OfflineArguments,
    ) -> Result<Step, Error> {
        for reserved in self.reserved()? {
            self.channel.send(self.host, &ToStub::Reserve(reserved))?;
        }
        let order = wire::Exchange {
            mfn,
            scratch_region,
            only_check: arguments.check,
            panic_at: arguments.debug_stub_panic,
        };
        self.channel.send(self.host, &ToStub::Exchange(order))?;
        let prepared = match self.prepared()? {
            Ok(prepared) if arguments.check => return Ok(Step::Fit(prepared)),
            Ok(prepared) => prepared,
            Err(refusal) => return Ok(refused(refusal)),
        };
        debug_abort(arguments, 1);
        let (swapped, stood) = self.swap(scratch_region, arguments)?;
        debug_abort(arguments, 4);
        self.channel.send(self.host, &ToStub::Finish)?;
        let done = self.finished()?;
        Ok(match (swapped, done) {
            (Ok(swapped), Ok(Some(done))) => {
                let nr_held = self.still_held(done.nr_held)?;
                Step::Exchanged(Exchange { prepared, swapped, done, stood, nr_held })
            }
            (Err(refusal), _) | (_, Err(refusal)) => refused(refusal),
            (Ok(_), Ok(None)) => refused((Reason::Xen, "the stub lost track of its exchange".to_owned())),
        })
    }

    /// How many old frames the guest still owns once their last users have let go of them, or after [`LET_GO`]: a device
    /// model hears of it only when the guest runs.
    fn still_held(&mut self, mut nr_held: u64) -> Result<u64, Error> {
        let deadline = Instant::now() + LET_GO;
        while nr_held > 0 && Instant::now() < deadline {
            self.host.interrupt.wait(&[], Duration::from_millis(20))?;
            self.channel.send(self.host, &ToStub::CountHeld)?;
            let held = |message: FromStub<'_>| match message {
                FromStub::Held { nr_frames } => Some(nr_frames),
                _ => None,
            };
            nr_held = self.channel.wait(self.host, self.conf.stall_timeout, "Held", held)?;
        }
        Ok(nr_held)
    }

    /// Holds the guest still for the swap, and no longer.
    fn swap(
        &mut self,
        scratch_region: Option<Gfn>,
        arguments: &OfflineArguments,
    ) -> Result<(Answer<Swapped>, Duration), Error> {
        let standstill = self.care.hold()?;
        debug_abort(arguments, 2);
        let sent = self.channel.send(self.host, &ToStub::Swap);
        debug_abort(arguments, 3);
        let mut insured = None;
        let swapped = sent.and_then(|()| {
            self.channel
                .wait(self.host, self.conf.stall_timeout, "Swapped", |said| swap_answer(said, &mut insured))
        });
        let swapped = match swapped {
            Err(error) if !matches!(error, ControlError::Dead { .. }) => {
                see_swap_end(self.host, &mut self.channel, &self.guest, &mut insured, error)
            }
            swapped => swapped,
        };
        let mut rescued = None;
        if swapped.is_err() && insured.is_some() {
            // The guest may have a hole where its superpage was: it stands until that is put right.
            match rescue(self.host, &self.guest, &self.conf, Repair { insured, scratch_region }) {
                Ok(new) => rescued = Some(new),
                Err(error) => {
                    standstill.leave();
                    return Err(error);
                }
            }
        }
        if let Ok(Err((Reason::Lost, text))) = &swapped {
            standstill.leave();
            return Ok((Err((Reason::Lost, text.clone())), Duration::ZERO));
        }
        let stood = standstill.end()?;
        if let Some(rescued) = rescued {
            self.adopt(rescued);
            let text = "the stub died during the swap; another has put the guest right, nothing is exchanged: try again";
            return Err(ControlError::Failed(text.to_owned()).into());
        }
        Ok((swapped?, stood))
    }

    fn prepared(&mut self) -> Result<Answer<Prepared>, ControlError> {
        self.channel.wait(self.host, self.conf.stall_timeout, "Prepared", |message| match message {
            FromStub::Prepared(prepared) => Some(Ok(prepared)),
            other => not_exchanged(other),
        })
    }

    fn finished(&mut self) -> Result<Answer<Option<Exchanged>>, ControlError> {
        self.channel.wait(self.host, self.conf.stall_timeout, "Exchanged", |message| match message {
            FromStub::Exchanged(exchanged) => Some(Ok(Some(exchanged))),
            FromStub::Done => Some(Ok(None)),
            other => not_exchanged(other),
        })
    }

    /// Pages that must stay: Xen's shared information, and what the device model may have mapped for good.
    fn reserved(&self) -> Result<Vec<Reserved>, Error> {
        let mut reserved = Vec::new();
        if let Some(info) = self.host.xen.domain_info(self.guest.domid)? {
            reserved.push(Reserved {
                first: Gfn::new(info.shared_info.raw()),
                nr_frames: 1,
                role: Role::XenHeap,
            });
        }
        if Qmp::socket(self.guest.domid).exists() {
            let kib = |node| self.host.store.read_number::<u64>(&home(self.guest.domid, node));
            let ram = kib("memory/static-max")?.unwrap_or_default();
            let video = kib("memory/videoram")?.unwrap_or_default();
            reserved.extend(beyond_ram(ram.saturating_sub(video) / 4));
            reserved.extend(self.physmap()?);
        }
        reserved.truncate(wire::MAX_RESERVED);
        Ok(reserved)
    }

    /// What QEMU has moved in the guest's address space, chiefly video memory (`hw/i386/xen/xen-hvm.c`).
    fn physmap(&self) -> Result<Vec<Reserved>, Error> {
        let directory = format!("/local/domain/0/device-model/{}/physmap", self.guest.domid.raw());
        let mut found = Vec::new();
        for entry in self.host.store.children(&directory)? {
            let number = |node: &str| -> Result<Option<u64>, Error> {
                let text = self.host.store.read(&format!("{directory}/{entry}/{node}"))?.unwrap_or_default();
                Ok(u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok())
            };
            if let (Some(start), Some(size)) = (number("start_addr")?, number("size")?) {
                let nr_frames = size.div_ceil(4096);
                found.push(Reserved { first: Gfn::new(start >> 12), nr_frames, role: Role::DeviceModel });
            }
        }
        Ok(found)
    }

    fn scratch_region(&self) -> Result<Gfn, Error> {
        let end = self.host.xen.end_gfn(self.guest.domid)?;
        let past = Gfn::new(end.raw().next_multiple_of(Order::PAGE_2M.nr_frames()));
        Ok(if end > SCRATCH_REGION { SCRATCH_REGION } else { past })
    }
}

/// Where a device model keeps its video memory and ROMs: every frame beyond the guest's RAM, which ends below the hole for
/// devices and goes on at 4 GiB. The special pages have names of their own.
fn beyond_ram(nr_ram_pages: u64) -> [Reserved; 2] {
    const HOLE: u64 = 0xf0000;
    const ABOVE: u64 = 0x10_0000;
    let low_end = nr_ram_pages.min(HOLE);
    let high_end = ABOVE + nr_ram_pages.saturating_sub(HOLE);
    let run = |first, end: u64| Reserved {
        first: Gfn::new(first),
        nr_frames: end - first,
        role: Role::DeviceModel,
    };
    [run(low_end, SPECIAL_PAGES.0), run(high_end, 1 << 36)]
}

fn refused((reason, text): (Reason, String)) -> Step {
    Step::Refused { reason: reason.as_str(), text }
}

fn not_exchanged<T>(message: FromStub<'_>) -> Option<Answer<T>> {
    match message {
        FromStub::NotExchanged { reason, text } => {
            let text = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            Some(Err((reason, text)))
        }
        _ => None,
    }
}

/// Takes what the stub says during a swap; notes where the copy of a superpage waits.
fn swap_answer(message: FromStub<'_>, insured: &mut Option<Insured>) -> Option<Answer<Swapped>> {
    match message {
        FromStub::Insured(told) => {
            *insured = Some(told);
            None
        }
        FromStub::Swapped(swapped) => Some(Ok(swapped)),
        other => not_exchanged(other),
    }
}

/// Starts a stub in the place of a dead one and has it put the guest right.
fn rescue<'a>(
    host: &'a Host,
    guest: &Guest,
    conf: &Conf,
    repair: Repair,
) -> Result<(ControlChannel, Stub<'a>), Error> {
    log::warn!("the stub of {} died: starting another to put the guest right", guest.name);
    pair::bury(host, guest.domid, conf.start_timeout)?;
    let stub = Stub::start(host, conf, &guest.name, guest.domid)?;
    let mut channel = stub.greet(conf)?;
    channel.send(host, &ToStub::Repair(repair))?;
    let done = channel.wait(host, conf.stall_timeout, "Done for Repair", |message| match message {
        FromStub::Done => Some(Ok(())),
        other => not_exchanged(other),
    })?;
    done.map_err(|(_, text)| ControlError::Failed(text))?;
    Ok((channel, stub))
}

/// Waits for the end of a swap whatever else happens: until then the guest must not run. A stub that does not end it is
/// destroyed; a dead one changes nothing any more.
fn see_swap_end(
    host: &Host,
    channel: &mut ControlChannel,
    guest: &Guest,
    insured: &mut Option<Insured>,
    error: ControlError,
) -> Result<Answer<Swapped>, ControlError> {
    let deadline = Instant::now() + SWAP;
    while Instant::now() < deadline && channel.check_alive(host).is_ok() {
        match channel.next(&mut |message| swap_answer(message, insured)) {
            Ok(Some(Some(answer))) => return Ok(answer),
            Ok(_) => std::thread::sleep(Duration::from_millis(2)),
            Err(_) => break,
        }
    }
    if let Ok(Some(stub)) = pair::find(host, guest.domid) {
        log::error!("the stub {stub} does not end its swap: destroying it");
        pair::destroy(host, &stub.to_string(), stub, guest.domid);
    }
    Err(error)
}

/// A test of what a dying stubctl leaves behind.
fn debug_abort(arguments: &OfflineArguments, step: u8) {
    if arguments.debug_abort == Some(step) {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_guest_has_nothing_of_its_own_past_its_ram() {
        let [low, high] = beyond_ram(0x10000);
        assert_eq!((low.first, low.nr_frames), (Gfn::new(0x10000), 0xfeff0 - 0x10000));
        assert_eq!(high.first, Gfn::new(0x10_0000));
    }

    #[test]
    fn a_large_guests_ram_goes_on_at_4_gib() {
        let [low, high] = beyond_ram(0xf0000 + 0x500);
        assert_eq!(low.first, Gfn::new(0xf0000));
        assert_eq!(high.first, Gfn::new(0x10_0500));
    }
}
