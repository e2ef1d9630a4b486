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
mod bound;
#[cfg(target_os = "linux")]
mod cut;
mod device;
mod generate;
mod hook;
mod log;
mod model;
pub(crate) mod params;
mod quantize;
pub(crate) mod rows;
pub mod sampling;
mod session;
pub(crate) mod stream;
pub mod template;

use std::path::PathBuf;

pub use adapter::Stock;
pub use bound::{Allocator, exit_past_bounds};
#[cfg(target_os = "linux")]
pub use cut::exit_on_cut_file;
pub use device::{
    BINDINGS, Device, DeviceKind, Listen, connect, cpu_features, devices, exit_on_abort, ggml_version,
    has_rpc, serve,
};
pub(crate) use generate::Characters;
pub use generate::{Completion, Finish, GenerateOptions};
pub use hook::{CapturePlan, Captured, HookError, Probe, Sink, Site};
pub use llama_cpp_2::token::LlamaToken as Token;
pub use log::set_verbose;
pub(crate) use model::digest;
pub use model::{Model, ModelOptions, Prompt, backend};
pub use quantize::{FileType, QuantizeOptions, quantize, quantize_with};
pub use session::{FlashAttention, Item, Job, JobSink, Outputs, Session, SessionOptions, jobs};

/// As many threads as asked for, and for 0 as many as this machine lets the program use.
#[must_use]
pub fn threads(n: usize) -> usize {
    if n > 0 { n } else { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) }
}

/// What can go wrong between the prompt and the logits.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// llama.cpp could not be initialised.
    #[error("llama.cpp: {0}")]
    Backend(String),
    /// A build without llama.cpp's RPC backend.
    #[error(
        "this build has no RPC backend: build with GGML_RPC=ON and GGML_RPC_RDMA=OFF in the environment, which \
         scripts/setup.sh (`make build`) sees to"
    )]
    NoRpc,
    /// A device that is not there.
    #[error("no device {name}: {hint}; `ggsteer doctor` lists them")]
    NoDevice {
        /// Its name as given.
        name: String,
        /// The names there are.
        hint: String,
    },
    /// A server of the RPC backend that cannot be used.
    #[error("RPC server {server}: {why}")]
    Rpc {
        /// Its address as given.
        server: String,
        /// What is wrong, and the next step.
        why: String,
    },
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
    #[error("llama.cpp cannot make a context: {0}; a smaller --ctx or --batch takes less memory")]
    Context(String),
    /// `LlamaContextParams` is not laid out as this build expects.
    #[error(
        "llama-cpp-2's context parameters are not laid out as expected; build against the pinned version"
    )]
    Params,
    /// An eval callback was set before.
    #[error("these context parameters have an eval callback already: llama.cpp calls one a context")]
    CallbackTaken,
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
