//! A rate with its Wilson interval, a mean with its bootstrap interval.

#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::null_as_nan;
use crate::random::SplitMix64;

/// The 97.5 % point of the normal distribution.
pub(super) const Z: f64 = 1.959_963_984_540_054;

/// `hits` of `n`, with the 95 % interval of Wilson 1927 (good for small `n` and for rates near 0 and 1).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// How often it happened.
    pub hits: usize,
    /// How often it could have.
    pub n: usize,
    /// `hits / n`, from 0 to 1; 0 when `n` is 0, where the interval says that nothing is known.
    pub rate: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Rate {
    /// The rate and its interval; `n` = 0 gives the interval \[0, 1\].
    ///
    /// # Panics
    /// When `hits` is more than `n`.
    #[must_use]
    pub fn new(hits: usize, n: usize) -> Self {
        assert!(hits <= n, "{hits} hits in {n} trials");
        if n == 0 {
            return Self { hits, n, rate: 0.0, low: 0.0, high: 1.0 };
        }
        let (trials, rate) = (n as f64, hits as f64 / n as f64);
        let shrink = 1.0 + Z * Z / trials;
        let centre = (rate + Z * Z / (2.0 * trials)) / shrink;
        let half = Z / shrink * (rate * (1.0 - rate) / trials + Z * Z / (4.0 * trials * trials)).sqrt();
        // At the ends the two terms are equal: rounding must not leave 1e-17 there.
        let low = if hits == 0 { 0.0 } else { (centre - half).max(0.0) };
        let high = if hits == n { 1.0 } else { (centre + half).min(1.0) };
        Self { hits, n, rate, low, high }
    }

    /// Counts the `true`s.
    pub fn of(outcomes: impl IntoIterator<Item = bool>) -> Self {
        let (hits, n) = outcomes.into_iter().fold((0, 0), |(hits, n), hit| (hits + usize::from(hit), n + 1));
        Self::new(hits, n)
    }
}

/// In percent with its interval: `2.0 % [0.6, 7.0] (2/100)`.
impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [rate, low, high] = [self.rate, self.low, self.high].map(|r| 100.0 * r);
        write!(f, "{rate:.1} % [{low:.1}, {high:.1}] ({}/{})", self.hits, self.n)
    }
}

/// How often [`Mean::of`] draws the values anew.
const RESAMPLES: usize = 1000;

/// A mean of independent values with its 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    /// How many values there were.
    pub n: usize,
    /// Their mean; NaN of none.
    #[serde(deserialize_with = "null_as_nan")]
    pub mean: f64,
    /// The interval's lower end.
    #[serde(deserialize_with = "null_as_nan")]
    pub low: f64,
    /// The interval's upper end.
    #[serde(deserialize_with = "null_as_nan")]
    pub high: f64,
}

impl Mean {
    /// The mean of `values` and the percentile bootstrap's interval (Efron 1979), which follows a skewed
    /// spread such as that of KL: the same for the same `seed`. A single value, infinity or NaN gives an
    /// interval of nothing but itself.
    #[must_use]
    pub fn of(values: &[f64], seed: u64) -> Self {
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        if n < 2 || !mean.is_finite() {
            return Self { n, mean, low: mean, high: mean };
        }
        let mut random = SplitMix64(seed);
        let mut draw = || {
            let sum: f64 = (0..n).map(|_| values[(random.bits() % n as u64) as usize]).sum();
            sum / n as f64
        };
        let mut means: Vec<f64> = (0..RESAMPLES).map(|_| draw()).collect();
        means.sort_by(f64::total_cmp);
        let at = |part: f64| means[(part * (RESAMPLES - 1) as f64).round() as usize];
        // Rounding of the sums must not put the mean of equal values outside of its interval.
        Self { n, mean, low: at(0.025).min(mean), high: at(0.975).max(mean) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_intervals() {
        // Worked by hand from Wilson's formula: 0/10 ends at z²/(10 + z²).
        let cases = [
            (0, 10, 0.0, 0.277_533),
            (10, 10, 0.722_467, 1.0),
            (5, 10, 0.236_593, 0.763_407),
            (1, 1, 0.206_549, 1.0),
        ];
        for (hits, n, low, high) in cases {
            let rate = Rate::new(hits, n);
            assert!((rate.low - low).abs() < 1e-6 && (rate.high - high).abs() < 1e-6, "{rate:?}");
        }
        assert_eq!(Rate::new(0, 0), Rate { hits: 0, n: 0, rate: 0.0, low: 0.0, high: 1.0 });
    }

    #[test]
    fn outcomes_are_counted_and_shown() {
        assert_eq!(Rate::of([true, false, true, true]), Rate::new(3, 4));
        assert_eq!(Rate::new(2, 100).to_string(), "2.0 % [0.6, 7.0] (2/100)");
    }

    #[test]
    fn the_bootstrap_covers_a_known_mean_as_often_as_it_says() {
        // Of 200 samples of 60 uniform numbers, the interval misses the mean 0.5 in about 5 %.
        let mut random = SplitMix64(5);
        let missed = (0..200).filter(|&seed| {
            let values: Vec<f64> = (0..60).map(|_| random.unit()).collect();
            let mean = Mean::of(&values, seed);
            assert!(mean.low < mean.mean && mean.mean < mean.high);
            !(mean.low..=mean.high).contains(&0.5)
        });
        let missed = missed.count();
        assert!((3..=22).contains(&missed), "{missed} of 200");
    }

    #[test]
    fn the_bootstrap_depends_on_the_seed_alone() {
        let values = [0.0, 0.1, 3.0, 0.2, 0.0, 0.7];
        assert_eq!(Mean::of(&values, 3), Mean::of(&values, 3));
        assert_ne!(Mean::of(&values, 3), Mean::of(&values, 4));
        let same = Mean::of(&[0.1; 7], 0);
        assert!(same.low == same.mean || same.high == same.mean);
        assert_eq!(Mean::of(&[2.0], 0), Mean { n: 1, mean: 2.0, low: 2.0, high: 2.0 });
        assert!(Mean::of(&[], 0).mean.is_nan() && Mean::of(&[1.0, f64::NAN], 0).high.is_nan());
        assert_eq!(Mean::of(&[1.0, f64::INFINITY], 0).high, f64::INFINITY);
    }

    proptest! {
        #[test]
        fn the_ends_solve_wilsons_equation(n in 1usize..5000, part in 0.0f64..=1.0) {
            let rate = Rate::new((n as f64 * part) as usize, n);
            prop_assert!(0.0 <= rate.low && rate.low <= rate.rate && rate.rate <= rate.high && rate.high <= 1.0);
            for end in [rate.low, rate.high] {
                // (p̂ − p)² = z² p(1 − p)/n at both ends.
                let gap = (rate.rate - end).powi(2) - Z * Z * end * (1.0 - end) / n as f64;
                prop_assert!(gap.abs() < 1e-9, "{} {}", end, gap);
            }
        }
    }
}
