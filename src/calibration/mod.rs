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
mod sample;

pub use collect::{Collector, Options, collect, default_rows};

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use crate::arch::{Axis, Writer};
use crate::direction::Provenance;
use crate::gguf::Gguf;
use crate::runtime;

/// Why calibration inputs cannot be collected or used.
#[derive(Debug, thiserror::Error)]
pub enum CalibrationError {
    /// The model could not be run.
    #[error(transparent)]
    Run(#[from] runtime::Error),
    /// An activation that is NaN, infinite, or beyond bfloat16.
    #[error(
        "input of {tensor:?} at token {token} of prompt {prompt}: not a number, or too large; the model's weights \
         are broken"
    )]
    NotFinite {
        /// The writer.
        tensor: String,
        /// 0-based index of the prompt, the harmful ones first.
        prompt: usize,
        /// 0-based token.
        token: usize,
    },
    /// A row of another width, or for a slice that the tensor does not have.
    #[error(
        "input of {tensor:?}: {found} elements for slice {slice}, expected {n_in} for one of {n_slices} slices"
    )]
    Row {
        /// The writer.
        tensor: String,
        /// Elements of the row.
        found: usize,
        /// The slice it was for.
        slice: usize,
        /// Elements expected.
        n_in: usize,
        /// Slices there are.
        n_slices: usize,
    },
    /// The sampled rows could not be stored or read back.
    #[error("sampled activations: {0} (temporary files go to TMPDIR)")]
    Store(io::Error),
}

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
    inputs: HashMap<String, Inputs>,
    origin: Origin,
}

impl Calibration {
    /// The inputs of a tensor.
    #[must_use]
    pub fn inputs(&self, tensor: &str) -> Option<&Inputs> {
        self.inputs.get(tensor)
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
    /// None where only the mean squares are known.
    store: Option<Arc<Mutex<sample::Store>>>,
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
        let Some(store) = &self.store else { return Ok(Vec::new()) };
        sample::read_rows(store, offsets, self.n_in).map_err(CalibrationError::Store)
    }
}
