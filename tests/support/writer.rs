//! A GGUF v3 writer of its own, so that files written for tests do not come from the code under test.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

const ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Clone, Debug)]
pub enum Value {
    U16(u16),
    I32(i32),
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(String),
    Strs(Vec<String>),
    I32s(Vec<i32>),
}

/// The tensor types the test files use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    F32,
    F16,
    Q8_0,
    Q4K,
    Q6K,
}

impl Type {
    fn id(self) -> u32 {
        match self {
            Type::F32 => 0,
            Type::F16 => 1,
            Type::Q8_0 => 8,
            Type::Q4K => 12,
            Type::Q6K => 14,
        }
    }

    /// Bytes of `n` elements; `n` must be a multiple of the block, 32 for `Q8_0` and 256 for `Q4K` and `Q6K`.
    pub fn bytes(self, n: u64) -> u64 {
        match self {
            Type::F32 => n * 4,
            Type::F16 => n * 2,
            Type::Q8_0 => n / 32 * 34,
            Type::Q4K => n / 256 * 144,
            Type::Q6K => n / 256 * 210,
        }
    }
}

/// What a tensor is called and how it lies: `ne[0]` is contiguous.
pub struct Info {
    pub name: String,
    pub ne: Vec<u64>,
    pub ty: Type,
}

/// Writes a file: `data(i, out)` writes the bytes of tensor `i`, in order, so that no tensor need be in memory.
pub fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[Info],
    mut data: impl FnMut(usize, &mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut header = Vec::new();
    header.extend(b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_str(&mut header, key);
        put_value(&mut header, value);
    }
    let mut offset = 0u64;
    let mut sizes = Vec::new();
    for info in tensors {
        put_str(&mut header, &info.name);
        header.extend((info.ne.len() as u32).to_le_bytes());
        for n in &info.ne {
            header.extend(n.to_le_bytes());
        }
        header.extend(info.ty.id().to_le_bytes());
        header.extend(offset.to_le_bytes());
        let size = info.ty.bytes(info.ne.iter().product());
        sizes.push(size);
        offset += size.next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);

    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    out.write_all(&header)?;
    for (i, size) in sizes.into_iter().enumerate() {
        data(i, &mut out)?;
        let padding = size.next_multiple_of(ALIGNMENT) - size;
        out.write_all(&[0; ALIGNMENT as usize][..padding as usize])?;
    }
    out.flush()
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut tagged = |tag: u32, bytes: &[u8]| {
        out.extend(tag.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U16(v) => tagged(2, &v.to_le_bytes()),
        Value::I32(v) => tagged(5, &v.to_le_bytes()),
        Value::U32(v) => tagged(4, &v.to_le_bytes()),
        Value::F32(v) => tagged(6, &v.to_le_bytes()),
        Value::Bool(v) => tagged(7, &[u8::from(*v)]),
        Value::Str(v) => {
            tagged(8, &[]);
            put_str(out, v);
        }
        Value::Strs(v) => {
            tagged(9, &8u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            for s in v {
                put_str(out, s);
            }
        }
        Value::I32s(v) => {
            tagged(9, &5u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            for n in v {
                out.extend(n.to_le_bytes());
            }
        }
    }
}
