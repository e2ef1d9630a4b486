//! Changing a header without touching what is there.
#![forbid(unsafe_code)]

use super::value::write_pair;
use super::{Array, Gguf, GgufError, NewTensor, TensorInfo, Value, padded};
use crate::quant::GgmlType;

/// The key whose zeros keep the data section in step, see [`Changes::step`].
pub const PADDING_KEY: &str = "ggsteer.padding";

/// What is to be other in a header.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Keys to set: those that are there keep their place, new ones come last.
    pub set: Vec<(String, Value)>,
    /// Keys to leave out, where they are there.
    pub remove: Vec<String>,
    /// Tensors, by name, that get another type. The tensors behind them move.
    pub retype: Vec<(String, GgmlType)>,
    /// Tensors to add behind the others.
    pub add: Vec<NewTensor>,
    /// The data section moves by a multiple of this many bytes (a power of two, or 0 for any number) when there is
    /// anything to change, filled up by [`PADDING_KEY`]: file systems share data between files in whole blocks.
    pub step: u64,
}

impl Changes {
    /// The type a tensor will have.
    fn type_of(&self, info: &TensorInfo) -> GgmlType {
        self.retype.iter().find(|(name, _)| *name == info.name).map_or(info.ty, |(_, ty)| *ty)
    }

    fn check(&self) -> Result<(), GgufError> {
        for (i, (key, _)) in self.set.iter().enumerate() {
            if key == "general.alignment" {
                return Err(GgufError::FixedKey { key: key.clone() });
            }
            if key.is_empty() {
                return Err(GgufError::EmptyKey { offset: 0 });
            }
            if self.set[..i].iter().any(|(other, _)| other == key) {
                return Err(GgufError::DuplicateKey { key: key.clone(), offset: 0 });
            }
        }
        Ok(())
    }
}

/// The header of `file` with `changes` made, padding included.
///
/// With nothing to change these are the file's own bytes. Otherwise every pair that is not replaced or left out is
/// copied byte for byte, and so are the tensor infos when no type changes. The data of the old tensors keeps its
/// offsets up to the first one that changes its size; each tensor behind it, and each new one, starts where the one
/// before it ends, padded to [`Gguf::alignment`].
///
/// # Errors
/// [`GgufError::FixedKey`] for `general.alignment`; doubled keys or tensor names; shapes that a file cannot hold.
pub fn amended_header(file: &[u8], gguf: &Gguf, changes: &Changes) -> Result<Vec<u8>, GgufError> {
    changes.check()?;
    let set = |key: &str| changes.set.iter().find(|(k, _)| k == key);
    let removed = |key: &str| {
        set(key).is_none()
            && (changes.remove.iter().any(|k| k == key) || changes.step > 0 && key == PADDING_KEY)
    };
    let retyped = gguf.tensors.iter().any(|info| changes.type_of(info) != info.ty);
    let removes = changes.remove.iter().any(|key| gguf.get(key).is_some());
    if changes.set.is_empty() && changes.add.is_empty() && !retyped && !removes {
        return Ok(file[gguf.header_bytes()].to_vec());
    }

    let (mut pairs, mut n_pairs) = (Vec::new(), 0u64);
    for ((key, _), range) in gguf.metadata.iter().zip(&gguf.pair_ranges).filter(|((key, _), _)| !removed(key))
    {
        match set(key) {
            Some((_, value)) => write_pair(&mut pairs, key, value),
            None => pairs.extend_from_slice(&file[range.clone()]),
        }
        n_pairs += 1;
    }
    for (key, value) in changes.set.iter().filter(|(key, _)| gguf.get(key).is_none()) {
        write_pair(&mut pairs, key, value);
        n_pairs += 1;
    }

    let mut infos = Vec::new();
    let mut offset = 0u64;
    let mut place = |tensor: &NewTensor| -> Result<u64, GgufError> {
        let start = offset;
        let end = start.checked_add(tensor.bytes()?).and_then(|end| padded(end, gguf.alignment));
        offset = end.ok_or(GgufError::Alignment(gguf.alignment))?;
        Ok(start)
    };
    for info in &gguf.tensors {
        let (name, ne) = (info.name.clone(), info.shape().to_vec());
        let tensor = NewTensor { name, ne, ty: changes.type_of(info) };
        tensor.write_info(place(&tensor)?, &mut infos);
    }
    for (i, tensor) in changes.add.iter().enumerate() {
        let twice = changes.add[..i].iter().any(|other| other.name == tensor.name);
        if twice || gguf.tensor(&tensor.name).is_some() {
            return Err(GgufError::DuplicateTensor { name: tensor.name.clone() });
        }
        tensor.write_info(place(tensor)?, &mut infos);
    }

    let n_tensors = (gguf.tensors.len() + changes.add.len()) as u64;
    let end = (24 + pairs.len() + infos.len()) as u64;
    if changes.step > 0 && n_tensors > 0 {
        if let Some(zeros) = zeros(end, gguf.data_starts[0], changes.step, gguf.alignment) {
            write_pair(&mut pairs, PADDING_KEY, &Value::Array(Array::U8(vec![0; zeros])));
            n_pairs += 1;
        }
    }
    let mut out = b"GGUF".to_vec();
    out.extend(gguf.version.to_le_bytes());
    out.extend(n_tensors.to_le_bytes());
    out.extend(n_pairs.to_le_bytes());
    out.extend(pairs);
    out.extend(infos);
    if n_tensors > 0 {
        let end = padded(out.len() as u64, gguf.alignment).ok_or(GgufError::Alignment(gguf.alignment))?;
        out.resize(end as usize, 0);
    }
    Ok(out)
}

/// How many zeros [`PADDING_KEY`] must hold for a header that would end at `end` to be followed by data a multiple of
/// `step` away from `data_start`; none when it is so without the key.
fn zeros(end: u64, data_start: u64, step: u64, alignment: u64) -> Option<usize> {
    // Name, type tag, element type and count.
    let pair = (8 + PADDING_KEY.len() + 4 + 4 + 8) as u64;
    let step = step.max(alignment);
    let mut target = end + data_start.wrapping_sub(end) % step;
    if padded(end, alignment) == Some(target) {
        return None;
    }
    while target < end + pair {
        target += step;
    }
    Some((target - end - pair) as usize)
}
