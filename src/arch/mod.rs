//! Which tensors of which architecture write the residual stream.
//!
//! A writer is a tensor whose output is added to the stream: the embeddings, the output projection of the attention,
//! the down projection of the feed-forward network and its experts, and their biases. The table follows llama.cpp's
//! graph code (`src/models/*.cpp`) and is closed: an architecture that is not in it, a writer that should be there and
//! is not, and a tensor that could write the stream and has no place in it are errors, never guesses.
#![forbid(unsafe_code)]

mod table;
#[cfg(test)]
mod tests;

pub use table::Head;

use serde::Serialize;

use crate::gguf::{Gguf, GgufError, TensorInfo};
use table::{Ffn, OUTSIDE, READERS, Spec, TABLE};

/// What a writer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WriterKind {
    /// `token_embd.weight`.
    TokenEmbedding,
    /// `position_embd.weight`.
    PositionEmbedding,
    /// The bias of a norm between the token embedding and the stream.
    EmbeddingNormBias,
    /// `attn_output.weight`.
    AttentionOutput,
    /// `attn_output.bias`.
    AttentionOutputBias,
    /// `ffn_down.weight`.
    FfnDown,
    /// `ffn_down.bias`.
    FfnDownBias,
    /// `ffn_down_exps.weight`: one slice an expert.
    FfnDownExperts,
    /// `ffn_down_shexp.weight`: the expert every token goes through.
    FfnDownShared,
}

impl std::fmt::Display for WriterKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::TokenEmbedding => "token embedding",
            Self::PositionEmbedding => "position embedding",
            Self::EmbeddingNormBias => "embedding norm bias",
            Self::AttentionOutput => "attention output",
            Self::AttentionOutputBias => "attention output bias",
            Self::FfnDown => "FFN down",
            Self::FfnDownBias => "FFN down bias",
            Self::FfnDownExperts => "FFN down, experts",
            Self::FfnDownShared => "FFN down, shared expert",
        })
    }
}

/// Along which axis of the tensor the residual stream runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// ne = [n_in, n_embd(, n_expert)]: r runs over `ne[1]`, and W ← W − r(rᵀW) in each slice.
    Output,
    /// ne = [n_embd, n]: r runs over `ne[0]`, and each row w ← w − (w·r)r.
    Row,
    /// ne = \[n_embd\]: b ← b − (b·r)r.
    Bias,
}

/// A tensor that writes the residual stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Writer {
    /// The tensor's name.
    pub tensor: String,
    /// The 0-based block it belongs to; none for embeddings.
    pub block: Option<usize>,
    /// What it is.
    pub kind: WriterKind,
    /// How the stream lies in it.
    pub axis: Axis,
    /// The γ of a norm between this tensor's output and the stream (ne = \[n_embd\]): the tensor must then be orthogonal
    /// to γ⊙r, normalised, in place of r.
    pub norm_after: Option<String>,
    /// Whether that norm is a LayerNorm, which subtracts the mean first: γ⊙r then loses its mean too.
    pub norm_centred: bool,
}

/// Why the writers of a file cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ArchError {
    /// A key is missing or of another type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The table does not have this architecture.
    #[error("architecture {arch:?} is not known: its residual writers have no table yet (known: {known})")]
    Unknown {
        /// `general.architecture`.
        arch: String,
        /// The known ones, with commas.
        known: String,
    },
    /// One file of several.
    #[error("file is one of {count} parts of a split model: merge them first (llama-gguf-split --merge)")]
    Split {
        /// `split.count`.
        count: u64,
    },
    /// A writer, or the norm behind it, that this architecture must have.
    #[error("tensor {tensor:?} is missing: architecture {arch:?} writes the residual stream through it")]
    Missing {
        /// The tensor, or the ones of which one should be there.
        tensor: String,
        /// The architecture.
        arch: String,
    },
    /// Tensors that could write the stream and have no place in the table.
    #[error("tensors that may write the residual stream are not in the table of {arch:?}: {}", .tensors.join(", "))]
    Unplaced {
        /// The tensors, each with its shape.
        tensors: Vec<String>,
        /// The architecture.
        arch: String,
    },
    /// A writer of another shape than its kind has.
    #[error("tensor {tensor:?}: shape {found:?}, expected {expected}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape it should have, in words.
        expected: String,
        /// Its shape.
        found: Vec<u64>,
    },
}

/// The names of the architectures in the table.
pub fn known() -> impl Iterator<Item = &'static str> {
    TABLE.iter().map(|spec| spec.name)
}

/// Where the output matrix of this file's architecture may come from.
///
/// # Errors
/// An architecture that is missing or not in the table.
pub fn head(gguf: &Gguf) -> Result<Head, ArchError> {
    Ok(spec(gguf)?.head)
}

/// Whether the token embedding of this file is also its output matrix.
#[must_use]
pub fn tied_embeddings(gguf: &Gguf) -> bool {
    gguf.tensor("output.weight").is_none()
}

fn spec(gguf: &Gguf) -> Result<&'static Spec, ArchError> {
    let arch = gguf.arch()?;
    TABLE.iter().find(|spec| spec.name == arch).ok_or_else(|| ArchError::Unknown {
        arch: arch.into(),
        known: known().collect::<Vec<_>>().join(", "),
    })
}

/// Every writer of a model file: embeddings first, then block by block in the order they add to the stream.
///
/// Blocks that only predict further tokens ahead (`nextn_predict_layers`) write a stream of their own and are left out.
///
/// # Errors
/// See [`ArchError`]: nothing that could write the stream is passed over in silence.
pub fn writers(gguf: &Gguf) -> Result<Vec<Writer>, ArchError> {
    let count = gguf.get("split.count").and_then(crate::gguf::Value::as_u64);
    if let Some(count) = count.filter(|n| *n > gguf.n_parts() as u64) {
        return Err(ArchError::Split { count });
    }
    let spec = spec(gguf)?;
    let n_embd = gguf.get_u64(&format!("{}.embedding_length", spec.name))?;
    let n_block_all = gguf.get_u64(&format!("{}.block_count", spec.name))?;
    let n_nextn = gguf.get_u64(&format!("{}.nextn_predict_layers", spec.name)).unwrap_or(0);
    let n_block = n_block_all.saturating_sub(n_nextn);
    // Each block has tensors, so a block count above theirs is a broken file: found before it becomes a long loop.
    if n_block > gguf.tensors().len() as u64 {
        return Err(missing(spec, format!("blk.{}.attn_output.weight", gguf.tensors().len())));
    }

    let mut found = Found { gguf, spec, n_embd, writers: Vec::new() };
    let embedding_norm = spec.embedding_norm.then(|| "token_embd_norm.weight".to_string());
    found.push("token_embd.weight", None, WriterKind::TokenEmbedding, Axis::Row, embedding_norm)?;
    if spec.embedding_norm {
        found.push("token_embd_norm.bias", None, WriterKind::EmbeddingNormBias, Axis::Bias, None)?;
    }
    if spec.position {
        found.push("position_embd.weight", None, WriterKind::PositionEmbedding, Axis::Row, None)?;
    }
    for block in 0..n_block as usize {
        found.block(block)?;
    }
    let Found { writers, .. } = found;

    let unplaced: Vec<String> = gguf
        .tensors()
        .iter()
        .filter(|t| {
            !writers.iter().any(|w| w.tensor == t.name) && may_write(t, spec, n_embd, n_block, n_block_all)
        })
        .map(|t| format!("{} {:?}", t.name, t.shape()))
        .collect();
    if unplaced.is_empty() {
        Ok(writers)
    } else {
        Err(ArchError::Unplaced { tensors: unplaced, arch: spec.name.into() })
    }
}

fn missing(spec: &Spec, tensor: String) -> ArchError {
    ArchError::Missing { tensor, arch: spec.name.into() }
}

struct Found<'a> {
    gguf: &'a Gguf,
    spec: &'static Spec,
    n_embd: u64,
    writers: Vec<Writer>,
}

impl Found<'_> {
    fn block(&mut self, block: usize) -> Result<(), ArchError> {
        let blk = |name: &str| format!("blk.{block}.{name}");
        let norm = |name: &str| self.spec.post_norm.then(|| blk(name));
        let (attention_norm, ffn_norm) = (norm("post_attention_norm.weight"), norm("post_ffw_norm.weight"));
        let at = Some(block);

        let attention = [
            ("attn_output.weight", WriterKind::AttentionOutput, Axis::Output),
            ("attn_output.bias", WriterKind::AttentionOutputBias, Axis::Bias),
        ];
        for (name, kind, axis) in attention {
            if kind == WriterKind::AttentionOutput || self.has(&blk(name)) {
                self.push(&blk(name), at, kind, axis, attention_norm.clone())?;
            }
        }
        let down = [
            ("ffn_down.weight", WriterKind::FfnDown, Axis::Output, self.spec.ffn != Ffn::Experts),
            ("ffn_down_exps.weight", WriterKind::FfnDownExperts, Axis::Output, self.spec.ffn != Ffn::Dense),
        ];
        let before = self.writers.len();
        for (name, kind, axis, allowed) in down {
            if allowed && self.has(&blk(name)) {
                self.push(&blk(name), at, kind, axis, ffn_norm.clone())?;
            }
        }
        if self.writers.len() == before {
            let names = down.iter().filter(|d| d.3).map(|d| blk(d.0)).collect::<Vec<_>>().join(" or ");
            return Err(missing(self.spec, names));
        }
        let more = [
            ("ffn_down_shexp.weight", WriterKind::FfnDownShared, Axis::Output, self.spec.ffn != Ffn::Dense),
            ("ffn_down.bias", WriterKind::FfnDownBias, Axis::Bias, self.spec.ffn != Ffn::Experts),
        ];
        for (name, kind, axis, allowed) in more {
            if allowed && self.has(&blk(name)) {
                self.push(&blk(name), at, kind, axis, ffn_norm.clone())?;
            }
        }
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    fn push(
        &mut self,
        name: &str,
        block: Option<usize>,
        kind: WriterKind,
        axis: Axis,
        norm_after: Option<String>,
    ) -> Result<(), ArchError> {
        let tensor = self.gguf.tensor(name).ok_or_else(|| missing(self.spec, name.into()))?;
        let n = self.n_embd;
        let (fits, expected) = match (kind, axis) {
            (WriterKind::FfnDownExperts, _) => {
                (tensor.ne[1] == n && tensor.ne[3] == 1, format!("[n_in, {n}, n_expert]"))
            }
            (_, Axis::Output) => (tensor.ne[1] == n && tensor.ne[2..] == [1, 1], format!("[n_in, {n}]")),
            (_, Axis::Row) => (tensor.ne[0] == n && tensor.ne[2..] == [1, 1], format!("[{n}, n]")),
            (_, Axis::Bias) => (tensor.ne == [n, 1, 1, 1], format!("[{n}]")),
        };
        if !fits {
            return Err(ArchError::Shape { tensor: name.into(), expected, found: tensor.shape().to_vec() });
        }
        if let Some(norm) = &norm_after {
            let gamma = self.gguf.tensor(norm).ok_or_else(|| missing(self.spec, norm.clone()))?;
            if gamma.ne != [n, 1, 1, 1] {
                let found = gamma.shape().to_vec();
                return Err(ArchError::Shape { tensor: norm.clone(), expected: format!("[{n}]"), found });
            }
        }
        let norm_centred = kind == WriterKind::TokenEmbedding && norm_after.is_some();
        self.writers.push(Writer { tensor: name.into(), block, kind, axis, norm_after, norm_centred });
        Ok(())
    }
}

/// Whether a tensor that is no writer in the table could be one by its shape, and is not known to be something else.
fn may_write(tensor: &TensorInfo, spec: &Spec, n_embd: u64, n_block: u64, n_block_all: u64) -> bool {
    let Some((base, suffix)) = tensor.name.rsplit_once('.') else {
        return tensor.ne[0] == n_embd || tensor.ne[1] == n_embd;
    };
    let is_matrix = tensor.ne[1] > 1 || tensor.ne[2] > 1;
    let block = base.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    let Some((block, base)) = block else {
        let known = OUTSIDE.contains(&base) || (spec.embedding_norm && base == "token_embd_norm");
        return !known && (tensor.ne[0] == n_embd || tensor.ne[1] == n_embd);
    };
    if block.parse::<u64>().is_ok_and(|il| (n_block..n_block_all).contains(&il)) {
        return false;
    }
    if base.starts_with("post_") {
        // A norm behind a writer changes what the writer must be orthogonal to.
        return !spec.post_norm;
    }
    if READERS.contains(&base) {
        return false;
    }
    match suffix {
        "scale" | "input_scale" => false,
        "bias" => tensor.ne[0] == n_embd,
        _ => is_matrix && (tensor.ne[1] == n_embd || tensor.ne[0] == n_embd),
    }
}
