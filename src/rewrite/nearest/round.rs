//! Rows of blocks, rounded where that can change a code.
#![forbid(unsafe_code)]

use super::Saturation;
use crate::quant::Grid;

/// A tie to within this, relative, is a tie.
const TIE: f64 = 1e-12;

/// Steps are counted up to here, in either direction: more than any grid has.
const MANY: f64 = 512.0;

/// Added to a number of steps it leaves the nearest whole number, ties to the even one, in the lowest bits.
const WHOLE: f64 = 6_755_399_441_055_744.0; // 1.5 · 2^52

/// Moves rows by −Σ_k factor_k · vector_k on their own grids.
pub(super) struct Rounder<'a> {
    grid: &'a Grid,
    /// k × n.
    vectors: &'a [Vec<f64>],
    /// k × groups: the largest |vector| in each group.
    reach: Vec<Vec<f64>>,
}

/// What rounding added up to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    /// ‖Ŵ − W'‖² less ‖W − W'‖².
    pub off: f64,
    pub saturation: Saturation,
}

/// Room to work in, and the tally of the rows rounded so far.
pub(super) struct Work {
    scales: Vec<f32>,
    offsets: Vec<f32>,
    codes: [u8; 256],
    new: [u8; 256],
    clipped: [bool; 256],
    edit: [f64; 256],
    change: [f64; 256],
    values: [[f32; 256]; 2],
    pub tally: Tally,
}

impl Work {
    /// For rows of `n`.
    pub(super) fn new(grid: &Grid, n: usize) -> Self {
        Self {
            scales: vec![0.0; n / grid.group()],
            offsets: vec![0.0; n / grid.group()],
            codes: [0; 256],
            new: [0; 256],
            clipped: [false; 256],
            edit: [0.0; 256],
            change: [0.0; 256],
            values: [[0.0; 256]; 2],
            tally: Tally::default(),
        }
    }
}

impl<'a> Rounder<'a> {
    pub(super) fn new(grid: &'a Grid, vectors: &'a [Vec<f64>]) -> Self {
        let largest = |group: &[f64]| group.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let reach = vectors.iter().map(|v| v.chunks(grid.group()).map(largest).collect()).collect();
        Self { grid, vectors, reach }
    }

    /// Rounds one row in place. `moved` hears of each group with a moved code: its first column and Ŵ − W.
    pub(super) fn row(
        &self,
        row: &mut [u8],
        factors: &[f64],
        work: &mut Work,
        mut moved: impl FnMut(usize, &[f64]),
    ) {
        if factors.iter().all(|factor| *factor == 0.0) {
            return;
        }
        let grid = self.grid;
        let groups = grid.block() / grid.group();
        grid.scales(row, &mut work.scales, &mut work.offsets);
        // Half a step, less what rounding can do to a sum of products.
        let half = 0.5 * (1.0 - TIE) * f64::from(grid.smallest_gap());
        for (b, block) in row.chunks_exact_mut(grid.block_bytes()).enumerate() {
            let (mut read, mut changed) = (false, false);
            for g in b * groups..(b + 1) * groups {
                let reach: f64 = factors.iter().zip(&self.reach).map(|(f, reach)| f.abs() * reach[g]).sum();
                if reach <= half * f64::from(work.scales[g].abs()) {
                    continue;
                }
                if !read {
                    grid.codes(block, &mut work.codes[..grid.block()]);
                    read = true;
                }
                if self.group(g, g - b * groups, factors, work) {
                    changed = true;
                    moved(g * grid.group(), &work.change[..grid.group()]);
                }
            }
            if changed {
                grid.pack(&work.codes[..grid.block()], block);
            }
        }
    }

    /// Rounds group `g` of the row, `place` of its block, in `work.codes`. True when a code moved; then `work.change`
    /// is Ŵ − W.
    fn group(&self, g: usize, place: usize, factors: &[f64], work: &mut Work) -> bool {
        let n = self.grid.group();
        let (scale, offset) = (work.scales[g], work.offsets[g]);
        let codes = &mut work.codes[place * n..(place + 1) * n];
        let (new, clipped, edit, change) =
            (&mut work.new[..n], &mut work.clipped[..n], &mut work.edit[..n], &mut work.change[..n]);
        edit.fill(0.0);
        for (factor, vector) in factors.iter().zip(self.vectors) {
            for (edit, x) in edit.iter_mut().zip(&vector[g * n..]) {
                *edit -= factor * x;
            }
        }
        if scale == 0.0 {
            for edit in edit.iter().filter(|edit| **edit != 0.0) {
                work.tally.saturation.add(Saturation { elements: 1, left: edit * edit });
            }
            return false;
        }
        if self.grid.is_uniform() {
            self.uniform(codes, edit, scale, new, clipped);
        } else {
            self.other(codes, edit, scale, new, clipped);
        }
        let any_clipped = clipped.iter().any(|clipped| *clipped);
        let changed = new != codes;
        if !any_clipped && !changed {
            return false;
        }
        let [to, from] = &mut work.values;
        self.grid.values(scale, offset, new, &mut to[..n]);
        self.grid.values(scale, offset, codes, &mut from[..n]);
        for ((change, to), from) in change.iter_mut().zip(to).zip(from) {
            *change = f64::from(*to) - f64::from(*from);
        }
        if any_clipped {
            for ((change, edit), _) in
                change.iter().zip(&*edit).zip(&*clipped).filter(|(_, clipped)| **clipped)
            {
                work.tally.saturation.add(Saturation { elements: 1, left: (change - edit).powi(2) });
            }
        }
        if changed {
            work.tally.off +=
                change.iter().zip(edit).map(|(change, edit)| change * (change - 2.0 * *edit)).sum::<f64>();
            codes.copy_from_slice(new);
        }
        changed
    }

    /// Codes that lie nearest when all steps are alike.
    fn uniform(&self, codes: &[u8], edit: &[f64], scale: f32, new: &mut [u8], clipped: &mut [bool]) {
        let per_step = (1.0 - TIE) / (f64::from(scale) * f64::from(self.grid.smallest_gap()));
        let last = self.grid.levels().len() as i32 - 1;
        for (((new, clipped), code), edit) in new.iter_mut().zip(clipped).zip(codes).zip(edit) {
            let steps = (edit * per_step).clamp(-MANY, MANY) + WHOLE;
            let code = i32::from(*code) + steps.to_bits() as i32;
            let kept = code.clamp(0, last);
            (*new, *clipped) = (kept as u8, kept != code);
        }
    }

    /// Codes that lie nearest on any grid.
    fn other(&self, codes: &[u8], edit: &[f64], scale: f32, new: &mut [u8], clipped: &mut [bool]) {
        let per_level = (1.0 - TIE) / f64::from(scale);
        let levels = self.grid.levels();
        let level = |code: usize| f64::from(levels[code]);
        // A power of two as scale can make the outer levels infinite.
        let last = levels.iter().rposition(|level| (scale * level).is_finite()).unwrap_or(0);
        let first = levels.iter().position(|level| (scale * level).is_finite()).unwrap_or(0);
        let reach = 0.5 * f64::from(self.grid.smallest_gap());
        for (((new, clipped), code), edit) in new.iter_mut().zip(clipped).zip(codes).zip(edit) {
            (*new, *clipped) = (*code, false);
            let by = edit * per_level;
            if by.abs() > reach {
                let mut at = usize::from(*code);
                let target = level(at) + by;
                while at < last && target - level(at) > level(at + 1) - target {
                    at += 1;
                }
                while at > first && level(at) - target > target - level(at - 1) {
                    at -= 1;
                }
                *new = at as u8;
                *clipped = (at == last && 2.0 * (target - level(at)) > level(at) - level(at - 1))
                    || (at == first && 2.0 * (level(at) - target) > level(at + 1) - level(at));
            }
        }
    }
}
