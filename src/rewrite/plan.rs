//! What will change, as a printable value.
#![forbid(unsafe_code)]

use std::fmt;

use serde::Serialize;

use super::RewriteError;
use super::basis::{self, Basis};
use crate::arch::{self, Head, Writer, WriterKind};
use crate::gguf::GgufFile;
use crate::quant::{CodecError, GgmlType};

/// What to do with a token embedding that is also the output matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tied {
    /// Edit it, the output with it: as published.
    #[default]
    Edit,
    /// Edit it and write the original as `output.weight`: equals the ablation at run time.
    Untie,
    /// Leave it as it is.
    Skip,
}

/// Choices in making a plan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// For files whose embedding is tied; without effect on others.
    pub tied: Tied,
}

/// A tensor that will be edited.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedTensor {
    /// How it writes the stream.
    pub writer: Writer,
    /// Its type in the file.
    pub r#type: GgmlType,
    /// Its type in the new file.
    pub out_type: GgmlType,
    /// Its shape.
    pub ne: [u64; 4],
    /// Its bytes in the file.
    pub bytes: u64,
}

/// A rewrite that can be done: made by [`Plan::new`], printed by `Display`, done by [`execute`](super::execute).
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The architecture; empty when there is nothing to do.
    pub architecture: String,
    /// Directions, after orthonormalisation.
    pub rank: usize,
    /// Tensors to edit: embeddings first, then block by block.
    pub tensors: Vec<PlannedTensor>,
    /// Whether the embedding is also the output matrix.
    pub tied_embeddings: bool,
    /// What is done about that.
    pub tied: Tied,
    /// Tensors in the file.
    pub n_tensors: usize,
    /// Orthonormal directions, rank × n_embd.
    #[serde(skip)]
    pub(super) basis: Basis,
}

impl Plan {
    /// Plans to write `directions` (each n_embd long, of any length above zero, linearly independent) out of every
    /// writer of `file`. No directions make a plan that changes nothing, for any file.
    ///
    /// # Errors
    /// Directions that do not fit the model or each other; a file whose writers cannot all be told; a writer whose type
    /// cannot be written again.
    pub fn new(file: &GgufFile, directions: &[Vec<f32>], options: Options) -> Result<Self, RewriteError> {
        let mut plan = Self {
            architecture: String::new(),
            rank: 0,
            tensors: Vec::new(),
            tied_embeddings: arch::tied_embeddings(file),
            tied: options.tied,
            n_tensors: file.tensors().len(),
            basis: Basis::new(),
        };
        if directions.is_empty() {
            return Ok(plan);
        }
        let writers = arch::writers(file)?;
        plan.architecture = file.arch()?.to_string();
        let n_embd = file.get_u64(&format!("{}.embedding_length", plan.architecture))? as usize;
        plan.basis = basis::orthonormal(directions, n_embd)?;
        plan.rank = plan.basis.len();
        if plan.unties() && arch::head(file)? == Head::Tied {
            return Err(RewriteError::CannotUntie { arch: plan.architecture });
        }
        for writer in writers {
            let is_head = writer.kind == WriterKind::TokenEmbedding && plan.tied_embeddings;
            if is_head && options.tied == Tied::Skip {
                continue;
            }
            let Some(info) = file.tensor(&writer.tensor) else {
                return Err(RewriteError::OtherFile { tensor: writer.tensor });
            };
            let ty = info.ty;
            let problem = if !ty.can_decode() {
                Some(CodecError::NotFloat(ty))
            } else if !ty.can_encode() {
                Some(CodecError::NoEncoder(ty))
            } else if ty.needs_importance() {
                Some(CodecError::NeedsImportance(ty))
            } else {
                None
            };
            if let Some(source) = problem {
                return Err(RewriteError::Type { tensor: writer.tensor, source });
            }
            plan.tensors.push(PlannedTensor {
                writer,
                r#type: ty,
                out_type: ty,
                ne: info.ne,
                bytes: info.bytes,
            });
        }
        Ok(plan)
    }

    /// Whether the original embedding will be added as `output.weight`.
    #[must_use]
    pub fn unties(&self) -> bool {
        self.tied_embeddings && self.tied == Tied::Untie && self.rank > 0
    }

    /// Bytes of all tensors to edit.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tensors.is_empty() {
            return writeln!(f, "nothing to edit: all {} tensors stay as they are", self.n_tensors);
        }
        let (n, rank) = (self.tensors.len(), self.rank);
        let s = if rank == 1 { "" } else { "s" };
        writeln!(f, "{}: {n} of {} tensors, {rank} direction{s}", self.architecture, self.n_tensors)?;
        for tensor in &self.tensors {
            let shape: Vec<String> = tensor.ne.iter().map(u64::to_string).collect();
            let shape = shape.join(" × ").trim_end_matches(" × 1").to_string();
            write!(f, "  {:<32} {:<8} {shape:<24}", tensor.writer.tensor, tensor.r#type)?;
            match &tensor.writer.norm_after {
                Some(norm) => writeln!(f, " through {norm}")?,
                None => writeln!(f)?,
            }
        }
        if self.tied_embeddings {
            let words = match self.tied {
                Tied::Edit => "edited as both",
                Tied::Untie => "edited; the original becomes output.weight",
                Tied::Skip => "left as it is",
            };
            writeln!(f, "  token_embd.weight is also the output matrix: {words}")?;
        }
        Ok(())
    }
}
