//! A guest's physical memory as `stubctl map GUEST --json` shows it: one kind for each 2 MiB region.

use crate::error::{Doing, Error, Result};
use crate::story::{Stage, Telling};
use control::RegionKind;
use serde_json::Value;

/// How many 2 MiB superpages fewer than the fresh guest's a restored one may have.
pub const MAX_LOST: usize = 2;

/// What each 2 MiB region of a guest is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// One kind a region, from guest frame 0 on.
    pub kinds: Vec<RegionKind>,
    /// How many aligned 1 GiB regions are one run of machine memory.
    pub nr_contiguous_1g: u64,
    /// How many pages the guest owns.
    pub nr_owned: u64,
}

impl Survey {
    /// Asks for a guest's survey; a guest without a stub gets one for the time it takes.
    ///
    /// # Errors
    /// stubctl fails.
    pub fn take(stage: &Stage, guest: &str) -> Telling<Self> {
        Ok(Self::parse(&stage.sh(&format!("stubctl map --json {guest}"))?)?)
    }

    /// Reads stubctl's JSON.
    ///
    /// # Errors
    /// It is not what stubctl writes.
    pub fn parse(json: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(json).doing("reading stubctl's map")?;
        let number = |key: &str| {
            let missing = || Error::new("reading stubctl's map", format!("no number {key:?} in {value}"));
            value.get(key).and_then(Value::as_u64).ok_or_else(missing)
        };
        let text = value.get("map").and_then(Value::as_str).unwrap_or_default();
        let kinds: Option<Vec<RegionKind>> = text.chars().map(kind_of).collect();
        let kinds = kinds.ok_or_else(|| Error::new("reading stubctl's map", format!("map {text:?}")))?;
        Ok(Self { kinds, nr_contiguous_1g: number("superpages_1g")?, nr_owned: number("owned")? })
    }

    /// How many regions are of a kind.
    pub fn count(&self, kind: RegionKind) -> usize {
        self.kinds.iter().filter(|found| **found == kind).count()
    }

    /// How many regions have all their frames.
    pub fn nr_whole(&self) -> usize {
        self.count(RegionKind::Superpage) + self.count(RegionKind::Small)
    }
}

fn kind_of(letter: char) -> Option<RegionKind> {
    match letter {
        '.' => Some(RegionKind::Hole),
        'S' => Some(RegionKind::Superpage),
        's' => Some(RegionKind::Small),
        'p' => Some(RegionKind::Partial),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_read_letter_by_letter() {
        let survey = Survey::parse(r#"{"map":"SSsp..","superpages_1g":0,"owned":1537}"#).unwrap();
        assert_eq!((survey.count(RegionKind::Superpage), survey.nr_whole(), survey.nr_owned), (2, 3, 1537));
        assert!(Survey::parse(r#"{"map":"S?","superpages_1g":0,"owned":1}"#).is_err());
        assert!(Survey::parse(r#"{"map":"S","owned":1}"#).is_err());
    }
}
