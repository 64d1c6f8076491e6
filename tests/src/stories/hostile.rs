//! Bad input: one clear line, nothing left, and the next restore succeeds.

mod told;

use super::restore::restore_paused;
use crate::machine::Options;
use crate::soak::{Chance, Soak};
use crate::story::{Saved, Stage, Story, THROUGH_STUB, Telling, ensure};
use crate::survey::Survey;
use told::{DAMAGES, Told};

/// One thing wrong in the stream: one of so many kinds.
pub(super) const DAMAGED: Story = Story {
    name: "stub-damaged",
    proves: "damage to the stream gives one clear line and an exit code, leaves no domain and no page; the next restore \
             succeeds; what only looks damaged arrives whole",
    options: Options::default,
    tell: |stage| damaged(stage, NR_KINDS_A_TALE, 2),
};

/// The story tells of each kind of damage whose number is a multiple of this, the soak of all: they are alike in what they
/// ask of the nest, and the unit tests have each of them.
const NR_KINDS_A_TALE: usize = 10;

/// All of them.
pub(super) const SOAK: Soak = Soak {
    name: "damaged",
    proves: "each kind of damage to the stream gives one clear line and an exit code, leaves no domain and no page; the next \
             restore succeeds; what only looks damaged (version 2, parameters first, VERIFY) arrives whole",
    options: Options::default,
    rounds: 1,
    tell: |stage, _, rounds| (0..rounds).try_for_each(|_| damaged(stage, 1, 1)),
};

/// The stream ends early.
pub(super) const CUT: Story = Story {
    name: "stub-cut",
    proves: "a stream cut before any record or at any byte gives one clear line and an exit code, leaves no domain and no \
             page",
    options: Options::default,
    tell: |stage| {
        cut(stage, &mut Chance::new(SEED), &Cuts { records: ends, nr_random: NR_RANDOM_CUTS, step: 2 })
    },
};

/// The same before each record, and at more bytes.
pub(super) const ALL_CUTS: Soak = Soak {
    name: "cut",
    proves: "a stream cut before each of its records, and at random bytes, gives one clear line and an exit code, leaves no \
             domain and no page",
    options: Options::default,
    rounds: 20,
    tell: |stage, chance, rounds| {
        let nr_random = usize::try_from(rounds).unwrap_or(usize::MAX);
        cut(stage, chance, &Cuts { records: |nr_records| (0..nr_records).collect(), nr_random, step: 1 })
    },
};

const GUEST: &str = "pvh-128";
const BAD: &str = "/var/lib/xen/save/bad";
const CONF: &str = "/etc/xen/stubdom/pvh-128.conf";

/// A good stream comes after so many damaged ones.
const NR_BETWEEN: usize = 8;

/// Damages by TCP: the most can go wrong between relay and stub where a length is wrong.
const BY_TCP: [&str; 4] = ["garbage", "length-huge", "pfn-at-end", "end-body"];

/// Cuts at bytes that this seed chooses, besides the chosen ones.
const SEED: u64 = 2;
const NR_RANDOM_CUTS: usize = 1;

/// How the stream offset that is told may lie to the damage's own: before, by what lies in front of it in its field;
/// behind, by what is read before it shows (a page list, a record that is missed only at END).
const TOLD_BEFORE: u64 = 24;
const TOLD_BEHIND: u64 = 16 << 10;

/// A restore of the good file by a transport, with the witness; gives Xen's free memory with no guest.
fn good_restore(stage: &Stage, saved: &Saved, transport: &str) -> Telling<u64> {
    let file = &saved.file;
    stage.sh(&format!(
        "echo 'transport = \"{transport}\"' >{CONF}
         {THROUGH_STUB}xl restore {file} && ask-witness {GUEST} verify && xl destroy {GUEST}"
    ))?;
    stage.expect_alone()?;
    stage.settled_free_kib()
}

/// One of `step` kinds, and one of `step_by_tcp` of those by TCP.
fn damaged(stage: &Stage, step: usize, step_by_tcp: usize) -> Telling {
    let saved = stage.saved(GUEST)?;
    let free = good_restore(stage, &saved, "ring")?;
    let names = stage.sh("nest-stream damages")?;
    let known: Vec<&str> = DAMAGES.iter().map(|(name, _)| *name).collect();
    ensure(names.lines().eq(known.iter().copied()), || {
        format!("expected the damages {known:?}, nest-stream has\n{names}")
    })?;
    for (number, (name, told)) in DAMAGES.iter().step_by(step).enumerate() {
        damage(stage, name, *told, free, &saved)?;
        if (number + 1).is_multiple_of(NR_BETWEEN) {
            arrives(stage, &saved.file, &saved.fresh, saved.fresh.nr_owned)?;
        }
    }
    let free = good_restore(stage, &saved, "tcp")?;
    for (name, told) in DAMAGES.iter().filter(|(name, _)| BY_TCP.contains(name)).step_by(step_by_tcp) {
        damage(stage, name, *told, free, &saved)?;
    }
    good_restore(stage, &saved, "tcp")?;
    stage.sh(&format!("rm {CONF}")).map(drop)
}

/// Damages the file and restores it.
fn damage(stage: &Stage, name: &str, told: Told, free: u64, saved: &Saved) -> Telling {
    let Saved { file, fresh } = saved;
    let at = stage.sh(&format!("nest-stream damage {file} {BAD} {name}"))?;
    match told {
        Told::Refused(words) => {
            let line = refused(stage, name)?;
            ensure(is_told(&line, &at, words), || {
                format!("{name}: expected the offset of the damage ({at}) and \"{words}\", got \"{line}\"")
            })?;
        }
        Told::ByLibxl(words) => {
            let said = fails(stage, name)?;
            let nr_lines = said.lines().filter(|line| line.contains(words)).count();
            ensure(nr_lines == 1 && own_lines(&said).is_empty(), || {
                format!("{name}: expected one line of libxl with \"{words}\", got\n{said}")
            })?;
        }
        Told::Restored => warns(name, &arrives(stage, BAD, fresh, fresh.nr_owned)?, None)?,
        Told::RestoredWithAHole => warns(name, &arrives(stage, BAD, fresh, fresh.nr_owned - 1)?, None)?,
        Told::RestoredWithAWarning(words) => {
            warns(name, &arrives(stage, BAD, fresh, fresh.nr_owned)?, Some(words))?;
        }
    }
    nothing_is_left(stage, free)
}

/// Whether a line tells the damage at an offset by these words.
fn is_told(line: &str, at: &str, words: &str) -> bool {
    let Some((offset, text)) = line.strip_prefix("stream offset ").and_then(|rest| rest.split_once(", "))
    else {
        return false;
    };
    let (Ok(told), Ok(at)) = (offset.parse::<u64>(), at.parse::<u64>()) else { return false };
    (at.saturating_sub(TOLD_BEFORE)..=at + TOLD_BEHIND).contains(&told) && told::matches(text, words)
}

/// stubctl warns with these words, or not at all.
fn warns(name: &str, said: &str, words: Option<&str>) -> Telling {
    let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("stubctl: warning: ")).collect();
    let are_those = match (words, &warnings[..]) {
        (None, []) => true,
        (Some(words), [warning]) => warning.contains(words),
        _ => false,
    };
    ensure(are_those, || format!("{name}: expected a warning of {words:?}, got {warnings:?} in\n{said}"))
}

/// The stream is restored as it is; a guest that has all its pages runs on. Gives what xl and stubctl said.
fn arrives(stage: &Stage, file: &str, fresh: &Survey, nr_owned: u64) -> Telling<String> {
    let said = restore_paused(stage, GUEST, file)?;
    let now = Survey::take(stage, GUEST)?;
    ensure(now.nr_owned == nr_owned, || {
        format!("{} pages owned, expected {nr_owned} ({} when fresh)", now.nr_owned, fresh.nr_owned)
    })?;
    if nr_owned == fresh.nr_owned && file == BAD {
        stage.sh(&format!("xl unpause {GUEST} && ask-witness {GUEST} verify"))?;
    }
    stage.sh(&format!("xl destroy {GUEST}"))?;
    stage.expect_alone()?;
    Ok(said)
}

/// Records in the middle are all PAGE_DATA: those at both ends differ, one in the middle stands for the rest.
fn ends(nr_records: usize) -> Vec<usize> {
    (0..4).chain([nr_records / 2]).chain(nr_records - 2..nr_records).collect()
}

/// Where a stream is cut.
struct Cuts {
    /// Before which of so many records.
    records: fn(usize) -> Vec<usize>,
    /// At how many random bytes.
    nr_random: usize,
    /// At one of so many chosen places.
    step: usize,
}

fn cut(stage: &Stage, chance: &mut Chance, cuts: &Cuts) -> Telling {
    let saved = stage.saved(GUEST)?;
    let free = good_restore(stage, &saved, "ring")?;
    let file = &saved.file;
    let info = stage.sh(&format!("nest-stream info {file} | sed 's/.*offset=\\([0-9]*\\) .*/\\1/'"))?;
    let records: Result<Vec<usize>, _> = info.lines().map(str::parse).collect();
    let records = records.unwrap_or_default();
    let nr_records = records.len();
    let end = records.last().copied().unwrap_or_default();
    ensure(nr_records > 8, || format!("no list of records in {file}:\n{info}"))?;
    stage.say(format!("the stream has {nr_records} records"));
    let at_records = (cuts.records)(nr_records).into_iter().map(|number| records[number]);
    let random: Vec<usize> = (0..cuts.nr_random).map(|_| chance.below(end)).collect();
    let chosen = [1, 11, 24, 39, 41, 47, 1300, 1325, 9000, 4_000_001];
    let at_bytes = chosen.into_iter().step_by(cuts.step).chain(random);
    for offset in at_records.chain(at_bytes) {
        expect_cut(stage, file, offset, free)?;
    }
    let free = good_restore(stage, &saved, "tcp")?;
    for offset in [records[nr_records / 2], 39, end, 4_000_001].into_iter().step_by(cuts.step) {
        expect_cut(stage, file, offset, free)?;
    }
    good_restore(stage, &saved, "tcp")?;
    stage.sh(&format!("rm {CONF}")).map(drop)
}

/// The stream ends after so many bytes, and the stub says so.
fn expect_cut(stage: &Stage, file: &str, offset: usize, free: u64) -> Telling {
    stage.sh(&format!("nest-stream truncate {file} {BAD} {offset}"))?;
    let what = format!("cut at {offset}");
    let line = refused(stage, &what)?;
    let words =
        format!("stream offset {offset}, *: expected more up to the END record, got the end of the stream");
    ensure(told::matches(&line, &words), || format!("{what}: expected \"{words}\", got \"{line}\""))?;
    nothing_is_left(stage, free)
}

/// The restore fails with one line of stubctl; gives what it says.
fn refused(stage: &Stage, what: &str) -> Telling<String> {
    let said = fails(stage, what)?;
    let lines = own_lines(&said);
    let [line] = lines[..] else {
        return ensure(false, || format!("{what}: expected one error line of stubctl, got\n{said}"))
            .map(|()| String::new());
    };
    stage.say(format!("{what}: {line}"));
    Ok(line.to_owned())
}

/// What stubctl says is wrong.
fn own_lines(said: &str) -> Vec<&str> {
    said.lines().filter_map(|line| line.strip_prefix("stubctl: error: ")).collect()
}

/// The restore fails in time; gives all that was said.
fn fails(stage: &Stage, what: &str) -> Telling<String> {
    let outcome = stage.run(&format!("{THROUGH_STUB}timeout 60 xl restore {BAD}"))?;
    ensure(outcome.code != 0, || format!("{what}: xl restore succeeded"))?;
    ensure(outcome.code != 124, || format!("{what}: xl restore did not end:\n{}", outcome.text))?;
    Ok(outcome.text)
}

fn nothing_is_left(stage: &Stage, free: u64) -> Telling {
    stage.expect_alone()?;
    stage.expect_free(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damage_is_told_by_its_place_and_its_words() {
        let line = "stream offset 12, header: expected version 2 or 3, got 9";
        assert!(is_told(line, "12", "header: expected version 2 or 3, got 9"));
        assert!(!is_told(line, "40000", "header: expected version"));
        assert!(!is_told(line, "12", "header: expected version 2 or 3, got 1"));
        assert!(!is_told("the stub d9 ended: its last words are in a log", "12", "*"));
    }
}
