//! Soaks: stories that go on for as many rounds as one likes, with choices drawn from a printed seed.

use crate::machine::Options;
use crate::place::Place;
use crate::story::{self, Stage, Telling, Verdict};
use std::time::{SystemTime, UNIX_EPOCH};

/// Something to soak.
#[derive(Clone, Copy, Debug)]
pub struct Soak {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it proves, in a sentence.
    pub proves: &'static str,
    /// The machine it wants.
    pub options: fn() -> Options,
    /// How many rounds when nobody says.
    pub rounds: u32,
    /// Soaks.
    pub tell: fn(&Stage, &mut Chance, u32) -> Telling,
}

/// Soaks on a machine of its own; the seed makes the choices.
pub fn run(place: &Place, soak: &Soak, seed: u64, rounds: u32) -> Verdict {
    println!("soak {}: {}", soak.name, soak.proves);
    println!("  {rounds} rounds; to repeat: scripts/soak {} --seed {seed} --rounds {rounds}", soak.name);
    let mut chance = Chance::new(seed);
    story::tell_alone(place, soak.name, &(soak.options)(), |stage| (soak.tell)(stage, &mut chance, rounds))
}

/// Choices that repeat from their seed (xorshift64*, Vigna 2016).
#[derive(Clone, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Begins the choices of a seed.
    pub const fn new(seed: u64) -> Self {
        match seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) {
            0 => Self(1), // the one state that the generator does not leave
            state => Self(state),
        }
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let high = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from(high).unwrap_or(0) % end.max(1)
    }

    /// One of `all`; `None` only when that is empty.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.below(all.len()))
    }
}

/// A seed for whoever names none; it is printed, so that the run can be repeated.
pub fn fresh_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::from(now.subsec_nanos()) ^ now.as_secs() << 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_choices_and_another_seed_makes_others() {
        let draw = |seed| {
            let mut chance = Chance::new(seed);
            (0..32).map(|_| chance.below(100)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().all(|number| *number < 100));
    }

    #[test]
    fn every_choice_comes() {
        let mut chance = Chance::new(1);
        let mut seen = [false; 5];
        (0..200).for_each(|_| seen[chance.below(5)] = true);
        assert_eq!(seen, [true; 5]);
    }
}
