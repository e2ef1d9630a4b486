//! Completions that are no answer: empty ones, loops and garbage.
//!
//! A loop shows in two ways. Over the whole completion, the share of *different* n-grams among all of them:
//! prose keeps it near 1 even with refrains and lists, a text that circles brings it towards 0. And at its
//! end, where one that has begun to stammer repeats the same words to the last: that is noticed before it
//! fills half of the completion.
//!
//! Garbage is text that no language is written in: hardly a letter or digit, or words that change the script
//! half-way.

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

/// A stammer has at least this many repeats of the same unit, ...
const MIN_REPEATS: usize = 4;
/// ... goes on for at least this many words (or characters, in text without spaces), ...
const MIN_STAMMER: usize = 16;
/// ... and its unit is at most this many of them.
const MAX_PERIOD: usize = 32;
/// Garbage has less than this share of letters and digits among what is not white space, ...
const MIN_LETTERS: f64 = 0.25;
/// ... or more than this share of words in two scripts.
const MAX_MIXED: f64 = 0.25;
/// Fewer characters than these are not judged to be garbage: ":-)" is an answer.
const MIN_CHARS: usize = 16;

/// How a completion is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Degeneracy {
    /// White space at most.
    Empty,
    /// The same few words over and over, all through or at its end.
    Looping,
    /// No text of any language.
    Garbled,
}

/// Whether the completion is broken, and how. The model's end-of-text token must be cut off already.
#[must_use]
pub fn degeneracy(completion: &str) -> Option<Degeneracy> {
    let words: Vec<&str> = completion.split_whitespace().collect();
    if words.is_empty() {
        return Some(Degeneracy::Empty);
    }
    let n_chars: usize = words.iter().map(|word| word.chars().count()).sum();
    let loops = if n_chars > LONG_WORD * words.len() {
        let chars: Vec<char> = words.iter().flat_map(|word| word.chars()).collect();
        loops(&chars)
    } else {
        loops(&words)
    };
    if loops {
        Some(Degeneracy::Looping)
    } else {
        (n_chars >= MIN_CHARS && is_garbled(&words, n_chars)).then_some(Degeneracy::Garbled)
    }
}

fn loops<T: Eq + std::hash::Hash>(units: &[T]) -> bool {
    share_of_distinct(units) < MIN_DISTINCT || ends_in_a_stammer(units)
}

/// Whether the end is one unit again and again, the last time perhaps cut short.
fn ends_in_a_stammer<T: Eq>(units: &[T]) -> bool {
    (1..=MAX_PERIOD.min(units.len() / MIN_REPEATS)).any(|period| {
        let again = units.iter().rev().zip(units.iter().rev().skip(period)).take_while(|(a, b)| a == b);
        let length = again.count() + period;
        length >= MIN_STAMMER && length >= MIN_REPEATS * period
    })
}

/// `words` of `n_chars` characters together.
fn is_garbled(words: &[&str], n_chars: usize) -> bool {
    let letters = words.iter().flat_map(|word| word.chars()).filter(|c| c.is_alphanumeric()).count();
    let mixed = words.iter().filter(|word| is_mixed(word)).count();
    (letters as f64) < MIN_LETTERS * n_chars as f64 || mixed as f64 > MAX_MIXED * words.len() as f64
}

/// Whether letters of two scripts stand side by side.
fn is_mixed(word: &str) -> bool {
    let scripts: Vec<Option<Script>> = word.chars().map(script).collect();
    scripts.windows(2).any(|pair| matches!(pair, [Some(a), Some(b)] if a != b))
}

/// Scripts that are not written within one word, as far as Unicode's blocks tell them apart.
#[derive(PartialEq, Eq, Clone, Copy)]
enum Script {
    Latin,
    Greek,
    Cyrillic,
    Hebrew,
    Arabic,
    Indic,
    Thai,
    EastAsian,
    /// Characters that stand for no character.
    None,
}

fn script(c: char) -> Option<Script> {
    Some(match c as u32 {
        0x41..=0x5a | 0x61..=0x7a | 0xc0..=0x24f | 0x1e00..=0x1eff => Script::Latin,
        0x370..=0x3ff | 0x1f00..=0x1fff => Script::Greek,
        0x400..=0x52f => Script::Cyrillic,
        0x590..=0x5ff => Script::Hebrew,
        0x600..=0x77f => Script::Arabic,
        0x900..=0xdff => Script::Indic,
        0xe00..=0xeff => Script::Thai,
        0x1100..=0x11ff | 0x3040..=0x30ff | 0x3400..=0x9fff | 0xac00..=0xd7af => Script::EastAsian,
        0xe000..=0xf8ff | 0xfffd => Script::None,
        _ => return None,
    })
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
        let russian = "Смешайте муку, воду, соль и дрожжи, вымесите тесто и дайте ему подняться в тепле.";
        let code =
            "fn main() { let x = [1, 2, 3]; println!(\"{:?}\", x.iter().map(|x| x * x).sum::<i32>()); }";
        let mixed = "The word \u{3bb}\u{3cc}\u{3b3}\u{3bf}\u{3c2} is Greek, \u{441}\u{43b}\u{43e}\u{432}\u{43e} is Russian.";
        let short = [russian, code, mixed, "Yes.", "No no no no", "1 2 3 4 5 6 7 8 9 10", ":-)"];
        for text in [PROSE, &list, &song].into_iter().chain(short) {
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

    #[test]
    fn a_stammer_at_the_end_is_seen_before_it_fills_half() {
        let twice = [PROSE, PROSE].join(" But first: ").replace("bake bread", "begin");
        let cut = format!("{twice} {}I'm", "I'm sorry but ".repeat(7));
        let one = format!("{twice} {}", "so ".repeat(16));
        for text in [&cut, &one] {
            assert_eq!(degeneracy(text), Some(Degeneracy::Looping), "{text}");
        }
        let emphasis =
            format!("{PROSE} It is very, very, very, very, very good. Row, row, row, row the boat.");
        assert_eq!(degeneracy(&emphasis), None);
    }

    #[test]
    fn garbage_is_no_answer() {
        let symbols = "}{ ;; ()~ <> ?! ** ^^ -- :: %$ #@ [[ ,. || == +~ a";
        let scripts = "the хлеbread есть 面包bread θέμαtheme and ovenпечь so onи";
        let holes = "\u{fffd}a\u{fffd}\u{fffd} b\u{fffd}c \u{fffd}\u{fffd}d e\u{fffd} f\u{fffd}g\u{fffd}";
        for text in [symbols, scripts, holes] {
            assert_eq!(degeneracy(text), Some(Degeneracy::Garbled), "{text}");
        }
    }
}
