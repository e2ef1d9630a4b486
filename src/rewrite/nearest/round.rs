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

/// Elements of a row that are worked on together: whole blocks of every type.
const SEGMENT: usize = 1024;

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
    codes: [u8; SEGMENT],
    queue: Queue,
    pub tally: Tally,
}

/// The pieces of a segment that may change, side by side, so that each step is one long loop.
struct Queue {
    /// Where they are in the segment.
    pieces: [usize; SEGMENT / PIECE + 1],
    scale: [f32; SEGMENT],
    offset: [f32; SEGMENT],
    /// W' − W.
    edit: [f64; SEGMENT],
    /// The same in the unit of the levels.
    by: [f64; SEGMENT],
    old: [i32; SEGMENT],
    /// The nearest codes.
    new: [i32; SEGMENT],
    /// Others than those where the W' lies beyond the grid's end.
    wanted: [i32; SEGMENT],
    /// Ŵ − W.
    change: [f64; SEGMENT],
}

impl Work {
    /// For rows of `n`.
    pub(super) fn new(grid: &Grid, n: usize) -> Self {
        Self {
            scales: vec![0.0; n / grid.group()],
            offsets: vec![0.0; n / grid.group()],
            reach: vec![0.0; n / PIECE],
            codes: [0; SEGMENT],
            queue: Queue {
                pieces: [0; SEGMENT / PIECE + 1],
                scale: [0.0; SEGMENT],
                offset: [0.0; SEGMENT],
                edit: [0.0; SEGMENT],
                by: [0.0; SEGMENT],
                old: [0; SEGMENT],
                new: [0; SEGMENT],
                wanted: [0; SEGMENT],
                change: [0.0; SEGMENT],
            },
            tally: Tally::default(),
        }
    }
}

impl<'a> Rounder<'a> {
    pub(super) fn new(grid: &'a Grid, vectors: &'a [Vec<f64>]) -> Self {
        let vectors: Vec<_> = vectors.iter().map(|v| v.as_chunks().0).collect();
        let largest = |piece: &[f64; PIECE]| piece.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let reach = vectors.iter().map(|v| v.iter().map(largest).collect()).collect();
        Self { grid, vectors, reach }
    }

    /// Rounds one row in place. `moved` hears of each piece with a moved code: its place in the row and Ŵ − W.
    pub(super) fn row(
        &self,
        row: &mut [u8],
        factors: &[f64],
        work: &mut Work,
        mut moved: impl FnMut(usize, &[f64; PIECE]),
    ) {
        if factors.iter().all(|factor| *factor == 0.0) {
            return;
        }
        self.grid.scales(row, &mut work.scales, &mut work.offsets);
        work.reach.fill(0.0);
        for (factor, vector) in factors.iter().zip(&self.reach) {
            for (reach, x) in work.reach.iter_mut().zip(vector) {
                *reach += factor.abs() * x;
            }
        }
        let segment = SEGMENT / self.grid.block() * self.grid.block_bytes();
        for (i, blocks) in row.chunks_mut(segment).enumerate() {
            wide(
                #[inline(always)]
                || self.segment(blocks, i * (SEGMENT / PIECE), factors, work, &mut moved),
            );
        }
    }

    /// Rounds a segment whose first piece is `first`.
    #[inline(always)]
    fn segment(
        &self,
        blocks: &mut [u8],
        first: usize,
        factors: &[f64],
        work: &mut Work,
        moved: &mut impl FnMut(usize, &[f64; PIECE]),
    ) {
        let Work { scales, offsets, reach, codes, queue, tally } = work;
        let codes = &mut codes[..blocks.len() / self.grid.block_bytes() * self.grid.block()];
        let a_group = self.grid.group() / PIECE;
        // Half a step, less what rounding can do to a sum of products.
        let half = 0.5 * (1.0 - TIE) * f64::from(self.grid.smallest_gap());
        let mut n = 0;
        let groups = scales[first / a_group..].iter().zip(reach[first..].chunks_exact(a_group));
        for (g, (scale, reach)) in groups.take(codes.len() / self.grid.group()).enumerate() {
            let step = half * f64::from(scale.abs());
            for (i, reach) in reach.iter().enumerate() {
                queue.pieces[n] = g * a_group + i;
                n += usize::from(*reach > step);
            }
        }
        if n == 0 {
            return;
        }
        self.grid.codes(blocks, codes);
        let codes = codes.as_chunks_mut::<PIECE>().0;
        for (slot, piece) in queue.pieces[..n].iter().enumerate() {
            let (scale, offset) = (scales[(first + piece) / a_group], offsets[(first + piece) / a_group]);
            // On a scale of 0 no code is any nearer.
            let per_level = if scale == 0.0 { 0.0 } else { (1.0 - TIE) / f64::from(scale) };
            let mut edit = [0.0; PIECE];
            for (factor, vector) in factors.iter().zip(&self.vectors) {
                let x = &vector[first + piece];
                edit = array::from_fn(|i| edit[i] - factor * x[i]);
            }
            queue.scale.as_chunks_mut().0[slot] = [scale; PIECE];
            queue.offset.as_chunks_mut().0[slot] = [offset; PIECE];
            queue.edit.as_chunks_mut().0[slot] = edit;
            queue.by.as_chunks_mut().0[slot] = edit.map(|edit| edit * per_level);
            queue.old.as_chunks_mut().0[slot] = codes[*piece].map(i32::from);
        }
        if !queue.round(self.grid, n * PIECE, tally) {
            return;
        }
        let slots = queue.new.as_chunks::<PIECE>().0.iter().zip(queue.change.as_chunks().0);
        for (piece, (new, change)) in queue.pieces[..n].iter().zip(slots) {
            let new = new.map(|code| code as u8);
            if codes[*piece] != new {
                codes[*piece] = new;
                moved(first + piece, change);
            }
        }
        self.grid.pack(codes.as_flattened(), blocks);
    }
}

impl Queue {
    /// From old codes and edits to new codes and changes, `n` of them. Whether any code moves.
    #[inline(always)]
    fn round(&mut self, grid: &Grid, n: usize, tally: &mut Tally) -> bool {
        let Self { scale, offset, edit, by, old, new, wanted, change, .. } = self;
        let (scale, offset, edit, by) = (&scale[..n], &offset[..n], &edit[..n], &mut by[..n]);
        let (old, new, wanted, change) = (&old[..n], &mut new[..n], &mut wanted[..n], &mut change[..n]);
        if grid.is_uniform() {
            let per_gap = 1.0 / f64::from(grid.smallest_gap());
            let last = grid.levels().len() as i32 - 1;
            for ((wanted, old), by) in wanted.iter_mut().zip(old).zip(&*by) {
                let steps = (by * per_gap).clamp(-MANY, MANY) + WHOLE;
                *wanted = old + steps.to_bits() as i32;
            }
            for (new, wanted) in new.iter_mut().zip(&*wanted) {
                *new = (*wanted).clamp(0, last);
            }
        } else {
            for i in 0..n {
                (new[i], wanted[i]) = nearest_level(grid, old[i], by[i], scale[i]);
            }
        }
        let differ = |a: &[i32], b: &[i32]| a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b)) != 0;
        let moves = differ(new, old);
        if moves {
            if grid.is_uniform() {
                let (level, gap) = (grid.levels()[0], grid.smallest_gap());
                for i in 0..n {
                    let value = |code: i32| f64::from(scale[i] * (level + gap * code as f32) + offset[i]);
                    change[i] = value(new[i]) - value(old[i]);
                }
            } else {
                for i in 0..n {
                    let value = |code: i32| f64::from(grid.value(scale[i], offset[i], code as u8));
                    change[i] = value(new[i]) - value(old[i]);
                }
            }
            let pairs = change.as_chunks::<8>().0.iter().zip(edit.as_chunks::<8>().0);
            tally.off += lanes(pairs.map(|(c, e)| array::from_fn(|i| c[i] * (c[i] - 2.0 * e[i]))));
        } else {
            change.fill(0.0);
        }
        if scale.contains(&0.0) {
            for i in (0..n).filter(|i| scale[*i] == 0.0 && edit[*i] != 0.0) {
                wanted[i] = old[i] + 1;
            }
        }
        if differ(new, wanted) {
            let rests = change.iter().zip(edit).map(|(change, edit)| change - edit);
            for ((square, rest), (new, wanted)) in by.iter_mut().zip(rests).zip(new.iter().zip(&*wanted)) {
                *square = if new == wanted { 0.0 } else { rest * rest };
            }
            let clipped = new.iter().zip(&*wanted).map(|(new, wanted)| i32::from(new != wanted));
            tally.saturation.elements += clipped.sum::<i32>() as u64;
            tally.saturation.left += lanes(by.as_chunks().0.iter().copied());
        }
        moves
    }
}

/// The code nearest to `by` levels above `old`, and that or the one that would be beyond the grid's end.
fn nearest_level(grid: &Grid, old: i32, by: f64, scale: f32) -> (i32, i32) {
    if by.abs() <= 0.5 * f64::from(grid.smallest_gap()) {
        return (old, old);
    }
    let level = |code: i32| f64::from(grid.levels()[code as usize]);
    // A power of two as scale can make the outer levels infinite.
    let exists =
        |code: i32| grid.levels().get(code as usize).is_some_and(|level| (scale * level).is_finite());
    let mut at = old;
    let target = level(at) + by;
    while exists(at + 1) && target - level(at) > level(at + 1) - target {
        at += 1;
    }
    while exists(at - 1) && level(at) - target > target - level(at - 1) {
        at -= 1;
    }
    let above = !exists(at + 1) && 2.0 * (target - level(at)) > level(at) - level(at - 1);
    let below = !exists(at - 1) && 2.0 * (level(at) - target) > level(at + 1) - level(at);
    (at, at + i32::from(above) - i32::from(below))
}

/// The sum of all, in eight sums side by side.
#[inline(always)]
pub(super) fn lanes(terms: impl Iterator<Item = [f64; 8]>) -> f64 {
    let mut sums = [0.0; 8];
    for terms in terms {
        for (sum, term) in sums.iter_mut().zip(terms) {
            *sum += term;
        }
    }
    sums.iter().sum()
}

/// In pairs, so that it can be done side by side.
#[inline(always)]
pub(super) fn sum(x: &[f64; PIECE]) -> f64 {
    let four: [f64; 4] = array::from_fn(|i| (x[i] + x[i + 4]) + (x[i + 8] + x[i + 12]));
    (four[0] + four[2]) + (four[1] + four[3])
}
