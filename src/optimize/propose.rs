//! The next point to try, from the seed and the trials before it.

#![forbid(unsafe_code)]

use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use tpe::{
    TpeOptimizer, TpeOptimizerBuilder, categorical_range, histogram_estimator, parzen_estimator, range,
};

use super::{Kernel, Point, Trial};
use crate::random::SplitMix64;

/// Trials, the plain one included, before the estimator takes over from chance.
const STARTUP: usize = 12;

/// The part of the trials that counts as good.
const GAMMA: f64 = 0.2;

/// Numbers that make a kernel.
const KERNEL: usize = 4;

/// What is searched.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Directions to choose from, at least 1.
    pub n_directions: usize,
    /// Blocks of the model, at least 1.
    pub n_block: usize,
}

impl Space {
    /// Least and largest peak, floor, centre and width.
    fn ranges(self) -> [[f64; 2]; KERNEL] {
        let n = self.n_block.max(1) as f64;
        [[0.2, 1.6], [0.0, 1.0], [-0.5, n - 0.5], [1.0, n + 1.0]]
    }

    /// The first direction out of all that attention and the FFN write.
    fn whole(self) -> Point {
        let n = self.n_block.max(1) as f64;
        let all = Kernel { peak: 1.0, floor: 1.0, centre: (n - 1.0) / 2.0, width: n };
        Point { direction: 0, attention: all, ffn: all }
    }
}

/// The point of trial `trials.len()`, which must be 1 or more: trial 0 is the plain ablation.
///
/// Trial 1 is the plain ablation of attention and FFN alone, the next are drawn evenly, the rest by the
/// estimator.
#[must_use]
pub fn propose(space: Space, seed: u64, trials: &[Trial]) -> Point {
    let mut random = SplitMix64(SplitMix64(seed).bits() ^ trials.len() as u64);
    match trials.len() {
        0 | 1 => space.whole(),
        2..STARTUP => {
            let direction = (random.bits() % space.n_directions.max(1) as u64) as usize;
            let mut draw = || space.ranges().map(|[low, high]| low + (high - low) * random.unit());
            point(direction, draw(), draw())
        }
        _ => by_estimate(space, trials, &mut random),
    }
}

fn by_estimate(space: Space, trials: &[Trial], random: &mut SplitMix64) -> Point {
    let values = mixed(trials, random.unit());
    let told: Vec<(&Point, f64)> =
        trials.iter().zip(values).filter_map(|(trial, value)| Some((trial.point.as_ref()?, value))).collect();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(random.bits());
    let mut ask = |mut optimizer: TpeOptimizer, [low, high]: [f64; 2], of: &dyn Fn(&Point) -> f64| {
        for (point, value) in &told {
            // A log may hold points from elsewhere.
            let number = of(point).clamp(low, high);
            optimizer.tell(number, *value).expect("it lies in the range, and ranks are numbers");
        }
        optimizer.ask(&mut rng).expect("an estimator of finite values in a finite range")
    };
    let build = |estimator, range| {
        let mut builder = TpeOptimizerBuilder::new();
        builder.gamma(GAMMA).build(estimator, range).expect("gamma is a part of 1")
    };
    let n = space.n_directions.max(1);
    let categories = categorical_range(n).expect("there is a direction");
    let direction =
        ask(build(histogram_estimator(), categories), [0.0, (n - 1) as f64], &|p| p.direction as f64);
    let direction = (direction as usize).min(n - 1);
    let mut kernel = |of: &dyn Fn(&Point) -> Kernel| {
        let mut values = [0.0; KERNEL];
        for (i, [low, high]) in space.ranges().into_iter().enumerate() {
            // A little wider: the highest value belongs to it, and rounded ones may lie on the border.
            let range = range(low - 0.01, high + 0.01).expect("low is below high");
            let value = ask(build(parzen_estimator(), range), [low, high], &|p| numbers(&of(p))[i]);
            values[i] = value.clamp(low, high);
        }
        values
    };
    let (attention, ffn) = (kernel(&|p| p.attention), kernel(&|p| p.ffn));
    point(direction, attention, ffn)
}

/// Both figures of each trial as one, small for good ones: their ranks mixed (an augmented Chebyshev
/// norm), the first with `weight`, of 1.
fn mixed(trials: &[Trial], weight: f64) -> Vec<f64> {
    let ranks = |figure: usize| -> Vec<f64> {
        let of = |trial: &Trial| trial.outcome.figures()[figure];
        let below = |x: f64| trials.iter().filter(|other| of(other).total_cmp(&x).is_lt()).count();
        trials.iter().map(|trial| below(of(trial)) as f64 / trials.len() as f64).collect()
    };
    let mix = |(a, b): (f64, f64)| (weight * a).max((1.0 - weight) * b) + 0.05 * (a + b);
    ranks(0).into_iter().zip(ranks(1)).map(mix).collect()
}

fn numbers(kernel: &Kernel) -> [f64; KERNEL] {
    [kernel.peak, kernel.floor, kernel.centre, kernel.width]
}

/// In thousandths, which a log gives back as they were.
fn point(direction: usize, attention: [f64; KERNEL], ffn: [f64; KERNEL]) -> Point {
    let kernel = |numbers: [f64; KERNEL]| {
        let [peak, floor, centre, width] = numbers.map(|x| (x * 1e3).round() / 1e3);
        Kernel { peak, floor, centre, width }
    };
    Point { direction, attention: kernel(attention), ffn: kernel(ffn) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::interval::Mean;
    use crate::optimize::Outcome;

    const SPACE: Space = Space { n_directions: 3, n_block: 8 };

    /// A made-up model: direction 2 is the right one, and damage grows with the strength at early blocks.
    fn outcome(point: &Point) -> Outcome {
        let late: f64 = (4..8).map(|il| point.attention.at(il) + point.ffn.at(il)).sum();
        let early: f64 = (0..4).map(|il| point.attention.at(il) + point.ffn.at(il)).sum();
        let found = if point.direction == 2 { late / 8.0 } else { late / 32.0 };
        let answered = (found.min(1.0) * 100.0) as usize;
        let kl = ((early + 0.1 * late) * 1e3).round() / 1e3;
        let kl = Mean { n: 1, mean: kl, low: kl, high: kl };
        Outcome { n: 100, answered, refused: 100 - answered, broken: 0, kl }
    }

    fn search(seed: u64, n: usize, propose: &dyn Fn(Space, u64, &[Trial]) -> Point) -> Vec<Trial> {
        let mut trials = Vec::new();
        while trials.len() < n {
            let point = propose(SPACE, seed, &trials);
            trials.push(Trial { point: Some(point), outcome: outcome(&point) });
        }
        trials
    }

    #[test]
    fn a_proposal_depends_on_the_seed_and_the_history_alone() {
        let [a, b, c] = [5, 5, 6].map(|seed| search(seed, 40, &propose));
        assert_eq!(a, b);
        assert_ne!(a, c);
        let text = serde_json::to_string(&a[..30]).unwrap();
        let read: Vec<Trial> = serde_json::from_str(&text).unwrap();
        assert_eq!(read[..], a[..30], "numbers are read back as they were written");
        assert_eq!(propose(SPACE, 5, &read), a[30].point.unwrap());
    }

    #[test]
    fn proposals_lie_in_the_space() {
        for trial in search(1, 60, &propose) {
            let point = trial.point.unwrap();
            assert!(point.direction < 3);
            for kernel in [point.attention, point.ffn] {
                let numbers = numbers(&kernel);
                for (x, [low, high]) in numbers.into_iter().zip(SPACE.ranges()) {
                    assert!((low..=high).contains(&x), "{point:?}");
                }
            }
        }
    }

    #[test]
    fn the_estimator_does_better_than_chance() {
        // Hypervolume that the trials dominate, from (1, 8): larger is better.
        let volume = |trials: &[Trial]| {
            let mut front: Vec<[f64; 2]> =
                crate::optimize::pareto(trials).iter().map(|&i| trials[i].outcome.figures()).collect();
            front.retain(|[_, kl]| *kl < 8.0);
            let mut volume = 0.0;
            for (i, [unanswered, kl]) in front.iter().enumerate() {
                let next = front.get(i + 1).map_or(1.0, |next| next[0]);
                volume += (next - unanswered) * (8.0 - kl);
            }
            volume
        };
        let chance = |space: Space, seed: u64, trials: &[Trial]| {
            // Never past the start, where points are drawn evenly.
            let mut random = SplitMix64(seed.wrapping_mul(1000) + trials.len() as u64);
            let direction = (random.bits() % 3) as usize;
            let mut draw = || space.ranges().map(|[low, high]| low + (high - low) * random.unit());
            point(direction, draw(), draw())
        };
        let total = |propose: &dyn Fn(Space, u64, &[Trial]) -> Point| -> f64 {
            (0..8).map(|seed| volume(&search(seed, 80, propose))).sum()
        };
        let (estimated, even) = (total(&propose), total(&chance));
        println!("hypervolume over 8 seeds: {estimated:.2} estimated, {even:.2} by chance");
        assert!(estimated > 1.05 * even);
    }
}
