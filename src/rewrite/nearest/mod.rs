//! Rounding to the nearest code of the grid that is there: the fast way, which asks for no activations.
//!
//! W' = W − R(RᵀW). Scales and offsets stay, and each element takes the code nearest to its W'; a tie, to within
//! rounding, keeps the present code. Far faster than encoding anew, because most groups of a large matrix are not
//! touched at all: where Σ_k |r_k||a_k|, at its largest in the group, is below half a step of the group's grid, no code
//! can move and the bytes are kept unread.
//!
//! Work is cut by the shape alone and its sums are added in order, so the bytes and the figures do not depend on the
//! number of threads. The figures are those of [`Totals`], from the same decoded values, but most of them follow from the
//! codes that moved: Ŵ = W elsewhere.
#![forbid(unsafe_code)]

mod round;
#[cfg(test)]
mod tests;

use std::array;
use std::io::Write;

use rayon::prelude::*;

use super::RewriteError;
use super::basis::{Basis, dot};
use super::figures::Totals;
use super::rows::Rows;
use crate::arch::Axis;
use crate::quant::{Grid, wide};
use round::{PIECE, Rounder, Tally, Work, lanes, sum};

/// Elements rounded at a time, about.
const CHUNK: usize = 1 << 19;
/// Chunks in flight: enough for the cores, few enough for memory.
const BATCH: usize = 16;
/// Columns of a sum that stay in a core's cache.
const STRIPE: usize = 1024;
/// Slabs of rows, at most: each has sums of its own.
const SLABS: usize = 16;
/// Rows decoded together.
const ROWS: usize = 4;

/// Elements whose W' lies more than half a step beyond the ends of their grid, or off a grid of scale 0.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Saturation {
    /// How many.
    pub elements: u64,
    /// Their part of ‖Ŵ − W'‖².
    pub left: f64,
}

impl Saturation {
    pub(super) fn add(&mut self, other: Self) {
        self.elements += other.elements;
        self.left += other.left;
    }
}

/// Writes W − R(RᵀW) to `out`, each element at the nearest code of its grid, and returns the sums.
///
/// `basis` is R, k × n_embd, orthonormal. For [`Axis::Output`] the matrix has n_embd rows; otherwise rows of n_embd.
///
/// # Errors
/// [`RewriteError::Weight`] for a weight that is not finite; [`RewriteError::Write`].
pub(super) fn nearest(
    matrix: Rows<'_>,
    grid: &Grid,
    basis: &Basis,
    axis: Axis,
    out: &mut dyn Write,
) -> Result<(Totals, Saturation), RewriteError> {
    match axis {
        Axis::Output => by_output(matrix, grid, basis, out),
        Axis::Row | Axis::Bias => by_row(matrix, grid, basis, out),
    }
}

/// r runs over rows: A = RᵀW first, k × n, then row i moves by −Σ_k R[k][i] A[k].
fn by_output(
    matrix: Rows<'_>,
    grid: &Grid,
    basis: &Basis,
    out: &mut dyn Write,
) -> Result<(Totals, Saturation), RewriteError> {
    let (along, weight) = project(&matrix, grid, basis);
    if !weight.is_finite() {
        matrix.check()?;
    }
    let before = along.iter().map(|a| dot(a, a)).sum();
    let mut sums = Totals { weight, before, ..Totals::default() };
    let mut saturation = Saturation::default();
    if before == 0.0 {
        out.write_all(matrix.data)?;
        return Ok((sums, saturation));
    }
    for (p, a) in basis.iter().zip(&along) {
        sums.edit += basis.iter().zip(&along).map(|(q, b)| dot(p, q) * dot(a, b)).sum::<f64>();
    }
    sums.off = sums.edit;

    let rounder = Rounder::new(grid, &along);
    // RᵀŴ: starts as RᵀW, and each chunk adds what it moved.
    let mut left = along.clone();
    let make = |first: usize, chunk: &mut Chunk| {
        let Chunk { bytes, work, moved, .. } = chunk;
        moved.resize(basis.len(), Vec::new());
        for moved in &mut *moved {
            moved.clear();
            moved.resize(matrix.n, 0.0);
        }
        for (i, row) in bytes.chunks_exact_mut(matrix.row_bytes()).enumerate() {
            let factors: Vec<f64> = basis.iter().map(|r| r[first + i]).collect();
            rounder.row(row, &factors, work, |piece, change| {
                for (moved, factor) in moved.iter_mut().zip(&factors) {
                    let moved = &mut moved.as_chunks_mut::<PIECE>().0[piece];
                    *moved = array::from_fn(|i| moved[i] + factor * change[i]);
                }
            });
        }
        Ok(())
    };
    pipeline(&matrix, grid, &make, |chunk| {
        out.write_all(&chunk.bytes)?;
        sums.off += chunk.work.tally.off;
        saturation.add(chunk.work.tally.saturation);
        for (left, moved) in left.iter_mut().zip(&chunk.moved) {
            add(left, moved);
        }
        Ok(())
    })?;
    sums.off = sums.off.max(0.0);
    sums.after = left.iter().map(|a| dot(a, a)).sum();
    Ok((sums, saturation))
}

/// r runs along each row: w moves by −Σ_k (r_k·w) r_k.
fn by_row(
    matrix: Rows<'_>,
    grid: &Grid,
    basis: &Basis,
    out: &mut dyn Write,
) -> Result<(Totals, Saturation), RewriteError> {
    let rounder = Rounder::new(grid, basis);
    let gram: Vec<Vec<f64>> = basis.iter().map(|p| basis.iter().map(|q| dot(p, q)).collect()).collect();
    let make = |first: usize, chunk: &mut Chunk| {
        let Chunk { bytes, work, sums, row: w, .. } = chunk;
        *sums = Totals::default();
        w.resize(matrix.n, 0.0);
        for (i, row) in bytes.chunks_exact_mut(matrix.row_bytes()).enumerate() {
            grid.decode(row, w);
            let weight = square(w);
            if !weight.is_finite() {
                matrix.decode(first + i, 1)?;
            }
            sums.weight += weight;
            let along: Vec<f64> = basis.iter().map(|r| mixed_dot(w, r)).collect();
            sums.before += dot(&along, &along);
            sums.edit += gram.iter().zip(&along).map(|(g, a)| a * dot(g, &along)).sum::<f64>();
            let mut left = along.clone();
            rounder.row(row, &along, work, |piece, change| {
                for (left, r) in left.iter_mut().zip(basis) {
                    let along: [f64; PIECE] = array::from_fn(|i| change[i] * r[piece * PIECE + i]);
                    *left += sum(&along);
                }
            });
            sums.after += dot(&left, &left);
        }
        Ok(())
    };
    let mut sums = Totals::default();
    let mut saturation = Saturation::default();
    pipeline(&matrix, grid, &make, |chunk| {
        out.write_all(&chunk.bytes)?;
        sums.add(&chunk.sums);
        sums.off += chunk.work.tally.off;
        saturation.add(chunk.work.tally.saturation);
        Ok(())
    })?;
    sums.off = (sums.off + sums.edit).max(0.0);
    Ok((sums, saturation))
}

/// A = RᵀW, k × n, and ‖W‖².
fn project(matrix: &Rows<'_>, grid: &Grid, basis: &Basis) -> (Vec<Vec<f64>>, f64) {
    let row_bytes = matrix.row_bytes();
    let slab = matrix.rows.div_ceil(SLABS).next_multiple_of(ROWS);
    let stripes = matrix.n.div_ceil(STRIPE);
    let of = |item: usize| {
        let rows = item / stripes * slab..matrix.rows.min((item / stripes + 1) * slab);
        let columns = item % stripes * STRIPE..matrix.n.min((item % stripes + 1) * STRIPE);
        let bytes = |column: usize| column / grid.block() * grid.block_bytes();
        let mut along = vec![vec![0.0; columns.len()]; basis.len()];
        let mut weight = 0.0;
        let mut w = vec![0.0; ROWS * columns.len()];
        for first in rows.clone().step_by(ROWS) {
            let n = ROWS.min(rows.end - first);
            for (i, w) in w.chunks_exact_mut(columns.len()).take(n).enumerate() {
                let row = &matrix.data[(first + i) * row_bytes..][..row_bytes];
                grid.decode(&row[bytes(columns.start)..bytes(columns.end)], w);
            }
            w[n * columns.len()..].fill(0.0);
            for (along, r) in along.iter_mut().zip(basis) {
                let mut factors = [0.0; ROWS];
                factors[..n].copy_from_slice(&r[first..first + n]);
                add_rows(along, &w, factors);
            }
            weight += square(&w);
        }
        (along, weight)
    };
    let items = matrix.rows.div_ceil(slab.max(1)) * stripes;
    let parts: Vec<_> = (0..items).into_par_iter().map(of).collect();
    let mut along = vec![vec![0.0; matrix.n]; basis.len()];
    let mut weight = 0.0;
    for (item, (part, square)) in parts.iter().enumerate() {
        weight += square;
        for (along, part) in along.iter_mut().zip(part) {
            add(&mut along[item % stripes * STRIPE..], part);
        }
    }
    (along, weight)
}

/// sum += Σ_i factors[i] · row i of w.
fn add_rows(sum: &mut [f64], w: &[f32], [a, b, c, d]: [f64; ROWS]) {
    let (upper, lower) = w.split_at(2 * sum.len());
    let ((p, q), (r, s)) = (upper.split_at(sum.len()), lower.split_at(sum.len()));
    wide(
        #[inline(always)]
        || {
            for ((sum, (p, q)), (r, s)) in sum.iter_mut().zip(p.iter().zip(q)).zip(r.iter().zip(s)) {
                let (p, q, r, s) = (f64::from(*p), f64::from(*q), f64::from(*r), f64::from(*s));
                *sum += (a * p + b * q) + (c * r + d * s);
            }
        },
    );
}

/// ‖w‖²; the length is a multiple of 8.
fn square(w: &[f32]) -> f64 {
    wide(
        #[inline(always)]
        || lanes(w.as_chunks().0.iter().map(|w| w.map(|w| f64::from(w) * f64::from(w)))),
    )
}

/// w·r; the length is a multiple of 8.
fn mixed_dot(w: &[f32], r: &[f64]) -> f64 {
    let pairs = w.as_chunks::<8>().0.iter().zip(r.as_chunks::<8>().0);
    wide(
        #[inline(always)]
        || lanes(pairs.map(|(w, r)| array::from_fn(|i| f64::from(w[i]) * r[i]))),
    )
}

fn add(to: &mut [f64], from: &[f64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// First rows and bytes of the chunks.
fn chunks<'a>(matrix: &Rows<'a>) -> Vec<(usize, &'a [u8])> {
    let rows = (CHUNK / matrix.n.max(1)).max(1);
    let bytes = (rows * matrix.row_bytes()).max(1);
    matrix.data.chunks(bytes).enumerate().map(|(i, b)| (i * rows, b)).collect()
}

/// Some rows, and what came of them. Made once and used again: fresh memory is slow.
struct Chunk {
    bytes: Vec<u8>,
    work: Work,
    /// Rᵀ(Ŵ − W) of the rows, k × n.
    moved: Vec<Vec<f64>>,
    /// A row, decoded.
    row: Vec<f32>,
    sums: Totals,
}

/// Gives `make` each chunk of the matrix, many at once, with its first row; then `take`, in order, while the next ones
/// are being made.
fn pipeline(
    matrix: &Rows<'_>,
    grid: &Grid,
    make: &(impl Fn(usize, &mut Chunk) -> Result<(), RewriteError> + Sync),
    mut take: impl FnMut(&Chunk) -> Result<(), RewriteError>,
) -> Result<(), RewriteError> {
    let all = chunks(matrix);
    let new = || Chunk {
        bytes: Vec::new(),
        work: Work::new(grid, matrix.n),
        moved: Vec::new(),
        row: Vec::new(),
        sums: Totals::default(),
    };
    let batch = |items: &[(usize, &[u8])], to: &mut Vec<Chunk>| {
        to.resize_with(items.len(), new);
        let made: Vec<_> = to
            .par_iter_mut()
            .zip(items)
            .map(|(chunk, (first, bytes))| {
                chunk.bytes.clear();
                chunk.bytes.extend_from_slice(bytes);
                chunk.work.tally = Tally::default();
                make(*first, chunk)
            })
            .collect();
        // The first error in order, whichever came first in time.
        made.into_iter().collect::<Result<(), RewriteError>>()
    };
    let (mut ready, mut spare) = (Vec::new(), Vec::new());
    let mut batches = all.chunks(BATCH);
    batches.next().map_or(Ok(()), |items| batch(items, &mut ready))?;
    while !ready.is_empty() {
        let mut made = Ok(());
        rayon::in_place_scope(|scope| {
            let (made, next, spare) = (&mut made, batches.next().unwrap_or_default(), &mut spare);
            scope.spawn(move |_| *made = batch(next, spare));
            ready.iter().try_for_each(&mut take)
        })?;
        made?;
        std::mem::swap(&mut ready, &mut spare);
    }
    Ok(())
}
