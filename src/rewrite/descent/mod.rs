//! Activation-aware rounding: descent over the codes of a quantized matrix and the scales of its blocks.
//!
//! W is rows × n as it lies in the file, W' the ideal edit, Ŵ what codes and scales say, E = Ŵ − W'. Minimised is
//!
//! ```text
//! J = tr[(I + μ RᵀR) E H Eᵀ]
//! ```
//!
//! where H ([`Metric`]) is the second moment of the inputs, so that E H Eᵀ is the error of the output on inputs that
//! occur, and μ weighs what is left along the directions R (k × rows) more. A step s at (i, j) changes J by s (2 g + s h)
//! with g = (E H + μ Rᵀ R E H)ᵢⱼ and h = (1 + μ Σₖ Rₖᵢ²) Hⱼⱼ.
//!
//! Chosen: columns in batches. E H at a batch's columns is one matrix product; within the batch each row then takes its
//! best steps, single or in pairs, the effects on the batch kept up to date through the batch's own block of H, and on
//! the other rows through R E H. Rows follow one another, so each sees what those before it left along R, and a step can
//! only lower J. Between sweeps, what a block's elements share is fitted too: where the edit is far below a step of the
//! codes, the half-precision scale is the finer thing to move.
//! Rejected: a column at a time, which is the same descent at the speed of memory; rows in parallel, which see the same
//! leak and overshoot together; steps that raise J at first (annealing), which cost three times the sweeps for 3 %.
#![forbid(unsafe_code)]

mod metric;
mod row;
#[cfg(test)]
mod tests;
use row::{BATCH, Gaps, Row};

pub(in crate::rewrite) use metric::Metric;

use crate::quant::Grid;
use crate::random::SplitMix64;

/// Columns that stay neighbours in a batch: the codes of a row's run share a line of cache.
const RUN: usize = 16;

/// How the descent goes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// μ: what is left along the directions counts 1 + μ times.
    pub mu: f32,
    /// The same for embeddings, whose rows are vectors of the stream: I + μ RᵀR.
    pub mu_rows: f32,
    /// δ: added to the diagonal of H, whose mean is 1. Guards against fitting the sample.
    pub damping: f32,
    /// The most sweeps over the columns.
    pub sweeps: usize,
    /// The first sweep that looks for pairs of steps, too.
    pub pairs_from: usize,
    /// Fit the scales before every so many-th sweep; 0 never.
    pub refit_every: usize,
    /// Stop when a sweep lowers J by less than this part of it.
    pub tolerance: f64,
}

impl Settings {
    /// Elements of a matrix from which on a sweep takes seconds, and the sweeps that such a matrix gets.
    const LARGE: (usize, usize) = (1 << 24, 3);

    /// These, for a matrix of so many elements: after three sweeps of a large one, the others bring a hundredth.
    #[must_use]
    pub fn for_size(self, elements: usize) -> Self {
        let (large, sweeps) = Self::LARGE;
        Self { sweeps: if elements < large { self.sweeps } else { self.sweeps.min(sweeps) }, ..self }
    }
}

impl Default for Settings {
    /// What measured best on held-out activations (`cargo bench --bench rounding`).
    fn default() -> Self {
        Self {
            mu: 1.0,
            mu_rows: 1.0,
            damping: 0.1,
            sweeps: 24,
            pairs_from: 4,
            refit_every: 3,
            tolerance: 0.002,
        }
    }
}

/// A matrix under descent, rows × n.
#[derive(Debug)]
pub(in crate::rewrite) struct Descent<'a> {
    pub grid: &'a Grid,
    pub metric: &'a Metric,
    /// R, k × rows; empty where rows stand for themselves.
    pub along: &'a [Vec<f32>],
    pub mu: f32,
    /// The blocks whose scales the codes stand on; the codes in them are not kept up to date.
    pub blocks: &'a mut [u8],
    /// rows × n.
    pub codes: &'a mut [u8],
    /// rows × n / group, each.
    pub scales: &'a mut [f32],
    pub offsets: &'a mut [f32],
    /// E, rows × n.
    pub error: &'a mut [f32],
    /// E's [images](Metric::image), rows × rank, kept up to date.
    pub image: Vec<f32>,
}

/// What a sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::rewrite) struct Sweep {
    /// Codes or scales moved.
    pub moved: usize,
    /// By how much J fell.
    pub gain: f64,
}

impl Descent<'_> {
    /// Sweeps until little comes of it; returns J before and after.
    pub fn run(&mut self, settings: &Settings, random: &mut SplitMix64) -> [f64; 2] {
        let before = self.objective();
        let mut left = before;
        for sweep in 0..settings.sweeps {
            let mut gain = 0.0;
            if settings.refit_every > 0 && sweep % settings.refit_every == 0 {
                gain += self.refit().gain;
            }
            gain += self.sweep(random, sweep >= settings.pairs_from).gain;
            left -= gain;
            if gain <= settings.tolerance * left {
                // Singles have little left; pairs may.
                if sweep >= settings.pairs_from || settings.pairs_from >= settings.sweeps {
                    break;
                }
            }
        }
        [before, left]
    }

    /// J.
    pub fn objective(&self) -> f64 {
        let n = self.metric.n();
        let rank = self.metric.rank();
        let rows = self.error.chunks_exact(n).enumerate();
        let own: f64 = rows.map(|(i, e)| self.metric.norm(&self.image[i * rank..][..rank], e)).sum();
        let leaks = self.along.iter().map(|r| weighted_rows(r, self.error, n));
        let along: f64 = leaks.map(|u| self.metric.norm(&self.metric.image(&u), &u)).sum();
        own + f64::from(self.mu) * along
    }

    /// Visits every column once, in random order.
    pub fn sweep(&mut self, random: &mut SplitMix64, pairs: bool) -> Sweep {
        let (n, group, rank) = (self.metric.n(), self.grid.group(), self.metric.rank());
        let rows = self.error.len() / n;
        let gaps = Gaps::of(self.grid);
        debug_assert!(group.is_multiple_of(RUN), "a run has one scale, and a row is whole runs");
        let mut runs: Vec<usize> = (0..n).step_by(RUN).collect();
        random.shuffle(&mut runs);
        let (mut sum, mut row) = (Sweep::default(), Row::new());
        for runs in runs.chunks(BATCH / RUN) {
            let columns: Vec<usize> = runs.iter().flat_map(|&j| j..j + RUN).collect();
            let b = columns.len();
            let block = padded_block(&self.metric.block(&columns), b);
            let mut at = vec![0.0; rows * b];
            for (at, e) in at.chunks_exact_mut(b).zip(self.error.chunks_exact(n)) {
                at.as_chunks_mut().0.iter_mut().zip(runs).for_each(|(at, &j)| *at = run(e, j));
            }
            let mut gradient = vec![0.0; rows * b];
            self.metric.gradient(&self.image, &columns, &at, &mut gradient);
            // R E H at the batch.
            let mut along: Vec<Vec<f32>> =
                self.along.iter().map(|r| weighted_rows(r, &gradient, b)).collect();
            row.curvature = [0.0; BATCH];
            row.scale = [0.0; BATCH];
            row.gradient = [0.0; BATCH];
            for (c, h) in block.chunks_exact(BATCH).enumerate().take(b) {
                row.curvature[c] = h[c];
                if pairs {
                    let others = h.iter().enumerate().filter(|(k, _)| *k != c);
                    row.widest[c] = others.fold(0.0, |most, (_, h)| most.max(h.abs()));
                }
            }
            for i in 0..rows {
                let codes = &self.codes[i * n..][..n];
                let scales = &self.scales[i * (n / group)..][..n / group];
                let lanes = row.codes.as_chunks_mut().0.iter_mut().zip(row.scale.as_chunks_mut::<RUN>().0);
                for ((to, scale), &j) in lanes.zip(runs) {
                    (*to, *scale) = (run(codes, j), [scales[j / group]; RUN]);
                }
                row.gradient[..b].copy_from_slice(&gradient[i * b..][..b]);
                row.weight = 1.0;
                for (l, r) in along.iter().zip(self.along) {
                    let c = self.mu * r[i];
                    row.weight += c * r[i];
                    row.gradient.iter_mut().zip(l).for_each(|(g, l)| *g += c * l);
                }
                row.descend(&gaps, &block, pairs);
                sum.gain += row.gain;
                sum.moved += row.steps.len();
                for &(c, s) in &row.steps {
                    let j = columns[c];
                    self.error[i * n + j] += s;
                    self.codes[i * n + j] = row.codes[c];
                    self.metric.step(&mut self.image[i * rank..][..rank], j, s);
                }
                if !row.steps.is_empty() {
                    for (l, r) in along.iter_mut().zip(self.along) {
                        l.iter_mut().zip(&row.shift).for_each(|(l, d)| *l += r[i] * d);
                    }
                }
            }
        }
        sum
    }

    /// Fits what a block's elements share, its scale and its offset, block by block.
    pub fn refit(&mut self) -> Sweep {
        let (n, b, rank) = (self.metric.n(), self.grid.block(), self.metric.rank());
        let rows = self.error.len() / n;
        let mut leak: Vec<Vec<f32>> = self.along.iter().map(|r| weighted_rows(r, self.error, n)).collect();
        let mut leak_image: Vec<Vec<f32>> = leak.iter().map(|u| self.metric.image(u)).collect();
        let mut sum = Sweep::default();
        for first in (0..n).step_by(b) {
            for field in 0..self.grid.n_shared() {
                // What each row would gain if the field were twice itself; it depends on no other row.
                let v = self.shared(first, field);
                let product = self.metric.product(&v, first, b);
                for i in 0..rows {
                    let v = &v[i * b..][..b];
                    let product = &product[i * rank..][..rank];
                    let e = &self.error[i * n + first..][..b];
                    let mut g = self.metric.inner(product, first, v, &self.image[i * rank..][..rank], e);
                    let mut weight = 1.0;
                    for ((u, ui), r) in leak.iter().zip(&leak_image).zip(self.along) {
                        let c = f64::from(self.mu * r[i]);
                        g += c * self.metric.inner(product, first, v, ui, &u[first..][..b]);
                        weight += c * f64::from(r[i]);
                    }
                    let h = weight * self.metric.square(product, first, v);
                    let Some((t, gain)) = self.stretch(i * n + first, field, g, h) else { continue };
                    self.error[i * n + first..][..b].iter_mut().zip(v).for_each(|(e, v)| *e += t * v);
                    self.metric.stretch(&mut self.image[i * rank..][..rank], product, first, v, t);
                    for ((u, ui), r) in leak.iter_mut().zip(&mut leak_image).zip(self.along) {
                        let t = r[i] * t;
                        u[first..][..b].iter_mut().zip(v).for_each(|(u, v)| *u += t * v);
                        self.metric.stretch(ui, product, first, v, t);
                    }
                    sum.moved += 1;
                    sum.gain += gain;
                }
            }
        }
        sum
    }

    /// The part of Ŵ that the scale (field 0) or the offset (1) of the blocks at column `first` makes, rows × block.
    fn shared(&self, first: usize, field: usize) -> Vec<f32> {
        let (n, b, group) = (self.metric.n(), self.grid.block(), self.grid.group());
        let levels = self.grid.levels();
        let mut v = vec![0.0; self.codes.len() / n * b];
        for (i, v) in v.chunks_exact_mut(b).enumerate() {
            let at = i * n + first;
            for (g, (v, codes)) in v.chunks_mut(group).zip(self.codes[at..].chunks(group)).enumerate() {
                if field == 0 {
                    let scale = self.scales[at / group + g];
                    v.iter_mut().zip(codes).for_each(|(v, c)| *v = scale * levels[usize::from(*c)]);
                } else {
                    v.fill(self.offsets[at / group + g]);
                }
            }
        }
        v
    }

    /// Multiplies a field of the block at element `at` by what the gradient g and the curvature h ask for, as near as the
    /// field can be; returns the relative change and by how much J falls, or nothing where it would not.
    fn stretch(&mut self, at: usize, field: usize, g: f64, h: f64) -> Option<(f32, f64)> {
        /// The most that a scale changes at a time.
        const MOST: f64 = 0.25;
        let (b, group, size) = (self.grid.block(), self.grid.group(), self.grid.block_bytes());
        let wanted = -g / h;
        if !wanted.is_finite() {
            return None;
        }
        let block = &mut self.blocks[at / b * size..][..size];
        let kept = block.to_vec();
        let t = f64::from(self.grid.stretch(block, field, (1.0 + wanted.clamp(-MOST, MOST)) as f32)) - 1.0;
        let gain = -t * (2.0 * g + t * h);
        // Of what the change itself costs, a part is left to rounding.
        if gain <= 1e-4 * t * t * h {
            block.copy_from_slice(&kept);
            return None;
        }
        let groups = at / group..(at + b) / group;
        self.grid.scales(block, &mut self.scales[groups.clone()], &mut self.offsets[groups]);
        Some((t as f32, gain))
    }
}

/// The run of a row that begins at column j.
fn run<T: Copy>(row: &[T], j: usize) -> [T; RUN] {
    *row[j..].first_chunk().expect("a row is whole runs")
}

/// H of a batch that may be narrower than [`BATCH`], zeros around it.
fn padded_block(block: &[f32], b: usize) -> Vec<f32> {
    let mut padded = vec![0.0; BATCH * BATCH];
    for (to, from) in padded.chunks_exact_mut(BATCH).zip(block.chunks_exact(b)) {
        to[..b].copy_from_slice(from);
    }
    padded
}

/// Σᵢ rᵢ xᵢ over the rows of x, rows × n; summed in f64.
fn weighted_rows(r: &[f32], x: &[f32], n: usize) -> Vec<f32> {
    let mut sum = vec![0f64; n];
    for (r, row) in r.iter().zip(x.chunks_exact(n)) {
        let r = f64::from(*r);
        sum.iter_mut().zip(row).for_each(|(s, x)| *s += r * f64::from(*x));
    }
    sum.into_iter().map(|x| x as f32).collect()
}
