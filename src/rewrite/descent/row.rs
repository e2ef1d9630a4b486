//! One row's steps within a batch of columns.
#![forbid(unsafe_code)]
// What `wide` is to compile for the processor's vectors must be inlined into it.
#![allow(clippy::inline_always)]

use crate::quant::{Grid, wide};

/// Columns taken together.
pub(super) const BATCH: usize = 64;

/// One value a column of the batch; columns that are not there can take no step.
type Lanes = [f32; BATCH];

/// What a step at a code costs in levels: up and down, 0 where there is none.
#[derive(Debug)]
pub(super) struct Gaps {
    up: [f32; 256],
    down: [f32; 256],
}

impl Gaps {
    pub fn of(grid: &Grid) -> Self {
        let (mut up, mut down) = ([0.0; 256], [0.0; 256]);
        for (i, pair) in grid.levels().windows(2).enumerate() {
            up[i] = pair[1] - pair[0];
            down[i + 1] = pair[0] - pair[1];
        }
        Self { up, down }
    }
}

/// The state of a row at a batch: what a step s at column c does to J is s (2 g + s h).
#[derive(Debug)]
pub(super) struct Row {
    pub codes: [u8; BATCH],
    pub scale: Lanes,
    /// g.
    pub gradient: Lanes,
    /// h over the weight.
    pub curvature: Lanes,
    /// 1 + μ Σₖ Rₖᵢ².
    pub weight: f32,
    up: Lanes,
    down: Lanes,
    /// Σ s H: what the steps changed in E H at the batch.
    pub shift: Lanes,
    /// Column and size of each step taken.
    pub steps: Vec<(usize, f32)>,
    pub gain: f64,
}

impl Row {
    pub fn new() -> Self {
        Self {
            codes: [0; BATCH],
            scale: [0.0; BATCH],
            gradient: [0.0; BATCH],
            curvature: [0.0; BATCH],
            weight: 1.0,
            up: [0.0; BATCH],
            down: [0.0; BATCH],
            shift: [0.0; BATCH],
            steps: Vec::new(),
            gain: 0.0,
        }
    }

    /// Takes the best step as long as one lowers J; with `pairs`, then the best two steps that do so together. `block`
    /// is H at the batch, [`BATCH`] × [`BATCH`].
    pub fn descend(&mut self, gaps: &Gaps, block: &[f32], pairs: bool) {
        self.shift = [0.0; BATCH];
        self.steps.clear();
        self.gain = 0.0;
        for c in 0..BATCH {
            self.reach(gaps, c);
        }
        // Each step lowers J by more than rounding could; the bound is against surprises.
        for _ in 0..4 * BATCH {
            let best = wide(
                #[inline(always)]
                || self.best(),
            );
            match best {
                Some((c, upward)) => self.take(gaps, block, c, upward),
                None if pairs => {
                    let pair = wide(
                        #[inline(always)]
                        || self.best_pair(block),
                    );
                    let Some(pair) = pair else { return };
                    for (c, upward) in pair {
                        self.take(gaps, block, c, upward);
                    }
                }
                None => return,
            }
        }
    }

    /// The step that lowers J most.
    #[inline(always)]
    fn best(&self) -> Option<(usize, bool)> {
        let (up, down) = (self.costs(&self.up), self.costs(&self.down));
        let mut least = [0f32; 8];
        for (up, down) in up.as_chunks::<8>().0.iter().zip(down.as_chunks::<8>().0) {
            for i in 0..8 {
                least[i] = least[i].min(up[i]).min(down[i]);
            }
        }
        let least = least.iter().copied().fold(0.0, f32::min);
        // Most rows have none.
        if least >= 0.0 {
            return None;
        }
        let at = |costs: &Lanes| costs.iter().position(|cost| *cost == least);
        at(&up).map(|c| (c, true)).or_else(|| at(&down).map(|c| (c, false)))
    }

    /// What each step adds to J, a little more than it does: rounding must not make it a gain.
    #[inline(always)]
    fn costs(&self, step: &Lanes) -> Lanes {
        let mut costs = [0.0; BATCH];
        for c in 0..BATCH {
            let s = step[c];
            costs[c] = s * (2.0 * self.gradient[c] + 1.0001 * s * self.weight * self.curvature[c]);
        }
        costs
    }

    /// The two steps that lower J most together, where neither does alone.
    #[inline(always)]
    fn best_pair(&self, block: &[f32]) -> Option<[(usize, bool); 2]> {
        let (up, down) = (self.costs(&self.up), self.costs(&self.down));
        let mut best = (0.0, None);
        for c in 0..BATCH {
            for (first, s, upward) in [(up[c], self.up[c], true), (down[c], self.down[c], false)] {
                if s == 0.0 {
                    continue;
                }
                let cross = 2.0 * s * self.weight;
                let h = &block[c * BATCH..][..BATCH];
                let mut both = [0f32; BATCH];
                for k in 0..BATCH {
                    let (u, d) = (self.up[k], self.down[k]);
                    // A column without that step costs nothing and changes nothing: not a pair.
                    let u = if u == 0.0 { f32::MAX } else { up[k] + u * cross * h[k] };
                    let d = if d == 0.0 { f32::MAX } else { down[k] + d * cross * h[k] };
                    both[k] = u.min(d);
                }
                both[c] = f32::MAX;
                let mut least = [f32::MAX; 8];
                for lanes in both.as_chunks::<8>().0 {
                    for i in 0..8 {
                        least[i] = least[i].min(lanes[i]);
                    }
                }
                let least = least.iter().copied().fold(f32::MAX, f32::min);
                if first + least < best.0 - 1e-4 * first.abs()
                    && let Some(k) = both.iter().position(|cost| *cost == least)
                {
                    let up = self.up[k] != 0.0 && up[k] + self.up[k] * cross * h[k] == least;
                    best = (first + least, Some([(c, upward), (k, up)]));
                }
            }
        }
        best.1
    }

    fn take(&mut self, gaps: &Gaps, block: &[f32], c: usize, upward: bool) {
        let s = if upward { self.up[c] } else { self.down[c] };
        self.gain -= f64::from(s) * f64::from(2.0 * self.gradient[c] + s * self.weight * self.curvature[c]);
        let h = &block[c * BATCH..][..BATCH];
        for ((shift, gradient), h) in self.shift.iter_mut().zip(&mut self.gradient).zip(h) {
            *shift += s * h;
            *gradient += s * self.weight * h;
        }
        self.codes[c] = if upward { self.codes[c] + 1 } else { self.codes[c] - 1 };
        self.steps.push((c, s));
        self.reach(gaps, c);
    }

    /// The steps that column c can take from its code.
    #[inline]
    fn reach(&mut self, gaps: &Gaps, c: usize) {
        let code = usize::from(self.codes[c]);
        (self.up[c], self.down[c]) = (self.scale[c] * gaps.up[code], self.scale[c] * gaps.down[code]);
    }
}
