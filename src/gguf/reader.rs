//! Parsing a GGUF header out of bytes, every field checked.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::ops::Range;

use super::{Array, DEFAULT_ALIGNMENT, GgufError, Value, ValueType, padded};
use crate::quant::GgmlType;

type Result<T> = std::result::Result<T, GgufError>;

/// Arrays of arrays deeper than this are refused; llama.cpp has none at all.
const MAX_NESTING: usize = 4;

/// A parsed header: metadata and tensors in the file's order, and where everything lies.
#[derive(Debug, Clone)]
pub struct Gguf {
    pub(super) version: u32,
    pub(super) alignment: u64,
    pub(super) metadata: Vec<(String, Value)>,
    pub(super) tensors: Vec<TensorInfo>,
    /// Bytes of each key-value pair, in order.
    pub(super) pair_ranges: Vec<Range<usize>>,
    /// Bytes of all tensor infos together.
    pub(super) infos_range: Range<usize>,
    pub(super) data_start: u64,
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
        let mut at = Cursor { bytes, at: 0 };
        let magic = &bytes[..bytes.len().min(4)];
        if magic != b"GGUF" {
            return Err(GgufError::Magic { found: magic.escape_ascii().to_string() });
        }
        at.at = 4;
        let version = at.u32("version")?;
        if version & 0xffff == 0 && version != 0 {
            return Err(GgufError::BigEndian(version.swap_bytes()));
        }
        if version != 2 && version != 3 {
            return Err(GgufError::Version(version));
        }
        // A tensor info takes at least 24 bytes (name length, dimensions, type, offset), a pair at least 13.
        let n_tensors = at.count("tensor count", 24)?;
        let n_pairs = at.count("key count", 13)?;

        let mut metadata = Vec::with_capacity(n_pairs.min(1 << 16));
        let mut pair_ranges = Vec::with_capacity(n_pairs.min(1 << 16));
        let mut seen = HashSet::new();
        for i in 0..n_pairs {
            let start = at.at;
            let key = at.name(|| format!("key {i}"))?;
            if key.is_empty() {
                return Err(GgufError::EmptyKey { offset: start as u64 });
            }
            if !seen.insert(key.clone()) {
                return Err(GgufError::DuplicateKey { key, offset: start as u64 });
            }
            let value = at.value(&key)?;
            metadata.push((key, value));
            pair_ranges.push(start..at.at);
        }
        let alignment = match metadata.iter().find(|(key, _)| key == "general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some((_, Value::U32(n))) if n.is_power_of_two() => u64::from(*n),
            Some((_, Value::U32(n))) => return Err(GgufError::Alignment(u64::from(*n))),
            Some((key, value)) => {
                return Err(GgufError::KeyType {
                    key: key.clone(),
                    expected: "u32",
                    found: value.describe(),
                });
            }
        };

        let infos_start = at.at;
        let mut tensors: Vec<TensorInfo> = Vec::with_capacity(n_tensors.min(1 << 16));
        let mut seen = HashSet::new();
        let mut next = 0;
        for i in 0..n_tensors {
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
        let infos_range = infos_start..at.at;

        let file_len = bytes.len() as u64;
        let header_end = at.at as u64;
        let data_start = if tensors.is_empty() { Some(header_end) } else { padded(header_end, alignment) };
        let data_start = data_start.ok_or(GgufError::Alignment(alignment))?;
        if data_start > file_len {
            let needed = data_start - header_end;
            return Err(at.truncated("padding after the header".into(), needed));
        }
        for info in &tensors {
            let start = data_start.checked_add(info.offset);
            let end = start.and_then(|start| start.checked_add(info.bytes));
            if end.is_none_or(|end| end > file_len) {
                return Err(GgufError::Data {
                    name: info.name.clone(),
                    needed: info.bytes,
                    offset: start.unwrap_or(u64::MAX),
                    end: file_len,
                });
            }
        }
        Ok(Self { version, alignment, metadata, tensors, pair_ranges, infos_range, data_start, file_len })
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
        self.tensors.iter().find(|t| t.name == name)
    }

    /// Bytes before the data section: the header with its padding.
    #[must_use]
    pub fn header_bytes(&self) -> Range<usize> {
        0..self.data_start as usize
    }

    /// The length of the file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.file_len
    }

    /// The bytes of a tensor within the file.
    #[must_use]
    pub fn data_range(&self, info: &TensorInfo) -> Range<usize> {
        let start = (self.data_start + info.offset) as usize;
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

fn key_type(key: &str, expected: &'static str, found: &Value) -> GgufError {
    GgufError::KeyType { key: key.into(), expected, found: found.describe() }
}

/// Reads forward through bytes; every step is checked against their end.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn room(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn truncated(&self, what: String, needed: u64) -> GgufError {
        GgufError::Truncated { what, offset: self.at as u64, needed, end: self.bytes.len() as u64 }
    }

    fn take(&mut self, n: u64, what: impl FnOnce() -> String) -> Result<&'a [u8]> {
        if n > self.room() {
            return Err(self.truncated(what(), n));
        }
        let slice = &self.bytes[self.at..self.at + n as usize];
        self.at += n as usize;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self, what: impl FnOnce() -> String) -> Result<[u8; N]> {
        Ok(self.take(N as u64, what)?.try_into().expect("take gives the length asked for"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(|| what.into())?))
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(|| what.into())?))
    }

    /// A count of things that take at least `min_size` bytes each.
    fn count(&mut self, what: &str, min_size: u64) -> Result<usize> {
        let offset = self.at as u64;
        let count = self.u64(what)?;
        if count.checked_mul(min_size).is_none_or(|bytes| bytes > self.room()) {
            return Err(GgufError::Count { what: what.into(), count, offset, room: self.room() });
        }
        Ok(count as usize)
    }

    fn string(&mut self, what: impl Fn() -> String) -> Result<&'a [u8]> {
        let len = u64::from_le_bytes(self.array(&what)?);
        self.take(len, what)
    }

    fn name(&mut self, what: impl Fn() -> String) -> Result<String> {
        let offset = self.at as u64;
        let bytes = self.string(&what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| GgufError::Utf8 { what: what(), offset })
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType> {
        let offset = self.at as u64;
        let found = self.u32(key)?;
        ValueType::from_id(found).ok_or_else(|| GgufError::ValueType { key: key.into(), found, offset })
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let what = || format!("key {key:?}");
        Ok(match self.value_type(key)? {
            ValueType::U8 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            ValueType::I8 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            ValueType::U16 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(self.array(what)?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            ValueType::Bool => Value::Bool(self.array::<1>(what)? != [0]),
            ValueType::String => match String::from_utf8(self.string(what)?.to_vec()) {
                Ok(s) => Value::String(s),
                Err(e) => Value::RawString(e.into_bytes()),
            },
            ValueType::Array => Value::Array(self.elements(key, 1)?),
            ValueType::U64 => Value::U64(u64::from_le_bytes(self.array(what)?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(self.array(what)?)),
        })
    }

    fn elements(&mut self, key: &str, depth: usize) -> Result<Array> {
        let offset = self.at as u64;
        if depth > MAX_NESTING {
            return Err(GgufError::Nesting { key: key.into(), limit: MAX_NESTING, offset });
        }
        let ty = self.value_type(key)?;
        let n = self.count(&format!("key {key:?}: array length"), ty.min_size())?;
        Ok(match ty {
            ValueType::U8 => Array::U8(self.numbers(n, key, u8::from_le_bytes)?),
            ValueType::I8 => Array::I8(self.numbers(n, key, i8::from_le_bytes)?),
            ValueType::U16 => Array::U16(self.numbers(n, key, u16::from_le_bytes)?),
            ValueType::I16 => Array::I16(self.numbers(n, key, i16::from_le_bytes)?),
            ValueType::U32 => Array::U32(self.numbers(n, key, u32::from_le_bytes)?),
            ValueType::I32 => Array::I32(self.numbers(n, key, i32::from_le_bytes)?),
            ValueType::F32 => Array::F32(self.numbers(n, key, f32::from_le_bytes)?),
            ValueType::Bool => Array::Bool(self.numbers(n, key, |b: [u8; 1]| b != [0])?),
            ValueType::U64 => Array::U64(self.numbers(n, key, u64::from_le_bytes)?),
            ValueType::I64 => Array::I64(self.numbers(n, key, i64::from_le_bytes)?),
            ValueType::F64 => Array::F64(self.numbers(n, key, f64::from_le_bytes)?),
            ValueType::String => self.strings(n, key)?,
            ValueType::Array => {
                let mut inner = Vec::new();
                for _ in 0..n {
                    inner.push(self.elements(key, depth + 1)?);
                }
                Array::Array(inner)
            }
        })
    }

    fn numbers<const N: usize, T>(&mut self, n: usize, key: &str, from: fn([u8; N]) -> T) -> Result<Vec<T>> {
        // `n * N` was checked against the room when the count was read.
        let bytes = self.take((n * N) as u64, || format!("key {key:?}"))?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|b| from(*b)).collect())
    }

    fn strings(&mut self, n: usize, key: &str) -> Result<Array> {
        let mut all = Vec::with_capacity(n);
        let mut utf8 = true;
        for _ in 0..n {
            let bytes = self.string(|| format!("key {key:?}: string"))?;
            utf8 &= std::str::from_utf8(bytes).is_ok();
            all.push(bytes.to_vec());
        }
        Ok(if utf8 {
            Array::String(
                all.into_iter().map(|b| String::from_utf8(b).expect("each was found to be UTF-8")).collect(),
            )
        } else {
            Array::RawString(all)
        })
    }

    fn tensor(&mut self, i: usize) -> Result<TensorInfo> {
        let name = self.name(|| format!("name of tensor {i}"))?;
        if name.len() >= 64 {
            return Err(GgufError::NameLength { found: name.len(), name });
        }
        let what = format!("tensor {name:?}");
        let n_dims = self.u32(&what)?;
        if n_dims > 4 {
            return Err(GgufError::Dimensions { name, found: n_dims });
        }
        let mut ne = [1; 4];
        for n in ne.iter_mut().take(n_dims as usize) {
            *n = self.u64(&what)?;
        }
        let id = self.u32(&what)?;
        let ty =
            GgmlType::from_id(id).map_err(|_| GgufError::TensorType { name: name.clone(), found: id })?;
        let bytes = tensor_bytes(&name, ne, ty)?;
        let offset = self.u64(&what)?;
        Ok(TensorInfo { name, n_dims, ne, ty, offset, bytes })
    }
}

/// The bytes a tensor of this shape and type takes.
pub(super) fn tensor_bytes(name: &str, ne: [u64; 4], ty: GgmlType) -> Result<u64> {
    let too_large = || GgufError::Shape { name: name.into(), ne };
    let in_range = |n: &u64| i64::try_from(*n).is_ok();
    let elements = ne.iter().try_fold(1u64, |product, n| product.checked_mul(*n));
    if !ne.iter().all(in_range) || !elements.is_some_and(|n| in_range(&n)) {
        return Err(too_large());
    }
    let block = ty.block_size();
    if ne[0] % block != 0 {
        return Err(GgufError::BlockSize { name: name.into(), found: ne[0], block, ty: ty.name() });
    }
    let rows = ne[1..].iter().try_fold(1u64, |product, n| product.checked_mul(*n)).ok_or_else(too_large)?;
    ty.row_size(ne[0]).and_then(|row| row.checked_mul(rows)).filter(in_range).ok_or_else(too_large)
}
