//! Which tensors of which architecture write the residual stream.
//!
//! A writer is a tensor whose output is added to the stream: the embeddings, the output projection of the attention,
//! the down projection of the feed-forward network and its experts, and their biases. The table follows llama.cpp's
//! graph code (`src/models/*.cpp`) and is closed: an architecture that is not in it, a writer that should be there and
//! is not, and a tensor that could write the stream and has no place in it are errors, never guesses.
#![forbid(unsafe_code)]

use serde::Serialize;

use crate::gguf::{Gguf, GgufError, TensorInfo};

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
    /// ne = [n_embd]: b ← b − (b·r)r.
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
    /// The γ of a norm between this tensor's output and the stream (ne = [n_embd]): the tensor must then be orthogonal
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

/// Where an architecture's output matrix may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// `output.weight` must be there.
    Own,
    /// `output.weight` if it is there, `token_embd.weight` otherwise.
    OwnOrTied,
    /// Always `token_embd.weight`; llama.cpp refuses a file with an `output.weight`.
    Tied,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ffn {
    /// `ffn_down`.
    Dense,
    /// `ffn_down_exps`, and `ffn_down_shexp` if there.
    Experts,
    /// Either, block by block.
    Either,
}

struct Spec {
    name: &'static str,
    head: Head,
    ffn: Ffn,
    /// True post-norm blocks: `post_attention_norm` and `post_ffw_norm` stand between the writers and the stream.
    post_norm: bool,
    /// Learned position embeddings are added to the token embeddings.
    position: bool,
    /// A LayerNorm (`token_embd_norm`) stands between the token embedding and the stream.
    embedding_norm: bool,
}

const fn dense(name: &'static str, head: Head) -> Spec {
    Spec { name, head, ffn: Ffn::Dense, post_norm: false, position: false, embedding_norm: false }
}

/// The architectures whose graphs were read. Where attention and feed-forward run side by side (gptneox, phi2, falcon,
/// command-r, stablelm 12B) both still add to the stream; scales on the way (gemma's embedding, granite's residual)
/// change no direction.
const TABLE: &[Spec] = &[
    Spec { ffn: Ffn::Either, ..dense("llama", Head::OwnOrTied) },
    dense("qwen2", Head::OwnOrTied),
    dense("qwen3", Head::OwnOrTied),
    Spec { ffn: Ffn::Experts, ..dense("qwen2moe", Head::Own) },
    Spec { ffn: Ffn::Experts, ..dense("qwen3moe", Head::OwnOrTied) },
    Spec { position: true, ..dense("gpt2", Head::OwnOrTied) },
    dense("gptneox", Head::Own),
    dense("phi2", Head::Own),
    dense("phi3", Head::OwnOrTied),
    dense("falcon", Head::OwnOrTied),
    dense("stablelm", Head::Own),
    dense("gemma", Head::Tied),
    Spec { post_norm: true, ..dense("gemma2", Head::Tied) },
    Spec { post_norm: true, ..dense("gemma3", Head::OwnOrTied) },
    dense("starcoder2", Head::OwnOrTied),
    dense("command-r", Head::Tied),
    dense("olmo", Head::OwnOrTied),
    Spec { post_norm: true, ..dense("olmo2", Head::Own) },
    Spec { ffn: Ffn::Either, ..dense("granite", Head::OwnOrTied) },
    Spec { embedding_norm: true, ..dense("bloom", Head::OwnOrTied) },
    dense("internlm2", Head::Own),
    Spec { ffn: Ffn::Either, ..dense("deepseek2", Head::OwnOrTied) },
];

/// Tensors of a block that read the stream, or work inside an attention or feed-forward network: their output never is
/// the stream, whatever their shape.
const READERS: &[&str] = &[
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_q_a",
    "attn_q_b",
    "attn_kv_a_mqa",
    "attn_kv_b",
    "attn_k_b",
    "attn_v_b",
    "attn_q_norm",
    "attn_k_norm",
    "attn_q_a_norm",
    "attn_kv_a_norm",
    "attn_norm",
    "attn_norm_2",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_gate_up_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "exp_probs_b",
];

/// Tensors outside the blocks that do not write the stream.
const OUTSIDE: &[&str] = &[
    "output",
    "output_norm",
    "rope_freqs",
    "rope_factors_long",
    "rope_factors_short",
    "cls",
    "cls.output",
    "dense_2",
    "dense_3",
];

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
    if let Some(count) = gguf.get("split.count").and_then(crate::gguf::Value::as_u64).filter(|n| *n > 1) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Writer as File;
    use crate::quant::GgmlType;

    const N: u64 = 64;

    fn base(arch: &str) -> File {
        File::new()
            .key("general.architecture", arch)
            .key(format!("{arch}.embedding_length"), N as u32)
            .key(format!("{arch}.block_count"), 1u32)
            .tensor("token_embd.weight", &[N, 96], GgmlType::F32)
    }

    fn block(file: File) -> File {
        file.tensor("blk.0.attn_q.weight", &[N, N], GgmlType::F32)
            .tensor("blk.0.attn_k.weight", &[N, N], GgmlType::F32)
            .tensor("blk.0.attn_v.weight", &[N, N], GgmlType::F32)
            .tensor("blk.0.attn_output.weight", &[N, N], GgmlType::F32)
            .tensor("blk.0.ffn_up.weight", &[N, N], GgmlType::F32)
    }

    fn dense_block(file: File) -> File {
        block(file).tensor("blk.0.ffn_down.weight", &[N, N], GgmlType::F32)
    }

    fn parse(file: File) -> Gguf {
        let mut bytes = file.header().unwrap();
        bytes.resize(bytes.len() + (1 << 20), 0);
        Gguf::parse(&bytes).unwrap()
    }

    fn names(file: File) -> Result<Vec<String>, ArchError> {
        writers(&parse(file)).map(|all| all.into_iter().map(|w| w.tensor).collect())
    }

    #[test]
    fn square_readers_are_not_writers() {
        let found = names(dense_block(base("llama"))).unwrap();
        assert_eq!(found, ["token_embd.weight", "blk.0.attn_output.weight", "blk.0.ffn_down.weight"]);
    }

    #[test]
    fn biases_follow_their_matrices() {
        let file = dense_block(base("llama"))
            .tensor("blk.0.attn_output.bias", &[N], GgmlType::F32)
            .tensor("blk.0.ffn_down.bias", &[N], GgmlType::F32)
            .tensor("blk.0.attn_q.bias", &[N], GgmlType::F32);
        let all = writers(&parse(file)).unwrap();
        assert_eq!(all.iter().filter(|w| w.axis == Axis::Bias).count(), 2);
        assert_eq!(all.len(), 5);
    }

    #[test]
    fn experts_are_placed_and_only_where_they_belong() {
        let experts =
            |file: File| block(file).tensor("blk.0.ffn_down_exps.weight", &[N, N, 4], GgmlType::F32);
        for arch in ["llama", "qwen3moe", "granite", "deepseek2"] {
            assert!(
                names(experts(base(arch))).unwrap().contains(&"blk.0.ffn_down_exps.weight".into()),
                "{arch}"
            );
        }
        let shared = experts(base("qwen2moe")).tensor("blk.0.ffn_down_shexp.weight", &[32, N], GgmlType::F32);
        assert_eq!(names(shared).unwrap().len(), 4);
        assert!(matches!(names(experts(base("qwen2"))), Err(ArchError::Missing { .. })));
        assert!(matches!(names(dense_block(base("qwen3moe"))), Err(ArchError::Missing { .. })));
        let both = dense_block(base("qwen2")).tensor("blk.0.ffn_down_exps.weight", &[N, N, 4], GgmlType::F32);
        assert!(matches!(names(both), Err(ArchError::Unplaced { .. })));
    }

    #[test]
    fn post_norms_are_named() {
        let file = |norms: bool| {
            let file = dense_block(base("gemma2"));
            if !norms {
                return file;
            }
            file.tensor("blk.0.post_attention_norm.weight", &[N], GgmlType::F32).tensor(
                "blk.0.post_ffw_norm.weight",
                &[N],
                GgmlType::F32,
            )
        };
        let all = writers(&parse(file(true))).unwrap();
        assert_eq!(all[1].norm_after.as_deref(), Some("blk.0.post_attention_norm.weight"));
        assert_eq!(all[2].norm_after.as_deref(), Some("blk.0.post_ffw_norm.weight"));
        assert!(all.iter().all(|w| !w.norm_centred));
        assert!(matches!(writers(&parse(file(false))), Err(ArchError::Missing { .. })));
        let stray = dense_block(base("llama")).tensor("blk.0.post_ffw_norm.weight", &[N], GgmlType::F32);
        assert!(matches!(names(stray), Err(ArchError::Unplaced { .. })));
    }

    #[test]
    fn bloom_has_a_centred_norm_behind_its_embedding() {
        let file = dense_block(base("bloom")).tensor("token_embd_norm.weight", &[N], GgmlType::F32).tensor(
            "token_embd_norm.bias",
            &[N],
            GgmlType::F32,
        );
        let all = writers(&parse(file)).unwrap();
        assert!(all[0].norm_centred && all[0].norm_after.is_some());
        assert_eq!((all[1].kind, all[1].norm_after.as_ref()), (WriterKind::EmbeddingNormBias, None));
    }

    #[test]
    fn positions_are_written_by_gpt2() {
        let file = || dense_block(base("gpt2"));
        assert!(matches!(names(file()), Err(ArchError::Missing { .. })));
        let found = names(file().tensor("position_embd.weight", &[N, 32], GgmlType::F32)).unwrap();
        assert_eq!(found[1], "position_embd.weight");
    }

    #[test]
    fn strangers_are_listed() {
        let strangers: [(&str, &[u64]); 7] = [
            ("blk.0.ffn_down.0.weight", &[32, N]),
            ("blk.0.cross_output.weight", &[32, N]),
            ("blk.0.mystery_exps.weight", &[32, N, 4]),
            ("blk.0.mystery.bias", &[N]),
            ("blk.7.ffn_down.weight", &[32, N]),
            ("per_layer_model_proj.weight", &[N, 32]),
            ("token_types.weight", &[N, 2]),
        ];
        for (name, ne) in strangers {
            let error = names(dense_block(base("llama")).tensor(name, ne, GgmlType::F32)).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert!(matches!(error, ArchError::Unplaced { .. }));
        }
    }

    #[test]
    fn blocks_for_further_tokens_are_left_alone() {
        let file = dense_block(base("deepseek2")).key("deepseek2.nextn_predict_layers", 1u32).tensor(
            "blk.1.nextn.eh_proj.weight",
            &[2 * N, N],
            GgmlType::F32,
        );
        // One block in all, and that one is for further tokens: only the embedding is left.
        assert_eq!(names(file).unwrap_err().to_string().matches("blk.1.nextn").count(), 1);
        let file = File::new()
            .key("general.architecture", "deepseek2")
            .key("deepseek2.embedding_length", N as u32)
            .key("deepseek2.block_count", 2u32)
            .key("deepseek2.nextn_predict_layers", 1u32)
            .tensor("token_embd.weight", &[N, 96], GgmlType::F32);
        let file = dense_block(file).tensor("blk.1.nextn.eh_proj.weight", &[2 * N, N], GgmlType::F32);
        assert_eq!(names(file).unwrap().len(), 3);
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let unknown = names(base("martian")).unwrap_err().to_string();
        assert!(unknown.contains("\"martian\"") && unknown.contains("qwen3moe"), "{unknown}");
        let split = names(dense_block(base("llama")).key("split.count", 3u32));
        assert!(matches!(split, Err(ArchError::Split { count: 3 })));
        let gone = names(base("llama").tensor("blk.0.attn_output.weight", &[N, N], GgmlType::F32));
        assert!(
            gone.unwrap_err().to_string().contains("blk.0.ffn_down.weight or blk.0.ffn_down_exps.weight")
        );
        let shape = names(block(base("llama")).tensor("blk.0.ffn_down.weight", &[N, 32], GgmlType::F32));
        assert!(matches!(shape, Err(ArchError::Shape { .. })));
        let endless = File::new()
            .key("general.architecture", "llama")
            .key("llama.embedding_length", N as u32)
            .key("llama.block_count", u32::MAX)
            .tensor("token_embd.weight", &[N, 96], GgmlType::F32);
        assert!(matches!(names(endless), Err(ArchError::Missing { .. })));
    }

    #[test]
    fn heads_are_told_apart() {
        assert_eq!(head(&parse(base("gemma2"))).unwrap(), Head::Tied);
        assert_eq!(head(&parse(base("llama"))).unwrap(), Head::OwnOrTied);
        assert!(tied_embeddings(&parse(base("llama"))));
        assert!(!tied_embeddings(&parse(base("llama").tensor("output.weight", &[N, 96], GgmlType::F32))));
    }
}
