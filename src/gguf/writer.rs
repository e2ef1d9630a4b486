//! Building a new GGUF file: header first, then tensors in order through any `Write`.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::io::Write;

use super::reader::{read_alignment, tensor_bytes};
use super::value::{write_pair, write_string};
use super::{GgufError, Value, padded};
use crate::quant::GgmlType;

type Result<T> = std::result::Result<T, GgufError>;

/// A tensor to be written: its data follows later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name, unique, fewer than 64 bytes.
    pub name: String,
    /// Elements in each dimension, the contiguous one first; at most 4.
    pub ne: Vec<u64>,
    /// The type of its elements.
    pub ty: GgmlType,
}

impl NewTensor {
    /// Bytes of data this tensor takes.
    ///
    /// # Errors
    /// A name, shape or type that a file cannot hold.
    pub fn bytes(&self) -> Result<u64> {
        if self.name.len() >= 64 {
            return Err(GgufError::NameLength { name: self.name.clone(), found: self.name.len() });
        }
        if self.ne.len() > 4 {
            return Err(GgufError::Dimensions { name: self.name.clone(), found: self.ne.len() as u32 });
        }
        let mut ne = [1; 4];
        ne[..self.ne.len()].copy_from_slice(&self.ne);
        tensor_bytes(&self.name, ne, self.ty)
    }

    /// Appends the tensor info as it stands in a file.
    pub(super) fn write_info(&self, offset: u64, out: &mut Vec<u8>) {
        write_string(out, self.name.as_bytes());
        out.extend((self.ne.len() as u32).to_le_bytes());
        out.extend(self.ne.iter().flat_map(|n| n.to_le_bytes()));
        out.extend(self.ty.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
    }
}

/// A new GGUF version 3 file, planned: metadata and tensors in the order they will have.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    metadata: Vec<(String, Value)>,
    tensors: Vec<NewTensor>,
}

impl Writer {
    /// An empty plan.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key. `general.alignment` (a u32) sets the alignment of the data.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// Adds a tensor.
    #[must_use]
    pub fn tensor(mut self, name: impl Into<String>, ne: &[u64], ty: GgmlType) -> Self {
        self.tensors.push(NewTensor { name: name.into(), ne: ne.to_vec(), ty });
        self
    }

    /// The header with its padding: everything before the data.
    ///
    /// # Errors
    /// What a reader would refuse: doubled or empty keys, doubled or long tensor names, shapes that do not fit.
    pub fn header(&self) -> Result<Vec<u8>> {
        let alignment = read_alignment(&self.metadata)?;
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        let mut seen = HashSet::new();
        for (key, value) in &self.metadata {
            if key.is_empty() {
                return Err(GgufError::EmptyKey { offset: out.len() as u64 });
            }
            if !seen.insert(key) {
                return Err(GgufError::DuplicateKey { key: key.clone(), offset: out.len() as u64 });
            }
            write_pair(&mut out, key, value);
        }
        let mut seen = HashSet::new();
        let mut offset = 0;
        for tensor in &self.tensors {
            if !seen.insert(&tensor.name) {
                return Err(GgufError::DuplicateTensor { name: tensor.name.clone() });
            }
            tensor.write_info(offset, &mut out);
            offset = tensor
                .bytes()?
                .checked_add(offset)
                .and_then(|end| padded(end, alignment))
                .ok_or(GgufError::Alignment(alignment))?;
        }
        if !self.tensors.is_empty() {
            let end = padded(out.len() as u64, alignment).ok_or(GgufError::Alignment(alignment))?;
            out.resize(end as usize, 0);
        }
        Ok(out)
    }

    /// Writes the header; the tensors' data follows through the stream.
    ///
    /// # Errors
    /// As [`Writer::header`], and [`GgufError::Write`].
    pub fn start<W: Write>(self, mut out: W) -> Result<TensorStream<W>> {
        let header = self.header()?;
        let alignment = read_alignment(&self.metadata)?;
        out.write_all(&header)?;
        let due =
            self.tensors.iter().map(|t| Ok((t.name.clone(), t.bytes()?))).collect::<Result<Vec<_>>>()?;
        Ok(TensorStream { out, alignment, due, current: 0, given: 0 })
    }
}

/// The data section of a new file: tensors in order, in pieces of any size.
#[derive(Debug)]
pub struct TensorStream<W: Write> {
    out: W,
    alignment: u64,
    due: Vec<(String, u64)>,
    current: usize,
    given: u64,
}

impl<W: Write> TensorStream<W> {
    /// The next bytes of the tensor that is due; padding is added when it is complete.
    ///
    /// # Errors
    /// [`GgufError::TensorBytes`] for more bytes than the tensor takes, [`GgufError::Write`].
    pub fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let Some((name, expected)) = self.due.get(self.current) else {
            let given = bytes.len() as u64;
            return Err(GgufError::TensorBytes { name: "(none left)".into(), given, expected: 0 });
        };
        let given = self.given + bytes.len() as u64;
        if given > *expected {
            return Err(GgufError::TensorBytes { name: name.clone(), given, expected: *expected });
        }
        self.out.write_all(bytes)?;
        self.given = given;
        if given == *expected {
            let end = padded(given, self.alignment).unwrap_or(given);
            self.out.write_all(&vec![0; (end - given) as usize])?;
            self.current += 1;
            self.given = 0;
        }
        Ok(())
    }

    /// Gives the destination back once every tensor is complete.
    ///
    /// # Errors
    /// [`GgufError::TensorBytes`] names the tensor that is not.
    pub fn finish(self) -> Result<W> {
        match self.due.get(self.current) {
            None => Ok(self.out),
            Some((name, expected)) => {
                Err(GgufError::TensorBytes { name: name.clone(), given: self.given, expected: *expected })
            }
        }
    }
}
