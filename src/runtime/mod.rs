//! llama.cpp with a hook in its graph: load, template, tokenize, decode many prompts at once, generate; capture the
//! residual stream and intervene on it meanwhile.
//!
//! Files reach this room only through llama.cpp.
//!
//! ```
//! use std::path::Path;
//!
//! use ggsteer::runtime::{Job, Model, ModelOptions, Session, SessionOptions};
//!
//! let model = Model::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples/lorekeeper-7m-f16.gguf")), &ModelOptions::default())?;
//! let mut session = Session::new(&model, SessionOptions { n_threads: 1, ..SessionOptions::default() })?;
//! let prompt = model.prompt("Who made the hexed lantern?")?;
//! let job = Job { tokens: &prompt.tokens, n_out: 1, intervention: None };
//! let mut n_logits = 0;
//! session.prefill(&[job], None, &mut |_, logits| n_logits = logits.len())?;
//! assert_eq!(n_logits, model.n_vocab());
//! # Ok::<(), ggsteer::runtime::Error>(())
//! ```

mod adapter;
mod generate;
mod hook;
mod log;
mod model;
mod params;
mod quantize;
mod rows;
pub mod sampling;
mod session;
mod stream;
pub mod template;

use std::path::PathBuf;

pub use adapter::Stock;
pub use generate::{Completion, Finish, GenerateOptions};
pub use hook::{CapturePlan, Captured, HookError, Sink, Site};
pub use llama_cpp_2::token::LlamaToken as Token;
pub use log::set_verbose;
pub(crate) use model::digest;
pub use model::{Model, ModelOptions, Prompt, backend};
pub use quantize::{FileType, QuantizeOptions, quantize};
pub use session::{Item, Job, JobSink, Outputs, Session, SessionOptions, jobs};

/// What can go wrong between the prompt and the logits.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// llama.cpp could not be initialised.
    #[error("llama.cpp: {0}")]
    Backend(String),
    /// No such file.
    #[error("{}: no such file", .0.display())]
    NoFile(PathBuf),
    /// llama.cpp refused the file.
    #[error("{}: llama.cpp cannot load it: {why}", path.display())]
    Load {
        /// The model file.
        path: PathBuf,
        /// llama.cpp's words.
        why: String,
    },
    /// A model without a causal decoder.
    #[error("{}: an embedding-only model: it has no next-token logits to steer", .0.display())]
    EmbeddingOnly(PathBuf),
    /// The file has no chat template and none was given.
    #[error("{}: no chat template in the file; give one with --chat-template NAME or FILE", .0.display())]
    NoTemplate(PathBuf),
    /// The chat template does not compile or render.
    #[error(transparent)]
    Template(#[from] template::TemplateError),
    /// llama.cpp could not make a context.
    #[error("llama.cpp cannot make a context: {0}")]
    Context(String),
    /// `LlamaContextParams` is not laid out as this build expects.
    #[error(
        "llama-cpp-2's context parameters are not laid out as expected; build against the pinned version"
    )]
    Params,
    /// Nothing to compute.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// More tokens than the context or the batch holds.
    #[error("{what}: {found} tokens, the context holds {room}; shorten the prompt or lower --max-tokens")]
    TooLong {
        /// A prompt or a batch.
        what: String,
        /// Its tokens.
        found: usize,
        /// What fits.
        room: usize,
    },
    /// llama.cpp's decode failed.
    #[error("llama.cpp's decode failed: {0}")]
    Decode(String),
    /// Logits of NaN alone: broken weights, or an addition far too large.
    #[error("the model's logits are not numbers; its weights are broken or the addition is too large")]
    NoNumber,
    /// An adapter or control vector that cannot be used.
    #[error("{}: cannot be applied: {why}", path.display())]
    Adapter {
        /// The adapter's file.
        path: PathBuf,
        /// llama.cpp's words, or ours.
        why: String,
    },
    /// llama.cpp's quantizer refused.
    #[error("{}: llama.cpp cannot quantize it: {why}", path.display())]
    Quantize {
        /// The file to quantize.
        path: PathBuf,
        /// llama.cpp's words, or ours.
        why: String,
    },
    /// A name that is no file type of llama.cpp's.
    #[error("unknown type {name}: {hint}")]
    FileType {
        /// The name given.
        name: String,
        /// Names that come near, or all.
        hint: String,
    },
    /// The hook found something wrong.
    #[error("hook: {0}")]
    Hook(#[from] HookError),
}
