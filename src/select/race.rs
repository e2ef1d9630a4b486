//! Which candidates need to be scored on which prompts, so that the one that scoring everything would choose is found.
//!
//! The winner is the candidate of the lowest mean bypass among those whose mean KL and induce scores keep the rules. A
//! candidate is dropped as soon as a bound says that it breaks a rule, or that its bypass is above that of a candidate
//! which is known to keep them. The prompts come in a random order, in steps that double; the bounds are those of
//! [`super::bound`], on differences prompt by prompt where two candidates are compared. [`Race::error`] is shared among
//! all the tests that can be made, so it bounds the probability that any of them drops the winner.
//!
//! A batch's results depend on its shape in the last digits, so what the race sees, in batches that candidates share, is
//! for dropping only. Whatever can still win is scored on all prompts in batches of its own, as if everything were
//! scored, and the rules are applied to that.

use super::bound::interval;
use super::{Rules, Verdict};

/// One of a candidate's three scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Measure {
    /// On harmful prompts.
    Bypass,
    /// On harmless prompts.
    Induce,
    /// On harmless prompts.
    Kl,
}

impl Measure {
    /// All three, as they are numbered: `measure as usize`.
    pub const ALL: [Self; 3] = [Self::Bypass, Self::Induce, Self::Kl];
}

/// Two sheets of scores that are never mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sheet {
    /// Computed in batches with other candidates.
    Race,
    /// Computed in batches of the candidate's own.
    Full,
}

/// Scores of a candidate on the first prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Index of the candidate.
    pub candidate: usize,
    /// Which score.
    pub measure: Measure,
    /// On the prompts before this one.
    pub end: usize,
}

/// What the race asks for scores.
pub trait Scores {
    /// Why a score cannot be had.
    type Error;

    /// Prompts there are for a measure.
    fn n_prompts(&self, measure: Measure) -> usize;

    /// Computes what is not yet there, all of it side by side. `wanted` is the same for the same scores so far.
    ///
    /// # Errors
    /// Whatever keeps a score from being computed.
    fn compute(&mut self, sheet: Sheet, wanted: &[Wanted]) -> Result<(), Self::Error>;

    /// A candidate's scores so far, in the order of the prompts.
    fn get(&self, sheet: Sheet, candidate: usize, measure: Measure) -> &[f64];

    /// Told at every step which candidates are left.
    fn left(&mut self, _alive: &[usize]) {}
}

/// How to race.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Race {
    /// Prompts of the first step.
    pub first: usize,
    /// The probability that the winner is dropped, at most, as far as means of `first` scores are normal.
    pub error: f64,
}

impl Default for Race {
    fn default() -> Self {
        Self { first: 8, error: 0.01 }
    }
}

/// Why a candidate is out of the race, by its index; `None` for those scored in full.
pub type Dropped = Vec<Option<Verdict>>;

impl Race {
    /// Runs it among the `candidates`, given by index; the indices run below `n`. Those that are not dropped in the end
    /// have all their scores on [`Sheet::Full`].
    ///
    /// # Errors
    /// As [`Scores::compute`].
    pub fn run<S: Scores>(
        &self,
        scores: &mut S,
        n: usize,
        candidates: &[usize],
        rules: &Rules,
    ) -> Result<Dropped, S::Error> {
        let most = Measure::ALL.map(|m| scores.n_prompts(m)).into_iter().max().unwrap_or(0);
        // Beyond half of the prompts there is little to be saved.
        let steps: Vec<usize> = std::iter::successors(Some(self.first.max(2)), |s| Some(2 * s))
            .take_while(|s| 2 * s <= most)
            .collect();
        let tests = 3 * steps.len() * candidates.len();
        let mut run = Running {
            rules,
            tail: self.error / tests.max(1) as f64,
            dropped: vec![None; n],
            alive: candidates.to_vec(),
            best: None,
        };
        for step in steps {
            for measure in run.order() {
                run.step(scores, measure, step)?;
            }
            if run.best.is_none() {
                run.find_best(scores, step)?;
                run.judge(scores, Measure::Bypass, step);
            }
        }
        run.finish(scores)?;
        Ok(run.dropped)
    }
}

struct Running<'a> {
    rules: &'a Rules,
    tail: f64,
    dropped: Dropped,
    alive: Vec<usize>,
    /// A candidate that keeps the rules, of the lowest bypass among those known to.
    best: Option<usize>,
}

impl Running<'_> {
    /// With a candidate to compare with, the bypass decides most; without, it decides nothing.
    fn order(&self) -> [Measure; 3] {
        match self.best {
            Some(_) => [Measure::Bypass, Measure::Induce, Measure::Kl],
            None => [Measure::Induce, Measure::Kl, Measure::Bypass],
        }
    }

    fn drop(&mut self, candidate: usize, verdict: Verdict) {
        self.dropped[candidate] = Some(verdict);
        self.alive.retain(|&c| c != candidate);
    }

    /// One measure on the prompts of one step for all that are left.
    fn step<S: Scores>(&mut self, scores: &mut S, measure: Measure, step: usize) -> Result<(), S::Error> {
        let end = step.min(scores.n_prompts(measure));
        let open = self.alive.iter().filter(|&&c| self.best != Some(c));
        let wanted: Vec<Wanted> = open.map(|&candidate| Wanted { candidate, measure, end }).collect();
        scores.compute(Sheet::Race, &wanted)?;
        self.judge(scores, measure, step);
        scores.left(&self.alive);
        Ok(())
    }

    /// Drops what the first scores speak against.
    fn judge<S: Scores>(&mut self, scores: &S, measure: Measure, step: usize) {
        let total = scores.n_prompts(measure);
        for candidate in self.alive.clone() {
            if self.best == Some(candidate) {
                continue;
            }
            // A step looks at its own prompts, whatever else is known already.
            let first = &scores.get(Sheet::Race, candidate, measure)[..step.min(total)];
            if !first.iter().all(|score| score.is_finite()) {
                self.drop(candidate, Verdict::NotANumber);
                continue;
            }
            let [low, high] = interval(first, total, self.tail);
            match measure {
                // No KL is negative: what there is may be enough whatever comes.
                Measure::Kl if low.max(first.iter().sum::<f64>() / total as f64) > self.rules.kl_max => {
                    self.drop(candidate, Verdict::Kl);
                }
                Measure::Induce if high < self.rules.induce_min => self.drop(candidate, Verdict::Induce),
                Measure::Bypass => {
                    let Some(best) = self.best else { continue };
                    let theirs = scores.get(Sheet::Full, best, measure);
                    let above: Vec<f64> = first.iter().zip(theirs).map(|(a, b)| a - b).collect();
                    if interval(&above, total, self.tail)[0] > 0.0 {
                        self.drop(candidate, Verdict::Outrun);
                    }
                }
                _ => {}
            }
        }
    }

    /// Scores in full the candidate of the lowest bypass so far among those that seem to keep the rules. One a step: the
    /// next step may tell for less that it does not.
    fn find_best<S: Scores>(&mut self, scores: &mut S, step: usize) -> Result<(), S::Error> {
        let so_far = |candidate: usize, measure: Measure| {
            let all = scores.get(Sheet::Race, candidate, measure);
            mean(&all[..step.min(all.len())])
        };
        let seems = |&c: &usize| {
            so_far(c, Measure::Induce) >= self.rules.induce_min && so_far(c, Measure::Kl) <= self.rules.kl_max
        };
        let promising = self.alive.iter().copied().filter(seems);
        let next =
            promising.min_by(|&a, &b| so_far(a, Measure::Bypass).total_cmp(&so_far(b, Measure::Bypass)));
        next.map_or(Ok(()), |next| self.complete(scores, next))
    }

    /// Scores a candidate in full, as far as it can be the best.
    fn complete<S: Scores>(&mut self, scores: &mut S, candidate: usize) -> Result<(), S::Error> {
        for measure in self.order() {
            let end = scores.n_prompts(measure);
            scores.compute(Sheet::Full, &[Wanted { candidate, measure, end }])?;
            let mean = mean(scores.get(Sheet::Full, candidate, measure));
            let breaks = match measure {
                _ if !mean.is_finite() => Some(Verdict::NotANumber),
                Measure::Bypass => {
                    let best = self.best.map(|best| self::mean(scores.get(Sheet::Full, best, measure)));
                    best.is_some_and(|best| mean > best).then_some(Verdict::Outrun)
                }
                Measure::Induce => (mean < self.rules.induce_min).then_some(Verdict::Induce),
                Measure::Kl => (mean > self.rules.kl_max).then_some(Verdict::Kl),
            };
            if let Some(verdict) = breaks {
                self.drop(candidate, verdict);
                scores.left(&self.alive);
                return Ok(());
            }
        }
        self.best = Some(candidate);
        Ok(())
    }

    /// Scores in full what is left, the most promising first.
    fn finish<S: Scores>(&mut self, scores: &mut S) -> Result<(), S::Error> {
        let mut left: Vec<(f64, usize)> = (self.alive.iter())
            .map(|&c| (mean(scores.get(Sheet::Race, c, Measure::Bypass)), c))
            .filter(|&(_, c)| self.best != Some(c))
            .collect();
        left.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        left.into_iter().try_for_each(|(_, candidate)| self.complete(scores, candidate))
    }
}

/// The mean, of scores added in their order; NaN of none.
#[must_use]
pub fn mean(scores: &[f64]) -> f64 {
    // Not 0/0, whose sign, and so its place in an order, is the processor's.
    if scores.is_empty() { f64::NAN } else { scores.iter().sum::<f64>() / scores.len() as f64 }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;
    use crate::random::SplitMix64;
    use crate::select::{Candidate, Layer, choose};

    /// Scores known beforehand; what was looked at is counted.
    struct Known {
        all: Vec<[Vec<f64>; 3]>,
        seen: Vec<[[usize; 3]; 2]>,
    }

    impl Known {
        fn new(all: Vec<[Vec<f64>; 3]>) -> Self {
            Self { seen: vec![[[0; 3]; 2]; all.len()], all }
        }

        fn looked_at(&self) -> usize {
            self.seen.iter().flatten().flatten().sum()
        }

        fn candidates(&self) -> Vec<Candidate> {
            let scores = |i: usize, m: Measure| mean(&self.all[i][m as usize]);
            (0..self.all.len())
                .map(|i| Candidate {
                    position: -1,
                    layer: Layer::from_paper(i),
                    bypass: scores(i, Measure::Bypass),
                    induce: scores(i, Measure::Induce),
                    kl: scores(i, Measure::Kl),
                })
                .collect()
        }
    }

    impl Scores for Known {
        type Error = Infallible;

        fn n_prompts(&self, measure: Measure) -> usize {
            self.all[0][measure as usize].len()
        }

        fn compute(&mut self, sheet: Sheet, wanted: &[Wanted]) -> Result<(), Infallible> {
            for w in wanted {
                let seen = &mut self.seen[w.candidate][sheet as usize][w.measure as usize];
                *seen = w.end.max(*seen);
            }
            Ok(())
        }

        fn get(&self, sheet: Sheet, candidate: usize, measure: Measure) -> &[f64] {
            &self.all[candidate][measure as usize][..self.seen[candidate][sheet as usize][measure as usize]]
        }
    }

    /// Scores around means like those of real models: a few candidates that are good and near each other, many that are
    /// not. Prompts differ, and alike for all candidates in part.
    fn grid(random: &mut SplitMix64, n: usize, any_good: bool) -> Known {
        let mut normal = || (0..12).map(|_| random.unit()).sum::<f64>() - 6.0;
        let hard: Vec<f64> = (0..64).map(|_| normal()).collect();
        let all = (0..n)
            .map(|i| {
                let good = any_good && i % 7 == 0;
                let bypass = if good { -6.0 + normal() } else { 2.0 * normal() };
                let induce = if good { 0.5 + normal() } else { -5.0 + normal() };
                let kl = 0.08 * (1.0 + normal()).abs();
                let around = |mean: f64, spread: f64, each: &mut dyn FnMut() -> f64| -> Vec<f64> {
                    hard.iter().map(|h| mean + spread * (h + 0.5 * each())).collect()
                };
                [
                    around(bypass, 1.5, &mut normal),
                    around(induce, 1.5, &mut normal),
                    around(kl, 0.3 * kl, &mut normal).iter().map(|kl| kl.abs()).collect(),
                ]
            })
            .collect();
        Known::new(all)
    }

    #[test]
    fn the_winner_is_that_of_all_scores_for_a_fraction_of_them() {
        let (mut looked_at, mut all, mut without) = (0, 0, 0);
        for seed in 0..300 {
            let mut scores = grid(&mut SplitMix64(seed), 42, seed % 10 > 0);
            let candidates = scores.candidates();
            let rules = Rules { layer_fraction: 2.0, ..Rules::default() };
            let expected = choose(&candidates, 42, &rules).chosen;
            let dropped = Race::default().run(&mut scores, 42, &(0..42).collect::<Vec<_>>(), &rules).unwrap();
            let left: Vec<usize> = (0..42).filter(|&i| dropped[i].is_none()).collect();
            let full: Vec<Candidate> = left.iter().map(|&i| candidates[i]).collect();
            let chosen = choose(&full, 42, &rules).chosen.map(|i| left[i]);
            assert_eq!(chosen, expected, "seed {seed}");
            for &i in &left {
                assert_eq!(scores.seen[i][Sheet::Full as usize], [64; 3]);
            }
            looked_at += scores.looked_at();
            all += 42 * 3 * 64;
            without += usize::from(expected.is_none());
        }
        println!("looked at {looked_at} of {all}; no winner in {without} of 300");
        assert!(4 * looked_at < all, "{looked_at} of {all}");
        assert!((30..100).contains(&without), "{without} of 300 have no winner: the test should see both");
    }

    #[test]
    fn few_prompts_are_scored_in_full_at_once() {
        let mut scores = grid(&mut SplitMix64(1), 14, true);
        scores.all.iter_mut().flatten().for_each(|s| s.truncate(12));
        let all: Vec<usize> = (0..14).collect();
        Race::default().run(&mut scores, 14, &all, &Rules::default()).unwrap();
        assert!(scores.seen.iter().all(|[race, _]| *race == [0; 3]));
    }

    #[test]
    fn a_score_that_is_no_number_drops_its_candidate() {
        let mut scores = grid(&mut SplitMix64(3), 8, true);
        scores.all[0][Measure::Kl as usize][5] = f64::NAN;
        scores.all[7][Measure::Induce as usize][40] = f64::INFINITY;
        let rules = Rules { kl_max: 9.0, induce_min: -9.0, ..Rules::default() };
        let dropped = Race::default().run(&mut scores, 8, &[0, 7], &rules).unwrap();
        assert_eq!([dropped[0], dropped[7]], [Some(Verdict::NotANumber); 2]);
    }
}
