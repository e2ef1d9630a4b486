//! A parsed GGUF header: what holds for the whole of it is checked here, single fields in `cursor`.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::ops::Range;

use super::cursor::Cursor;
use super::{DEFAULT_ALIGNMENT, GgufError, Value, padded};
use crate::quant::GgmlType;

type Result<T> = std::result::Result<T, GgufError>;

/// Bytes that may follow the last tensor's data. llama.cpp takes any number, and then reads them all, which on a sparse
/// file of a terabyte takes hours.
const MAX_TAIL: u64 = 1 << 30;

/// A parsed header: metadata and tensors in the file's order, and where everything lies.
#[derive(Debug, Clone)]
pub struct Gguf {
    pub(super) version: u32,
    pub(super) alignment: u64,
    pub(super) metadata: Vec<(String, Value)>,
    pub(super) tensors: Vec<TensorInfo>,
    /// The places of the tensors, by their names: a file may have tens of thousands.
    pub(super) by_name: Vec<usize>,
    /// Bytes of each key-value pair, in order.
    pub(super) pair_ranges: Vec<Range<usize>>,
    /// Where the data section of each part starts; one entry unless this is a split model as a whole.
    pub(super) data_starts: Vec<u64>,
    pub(super) file_len: u64,
}

/// Name, shape, type and place of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name, unique, fewer than 64 bytes.
    pub name: String,
    /// Dimensions written in the file, 0 to 4.
    pub n_dims: u32,
    /// Elements in each dimension, the contiguous one first; 1 past `n_dims`.
    pub ne: [u64; 4],
    /// The type of its elements.
    pub ty: GgmlType,
    /// Where its data starts, from the start of the data section.
    pub offset: u64,
    /// The part of a split model that holds it, 0-based; 0 for a model in one file.
    pub part: usize,
    /// Bytes of data.
    pub bytes: u64,
}

impl TensorInfo {
    /// Elements in all.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.ne.iter().product()
    }

    /// Rows in all: elements over `ne[0]`.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.ne[1..].iter().product()
    }

    /// The shape without trailing ones that the file does not have.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.ne[..self.n_dims as usize]
    }
}

impl Gguf {
    /// Parses the header at the start of `bytes`, which is the whole file, and checks that the data is all there.
    ///
    /// # Errors
    /// [`GgufError`] names what is wrong and where; nothing panics on any input.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let mut at = Cursor::new(bytes);
        let version = at.version()?;
        // A tensor info takes at least 24 bytes (name length, dimensions, type, offset), a pair at least 13.
        let n_tensors = at.count("tensor count", 24)?;
        let n_pairs = at.count("key count", 13)?;
        let (metadata, pair_ranges) = read_pairs(&mut at, n_pairs)?;
        let alignment = read_alignment(&metadata)?;
        let tensors = read_infos(&mut at, n_tensors, alignment)?;

        let file_len = bytes.len() as u64;
        let header_end = at.position() as u64;
        let data_start = if tensors.is_empty() { Some(header_end) } else { padded(header_end, alignment) };
        let data_start = data_start.ok_or(GgufError::Alignment(alignment))?;
        if data_start > file_len {
            return Err(at.truncated("padding after the header".into(), data_start - header_end));
        }
        let mut data_end = data_start;
        for info in &tensors {
            let start = data_start.checked_add(info.offset);
            let end = start.and_then(|start| start.checked_add(info.bytes));
            let Some(end) = end.filter(|end| *end <= file_len) else {
                return Err(GgufError::Data {
                    name: info.name.clone(),
                    needed: info.bytes,
                    offset: start.unwrap_or(u64::MAX),
                    end: file_len,
                });
            };
            data_end = data_end.max(end);
        }
        if file_len - data_end > MAX_TAIL {
            return Err(GgufError::Tail { expected: data_end, found: file_len });
        }
        let data_starts = vec![data_start];
        let by_name = by_name(&tensors);
        Ok(Self { version, alignment, metadata, tensors, by_name, pair_ranges, data_starts, file_len })
    }

    /// The GGUF version, 2 or 3.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of tensor data, a power of two.
    #[must_use]
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Keys and values in the file's order.
    #[must_use]
    pub fn metadata(&self) -> &[(String, Value)] {
        &self.metadata
    }

    /// Tensors in the file's order, which is also that of their data.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        let at = self.by_name.binary_search_by(|&i| self.tensors[i].name.as_str().cmp(name)).ok()?;
        self.tensors.get(self.by_name[at])
    }

    /// How many files this is: more than one for a split model that was opened as a whole.
    #[must_use]
    pub fn n_parts(&self) -> usize {
        self.data_starts.len()
    }

    /// Bytes before the data section: the header with its padding. Of a split model, the first part's.
    #[must_use]
    pub fn header_bytes(&self) -> Range<usize> {
        0..self.data_starts[0] as usize
    }

    /// The length of the file; of a split model, of all parts together.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// The bytes of a tensor within the file, or within the part that holds it.
    #[must_use]
    pub fn data_range(&self, info: &TensorInfo) -> Range<usize> {
        let start = (self.data_starts[info.part] + info.offset) as usize;
        start..start + info.bytes as usize
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.iter().find(|(k, _)| k == key).map(|(_, value)| value)
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`].
    pub fn require(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| GgufError::MissingKey { key: key.into() })
    }

    /// A string.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], [`GgufError::KeyType`].
    pub fn get_str(&self, key: &str) -> Result<&str> {
        match self.require(key)? {
            Value::String(s) => Ok(s),
            other => Err(key_type(key, "string", other)),
        }
    }

    /// An integer of any width that fits.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], [`GgufError::KeyType`].
    pub fn get_u32(&self, key: &str) -> Result<u32> {
        let value = self.require(key)?;
        value.as_u64().and_then(|n| n.try_into().ok()).ok_or_else(|| key_type(key, "u32", value))
    }

    /// An integer of any width that is not negative.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], [`GgufError::KeyType`].
    pub fn get_u64(&self, key: &str) -> Result<u64> {
        let value = self.require(key)?;
        value.as_u64().ok_or_else(|| key_type(key, "u64", value))
    }

    /// A float.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], [`GgufError::KeyType`].
    pub fn get_f32(&self, key: &str) -> Result<f32> {
        match self.require(key)? {
            Value::F32(x) => Ok(*x),
            other => Err(key_type(key, "f32", other)),
        }
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], [`GgufError::KeyType`].
    pub fn get_bool(&self, key: &str) -> Result<bool> {
        match self.require(key)? {
            Value::Bool(x) => Ok(*x),
            other => Err(key_type(key, "bool", other)),
        }
    }

    /// `general.architecture`.
    ///
    /// # Errors
    /// [`GgufError::MissingKey`], [`GgufError::KeyType`].
    pub fn arch(&self) -> Result<&str> {
        self.get_str("general.architecture")
    }
}

/// Keys and values, and the bytes of each pair.
type Pairs = (Vec<(String, Value)>, Vec<Range<usize>>);

fn read_pairs(at: &mut Cursor<'_>, n: usize) -> Result<Pairs> {
    let mut metadata = Vec::with_capacity(n.min(1 << 16));
    let mut ranges = Vec::with_capacity(n.min(1 << 16));
    let mut seen = HashSet::new();
    for i in 0..n {
        let start = at.position();
        let key = at.name(|| format!("key {i}"))?;
        if key.is_empty() {
            return Err(GgufError::EmptyKey { offset: start as u64 });
        }
        if !seen.insert(key.clone()) {
            return Err(GgufError::DuplicateKey { key, offset: start as u64 });
        }
        let value = at.value(&key)?;
        metadata.push((key, value));
        ranges.push(start..at.position());
    }
    Ok((metadata, ranges))
}

/// `general.alignment`, or the default: a u32 and a power of two.
pub(super) fn read_alignment(metadata: &[(String, Value)]) -> Result<u64> {
    match metadata.iter().find(|(key, _)| key == "general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, Value::U32(n))) if n.is_power_of_two() => Ok(u64::from(*n)),
        Some((_, Value::U32(n))) => Err(GgufError::Alignment(u64::from(*n))),
        Some((key, value)) => Err(key_type(key, "u32", value)),
    }
}

fn read_infos(at: &mut Cursor<'_>, n: usize, alignment: u64) -> Result<Vec<TensorInfo>> {
    let mut tensors = Vec::with_capacity(n.min(1 << 16));
    let mut seen = HashSet::new();
    let mut next = 0;
    for i in 0..n {
        let info = at.tensor(i)?;
        if !seen.insert(info.name.clone()) {
            return Err(GgufError::DuplicateTensor { name: info.name });
        }
        if info.offset != next {
            return Err(GgufError::Offset { name: info.name, expected: next, found: info.offset });
        }
        next = info
            .offset
            .checked_add(info.bytes)
            .and_then(|end| padded(end, alignment))
            .ok_or_else(|| GgufError::Shape { name: info.name.clone(), ne: info.ne })?;
        tensors.push(info);
    }
    Ok(tensors)
}

/// Places of tensors in the order of their names.
pub(super) fn by_name(tensors: &[TensorInfo]) -> Vec<usize> {
    let mut places: Vec<usize> = (0..tensors.len()).collect();
    places.sort_unstable_by(|&a, &b| tensors[a].name.cmp(&tensors[b].name));
    places
}

fn key_type(key: &str, expected: &'static str, found: &Value) -> GgufError {
    GgufError::KeyType { key: key.into(), expected, found: found.describe() }
}

/// The bytes a tensor of this shape and type takes.
pub(super) fn tensor_bytes(name: &str, ne: [u64; 4], ty: GgmlType) -> Result<u64> {
    let too_large = || GgufError::Shape { name: name.into(), ne };
    let in_range = |n: &u64| i64::try_from(*n).is_ok();
    // As ggml counts: what overflows on the way is too large, even where a 0 follows.
    let elements = ne.iter().try_fold(1u64, |product, n| product.checked_mul(*n).filter(in_range));
    if !ne.iter().all(in_range) || elements.is_none() {
        return Err(too_large());
    }
    let block = ty.block_size();
    if !ne[0].is_multiple_of(block) {
        return Err(GgufError::BlockSize { name: name.into(), found: ne[0], block, ty: ty.name() });
    }
    let rows = ne[1..].iter().try_fold(1u64, |product, n| product.checked_mul(*n)).ok_or_else(too_large)?;
    ty.row_size(ne[0]).and_then(|row| row.checked_mul(rows)).filter(in_range).ok_or_else(too_large)
}
