//! The ggml type table and block codecs, through FFI.
//!
//! Sizes, names and codecs all come from the ggml that is linked in, never from a table of ours; what this module
//! adds is the checks that keep ggml from aborting the process: type ids from files, lengths, alignment, finite
//! values, importance where it is needed.

mod codec;
mod grid;
mod types;

pub use codec::{CodecError, decode, encode, validate};
pub use grid::Grid;
pub use types::{GgmlType, UnknownType};
