//! The ggml type table and block codecs, through FFI.
//!
//! Sizes, names and codecs all come from the ggml that is linked in, never from a table of ours; what this module
//! adds is the checks that keep ggml from aborting the process: type ids from files, lengths, alignment, finite
//! values, importance where it is needed.
//!
//! ```
//! use ggsteer::quant::{GgmlType, decode, encode};
//!
//! let values: Vec<f32> = (0..32).map(|i| i as f32 - 16.0).collect();
//! let ty = GgmlType::from_name("q8_0").expect("ggml has it");
//! let bytes = encode(ty, &values, 32, None)?;
//! assert_eq!(bytes.len(), 34, "a block: a scale of 16 bits and 32 codes of 8");
//! let mut back = vec![0.0; 32];
//! decode(ty, &bytes, &mut back)?;
//! assert!(values.iter().zip(&back).all(|(x, y)| (x - y).abs() < 0.1));
//! # Ok::<(), ggsteer::quant::CodecError>(())
//! ```

mod codec;
mod grid;
#[cfg(any(miri, test))]
mod miri;
mod types;
mod wide;

pub use codec::{CodecError, decode, encode, validate};
pub use grid::Grid;
pub use types::{GgmlType, UnknownType};
pub(crate) use wide::wide;
