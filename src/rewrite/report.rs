//! What a rewrite did, measured on the bytes it wrote.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::{Figures, Method};
use crate::arch::WriterKind;
use crate::quant::GgmlType;

/// The outcome of a rewrite.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Each planned tensor, in the order of the file.
    pub tensors: Vec<TensorReport>,
    /// The largest leak of an edited tensor; 0 when none was.
    pub max_leak: f64,
    /// Tensors whose bytes were written anew.
    pub n_edited: usize,
    /// Tensors copied byte for byte, planned ones with nothing along the directions included.
    pub n_untouched: usize,
    /// Whether the original embedding was added as `output.weight`.
    pub untied: bool,
    /// Length of the file written, of all its parts together.
    pub file_size: u64,
    /// Bytes of it that share their place on the disk with the input: the file system can clone.
    pub shared_bytes: u64,
    /// The file written, or all its parts, the first one first.
    #[serde(serialize_with = "displayed")]
    pub files: Vec<PathBuf>,
}

/// What happened to one tensor. R holds the unit directions as this tensor sees them (behind a norm: γ⊙r), W is the
/// input (the source's, where one was given), W' = W − s·R(RᵀW) the exact edit, Ŵ what the written bytes decode to; norms
/// are Frobenius, experts together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorReport {
    /// The tensor.
    pub name: String,
    /// Its type before.
    pub r#type: GgmlType,
    /// Its type in the new file.
    pub out_type: GgmlType,
    /// What it is.
    pub kind: WriterKind,
    /// Its block, 0-based.
    pub block: Option<usize>,
    /// Whether anything was to be edited: false when RᵀW is zero, and the bytes are those of the input.
    pub edited: bool,
    /// How it was rounded.
    pub method: Method,
    /// How much of the edit is in it; on inputs that were held out where there is a calibration.
    #[serde(flatten)]
    pub figures: Figures,
    /// Elements whose W' lay beyond the ends of their grid.
    pub saturated: u64,
    /// Their part of ‖Ŵ − W'‖, in units of the edit.
    pub saturated_share: f64,
    /// Its bytes in the new file.
    pub bytes: u64,
    /// ‖(Ŵ − W')x‖², the mean over held-out inputs x: 0 without any.
    #[serde(skip)]
    pub(super) error_x: f64,
}

impl Report {
    /// Whether a planned tensor was edited.
    pub(super) fn is_edited(&self, tensor: &str) -> bool {
        self.tensors.iter().any(|t| t.name == tensor && t.edited)
    }
}

fn displayed<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path.display().to_string()))
}
