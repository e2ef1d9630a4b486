//! Reading single fields out of bytes, each checked.
#![forbid(unsafe_code)]

use super::reader::tensor_bytes;
use super::{Array, GgufError, TensorInfo, Value, ValueType};
use crate::quant::GgmlType;

type Result<T> = std::result::Result<T, GgufError>;

/// Arrays of arrays deeper than this are refused; llama.cpp has none at all.
const MAX_NESTING: usize = 4;

/// Reads forward through bytes; every step is checked against their end.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// Magic and version.
    pub(super) fn version(&mut self) -> Result<u32> {
        let magic = &self.bytes[..self.bytes.len().min(4)];
        if magic != b"GGUF" {
            return Err(GgufError::Magic { found: magic.escape_ascii().to_string() });
        }
        self.at = 4;
        match self.u32("version")? {
            version @ (2 | 3) => Ok(version),
            // llama.cpp tells the byte order of a file in the same way.
            version if version != 0 && version.trailing_zeros() >= 16 => {
                Err(GgufError::BigEndian(version.swap_bytes()))
            }
            version => Err(GgufError::Version(version)),
        }
    }

    fn room(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The error for `needed` bytes that are not there.
    pub(super) fn truncated(&self, what: String, needed: u64) -> GgufError {
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
    pub(super) fn count(&mut self, what: &str, min_size: u64) -> Result<usize> {
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

    /// A string that must be UTF-8, and the same as a C string.
    pub(super) fn name(&mut self, what: impl Fn() -> String) -> Result<String> {
        let offset = self.at as u64;
        let bytes = self.string(&what)?;
        if bytes.contains(&0) {
            return Err(GgufError::Nul { what: what(), offset });
        }
        String::from_utf8(bytes.to_vec()).map_err(|_| GgufError::Utf8 { what: what(), offset })
    }

    fn value_type(&mut self, key: &str) -> Result<ValueType> {
        let offset = self.at as u64;
        let found = self.u32(key)?;
        ValueType::from_id(found).ok_or_else(|| GgufError::ValueType { key: key.into(), found, offset })
    }

    /// A type tag and the value behind it.
    pub(super) fn value(&mut self, key: &str) -> Result<Value> {
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

    /// One tensor info.
    pub(super) fn tensor(&mut self, i: usize) -> Result<TensorInfo> {
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
        Ok(TensorInfo { name, n_dims, ne, ty, offset, part: 0, bytes })
    }
}
