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
//! ```
//!
//! `gguf`, `quant` and `rewrite` never see llama.cpp's runtime; `runtime` sees files only through llama.cpp.
//!
//! The method is that of Arditi et al. 2024, "Refusal in language models is mediated by a single direction".

use sha2::{Digest as _, Sha256};

pub mod activations;
pub mod analysis;
pub mod arch;
pub mod calibration;
pub mod card;
pub mod direction;
pub mod evaluate;
pub mod export;
pub mod gguf;
pub mod intervention;
pub mod optimize;
pub mod output;
pub mod prompts;
pub mod quant;
pub mod random;
pub mod rewrite;
pub mod runtime;
pub mod select;

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
