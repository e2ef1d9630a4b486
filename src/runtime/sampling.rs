//! Choosing the next token from logits.
//!
//! The steps are those of llama.cpp's usual chain, in its order: `top_k`, `top_p`, `min_p`, then temperature
//! and a draw. All of it is a function of the logits and the seed: two runs of one seed give one text.

#![forbid(unsafe_code)]

use std::cmp::Ordering;

use crate::random::SplitMix64;

/// Draws token ids from rows of logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    random: SplitMix64,
}

impl Sampler {
    /// Always the largest logit.
    #[must_use]
    pub fn greedy() -> Self {
        Self::new(0.0, 0, 1.0, 0.0, 0)
    }

    /// A sampler with a seed.
    ///
    /// - `temperature`: logits are divided by it before the draw; 0 or less is greedy, whatever the rest says.
    /// - `top_k`: the k largest logits stay; 0 leaves all.
    /// - `top_p`: the fewest of the largest whose probabilities sum to at least this stay; 1 leaves all.
    /// - `min_p`: those at least this share as probable as the most probable stay; 0 leaves all.
    ///
    /// At least one token always stays.
    #[must_use]
    pub fn new(temperature: f32, top_k: usize, top_p: f32, min_p: f32, seed: u64) -> Self {
        Self { temperature, top_k, top_p, min_p, random: SplitMix64(seed) }
    }

    /// The same settings with a seed of its own, so that what sequence `i` draws does not depend on its neighbours.
    #[must_use]
    pub fn for_sequence(&self, i: u64) -> Self {
        let mut random = SplitMix64(self.random.0 ^ i.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        random.0 = random.bits();
        Self { random, ..self.clone() }
    }

    /// The next token's id for `logits` of shape `[n_vocab]`; `None` when no logit is a number above −∞.
    ///
    /// Logits that are NaN are never chosen. Ties go to the lowest id, in the cuts as in the greedy choice.
    pub fn sample(&mut self, logits: &[f32]) -> Option<usize> {
        if self.temperature > 0.0 { self.draw(logits) } else { argmax(logits) }
    }

    fn draw(&mut self, logits: &[f32]) -> Option<usize> {
        let candidate =
            |(id, &logit): (usize, &f32)| (logit > f32::NEG_INFINITY).then_some((id, f64::from(logit)));
        let mut kept: Vec<(usize, f64)> = logits.iter().enumerate().filter_map(candidate).collect();
        if self.top_k > 0 && self.top_k < kept.len() {
            kept.select_nth_unstable_by(self.top_k - 1, by_rank);
            kept.truncate(self.top_k);
        }
        kept.sort_unstable_by(by_rank);
        let &(first, max) = kept.first()?;
        if max.is_infinite() {
            return Some(first);
        }
        if self.top_p < 1.0 {
            let total: f64 = kept.iter().map(|&(_, logit)| (logit - max).exp()).sum();
            let mut sum = 0.0;
            let enough = kept.iter().position(|&(_, logit)| {
                sum += (logit - max).exp();
                sum >= f64::from(self.top_p) * total
            });
            kept.truncate(enough.map_or(kept.len(), |last| last + 1));
        }
        if self.min_p > 0.0 {
            let floor = f64::from(self.min_p.min(1.0)).ln();
            kept.truncate(kept.partition_point(|&(_, logit)| logit - max >= floor));
        }
        let weight = |logit: f64| ((logit - max) / f64::from(self.temperature)).exp();
        let total: f64 = kept.iter().map(|&(_, logit)| weight(logit)).sum();
        let mut left = self.random.unit() * total;
        for &(id, logit) in &kept {
            left -= weight(logit);
            if left < 0.0 {
                return Some(id);
            }
        }
        kept.last().map(|&(id, _)| id) // rounding used up the whole mass
    }
}

/// The lowest id among the largest logits; `None` when none is above −∞.
#[must_use]
pub fn argmax(logits: &[f32]) -> Option<usize> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.map_or(f32::NEG_INFINITY, |(_, max)| max) {
            best = Some((id, logit));
        }
    }
    best.map(|(id, _)| id)
}

/// Larger logits first, then lower ids. No logit is NaN here.
fn by_rank(a: &(usize, f64), b: &(usize, f64)) -> Ordering {
    b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal).then(a.0.cmp(&b.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampler: &mut Sampler, logits: &[f32], n: usize) -> Vec<usize> {
        (0..n).map(|_| sampler.sample(logits).unwrap()).collect()
    }

    /// How often each of `n_vocab` ids comes up, as shares.
    fn shares(sampler: &mut Sampler, logits: &[f32]) -> Vec<f64> {
        let n = 40_000;
        let mut counts = vec![0.0; logits.len()];
        for id in draws(sampler, logits, n) {
            counts[id] += 1.0 / n as f64;
        }
        counts
    }

    fn near(found: &[f64], expected: &[f64]) {
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < 0.015, "{found:?} {expected:?}");
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_the_largest() {
        let mut greedy = Sampler::greedy();
        assert_eq!(greedy.sample(&[0.0, 3.0, 3.0, -1.0]), Some(1));
        assert_eq!(greedy.sample(&[f32::NAN, f32::NEG_INFINITY, -5.0]), Some(2));
        assert_eq!(greedy.sample(&[f32::INFINITY, 0.0]), Some(0));
        for none in [&[][..], &[f32::NAN], &[f32::NEG_INFINITY; 3]] {
            assert_eq!(greedy.sample(none), None);
            assert_eq!(Sampler::new(1.0, 0, 1.0, 0.0, 0).sample(none), None);
        }
    }

    #[test]
    fn one_seed_gives_one_text() {
        let logits = [0.1, 0.5, 0.2, 0.9];
        let run = |seed| draws(&mut Sampler::new(0.8, 0, 0.95, 0.05, seed), &logits, 64);
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn draws_follow_the_softmax_at_the_temperature() {
        let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln() + 40.0).collect();
        near(&shares(&mut Sampler::new(1.0, 0, 1.0, 0.0, 1), &logits), &[0.5, 0.3, 0.2]);
        let squares = [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38];
        near(&shares(&mut Sampler::new(0.5, 0, 1.0, 0.0, 1), &logits), &squares);
    }

    #[test]
    fn the_cuts_keep_what_they_say() {
        let logits: Vec<f32> = [0.1f32, 0.4, 0.3, 0.2].iter().map(|p| p.ln()).collect();
        let of = |k, p, m| shares(&mut Sampler::new(1.0, k, p, m, 3), &logits);
        near(&of(2, 1.0, 0.0), &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]);
        near(&of(99, 1.0, 0.0), &[0.1, 0.4, 0.3, 0.2]);
        near(&of(0, 0.65, 0.0), &[0.0, 4.0 / 7.0, 3.0 / 7.0, 0.0]);
        near(&of(0, 0.0, 0.0), &[0.0, 1.0, 0.0, 0.0]);
        near(&of(0, 1.0, 0.45), &[0.0, 4.0 / 9.0, 3.0 / 9.0, 2.0 / 9.0]);
        near(&of(0, 1.0, 5.0), &[0.0, 1.0, 0.0, 0.0]);
        // Top-k of equal logits keeps the lowest ids.
        near(&shares(&mut Sampler::new(1.0, 2, 1.0, 0.0, 3), &[1.0; 4]), &[0.5, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn an_infinite_logit_wins() {
        let mut sampler = Sampler::new(1.0, 0, 1.0, 0.0, 0);
        assert_eq!(sampler.sample(&[0.0, f32::INFINITY, 1.0]), Some(1));
    }
}
