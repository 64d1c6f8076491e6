//! `stubctl offline`: takes failing frames out of use, from under a running guest if need be.
//!
//! **Takes** machine frames. **Gives** a verdict on each. **Never** marks a frame that is broken and owned (Xen would
//! crash the owner), and leaves a guest whose frame it refuses as it was.
//!
//! ```text
//! query -> no guest's: refused, unless --careless
//!       -> whose?  ── an HVM or PVH guest's: stub -> prepare -> mark -> swap -> query again
//!                  ── a PV guest's: survey -> suspend -> mark and exchange (pv_exchange)
//!                  ── free: mark, done
//!                  ── Xen's, dom0's: mark: pending until they let go of it, as with the stock tool
//! ```
//!
//! A Xen that cuts free memory unsoundly ([`crate::xen_version::XenVersion::cuts_free_memory_soundly`]) takes a marked frame
//! out of use without harm only when the other frame of its pair is in use at that moment. There a free frame, and one whose
//! neighbour may be free, are refused, and what stays in use after all loses its mark again, since nobody knows what is
//! beside it when its owner frees it. `--careless` switches all three off.

use crate::cli::OfflineArguments;
use crate::commands::Guest;
use crate::error::Error;
use crate::exchange::{Session, Step};
use crate::frame::{Owner, State};
use crate::host::{Host, say};
use crate::marks::Marks;
use crate::obstacle;
use crate::pair::PairError;
use crate::pv_exchange;
use crate::standstill::rescue;
use crate::text;
use crate::toolstack;
use crate::verdict::{Kind, Refused, Verdict};
use crate::xen_version::XenVersion;
use control::exchange::Reason;
use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;
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

/// A frame that was looked at.
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
    marks: Marks<'a>,
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
        let marks = Marks::new(host, arguments.careless)?;
        Ok(Self { host, arguments, sessions: HashMap::new(), marks })
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
        let Some(before) = self.marks.state(mfn)? else {
            return over(Kind::Refused, "nonexistent", &nonexistent(mfn));
        };
        if before.is_offlined() {
            return over(Kind::Done, "already", "it was out of use before");
        }
        if before.is_broken() {
            let text = "it is broken already: its contents are lost, an exchange cannot bring them back";
            return over(Kind::Refused, "broken", text);
        }
        if let Some(version) = self.marks.careful()
            && !before.is_pending()
            && !self.host.xen.has_place(mfn)?
        {
            return Ok(unowned(mfn, version).into());
        }
        match self.of_its_owner(mfn)? {
            Begun::Over(verdict) if before.is_pending() && !self.arguments.check => {
                Ok(self.settle(mfn, verdict)?.into())
            }
            begun => Ok(begun),
        }
    }

    /// Takes the mark that somebody else has left back from a frame that stays in use, where it would do harm.
    fn settle(&self, mfn: Mfn, verdict: Verdict) -> Result<Verdict, Error> {
        match self.marks.careful() {
            Some(version) if self.marks.state(mfn)?.is_some_and(State::is_pending) => {
                self.marks.take_back(mfn)?;
                Ok(verdict.unmarked(version))
            }
            _ => Ok(verdict),
        }
    }

    fn of_its_owner(&mut self, mfn: Mfn) -> Result<Begun, Error> {
        let owner = match self.marks.owner(mfn)? {
            Ok(Owner::Domain(owner)) if owner != Domid::DOM0 => {
                return self.of_guest(self.asked(owner)?, mfn);
            }
            Ok(owner) if self.arguments.check || self.marks.careful().is_some() => owner,
            Ok(Owner::Free | Owner::Xen | Owner::Domain(_)) => match self.marks.mark_for_good(mfn)? {
                Ok(owner) => owner,
                Err(refused) => return Ok(Verdict::refused(mfn, &refused).into()),
            },
            Ok(owner) => owner,
            Err(refused) => return Ok(Verdict::refused(mfn, &refused).into()),
        };
        let verdict = |kind, reason, text| Ok(Verdict::new(mfn, kind, reason, text).into());
        match owner {
            Owner::Free if self.arguments.check => {
                verdict(Kind::Done, "free", "nobody uses it: it would be out of use at once")
            }
            Owner::Free => verdict(Kind::Done, "free", "nobody used it: it is out of use now"),
            Owner::Xen => Ok(xens(mfn).into()),
            Owner::NotRam => verdict(Kind::Refused, "not-memory", "it is no ordinary memory"),
            Owner::Domain(Domid::DOM0) => {
                let text = "it is dom0's: it stays in use until dom0 frees it; restart this host soon";
                verdict(Kind::Refused, "dom0s", text)
            }
            Owner::Nobody | Owner::Domain(_) => {
                verdict(Kind::Refused, "changing-hands", "it is changing hands just now: try again")
            }
        }
    }

    /// The guest whose stub is asked to exchange a frame of `owner`: he himself, except in a test of the stub's refusal.
    fn asked(&self, owner: Domid) -> Result<Domid, Error> {
        match &self.arguments.debug_ask {
            None => Ok(owner),
            Some(guest) => Ok(Guest::find(self.host, guest)?.domid),
        }
    }

    fn of_guest(&mut self, owner: Domid, mfn: Mfn) -> Result<Begun, Error> {
        let name = self.host.name_or_number(owner)?;
        let refused = match obstacle::of(self.host, owner)? {
            None => self.marks.beside_free(mfn)?,
            refused => refused,
        };
        let is_pv = self.host.xen.domain_info(owner)?.is_some_and(|info| !info.hvm);
        let verdict = match refused {
            Some(refused) if is_pv || refused.reason != "beside-free" => Verdict::refused(mfn, &refused),
            None if is_pv && !self.arguments.check => return Ok(Begun::Pv(owner)),
            None if is_pv => {
                let text = "it belongs to a PV guest: only a suspension of the guest would tell";
                Verdict::new(mfn, Kind::Refused, "pv-guest", text)
            }
            refused => {
                let exchanged = self.exchange(Guest { domid: owner, name: name.clone() }, mfn, refused);
                match exchanged {
                    Err(error) if !error.is_stop() => match toolstack::refusal(self.host, owner)? {
                        // What failed did because the guest is going, or somebody is at work on it.
                        Some(refused) => Verdict::refused(mfn, &refused),
                        None => return Err(error),
                    },
                    exchanged => exchanged?,
                }
            }
        };
        Ok(verdict.of_guest(owner, &name).into())
    }

    /// Has a guest's stub exchange a frame; or see whether it could, where it is beside free memory.
    fn exchange(&mut self, guest: Guest, mfn: Mfn, beside_free: Option<Refused>) -> Result<Verdict, Error> {
        let owner = guest.domid;
        let session = match self.sessions.remove(&owner) {
            Some(session) => session,
            None => match Session::open(self.host, guest, &self.arguments) {
                Err(Error::Pair(error @ PairError::Disabled(..))) => {
                    return Ok(Verdict::new(mfn, Kind::Refused, "stub-disabled", &error.to_string()));
                }
                opened => opened?,
            },
        };
        let only_check = OfflineArguments { check: true, ..self.arguments.clone() };
        let arguments = if beside_free.is_some() { &only_check } else { &self.arguments };
        let (session, step) = session.exchange(mfn, &self.marks, arguments)?;
        self.sessions.extend(session.map(|session| (owner, session)));
        Ok(match step {
            // What an exchange before this one has left, and the stub has let go of now.
            Step::Refused { reason, .. }
                if reason == Reason::NoGfn.as_str() && self.marks.settled(mfn, owner)?.is_offlined() =>
            {
                let text = "it was out of its guest before, and is out of use now";
                Verdict::new(mfn, Kind::Done, "already", text)
            }
            Step::Refused { reason, text } => Verdict::not_exchanged(mfn, reason, &text),
            Step::Fit(prepared) => match beside_free {
                Some(refused) => Verdict::refused(mfn, &refused),
                None => Verdict::fit(mfn, prepared),
            },
            Step::Stranded(text) => Verdict::stranded(mfn, &text),
            Step::Exchanged(exchange) => Verdict::exchanged(mfn, &exchange),
        })
    }

    /// Frames of a PV guest: dom0 itself exchanges them, with the guest suspended.
    fn exchange_pv(&self, owner: Domid, mfns: &[Mfn]) -> Result<Vec<Verdict>, Error> {
        let name = self.host.name_or_number(owner)?;
        let report = pv_exchange::run(self.host, &self.marks, owner, mfns);
        let told = mfns.iter().enumerate().map(|(nr, &mfn)| {
            let verdict = match &report {
                Err(error) => pv_failed(mfn, error),
                Ok(report) => match report.frames.get(nr) {
                    Some(Ok(done)) => {
                        let state = self.marks.settled(mfn, owner)?;
                        Verdict::exchanged_pv(mfn, done, report.stood.unwrap_or_default(), state)
                    }
                    Some(Err(refused)) => Verdict::not_exchanged(mfn, refused.reason, &refused.text),
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
}

/// No frame of a PV guest was touched.
fn pv_failed(mfn: Mfn, error: &Error) -> Verdict {
    let reason = match error {
        Error::Suspend(error) => error.name(),
        Error::PvExchange(error) => error.name(),
        _ => return Verdict::failed(mfn, error),
    };
    Verdict::new(mfn, Kind::Refused, reason, &error.to_string())
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

fn xens(mfn: Mfn) -> Verdict {
    let text = "it is Xen's own: it stays in use until this host restarts (badpage= on Xen's command line keeps it out)";
    Verdict::new(mfn, Kind::Refused, "xens", text)
}
