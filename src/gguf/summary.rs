//! What a model file is, in one printable value.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::{Array, Gguf, GgufError, Value};

/// The facts about a model file that the `inspect` command shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelSummary {
    /// `general.architecture`.
    pub architecture: String,
    /// `general.name`.
    pub name: Option<String>,
    /// Transformer blocks.
    pub n_block: u64,
    /// Width of the residual stream.
    pub n_embd: u64,
    /// Tokens in the vocabulary, when the file says.
    pub n_vocab: Option<u64>,
    /// Context length the model was trained for.
    pub n_ctx_train: Option<u64>,
    /// Tensors.
    pub n_tensors: usize,
    /// Weights and other tensor elements.
    pub n_parameters: u64,
    /// Bytes by tensor type, most bytes first.
    pub types: Vec<TypeCount>,
    /// Length of the file in bytes.
    pub file_size: u64,
    /// GGUF version.
    pub gguf_version: u32,
    /// Whether there is a `tokenizer.chat_template`.
    pub has_chat_template: bool,
    /// Whether the token embedding is also the output matrix (there is no `output.weight`).
    pub tied_embeddings: bool,
}

/// How much of a file one tensor type takes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TypeCount {
    /// ggml's name of the type.
    pub r#type: String,
    /// Tensors of it.
    pub tensors: usize,
    /// Their bytes together.
    pub bytes: u64,
}

impl ModelSummary {
    /// Bits of tensor data a weight.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        let all: u64 = self.types.iter().map(|t| t.bytes).sum();
        8.0 * all as f64 / self.n_parameters.max(1) as f64
    }

    /// Reads the summary from a header.
    ///
    /// # Errors
    /// A missing or mistyped architecture, block count or width.
    pub fn new(gguf: &Gguf) -> Result<Self, GgufError> {
        let architecture = gguf.arch()?.to_string();
        let mut types: Vec<TypeCount> = Vec::new();
        for tensor in gguf.tensors() {
            match types.iter_mut().find(|t| t.r#type == tensor.ty.name()) {
                Some(count) => {
                    count.tensors += 1;
                    count.bytes += tensor.bytes;
                }
                None => {
                    types.push(TypeCount {
                        r#type: tensor.ty.name().into(),
                        tensors: 1,
                        bytes: tensor.bytes,
                    });
                }
            }
        }
        types.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.r#type.cmp(&b.r#type)));
        let n_vocab = match gguf.get("tokenizer.ggml.tokens") {
            Some(Value::Array(Array::String(tokens))) => Some(tokens.len() as u64),
            Some(Value::Array(Array::RawString(tokens))) => Some(tokens.len() as u64),
            _ => gguf.tensor("token_embd.weight").map(|t| t.ne[1]),
        };
        Ok(Self {
            name: gguf.get_str("general.name").ok().map(str::to_string),
            n_block: gguf.get_u64(&format!("{architecture}.block_count"))?,
            n_embd: gguf.get_u64(&format!("{architecture}.embedding_length"))?,
            n_ctx_train: gguf.get_u64(&format!("{architecture}.context_length")).ok(),
            n_vocab,
            n_tensors: gguf.tensors().len(),
            n_parameters: gguf.tensors().iter().map(super::TensorInfo::elements).sum(),
            types,
            file_size: gguf.file_len(),
            gguf_version: gguf.version(),
            has_chat_template: gguf.get("tokenizer.chat_template").is_some(),
            tied_embeddings: gguf.tensor("output.weight").is_none(),
            architecture,
        })
    }
}
