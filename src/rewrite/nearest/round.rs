//! Rows of blocks, rounded where that can change a code.
#![forbid(unsafe_code)]
// Always, for `wide`.
#![allow(clippy::inline_always)]

use std::array;

use super::Saturation;
use crate::quant::{Grid, wide};

/// Elements looked at together: every group is a whole number of these.
pub(super) const PIECE: usize = 16;

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
    vectors: Vec<&'a [[f64; PIECE]]>,
    /// k × pieces: the largest |vector| in each.
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
    /// As far as any element of a piece can be asked to move.
    reach: Vec<f64>,
    codes: [u8; 256],
    pub tally: Tally,
}

impl Work {
    /// For rows of `n`.
    pub(super) fn new(grid: &Grid, n: usize) -> Self {
        Self {
            scales: vec![0.0; n / grid.group()],
            offsets: vec![0.0; n / grid.group()],
            reach: vec![0.0; n / PIECE],
            codes: [0; 256],
            tally: Tally::default(),
        }
    }
}

/// Codes of a piece, before and after, and whether they lie at an end with their W' beyond.
struct Rounded {
    new: [u8; PIECE],
    clipped: [bool; PIECE],
}

impl<'a> Rounder<'a> {
    pub(super) fn new(grid: &'a Grid, vectors: &'a [Vec<f64>]) -> Self {
        let vectors: Vec<_> = vectors.iter().map(|v| v.as_chunks().0).collect();
        let largest = |piece: &[f64; PIECE]| piece.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let reach = vectors.iter().map(|v| v.iter().map(largest).collect()).collect();
        Self { grid, vectors, reach }
    }

    /// Rounds one row in place. `moved` hears of each piece with a moved code: its first column and Ŵ − W.
    pub(super) fn row(
        &self,
        row: &mut [u8],
        factors: &[f64],
        work: &mut Work,
        moved: impl FnMut(usize, &[f64; PIECE]),
    ) {
        if factors.iter().any(|factor| *factor != 0.0) {
            wide(
                #[inline(always)]
                || self.row_here(row, factors, work, moved),
            );
        }
    }

    #[inline(always)]
    fn row_here(
        &self,
        row: &mut [u8],
        factors: &[f64],
        work: &mut Work,
        mut moved: impl FnMut(usize, &[f64; PIECE]),
    ) {
        let Work { scales, offsets, reach, codes, tally } = work;
        let grid = self.grid;
        let codes = &mut codes[..grid.block()];
        grid.scales(row, scales, offsets);
        reach.fill(0.0);
        for (factor, vector) in factors.iter().zip(&self.reach) {
            for (reach, x) in reach.iter_mut().zip(vector) {
                *reach += factor.abs() * x;
            }
        }
        // Half a step, less what rounding can do to a sum of products.
        let half = 0.5 * (1.0 - TIE) * f64::from(grid.smallest_gap());
        let pieces = grid.group() / PIECE;
        let fields = scales.iter().zip(&*offsets).zip(reach.chunks_exact(pieces));
        let mut fields = fields.enumerate().map(|(g, ((scale, offset), reach))| (g, *scale, *offset, reach));
        for block in row.chunks_exact_mut(grid.block_bytes()) {
            let (mut read, mut changed) = (false, false);
            for (place, (g, scale, offset, reach)) in
                fields.by_ref().take(grid.block() / grid.group()).enumerate()
            {
                let step = half * f64::from(scale.abs());
                for (i, reach) in reach.iter().enumerate() {
                    if *reach <= step {
                        continue;
                    }
                    if !read {
                        grid.codes(block, codes);
                        read = true;
                    }
                    let codes = &mut codes.as_chunks_mut().0[place * pieces + i];
                    let piece = g * pieces + i;
                    if let Some(change) = self.piece(piece, factors, scale, offset, codes, tally) {
                        changed = true;
                        moved(piece * PIECE, &change);
                    }
                }
            }
            if changed {
                grid.pack(codes, block);
            }
        }
    }

    /// Rounds a piece of the row. Ŵ − W when a code moved.
    #[inline(always)]
    fn piece(
        &self,
        piece: usize,
        factors: &[f64],
        scale: f32,
        offset: f32,
        codes: &mut [u8; PIECE],
        tally: &mut Tally,
    ) -> Option<[f64; PIECE]> {
        let mut edit = [0.0; PIECE];
        for (factor, vector) in factors.iter().zip(&self.vectors) {
            let x = &vector[piece];
            edit = array::from_fn(|i| edit[i] - factor * x[i]);
        }
        if scale == 0.0 {
            for edit in edit.iter().filter(|edit| **edit != 0.0) {
                tally.saturation.add(Saturation { elements: 1, left: edit * edit });
            }
            return None;
        }
        let Rounded { new, clipped } = if self.grid.is_uniform() {
            self.uniform(codes, &edit, scale)
        } else {
            self.other(codes, &edit, scale)
        };
        let any_clipped = clipped != [false; PIECE];
        if !any_clipped && new == *codes {
            return None;
        }
        let (mut to, mut from) = ([0.0; PIECE], [0.0; PIECE]);
        self.grid.values(scale, offset, &new, &mut to);
        self.grid.values(scale, offset, codes, &mut from);
        let change: [f64; PIECE] = array::from_fn(|i| f64::from(to[i]) - f64::from(from[i]));
        if any_clipped {
            for ((change, edit), _) in change.iter().zip(edit).zip(clipped).filter(|(_, clipped)| *clipped) {
                tally.saturation.add(Saturation { elements: 1, left: (change - edit).powi(2) });
            }
        }
        if new == *codes {
            return None;
        }
        let off: [f64; PIECE] = array::from_fn(|i| change[i] * (change[i] - 2.0 * edit[i]));
        tally.off += sum(&off);
        *codes = new;
        Some(change)
    }

    /// Codes that lie nearest when all steps are alike.
    #[inline(always)]
    fn uniform(&self, codes: &[u8; PIECE], edit: &[f64; PIECE], scale: f32) -> Rounded {
        let per_step = (1.0 - TIE) / (f64::from(scale) * f64::from(self.grid.smallest_gap()));
        let last = self.grid.levels().len() as i32 - 1;
        let mut rounded = Rounded { new: [0; PIECE], clipped: [false; PIECE] };
        for i in 0..PIECE {
            let steps = (edit[i] * per_step).clamp(-MANY, MANY) + WHOLE;
            let code = i32::from(codes[i]) + steps.to_bits() as i32;
            let kept = code.clamp(0, last);
            rounded.new[i] = kept as u8;
            rounded.clipped[i] = kept != code;
        }
        rounded
    }

    /// Codes that lie nearest on any grid.
    fn other(&self, codes: &[u8; PIECE], edit: &[f64; PIECE], scale: f32) -> Rounded {
        let per_level = (1.0 - TIE) / f64::from(scale);
        let levels = self.grid.levels();
        let level = |code: usize| f64::from(levels[code]);
        // A power of two as scale can make the outer levels infinite.
        let last = levels.iter().rposition(|level| (scale * level).is_finite()).unwrap_or(0);
        let first = levels.iter().position(|level| (scale * level).is_finite()).unwrap_or(0);
        let reach = 0.5 * f64::from(self.grid.smallest_gap());
        let mut rounded = Rounded { new: *codes, clipped: [false; PIECE] };
        for i in 0..PIECE {
            let by = edit[i] * per_level;
            if by.abs() <= reach {
                continue;
            }
            let mut at = usize::from(codes[i]);
            let target = level(at) + by;
            while at < last && target - level(at) > level(at + 1) - target {
                at += 1;
            }
            while at > first && level(at) - target > target - level(at - 1) {
                at -= 1;
            }
            rounded.new[i] = at as u8;
            rounded.clipped[i] = (at == last && 2.0 * (target - level(at)) > level(at) - level(at - 1))
                || (at == first && 2.0 * (level(at) - target) > level(at + 1) - level(at));
        }
        rounded
    }
}

/// In pairs, so that it can be done side by side.
#[inline(always)]
pub(super) fn sum(x: &[f64; PIECE]) -> f64 {
    let four: [f64; 4] = array::from_fn(|i| (x[i] + x[i + 4]) + (x[i + 8] + x[i + 12]));
    (four[0] + four[2]) + (four[1] + four[3])
}
