//! What can be wrong with a GGUF file.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

/// Why bytes are not a GGUF file, or not the one that was expected. Offsets count from the start of the file.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be read.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The file system's answer.
        source: io::Error,
    },
    /// The magic is another.
    #[error("not a GGUF file: starts with {found:?}, expected \"GGUF\"")]
    Magic {
        /// The first bytes, at most four, as text.
        found: String,
    },
    /// A version other than 2 and 3.
    #[error("GGUF version {0} is not supported: expected 2 or 3")]
    Version(u32),
    /// The version number reads as a big-endian one.
    #[error("big-endian GGUF file (version {0}): only little-endian files are supported")]
    BigEndian(u32),
    /// The file ends within its header.
    #[error("{what}: needs {needed} bytes at {offset}, file ends at {end}")]
    Truncated {
        /// What was being read.
        what: String,
        /// Where it starts.
        offset: u64,
        /// Bytes it takes.
        needed: u64,
        /// The length of the file.
        end: u64,
    },
    /// A count that the rest of the file cannot hold.
    #[error("{what}: {count} at {offset} cannot fit in the {room} bytes left")]
    Count {
        /// What is counted.
        what: String,
        /// The number in the file.
        count: u64,
        /// Where it stands.
        offset: u64,
        /// Bytes left after it.
        room: u64,
    },
    /// A key or tensor name that is not UTF-8.
    #[error("{what} at {offset} is not UTF-8")]
    Utf8 {
        /// Which name.
        what: String,
        /// Where it starts.
        offset: u64,
    },
    /// A key or tensor name that llama.cpp would read only up to a zero byte in it.
    #[error("{what} at {offset} has a zero byte in it")]
    Nul {
        /// Which name.
        what: String,
        /// Where it starts.
        offset: u64,
    },
    /// A key of no characters.
    #[error("empty key at {offset}")]
    EmptyKey {
        /// Where it stands.
        offset: u64,
    },
    /// A key that was there before.
    #[error("key {key:?} at {offset} is there twice")]
    DuplicateKey {
        /// The key.
        key: String,
        /// Where the second one stands.
        offset: u64,
    },
    /// A value type that GGUF does not have.
    #[error("key {key:?}: unknown value type {found} at {offset}")]
    ValueType {
        /// The key.
        key: String,
        /// The number in the file.
        found: u32,
        /// Where it stands.
        offset: u64,
    },
    /// Arrays of arrays of arrays and so on, past what a sane file has.
    #[error("key {key:?}: arrays nested more than {limit} deep at {offset}")]
    Nesting {
        /// The key.
        key: String,
        /// The depth allowed.
        limit: usize,
        /// Where the array stands.
        offset: u64,
    },
    /// An alignment that is not a power of two.
    #[error("general.alignment is {0}, not a power of two")]
    Alignment(u64),
    /// A tensor name that llama.cpp's fixed field cannot hold.
    #[error("tensor name {name:?} has {found} bytes: llama.cpp allows fewer than 64")]
    NameLength {
        /// The name.
        name: String,
        /// Its length in bytes.
        found: usize,
    },
    /// A tensor name that was there before.
    #[error("tensor {name:?} is there twice")]
    DuplicateTensor {
        /// The name.
        name: String,
    },
    /// Too many dimensions.
    #[error("tensor {name:?}: {found} dimensions, expected at most 4")]
    Dimensions {
        /// The tensor.
        name: String,
        /// The number in the file.
        found: u32,
    },
    /// A shape whose elements or bytes cannot be counted in 63 bits.
    #[error("tensor {name:?}: shape {ne:?} is too large")]
    Shape {
        /// The tensor.
        name: String,
        /// Its shape.
        ne: [u64; 4],
    },
    /// A type id that ggml does not know.
    #[error("tensor {name:?}: unknown ggml type id {found}")]
    TensorType {
        /// The tensor.
        name: String,
        /// The number in the file.
        found: u32,
    },
    /// Rows that are no whole number of blocks.
    #[error("tensor {name:?}: rows of {found} elements, expected a multiple of {block} for type {ty}")]
    BlockSize {
        /// The tensor.
        name: String,
        /// `ne[0]`.
        found: u64,
        /// The type's block size.
        block: u64,
        /// The type's name.
        ty: &'static str,
    },
    /// A gap or an overlap before a tensor: llama.cpp wants them in order and without either.
    #[error("tensor {name:?}: data offset {found}, expected {expected}")]
    Offset {
        /// The tensor.
        name: String,
        /// Where the tensor before it ends, padded.
        expected: u64,
        /// The offset in the file.
        found: u64,
    },
    /// The file ends within a tensor's data.
    #[error("tensor {name:?}: needs {needed} bytes at {offset}, file ends at {end}")]
    Data {
        /// The tensor.
        name: String,
        /// Bytes it takes.
        needed: u64,
        /// Where it starts.
        offset: u64,
        /// The length of the file.
        end: u64,
    },
    /// The file goes on long after the data of its tensors.
    #[error(
        "the file's tensors end at {expected}, the file only at {found}: damaged, or preallocated and never cut"
    )]
    Tail {
        /// The end of the last tensor's data.
        expected: u64,
        /// The length of the file.
        found: u64,
    },
    /// A part of a split model whose name is not the one by which llama.cpp finds the others.
    #[error(
        "{}: is part {no} of {count} of a split model, and its name does not end in {expected:?}: rename the parts",
        .path.display()
    )]
    PartName {
        /// The part.
        path: PathBuf,
        /// Its number, from 1.
        no: u64,
        /// Parts in all.
        count: u64,
        /// How its name should end.
        expected: String,
    },
    /// A part of a split model that cannot be opened.
    #[error("{}: part {no} of {count} must lie beside the others: {source}", .path.display())]
    MissingPart {
        /// Where it should be.
        path: PathBuf,
        /// Its number, from 1.
        no: u64,
        /// Parts in all.
        count: u64,
        /// The file system's answer.
        source: io::Error,
    },
    /// A part of a split model that is malformed itself.
    #[error("{}: {source}", .path.display())]
    Part {
        /// The part.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<GgufError>,
    },
    /// A file in the place of a part, which belongs to another model or place.
    #[error("{}: is not that part of this model: {key} is {found}, expected {expected}", .path.display())]
    OtherPart {
        /// The file.
        path: PathBuf,
        /// The key that differs.
        key: &'static str,
        /// The value it should have.
        expected: String,
        /// The value there.
        found: String,
    },
    /// A tensor in two parts of a split model.
    #[error("{}: tensor {name:?} is in another part too", .path.display())]
    PartTensor {
        /// The second part that has it.
        path: PathBuf,
        /// The tensor.
        name: String,
    },
    /// The parts of a split model do not have the tensors they should have together.
    #[error("{}: split.tensors.count is {expected}, the {count} parts hold {found} tensors", .path.display())]
    PartTensors {
        /// The first part.
        path: PathBuf,
        /// What it says.
        expected: i64,
        /// Parts.
        count: usize,
        /// Tensors in all of them.
        found: usize,
    },
    /// A key that should be there and is not.
    #[error("key {key:?} is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A value of another type.
    #[error("key {key:?}: expected {expected}, found {found}")]
    KeyType {
        /// The key.
        key: String,
        /// What was wanted.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A tensor that should be there and is not.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A change to a header that would move everything behind it.
    #[error("key {key:?} cannot be changed in an existing file")]
    FixedKey {
        /// The key.
        key: String,
    },
    /// Bytes given to a writer that do not fill the tensor that is due, or overfill it.
    #[error("tensor {name:?}: {given} bytes given, {expected} expected")]
    TensorBytes {
        /// The tensor, or "(none left)".
        name: String,
        /// Bytes given.
        given: u64,
        /// Bytes that were due.
        expected: u64,
    },
    /// The writer's destination refused.
    #[error("{0}")]
    Write(#[from] io::Error),
}
