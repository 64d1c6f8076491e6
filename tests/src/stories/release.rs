//! What guests and stubs took, they give back.

use crate::machine::Options;
use crate::story::{Stage, Story, THROUGH_STUB, Telling, ensure};

/// Ten restores, one after another.
pub(super) const TEN_ROUNDS: Story = Story {
    name: "stub-ten-rounds",
    proves: "ten restores through ten stubs, and destroying guest and stub gives every page back to Xen each time",
    options: Options::default,
    tell: ten_rounds,
};

/// Two restores side by side.
pub(super) const TWO_AT_ONCE: Story = Story {
    name: "stub-two-at-once",
    proves: "two guests restored at once, each by its own stub, keep every byte; idle stubs use no CPU",
    options: Options::default,
    tell: two_at_once,
};

fn ten_rounds(stage: &Stage) -> Telling {
    let (guest, file) = ("pvh-128", "/var/lib/xen/save/pvh-128");
    stage.create(guest)?;
    stage.sh(&format!("xl save {guest} {file}"))?;
    let round =
        format!("{THROUGH_STUB}xl restore {file} && ask-witness {guest} verify && xl destroy {guest}");
    stage.sh(&round)?; // what Xen and dom0 allocate once for a first stub is not to count
    stage.expect_alone()?;
    let free = stage.settled_free_kib()?;
    for _ in 0..10 {
        stage.sh(&round)?;
        stage.expect_alone()?;
        stage.expect_free(free)?;
    }
    stage.say(format!("{free} KiB free each time"));
    Ok(())
}

fn two_at_once(stage: &Stage) -> Telling {
    let guests = ["pvh-128", "pvh-256"];
    for guest in guests {
        stage.create(guest)?;
        stage.sh(&format!("xl save {guest} /var/lib/xen/save/{guest}"))?;
    }
    let [first, second] = guests.map(|guest| format!("{THROUGH_STUB}xl restore /var/lib/xen/save/{guest}"));
    stage.sh(&format!("{first} & first=$!; {second}; code=$?; wait $first && exit $code"))?;
    for guest in guests {
        stage.ask(guest, "verify")?;
        stage.ask(guest, "ticking")?;
    }
    idle_stubs_sleep(stage)?;
    stage.sh("xl destroy pvh-128 && xl destroy pvh-256")?;
    stage.expect_alone()
}

/// Over ten seconds the stubs' CPU time, which xl tells to the tenth of a second, stays as it is.
fn idle_stubs_sleep(stage: &Stage) -> Telling {
    let times = || stage.sh("xl list | awk '/-stubdom-/ { print $1, $6 }'");
    let before = times()?;
    ensure(before.lines().count() == 2, || format!("expected two stubs, got {before:?}"))?;
    stage.sh("sleep 10")?;
    let after = times()?;
    ensure(before == after, || format!("CPU seconds of the stubs: {before:?}, ten seconds later {after:?}"))
}
