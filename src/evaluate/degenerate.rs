//! Completions that are no answer: empty ones and loops.
//!
//! The test for loops is the share of *different* n-grams among all of them: prose keeps it near 1 even with
//! refrains and lists, a text that circles brings it towards 0. It is taken over the whole completion, so a
//! loop is noticed once it fills about half of it.

#![forbid(unsafe_code)]

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

/// Words (or characters, in text without spaces) in a row that are compared.
const N: usize = 4;
/// Shorter completions are not judged: four n-grams prove nothing.
const MIN_UNITS: usize = 24;
/// Below this share of different n-grams it is a loop.
const MIN_DISTINCT: f64 = 0.5;
/// Longer than this on average, "words" are text without spaces: Chinese, or one letter again and again.
const LONG_WORD: usize = 20;

/// How a completion is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Degeneracy {
    /// White space at most.
    Empty,
    /// The same few words over and over.
    Looping,
}

/// Whether the completion is broken, and how. The model's end-of-text token must be cut off already.
#[must_use]
pub fn degeneracy(completion: &str) -> Option<Degeneracy> {
    let words: Vec<&str> = completion.split_whitespace().collect();
    if words.is_empty() {
        return Some(Degeneracy::Empty);
    }
    let n_chars: usize = words.iter().map(|word| word.chars().count()).sum();
    let distinct = if n_chars > LONG_WORD * words.len() {
        let chars: Vec<char> = words.iter().flat_map(|word| word.chars()).collect();
        share_of_distinct(&chars)
    } else {
        share_of_distinct(&words)
    };
    (distinct < MIN_DISTINCT).then_some(Degeneracy::Looping)
}

/// Different n-grams over all n-grams: in (0, 1], and 1 for anything too short to judge.
fn share_of_distinct<T: Eq + std::hash::Hash>(units: &[T]) -> f64 {
    if units.len() < MIN_UNITS {
        return 1.0;
    }
    let grams = units.windows(N);
    let n = grams.len();
    grams.collect::<HashSet<_>>().len() as f64 / n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROSE: &str = "To bake bread, mix flour, water, salt and yeast, and knead the dough until it is smooth. Let it \
        rise for an hour, shape it, let it rise again, and bake it until the crust is brown and it sounds hollow.";

    #[test]
    fn answers_are_not_broken() {
        let list =
            (1..60).fold(String::new(), |list, i| list + &format!("{i}. Take step {i} of the recipe\n"));
        let song = "Row the boat down the stream\nMerrily we go\n".repeat(2) + PROSE;
        for text in [PROSE, &list, &song, "Yes.", "No no no no", "1 2 3 4 5 6 7 8 9 10"] {
            assert_eq!(degeneracy(text), None, "{text}");
        }
        let chinese = "把面粉水盐和酵母混合揉成光滑的面团让它发酵一小时然后整形再次发酵最后烤到外皮金黄敲起来声音空洞为止";
        assert_eq!(degeneracy(chinese), None);
    }

    #[test]
    fn nothing_is_empty() {
        for text in ["", " ", "\n\t\n"] {
            assert_eq!(degeneracy(text), Some(Degeneracy::Empty));
        }
    }

    #[test]
    fn loops_are_seen_whatever_they_are_made_of() {
        let sentence = "and then the bread rises and the oven is warm. ".repeat(12);
        let fades = format!("{PROSE} {}", "the dough the dough ".repeat(40));
        let letters = "a".repeat(200);
        let chinese = "好的面包".repeat(30);
        for text in [&sentence, &fades, &letters, &chinese, &"the ".repeat(30), &"!".repeat(60)] {
            assert_eq!(degeneracy(text), Some(Degeneracy::Looping), "{text}");
        }
    }
}
