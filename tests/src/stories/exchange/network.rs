//! Frames of a guest that takes data from the network meanwhile.

use super::state::limits;
use super::{bring_back, exchange, expect_offline};
use crate::exchange::{Frames, Verdicts};
use crate::machine::Options;
use crate::soak::Chance;
use crate::story::{Stage, Story, Telling, ensure};

/// A network back end fills the guest's receive buffers by grant copies, which last for microseconds, and goes on while the
/// guest stands still: what it writes to an old frame after the copy was made would be lost, and nobody would ask for it
/// again, since the back end has said that it arrived.
pub(in crate::stories) const NETWORK: Story = Story {
    name: "exchange-net",
    proves: "while a guest takes and returns a bulk of data by TCP, a frame of every superpage of it and then single pages are \
             exchanged, and each round of the data comes back with its checksum",
    options: Options::default,
    tell: network,
};

const GUEST: &str = "pvh-net";

/// Pages of the guest's RAM.
const NR_PAGES: usize = 0x8000;

/// One frame of each of its superpages, so that every receive buffer is near one.
const NR_WHOLE: usize = NR_PAGES / 512;

/// Single pages after that.
const NR_SINGLE: usize = 20;

/// Sends the same megabytes again and again to the guest's echo, until told to stop; notes each round that came back whole.
const LOAD: &str = r#"cat >/run/load.sh <<'END'
head -c 4194304 /dev/urandom >/run/load
sum=$(md5sum </run/load)
while [ ! -e /run/load.stop ]; do
    exec 3<>/dev/tcp/10.80.0.2/7 || { echo "WRONG: no connection"; exit 1; }
    cat /run/load >&3 &
    back=$(timeout 100 head -c 4194304 <&3 | md5sum)
    [ "$back" = "$sum" ] || { echo "WRONG: sent $sum, got $back"; exit 1; }
    exec 3>&-
    echo right
done
echo done
END
rm -f /run/load.log /run/load.stop
setsid bash /run/load.sh >/run/load.log 2>&1 </dev/null &"#;

fn network(stage: &Stage) -> Telling {
    stage.create(GUEST)?;
    stage.sh(&format!("stubctl attach {GUEST}"))?;
    let before = limits(stage, GUEST, "")?;
    stage.sh(LOAD)?;
    await_rounds(stage, 1)?;
    let mut frames = Frames::new(Chance::new(3));
    let whole = exchange(stage, GUEST, &frames.take(NR_WHOLE, NR_PAGES), "")?;
    await_rounds(stage, 1)?;
    let single = exchange(stage, GUEST, &frames.take(NR_SINGLE, NR_PAGES), "--split")?;
    await_rounds(stage, 2)?;
    let log = stage.sh("touch /run/load.stop; until tail -n 1 /run/load.log | grep -q '[eG]'; do sleep 0.2; done; cat /run/load.log")?;
    let (nr_right, last) = (log.matches("right").count(), log.lines().next_back().unwrap_or_default());
    stage.say(format!("{nr_right} rounds of 4 MiB each way came back right"));
    ensure(last == "done", || format!("the load ended with {last:?} after {nr_right} rounds"))?;
    for (verdicts, nr_frames) in [(&whole, NR_WHOLE), (&single, NR_SINGLE)] {
        stage.say(verdicts.summary());
        stage.say(verdicts.times());
        verdicts.expect_most(nr_frames, nr_frames / 5)?;
    }
    expect_whole(&whole)?;
    stage.ask(GUEST, "ticking")?;
    stage.ask(GUEST, "verify")?;
    let after = limits(stage, GUEST, "")?;
    ensure(before == after, || format!("the guest had {before}, it has {after}"))?;
    expect_offline(stage, &[&whole, &single])?;
    stage.sh(&format!("xl destroy {GUEST}"))?;
    bring_back(stage, &[&whole, &single])?;
    stage.expect_alone()
}

/// Some superpages stay whole though the guest has grants in others.
fn expect_whole(verdicts: &Verdicts) -> Telling {
    let nr_superpages = verdicts.nr_with("outcome", "superpage");
    ensure(nr_superpages * 4 >= NR_WHOLE, || {
        format!("{nr_superpages} of {NR_WHOLE} superpages were exchanged whole: {}", verdicts.summary())
    })
}

/// Waits until so many more rounds have come back; one that began before is not counted.
fn await_rounds(stage: &Stage, nr_rounds: usize) -> Telling {
    stage
        .sh(&format!(
            "had=$(grep -c right /run/load.log); \
         until [ $(grep -c right /run/load.log) -ge $((had + 1 + {nr_rounds})) ]; do \
         if grep -q WRONG /run/load.log; then cat /run/load.log; exit 1; fi; sleep 0.2; done"
        ))
        .map(drop)
}
