//! What can be wrong with a calibration.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use crate::gguf::GgufError;
use crate::output::OutputError;
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
    #[error("sampled activations cannot be stored (in TMPDIR, where large) or read back: {0}")]
    Store(#[from] io::Error),
    /// Not a GGUF file, or one that cannot be read.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// Another kind of GGUF file.
    #[error("{}: not {expected}: general.{key} is {found}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// The kind it should be of.
        expected: &'static str,
        /// `architecture` or `type`.
        key: &'static str,
        /// What it says.
        found: String,
    },
    /// A tensor that is missing, or of a type, shape or content that does not fit.
    #[error("{}: tensor {name:?}: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The calibration or imatrix file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What was expected.
        expected: String,
        /// What is there.
        found: String,
    },
    /// An imatrix file of the old format that does not add up.
    #[error("{}: not an imatrix file: {what} at {offset}: {found}", path.display())]
    Imatrix {
        /// The file.
        path: PathBuf,
        /// The field.
        what: String,
        /// Where it stands.
        offset: usize,
        /// What is wrong with it.
        found: String,
    },
    /// Inputs that are not those of this model's writers.
    #[error("calibration of another model: {what}: expected {expected}, found {found}")]
    Misfit {
        /// The architecture, or a tensor.
        what: String,
        /// What this model has.
        expected: String,
        /// What the calibration has.
        found: String,
    },
    /// Inputs of a model that has the same shapes and another name.
    #[error(
        "calibration of another model: {found}; this one is {expected}; collect it from this model, or accept it with \
         --other-calibration"
    )]
    OtherModel {
        /// This model: name and fingerprint.
        expected: String,
        /// The calibrated one.
        found: String,
    },
    /// Too few rows for any statement.
    #[error(
        "calibration of {tensor:?}: {found} sampled rows, at least {needed} are needed; calibrate with more prompts"
    )]
    Few {
        /// The writer.
        tensor: String,
        /// Rows to fit on, of all its slices.
        found: usize,
        /// The fewest allowed.
        needed: usize,
    },
    /// The output file could not be finished.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The output file could not be written; the cause names it.
    #[error(transparent)]
    Write(GgufError),
}
