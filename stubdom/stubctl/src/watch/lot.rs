//! What watch and its workers say to each other: frames that lie together, and what came of each.
//!
//! **Takes** and **gives** lines: a lot is `[split] MFN...`, an answer is JSON. **Never** more frames than
//! [`MAX_FRAMES`] in a lot, so that the frames of another guest get their turn.

use super::ledger::{Ending, Outcome};
use crate::verdict::{Kind, Verdict};
use serde_json::{Value, json};
use xen_abi::types::{Domid, Mfn};

/// Most frames of a lot.
pub(super) const MAX_FRAMES: usize = 32;

/// Frames of one superpage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lot {
    pub(super) mfns: Vec<Mfn>,
    /// Exchange the frames alone, not with their superpage.
    pub(super) is_split: bool,
}

const SPLIT: &str = "split";

impl Lot {
    pub(super) fn line(&self) -> String {
        let mut line = if self.is_split { SPLIT.to_owned() } else { String::new() };
        self.mfns.iter().for_each(|mfn| line += &format!(" {:#x}", mfn.raw()));
        line + "\n"
    }

    pub(super) fn parse(line: &str) -> Option<Self> {
        let is_split = line.starts_with(SPLIT);
        let mfn = |word: &str| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok().map(Mfn::new);
        let mfns: Option<Vec<Mfn>> = line.trim_start_matches(SPLIT).split_whitespace().map(mfn).collect();
        Some(Self { mfns: mfns?, is_split })
    }
}

/// What a worker says of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) mfn: Mfn,
    pub(super) outcome: Outcome,
    /// The whole superpage was exchanged.
    pub(super) is_superpage: bool,
    /// For the log.
    pub(super) line: String,
}

/// The line for a verdict.
pub(super) fn answer_line(verdict: &Verdict) -> String {
    json!({
        "verdict": verdict.json(),
        "ending": ending_str(ending(verdict)),
        "line": verdict.to_string(),
    })
    .to_string()
}

fn ending(verdict: &Verdict) -> Ending {
    match verdict.kind {
        Kind::Done => Ending::Offline,
        Kind::Held => Ending::Held,
        _ if verdict.is_transient() => Ending::Later,
        Kind::Lost | Kind::Refused | Kind::Failed(_) => Ending::Refused,
    }
}

const ENDINGS: [Ending; 4] = [Ending::Offline, Ending::Held, Ending::Later, Ending::Refused];

const fn ending_str(ending: Ending) -> &'static str {
    match ending {
        Ending::Offline => "offline",
        Ending::Held => "held",
        Ending::Later => "later",
        Ending::Refused => "refused",
    }
}

impl Answer {
    /// Reads what [`answer_line`] gave.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(line).ok()?;
        let (verdict, word) = (value.get("verdict")?, value.get("ending")?.as_str()?);
        let owner = verdict.get("domid").and_then(Value::as_u64).and_then(|domid| u16::try_from(domid).ok());
        let outcome = Outcome {
            ending: ENDINGS.into_iter().find(|ending| ending_str(*ending) == word)?,
            reason: verdict.get("reason")?.as_str()?.to_owned(),
            owner: owner.map(Domid::new),
        };
        Some(Self {
            mfn: Mfn::new(verdict.get("mfn")?.as_u64()?),
            outcome,
            is_superpage: verdict.get("outcome").and_then(Value::as_str) == Some("superpage"),
            line: value.get("line")?.as_str()?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use control::Untrusted;

    #[test]
    fn a_lot_is_read_as_it_was_written() {
        for is_split in [false, true] {
            let lot = Lot { mfns: vec![Mfn::new(0x1234), Mfn::new(0x1235)], is_split };
            assert_eq!(Lot::parse(lot.line().trim_end()), Some(lot));
        }
        assert_eq!(Lot::parse("0x12 nonsense"), None);
    }

    #[test]
    fn an_answer_says_whether_time_may_help() {
        let mfn = Mfn::new(0x1234);
        for (kind, reason, expected) in [
            (Kind::Done, "exchanged", Ending::Offline),
            (Kind::Held, "held", Ending::Held),
            (Kind::Refused, "being-saved", Ending::Later),
            (Kind::Refused, "no-owner", Ending::Later),
            (Kind::Refused, "dom0s", Ending::Later),
            (Kind::Refused, "xens", Ending::Refused),
            (Kind::Refused, "nonexistent", Ending::Refused),
            (Kind::Failed(4), "failed", Ending::Later),
            (Kind::Lost, "lost", Ending::Refused),
        ] {
            let verdict = Verdict::new(mfn, kind, reason, "words")
                .of_guest(Domid::new(5), &Untrusted::new("db".to_owned()));
            let answer = Answer::parse(&answer_line(&verdict)).unwrap();
            let outcome = Outcome { ending: expected, reason: reason.to_owned(), owner: Some(Domid::new(5)) };
            assert_eq!(answer, Answer { mfn, outcome, is_superpage: false, line: verdict.to_string() });
        }
    }
}
