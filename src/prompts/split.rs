//! Training, validation and test part of a contrast set, and what must not stand in two of them.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::PromptSet;
use crate::random::SplitMix64;

/// Two prompt sets, one that shows the behaviour and one that does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sets {
    /// Prompts that show it.
    pub harmful: PromptSet,
    /// Prompts that do not.
    pub harmless: PromptSet,
}

/// How much is kept for choosing and for evaluating, of 1; the rest is measured on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fractions {
    /// For choosing.
    pub validation: f64,
    /// For evaluating.
    pub test: f64,
}

impl Default for Fractions {
    fn default() -> Self {
        Self { validation: 0.2, test: 0.2 }
    }
}

/// The parts of a contrast set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// To measure on.
    pub train: Sets,
    /// To choose by.
    pub validation: Sets,
    /// To evaluate on.
    pub test: Sets,
}

/// Why sets cannot be used together or split.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SplitError {
    /// The same prompt in two sets.
    #[error("{a} and {b} have {n} in common, such as {example:?}; take what is common out of one")]
    Overlap {
        /// One set.
        a: String,
        /// The other.
        b: String,
        /// How many different prompts stand in both.
        n: usize,
        /// The first of them.
        example: String,
    },
    /// Fewer prompts than parts can be made of.
    #[error(
        "{source_name}: {found} different prompts; at least {SMALLEST} are needed to measure, choose and \
         evaluate on different ones"
    )]
    TooSmall {
        /// What the set is called.
        source_name: String,
        /// How many different prompts it has.
        found: usize,
    },
    /// Fractions that leave nothing to measure on.
    #[error("parts of {validation} and {test}: each must be at least 0, and both together less than 1")]
    Fractions {
        /// For choosing.
        validation: f64,
        /// For evaluating.
        test: f64,
    },
}

/// The fewest different prompts that are split.
pub const SMALLEST: usize = 10;

/// Splits both sets, shuffled by the seed. A prompt that stands in a set several times does so in one part
/// only; sets of the same length are shuffled alike, so that matching lines stay in the same part.
///
/// # Errors
/// [`SplitError`]: too few different prompts, or fractions that leave none to measure on.
pub fn split(sets: &Sets, seed: u64, fractions: Fractions) -> Result<Parts, SplitError> {
    let Fractions { validation, test } = fractions;
    let sound = |part: f64| (0.0..1.0).contains(&part);
    if !sound(validation) || !sound(test) || validation + test >= 1.0 {
        return Err(SplitError::Fractions { validation, test });
    }
    let [a, b, c] = split_one(&sets.harmful, seed, fractions)?;
    let [x, y, z] = split_one(&sets.harmless, seed, fractions)?;
    let both = |harmful, harmless| Sets { harmful, harmless };
    Ok(Parts { train: both(a, x), validation: both(b, y), test: both(c, z) })
}

fn split_one(set: &PromptSet, seed: u64, fractions: Fractions) -> Result<[PromptSet; 3], SplitError> {
    let mut copies: HashMap<&str, Vec<&String>> = HashMap::new();
    let mut distinct = Vec::new();
    for prompt in &set.prompts {
        let same = copies.entry(prompt.trim()).or_default();
        if same.is_empty() {
            distinct.push(prompt.trim());
        }
        same.push(prompt);
    }
    let n = distinct.len();
    if n < SMALLEST && fractions.validation + fractions.test > 0.0 {
        return Err(SplitError::TooSmall { source_name: set.source.clone(), found: n });
    }
    SplitMix64(seed).shuffle(&mut distinct);
    // A hair more, so that a fifth of ten is two.
    let share = |part: f64| (n as f64 * part + 1e-9) as usize;
    let test = distinct.split_off(n - share(fractions.test));
    let validation = distinct.split_off(distinct.len() - share(fractions.validation));
    Ok([distinct, validation, test].map(|part| {
        let prompts = part.iter().flat_map(|prompt| &copies[prompt]).map(|&prompt| prompt.clone());
        PromptSet::new(prompts.collect(), set.source.clone())
    }))
}

/// Checks that no prompt stands in two of these sets, blanks around it aside.
///
/// # Errors
/// [`SplitError::Overlap`] names the first two that share one, and a prompt.
pub fn check_disjoint(sets: &[(&str, &PromptSet)]) -> Result<(), SplitError> {
    for (i, (name, a)) in sets.iter().enumerate() {
        let keys: HashSet<&str> = a.prompts.iter().map(|prompt| prompt.trim()).collect();
        for (other, b) in &sets[i + 1..] {
            let mut shared =
                b.prompts.iter().map(|prompt| prompt.trim()).filter(|prompt| keys.contains(prompt));
            if let Some(first) = shared.next() {
                let n = shared.chain([first]).collect::<HashSet<_>>().len();
                let named = |name: &str, set: &PromptSet| format!("the {name} ({})", set.source);
                let example = first.chars().take(60).collect();
                return Err(SplitError::Overlap { a: named(name, a), b: named(other, b), n, example });
            }
        }
    }
    Ok(())
}

impl Sets {
    /// Checks that no prompt is both.
    ///
    /// # Errors
    /// [`SplitError::Overlap`].
    pub fn check(&self) -> Result<(), SplitError> {
        check_disjoint(&[("harmful prompts", &self.harmful), ("harmless prompts", &self.harmless)])
    }
}

impl Parts {
    /// Checks that no prompt stands in two of the six sets.
    ///
    /// # Errors
    /// [`SplitError::Overlap`].
    pub fn check(&self) -> Result<(), SplitError> {
        check_disjoint(&[
            ("harmful training prompts", &self.train.harmful),
            ("harmless training prompts", &self.train.harmless),
            ("harmful validation prompts", &self.validation.harmful),
            ("harmless validation prompts", &self.validation.harmless),
            ("harmful test prompts", &self.test.harmful),
            ("harmless test prompts", &self.test.harmless),
        ])
    }

    /// Which prompts were used for what.
    #[must_use]
    pub fn used(&self, seed: u64) -> Used {
        let of = |sets: &Sets| UsedPair { harmful: of_set(&sets.harmful), harmless: of_set(&sets.harmless) };
        Used { seed, train: of(&self.train), validation: of(&self.validation), test: of(&self.test) }
    }
}

fn of_set(set: &PromptSet) -> UsedSet {
    UsedSet { source: set.source.clone(), n: set.len(), sha256: set.sha256.clone() }
}

/// Which prompts were used for what, for a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Of the split.
    pub seed: u64,
    /// Measured on.
    pub train: UsedPair,
    /// Chosen by.
    pub validation: UsedPair,
    /// Evaluated on.
    pub test: UsedPair,
}

/// One part of both sets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedPair {
    /// Of the prompts that show the behaviour.
    pub harmful: UsedSet,
    /// Of those that do not.
    pub harmless: UsedSet,
}

/// One part of one set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsedSet {
    /// Where the set came from.
    pub source: String,
    /// Prompts.
    pub n: usize,
    /// As [`PromptSet::sha256`].
    pub sha256: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(name: &str, n: usize) -> PromptSet {
        PromptSet::new((0..n).map(|i| format!("{name} {i}")).collect(), format!("{name}.txt"))
    }

    fn sets(n: usize, m: usize) -> Sets {
        Sets { harmful: set("harmful", n), harmless: set("harmless", m) }
    }

    fn lens(parts: &Parts) -> [[usize; 2]; 3] {
        [&parts.train, &parts.validation, &parts.test].map(|s| [s.harmful.len(), s.harmless.len()])
    }

    #[test]
    fn the_parts_depend_on_the_seed_alone() {
        let sets = sets(53, 10);
        let parts = split(&sets, 7, Fractions::default()).unwrap();
        assert_eq!(lens(&parts), [[33, 6], [10, 2], [10, 2]]);
        assert_eq!(parts, split(&sets, 7, Fractions::default()).unwrap());
        assert_ne!(parts, split(&sets, 8, Fractions::default()).unwrap());
        parts.check().unwrap();
    }

    #[test]
    fn lines_that_match_stay_together() {
        let parts = split(&sets(128, 128), 3, Fractions::default()).unwrap();
        for part in [&parts.train, &parts.validation, &parts.test] {
            for (a, b) in part.harmful.prompts.iter().zip(&part.harmless.prompts) {
                assert_eq!(a.split(' ').nth(1), b.split(' ').nth(1));
            }
        }
    }

    #[test]
    fn sets_too_small_and_fractions_too_large_are_refused() {
        let message = split(&sets(9, 20), 0, Fractions::default()).unwrap_err().to_string();
        assert!(message.starts_with("harmful.txt: 9 different prompts; at least 10"), "{message}");
        // Ten lines, nine different ones.
        let mut few = sets(20, 9);
        few.harmless.prompts.push(" harmless 3 ".into());
        assert!(split(&few, 0, Fractions::default()).unwrap_err().to_string().starts_with("harmless.txt: 9"));
        for (validation, test) in [(0.5, 0.5), (-0.1, 0.2), (1.0, 0.0), (f64::NAN, 0.1)] {
            let error = split(&sets(20, 20), 0, Fractions { validation, test }).unwrap_err();
            assert!(matches!(error, SplitError::Fractions { .. }), "{error}");
        }
        // Nothing to be kept: nothing to be too small for.
        let parts = split(&sets(2, 3), 0, Fractions { validation: 0.0, test: 0.0 }).unwrap();
        assert_eq!(lens(&parts), [[2, 3], [0, 0], [0, 0]]);
    }

    #[test]
    fn an_overlap_names_both_sets_and_a_prompt() {
        let mut sets = sets(3, 3);
        sets.check().unwrap();
        sets.harmless.prompts.extend([
            " harmful 1".to_owned(),
            "harmful 2".to_owned(),
            "harmful 2 ".to_owned(),
        ]);
        assert_eq!(
            sets.check().unwrap_err().to_string(),
            "the harmful prompts (harmful.txt) and the harmless prompts (harmless.txt) have 2 in common, \
             such as \"harmful 1\"; take what is common out of one"
        );
    }

    proptest! {
        #[test]
        fn no_prompt_is_lost_or_in_two_parts(
            words in prop::collection::vec("[a-z]{1,2} ?", 1..80),
            seed: u64,
            validation in 0.0..0.5f64,
            test in 0.0..0.5f64,
        ) {
            let harmful = PromptSet::new(words.clone(), "words");
            let sets = Sets { harmful, harmless: set("other words", 30) };
            let different = words.iter().map(|w| w.trim()).collect::<HashSet<_>>().len();
            match split(&sets, seed, Fractions { validation, test }) {
                Ok(parts) => {
                    parts.check().unwrap();
                    let parts = [parts.train, parts.validation, parts.test];
                    let mut all: Vec<String> = parts.into_iter().flat_map(|p| p.harmful.prompts).collect();
                    let mut words = words;
                    all.sort();
                    words.sort();
                    prop_assert_eq!(all, words);
                }
                Err(error) => {
                    let too_small = matches!(error, SplitError::TooSmall { found, .. } if found == different);
                    prop_assert!(too_small && different < SMALLEST);
                }
            }
        }
    }
}
