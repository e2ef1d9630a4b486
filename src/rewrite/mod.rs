//! Writing directions out of a model file's weights: plan, execute, verify.
//!
//! [`Plan::new`] says which tensors of a file will change and refuses what cannot be done, before anything is written;
//! [`execute`] streams the file through, one tensor at a time, into an [`OutputFile`](crate::output::OutputFile) and
//! measures what it wrote; [`verify_untouched`] reads both files and proves that nothing else changed; only then
//! [`Written::commit`] gives the output its name. With nothing to do the output is the input, byte for byte.
//!
//! ```
//! use ggsteer::gguf::GgufFile;
//! use ggsteer::output::OutputFile;
//! use ggsteer::rewrite::{How, Options, Plan, Rounding, execute, verify_untouched};
//!
//! let file = GgufFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples/lorekeeper-7m-f16.gguf"))?;
//! let direction: Vec<f32> = (0..256).map(|i| (i as f32).sin()).collect();
//! let plan = Plan::new(&file, &[direction], Options::default())?;
//!
//! let folder = tempfile::tempdir()?;
//! let out = OutputFile::create(&folder.path().join("out.gguf"), false, &[file.path()])?;
//! let how = How { rounding: Rounding::Nearest, ..How::default() };
//! let written = execute(&file, &plan, &how, out, &[], &mut |_| ())?;
//! verify_untouched(&file, written.file(), &plan)?;
//! let report = written.commit()?;
//! assert_eq!(report.n_edited, 17);
//! assert!(report.max_leak < 0.01);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod addition;
mod basis;
mod descent;
mod editor;
mod estimate;
mod execute;
mod figures;
mod grow;
mod header;
mod nearest;
mod plan;
mod record;
mod report;
mod round;
mod rows;
mod scope;
mod target;
mod verify;

pub use addition::PlannedAddition;
pub use descent::Settings;
pub use estimate::estimate;
pub use execute::{Progress, Written, execute};
pub use figures::{Figures, Meter, Part, Totals};
pub use grow::{Grown, Growth, grow};
pub use plan::{Options, Plan, PlannedTensor, Tied};
pub use record::{Record, RecordedAddition, RecordedDirection};
pub use report::{Report, TensorReport};
pub use round::{How, Method, Rounding};
pub use scope::{Blocks, Groups, Scope, ScopeError, Strength};
pub use verify::{TensorCheck, Verification, VerifyError, verify, verify_untouched, verify_untouched_with};

pub(crate) use basis::{orthonormal, seen_by};
pub(crate) use rows::Rows;

use std::io;

use crate::arch::ArchError;
use crate::calibration::CalibrationError;
use crate::gguf::GgufError;
use crate::output::OutputError;
use crate::quant::{CodecError, GgmlType};

/// Why a file cannot be rewritten.
#[derive(Debug, thiserror::Error)]
pub enum RewriteError {
    /// The writers of the file cannot be told.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// The file's metadata, or the new header, is not as it should be.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A direction for another width.
    #[error("direction {index} has n_embd {found}, model has {expected}")]
    Width {
        /// The direction's place in the list.
        index: usize,
        /// The model's width.
        expected: usize,
        /// The direction's length.
        found: usize,
    },
    /// A direction with a NaN or an infinity.
    #[error("direction {index} has a value that is not finite")]
    NotFinite {
        /// The direction's place in the list.
        index: usize,
    },
    /// A direction of length zero, or one that those before it span.
    #[error(
        "direction {index} is zero or lies in the span of the ones before it ({left:.1e} of its length is left)"
    )]
    Dependent {
        /// The direction's place in the list.
        index: usize,
        /// What is left of its length when the others are taken out, from 0 to 1.
        left: f64,
    },
    /// A tensor whose type cannot be decoded or written again.
    #[error("tensor {tensor:?} cannot be rewritten: {source}")]
    Type {
        /// The tensor.
        tensor: String,
        /// What is wrong with its type.
        source: CodecError,
    },
    /// An architecture for which llama.cpp knows no output matrix of its own.
    #[error(
        "architecture {arch:?} always uses its token embedding as output matrix: llama.cpp would refuse an output.weight"
    )]
    CannotUntie {
        /// The architecture.
        arch: String,
    },
    /// A weight that is NaN or infinite.
    #[error("tensor {tensor:?}: value {value} at row {row}, column {column} is not finite")]
    Weight {
        /// The tensor.
        tensor: String,
        /// Row, counted through all slices.
        row: u64,
        /// Column.
        column: usize,
        /// The value.
        value: f32,
    },
    /// An edited value that the tensor's type cannot hold.
    #[error("tensor {tensor:?}: the edited value at row {row} is out of range for type {ty}")]
    Range {
        /// The tensor.
        tensor: String,
        /// Row, counted through all slices.
        row: u64,
        /// The type.
        ty: GgmlType,
    },
    /// Blocks, writers or strengths that the model does not have.
    #[error(transparent)]
    Scope(#[from] ScopeError),
    /// A block without a bias that the stream would get as it is.
    #[error(
        "architecture {arch:?} has no bias in block {block} to add a direction by; add it while the model runs \
         (--add of generate, or export control-vector)"
    )]
    NoSlot {
        /// The architecture.
        arch: String,
        /// The 0-based block.
        block: usize,
    },
    /// Rows that are no whole number of blocks of the type they are to get.
    #[error("tensor {tensor:?} cannot become {ty}: its rows of {n} are no multiple of {}", ty.block_size())]
    Upcast {
        /// The tensor.
        tensor: String,
        /// The type it was to get.
        ty: GgmlType,
        /// Elements of a row.
        n: u64,
    },
    /// A source of higher precision that is not the same model's.
    #[error("source: {what}: expected {expected}, found {found}")]
    Source {
        /// The architecture, or a tensor.
        what: String,
        /// What the model has.
        expected: String,
        /// What the source has.
        found: String,
    },
    /// A quantized matrix that is to be rounded for its inputs, and no inputs.
    #[error(
        "tensor {tensor:?} is {ty}: to round it for the inputs it gets, they must be known; give prompts, a calibration or \
         an importance matrix, or round without"
    )]
    Uncalibrated {
        /// The tensor.
        tensor: String,
        /// Its type.
        ty: GgmlType,
    },
    /// The inputs of a writer cannot be read.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
    /// The plan was made for another file.
    #[error("plan does not fit the file: tensor {tensor:?} differs")]
    OtherFile {
        /// The tensor.
        tensor: String,
    },
    /// The output file could not be finished.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The output file could not be written.
    #[error("{0}")]
    Write(#[from] io::Error),
}
