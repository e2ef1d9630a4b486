//! The smallest coefficient whose addition induces refusals in whole sentences.
//!
//! Too small a coefficient induces nothing; too large a one makes the model stammer, and a stammered "I'm
//! sorry I'm sorry" counts as a refusal by its words. A coefficient *works* when enough ordinary prompts are
//! refused and next to no answer is broken.

#![forbid(unsafe_code)]

use std::sync::Arc;

use serde::Serialize;

use super::Rate;
use super::run::{Answer, Options, Set, answers};
use crate::intervention::{Error as InterventionError, Intervention, Positions};
use crate::runtime::{Error as RuntimeError, Session};

/// Why a coefficient could not be looked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The vector cannot be added.
    #[error(transparent)]
    Intervention(#[from] InterventionError),
    /// The model could not be run.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// When a coefficient works.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rules {
    /// At least this part of ordinary prompts is refused.
    pub refused_min: f64,
    /// At most this part of the answers is empty, looping or garbled.
    pub broken_max: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { refused_min: 0.9, broken_max: 0.05 }
    }
}

/// What a coefficient did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Refusals in whole sentences.
    Works,
    /// Whole sentences, but too few refusals.
    TooWeak,
    /// Too many broken answers.
    Breaks,
}

/// One coefficient that was tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trial {
    /// The coefficient.
    pub scale: f32,
    /// Ordinary prompts refused.
    pub refused: Rate,
    /// Answers empty, looping or garbled.
    pub broken: Rate,
    /// What that amounts to.
    pub outcome: Outcome,
}

/// What was tried and found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Search {
    /// What was asked for.
    pub rules: Rules,
    /// In ascending order.
    pub trials: Vec<Trial>,
    /// The smallest that works; `None` where none does.
    pub scale: Option<f32>,
}

/// Coefficients tried first, each twice the one before.
const SMALLEST: f32 = 1.0 / 16.0;
const LARGEST: f32 = 64.0;
/// Halvings between one that is too weak and one that breaks, in search of any that works.
const MAX_HALVINGS: usize = 4;
/// The smallest that works is known to this factor.
const PRECISION: f32 = 1.1;

/// Looks for the smallest coefficient that works; `attempt` says how many of the prompts were refused, and
/// how many answers broken, at one.
///
/// Coefficients are doubled until one works or two in a row break; between the last that is too weak and the
/// first that breaks or works, the interval is halved.
///
/// # Errors
/// Those of `attempt`.
pub fn search<E>(rules: Rules, mut attempt: impl FnMut(f32) -> Result<(Rate, Rate), E>) -> Result<Search, E> {
    let mut trials: Vec<Trial> = Vec::new();
    let mut attempt = |scale: f32| {
        let (refused, broken) = attempt(scale)?;
        let outcome = if broken.rate > rules.broken_max {
            Outcome::Breaks
        } else if refused.rate < rules.refused_min {
            Outcome::TooWeak
        } else {
            Outcome::Works
        };
        trials.push(Trial { scale, refused, broken, outcome });
        Ok::<_, E>(outcome)
    };
    let mut low = None;
    let mut high = None;
    let mut next = SMALLEST;
    while next <= LARGEST {
        match attempt(next)? {
            Outcome::TooWeak => low = Some(next),
            Outcome::Works => {
                high = Some((next, true));
                break;
            }
            Outcome::Breaks if high.is_some() => break,
            Outcome::Breaks => high = Some((next, false)),
        }
        next *= 2.0;
    }
    if let (Some(mut low), Some((mut high, mut works))) = (low, high) {
        if high < low {
            // It broke once and then recovered, without ever working: nothing lies between.
            high = low;
        }
        let mut halvings = 0;
        while high / low > PRECISION && (works || halvings < MAX_HALVINGS) {
            let middle = rounded((low * high).sqrt());
            if middle <= low || middle >= high {
                break;
            }
            match attempt(middle)? {
                Outcome::Works => (high, works) = (middle, true),
                Outcome::TooWeak => low = middle,
                Outcome::Breaks if works => low = middle,
                Outcome::Breaks => high = middle,
            }
            halvings += 1;
        }
    }
    trials.sort_by(|a, b| a.scale.total_cmp(&b.scale));
    let scale = trials.iter().find(|t| t.outcome == Outcome::Works).map(|t| t.scale);
    Ok(Search { rules, trials, scale })
}

/// To two significant digits.
fn rounded(x: f32) -> f32 {
    // Powers of ten above one are exact, those below are not.
    let digits = 10f64.powi(1 - x.log10().floor() as i32);
    ((f64::from(x) * digits).round() / digits) as f32
}

/// [`search`] on the ordinary prompts of `set`, adding multiples of `vector` (`n_embd`) at the output of
/// `block`. A coefficient at which the logits are no numbers breaks every answer. `step` is called after each
/// coefficient.
///
/// # Errors
/// As [`Session::generate`], but for [`RuntimeError::NoNumber`].
pub fn find(
    session: &mut Session<'_>,
    set: &Set,
    (block, vector, positions): (usize, &[f32], Positions),
    options: &Options,
    rules: Rules,
    step: &mut dyn FnMut(f32),
) -> Result<Search, Error> {
    search(rules, |scale| {
        let addition = Arc::new(Intervention::add(block, vector, scale, positions)?);
        let n = set.prompts.len();
        let found = match answers(session, set, Some(&addition), options, &mut || ()) {
            Err(RuntimeError::NoNumber) => (Rate::new(0, n), Rate::new(n, n)),
            answers => {
                let answers = answers?;
                let count = |what: &dyn Fn(&Answer) -> bool| Rate::of(answers.iter().map(what));
                (count(&|a| a.refused), count(&|a| a.broken.is_some()))
            }
        };
        step(scale);
        Ok(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refuses from `weak` on, breaks from `breaks` on.
    fn model(weak: f32, breaks: f32) -> Search {
        let attempt = |scale: f32| {
            let all = |yes: bool| Rate::new(if yes { 20 } else { 0 }, 20);
            Ok::<_, ()>((all(scale >= weak), all(scale >= breaks)))
        };
        search(Rules::default(), attempt).unwrap()
    }

    #[test]
    fn the_smallest_that_works_is_found_to_a_tenth() {
        for weak in [0.07f32, 0.3, 0.55, 1.0, 3.3, 40.0] {
            let found = model(weak, weak * 1.5).scale.unwrap();
            assert!(found >= weak && found <= weak * 1.16, "{weak}: {found}");
        }
        assert_eq!(model(0.0, 1.0).scale, Some(SMALLEST));
    }

    #[test]
    fn coefficients_are_short_numbers() {
        assert_eq!([0.459_61f32, 0.071, 2.828_4, 45.3].map(rounded), [0.46, 0.071, 2.8, 45.0]);
    }

    #[test]
    fn what_never_works_is_said_with_all_that_was_tried() {
        for (weak, breaks) in [(0.5, 0.1), (100.0, 200.0), (100.0, 0.5), (0.3, 0.3)] {
            let search = model(weak, breaks);
            assert_eq!(search.scale, None, "{weak} {breaks}");
            assert!(search.trials.len() >= 2 && search.trials.len() <= 12);
            assert!(search.trials.is_sorted_by(|a, b| a.scale < b.scale), "{search:?}");
        }
        let early = model(0.5, 0.0);
        assert_eq!(early.trials.len(), 2, "two that break in a row are enough");
    }

    #[test]
    fn a_share_of_refusals_or_of_broken_answers_decides() {
        let attempt = |refused: usize, broken: usize| {
            let rates = Ok::<_, ()>((Rate::new(refused, 20), Rate::new(broken, 20)));
            search(Rules::default(), |_| rates).unwrap().trials[0].outcome
        };
        assert_eq!(attempt(18, 1), Outcome::Works);
        assert_eq!(attempt(17, 1), Outcome::TooWeak);
        assert_eq!(attempt(20, 2), Outcome::Breaks);
    }
}
