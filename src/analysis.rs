//! How two prompt sets lie to each other in the residual stream, block by block.
//!
//! Of the rows of both sets at one position and the output of one block (n × n_embd), centred on the mean of all: the
//! first principal component, how much of the variance lies along it, how well it alone tells the sets apart, and how
//! near it is to the difference in means, which is what the directions of this program are (Arditi et al. 2024,
//! section 2.3). Where the two coincide, the contrast *is* the largest variation there is.
//!
//! ```
//! use ggsteer::analysis::{Rows, analyze};
//!
//! // One block, 2 wide: the sets lie apart along the first element.
//! let harmful = Rows::new(2, vec![vec![5.0, 0.1, 5.2, -0.1, 4.9, 0.0]]);
//! let harmless = Rows::new(2, vec![vec![-5.0, 0.1, -5.1, 0.0, -4.8, -0.1]]);
//! let analysis = analyze(&harmful, &harmless, None, 0.9);
//! assert!(analysis.blocks[0].pc1_variance > 0.99 && analysis.blocks[0].pc1_cosine > 0.99);
//! assert_eq!(analysis.coincide_from, Some(0));
//! ```
#![forbid(unsafe_code)]

use std::sync::Arc;

use ndarray::{Array1, Array2, ArrayView1, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Deserializer, Serialize};

use crate::evaluate::null_as_nan;
use crate::intervention::Intervention;
use crate::random::SplitMix64;
use crate::runtime::{CapturePlan, Error, Job, Prompt, Session, Site, jobs};

/// |cos(PC1, difference in means)| from which on the two count as one.
pub const COINCIDE: f64 = 0.9;

/// Rows of the stream: for each block, prompts × n_embd, as they come.
#[derive(Debug, Clone, PartialEq)]
pub struct Rows {
    n_embd: usize,
    blocks: Vec<Vec<f32>>,
}

impl Rows {
    /// Runs every prompt once, under `intervention`, and keeps the stream at `position` (−1 is the last token) of each, at
    /// the output of every block: prompts × n_block × n_embd × 4 bytes. `step` is called after each prompt.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    ///
    /// # Panics
    /// Where a prompt has no such position: see [`shared_positions`](crate::activations::shared_positions).
    pub fn measure(
        session: &mut Session<'_>,
        prompts: &[Prompt],
        position: i32,
        intervention: Option<&Arc<Intervention>>,
        step: &mut dyn FnMut(),
    ) -> Result<Self, Error> {
        let model = session.model();
        let n_embd = model.n_embd();
        let mut blocks = vec![vec![0.0; prompts.len() * n_embd]; model.n_block()];
        let n_out = position.unsigned_abs() as usize;
        assert!(position < 0 && prompts.iter().all(|p| p.tokens.len() >= n_out), "position {position}");
        let jobs: Vec<Job<'_>> =
            jobs(prompts, intervention).into_iter().map(|job| Job { n_out, ..job }).collect();
        let plan = CapturePlan { stream: true, ..CapturePlan::default() };
        let mut sink = |job: usize, at: i32, site: Site<'_>, row: &[f32]| {
            if let (Site::Block(block), true) = (site, at == position) {
                blocks[block][job * n_embd..][..n_embd].copy_from_slice(row);
            }
        };
        session.prefill(&jobs, Some((&plan, &mut sink)), &mut |_, _| step())?;
        Ok(Self { n_embd, blocks })
    }

    /// From rows that are there: for each block, prompts × n_embd.
    #[must_use]
    pub fn new(n_embd: usize, blocks: Vec<Vec<f32>>) -> Self {
        Self { n_embd, blocks }
    }

    fn of(&self, block: usize) -> Array2<f64> {
        let rows = &self.blocks[block];
        let values = rows.iter().map(|x| f64::from(*x)).collect();
        Array2::from_shape_vec((rows.len() / self.n_embd, self.n_embd), values).expect("whole rows")
    }
}

/// What one block shows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BlockAnalysis {
    /// 0-based: its output.
    pub block: usize,
    /// The share of the variance of both sets together that lies along the first principal component, 0 to 1.
    #[serde(deserialize_with = "null_as_nan")]
    pub pc1_variance: f64,
    /// The chance that a harmful prompt projects further along it than a harmless one, ties half; the component's sign
    /// is that of the difference, so it is rarely below 0.5. No label went into the component.
    #[serde(deserialize_with = "null_as_nan")]
    pub pc1_auc: f64,
    /// |cos| between the component and the difference in means.
    #[serde(deserialize_with = "null_as_nan")]
    pub pc1_cosine: f64,
    /// The same chance along the difference in means, each half of the prompts projected on the difference of the other.
    #[serde(deserialize_with = "null_as_nan")]
    pub difference_auc: f64,
    /// ‖mean(harmful)‖.
    #[serde(deserialize_with = "null_as_nan")]
    pub harmful_norm: f64,
    /// ‖mean(harmless)‖.
    #[serde(deserialize_with = "null_as_nan")]
    pub harmless_norm: f64,
    /// ‖mean(harmful) − mean(harmless)‖.
    #[serde(deserialize_with = "null_as_nan")]
    pub difference_norm: f64,
    /// That norm over the spread of the sets about their own means along the difference (pooled standard deviation).
    #[serde(deserialize_with = "null_as_nan")]
    pub signal_to_noise: f64,
}

/// All blocks, and where the two directions become one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// In order.
    pub blocks: Vec<BlockAnalysis>,
    /// The bound of [`Analysis::coincide_from`].
    pub coincide_at: f64,
    /// The first block from which on, to the last, `pc1_cosine` is at least that; none where the last one's is not.
    pub coincide_from: Option<usize>,
    /// Where the prompts lie, in the order of the blocks.
    pub scatter: Vec<Scatter>,
}

/// The prompts of one block on the first two principal components of both sets together, centred on their mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scatter {
    /// 0-based: its output.
    pub block: usize,
    /// The share of the variance that lies along the second component, 0 to 1.
    #[serde(deserialize_with = "null_as_nan")]
    pub pc2_variance: f64,
    /// Prompts that show the behaviour.
    pub harmful: Points,
    /// Prompts that do not.
    pub harmless: Points,
    /// The first again, with a direction erased.
    pub ablated: Option<Points>,
}

/// Coordinates, to four significant digits, of at most [`SHOWN`] prompts, evenly spaced over the set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Points {
    /// Along the first component.
    #[serde(deserialize_with = "nulls_as_nan")]
    pub pc1: Vec<f64>,
    /// Along the second.
    #[serde(deserialize_with = "nulls_as_nan")]
    pub pc2: Vec<f64>,
}

fn nulls_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let values: Vec<Option<f64>> = Deserialize::deserialize(deserializer)?;
    Ok(values.into_iter().map(|x| x.unwrap_or(f64::NAN)).collect())
}

/// The most prompts of a set in a [`Scatter`].
pub const SHOWN: usize = 128;

/// Analyses every block. Both sets need two prompts at least; `ablated` are the harmful ones with a direction erased,
/// which are shown and take no part in any figure.
///
/// # Panics
/// Where these are not of one model.
#[must_use]
pub fn analyze(harmful: &Rows, harmless: &Rows, ablated: Option<&Rows>, coincide_at: f64) -> Analysis {
    for other in [Some(harmless), ablated].into_iter().flatten() {
        assert_eq!((harmful.n_embd, harmful.blocks.len()), (other.n_embd, other.blocks.len()));
    }
    let one = |block: usize| {
        of_block(block, &harmful.of(block), &harmless.of(block), ablated.map(|rows| rows.of(block)).as_ref())
    };
    let (blocks, scatter): (Vec<BlockAnalysis>, Vec<Scatter>) =
        (0..harmful.blocks.len()).into_par_iter().map(one).unzip();
    // NaN is not near.
    let near = blocks.iter().rev().take_while(|b| b.pc1_cosine >= coincide_at).count();
    let coincide_from = (near > 0).then(|| blocks.len() - near);
    Analysis { blocks, coincide_at, coincide_from, scatter }
}

fn of_block(
    block: usize,
    harmful: &Array2<f64>,
    harmless: &Array2<f64>,
    ablated: Option<&Array2<f64>>,
) -> (BlockAnalysis, Scatter) {
    let means = [mean(harmful), mean(harmless)];
    let difference = &means[0] - &means[1];
    let difference_norm = norm(&difference);
    let mut centred = ndarray::concatenate![Axis(0), *harmful, *harmless];
    let all = mean(&centred);
    centred -= &all;
    let total = centred.iter().map(|x| x * x).sum::<f64>();
    let mut pc1 = first_component(&centred);
    let along = pc1.dot(&difference);
    if along < 0.0 {
        pc1 = -pc1;
    }
    let projected = centred.dot(&pc1);
    let (a, b) = projected.view().split_at(Axis(0), harmful.nrows());
    // Within the sets: about each one's own mean.
    let unit = &difference / difference_norm;
    let spread = |rows: &Array2<f64>, mean: &Array1<f64>| {
        let at = mean.dot(&unit);
        rows.dot(&unit).iter().map(|x| (x - at).powi(2)).sum::<f64>()
    };
    let within = spread(harmful, &means[0]) + spread(harmless, &means[1]);
    let freedom = (centred.nrows() as f64 - 2.0).max(1.0);
    let pc2 = second_component(&centred, &pc1, &projected);
    let points = |rows: &Array2<f64>| Points::of(&(rows - &all), [&pc1, &pc2]);
    let scatter = Scatter {
        block,
        pc2_variance: centred.dot(&pc2).mapv(|x| x * x).sum() / total,
        harmful: points(harmful),
        harmless: points(harmless),
        ablated: ablated.map(points),
    };
    let analysis = BlockAnalysis {
        block,
        pc1_variance: projected.dot(&projected) / total,
        pc1_auc: auc(&a, &b),
        pc1_cosine: along.abs() / difference_norm,
        difference_auc: crossed_auc(harmful, harmless),
        harmful_norm: norm(&means[0]),
        harmless_norm: norm(&means[1]),
        difference_norm,
        signal_to_noise: difference_norm / (within / freedom).sqrt(),
    };
    (analysis, scatter)
}

impl Points {
    /// Of rows (n × n_embd, centred).
    fn of(rows: &Array2<f64>, components: [&Array1<f64>; 2]) -> Self {
        let n = rows.nrows();
        let shown = n.min(SHOWN);
        let along = |component: &Array1<f64>| -> Vec<f64> {
            (0..shown).map(|i| short(rows.row(i * n / shown).dot(component))).collect()
        };
        let [pc1, pc2] = components.map(along);
        Self { pc1, pc2 }
    }
}

/// To four significant digits.
fn short(x: f64) -> f64 {
    format!("{x:.3e}").parse().unwrap_or(f64::NAN)
}

/// The unit vector along which rows (centred, n × n_embd) vary most once `first` is taken out, on which they project as
/// `along`. Its largest element is positive.
fn second_component(rows: &Array2<f64>, first: &Array1<f64>, along: &Array1<f64>) -> Array1<f64> {
    let column = along.view().insert_axis(Axis(1));
    let second = first_component(&(rows - &column.dot(&first.view().insert_axis(Axis(0)))));
    let largest = second.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap_or(0.0);
    second * if largest < 0.0 { -1.0 } else { 1.0 }
}

fn mean(rows: &Array2<f64>) -> Array1<f64> {
    rows.sum_axis(Axis(0)) / rows.nrows() as f64
}

fn norm(x: &Array1<f64>) -> f64 {
    x.dot(x).sqrt()
}

/// The unit vector along which rows (centred, n × n_embd) vary most, by power iteration on XᵀX; zero where they do not vary.
fn first_component(rows: &Array2<f64>) -> Array1<f64> {
    let mut random = SplitMix64(1);
    let mut v: Array1<f64> = (0..rows.ncols()).map(|_| random.unit() - 0.5).collect();
    v /= norm(&v);
    // Two components of nearly the same size part slowly; then either is as good an answer.
    for _ in 0..1000 {
        let mut next = rows.t().dot(&rows.dot(&v));
        let length = norm(&next);
        if length == 0.0 || !length.is_finite() {
            return next * 0.0;
        }
        next /= length;
        let moved = norm(&(&next - &v));
        v = next;
        if moved < 1e-10 {
            break;
        }
    }
    v
}

/// The chance that one of `a` is above one of `b`, ties half (Mann & Whitney 1947); NaN where one is.
fn auc(a: &ArrayView1<'_, f64>, b: &ArrayView1<'_, f64>) -> f64 {
    if a.iter().chain(b.iter()).any(|x| x.is_nan()) {
        return f64::NAN;
    }
    let mut sorted = b.to_vec();
    sorted.sort_by(f64::total_cmp);
    let wins = |x: &f64| {
        let (below, to) = (sorted.partition_point(|b| b < x), sorted.partition_point(|b| b <= x));
        (below + to) as f64 / 2.0
    };
    a.iter().map(wins).sum::<f64>() / (a.len() * b.len()) as f64
}

/// The AUC along the difference in means, of each half of the prompts along the difference of the other half: a
/// difference tells apart the very prompts it was made of, whatever they are.
fn crossed_auc(harmful: &Array2<f64>, harmless: &Array2<f64>) -> f64 {
    let half = |rows: &Array2<f64>, which: usize| {
        let indices: Vec<usize> = (which..rows.nrows()).step_by(2).collect();
        rows.select(Axis(0), &indices)
    };
    let halves = [0, 1].map(|which| {
        let difference = mean(&half(harmful, 1 - which)) - mean(&half(harmless, 1 - which));
        let along = |rows: &Array2<f64>| half(rows, which).dot(&difference);
        auc(&along(harmful).view(), &along(harmless).view())
    });
    halves.iter().sum::<f64>() / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of `n_embd` noise, their first element moved by `shift`.
    fn noise(n: usize, n_embd: usize, shift: f32, seed: u64) -> Vec<f32> {
        let mut random = SplitMix64(seed);
        let element = |i: usize| if i.is_multiple_of(n_embd) { shift } else { 0.0 };
        (0..n * n_embd).map(|i| element(i) + (random.unit() - 0.5) as f32).collect()
    }

    /// The largest eigenvalue's share and its vector, by rotations (Jacobi 1846) of XᵀX.
    fn by_rotations(x: &Array2<f64>) -> (f64, Array1<f64>) {
        let mut a = x.t().dot(x);
        let n = a.nrows();
        let mut vectors = Array2::<f64>::eye(n);
        for _ in 0..40 {
            for p in 0..n {
                for q in p + 1..n {
                    if a[[p, q]] == 0.0 {
                        continue;
                    }
                    let angle = 0.5 * (2.0 * a[[p, q]]).atan2(a[[q, q]] - a[[p, p]]);
                    let mut turn = Array2::<f64>::eye(n);
                    (turn[[p, p]], turn[[q, q]]) = (angle.cos(), angle.cos());
                    (turn[[p, q]], turn[[q, p]]) = (angle.sin(), -angle.sin());
                    a = turn.t().dot(&a).dot(&turn);
                    vectors = vectors.dot(&turn);
                }
            }
        }
        let values = a.diag().to_owned();
        let largest = (0..n).max_by(|i, j| values[*i].total_cmp(&values[*j])).unwrap();
        (values[largest] / values.sum(), vectors.column(largest).to_owned())
    }

    #[test]
    fn the_first_component_is_that_of_jacobis_rotations() {
        for (seed, n, n_embd) in [(1, 12, 5), (2, 5, 16), (3, 40, 8)] {
            let rows = Rows::new(n_embd, vec![noise(n, n_embd, 0.0, seed)]);
            let mut centred = rows.of(0);
            centred -= &mean(&rows.of(0));
            let (share, vector) = by_rotations(&centred);
            let found = first_component(&centred);
            let cosine = found.dot(&vector);
            assert!((cosine.abs() - 1.0).abs() < 1e-8, "{n} x {n_embd}: {cosine}");
            let projected = centred.dot(&found);
            let total: f64 = centred.iter().map(|x| x * x).sum();
            assert!((projected.dot(&projected) / total - share).abs() < 1e-9);
        }
    }

    #[test]
    fn sets_far_apart_are_told_apart_and_coincide() {
        let far = |shift| Rows::new(6, vec![noise(20, 6, 0.0, 4), noise(20, 6, shift, 5)]);
        let analysis =
            analyze(&far(9.0), &Rows::new(6, vec![noise(30, 6, 0.0, 6), noise(30, 6, 0.0, 7)]), None, 0.9);
        let last = analysis.blocks[1];
        assert_eq!((analysis.coincide_from, last.pc1_auc, last.difference_auc), (Some(1), 1.0, 1.0));
        assert!(last.pc1_cosine > 0.99 && last.pc1_variance > 0.9 && last.signal_to_noise > 10.0, "{last:?}");
        assert!((last.difference_norm - 9.0).abs() < 0.3, "{last:?}");
        let first = analysis.blocks[0];
        assert!(first.difference_auc < 0.8 && first.pc1_variance < 0.5, "noise tells nothing: {first:?}");
    }

    #[test]
    fn points_lie_where_both_sets_vary_most() {
        let rows = |shift, seed| Rows::new(3, vec![noise(300, 3, shift, seed)]);
        let (harmful, harmless, ablated) = (rows(9.0, 1), rows(0.0, 2), rows(0.0, 3));
        let analysis = analyze(&harmful, &harmless, Some(&ablated), 0.9);
        let Scatter { harmful, harmless, ablated, pc2_variance, .. } = &analysis.scatter[0];
        let ablated = ablated.as_ref().unwrap();
        assert_eq!([harmful, harmless, ablated].map(|p| (p.pc1.len(), p.pc2.len())), [(SHOWN, SHOWN); 3]);
        assert!(harmful.pc1.iter().all(|x| (3.5..5.5).contains(x)), "{harmful:?}");
        assert!(harmless.pc1.iter().chain(&ablated.pc1).all(|x| (-5.5..-3.5).contains(x)), "{harmless:?}");
        assert!(harmful.pc2.iter().all(|y| y.abs() < 1.0), "{harmful:?}");
        assert!(analysis.blocks[0].pc1_variance + pc2_variance < 1.0 && *pc2_variance > 0.001);
        assert_eq!((short(12345.6), short(-0.012_345_6)), (12350.0, -0.01235));
    }

    #[test]
    fn coinciding_lasts_to_the_end() {
        // Block 0 coincides, block 1 does not.
        let harmful = Rows::new(6, vec![noise(20, 6, 9.0, 4), noise(20, 6, 0.0, 5)]);
        let harmless = Rows::new(6, vec![noise(20, 6, 0.0, 6), noise(20, 6, 0.0, 7)]);
        assert_eq!(analyze(&harmful, &harmless, None, 0.9).coincide_from, None);
    }

    #[test]
    fn the_auc_counts_pairs() {
        let auc =
            |a: &[f64], b: &[f64]| auc(&Array1::from(a.to_vec()).view(), &Array1::from(b.to_vec()).view());
        assert_eq!(auc(&[2.0, 3.0], &[0.0, 1.0]), 1.0);
        assert_eq!(auc(&[0.0], &[1.0, 2.0]), 0.0);
        assert_eq!(auc(&[1.0, 1.0], &[1.0]), 0.5);
        assert_eq!(auc(&[0.0, 2.0, 4.0], &[1.0, 2.0]), (0.0 + 1.5 + 2.0) / 6.0);
        assert!(auc(&[f64::NAN], &[1.0]).is_nan());
    }

    #[test]
    fn rows_that_never_vary_have_no_component() {
        let still = Rows::new(4, vec![vec![1.0; 12]]);
        let block = analyze(&still, &still, None, 0.9).blocks[0];
        assert!(block.pc1_variance.is_nan() && block.pc1_cosine.is_nan(), "{block:?}");
        assert_eq!((block.difference_norm, block.harmful_norm), (0.0, 2.0));
    }
}
