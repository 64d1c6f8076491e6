//! What guests and stubs took, they give back.

use crate::error::Doing;
use crate::machine::Options;
use crate::story::{Stage, Story, THROUGH_STUB, Telling, ensure};
use serde_json::Value;

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
    proves: "two guests restored at once, each by its own stub and both in the midst of their memory, keep every byte, as \
             their witnesses also find on their own; idle stubs use no CPU",
    options: Options::default,
    tell: two_at_once,
};

fn ten_rounds(stage: &Stage) -> Telling {
    let guest = "pvh-128";
    let file = stage.saved(guest)?.file;
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

/// The guests of [`two_at_once`]; their witnesses verify every few seconds.
const GUESTS: [(&str, &str); 2] = [("pvh-128", "40"), ("pvh-256", "160")];

/// Restores both at once from pipes. Each stream is held where some of the memory has passed; when both are, the stubs are
/// looked at.
const TOGETHER: &str = r#"
restore() { # GUEST WHAT_TO_DO_THERE
    mkfifo "/run/$1.pipe"
    nest-gate --at memory --run "$2" <"/var/lib/xen/save/$1" >"/run/$1.pipe" &
    LIBXL_SAVE_HELPER=/usr/sbin/stubctl xl restore "/run/$1.pipe"
}
await() { echo "for i in \$(seq 600); do [ ! -e $1 ] || exit 0; sleep 0.1; done"; }
rm -f /run/held /run/looked /run/*.pipe
restore pvh-128 "touch /run/held; $(await /run/looked)" &
first=$!
restore pvh-256 "($(await /run/held)); stubctl status --json >/run/both; touch /run/looked"
code=$?
wait $first && exit $code"#;

fn two_at_once(stage: &Stage) -> Telling {
    for (guest, mib) in GUESTS {
        stage.create_with(guest, &format!("'extra+=\" witness.mb={mib} witness.interval=4\"'"))?;
        stage.sh(&format!("xl save {guest} /var/lib/xen/save/{guest}"))?;
    }
    stage.sh(TOGETHER)?;
    expect_both(&stage.sh("cat /run/both")?)?;
    for (guest, _) in GUESTS {
        stage.ask(guest, "verify")?;
        stage.ask(guest, "ticking")?;
    }
    let before = own_verdicts(stage)?;
    idle_stubs_sleep(stage, 2, 0.0)?;
    let after = own_verdicts(stage)?;
    let grown = before.iter().zip(&after).all(|(before, after)| before < after);
    ensure(grown, || format!("the witnesses' own verdicts in ten seconds: {before:?} to {after:?}"))?;
    stage.sh("xl destroy pvh-128 && xl destroy pvh-256")?;
    stage.expect_alone()
}

/// Both stubs were receiving memory.
fn expect_both(text: &str) -> Telling {
    let rows: Vec<Value> = serde_json::from_str(text).doing("reading stubctl status --json")?;
    let mut guests: Vec<&str> = rows.iter().filter_map(|row| row["guest"].as_str()).collect();
    guests.sort_unstable();
    let in_memory = rows.iter().all(|row| row["phase"] == "memory");
    ensure(guests == GUESTS.map(|(guest, _)| guest) && in_memory, || {
        format!("expected both guests in phase memory at once, got {text}")
    })
}

/// How often each witness has verified on its own; none may have found a wrong byte.
fn own_verdicts(stage: &Stage) -> Telling<Vec<usize>> {
    let of = |(guest, _): (&str, &str)| {
        let log = stage.sh(&format!("cat /var/log/xen/guest-{guest}.log"))?;
        ensure(!log.contains("WRONG"), || format!("the witness of {guest} found a wrong byte:\n{log}"))?;
        Ok(log.lines().filter(|line| line.contains("tag=own")).count())
    };
    GUESTS.into_iter().map(of).collect()
}

/// Over ten seconds the stubs' CPU time, which xl tells to the tenth of a second, grows by at most `most_s`.
pub(super) fn idle_stubs_sleep(stage: &Stage, nr_stubs: usize, most_s: f64) -> Telling {
    let times = || stage.sh("xl list | awk '/-stubdom-/ { print $1, $6 }'");
    let before = times()?;
    ensure(before.lines().count() == nr_stubs, || format!("expected {nr_stubs} stubs, got {before:?}"))?;
    stage.sh("sleep 10")?;
    let after = times()?;
    let grown = before.lines().zip(after.lines()).map(|(before, after)| grown_s(before, after));
    let idle = grown.into_iter().all(|grown| grown.is_some_and(|grown| grown <= most_s + 0.001));
    ensure(idle && before.lines().count() == after.lines().count(), || {
        format!("CPU seconds of the stubs: {before:?}, ten seconds later {after:?}")
    })
}

/// By how much a stub's time has grown between two lines of the same stub.
fn grown_s(before: &str, after: &str) -> Option<f64> {
    let (stub, before) = before.split_once(' ')?;
    let after = after.strip_prefix(stub)?.trim();
    Some(after.parse::<f64>().ok()? - before.parse::<f64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_grows_between_lines_of_one_stub() {
        assert!(
            grown_s("a-stubdom-1 0.4", "a-stubdom-1 0.5")
                .is_some_and(|grown| (0.099..0.101).contains(&grown))
        );
        assert_eq!(grown_s("a-stubdom-1 0.4", "b-stubdom-1 0.4"), None);
    }
}
