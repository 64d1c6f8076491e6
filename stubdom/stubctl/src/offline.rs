//! `stubctl offline`: takes failing frames out of use, from under a running guest if need be.
//!
//! **Takes** machine frames. **Gives** a verdict on each. **Never** marks a frame that is broken and owned (Xen would
//! crash the owner), and leaves a guest whose frame it refuses as it was.
//!
//! ```text
//! query -> no guest's: refused, unless --careless
//!       -> mark -> whose?  ── free: done
//!                          ── an HVM or PVH guest's: session -> exchange -> query again
//!                          ── a PV guest's: suspend, exchange (pv_exchange)
//!                          ── Xen's, dom0's: pending until they let go of it, as with the stock tool
//! ```
//!
//! A Xen that cuts free memory unsoundly ([`XenVersion::cuts_free_memory_soundly`]) takes a marked frame out of use without
//! harm only when the other frame of its pair is in use at that moment. There a free frame, and one whose neighbour may be
//! free, are refused, and what stays in use after all loses its mark again, since nobody knows what is beside it when its
//! owner frees it. `--careless` switches all three off.

use crate::cli::OfflineArguments;
use crate::commands::Guest;
use crate::error::Error;
use crate::exchange::{LET_GO, Session, Step};
use crate::frame::{Owner, State};
use crate::host::{Host, say};
use crate::pv_exchange;
use crate::saving;
use crate::standstill::rescue;
use crate::text;
use crate::verdict::{Kind, Verdict};
use crate::xen_version::XenVersion;
use control::exchange::Reason;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::process::ExitCode;
use std::time::Duration;
use xen_abi::types::{Domid, Mfn, PAGE_SHIFT};

/// Takes all frames offline; gives the exit code of the worst verdict.
pub(crate) fn run(host: &Host, arguments: &OfflineArguments) -> Result<ExitCode, Error> {
    let mut offliner = Offliner::new(host, arguments.clone())?;
    let mut worst = 0;
    offliner.offline_all(&arguments.frames(), |verdict| {
        worst = worst.max(verdict.kind.exit_code());
        say(&if arguments.json { text::json(&verdict.json()) } else { verdict.to_string() });
    })?;
    Ok(ExitCode::from(worst))
}

/// A frame that was looked at, and marked if need be.
enum Begun {
    /// Nothing is left to do.
    Over(Verdict),
    /// It is a PV guest's, which is suspended for it.
    Pv(Domid),
}

impl From<Verdict> for Begun {
    fn from(verdict: Verdict) -> Self {
        Self::Over(verdict)
    }
}

/// Takes frames offline, one after another, with one session for each guest that it comes across.
pub(crate) struct Offliner<'a> {
    host: &'a Host,
    arguments: OfflineArguments,
    sessions: HashMap<Domid, Session<'a>>,
    /// The Xen that runs, if care must be taken of it.
    careful: Option<XenVersion>,
}

impl<'a> Offliner<'a> {
    /// Asks which Xen this is, and first puts right what those before have left, unless only a check is asked for.
    ///
    /// # Errors
    /// Xen does not say.
    pub(crate) fn new(host: &'a Host, arguments: OfflineArguments) -> Result<Self, Error> {
        if !arguments.check {
            rescue::put_all_right(host);
        }
        let version = host.xen.version()?;
        let careful = Some(version).filter(|_| !arguments.careless && !version.cuts_free_memory_soundly());
        Ok(Self { host, arguments, sessions: HashMap::new(), careful })
    }

    /// From here on, exchanges frames alone, not with their superpages.
    pub(crate) fn split(&mut self, is_split: bool) {
        self.arguments.split = is_split;
    }

    /// Deals with frames and tells of each: those of PV guests last, all of one guest in one suspension. What fails at one
    /// frame is told of that frame.
    ///
    /// # Errors
    /// Somebody wants an end before the last frame.
    pub(crate) fn offline_all(&mut self, mfns: &[Mfn], mut tell: impl FnMut(Verdict)) -> Result<(), Error> {
        let mut of_pv_guests: BTreeMap<Domid, Vec<Mfn>> = BTreeMap::new();
        let mut stopped = Ok(());
        for &mfn in mfns {
            match self.begin(mfn) {
                Ok(Begun::Over(verdict)) => tell(verdict),
                Ok(Begun::Pv(owner)) => of_pv_guests.entry(owner).or_default().push(mfn),
                Err(error) if error.is_stop() => {
                    stopped = Err(error);
                    break;
                }
                Err(error) => tell(Verdict::failed(mfn, &error)),
            }
        }
        // Those are marked, whatever happened to the others.
        for (owner, mfns) in of_pv_guests {
            match self.exchange_pv(owner, &mfns) {
                Ok(verdicts) => verdicts.into_iter().for_each(&mut tell),
                Err(error) => mfns.iter().for_each(|mfn| tell(Verdict::failed(*mfn, &error))),
            }
        }
        stopped
    }

    fn begin(&mut self, mfn: Mfn) -> Result<Begun, Error> {
        let over = |kind, reason, text| Ok(Verdict::new(mfn, kind, reason, text).into());
        let Some(before) = self.state(mfn)? else {
            return over(Kind::Refused, "nonexistent", &nonexistent(mfn));
        };
        if before.is_offlined() {
            return over(Kind::Done, "already", "it was out of use before");
        }
        if before.is_broken() {
            let text = "it is broken already: its contents are lost, an exchange cannot bring them back";
            return over(Kind::Refused, "broken", text);
        }
        if let Some(version) = self.careful
            && !before.is_pending()
            && !self.host.xen.has_place(mfn)?
        {
            return Ok(unowned(mfn, version).into());
        }
        let begun = self.mark(mfn);
        if self.arguments.check {
            if !before.is_pending() {
                self.take_mark_back(mfn)?;
            }
            return begun;
        }
        match begun {
            Ok(Begun::Over(verdict)) => Ok(self.settle(mfn, verdict)?.into()),
            Err(error) => {
                // A frame that is out of its guest already goes out of use with the stub that still has it.
                if self.careful.is_some() && self.host.xen.has_place(mfn)? {
                    self.take_mark_back(mfn)?;
                }
                Err(error)
            }
            begun => begun,
        }
    }

    /// Takes the mark back from a frame that stays in use, where it would do harm.
    fn settle(&self, mfn: Mfn, verdict: Verdict) -> Result<Verdict, Error> {
        match self.careful {
            Some(version) if self.state(mfn)?.is_some_and(State::is_pending) => {
                self.take_mark_back(mfn)?;
                Ok(verdict.unmarked(version))
            }
            _ => Ok(verdict),
        }
    }

    /// Takes a mark back, and sees that it is gone.
    fn take_mark_back(&self, mfn: Mfn) -> Result<(), Error> {
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

    /// Tells whether a frame may be free: nobody has it at a place, and it is not out of use either.
    fn may_be_free(&self, mfn: Mfn) -> Result<bool, Error> {
        let is_offlined = self.state(mfn)?.is_some_and(State::is_offlined);
        Ok(!is_offlined && !self.host.xen.has_place(mfn)?)
    }

    /// The state of a frame; `None` when there is none of that number.
    fn state(&self, mfn: Mfn) -> Result<Option<State>, Error> {
        let mut word = [0];
        match self.host.xen.offline_states(mfn, &mut word) {
            Ok(()) => Ok(Some(State::new(word[0]))),
            Err(error) if error.errno == libc::EINVAL => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn mark(&mut self, mfn: Mfn) -> Result<Begun, Error> {
        let word = match self.host.xen.mark_offline(mfn) {
            Ok(word) => word,
            // Xen's answer for its own image, which has no state to change; who may ask for states may mark.
            Err(error) if error.errno == libc::EPERM => return Ok(xens(mfn).into()),
            Err(error) => return Err(error.into()),
        };
        let verdict = match Owner::of_mark(word) {
            Owner::Free if self.arguments.check => {
                Verdict::new(mfn, Kind::Done, "free", "nobody uses it: it would be out of use at once")
            }
            Owner::Free => Verdict::new(mfn, Kind::Done, "free", "nobody used it: it is out of use now"),
            Owner::Xen => xens(mfn),
            Owner::NotRam => Verdict::new(mfn, Kind::Refused, "not-memory", "it is no ordinary memory"),
            Owner::Nobody => {
                let text = "it is changing hands just now: try again";
                Verdict::new(mfn, Kind::Refused, "changing-hands", text)
            }
            Owner::Domain(Domid::DOM0) => {
                let text = "it is dom0's: it stays in use until dom0 frees it; restart this host soon";
                Verdict::new(mfn, Kind::Refused, "dom0s", text)
            }
            Owner::Domain(owner) => return self.exchange(self.asked(owner)?, mfn),
        };
        Ok(verdict.into())
    }

    /// The guest whose stub is asked to exchange a frame of `owner`: he himself, except in a test of the stub's refusal.
    fn asked(&self, owner: Domid) -> Result<Domid, Error> {
        match &self.arguments.debug_ask {
            None => Ok(owner),
            Some(guest) => Ok(Guest::find(self.host, guest)?.domid),
        }
    }

    fn exchange(&mut self, owner: Domid, mfn: Mfn) -> Result<Begun, Error> {
        let Some(info) = self.host.xen.domain_info(owner)? else {
            let text = "its owner is just gone: try again";
            return Ok(Verdict::new(mfn, Kind::Refused, "changing-hands", text).into());
        };
        let name = self.host.name_or_number(owner)?;
        let of_guest = |verdict: Verdict| Begun::Over(verdict.of_guest(owner, &name));
        if info.dying {
            let text = "its owner is being destroyed: it goes out of use with it";
            return Ok(of_guest(Verdict::new(mfn, Kind::Refused, "dying", text)));
        }
        let beside_free = match self.careful {
            Some(version) if self.may_be_free(neighbour(mfn))? => Some(version),
            _ => None,
        };
        if !info.hvm {
            return Ok(match beside_free {
                _ if self.arguments.check => {
                    let text = "it belongs to a PV guest: only a suspension of the guest would tell";
                    of_guest(Verdict::new(mfn, Kind::Refused, "pv-guest", text))
                }
                Some(version) => of_guest(beside_free_memory(mfn, version)),
                None => Begun::Pv(owner),
            });
        }
        let session = match self.sessions.remove(&owner) {
            Some(session) => session,
            None => Session::open(self.host, Guest { domid: owner, name: name.clone() }, &self.arguments)?,
        };
        let only_check = OfflineArguments { check: true, ..self.arguments.clone() };
        let arguments = if beside_free.is_some() { &only_check } else { &self.arguments };
        let (session, step) = session.exchange(mfn, arguments)?;
        self.sessions.extend(session.map(|session| (owner, session)));
        let verdict = match step {
            // What an exchange before this one has left, and the stub has let go of now.
            Step::Refused { reason, .. }
                if reason == Reason::NoGfn.as_str() && self.settled(mfn)?.is_offlined() =>
            {
                Verdict::new(
                    mfn,
                    Kind::Done,
                    "already",
                    "it was out of its guest before, and is out of use now",
                )
            }
            Step::Refused { reason, text } => Verdict::not_exchanged(mfn, reason, &text),
            Step::Fit(prepared) => match beside_free {
                Some(version) => beside_free_memory(mfn, version),
                None => Verdict::fit(mfn, prepared),
            },
            Step::Stranded(text) => Verdict::stranded(mfn, &text),
            Step::Exchanged(exchange) => {
                let state = self.settled(mfn)?;
                Verdict::exchanged(mfn, &exchange, state)
            }
        };
        Ok(of_guest(verdict))
    }

    /// Frames of a PV guest, which are marked: dom0 itself exchanges them, with the guest suspended.
    fn exchange_pv(&self, owner: Domid, mfns: &[Mfn]) -> Result<Vec<Verdict>, Error> {
        let name = self.host.name_or_number(owner)?;
        if saving::saver_of(owner).is_some() {
            let text = "the guest is being saved or migrated: a new frame would be missing from the stream; try again \
                        afterwards";
            let refused = |mfn| Verdict::new(mfn, Kind::Refused, "being-saved", text).of_guest(owner, &name);
            return mfns.iter().map(|&mfn| self.settle(mfn, refused(mfn))).collect();
        }
        let report = pv_exchange::run(self.host, owner, mfns);
        let told = mfns.iter().enumerate().map(|(nr, &mfn)| {
            let verdict = match &report {
                Err(error) => Verdict::new(mfn, Kind::Refused, "not-suspended", &error.to_string()),
                Ok(report) => match report.frames.get(nr) {
                    Some((_, Ok(done))) => {
                        Verdict::exchanged_pv(mfn, done, report.stood.unwrap_or_default(), self.settled(mfn)?)
                    }
                    Some((_, Err(error))) => Verdict::not_exchanged(mfn, error.name(), &error.to_string()),
                    None => {
                        let text = "the exchange of a frame before it failed and left the guest paused";
                        Verdict::new(mfn, Kind::Refused, "not-tried", text)
                    }
                },
            };
            Ok(self.settle(mfn, verdict)?.of_guest(owner, &name))
        });
        told.collect()
    }

    /// The state of an old frame once its last users have let go of it, or after [`LET_GO`]; as it is if somebody wants an end.
    ///
    /// A guest whose populate-on-demand entries are outstanding has the frame put into its cache instead of freed; marking it
    /// once more has Xen take it from there (`p2m_pod_offline_or_broken_replace`).
    fn settled(&self, mfn: Mfn) -> Result<State, Error> {
        let pause = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        loop {
            let state = self.state(mfn)?.unwrap_or(State::new(0));
            if !state.is_pending() {
                return Ok(state);
            }
            if waited >= LET_GO || self.host.interrupt.wait(&[], pause).is_err() {
                break;
            }
            waited += pause;
        }
        // Xen crashes the owner of a broken frame that is marked.
        if !self.state(mfn)?.is_some_and(State::is_broken) {
            self.host.xen.mark_offline(mfn)?;
        }
        Ok(self.state(mfn)?.unwrap_or(State::new(0)))
    }
}

/// The other frame of the pair that Xen's allocator merges first.
fn neighbour(mfn: Mfn) -> Mfn {
    Mfn::new(mfn.raw() ^ 1)
}

/// A number of no frame, which may be an address.
fn nonexistent(mfn: Mfn) -> String {
    let of_address = mfn.raw() >> PAGE_SHIFT;
    format!(
        "there is no memory of that number; if that is an address, its frame is {of_address:#x} (--address)"
    )
}

/// A frame that is free, or may be.
fn unowned(mfn: Mfn, version: XenVersion) -> Verdict {
    let text = format!(
        "no domain has it at a place of its memory: it is free, Xen's own, or what a guest shares with its device model \
         alone; it stays as it is, because Xen {version} damages its lists of free memory when it takes a free frame out of use, and may crash later (mended in 4.20.4, 4.21.2 and 4.22; --careless \
         does it all the same); try again when it is in use, or name it in badpage= on Xen's command line"
    );
    Verdict::new(mfn, Kind::Refused, "no-owner", &text)
}

/// A frame of a guest that would be freed beside free memory.
fn beside_free_memory(mfn: Mfn, version: XenVersion) -> Verdict {
    let text = format!(
        "it could be exchanged, but {} beside it is free or Xen's own, and Xen {version} damages its lists of free memory \
         when it takes a frame beside a free one out of use, and may crash later (mended in 4.20.4, 4.21.2 and 4.22; \
         --careless does it all the same); try again later",
        neighbour(mfn)
    );
    Verdict::new(mfn, Kind::Refused, "beside-free", &text)
}

fn xens(mfn: Mfn) -> Verdict {
    let text = "it is Xen's own: it stays in use until this host restarts (badpage= on Xen's command line keeps it out)";
    Verdict::new(mfn, Kind::Refused, "xens", text)
}
