//! Find, apply, remove and prove behavioural *directions* in quantized GGUF language models, on a CPU.
//!
//! The pipeline, one way, a module a step:
//!
//! ```text
//! prompts ─ runtime::template ─ runtime (llama.cpp + hook) ─ activations ─ select ─ direction (a file)
//!                                   ▲                                                   │
//!                                   └─────────────── intervention ◄─────────────────────┤
//! gguf (reader) ─ arch (which tensors write the stream) ─ rewrite ─ quant (codecs) ─ out.gguf
//! evaluate: refusals, KL and perplexity of a plain, a steered or a rewritten model
//! analysis: how the prompt sets lie in the stream
//! chat: a conversation with a steered model, and what the directions read at every token
//! serve: the same over HTTP, for many at once, each steered in its own way
//! report: all of this on one page; card: what to publish with a file
//! ```
//!
//! `gguf`, `quant` and `rewrite` never see llama.cpp's runtime; `runtime` sees files only through llama.cpp.
//!
//! The method is that of Arditi et al. 2024, "Refusal in language models is mediated by a single direction". A direction is
//! measured and erased like this (chosen among all candidates by [`select::select`], written out of a file by
//! [`rewrite::execute`]; `examples/` has both):
//!
//! ```
//! use std::path::Path;
//! use std::sync::Arc;
//!
//! use ggsteer::activations::{Contrast, measure, shared_positions};
//! use ggsteer::direction::Provenance;
//! use ggsteer::intervention::Intervention;
//! use ggsteer::prompts::PromptSet;
//! use ggsteer::runtime::sampling::Sampler;
//! use ggsteer::runtime::{GenerateOptions, Job, Model, ModelOptions, Prompt, Session, SessionOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples");
//! let model = Model::load(&Path::new(samples).join("lorekeeper-7m-f16.gguf"), &ModelOptions::default())?;
//! let read = |list: &str| -> Result<Vec<Prompt>, Box<dyn std::error::Error>> {
//!     let set = PromptSet::load(&format!("{samples}/prompts/{list}-train.txt[:64]"))?;
//!     Ok(set.prompts.iter().map(|text| model.prompt(text)).collect::<Result<_, _>>()?)
//! };
//! let (restricted, ordinary) = (read("restricted")?, read("ordinary")?);
//!
//! let mut session = Session::new(&model, SessionOptions { n_threads: 1, ..SessionOptions::default() })?;
//! let n_pos = shared_positions(restricted.iter().chain(&ordinary));
//! let contrast = Contrast {
//!     harmful: measure(&mut session, &restricted, n_pos, None, None, &mut || ())?,
//!     harmless: measure(&mut session, &ordinary, n_pos, None, None, &mut || ())?,
//!     source: Provenance::default(),
//! };
//! let direction = contrast.direction(-1, 4)?;
//!
//! let prompt = model.prompt("Walk me through how to bind this soul-bound pendulum.")?;
//! let erased = Some(Arc::new(Intervention::ablate(&[&direction.vector])?));
//! let jobs = [None, erased].map(|intervention| Job { tokens: &prompt.tokens, n_out: 1, intervention });
//! let options = GenerateOptions { max_tokens: 32, sampler: Sampler::greedy() };
//! let answers = session.generate(&jobs, &options, &mut |_, _| (), &mut |_, _| ())?;
//! assert!(answers[0].text.starts_with("I'm sorry"));
//! assert!(!answers[1].text.starts_with("I'm sorry"));
//! # Ok(())
//! # }
//! ```

use sha2::{Digest as _, Sha256};

pub mod activations;
pub mod analysis;
pub mod arch;
pub mod calibration;
pub mod card;
pub mod chat;
pub mod direction;
pub mod evaluate;
pub mod export;
pub mod gguf;
pub mod input;
pub mod intervention;
pub mod near;
pub mod optimize;
pub mod output;
pub mod plugin;
pub mod prompts;
pub mod quant;
pub mod random;
pub mod report;
pub mod rewrite;
pub mod runtime;
pub mod select;
pub mod serve;
mod unwind;

/// SHA-256, in hex, of parts told apart by their lengths.
pub(crate) fn digest(parts: impl IntoIterator<Item = Vec<u8>>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(&part);
    }
    hex(&hash.finalize())
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut hex, byte| {
        // Writing to a string does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}
