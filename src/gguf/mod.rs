//! GGUF files: a checked reader over `&[u8]`, a writer, and headers amended without touching what is there.
//!
//! Versions 2 and 3, little-endian. The reader takes what llama.cpp's loader takes and refuses what it refuses, by an
//! error with the tensor or key and the offset; it keeps metadata in order and with exact types, and remembers where
//! everything lay, so that a header can be copied byte for byte. A split model is one [`GgufFile`], whichever part opens it.
//!
//! ```
//! use ggsteer::gguf::{GgufFile, ModelSummary};
//!
//! let file = GgufFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples/lorekeeper-7m-f16.gguf"))?;
//! let summary = ModelSummary::new(&file)?;
//! assert_eq!((summary.architecture.as_str(), summary.n_block, summary.n_embd), ("llama", 8, 256));
//! let tensor = file.tensor("blk.0.ffn_down.weight").expect("every llama has it");
//! assert_eq!((tensor.shape(), file.tensor_data(tensor).len()), (&[768, 256][..], 2 * 768 * 256));
//! # Ok::<(), ggsteer::gguf::GgufError>(())
//! ```

mod amend;
mod cursor;
mod error;
mod file;
mod reader;
mod split;
mod summary;
mod value;
mod writer;

pub use amend::{Changes, PADDING_KEY, amended_header};
pub use error::GgufError;
pub use file::{GgufFile, Part, fingerprint};
pub use reader::{Gguf, TensorInfo};
pub use split::part_paths;
pub use summary::{ModelSummary, TypeCount};
pub use value::{Array, Value, ValueType};
pub use writer::{NewTensor, TensorStream, Writer};

#[cfg(test)]
mod tests;

/// The alignment of tensor data when `general.alignment` does not say.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// `at` rounded up to a multiple of `alignment` (a power of two); `None` past the end of u64.
#[must_use]
pub fn padded(at: u64, alignment: u64) -> Option<u64> {
    at.checked_add(alignment - 1).map(|x| x & !(alignment - 1))
}
