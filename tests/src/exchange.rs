//! Frames to exchange, and what stubctl tells of each (`stubctl offline --json`).

use crate::error::{Doing, Result};
use crate::soak::Chance;
use crate::story::{Stop, Telling, ensure};
use crate::survey::Survey;
use control::RegionKind;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Pages of a superpage.
const REGION_LEN: usize = 512;

/// Guest frames at random places, none twice; the same for the same choices.
#[derive(Clone, Debug)]
pub struct Frames {
    chance: Chance,
    taken: BTreeSet<usize>,
}

impl Frames {
    /// Starts a row.
    pub fn new(chance: Chance) -> Self {
        Self { chance, taken: BTreeSet::new() }
    }

    /// Takes the next ones below `end`, as words for a command line; fewer when there are no more. No two are of the same
    /// superpage: the exchange of one would give the other a new frame too.
    pub fn take(&mut self, nr_frames: usize, end: usize) -> String {
        let mut words = Vec::new();
        let mut regions = BTreeSet::new();
        for _ in 0..nr_frames.saturating_mul(1000) {
            if words.len() == nr_frames {
                break;
            }
            let gfn = self.chance.below(end);
            if !regions.contains(&(gfn / REGION_LEN)) && self.taken.insert(gfn) {
                regions.insert(gfn / REGION_LEN);
                words.push(format!("{gfn:#x}"));
            }
        }
        words.join(" ")
    }
}

/// What came of some frames.
#[derive(Clone, Debug, Default)]
pub struct Verdicts(Vec<Value>);

impl Verdicts {
    /// Reads a line of JSON for each frame; other lines are passed over.
    ///
    /// # Errors
    /// A line that opens like JSON is none.
    pub fn parse(text: &str) -> Result<Self> {
        let lines = text.lines().filter(|line| line.starts_with('{'));
        let parsed: std::result::Result<_, _> = lines.map(serde_json::from_str).collect();
        parsed.map(Self).doing("reading stubctl's verdicts")
    }

    /// Adds those of another batch.
    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many frames they are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many came out so: `done`, `refused`, `held`.
    pub fn nr(&self, result: &str) -> usize {
        self.0.iter().filter(|verdict| verdict["result"] == result).count()
    }

    /// How many of the frames were exchanged for new ones.
    pub fn nr_exchanged(&self) -> usize {
        self.0.iter().filter(|verdict| exchanged(verdict).is_some()).count()
    }

    /// Sees that each of so many frames was exchanged or refused, and that not more than `nr_refused` of them were refused:
    /// a row of refusals shows nothing.
    ///
    /// # Errors
    /// [`Stop::Failure`] when it is otherwise.
    pub fn expect_most(&self, nr_frames: usize, nr_refused: usize) -> Telling {
        let (nr_done, refused) = (self.nr_exchanged(), self.nr("refused"));
        ensure(nr_done + refused == nr_frames && refused <= nr_refused && nr_done > 0, || {
            format!(
                "of {nr_frames} frames expected all to be exchanged but {nr_refused} at most that are refused, got {}",
                self.summary()
            )
        })
    }

    /// Sees that each region is what these exchanges should have made of it: one whose superpage was exchanged is a
    /// superpage still, one of which a page went alone is split, and no other has changed.
    ///
    /// # Errors
    /// [`Stop::Failure`] when one is not.
    pub fn expect_map(&self, before: &Survey, after: &Survey) -> Telling {
        let mut expected = before.kinds.clone();
        for verdict in &self.0 {
            let Some((gfn, outcome)) = exchanged(verdict) else { continue };
            let region = usize::try_from(gfn).unwrap_or(usize::MAX) / REGION_LEN;
            if let Some(kind @ RegionKind::Superpage) = expected.get_mut(region)
                && outcome != "superpage"
            {
                *kind = RegionKind::Small;
            } else if outcome == "superpage" && expected.get(region) != Some(&RegionKind::Superpage) {
                let text = format!("gfn:{gfn:#x} was exchanged with a superpage that was none");
                return Err(Stop::Failure(text));
            }
        }
        let nr_regions = expected.len().max(after.kinds.len());
        match (0..nr_regions).find(|region| expected.get(*region) != after.kinds.get(*region)) {
            None => Ok(()),
            Some(region) => {
                let [was, should, is] =
                    [&before.kinds, &expected, &after.kinds].map(|kinds| kinds.get(region));
                let gfn = region * REGION_LEN;
                let text =
                    format!("the region of gfn:{gfn:#x} was {was:?}, expected {should:?}, it is {is:?}");
                Err(Stop::Failure(text))
            }
        }
    }

    /// The frames that came out so for this reason.
    pub fn mfns_refused_as<'a>(&'a self, reason: &'a str) -> impl Iterator<Item = u64> + 'a {
        let is_wanted = move |verdict: &&Value| verdict["result"] == "refused" && verdict["reason"] == reason;
        self.0.iter().filter(is_wanted).filter_map(|verdict| verdict["mfn"].as_u64())
    }

    /// How many have this word under `key`.
    pub fn nr_with(&self, key: &str, word: &str) -> usize {
        self.0.iter().filter(|verdict| verdict[key] == word).count()
    }

    /// What was said of each, for eyes.
    pub fn texts(&self) -> String {
        let texts: Vec<&str> = self.0.iter().filter_map(|verdict| verdict["text"].as_str()).collect();
        texts.join("; ")
    }

    /// The frames that came out so.
    pub fn mfns(&self, result: &'static str) -> impl Iterator<Item = u64> {
        self.0
            .iter()
            .filter(move |verdict| verdict["result"] == result)
            .filter_map(|verdict| verdict["mfn"].as_u64())
    }

    /// One line: how many of each kind, and the pauses.
    pub fn summary(&self) -> String {
        format!(
            "{} exchanged ({}), {} refused ({}), {} held",
            self.nr("done"),
            self.tally("done", "scope"),
            self.nr("refused"),
            self.tally("refused", "reason"),
            self.nr("held"),
        )
    }

    /// The verdicts of exchanges with this outcome.
    pub fn with_outcome(&self, outcome: &str) -> Self {
        Self(self.0.iter().filter(|verdict| verdict["outcome"] == outcome).cloned().collect())
    }

    /// One line: times, and calls to Xen in the pause.
    pub fn times(&self) -> String {
        format!(
            "{}: pause {}{}; of it swap {}; before it {}; after it {}; {} hypercalls in the pause: {}",
            self.len(),
            self.spread("pause_us"),
            self.device_model(),
            self.spread("swap_us"),
            self.spread("prepare_us"),
            self.spread("finish_us"),
            self.quantile("hypercalls", 50),
            self.0.first().map(|verdict| verdict["hypercalls_by_kind"].to_string()).unwrap_or_default(),
        )
    }

    /// How long a device model stood, where the guest has one.
    fn device_model(&self) -> String {
        let has_one = self.0.iter().any(|verdict| verdict["device_model_us"].is_u64());
        if has_one { format!("; its device model {}", self.spread("device_model_us")) } else { String::new() }
    }

    /// How many there are of each word under `key`, among those that came out so.
    fn tally(&self, result: &str, key: &str) -> String {
        let mut words = BTreeMap::<&str, usize>::new();
        for verdict in self.0.iter().filter(|verdict| verdict["result"] == result) {
            *words.entry(verdict[key].as_str().unwrap_or("?")).or_default() += 1;
        }
        let words: Vec<_> = words.iter().map(|(word, nr)| format!("{nr} {word}")).collect();
        words.join(", ")
    }

    fn spread(&self, key: &str) -> String {
        let [median, p99, max] = [50, 99, 100].map(|percent| self.quantile(key, percent));
        format!("median {median} us, p99 {p99} us, max {max} us")
    }

    /// How long the guest stood for frames that were exchanged at once, for eyes.
    pub fn pause(&self) -> String {
        format!("{} us", self.quantile("pause_us", 100))
    }

    /// The smallest value that `percent` of the values do not exceed; 0 without any.
    fn quantile(&self, key: &str, percent: usize) -> u64 {
        let mut values: Vec<u64> = self.0.iter().filter_map(|verdict| verdict[key].as_u64()).collect();
        values.sort_unstable();
        let rank = (values.len() * percent).div_ceil(100).max(1);
        values.get(rank - 1).copied().unwrap_or_default()
    }
}

/// The page, and how its exchange came out, of a verdict that tells of one.
fn exchanged(verdict: &Value) -> Option<(u64, &str)> {
    let is_done = verdict["result"] == "done";
    is_done.then_some(())?;
    Some((verdict["gfn"].as_u64()?, verdict["outcome"].as_str()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(gfn: usize, outcome: &str) -> String {
        format!("{{\"mfn\":1,\"result\":\"done\",\"gfn\":{gfn},\"outcome\":\"{outcome}\"}}\n")
    }

    fn survey(map: &str) -> Survey {
        Survey::parse(&format!(r#"{{"map":"{map}","superpages_1g":0,"owned":1}}"#)).unwrap()
    }

    #[test]
    fn the_map_has_to_be_what_the_exchanges_made_of_it() {
        let lines = done(5, "superpage") + &done(REGION_LEN, "page") + &done(2 * REGION_LEN + 7, "page");
        let verdicts = Verdicts::parse(&lines).unwrap();
        let before = survey("SSsS");
        assert!(verdicts.expect_map(&before, &survey("SssS")).is_ok());
        for after in ["sssS", "SSsS", "Ssss", "SssSs", "Sss"] {
            let Err(Stop::Failure(text)) = verdicts.expect_map(&before, &survey(after)) else {
                panic!("{after} passes");
            };
            assert!(text.contains("the region of gfn:"), "{after}: {text}");
        }
        assert!(verdicts.expect_map(&survey("sSsS"), &survey("sssS")).is_err(), "no superpage to exchange");
    }

    #[test]
    fn refusals_alone_or_frames_without_a_verdict_are_not_enough() {
        let refused = "{\"mfn\":2,\"result\":\"refused\",\"reason\":\"granted\"}\n";
        let both = Verdicts::parse(&(done(5, "page") + refused)).unwrap();
        assert!(both.expect_most(2, 1).is_ok());
        assert!(both.expect_most(2, 0).is_err(), "more refused than allowed");
        assert!(both.expect_most(3, 1).is_err(), "one is missing");
        assert!(Verdicts::parse(refused).unwrap().expect_most(1, 1).is_err(), "none exchanged");
        assert!(
            Verdicts::parse("{\"result\":\"done\",\"reason\":\"already\"}")
                .unwrap()
                .expect_most(1, 0)
                .is_err()
        );
        assert_eq!(both.mfns_refused_as("granted").collect::<Vec<_>>(), [2]);
        assert_eq!(both.mfns_refused_as("ioreq").count(), 0);
    }

    #[test]
    fn frames_are_the_same_for_the_same_seed_and_never_twice() {
        let (mut one, mut two) = (Frames::new(Chance::new(7)), Frames::new(Chance::new(7)));
        let row = one.take(50, 64 * REGION_LEN);
        assert_eq!(row, two.take(50, 64 * REGION_LEN));
        assert_eq!(row.split(' ').count(), 50);
        assert_eq!(one.take(50, 8 * REGION_LEN).split(' ').count(), 8, "one of each superpage");
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let line = |us| format!("{{\"mfn\":1,\"result\":\"done\",\"pause_us\":{us}}}\n");
        let verdicts = Verdicts::parse(&(1..=100).map(line).collect::<String>()).unwrap();
        assert_eq!((verdicts.len(), verdicts.nr("done")), (100, 100));
        let quantiles = [50, 99, 100].map(|percent| verdicts.quantile("pause_us", percent));
        assert_eq!(quantiles, [50, 99, 100]);
        assert_eq!(Verdicts::default().quantile("pause_us", 50), 0);
    }

    #[test]
    fn warnings_between_the_lines_do_not_matter() {
        let verdicts = Verdicts::parse("WARN something\n{\"result\":\"held\",\"mfn\":3}\n").unwrap();
        assert_eq!(verdicts.mfns("held").collect::<Vec<_>>(), [3]);
    }
}
