//! What a slice of a tensor should become, and the measure of what is written for it.
#![forbid(unsafe_code)]

use super::figures::{Meter, Part};
use super::{RewriteError, Rows};
use crate::arch::Axis;

/// W' = W − s·R(RᵀW).
#[derive(Debug, Clone, Copy)]
pub(super) struct Edit<'a> {
    /// R as the tensor sees it, k × n_embd.
    pub basis: &'a [Vec<f64>],
    pub axis: Axis,
    /// s.
    pub strength: f64,
    /// Whether the columns of a matrix, and the rows of everything else, get the lengths they had.
    pub lengths: bool,
}

/// W' of a slice, row by row.
pub(super) struct Target<'a> {
    meter: Meter<'a>,
    axis: Axis,
    n: usize,
    /// ‖column of W‖ / ‖column of W − s·R(RᵀW)‖; empty along rows, where each row has its own.
    lengths: Option<Vec<f64>>,
}

impl<'a> Target<'a> {
    /// That of the slice `weights`, measured on `inputs` (rows of n) where there are any.
    pub fn new(edit: Edit<'a>, weights: &Rows<'_>, inputs: &[f32]) -> Result<Self, RewriteError> {
        let Edit { basis, axis, strength, lengths } = edit;
        let along = if axis == Axis::Output { weights.project(basis)? } else { Vec::new() };
        let lengths = match (lengths, axis) {
            (true, Axis::Output) => Some(stretches(&weights.squares()?, &along, strength)),
            (true, _) => Some(Vec::new()),
            (false, _) => None,
        };
        Ok(Self {
            meter: Meter::new(basis, axis, weights.n, strength, along, inputs),
            axis,
            n: weights.n,
            lengths,
        })
    }

    /// What measures it.
    pub fn meter(&self) -> &Meter<'a> {
        &self.meter
    }

    /// W' for the rows of `w` from row `first` of the slice on.
    pub fn ideal(&self, first: usize, w: &[f32]) -> Vec<f64> {
        let mut ideal = self.meter.ideal(first, w);
        let Some(lengths) = &self.lengths else { return ideal };
        for (ideal, w) in ideal.chunks_exact_mut(self.n).zip(w.chunks_exact(self.n)) {
            if self.axis == Axis::Output {
                ideal.iter_mut().zip(lengths).for_each(|(x, length)| *x *= length);
            } else {
                let square = |x: f64, y: f64| x + y * y;
                let old = w.iter().map(|x| f64::from(*x)).fold(0.0, square);
                let new = ideal.iter().copied().fold(0.0, square);
                let length = stretch(old, new);
                ideal.iter_mut().for_each(|x| *x *= length);
            }
        }
        ideal
    }

    /// Measures what was `written` for the rows of `w`, whose [`Target::ideal`] is `ideal`.
    pub fn measure(&self, first: usize, w: &[f32], ideal: &[f64], written: &[f32]) -> Part {
        if self.lengths.is_some() {
            self.meter.measure_against(first, w, ideal, written)
        } else {
            self.meter.measure(first, w, written)
        }
    }
}

/// The factors of columns, from their squares and RᵀW (k × n).
fn stretches(squares: &[f64], along: &[Vec<f64>], s: f64) -> Vec<f64> {
    let gone = |j: usize| along.iter().map(|a| a[j] * a[j]).sum::<f64>() * s * (2.0 - s);
    squares.iter().enumerate().map(|(j, old)| stretch(*old, old - gone(j))).collect()
}

/// The factor that gives a vector of this square back its `old` one; 1 where nothing is left to be long.
fn stretch(old: f64, new: f64) -> f64 {
    if new > 1e-12 * old { (old / new).sqrt() } else { 1.0 }
}
