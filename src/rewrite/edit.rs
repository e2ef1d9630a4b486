//! The edit itself: decode, orthogonalise, encode, measure; rows in fixed chunks.
//!
//! Chunks depend on the shape alone and their sums are added in order, so the bytes and the figures do not depend on
//! the number of threads.
#![forbid(unsafe_code)]

use std::io::Write;

use rayon::prelude::*;

use super::RewriteError;
use super::basis::{Basis, dot};
use crate::arch::Axis;
use crate::quant::{self, CodecError, GgmlType};

/// Elements decoded at a time, about.
const CHUNK: usize = 1 << 15;
/// Chunks in flight: enough for any number of cores, few enough for memory.
const BATCH: usize = 64;

/// Sums of squares that the figures of a report are made of.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    /// ‖W‖².
    pub weight: f64,
    /// ‖RᵀW‖².
    pub before: f64,
    /// ‖RᵀŴ‖².
    pub after: f64,
    /// ‖Ŵ − W'‖².
    pub off: f64,
    /// ‖W − W'‖².
    pub edit: f64,
}

impl Sums {
    pub(super) fn add(&mut self, other: Self) {
        self.weight += other.weight;
        self.before += other.before;
        self.after += other.after;
        self.off += other.off;
        self.edit += other.edit;
    }
}

/// A matrix as it lies in the file: `rows` of `n` elements.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub name: &'a str,
    pub ty: GgmlType,
    pub data: &'a [u8],
    pub n: usize,
    pub rows: usize,
    /// Rows of the tensor before this slice, for messages.
    pub first_row: usize,
}

impl<'a> Matrix<'a> {
    pub(super) fn row_bytes(&self) -> usize {
        // A whole tensor was checked to be whole rows when the file was read.
        self.data.len() / self.rows.max(1)
    }

    /// First rows and bytes of the chunks.
    fn chunks(&self) -> Vec<(usize, &'a [u8])> {
        let rows = (CHUNK / self.n.max(1)).max(1);
        self.data.chunks((rows * self.row_bytes()).max(1)).enumerate().map(|(i, b)| (i * rows, b)).collect()
    }

    /// Rows from `first` on, decoded; every value finite.
    pub(super) fn decode(&self, first: usize, bytes: &[u8]) -> Result<Vec<f32>, RewriteError> {
        let mut out = vec![0.0; bytes.len() / self.row_bytes() * self.n];
        quant::decode(self.ty, bytes, &mut out)
            .map_err(|source| RewriteError::Type { tensor: self.name.into(), source })?;
        match out.iter().position(|x| !x.is_finite()) {
            None => Ok(out),
            Some(i) => Err(RewriteError::Weight {
                tensor: self.name.into(),
                row: (self.first_row + first + i / self.n) as u64,
                column: i % self.n,
                value: out[i],
            }),
        }
    }

    /// Whether every weight is finite.
    pub(super) fn check(&self) -> Result<(), RewriteError> {
        self.chunks().into_iter().try_for_each(|(first, bytes)| self.decode(first, bytes).map(drop))
    }

    /// Encodes `target`, rows marked in `keep` excepted, whose bytes stay `original`; returns bytes and their decoding.
    fn encode(
        &self,
        first: usize,
        target: &[f32],
        keep: &[bool],
        original: &[u8],
    ) -> Result<(Vec<u8>, Vec<f32>), RewriteError> {
        let range = |row: usize| RewriteError::Range {
            tensor: self.name.into(),
            row: (self.first_row + first + row) as u64,
            ty: self.ty,
        };
        let mut bytes = quant::encode(self.ty, target, self.n, None).map_err(|source| match source {
            CodecError::NonFinite { row, .. } | CodecError::Range { row, .. } => range(row),
            source => RewriteError::Type { tensor: self.name.into(), source },
        })?;
        let size = self.row_bytes();
        for (row, _) in keep.iter().enumerate().filter(|(_, keep)| **keep) {
            bytes[row * size..(row + 1) * size].copy_from_slice(&original[row * size..(row + 1) * size]);
        }
        let written = self.decode(first, &bytes).map_err(|error| match error {
            RewriteError::Weight { row, .. } => range(row as usize - self.first_row - first),
            other => other,
        })?;
        Ok((bytes, written))
    }
}

/// Writes W − R(RᵀW) to `out` in the matrix's own type and returns the sums. With R empty, or RᵀW zero, the bytes are
/// copied.
///
/// `basis` is R, k × n_embd, orthonormal. For [`Axis::Output`] the matrix has n_embd rows; otherwise rows of n_embd.
pub(super) fn orthogonalize(
    matrix: Matrix<'_>,
    basis: &Basis,
    axis: Axis,
    out: &mut dyn Write,
) -> Result<Sums, RewriteError> {
    match axis {
        Axis::Output => by_output(matrix, basis, out),
        Axis::Row | Axis::Bias => by_row(matrix, basis, out),
    }
}

/// r runs over rows: A = RᵀW first, k × n, then each row j loses Σ_k R[k][j] A[k].
fn by_output(matrix: Matrix<'_>, basis: &Basis, out: &mut dyn Write) -> Result<Sums, RewriteError> {
    let chunks = matrix.chunks();
    let mut sums = Sums::default();
    let mut along = vec![vec![0.0; matrix.n]; basis.len()];
    for batch in chunks.chunks(BATCH) {
        let parts: Vec<_> = batch
            .par_iter()
            .map(|&(first, bytes)| {
                let w = matrix.decode(first, bytes)?;
                let square: f64 = w.iter().map(|x| f64::from(*x).powi(2)).sum();
                Ok((square, project(&w, matrix.n, first, basis)))
            })
            .collect::<Result<_, RewriteError>>()?;
        for (square, part) in parts {
            sums.weight += square;
            add_rows(&mut along, &part);
        }
    }
    sums.before = along.iter().map(|a| dot(a, a)).sum();
    if sums.before == 0.0 {
        out.write_all(matrix.data)?;
        return Ok(sums);
    }

    let mut left = vec![vec![0.0; matrix.n]; basis.len()];
    for batch in chunks.chunks(BATCH) {
        let parts: Vec<_> = batch
            .par_iter()
            .map(|&(first, bytes)| {
                let w = matrix.decode(first, bytes)?;
                let mut exact = vec![0.0; w.len()];
                let mut keep = vec![false; w.len() / matrix.n];
                let rows = w.chunks_exact(matrix.n).zip(exact.chunks_exact_mut(matrix.n)).zip(&mut keep);
                for (j, ((w, exact), keep)) in rows.enumerate() {
                    *keep = basis.iter().all(|r| r[first + j] == 0.0);
                    subtract(w, basis.iter().map(|r| r[first + j]).zip(&along), exact);
                }
                let target: Vec<f32> = exact.iter().map(|x| *x as f32).collect();
                let (bytes, written) = matrix.encode(first, &target, &keep, bytes)?;
                Ok((bytes, distances(&w, &exact, &written), project(&written, matrix.n, first, basis)))
            })
            .collect::<Result<_, RewriteError>>()?;
        for (bytes, part, projected) in parts {
            out.write_all(&bytes)?;
            sums.add(part);
            add_rows(&mut left, &projected);
        }
    }
    sums.after = left.iter().map(|a| dot(a, a)).sum();
    Ok(sums)
}

/// r runs along each row: w ← w − Σ_k (r_k·w) r_k.
fn by_row(matrix: Matrix<'_>, basis: &Basis, out: &mut dyn Write) -> Result<Sums, RewriteError> {
    let mut sums = Sums::default();
    for batch in matrix.chunks().chunks(BATCH) {
        let parts: Vec<_> = batch
            .par_iter()
            .map(|&(first, bytes)| {
                let w = matrix.decode(first, bytes)?;
                let mut sums = Sums::default();
                let mut exact = vec![0.0; w.len()];
                let mut keep = vec![false; w.len() / matrix.n];
                let rows = w.chunks_exact(matrix.n).zip(exact.chunks_exact_mut(matrix.n)).zip(&mut keep);
                for ((w, exact), keep) in rows {
                    let along: Vec<f64> = basis.iter().map(|r| mixed_dot(w, r)).collect();
                    *keep = along.iter().all(|a| *a == 0.0);
                    sums.before += dot(&along, &along);
                    subtract(w, along.iter().copied().zip(basis), exact);
                }
                sums.weight = w.iter().map(|x| f64::from(*x).powi(2)).sum();
                if keep.iter().all(|keep| *keep) {
                    return Ok((bytes.to_vec(), sums));
                }
                let target: Vec<f32> = exact.iter().map(|x| *x as f32).collect();
                let (bytes, written) = matrix.encode(first, &target, &keep, bytes)?;
                for row in written.chunks_exact(matrix.n) {
                    sums.after += basis.iter().map(|r| mixed_dot(row, r).powi(2)).sum::<f64>();
                }
                sums.add(distances(&w, &exact, &written));
                Ok((bytes, sums))
            })
            .collect::<Result<_, RewriteError>>()?;
        for (bytes, part) in parts {
            out.write_all(&bytes)?;
            sums.add(part);
        }
    }
    Ok(sums)
}

/// Σ_j R[k][first + j] W[j], k × n, for the rows given.
pub(super) fn project(w: &[f32], n: usize, first: usize, basis: &[Vec<f64>]) -> Vec<Vec<f64>> {
    basis
        .iter()
        .map(|r| {
            let mut sum = vec![0.0; n];
            for (row, factor) in w.chunks_exact(n).zip(&r[first..]) {
                for (s, x) in sum.iter_mut().zip(row) {
                    *s += factor * f64::from(*x);
                }
            }
            sum
        })
        .collect()
}

/// exact = w − Σ factor · vector.
fn subtract<'a>(w: &[f32], terms: impl Iterator<Item = (f64, &'a Vec<f64>)>, exact: &mut [f64]) {
    for (x, w) in exact.iter_mut().zip(w) {
        *x = f64::from(*w);
    }
    for (factor, vector) in terms {
        for (x, v) in exact.iter_mut().zip(vector) {
            *x -= factor * v;
        }
    }
}

fn distances(w: &[f32], exact: &[f64], written: &[f32]) -> Sums {
    let mut sums = Sums::default();
    for ((w, exact), written) in w.iter().zip(exact).zip(written) {
        sums.edit += (f64::from(*w) - exact).powi(2);
        sums.off += (f64::from(*written) - exact).powi(2);
    }
    sums
}

pub(super) fn mixed_dot(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * y).sum()
}

fn add_rows(to: &mut [Vec<f64>], from: &[Vec<f64>]) {
    for (to, from) in to.iter_mut().zip(from) {
        for (x, y) in to.iter_mut().zip(from) {
            *x += y;
        }
    }
}
