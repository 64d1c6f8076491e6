//! Marks of frames: whose a frame is, when it is marked, and when the mark goes.
//!
//! **Takes** a frame. **Gives** its owner, or the mark that an exchange needs. **Never** leaves a mark on a frame in use that
//! no exchange needs any more: freed beside free memory, such a frame damages Xen's lists ([`XenVersion`] says which Xen's).
//!
//! One process at a time changes marks ([`lock`]), so that none takes another's for its own. A mark that an exchange needs
//! is noted in the guest's record before it is made; who dies afterwards has it taken back by the guardian, or by the next
//! stubctl.

use crate::byte_lock::{ByteLock, Kind};
use crate::error::Error;
use crate::exchange::LET_GO;
use crate::ffi::hypercalls::Hypercalls;
use crate::ffi::marking::Cpu;
use crate::ffi::xenctrl::XenError;
use crate::frame::{Owner, State};
use crate::host::Host;
use crate::verdict::Refused;
use crate::wait::Wait;
use crate::xen_version::XenVersion;
use migration::exchange_pv::PageType;
use std::io;
use std::time::Duration;
use xen_abi::types::{Domid, Mfn};

/// How long another may take to change a mark.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often to look whether it has.
const LOOK: Duration = Duration::from_millis(1);

/// What became of a mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The frame before the mark was taken back, if it was.
    pub(crate) state: State,
    /// The Xen for whose sake it was taken back from a frame that somebody holds still.
    pub(crate) for_xen: Option<XenVersion>,
}

/// Marks, as one stubctl makes them.
pub(crate) struct Marks<'a> {
    host: &'a Host,
    calls: Hypercalls,
    careless: bool,
    /// The Xen that runs, if it damages its free memory.
    unsound: Option<XenVersion>,
}

impl<'a> Marks<'a> {
    /// Asks which Xen this is; `careless` takes no care of one that damages its free memory.
    ///
    /// # Errors
    /// Xen does not say.
    pub(crate) fn new(host: &'a Host, careless: bool) -> Result<Self, Error> {
        let version = host.xen.version()?;
        let unsound = Some(version).filter(|version| !version.cuts_free_memory_soundly());
        Ok(Self { host, calls: Hypercalls::open()?, careless, unsound })
    }

    /// The Xen that runs, if care must be taken of it.
    pub(crate) fn careful(&self) -> Option<XenVersion> {
        self.unsound.filter(|_| !self.careless)
    }

    /// The state of a frame; `None` when there is none of that number.
    pub(crate) fn state(&self, mfn: Mfn) -> Result<Option<State>, Error> {
        let mut word = [0];
        match self.host.xen.offline_states(mfn, &mut word) {
            Ok(()) => Ok(Some(State::new(word[0]))),
            Err(error) if error.errno == libc::EINVAL => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whose a frame is. A frame that is marked stays so, and one that is not stays as it is.
    ///
    /// # Errors
    /// Xen does not say.
    pub(crate) fn owner(&self, mfn: Mfn) -> Result<Result<Owner, Refused>, Error> {
        if let Some(domid) = pv_owner(self.host, &self.calls, mfn)? {
            return Ok(Ok(Owner::Domain(domid)));
        }
        // Only a frame at no place may be a PV domain's by now, which shares it with Xen.
        let cpu = match self.host.xen.place_of(mfn)? {
            Some(_) => Cpu::Any,
            None => match self.cpu_for_pv()? {
                Ok(cpu) => cpu,
                Err(refused) => return Ok(Err(refused)),
            },
        };
        let _lock = lock(self.host)?;
        let xen = &self.host.xen;
        let word = match self.state(mfn)? {
            Some(state) if state.is_pending() => self.calls.mark_offline(xen, mfn, cpu),
            _ => self.calls.peek(xen, mfn, cpu),
        };
        owner_of(word)
    }

    /// Where the frame of a PV domain is marked, or why it cannot be.
    pub(crate) fn cpu_for_pv(&self) -> Result<Result<Cpu, Refused>, Error> {
        if self.calls.can_leave_cpu_0(&self.host.xen)? {
            return Ok(Ok(Cpu::NotFirst));
        }
        if self.careless {
            return Ok(Ok(Cpu::Any));
        }
        let text = "dom0 runs on physical CPU 0 alone, where Xen may hang when it marks a frame of a PV domain, of dom0 or of \
                    nobody: let dom0 have another (xl cpupool-cpu-add, xl vcpu-pin; --careless does it all the same)";
        Ok(Err(Refused::new("dom0-on-cpu-0", text)))
    }

    /// Marks a frame that no guest has, for good.
    ///
    /// # Errors
    /// Xen does not.
    pub(crate) fn mark_for_good(&self, mfn: Mfn) -> Result<Result<Owner, Refused>, Error> {
        let cpu = match self.cpu_for_pv()? {
            Ok(cpu) => cpu,
            Err(refused) => return Ok(Err(refused)),
        };
        let _lock = lock(self.host)?;
        owner_of(self.calls.mark_offline(&self.host.xen, mfn, cpu))
    }

    /// Marks a frame of an HVM or PVH guest, just before it is taken from the guest. It is not marked when there is a
    /// refusal.
    ///
    /// # Errors
    /// Xen does not.
    pub(crate) fn mark_of_guest(&self, mfn: Mfn, guest: Domid) -> Result<Option<Refused>, Error> {
        if let Some(refused) = self.beside_free(mfn)? {
            return Ok(Some(refused));
        }
        let _lock = lock(self.host)?;
        let word = self.calls.mark_offline(&self.host.xen, mfn, Cpu::Any)?;
        let lives = self.host.xen.domain_info(guest)?.is_some_and(|info| !info.dying);
        let refused = match Owner::of_mark(word) {
            Owner::Domain(owner) if owner == guest && lives => return Ok(None),
            Owner::Domain(owner) if owner == guest => {
                Refused::new("dying", "its owner is being destroyed, which frees it: try again afterwards")
            }
            _ => Refused::new("changing-hands", "its owner has let go of it just now: try again"),
        };
        self.unmark(mfn)?;
        Ok(Some(refused))
    }

    /// Whether a frame would be freed beside free memory, to the harm of this Xen.
    ///
    /// # Errors
    /// Xen does not say.
    pub(crate) fn beside_free(&self, mfn: Mfn) -> Result<Option<Refused>, Error> {
        let Some(version) = self.careful() else { return Ok(None) };
        let neighbour = neighbour(mfn);
        let is_offlined = self.state(neighbour)?.is_some_and(State::is_offlined);
        if is_offlined || self.host.xen.has_place(neighbour)? {
            return Ok(None);
        }
        let text = format!(
            "it could be exchanged, but {neighbour} beside it is free or Xen's own, and Xen {version} damages its lists of free \
             memory when it takes a frame beside a free one out of use, and may crash later (mended in 4.20.4, 4.21.2 and \
             4.22; --careless does it all the same); try again later"
        );
        Ok(Some(Refused::new("beside-free", text)))
    }

    /// Takes a mark back, and sees that it is gone.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn take_back(&self, mfn: Mfn) -> Result<(), Error> {
        let _lock = lock(self.host)?;
        self.unmark(mfn)
    }

    /// As [`Marks::take_back`], by who has the lock.
    fn unmark(&self, mfn: Mfn) -> Result<(), Error> {
        self.host.xen.mark_online(mfn)?;
        match self.state(mfn)? {
            Some(state) if !state.is_ordinary() => {
                let text = format!(
                    "{mfn} was to be as before, and Xen says \"{state}\": xen-hptool mem-online {:#x}",
                    mfn.raw()
                );
                Err(io::Error::other(text).into())
            }
            _ => Ok(()),
        }
    }

    /// The state of an old frame once its last users have let go of it, or after [`LET_GO`]; as it is if somebody wants an end,
    /// or if the guest has it at a place.
    ///
    /// A guest whose populate-on-demand entries are outstanding has the frame put into its cache instead of freed; marking it
    /// once more has Xen take it from there (`p2m_pod_offline_or_broken_replace`).
    pub(crate) fn settled(&self, mfn: Mfn, guest: Domid) -> Result<State, Error> {
        let pause = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        loop {
            let state = self.state(mfn)?.unwrap_or(State::new(0));
            if !state.is_pending() || self.host.xen.has_place(mfn)? {
                return Ok(state);
            }
            if waited >= LET_GO || self.host.interrupt.wait(&[], pause).is_err() {
                break;
            }
            waited += pause;
        }
        let info = self.host.xen.domain_info(guest)?;
        if info.is_some_and(|info| info.hvm && !info.dying) && self.host.xen.populates_on_demand(guest)? {
            let _lock = lock(self.host)?;
            // Xen crashes the owner of a broken frame that is marked, so nothing stands between look and mark. A machine
            // check there would still do it: no call does both.
            if self.state(mfn)?.is_some_and(|state| state.is_pending() && !state.is_broken()) {
                self.calls.mark_offline(&self.host.xen, mfn, Cpu::Any)?;
            }
        }
        Ok(self.state(mfn)?.unwrap_or(State::new(0)))
    }

    /// The exchange of a frame is over: its mark stays only on a frame that is out of use, or out of the guest and harmless.
    ///
    /// # Errors
    /// Xen fails.
    pub(crate) fn end(&self, mfn: Mfn, guest: Domid) -> Result<Ended, Error> {
        let state = self.settled(mfn, guest)?;
        if !state.is_pending() {
            return Ok(Ended { state, for_xen: None });
        }
        let is_guests = self.host.xen.has_place(mfn)?;
        let for_xen = self.careful().filter(|_| !is_guests);
        if is_guests || for_xen.is_some() {
            self.take_back(mfn)?;
        }
        Ok(Ended { state, for_xen })
    }
}

/// The PV domain that has a frame, dom0 among them: Xen looks frames of such domains up by their machine number.
pub(crate) fn pv_owner(host: &Host, calls: &Hypercalls, mfn: Mfn) -> Result<Option<Domid>, Error> {
    for (domid, info) in host.xen.domains()? {
        if !info.hvm && has_frame(calls, domid, mfn.raw())? {
            return Ok(Some(domid));
        }
    }
    Ok(None)
}

/// Tells whether a domain has ordinary memory of this number: a machine frame's for a PV domain, else a place's.
pub(crate) fn has_frame(calls: &Hypercalls, domid: Domid, number: u64) -> Result<bool, Error> {
    let mut types = [PageType::Foreign];
    match calls.page_types(domid, &[Mfn::new(number)], &mut types) {
        // It is just gone.
        Err(libc::ESRCH) => Ok(false),
        Err(errno) => Err(XenError { call: "getpageframeinfo3", domid: Some(domid), errno }.into()),
        Ok(()) => Ok(types[0] != PageType::Foreign),
    }
}

fn owner_of(word: Result<u32, XenError>) -> Result<Result<Owner, Refused>, Error> {
    match word {
        Ok(word) => Ok(Ok(Owner::of_mark(word))),
        // Xen's answer for its own image, which has no state to change; who may ask for states may mark.
        Err(error) if error.errno == libc::EPERM => Ok(Ok(Owner::Xen)),
        Err(error) => Err(error.into()),
    }
}

/// Nobody else changes marks while this lives.
fn lock(host: &Host) -> Result<ByteLock, Error> {
    let taken = Wait::new(&host.interrupt, PATIENCE, LOOK).until(|| Ok(ByteLock::take_now(Kind::Marks, 0)?));
    let busy = || io::Error::other("another stubctl changes the marks of frames, and does not end");
    taken.and_then(|lock: Option<_>| lock.ok_or_else(|| Error::from(busy())))
}

/// The other frame of the pair that Xen's allocator merges first.
fn neighbour(mfn: Mfn) -> Mfn {
    Mfn::new(mfn.raw() ^ 1)
}
