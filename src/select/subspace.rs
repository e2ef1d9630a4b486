//! Several directions, for a model that one is not enough for: erase, measure what is left, choose again.
//!
//! A further direction is the difference in means between the harmful training prompts that the model *still refuses*
//! with the directions so far erased and the harmless ones, both run with these erased; it is chosen by the same rules,
//! with the whole span in place of the one direction. Erasing and fitting anew is the way of iterated nullspace projection
//! (Ravfogel et al. 2020), with differences in means for classifiers. It goes on as long as there is evidence: enough
//! prompts still refused to measure a mean, a candidate that keeps the rules, and a fall in the probability of refusal on
//! validation prompts that chance does not explain.
//!
//! Rejected: the first k principal components of the differences prompt by prompt. They order directions by variance, and
//! what varies most between prompts is what they are about.

use std::sync::Arc;

use serde::Serialize;

use super::bound::t_quantile;
use super::checkpoint::Checkpoint;
use super::pipeline::{self, Choice, Error, Request, Watch, select};
use super::{Verdict, grid};
use crate::activations::{Contrast, measure};
use crate::direction::{Direction, Provenance, ablation};
use crate::evaluate::kl::refusal_score;
use crate::evaluate::run::first_logits;
use crate::intervention::Intervention;
use crate::runtime::{Prompt, Session};

/// Prompts that a mean can be measured on, at least.
const FEWEST: usize = 8;

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub struct Growth<'a> {
    /// The most directions in all.
    pub rank: usize,
    /// Training prompts, harmful and harmless.
    pub train: [&'a [Prompt]; 2],
    /// The probability that a direction is added that brings nothing, at most (as far as means are normal).
    pub error: f64,
}

/// The probability of a refusal's first token, over the harmful validation prompts that the plain model refuses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gain {
    /// Mean with the directions before erased.
    pub before: f64,
    /// Mean with this one erased too.
    pub after: f64,
    /// How far it falls, at the least: the lower end of the one-sided interval of the paired difference (Student's), its
    /// error shared among the candidates that this one is the best of.
    pub at_least: f64,
}

impl Gain {
    /// Of probabilities prompt by prompt, of the best of `looks` candidates.
    #[must_use]
    pub fn of(before: &[f64], after: &[f64], looks: usize, error: f64) -> Self {
        let n = before.len() as f64;
        let mean = |values: &[f64]| values.iter().sum::<f64>() / n;
        let falls: Vec<f64> = before.iter().zip(after).map(|(b, a)| b - a).collect();
        let fall = mean(&falls);
        let at_least = if falls.len() < 2 {
            f64::NEG_INFINITY
        } else {
            let variance = falls.iter().map(|f| (f - fall).powi(2)).sum::<f64>() / (n - 1.0);
            fall - t_quantile(falls.len() - 1, error / looks.max(1) as f64) * (variance / n).sqrt()
        };
        Self { before: mean(before), after: mean(after), at_least }
    }
}

/// The search for one further direction.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Harmful training prompts still refused, which it was measured on.
    pub n_refused: usize,
    /// Its candidates.
    pub choice: Choice,
    /// What the best of them brings; `None` where the rules left none.
    pub gain: Option<Gain>,
}

/// Why no further direction was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Stop {
    /// There are as many as were asked for.
    Rank,
    /// The model refuses too few training prompts to measure another.
    FewRefused {
        /// Prompts still refused.
        refused: usize,
        /// Of so many.
        of: usize,
    },
    /// The rules leave no candidate.
    NoneKept,
    /// The best candidate does not lower the probability of refusal beyond doubt.
    NoGain,
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rank => write!(f, "as many as asked for"),
            Self::FewRefused { refused, of } => {
                write!(
                    f,
                    "{refused} of {of} harmful training prompts are still refused: too few to measure another"
                )
            }
            Self::NoneKept => write!(f, "no candidate for another keeps the rules"),
            Self::NoGain => {
                write!(f, "the best candidate for another does not lower the refusals beyond doubt")
            }
        }
    }
}

/// Directions whose span is to be erased, and how they were come by.
#[derive(Debug, Clone)]
pub struct Subspace {
    /// The first as it was given, each further one measured with those before it erased.
    pub directions: Vec<Direction>,
    /// The searches for the further ones; the last may have found none.
    pub steps: Vec<Step>,
    /// Why it ended.
    pub stop: Stop,
}

/// Looks for directions beside `first`, which `request` chose with the same session and checkpoint.
///
/// Each search keeps its scores in a checkpoint of its own, beside the first, which is saved before; removing that one
/// removes them all.
///
/// # Errors
/// As [`select`]; finding none is no error.
pub fn grow(
    session: &mut Session<'_>,
    request: &Request<'_>,
    first: Direction,
    growth: &Growth<'_>,
    checkpoint: &mut Checkpoint,
    watch: &mut dyn Watch,
) -> Result<Subspace, Error> {
    let mut found = Subspace { directions: vec![first], steps: Vec::new(), stop: Stop::Rank };
    if growth.rank <= 1 {
        return Ok(found);
    }
    checkpoint.save()?;
    let tokens = pipeline::refusal_tokens(session, request, checkpoint, watch)?;
    let ids = &tokens.ids[..];
    let request = Request { refusal_tokens: Some(tokens.clone()), ..request.clone() };
    let [harmful, harmless] = growth.train;
    let validation = grid::refused(session, request.prompts[0], ids, None)?;
    let mut erased = Arc::new(ablation(&found.directions)?);
    let mut before = probabilities(session, &validation, ids, &erased)?;
    while found.directions.len() < growth.rank {
        let refused = grid::refused(session, harmful, ids, Some(&erased))?;
        if refused.len() < FEWEST {
            found.stop = Stop::FewRefused { refused: refused.len(), of: harmful.len() };
            return Ok(found);
        }
        watch.measuring(found.directions.len() + 1, refused.len(), refused.len() + harmless.len());
        let step = &mut || watch.measured();
        let contrast = contrast(session, &request, [&refused, harmless], (&found.directions, &erased), step)?;
        let next = Request { contrast: &contrast, erased: &found.directions, ..request.clone() };
        let choice = select(session, &next, &mut checkpoint.step(found.directions.len() + 1), watch)?;
        if choice.selection.chosen.is_none() {
            found.steps.push(Step { n_refused: refused.len(), choice, gain: None });
            found.stop = Stop::NoneKept;
            return Ok(found);
        }
        let direction = choice.direction(&contrast)?;
        let looks = choice.candidates.len() - choice.selection.count(Verdict::LateLayer);
        let mut with = found.directions.clone();
        with.push(direction);
        erased = Arc::new(ablation(&with)?);
        let after = probabilities(session, &validation, ids, &erased)?;
        let gain = Gain::of(&before, &after, looks, growth.error);
        found.steps.push(Step { n_refused: refused.len(), choice, gain: Some(gain) });
        // NaN is no gain.
        if gain.at_least.is_nan() || gain.at_least <= 0.0 {
            found.stop = Stop::NoGain;
            return Ok(found);
        }
        found.directions = with;
        before = after;
    }
    Ok(found)
}

/// Of the refusal tokens, after each prompt.
fn probabilities(
    session: &mut Session<'_>,
    prompts: &[Prompt],
    ids: &[usize],
    erased: &Arc<Intervention>,
) -> Result<Vec<f64>, Error> {
    let logits = first_logits(session, prompts, Some(erased), &mut || ())?;
    Ok(logits.iter().map(|l| 1.0 / (1.0 + (-refusal_score(l, ids)).exp())).collect())
}

/// The means of both sets with `erased` ablated.
fn contrast(
    session: &mut Session<'_>,
    request: &Request<'_>,
    [harmful, harmless]: [&[Prompt]; 2],
    (directions, erased): (&[Direction], &Arc<Intervention>),
    step: &mut dyn FnMut(),
) -> Result<Contrast, Error> {
    let (n_pos, ..) = request.contrast.harmful.shape();
    let mut mean = |set: &[Prompt]| measure(session, set, n_pos, Some(erased), None, step);
    let (harmful_means, harmless_means) = (mean(harmful)?, mean(harmless)?);
    let source = Provenance {
        n_harmful: u32::try_from(harmful.len()).ok(),
        erased: directions.iter().map(Direction::sha256).collect(),
        ..request.contrast.source.clone()
    };
    Ok(Contrast { harmful: harmful_means, harmless: harmless_means, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gain_is_what_chance_does_not_explain() {
        let before = [0.9, 0.8, 1.0, 0.7, 0.95, 0.85];
        let after = [0.1, 0.3, 0.2, 0.05, 0.4, 0.1];
        let gain = Gain::of(&before, &after, 1, 0.025);
        // The falls are .8 .5 .8 .65 .55 .75: mean .675, standard deviation .12942, and t(5) exceeds 2.5706 at .025.
        let expected = 0.675 - 2.570_581_8 * 0.129_421_8 / 6f64.sqrt();
        assert!((gain.at_least - expected).abs() < 1e-6, "{gain:?}");
        assert!((gain.before - gain.after - 0.675).abs() < 1e-12);
        let looked = Gain::of(&before, &after, 40, 0.025);
        assert!(looked.at_least < gain.at_least && looked.at_least > 0.0, "{looked:?}");
        let even = Gain::of(&before, &[0.8, 0.9, 0.9, 0.8, 0.85, 0.95], 1, 0.025);
        assert!(even.at_least < 0.0, "{even:?}");
        assert_eq!(Gain::of(&[0.9], &[0.1], 1, 0.01).at_least, f64::NEG_INFINITY);
    }
}
