//! Stories: what is shown on real Xen, and how each ends.
//!
//! A story opens with what it proves. It ends in one of four ways; a check that could not run is never a success.
//! Stories that want the same machine share one boot; whatever a story leaves behind counts against it.

use crate::budget::Budget;
use crate::dom0::Outcome;
use crate::error::{Error, Result};
use crate::machine::{Machine, Options};
use crate::place::Place;
use crate::survey::Survey;
use crate::tool;
use std::cell::RefCell;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Longest time for one script of a story.
const SCRIPT_LIMIT: Duration = Duration::from_secs(300);

/// Longest time to look at what a failed story has left.
const SCENE_LIMIT: Duration = Duration::from_secs(60);

/// Longest time for Xen to take back a destroyed guest's memory.
const RELEASE_LIMIT: Duration = Duration::from_secs(20);

/// Where the files are that stories share.
const KEPT: &str = "/var/lib/xen/kept";

/// What makes libxl restore through the stub, in front of an `xl` command.
pub const THROUGH_STUB: &str = "LIBXL_SAVE_HELPER=/usr/sbin/stubctl ";

/// Something to show.
#[derive(Clone, Copy, Debug)]
pub struct Story {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it proves, in a sentence.
    pub proves: &'static str,
    /// The machine it wants.
    pub options: fn() -> Options,
    /// Tells it.
    pub tell: fn(&Stage) -> Telling,
}

/// How telling goes: to the end, or until something stops it.
pub type Telling<T = ()> = std::result::Result<T, Stop>;

/// Why a story stopped.
#[derive(Debug)]
pub enum Stop {
    /// It cannot be told here; why.
    Skip(String),
    /// What it proves is not so.
    Failure(String),
    /// The nest failed before the story could show anything.
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// How a story ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All it proves was seen.
    Success,
    /// It cannot be told here; why.
    Skip(String),
    /// The nest failed.
    Error(String),
    /// It failed, but a guest fell with the machine below it meanwhile, so that nothing was shown: where.
    Fell(String),
    /// It did not succeed, but this host stood still meanwhile, so that nothing was shown: for how long.
    StoodStill(String),
    /// What it proves is not so.
    Failure(String),
}

impl From<Telling> for Verdict {
    fn from(telling: Telling) -> Self {
        match telling {
            Ok(()) => Self::Success,
            Err(Stop::Skip(why)) => Self::Skip(why),
            Err(Stop::Failure(what)) => Self::Failure(what),
            Err(Stop::Error(error)) => Self::Error(error.to_string()),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("success"),
            Self::Skip(why) => write!(f, "skipped: {why}"),
            Self::Fell(fell) => write!(f, "nothing shown, a guest fell with the machine below it: {fell}"),
            Self::StoodStill(what) => write!(f, "nothing shown, this host stood still for {what}"),
            Self::Error(what) => write!(f, "ERROR: {what}"),
            Self::Failure(what) => write!(f, "FAILURE: {what}"),
        }
    }
}

/// Stops the story as a failure unless `holds`.
///
/// # Errors
/// [`Stop::Failure`] with the text that `what` makes.
pub fn ensure(holds: bool, what: impl FnOnce() -> String) -> Telling {
    if holds { Ok(()) } else { Err(Stop::Failure(what())) }
}

/// Where a story is told: dom0, and ways to act there.
#[derive(Debug)]
pub struct Stage<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The repository.
    pub place: &'a Place,
    /// How many times as long as usual a script may take, for a machine that is slow.
    pub slower: u32,
}

impl<'a> Stage<'a> {
    /// Dom0 of a machine of the usual speed.
    pub const fn on(machine: &'a Machine, place: &'a Place) -> Self {
        Self { machine, place, slower: 1 }
    }
}

impl Stage<'_> {
    /// Runs a script in dom0, whatever its exit code. With `NEST_TIMES` in the environment a story tells how long each took.
    ///
    /// # Errors
    /// It did not end in five minutes (or as many times as long as the machine is slower), or the nest died.
    pub fn run(&self, script: &str) -> Telling<Outcome> {
        let began = Instant::now();
        let outcome = self.machine.dom0.run(script, SCRIPT_LIMIT * self.slower)?;
        if std::env::var_os("NEST_TIMES").is_some() {
            let first: String = script.replace('\n', " ").chars().take(100).collect();
            self.say(format!("{:7.1} s: {first}", began.elapsed().as_secs_f32()));
        }
        Ok(outcome)
    }

    /// Runs a script in dom0 that must succeed; gives its output.
    ///
    /// # Errors
    /// [`Stop::Failure`] when it ends with another exit code than 0.
    pub fn sh(&self, script: &str) -> Telling<String> {
        let outcome = self.run(script)?;
        let tail = tool::last_lines(&outcome.text, 12);
        ensure(outcome.code == 0, || format!("`{script}` ended with {}:\n{tail}", outcome.code))?;
        Ok(outcome.text.trim_end().to_owned())
    }

    /// Prints a line of the story.
    pub fn say(&self, line: impl fmt::Display) {
        print(format_args!("    {line}"));
    }

    /// Creates an example guest and waits until its witness is ready.
    ///
    /// # Errors
    /// The guest did not start.
    pub fn create(&self, guest: &str) -> Telling {
        self.create_with(guest, "")
    }

    /// As [`Stage::create`], with settings that stand over its configuration, as xl reads them behind the file.
    ///
    /// # Errors
    /// The guest did not start.
    pub fn create_with(&self, guest: &str, settings: &str) -> Telling {
        // The log of a guest that had this name before says "ready" too, and xenconsoled appends to it.
        let prepare = if guest.starts_with("pvh-") { "nest-timer $domid" } else { ":" };
        self.sh(&format!(
            "rm -f /var/log/xen/guest-{guest}.log /var/log/xen/guest-{guest}--incoming.log
             xl create -p -q /etc/xen/stubdom/guests/{guest}.cfg {settings} && domid=$(xl domid {guest}) && {prepare} &&
             xl unpause $domid && ask-witness {guest} ready"
        ))?;
        Ok(())
    }

    /// A file that stock xl has saved of an example guest fresh from its start. The first story that wants it on this machine
    /// makes it; all of them only read it.
    ///
    /// # Errors
    /// The guest did not start, or xl fails.
    pub fn saved(&self, guest: &str) -> Telling<Saved> {
        let (file, map) = (format!("{KEPT}/{guest}"), format!("{KEPT}/{guest}.map"));
        if self.run(&format!("test -e {file}"))?.code != 0 {
            self.create(guest)?;
            self.sh(&format!(
                "mkdir -p {KEPT}; stubctl map --json {guest} >{map} && xl save {guest} {KEPT}/new && mv {KEPT}/new {file}"
            ))?;
        }
        Ok(Saved { file, fresh: Survey::parse(&self.sh(&format!("cat {map}"))?)? })
    }

    /// Destroys every domain but dom0; one that goes by itself meanwhile (a stub whose target is destroyed) is no error.
    ///
    /// # Errors
    /// xl fails.
    pub fn destroy_all(&self) -> Telling {
        self.sh(
            "for id in $(xl list | awk 'NR > 1 && $2 != 0 { print $2 }'); do xl destroy $id 2>/dev/null || true; done",
        )
        .map(drop)
    }

    /// Waits until dom0 is the only domain.
    ///
    /// # Errors
    /// [`Stop::Failure`] with the names of those who stay.
    pub fn expect_alone(&self) -> Telling {
        let deadline = Instant::now() + RELEASE_LIMIT;
        while self.host()?.value("guests")? != "0" {
            if Instant::now() > deadline {
                let left = self.sh("xl list | awk 'NR > 1 && $2 != 0 { print $1 }'")?;
                return Err(Stop::Failure(format!("left behind: {}", left.replace('\n', ", "))));
            }
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    /// What Xen says of the host.
    fn host(&self) -> Telling<Answer> {
        self.sh("nest-host").map(Answer)
    }

    /// Asks a guest's witness; gives its answer.
    ///
    /// # Errors
    /// [`Stop::Failure`] when the witness found a wrong byte or does not answer.
    pub fn ask(&self, guest: &str, question: &str) -> Telling<Answer> {
        self.sh(&format!("ask-witness {guest} {question}")).map(Answer)
    }

    /// Xen's free memory in KiB, to the page (`xl info` tells MiB only).
    ///
    /// # Errors
    /// Xen does not tell.
    pub fn free_kib(&self) -> Telling<u64> {
        let host = self.host()?;
        let number = host.value("free_kib")?;
        number.parse().map_err(|_| Stop::Failure(format!("{number:?} KiB are free")))
    }

    /// Xen's free memory in KiB once it stays the same for a second.
    ///
    /// Xen keeps two pages of what it allocates for the first guest since boot (for dom0's event channels and grants):
    /// take the measure to compare with after a guest has come and gone.
    ///
    /// # Errors
    /// It does not settle.
    pub fn settled_free_kib(&self) -> Telling<u64> {
        let deadline = Instant::now() + RELEASE_LIMIT;
        let mut last = self.free_kib()?;
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let now = self.free_kib()?;
            if now == last {
                return Ok(now);
            }
            ensure(Instant::now() < deadline, || format!("free memory does not settle: {last}, {now} KiB"))?;
            last = now;
        }
    }

    /// Waits until Xen has as much free memory as `before`: destroyed domains give it back bit by bit.
    ///
    /// # Errors
    /// [`Stop::Failure`] when it does not come to that.
    pub fn expect_free(&self, before: u64) -> Telling {
        self.expect_nearly_free(before, 0)
    }

    /// As [`Stage::expect_free`], give or take `slack_kib`.
    ///
    /// # Errors
    /// [`Stop::Failure`] when it does not come to that.
    pub fn expect_nearly_free(&self, before: u64, slack_kib: u64) -> Telling {
        let deadline = Instant::now() + RELEASE_LIMIT;
        loop {
            let now = self.free_kib()?;
            if now.abs_diff(before) <= slack_kib {
                return Ok(());
            }
            ensure(Instant::now() < deadline, || {
                format!("{before} KiB were free before, {now} KiB are after")
            })?;
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

/// A guest's file, and its map when it was fresh.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Where the file is in dom0.
    pub file: String,
    /// The guest's map before it was saved.
    pub fresh: Survey,
}

/// What a witness answered, or another that answers in words of `key=value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer(String);

impl Answer {
    /// The value of `key=value` in the answer's last line.
    ///
    /// # Errors
    /// [`Stop::Failure`] when it is not there.
    pub fn value(&self, key: &str) -> Telling<&str> {
        let words = self.0.lines().next_back().unwrap_or_default().split_whitespace();
        let mut values = words.filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        values.next().ok_or_else(|| Stop::Failure(format!("no {key}= in {:?}", self.0)))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

thread_local! {
    /// What the story of this thread has printed, where others are told meanwhile: it is printed in one piece.
    static PRINTED: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn print(line: impl fmt::Display) {
    PRINTED.with_borrow_mut(|printed| match printed {
        None => println!("{line}"),
        Some(printed) => *printed += &format!("{line}\n"),
    });
}

/// Memory that a machine of [`Options::default`], or two that are joined, take with QEMU's own, in KiB.
const LANE_KIB: u64 = 10 << 20;

/// How many machines may run side by side: two if there are processors and memory for both, since the translator
/// gives each machine one. `NEST_LANES` says otherwise.
pub fn nr_lanes() -> usize {
    if let Some(lanes) = std::env::var("NEST_LANES").ok().and_then(|lanes| lanes.parse().ok()) {
        return 1.max(lanes);
    }
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = available.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0);
    let has_cpus = thread::available_parallelism().is_ok_and(|cpus| cpus.get() >= 2);
    if has_cpus && kib >= 2 * LANE_KIB { 2 } else { 1 }
}

/// Stories that wait, those told, and the time that is left for them.
struct Run<'a> {
    began: Instant,
    budget: Option<Budget>,
    waiting: Vec<(&'a Story, Options)>,
    told: Vec<(&'static str, Verdict)>,
}

impl<'a> Run<'a> {
    /// The next story; before it, what the budget has no time for is skipped.
    fn next(&mut self) -> Option<(&'a Story, Options)> {
        if let Some(budget) = self.budget {
            let mut names: Vec<_> = self.waiting.iter().map(|(story, _)| story.name).collect();
            for name in budget.leave_out(self.began.elapsed(), &mut names) {
                self.told.push((name, Verdict::Skip(format!("left out: {budget}"))));
            }
            self.waiting.retain(|(story, _)| names.contains(&story.name));
        }
        (!self.waiting.is_empty()).then(|| self.waiting.remove(0))
    }

    fn end(&mut self, story: &Story, took: Duration, verdict: Verdict) {
        if let Some(budget) = &mut self.budget {
            budget.note(story.name, took);
        }
        self.told.push((story.name, verdict));
    }
}

/// Tells stories in so many lanes side by side, with as few boots as their wishes allow; gives each one's verdict. With a
/// limit, stories that cannot end in time on this host are skipped, the longest first.
///
/// # Errors
/// There is no place for a lane.
pub fn tell_all(
    place: &Place,
    stories: &[Story],
    nr_lanes: usize,
    limit: Option<Duration>,
) -> Result<Vec<(&'static str, Verdict)>> {
    let places =
        (0..nr_lanes.min(stories.len())).map(|lane| place.in_lane(lane)).collect::<Result<Vec<_>>>()?;
    let nr_lanes = u32::try_from(places.len()).unwrap_or(1).max(1);
    let run = Mutex::new(Run {
        began: Instant::now(),
        budget: limit.map(|limit| Budget::new(limit, nr_lanes)),
        waiting: by_machine(stories),
        told: Vec::new(),
    });
    thread::scope(|scope| {
        for place in &places {
            scope.spawn(|| tell_in_lane(place, places.len() > 1, &run));
        }
    });
    let mut told = run.into_inner().unwrap_or_else(PoisonError::into_inner).told;
    told.sort_by_key(|(name, _)| stories.iter().position(|story| story.name == *name));
    Ok(told)
}

/// How often a story is told while the machine below it fails.
const MOST_TALES: u32 = 3;

/// Tells stories until none is waiting; the machine stays as long as the next one wants its like.
fn tell_in_lane(place: &Place, is_beside: bool, run: &Mutex<Run>) {
    let mut running: Option<(Machine, Options)> = None;
    let run = || run.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let Some((story, options)) = run().next() else { return };
        PRINTED.set(is_beside.then(String::new));
        print(format_args!("story {}: {}", story.name, story.proves));
        let began = Instant::now();
        let mut machine = running.take().and_then(|(machine, its)| (its == options).then_some(machine));
        let verdict = tell_unless_it_falls(place, story, &options, &mut machine);
        print(format_args!("  {} ({:.0} s): {verdict}", story.name, began.elapsed().as_secs_f32()));
        if verdict != Verdict::Success {
            machine = None; // the next story shall not suffer from what this one left
        }
        running = machine.map(|machine| (machine, options));
        if let Some(printed) = PRINTED.take() {
            print(printed.trim_end());
        }
        run().end(story, began.elapsed(), verdict);
    }
}

/// Tells a story, and again on a new machine when the one below it failed.
fn tell_unless_it_falls(
    place: &Place,
    story: &Story,
    options: &Options,
    machine: &mut Option<Machine>,
) -> Verdict {
    for _ in 1..MOST_TALES {
        match tell_on(place, story, options, machine) {
            nothing @ (Verdict::Fell(_) | Verdict::StoodStill(_)) => {
                print(format_args!("    {nothing}; once more on a new machine"));
            }
            verdict => return verdict,
        }
        *machine = None;
    }
    match tell_on(place, story, options, machine) {
        fell @ Verdict::Fell(_) => Verdict::Skip(fell.to_string()),
        stood_still @ Verdict::StoodStill(_) => Verdict::Error(stood_still.to_string()),
        verdict => verdict,
    }
}

/// Tells a story on the machine that runs, or on one that is booted for it.
fn tell_on(place: &Place, story: &Story, options: &Options, machine: &mut Option<Machine>) -> Verdict {
    let running = machine.take().map_or_else(|| Machine::boot(place, options), Ok);
    match running {
        Ok(running) => tell(story.name, &Stage::on(machine.insert(running), place), story.tell),
        Err(error) => Verdict::Error(error.to_string()),
    }
}

/// Stories with their machines: those that want equal ones together, in their own order. The machine that most want comes
/// last, so that no lane stands empty for long at the end.
fn by_machine(stories: &[Story]) -> Vec<(&Story, Options)> {
    let mut kinds: Vec<(Options, Vec<&Story>)> = Vec::new();
    for story in stories {
        let options = (story.options)();
        match kinds.iter_mut().find(|(kind, _)| *kind == options) {
            Some((_, alike)) => alike.push(story),
            None => kinds.push((options, vec![story])),
        }
    }
    kinds.sort_by_key(|(_, alike)| alike.len());
    let mut stories = Vec::new();
    for (options, alike) in kinds {
        stories.extend(alike.into_iter().map(|story| (story, options.clone())));
    }
    stories
}

/// Tells one story on a machine of its own.
pub fn tell_alone(
    place: &Place,
    name: &str,
    options: &Options,
    story: impl FnOnce(&Stage) -> Telling,
) -> Verdict {
    match Machine::boot(place, options) {
        Ok(machine) => tell(name, &Stage::on(&machine, place), story),
        Err(error) => Verdict::Error(error.to_string()),
    }
}

/// Tells one story and cleans up behind it; a story that leaves a domain behind has failed.
fn tell(name: &str, stage: &Stage, story: impl FnOnce(&Stage) -> Telling) -> Verdict {
    let nr_falls = falls(stage).lines().count();
    let stood_still = stage.machine.dom0.stood_still();
    let verdict = match Verdict::from(story(stage)) {
        Verdict::Success => Verdict::from(sweep(stage)),
        verdict => verdict,
    };
    let (Verdict::Failure(what) | Verdict::Error(what)) = &verdict else { return verdict };
    // The machine goes now. What it can still tell shall be seen where only the last lines of all stories are kept.
    let seen = look_around(stage);
    if seen.is_ok() {
        keep_logs(name, stage);
    }
    let standstill = stage.machine.dom0.stood_still() - stood_still;
    if standstill >= STANDSTILL {
        return Verdict::StoodStill(format!("{} s; {what}", standstill.as_secs()));
    }
    let seen = seen.unwrap_or_else(|error| format!("{error}\n{}", stage.machine.console_tail(6)));
    let told = seen.lines().fold(what.clone(), |text, line| text + "\n    | " + line);
    if matches!(verdict, Verdict::Error(_)) {
        return Verdict::Error(told);
    }
    match falls(stage).lines().nth(nr_falls) {
        Some(fell) => Verdict::Fell(format!("{fell}; {what}")),
        None => Verdict::Failure(told),
    }
}

/// How long a host may stand still before a story that failed meanwhile is told again: libxl gives a device ten seconds.
const STANDSTILL: Duration = Duration::from_secs(5);

/// Where guests fell with a triple fault in whose state the code segment and the instruction pointer are Xen's own: QEMU's
/// translation of nested guests lets that happen now and then, and no guest can bring it about. A line each.
fn falls(stage: &Stage) -> String {
    let script = "xl dmesg | grep -A 5 'Triple fault' | grep -o 'RIP: *e008:.*'";
    stage.machine.dom0.run(script, SCENE_LIMIT).map_or_else(|_| String::new(), |outcome| outcome.text)
}

/// What there is to see where a story failed: the host, dom0, the domains and their consoles' last lines.
fn look_around(stage: &Stage) -> Result<String> {
    let script =
        "uptime; xl list; cd /var/log/xen; for log in guest-*.log; do echo \"$log:\"; tail -n 3 $log; done";
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cpu = stage.machine.cpu_time().map_or_else(|| "unknown".into(), |cpu| format!("{} s", cpu.as_secs()));
    let inside = stage.machine.dom0.run(script, SCENE_LIMIT)?;
    Ok(format!("the host's load: {}; QEMU's processor time: {cpu}\n{}", load.trim(), inside.text))
}

/// Empties the folder of save files. A domain that is left is a failure.
fn sweep(stage: &Stage) -> Telling {
    let left = stage.sh("xl list | awk 'NR > 1 && $2 != 0 { print $1 }'")?;
    ensure(left.is_empty(), || format!("left behind: {}", left.replace('\n', ", ")))?;
    stage.sh("rm -rf /var/lib/xen/save/*").map(drop)
}

/// Hands dom0's logs to the host: `target/nest/out/NAME/`.
fn keep_logs(name: &str, stage: &Stage) {
    let collect = format!(
        "rm -rf /host/{name}; mkdir /host/{name}; xl dmesg >/var/log/xen/xl-dmesg; cp /var/log/xen/* /host/{name}/; \
         xenstore-ls -f >/host/{name}/xenstore; xl list >/host/{name}/xl-list"
    );
    match stage.run(&collect) {
        Ok(_) => stage.say(format!("dom0's logs: {}", stage.place.out().join(name).display())),
        Err(stop) => stage.say(format!("no logs: {}", Verdict::from(Err(stop)))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn story(name: &'static str, options: fn() -> Options) -> Story {
        Story { name, proves: "", options, tell: |_| Ok(()) }
    }

    #[test]
    fn stories_that_want_the_same_machine_come_together() {
        let big = || Options { mem_mib: 16384, ..Options::default() };
        let stories = [story("a", Options::default), story("b", big), story("c", Options::default)];
        let names: Vec<_> = by_machine(&stories).iter().map(|(story, _)| story.name).collect();
        assert_eq!(names, ["b", "a", "c"]);
    }

    #[test]
    fn an_answer_gives_its_values() {
        let answer = Answer("witness: WRONG page=3\nwitness: verified right pages=7 sum=0x1 tag=9".into());
        assert_eq!(answer.value("sum").unwrap(), "0x1");
        assert_eq!(answer.value("pages").unwrap(), "7");
        assert!(matches!(answer.value("page"), Err(Stop::Failure(_))));
    }
}
