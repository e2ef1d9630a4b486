//! Tensors as decoded rows, in chunks that depend on the shape alone, so that sums do not depend on threads.
#![forbid(unsafe_code)]

use rayon::prelude::*;

use super::RewriteError;
use crate::arch::Axis;
use crate::gguf::{GgufFile, TensorInfo};
use crate::quant::{self, GgmlType};

/// Elements decoded at a time, about; at least [`ROWS`] rows.
const CHUNK: usize = 1 << 15;
const ROWS: usize = 16;
/// Chunks in flight: enough for any number of cores, few enough for memory.
const BATCH: usize = 64;

/// One slice of a tensor: `rows` of `n` elements, as they lie in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows<'a> {
    pub name: &'a str,
    pub ty: GgmlType,
    pub data: &'a [u8],
    pub n: usize,
    pub rows: usize,
    /// Rows of the tensor before this slice, for messages.
    pub first_row: usize,
}

impl<'a> Rows<'a> {
    /// The slices of a tensor: its experts where the stream runs over `ne[1]`, otherwise all of it.
    pub fn slices(file: &'a GgufFile, info: &'a TensorInfo, axis: Axis) -> Vec<Self> {
        let (n, all) = (info.ne[0] as usize, info.rows() as usize);
        if n == 0 || all == 0 {
            return Vec::new();
        }
        let rows = if axis == Axis::Output { info.ne[1] as usize } else { all };
        let data = file.tensor_data(info);
        let slices = data.chunks(data.len() / all * rows).enumerate();
        slices
            .map(|(i, data)| Self { name: &info.name, ty: info.ty, data, n, rows, first_row: i * rows })
            .collect()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        // A tensor was checked to be whole rows when the file was read.
        self.data.len() / self.rows.max(1)
    }

    /// The bytes of `count` rows from `first` on.
    pub fn bytes_of(&self, first: usize, count: usize) -> &'a [u8] {
        let size = self.row_bytes();
        &self.data[first * size..(first + count) * size]
    }

    /// Whether every weight is finite.
    pub fn check(&self) -> Result<(), RewriteError> {
        self.each(|_, _| Ok(()), |()| Ok(()))
    }

    /// `count` rows from `first` on, every value finite.
    pub fn decode(&self, first: usize, count: usize) -> Result<Vec<f32>, RewriteError> {
        let mut out = vec![0.0; count * self.n];
        quant::decode(self.ty, self.bytes_of(first, count), &mut out)
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

    /// Gives `f` every chunk (its first row and its values), many at once, and `take` what it returns, in order.
    pub fn each<T: Send>(
        &self,
        f: impl Fn(usize, Vec<f32>) -> Result<T, RewriteError> + Sync,
        mut take: impl FnMut(T) -> Result<(), RewriteError>,
    ) -> Result<(), RewriteError> {
        let chunk = (CHUNK / self.n).max(ROWS);
        let starts: Vec<usize> = (0..self.rows).step_by(chunk).collect();
        for batch in starts.chunks(BATCH) {
            let parts: Vec<T> = batch
                .par_iter()
                .map(|&first| f(first, self.decode(first, chunk.min(self.rows - first))?))
                .collect::<Result<_, RewriteError>>()?;
            parts.into_iter().try_for_each(&mut take)?;
        }
        Ok(())
    }

    /// The squares of the lengths of the slice's columns, n.
    pub fn squares(&self) -> Result<Vec<f64>, RewriteError> {
        let mut squares = vec![0.0; self.n];
        let part = |_: usize, w: Vec<f32>| {
            let mut squares = vec![0.0; self.n];
            for row in w.chunks_exact(self.n) {
                squares.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(*x).powi(2));
            }
            Ok(squares)
        };
        self.each(part, |part| {
            squares.iter_mut().zip(part).for_each(|(to, from)| *to += from);
            Ok(())
        })?;
        Ok(squares)
    }

    /// RᵀW of the slice, k × n, for R (k × rows) = `basis`.
    pub fn project(&self, basis: &[Vec<f64>]) -> Result<Vec<Vec<f64>>, RewriteError> {
        let mut along = vec![vec![0.0; self.n]; basis.len()];
        let part = |first: usize, w: Vec<f32>| Ok(project(&w, self.n, first, basis));
        self.each(part, |part| {
            for (to, from) in along.iter_mut().zip(part) {
                to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            }
            Ok(())
        })?;
        Ok(along)
    }
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

/// a·b in f64, from first to last.
pub(super) fn mixed_dot(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * y).sum()
}
