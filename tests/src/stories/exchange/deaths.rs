//! Who dies at which moment of an exchange; the guest must not notice.

use super::GUEST;
use super::state::limits;
use crate::machine::Options;
use crate::soak::{Chance, Soak};
use crate::story::{Stage, Story, Telling, ensure};
use std::ops::RangeInclusive;

/// The deaths that differ most.
pub(in crate::stories) const DEATHS: Story = Story {
    name: "exchange-deaths",
    proves: "when stubctl, stubctl and its guardian, or the stub dies during an exchange the guest runs on whole (in the second \
             case when stubctl comes again), no mark stays on its frame, and the next attempt succeeds",
    options: Options::default,
    tell: deaths,
};

/// Between any two steps.
pub(in crate::stories) const ALL_DEATHS: Soak = Soak {
    name: "exchange-deaths",
    proves: "whenever stubctl or the stub dies during an exchange the guest runs on whole, and the next attempt succeeds; the \
             seed chooses the pages",
    options: Options::default,
    rounds: 1,
    tell: all_deaths,
};

/// Somebody's death.
#[derive(Clone, Debug)]
pub(super) enum Death {
    /// stubctl's after this step.
    Stubctl(u8),
    /// stubctl's, and before that of the process that guards the guest.
    Both(u8),
    /// The stub's before the call to Xen of this number, of the exchange of a superpage.
    Superpage(u32),
    /// The same of the exchange of a page alone.
    Page(u32),
}

/// The number of the call to Xen, counted from 0, that moves the new page over the old: ten parameters, a look at the
/// region, the page's type and grants; a look at the hole, its type, populating it, mapping; another look and the grants.
const PAGE_MOVE: u32 = 19;

/// The same of the call that takes the superpage away, after which its place is populated anew, mapped and filled. All 512
/// pages are asked for their type, the grants are looked at twice, and no look for a hole is needed but one.
const TAKE: u32 = 530;

/// Calls before a superpage's pages are asked for their types.
const FIRST_CALLS: u32 = 13;

/// More calls than any exchange has.
const NO_MORE: u32 = 600;

/// The first pages of superpages without anything that must stay, the second of them for pages alone.
const OF_SUPERPAGE: u64 = 0xa000;
const OF_PAGE: u64 = 0x9000;

/// What the stub says when it dies.
const FUSE: &str = "the fuse that stubctl set has burnt down";

fn deaths(stage: &Stage) -> Telling {
    begin(stage)?;
    let of_superpage =
        [Death::Stubctl(5), Death::Stubctl(2), Death::Stubctl(3), Death::Both(1), Death::Both(2)];
    let calls = (TAKE..=TAKE + 2).map(Death::Superpage);
    for (death, number) in of_superpage.into_iter().chain(calls).zip(0..) {
        survive(stage, GUEST, &death, another(OF_SUPERPAGE + 5, number))?;
    }
    for (call, number) in (PAGE_MOVE..=PAGE_MOVE + 1).zip(0..) {
        survive(stage, GUEST, &Death::Page(call), another(OF_PAGE + 5, number))?;
    }
    end(stage)
}

fn all_deaths(stage: &Stage, chance: &mut Chance, rounds: u32) -> Telling {
    begin(stage)?;
    let mut nr_deaths = 0;
    for _ in 0..rounds {
        let [superpage, page] = [OF_SUPERPAGE, OF_PAGE].map(|first| first + chance.below(512) as u64);
        for (step, number) in (1..=5).zip((0..).step_by(2)) {
            survive(stage, GUEST, &Death::Stubctl(step), another(superpage, number))?;
            survive(stage, GUEST, &Death::Both(step), another(superpage, number + 1))?;
        }
        nr_deaths += 10 + sweep(stage, 0..=NO_MORE, Death::Page, page)?;
        nr_deaths += sweep(stage, 0..=FIRST_CALLS, Death::Superpage, superpage)?;
        nr_deaths += sweep(stage, TAKE - 8..=NO_MORE, Death::Superpage, superpage)?;
    }
    stage.say(format!(
        "{nr_deaths} deaths in {rounds} rounds: every byte right, every page owned, every next attempt done"
    ));
    end(stage)
}

/// Has the stub die before each of these calls, as long as there are so many; gives how often it died. Each time it is
/// [`another`] page.
fn sweep(
    stage: &Stage,
    calls: RangeInclusive<u32>,
    death: impl Fn(u32) -> Death,
    gfn: u64,
) -> Telling<usize> {
    let mut nr_deaths = 0;
    for (call, number) in calls.clone().zip(0..) {
        if !outlive(stage, GUEST, &death(call), another(gfn, number))? {
            break;
        }
        nr_deaths += 1;
    }
    ensure(nr_deaths > 0, || format!("nobody died at the calls {calls:?}"))?;
    Ok(nr_deaths)
}

/// A page of the same superpage, with some of the guest's own between it and others. One that was exchanged alone, because a
/// page beside it must stay where it is, may have come to lie beside free memory, and would be refused: each death takes its
/// own.
pub(super) const fn another(gfn: u64, number: u64) -> u64 {
    gfn / 512 * 512 + (gfn + 8 * number) % 512
}

fn begin(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST}")).map(drop)
}

fn end(stage: &Stage) -> Telling {
    stage.ask(GUEST, "verify")?;
    let pages = stage.sh("stubctl pages")?;
    ensure(pages.starts_with("no frame of"), || format!("marks are left: {pages}"))?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    stage.expect_alone()
}

/// Lets somebody die during an exchange, looks at the guest and repeats the exchange.
pub(super) fn survive(stage: &Stage, guest: &str, death: &Death, gfn: u64) -> Telling {
    let died = outlive(stage, guest, death, gfn)?;
    ensure(died, || format!("{death:?}: nobody died"))
}

/// As [`survive`]; tells whether somebody died: a stub does not when its exchange has fewer calls.
fn outlive(stage: &Stage, guest: &str, death: &Death, gfn: u64) -> Telling<bool> {
    let before = limits(stage, guest, "")?;
    let mfn = stage.sh(&format!("stubctl locate {guest} {gfn:#x}"))?;
    let nr_burnt = nr_burnt(stage)?;
    let (code, text) = die(stage, guest, death, &mfn)?;
    let nr_burnt = self::nr_burnt(stage)? - nr_burnt;
    if code == 0 && nr_burnt == 0 {
        stage.sh(&format!("xen-hptool mem-online {mfn}"))?;
        return Ok(false);
    }
    let as_ordered = match death {
        Death::Stubctl(_) | Death::Both(_) => (code, nr_burnt) == (ABORTED, 0),
        // The frame may be exchanged when the stub has only to clean up.
        Death::Superpage(_) | Death::Page(_) => matches!((code, nr_burnt), (0 | 4 | 5, 1)),
    };
    ensure(as_ordered, || format!("{death:?}: nobody died as ordered, it ended with {code}: {text}"))?;
    if matches!(death, Death::Both(_)) {
        stands(stage, guest, death)?;
    } else {
        stage.sh(&format!("ask-witness {guest} ticking --timeout 30"))?;
        await_limits(stage, guest, &before)?;
    }
    // With both dead the frame is marked until the next attempt, if it had been.
    if !matches!(death, Death::Both(2 | 3 | 5)) {
        await_no_mark(stage, &mfn, death)?;
    }
    let again = stage.sh(&format!(
        "until stubctl attach {guest} 2>/dev/null || stubctl status | grep -q {guest}; do sleep 0.2; done; \
         timeout 60 stubctl offline {mfn} && xen-hptool mem-online {mfn} >/dev/null"
    ))?;
    await_limits(stage, guest, &before)?;
    runs(stage, guest)?;
    stage.say(format!("{death:?}: ended with {code}; then: {}", again.lines().last().unwrap_or_default()));
    stage.ask(guest, "verify")?;
    Ok(true)
}

/// The exit code of a process that SIGABRT ended.
const ABORTED: i32 = 134;

/// Gives the exit code and the words of an exchange that ends badly.
fn die(stage: &Stage, guest: &str, death: &Death, mfn: &str) -> Telling<(i32, String)> {
    let how = match death {
        Death::Stubctl(step) | Death::Both(step) => format!("--debug-abort {step}"),
        Death::Superpage(call) => format!("--debug-stub-panic {call}"),
        Death::Page(call) => format!("--split --debug-stub-panic {call}"),
    };
    let exchange = format!("timeout 60 stubctl offline {how} {mfn} 2>&1");
    let outcome = match death {
        // While it starts a stub there is time to find the guardian, whose name is that of /proc/self/exe.
        Death::Both(_) => stage.run(&format!(
            "stubctl detach {guest} >/dev/null; {exchange} & \
             until kill -9 $(pidof exe) 2>/dev/null; do sleep 0.02; done; wait $!"
        ))?,
        _ => stage.run(&exchange)?,
    };
    Ok((outcome.code, outcome.text))
}

/// With nobody left to let it run the guest stands still, or was let run before.
fn stands(stage: &Stage, guest: &str, death: &Death) -> Telling {
    let stood = stage.sh(&format!("xl list {guest} | awk 'NR == 2 {{ print $5 }}'"))?;
    let should = matches!(death, Death::Both(2 | 3));
    ensure(stood.contains('p') == should, || {
        format!("{death:?}: expected it to stand: {should}, it is {stood}")
    })
}

/// The guest runs, and its device model with it.
pub(super) fn runs(stage: &Stage, guest: &str) -> Telling {
    stage.sh(&format!("ask-witness {guest} ticking --timeout 30"))?;
    let said = stage.sh(&format!(
        "[ ! -S /var/run/xen/qmp-libxl-$(xl domid {guest}) ] || xl qemu-monitor-command {guest} 'info status'"
    ))?;
    ensure(said.is_empty() || said.contains("running"), || format!("the device model of {guest}: {said}"))
}

/// Waits until the guest owns, and may own, what it did.
pub(super) fn await_limits(stage: &Stage, guest: &str, before: &str) -> Telling {
    stage
        .sh(&format!(
            "for i in $(seq 50); do [ \"$(nest-domain $(xl domid {guest}))\" != '{before}' ] || exit 0; sleep 0.2; done; \
             echo 'it had {before}, it has'; nest-domain $(xl domid {guest}); exit 1"
        ))
        .map(drop)
}

/// Waits until a frame is out of use or in use, and not marked.
fn await_no_mark(stage: &Stage, mfn: &str, death: &Death) -> Telling {
    let status = format!("xen-hptool mem-status {mfn} 2>&1");
    let waited = stage.run(&format!(
        "for i in $(seq 50); do {status} | grep -q PENDING || exit 0; sleep 0.2; done; {status}; exit 1"
    ))?;
    ensure(waited.code == 0, || format!("{death:?}: the mark stays: {}", waited.text))
}

/// How many stubs have died of their fuse.
fn nr_burnt(stage: &Stage) -> Telling<usize> {
    let said = stage
        .sh(&format!("cat /var/log/xen/guest-*-stubdom-*.log 2>/dev/null | grep -c '{FUSE}' || true"))?;
    Ok(said.parse().unwrap_or(0))
}
