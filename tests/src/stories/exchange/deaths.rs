//! Who dies at which moment of an exchange; the guest must not notice.

use super::GUEST;
use crate::machine::Options;
use crate::soak::Soak;
use crate::story::{Stage, Story, Telling, ensure};
use crate::survey::Survey;

/// The deaths that differ most.
pub(in crate::stories) const DEATHS: Story = Story {
    name: "exchange-deaths",
    proves: "when stubctl or the stub dies during an exchange the guest runs on whole, and the next attempt succeeds",
    options: Options::default,
    tell: |stage| deaths(stage, &[2, 3], &[PAGE_MOVE, PAGE_MOVE + 1], &[TAKE, TAKE + 1, TAKE + 2]),
};

/// Between any two steps.
pub(in crate::stories) const ALL_DEATHS: Soak = Soak {
    name: "exchange-deaths",
    proves: "whenever stubctl or the stub dies during an exchange the guest runs on whole, and the next attempt succeeds",
    options: Options::default,
    rounds: 1,
    tell: |stage, _, rounds| {
        let page: Vec<u32> = (PAGE_MOVE - 6..=PAGE_MOVE + 3).collect();
        let superpage: Vec<u32> = (TAKE - 6..=TAKE + 4).collect();
        (0..rounds).try_for_each(|_| deaths(stage, &[1, 2, 3, 4], &page, &superpage))
    },
};

/// The number of the call to Xen, counted from 0, that moves the new page over the old: ten parameters, a look at the
/// region, the page's type and grants; a look at the hole, its type, populating it, mapping; another look and the grants.
const PAGE_MOVE: u32 = 19;

/// The same of the call that takes the superpage away, after which its place is populated anew, mapped and filled. All 512
/// pages are asked for their type, the grants are looked at twice, and no look for a hole is needed but one.
const TAKE: u32 = 530;

/// A page in a superpage without anything that must stay.
const OF_SUPERPAGE: u64 = 0xa005;

/// Another, to be exchanged alone.
const OF_PAGE: u64 = 0x9005;

fn deaths(stage: &Stage, steps: &[u8], page: &[u32], superpage: &[u32]) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    let owned = Survey::take(stage, GUEST)?.nr_owned;
    for step in steps {
        survive(stage, &format!("--debug-abort {step}"), OF_SUPERPAGE, owned)?;
    }
    for call in superpage {
        survive(stage, &format!("--debug-stub-panic {call}"), OF_SUPERPAGE, owned)?;
    }
    for call in page {
        survive(stage, &format!("--split --debug-stub-panic {call}"), OF_PAGE, owned)?;
    }
    stage.ask(GUEST, "verify")?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    stage.expect_alone()
}

/// Lets an exchange die, then looks at the guest and repeats the exchange.
fn survive(stage: &Stage, how: &str, gfn: u64, owned: u64) -> Telling {
    let mfn = stage.sh(&format!("stubctl locate {GUEST} {gfn:#x}"))?;
    let died = stage.run(&format!("timeout 60 stubctl offline {how} {mfn} 2>&1"))?;
    ensure(died.code != 0, || format!("{how}: nobody died: {}", died.text))?;
    stage.sh(&format!("ask-witness {GUEST} ticking --timeout 30"))?;
    let again = stage.sh(&format!(
        "until stubctl attach {GUEST} 2>/dev/null || stubctl status | grep -q {GUEST}; do sleep 0.2; done; \
         timeout 60 stubctl offline {mfn} && xen-hptool mem-online {mfn} >/dev/null"
    ))?;
    let has = Survey::take(stage, GUEST)?.nr_owned;
    ensure(has == owned, || format!("{how}: the guest had {owned} pages, it has {has}"))?;
    stage.say(format!("{how}: ended with {}; then: {}", died.code, again.lines().last().unwrap_or_default()));
    stage.ask(GUEST, "verify").map(drop)
}
