//! `stubctl watch`: a daemon that takes frames out of use when they have had enough corrected errors.
//!
//! **Takes** reports of errors ([`sources`]). **Gives** a log line for every decision. **Never** loses a report (a spool file is
//! deleted only after the state file holds it), and never ends for a report, a source, a guest or a full disk.
//!
//! ```text
//! sources ── reports ──> ledger ── frames that are due ──> pool ── lots ──> worker processes (offline)
//!                          ^                                 └─ answers, or none in time ─┐
//!                          └──────────────────────────────────────────────────────────────┘
//! ```
//! This process makes no call that a guest, a stub or a device model can hold up: workers do that, each with a bound in time
//! ([`pool`]). It asks Xen itself only for the states of frames.

mod complaints;
mod ledger;
mod lot;
mod mcelog;
mod pool;
mod report;
mod sources;
mod state;
pub(crate) mod worker;

use crate::cli::WatchArguments;
use crate::error::Error;
use crate::frame::State;
use crate::host::{Host, say};
use complaints::Complaints;
use control::Untrusted;
use ledger::{Ledger, region_of};
use lot::{Answer, Lot};
use pool::{Limits, Pool};
use report::Report;
use sources::{News, Sources};
use state::StateFile;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use xen_abi::types::Mfn;

/// Without an answer for so long, a worker is told to stop. More than all that an exchange may wait for, one after another.
const DEADLINE: Duration = Duration::from_secs(15 * 60);

/// How often is looked for what no descriptor says: a command's end, a worker that is late.
const TICK: Duration = Duration::from_millis(200);

/// Most pages whose counts are named in one turn.
const MAX_NAMED: usize = 64;

/// Watches until a signal comes, or once.
pub(crate) fn run(host: &Host, arguments: &WatchArguments) -> Result<(), Error> {
    let mut watch = Watch::start(host, arguments)?;
    loop {
        watch.look();
        watch.deal();
        watch.store();
        if arguments.once && watch.is_done() {
            return watch.end();
        }
        watch.wait()?;
    }
}

struct Watch<'a> {
    host: &'a Host,
    arguments: &'a WatchArguments,
    ledger: Ledger,
    sources: Sources<'a>,
    pool: Pool,
    state: StateFile,
    complaints: Complaints,
    /// When the sources are looked at next; `None` after the only look.
    next_look: Option<Instant>,
    /// The ledger is not as the file has it.
    is_changed: bool,
    /// Spool files that can go once the ledger is stored.
    spent: BTreeSet<PathBuf>,
    /// The spool has more files than one look takes.
    has_more: bool,
    /// A frame that is exchanged with its superpage takes no harm, nor do those beside it that are freed.
    is_xen_sound: bool,
}

impl<'a> Watch<'a> {
    fn start(host: &'a Host, arguments: &'a WatchArguments) -> Result<Self, Error> {
        let state = StateFile::new(arguments.state.clone());
        let mut ledger = state.load();
        for mfn in ledger.resume(&state::boot_id(), |mfn| is_offline(host, mfn)) {
            say(&format!("{mfn}: it was out of use, and Xen has it in use again"));
        }
        say(&format!("watching, {} corrected errors of a page take it out of use", arguments.threshold));
        let version = host.xen.version()?;
        if !version.collects_machine_checks() {
            log::warn!(
                "Xen {version} collects no machine checks but those that Intel's processors report by interrupt: {} may stay \
                 silent (mended in 4.19.4, 4.20.2 and 4.21)",
                crate::cli::MCELOG
            );
        }
        let limits = Limits { patience: Duration::from_secs(arguments.patience_s), deadline: DEADLINE };
        Ok(Self {
            host,
            arguments,
            ledger,
            sources: Sources::new(arguments),
            pool: Pool::new(worker_command, limits),
            state,
            complaints: Complaints::default(),
            next_look: Some(Instant::now()),
            is_changed: true,
            spent: BTreeSet::new(),
            has_more: false,
            is_xen_sound: version.cuts_free_memory_soundly(),
        })
    }

    /// Takes what is new from all sources, if it is time.
    fn look(&mut self) {
        if self.next_look.is_none_or(|next| Instant::now() < next) {
            return;
        }
        let news = self.sources.collect(&mut self.ledger, &mut self.complaints);
        self.next_look = (!self.arguments.once).then(|| Instant::now() + self.arguments.interval());
        self.has_more = news.has_more;
        self.is_changed |= !news.pages.is_empty() || !news.spent.is_empty();
        self.count(news);
        let host = self.host;
        for mfn in self.ledger.doubt(|mfn| is_offline(host, mfn)) {
            say(&format!("{mfn}: it failed again: it was out of use, and Xen has it in use"));
            self.is_changed = true;
        }
        self.ledger.forget_owners(|owner| !matches!(host.xen.domain_info(owner), Ok(None)));
    }

    fn count(&mut self, news: News) {
        let mut nr_unknown = 0;
        for (nr, (mfn, (errors, source))) in news.pages.into_iter().enumerate() {
            match self.ledger.take(Report { mfn, errors }) {
                Some(all) if nr < MAX_NAMED => {
                    let source = Untrusted::new(source);
                    say(&format!("{mfn}: {all} errors of {}, {source}", self.arguments.threshold));
                }
                Some(_) => {}
                None => nr_unknown += 1,
            }
        }
        if nr_unknown > 0 {
            log::warn!("{nr_unknown} pages more than can be counted have failed: move the state file away");
        }
        self.spent.extend(news.spent);
    }

    /// Takes the workers' answers, and gives them what is due.
    fn deal(&mut self) {
        for answer in self.pool.answers() {
            self.settle(&answer);
        }
        if self.pool.is_stuck() {
            let fault = "every worker process waits for a guest that does not answer: no page goes out of use until one does";
            self.complaints.add("page retirement", fault);
        }
        while self.pool.has_room() {
            let Some((region, mfns)) = self.ledger.due(self.arguments.threshold, now_s()).into_iter().next()
            else {
                self.pool.dismiss_free();
                return;
            };
            let lot = self.lot(region, mfns);
            if let Err(error) = self.pool.begin(&lot) {
                self.complaints.add("a process to take frames out of use", &error.to_string());
                return;
            }
            self.is_changed = true;
            for mfn in &lot.mfns {
                say(&format!("{mfn}: taking it out of use"));
                self.ledger.begin(*mfn);
            }
        }
    }

    /// A frame that is exchanged with its superpage sets the others free. On a Xen that cannot take free frames out of use,
    /// those that fail too are exchanged alone instead, while the guest has them all.
    fn lot(&self, region: Mfn, mut mfns: Vec<Mfn>) -> Lot {
        mfns.truncate(lot::MAX_FRAMES);
        Lot { is_split: !self.is_xen_sound && self.ledger.nr_failing(region) > 1, mfns }
    }

    fn settle(&mut self, answer: &Answer) {
        say(&answer.line);
        let Answer { mfn, outcome, .. } = answer;
        if answer.is_superpage && self.is_xen_sound {
            self.ledger.hasten(region_of(*mfn));
        }
        if let Some(wait_s) = self.ledger.settle(*mfn, outcome, now_s(), self.arguments.retry_s) {
            say(&format!("{mfn}: tried again in {wait_s} s, or when it has failed as often again"));
        }
        self.is_changed = true;
    }

    /// Writes the ledger if it has changed, and deletes what it holds by then.
    fn store(&mut self) {
        if !self.is_changed {
            return;
        }
        let name = self.arguments.state.display().to_string();
        match self.state.store(&self.ledger) {
            None => {}
            Some(Err(error)) => {
                self.complaints
                    .add(&name, &format!("{error}: reports stay in the spool until it can be written"));
            }
            Some(Ok(())) => {
                self.complaints.settle(&name);
                self.is_changed = false;
                std::mem::take(&mut self.spent).iter().for_each(|file| remove(file));
                // Not before: the files that are taken lie in the way of the others.
                if std::mem::take(&mut self.has_more) {
                    self.next_look = Some(Instant::now());
                }
            }
        }
    }

    /// Ends after the only look.
    fn end(&self) -> Result<(), Error> {
        if !self.is_changed {
            return Ok(());
        }
        let name = self.arguments.state.display();
        Err(io::Error::other(format!("{name}: not written, so the next run does not know of this one"))
            .into())
    }

    fn is_done(&self) -> bool {
        self.next_look.is_none()
            && self.pool.is_idle()
            && self.ledger.due(self.arguments.threshold, now_s()).is_empty()
    }

    /// Waits until there is something to do, or a signal comes.
    fn wait(&mut self) -> Result<(), Error> {
        let mut timeout = self.next_look.map_or(TICK, |next| next.saturating_duration_since(Instant::now()));
        if !self.pool.is_idle() {
            timeout = timeout.min(TICK);
        }
        let mcelog = self.sources.mcelog().map(crate::ffi::sys::Polled::readable);
        let pool = self.pool.polled();
        let all: Vec<&crate::ffi::sys::Polled<'_>> = pool.iter().chain(&mcelog).collect();
        self.host.interrupt.wait(&all, timeout)?;
        if mcelog.is_some_and(|device| device.is_ready()) && self.next_look.is_some() {
            self.next_look = Some(Instant::now());
        }
        Ok(())
    }
}

/// Whether Xen has a frame out of use; `None` when it does not say.
fn is_offline(host: &Host, mfn: Mfn) -> Option<bool> {
    let mut word = [0];
    host.xen.offline_states(mfn, &mut word).ok()?;
    Some(State::new(word[0]).is_offlined())
}

/// This program as a worker.
fn worker_command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.arg("retire");
    command
}

/// Seconds since 1970, by a clock that goes on while the host is off.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn remove(file: &Path) {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => log::warn!("{}: {error}", file.display()),
        _ => {}
    }
}
