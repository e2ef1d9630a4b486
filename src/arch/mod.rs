//! Which tensors of which architecture write the residual stream.
//!
//! A writer is a tensor whose output is added to the stream: the embeddings, the output projection of the
//! attention or of what stands in its place, the down projection of the feed-forward network and its experts,
//! and their biases. The table follows llama.cpp's graph code (`src/models/*.cpp`) and is closed: an
//! architecture that is not in it, a writer that should be there and is not, and a tensor that could write
//! the stream and has no place in it are errors, never guesses. [`coverage`] tells all of it,
//! [`partial_writers`] gives what can be placed in spite of it.
//!
//! ```
//! use ggsteer::arch::writers;
//! use ggsteer::gguf::GgufFile;
//!
//! let file = GgufFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples/lorekeeper-7m-f16.gguf"))?;
//! let writers = writers(&file)?;
//! // The embedding, and of each of 8 blocks the output of attention and that of the FFN.
//! assert_eq!(writers.len(), 17);
//! assert_eq!(writers[0].tensor, "token_embd.weight");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod place;
mod table;
#[cfg(test)]
mod tests;

pub use table::Head;

use serde::Serialize;

use crate::gguf::{Gguf, GgufError, Value};
use table::{Spec, TABLE, UNSERVED};

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
    /// `ssm_out.weight`: a state-space layer or linear attention.
    SsmOutput,
    /// `shortconv.out_proj.weight`.
    ShortConvOutput,
    /// `time_mix_output.weight`: RWKV's linear attention.
    TimeMixOutput,
    /// `ffn_down.weight`.
    FfnDown,
    /// `ffn_down.bias`.
    FfnDownBias,
    /// `channel_mix_value.weight`: RWKV's feed-forward network.
    ChannelMixValue,
    /// `ffn_down_exps.weight`: one slice an expert.
    FfnDownExperts,
    /// `ffn_down_exps.bias`: one row an expert.
    FfnDownExpertsBias,
    /// `ffn_latent_up.weight`, `ffn_routed_up.weight`: from the narrower space experts work in.
    ExpertsLatentUp,
    /// `ffn_down_shexp.weight`: the expert every token goes through.
    FfnDownShared,
    /// `proj.weight`: from the embedding a block has of its own.
    PerLayerProjection,
}

impl WriterKind {
    /// Every [`group`](Self::group).
    pub const GROUPS: [&'static str; 6] = ["embedding", "attention", "ffn", "experts", "ssm", "bias"];

    /// The group people choose writers by. `ssm` is whatever stands in the place of attention.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::TokenEmbedding | Self::PositionEmbedding | Self::PerLayerProjection => "embedding",
            Self::AttentionOutput => "attention",
            Self::SsmOutput | Self::ShortConvOutput | Self::TimeMixOutput => "ssm",
            Self::FfnDown | Self::ChannelMixValue => "ffn",
            Self::FfnDownExperts | Self::ExpertsLatentUp | Self::FfnDownShared => "experts",
            Self::EmbeddingNormBias
            | Self::AttentionOutputBias
            | Self::FfnDownBias
            | Self::FfnDownExpertsBias => "bias",
        }
    }
}

impl std::fmt::Display for WriterKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::TokenEmbedding => "token embedding",
            Self::PositionEmbedding => "position embedding",
            Self::EmbeddingNormBias => "embedding norm bias",
            Self::AttentionOutput => "attention output",
            Self::AttentionOutputBias => "attention output bias",
            Self::SsmOutput => "state-space output",
            Self::ShortConvOutput => "convolution output",
            Self::TimeMixOutput => "time mix output",
            Self::FfnDown => "FFN down",
            Self::FfnDownBias => "FFN down bias",
            Self::ChannelMixValue => "channel mix value",
            Self::FfnDownExperts => "FFN down, experts",
            Self::FfnDownExpertsBias => "FFN down bias, experts",
            Self::ExpertsLatentUp => "latent up, experts",
            Self::FfnDownShared => "FFN down, shared expert",
            Self::PerLayerProjection => "per-layer projection",
        })
    }
}

/// Along which axis of the tensor the residual stream runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// ne = [n_in, n_embd(, n_slice)]: r runs over `ne[1]`, and W ← W − r(rᵀW) in each slice.
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
    /// The γ of a norm between this tensor's output and the stream (ne = \[n_embd\]): the tensor must then be
    /// orthogonal to γ⊙r, normalised, in place of r.
    pub norm_after: Option<String>,
    /// The γ' of a second norm, between the first and the stream: γ⊙γ'⊙r then.
    pub norm_outer: Option<String>,
    /// Whether that norm is a LayerNorm, which subtracts the mean first: γ⊙r then loses its mean too.
    pub norm_centred: bool,
}

impl Writer {
    /// One for tests: a matrix with nothing behind it.
    #[cfg(test)]
    pub(crate) fn matrix(tensor: &str, block: Option<usize>, kind: WriterKind) -> Self {
        let axis = Axis::Output;
        Self {
            tensor: tensor.into(),
            block,
            kind,
            axis,
            norm_after: None,
            norm_outer: None,
            norm_centred: false,
        }
    }

    /// The norms behind this writer from the stream inwards: the order in which a direction of the stream
    /// passes them on its way to the tensor.
    pub fn norms(&self) -> impl Iterator<Item = &str> {
        self.norm_outer.iter().chain(&self.norm_after).map(String::as_str)
    }
}

/// A tensor that keeps a file from being covered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The tensor, or the ones of which one should be there, with `or` between.
    pub tensor: String,
    /// The 0-based block it belongs to.
    pub block: Option<usize>,
    /// Its shape; none where it is missing.
    pub shape: Option<Vec<u64>>,
    /// The shape it should have, in words, where it has another.
    pub expected: Option<String>,
}

/// How an architecture stands to the table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "standing")]
pub enum Standing {
    /// It is in the table.
    Known,
    /// llama.cpp knows it, and orthogonal writers do not keep a direction out of its stream.
    Unserved {
        /// Why.
        reason: String,
    },
    /// It is not in the table.
    #[default]
    Unknown,
}

/// The writers of a file, and what keeps them from being all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// `general.architecture`.
    pub architecture: String,
    /// Whether the table has it.
    #[serde(flatten)]
    pub standing: Standing,
    /// Blocks, without those that predict further tokens ahead.
    pub n_block: usize,
    /// The writers placed: embeddings first, then block by block in the order they add to the stream. Those
    /// that carry the usual names, with no norm behind them, where the table does not have the architecture.
    pub writers: Vec<Writer>,
    /// Writers, and norms behind writers, that the architecture must have and the file has not.
    pub missing: Vec<Gap>,
    /// Writers, and norms behind writers, of another shape than they must have.
    pub misshapen: Vec<Gap>,
    /// Tensors that could write the stream and have no place.
    pub unplaced: Vec<Gap>,
}

impl Coverage {
    /// Whether the writers are all of them, for certain.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.problem().is_none()
    }

    /// What keeps the file from being covered: the first of what there is.
    #[must_use]
    pub fn problem(&self) -> Option<ArchError> {
        let arch = || self.architecture.clone();
        match &self.standing {
            Standing::Unknown => return Some(ArchError::Unknown { arch: arch() }),
            Standing::Unserved { reason } => {
                return Some(ArchError::Unserved { arch: arch(), reason: reason.clone() });
            }
            Standing::Known => {}
        }
        if !self.missing.is_empty() {
            let tensors = self.missing.iter().map(|gap| gap.tensor.clone()).collect();
            return Some(ArchError::Missing { tensors, arch: arch() });
        }
        if let Some(gap) = self.misshapen.first() {
            return Some(ArchError::Shape {
                tensor: gap.tensor.clone(),
                expected: gap.expected.clone().unwrap_or_default(),
                found: gap.shape.clone().unwrap_or_default(),
            });
        }
        let shape = |gap: &Gap| format!("{} {:?}", gap.tensor, gap.shape.as_deref().unwrap_or_default());
        let tensors: Vec<String> = self.unplaced.iter().map(shape).collect();
        (!tensors.is_empty()).then(|| ArchError::Unplaced { tensors, arch: arch() })
    }
}

/// Why the writers of a file cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ArchError {
    /// A key is missing or of another type.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The table does not have this architecture.
    #[error(
        "architecture {arch:?} is not known: its residual writers have no table yet; --partial edits the \
         tensors that carry the usual names"
    )]
    Unknown {
        /// `general.architecture`.
        arch: String,
    },
    /// An architecture that writers orthogonal to a direction do not serve.
    #[error(
        "architecture {arch:?} cannot be orthogonalized: {reason}; --partial edits the tensors that carry \
         the usual names"
    )]
    Unserved {
        /// `general.architecture`.
        arch: String,
        /// Why.
        reason: String,
    },
    /// One file of several.
    #[error("file is one of {count} parts of a split model: merge them first (llama-gguf-split --merge)")]
    Split {
        /// `split.count`.
        count: u64,
    },
    /// More blocks than there can be.
    #[error("\"{arch}.block_count\" is {n_block}, in a file of {tensors} tensors")]
    Blocks {
        /// `general.architecture`.
        arch: String,
        /// Blocks of the model, by its metadata.
        n_block: u64,
        /// Tensors in the file.
        tensors: usize,
    },
    /// Writers, or norms behind them, that this architecture must have.
    #[error(
        "tensors are missing through which architecture {arch:?} writes the residual stream: {}; --partial \
         edits what can be placed", list(.tensors)
    )]
    Missing {
        /// The tensors; where one of several should be there, these with `or` between.
        tensors: Vec<String>,
        /// The architecture.
        arch: String,
    },
    /// Tensors that could write the stream and have no place in the table.
    #[error(
        "tensors that may write the residual stream are not in the table of {arch:?}: {}; --partial edits \
         what can be placed", list(.tensors)
    )]
    Unplaced {
        /// The tensors, each with its shape.
        tensors: Vec<String>,
        /// The architecture.
        arch: String,
    },
    /// A writer of another shape than its kind has.
    #[error("tensor {tensor:?}: shape {found:?}, expected {expected}; --partial leaves it out")]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape it should have, in words.
        expected: String,
        /// Its shape.
        found: Vec<u64>,
    },
}

/// Names with commas: the first ten, and how many more there are.
fn list(names: &[String]) -> String {
    let shown = names.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(10) {
        0 => shown,
        more => format!("{shown}, and {more} more"),
    }
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
    place::spec(arch).ok_or_else(|| match UNSERVED.iter().find(|(name, _)| *name == arch) {
        Some((_, reason)) => ArchError::Unserved { arch: arch.into(), reason: (*reason).into() },
        None => ArchError::Unknown { arch: arch.into() },
    })
}

/// The writers of a model file, and what keeps them from being all of them.
///
/// # Errors
/// A header without architecture, width or block count, or one part of a split model: nothing can be told
/// then.
pub fn coverage(gguf: &Gguf) -> Result<Coverage, ArchError> {
    refuse_part(gguf)?;
    place::coverage(gguf)
}

/// Every writer of a model file: embeddings first, then block by block in the order they add to the stream.
///
/// Blocks that only predict further tokens ahead (`nextn_predict_layers`) write a stream of their own and are
/// left out.
///
/// # Errors
/// See [`ArchError`]: nothing that could write the stream is passed over in silence.
pub fn writers(gguf: &Gguf) -> Result<Vec<Writer>, ArchError> {
    let coverage = coverage(gguf)?;
    match coverage.problem() {
        None => Ok(coverage.writers),
        Some(problem) => Err(problem),
    }
}

/// The writers of a model file that can be placed, be they all or not: what `--partial` edits.
///
/// Of an architecture that the table does not have, or that it says cannot be served, these are the tensors
/// that carry the usual names (`token_embd`, `attn_output`, `ffn_down`, `ffn_down_exps`, `ffn_down_shexp` and
/// their biases) and have the shape of a writer, taken to have no norm behind them. A direction then stays in
/// the stream in part.
///
/// # Errors
/// Those of [`coverage`].
pub fn partial_writers(gguf: &Gguf) -> Result<Vec<Writer>, ArchError> {
    Ok(coverage(gguf)?.writers)
}

/// The bias that llama.cpp adds to the stream, as it is, in this 0-based block: of the FFN's output if it can
/// be, else of the attention's. It may have to be created: zeros of ne = \[n_embd\], F32.
///
/// A constant added to the FFN's bias is added at the output of the block; one added to the attention's also
/// reaches the block's own FFN. None where the loader takes no such bias or the graph does not use it, and
/// where a norm or a scale would change it on its way.
///
/// # Errors
/// An architecture that is missing or not in the table.
pub fn bias_slot(gguf: &Gguf, block: usize) -> Result<Option<String>, ArchError> {
    let spec = spec(gguf)?;
    let has = |name: &str| gguf.tensor(&format!("blk.{block}.{name}")).is_some();
    Ok(spec.biases.iter().find_map(|of| {
        // The scale of `ffn_down` acts behind its bias, that of `attn_output` in front of it.
        let scaled = *of == "ffn_down" && has("ffn_down.scale");
        (has(&format!("{of}.weight")) && !scaled).then(|| format!("blk.{block}.{of}.bias"))
    }))
}

/// One part of a split model does not have all tensors; the parts read as one have.
fn refuse_part(gguf: &Gguf) -> Result<(), ArchError> {
    let number = |key: &str| gguf.get(key).and_then(Value::as_u64);
    let whole = number("split.tensors.count").is_some_and(|n| n == gguf.tensors().len() as u64);
    match number("split.count") {
        Some(count) if count > 1 && !whole => Err(ArchError::Split { count }),
        _ => Ok(()),
    }
}
