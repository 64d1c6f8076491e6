//! `stubctl offline`: takes failing frames out of use, from under a running guest if need be.
//!
//! **Takes** machine frames. **Gives** a verdict on each. **Never** marks a frame that is broken and owned (Xen would
//! crash the owner), and leaves a guest whose frame it refuses as it was.
//!
//! ```text
//! query -> no guest's: refused, unless --free
//!       -> mark -> whose?  ── free: done
//!                          ── an HVM or PVH guest's: session -> exchange -> query again
//!                          ── a PV guest's: suspend, exchange (pv_exchange)
//!                          ── Xen's, dom0's: pending until they let go of it, as with the stock tool
//! ```
//!
//! A Xen that cuts free memory unsoundly ([`XenVersion::cuts_free_memory_soundly`]) takes a marked frame out of use without
//! harm only when the other frame of its pair is in use at that moment. There a free frame, and one whose neighbour may be
//! free, are refused, and what stays in use after all loses its mark again, since nobody knows what is beside it when its
//! owner frees it. `--free` switches all three off.

use crate::cli::OfflineArguments;
use crate::commands::Guest;
use crate::error::Error;
use crate::exchange::{LET_GO, Session, Step};
use crate::frame::{Owner, State};
use crate::host::Host;
use crate::pv_exchange;
use crate::verdict::{Kind, Verdict};
use crate::xen_version::XenVersion;
use control::exchange::Reason;
use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;
use xen_front::types::{Domid, Mfn};

/// Takes all frames offline; gives the exit code of the worst verdict.
pub(crate) fn run(host: &Host, arguments: &OfflineArguments) -> Result<ExitCode, Error> {
    let mut offliner = Offliner::new(host, arguments.clone())?;
    let mut worst = 0;
    for mfn in &arguments.mfns {
        let verdict = offliner.offline(Mfn::new(*mfn))?;
        worst = worst.max(verdict.kind.exit_code());
        println!("{}", if arguments.json { verdict.json().to_string() } else { verdict.to_string() });
    }
    Ok(ExitCode::from(worst))
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
    /// Asks which Xen this is.
    ///
    /// # Errors
    /// Xen does not say.
    pub(crate) fn new(host: &'a Host, arguments: OfflineArguments) -> Result<Self, Error> {
        let version = host.xen.version()?;
        let careful = Some(version).filter(|_| !arguments.free && !version.cuts_free_memory_soundly());
        Ok(Self { host, arguments, sessions: HashMap::new(), careful })
    }

    /// Deals with one frame.
    ///
    /// # Errors
    /// Something failed that has nothing to do with this frame.
    pub(crate) fn offline(&mut self, mfn: Mfn) -> Result<Verdict, Error> {
        let Some(before) = self.state(mfn) else {
            return Ok(Verdict::new(mfn, Kind::Refused, "nonexistent", "there is no memory of that number"));
        };
        if before.is_offlined() {
            return Ok(Verdict::new(mfn, Kind::Done, "already", "it was out of use before"));
        }
        if before.is_broken() {
            let text = "it is broken already: its contents are lost, an exchange cannot bring them back";
            return Ok(Verdict::new(mfn, Kind::Refused, "broken", text));
        }
        if let Some(version) = self.careful
            && !before.is_pending()
            && !self.host.xen.has_place(mfn)?
        {
            return Ok(unowned(mfn, version));
        }
        let verdict = self.mark(mfn);
        if self.arguments.check {
            if !before.is_pending() {
                self.host.xen.mark_online(mfn)?;
            }
            return verdict;
        }
        let Some(version) = self.careful else { return verdict };
        if !self.state(mfn).is_some_and(State::is_pending) {
            return verdict;
        }
        self.host.xen.mark_online(mfn)?;
        Ok(verdict?.unmarked(version))
    }

    /// The state of a frame; `None` when there is none of that number.
    fn state(&self, mfn: Mfn) -> Option<State> {
        let mut word = [0];
        self.host.xen.offline_states(mfn, &mut word).ok()?;
        Some(State::new(word[0]))
    }

    fn mark(&mut self, mfn: Mfn) -> Result<Verdict, Error> {
        let word = match self.host.xen.mark_offline(mfn) {
            Ok(word) => word,
            // Xen's answer for its own image, which has no state to change.
            Err(error) if error.errno == libc::EPERM => return Ok(xens(mfn)),
            Err(error) => return Ok(Verdict::new(mfn, Kind::Refused, "not-memory", &error.to_string())),
        };
        Ok(match Owner::of_mark(word) {
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
            Owner::Domain(owner) => self.exchange(owner, mfn)?,
        })
    }

    fn exchange(&mut self, owner: Domid, mfn: Mfn) -> Result<Verdict, Error> {
        let Some(info) = self.host.xen.domain_info(owner)? else {
            return Ok(Verdict::new(
                mfn,
                Kind::Refused,
                "changing-hands",
                "its owner is just gone: try again",
            ));
        };
        let name = self.host.name_of(owner)?.unwrap_or_else(|| owner.to_string());
        let of_guest = |verdict: Verdict| verdict.of_guest(owner, &name);
        if info.dying {
            let text = "its owner is being destroyed: it goes out of use with it";
            return Ok(of_guest(Verdict::new(mfn, Kind::Refused, "dying", text)));
        }
        if !info.hvm {
            return Ok(of_guest(self.exchange_pv(owner, mfn)?));
        }
        let mut session = match self.sessions.remove(&owner) {
            Some(session) => session,
            None => Session::open(self.host, Guest { domid: owner, name: name.clone() }, &self.arguments)?,
        };
        let beside_free = match self.careful {
            Some(version) if !self.host.xen.has_place(neighbour(mfn))? => Some(version),
            _ => None,
        };
        let only_check = OfflineArguments { check: true, ..self.arguments.clone() };
        let arguments = if beside_free.is_some() { &only_check } else { &self.arguments };
        let step = session.exchange(mfn, arguments)?;
        self.sessions.insert(owner, session);
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
            Step::Exchanged(exchange) => {
                let state = self.settled(mfn)?;
                Verdict::exchanged(mfn, &exchange, state)
            }
        };
        Ok(of_guest(verdict))
    }

    /// A PV guest's frame: dom0 itself exchanges it, with the guest suspended.
    fn exchange_pv(&self, owner: Domid, mfn: Mfn) -> Result<Verdict, Error> {
        let refused = |reason, text: &str| Ok(Verdict::new(mfn, Kind::Refused, reason, text));
        if self.arguments.check {
            return refused(
                "pv-guest",
                "it belongs to a PV guest: only a suspension of the guest would tell",
            );
        }
        let report = match pv_exchange::run(self.host, owner, &[mfn]) {
            Ok(report) => report,
            Err(error) => return refused("not-suspended", &error.to_string()),
        };
        match report.frames.first() {
            Some((_, Ok(done))) => {
                let state = self.settled(mfn)?;
                let kind = if state.is_offlined() { Kind::Done } else { Kind::Held };
                let stood = report.stood.unwrap_or_default().as_micros();
                let text = format!("exchanged for {}: {}, suspended {stood} us, {state}", done.new, done.pfn);
                Ok(Verdict::new(mfn, kind, "exchanged", &text))
            }
            Some((_, Err(error))) => Ok(Verdict::not_exchanged(mfn, error.name(), &error.to_string())),
            None => refused("not-suspended", "the guest was not asked"),
        }
    }

    /// The state of an old frame once its last users have let go of it, or after [`LET_GO`].
    fn settled(&self, mfn: Mfn) -> Result<State, Error> {
        let pause = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        loop {
            let state = self.state(mfn).unwrap_or(State::new(0));
            if !state.is_pending() || waited >= LET_GO {
                return Ok(state);
            }
            self.host.interrupt.wait(&[], pause)?;
            waited += pause;
        }
    }
}

/// The other frame of the pair that Xen's allocator merges first.
fn neighbour(mfn: Mfn) -> Mfn {
    Mfn::new(mfn.raw() ^ 1)
}

/// A frame that is free, or may be.
fn unowned(mfn: Mfn, version: XenVersion) -> Verdict {
    let text = format!(
        "no guest has it: it is free or Xen's own, and stays as it is, because Xen {version} damages its lists of free \
         memory when it takes a free frame out of use, and may crash later (mended in 4.20.4, 4.21.2 and 4.22; --free \
         does it all the same); try again when it is in use, or name it in badpage= on Xen's command line"
    );
    Verdict::new(mfn, Kind::Refused, "no-owner", &text)
}

/// A frame of a guest that would be freed beside free memory.
fn beside_free_memory(mfn: Mfn, version: XenVersion) -> Verdict {
    let text = format!(
        "it could be exchanged, but {} beside it is free or Xen's own, and Xen {version} damages its lists of free memory \
         when it takes a frame beside a free one out of use, and may crash later (mended in 4.20.4, 4.21.2 and 4.22; \
         --free does it all the same); try again later",
        neighbour(mfn)
    );
    Verdict::new(mfn, Kind::Refused, "beside-free", &text)
}

fn xens(mfn: Mfn) -> Verdict {
    let text = "it is Xen's own: it stays in use until this host restarts (badpage= on Xen's command line keeps it out)";
    Verdict::new(mfn, Kind::Refused, "xens", text)
}
