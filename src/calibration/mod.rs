//! What the writers of the residual stream are given: samples of their inputs, to round a rewritten matrix by.
//!
//! Shapes: a writer W has ne = [n_in, n_embd(, n_expert)]; its input is a row of n_in elements, x in y = Wx. An
//! [`Inputs`] holds, for each slice (one, or one an expert), a bounded sample of rows to fit on, a sample from *other
//! prompts* to measure on, and the mean of x_j² over all rows of the former.
//!
//! Rows are kept as bfloat16: activations reach past f16's 65504 in some models, and a relative rounding of 2⁻⁹ in a
//! sample is far below the sample's own noise. They stay on disk, and are read when asked for.
#![forbid(unsafe_code)]

mod collect;
mod error;
mod file;
mod fit;
mod imatrix;
mod sample;

pub(crate) use collect::outputs;
pub use collect::{Collector, Options, collect, default_rows};
pub use error::CalibrationError;
pub use fit::{Fit, Thin, Whose};
pub use imatrix::Imatrix;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::arch::{Axis, Writer};
use crate::direction::Provenance;
use crate::gguf::Gguf;

/// A tensor whose inputs are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub tensor: String,
    /// `ne[0]`.
    pub n_in: usize,
    /// `ne[2]`: 1, or its experts.
    pub n_slices: usize,
}

impl Target {
    /// The writers among `writers` that are matrices with an input: all but embeddings and biases.
    #[must_use]
    pub fn of(gguf: &Gguf, writers: &[Writer]) -> Vec<Self> {
        let matrices = writers.iter().filter(|w| w.axis == Axis::Output);
        matrices
            .filter_map(|w| gguf.tensor(&w.tensor))
            .map(|t| Self { tensor: t.name.clone(), n_in: t.ne[0] as usize, n_slices: t.ne[2] as usize })
            .collect()
    }
}

/// Where a calibration comes from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Origin {
    /// The model and the prompts.
    pub source: Provenance,
    /// [`Options::seed`].
    pub seed: u64,
    /// [`Options::generated`].
    pub generated: usize,
    /// SHA-256 of the directions that were ablated meanwhile; none for the plain model.
    pub ablated: Vec<String>,
}

/// The inputs of a model's writers.
#[derive(Debug)]
pub struct Calibration {
    inputs: BTreeMap<String, Inputs>,
    origin: Origin,
}

impl Calibration {
    /// The inputs of a tensor.
    #[must_use]
    pub fn inputs(&self, tensor: &str) -> Option<&Inputs> {
        self.inputs.get(tensor)
    }

    /// The tensors whose inputs these are.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        self.inputs.keys().map(String::as_str)
    }

    /// Where they come from.
    #[must_use]
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

/// The inputs of one writer.
#[derive(Debug)]
pub struct Inputs {
    n_in: usize,
    slices: Vec<Slice>,
    store: Arc<Mutex<sample::Store>>,
}

/// The inputs of one slice.
#[derive(Debug)]
struct Slice {
    /// Where each row lies in the store.
    fit: Vec<u64>,
    held_out: Vec<u64>,
    mean_square: Vec<f32>,
    count: u64,
}

impl Inputs {
    /// Elements of a row.
    #[must_use]
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// 1, or the experts.
    #[must_use]
    pub fn n_slices(&self) -> usize {
        self.slices.len()
    }

    /// Whether there are rows to fit on at all; an imatrix has none.
    #[must_use]
    pub fn has_rows(&self) -> bool {
        self.slices.iter().any(|s| !s.fit.is_empty())
    }

    /// Sampled rows to fit on; 0 where only the mean squares are known, or for an expert that was never chosen.
    #[must_use]
    pub fn n_fit(&self, slice: usize) -> usize {
        self.slices[slice].fit.len()
    }

    /// Sampled rows to measure on.
    #[must_use]
    pub fn n_held_out(&self, slice: usize) -> usize {
        self.slices[slice].held_out.len()
    }

    /// The rows to fit on, n_fit × n_in, in a random order (so the first k are a sample too).
    ///
    /// # Errors
    /// [`CalibrationError::Store`].
    pub fn fit(&self, slice: usize) -> Result<Vec<f32>, CalibrationError> {
        self.read(&self.slices[slice].fit)
    }

    /// Rows never fitted on, to measure on: n_held_out × n_in, in a random order.
    ///
    /// # Errors
    /// [`CalibrationError::Store`].
    pub fn held_out(&self, slice: usize) -> Result<Vec<f32>, CalibrationError> {
        self.read(&self.slices[slice].held_out)
    }

    /// Mean of x_j² over all fitted tokens, not only the sampled ones: n_in. Zero where the count is.
    #[must_use]
    pub fn mean_square(&self, slice: usize) -> &[f32] {
        &self.slices[slice].mean_square
    }

    /// Fitted tokens seen, sampled or not.
    #[must_use]
    pub fn count(&self, slice: usize) -> u64 {
        self.slices[slice].count
    }

    fn read(&self, offsets: &[u64]) -> Result<Vec<f32>, CalibrationError> {
        Ok(sample::read_rows(&self.store, offsets, self.n_in)?)
    }
}
