//! Changing a header without touching what is there.
#![forbid(unsafe_code)]

use super::value::write_pair;
use super::{Gguf, GgufError, NewTensor, Value, padded};

/// The header of `file` with `keys` set and `tensors` added behind the others, padding included.
///
/// With nothing to change these are the file's own bytes. Otherwise every pair that is not replaced and all tensor
/// infos are copied byte for byte; replaced keys keep their place, new ones come last; only the counts and the padding
/// differ. The data of the old tensors keeps its offsets; each new tensor starts where the last one before it ends,
/// padded to [`Gguf::alignment`].
///
/// # Errors
/// [`GgufError::FixedKey`] for `general.alignment`; doubled keys or tensor names; shapes that a file cannot hold.
pub fn amended_header(
    file: &[u8],
    gguf: &Gguf,
    keys: &[(String, Value)],
    tensors: &[NewTensor],
) -> Result<Vec<u8>, GgufError> {
    if keys.is_empty() && tensors.is_empty() {
        return Ok(file[gguf.header_bytes()].to_vec());
    }
    for (i, (key, _)) in keys.iter().enumerate() {
        if key == "general.alignment" {
            return Err(GgufError::FixedKey { key: key.clone() });
        }
        if key.is_empty() {
            return Err(GgufError::EmptyKey { offset: 0 });
        }
        if keys[..i].iter().any(|(other, _)| other == key) {
            return Err(GgufError::DuplicateKey {
                key: key.clone(),
                offset: 0,
            });
        }
    }
    let is_new = |key: &String| gguf.get(key).is_none();
    let n_new = keys.iter().filter(|(key, _)| is_new(key)).count();

    let mut out = b"GGUF".to_vec();
    out.extend(gguf.version.to_le_bytes());
    out.extend(((gguf.tensors.len() + tensors.len()) as u64).to_le_bytes());
    out.extend(((gguf.metadata.len() + n_new) as u64).to_le_bytes());
    for ((key, _), range) in gguf.metadata.iter().zip(&gguf.pair_ranges) {
        match keys.iter().find(|(k, _)| k == key) {
            Some((_, value)) => write_pair(&mut out, key, value),
            None => out.extend_from_slice(&file[range.clone()]),
        }
    }
    for (key, value) in keys.iter().filter(|(key, _)| is_new(key)) {
        write_pair(&mut out, key, value);
    }
    out.extend_from_slice(&file[gguf.infos_range.clone()]);
    let end_of = |offset: u64, bytes: u64| {
        let end = offset
            .checked_add(bytes)
            .and_then(|end| padded(end, gguf.alignment));
        end.ok_or(GgufError::Alignment(gguf.alignment))
    };
    let mut offset = match gguf.tensors.last() {
        Some(last) => end_of(last.offset, last.bytes)?,
        None => 0,
    };
    for (i, tensor) in tensors.iter().enumerate() {
        let twice = tensors[..i].iter().any(|other| other.name == tensor.name);
        if twice || gguf.tensor(&tensor.name).is_some() {
            return Err(GgufError::DuplicateTensor {
                name: tensor.name.clone(),
            });
        }
        tensor.write_info(offset, &mut out);
        offset = end_of(offset, tensor.bytes()?)?;
    }
    if !gguf.tensors.is_empty() || !tensors.is_empty() {
        let end = padded(out.len() as u64, gguf.alignment).ok_or(GgufError::Alignment(gguf.alignment))?;
        out.resize(end as usize, 0);
    }
    Ok(out)
}
