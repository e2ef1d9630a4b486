//! Changing a header without touching what is there.
#![forbid(unsafe_code)]

use std::collections::HashMap;

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
    let retype: HashMap<&str, GgmlType> =
        changes.retype.iter().map(|(name, ty)| (name.as_str(), *ty)).collect();
    let type_of = |info: &TensorInfo| retype.get(info.name.as_str()).copied().unwrap_or(info.ty);
    let retyped = gguf.tensors.iter().any(|info| type_of(info) != info.ty);
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
        let tensor = NewTensor { name, ne, ty: type_of(info) };
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
    if changes.step > 0
        && n_tensors > 0
        && let Some(zeros) = zeros(end, gguf.data_starts[0], changes.step, gguf.alignment)
    {
        write_pair(&mut pairs, PADDING_KEY, &Value::Array(Array::U8(vec![0; zeros])));
        n_pairs += 1;
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

#[cfg(test)]
mod tests {
    use super::super::tests::small;
    use super::*;

    #[test]
    fn amending_keeps_what_is_there() {
        let mut bytes = small();
        let gguf = Gguf::parse(&bytes).unwrap();
        assert_eq!(amended_header(&bytes, &gguf, &Changes::default()).unwrap(), bytes[gguf.header_bytes()]);

        let set = vec![("ggsteer.version".into(), Value::from("0.1.0")), ("a.u8".into(), Value::U8(9))];
        let add = vec![NewTensor { name: "output.weight".into(), ne: vec![3, 2], ty: GgmlType::F16 }];
        let changes = Changes { set, add, ..Changes::default() };
        let mut out = amended_header(&bytes, &gguf, &changes).unwrap();
        out.extend_from_slice(&bytes[gguf.header_bytes().end..]);
        out.extend([7; 12]);
        let after = Gguf::parse(&out).unwrap();
        assert_eq!(after.metadata().len(), gguf.metadata().len() + 1);
        assert_eq!(after.get("a.u8"), Some(&Value::U8(9)));
        assert_eq!(after.metadata().last(), Some(&("ggsteer.version".into(), Value::from("0.1.0"))));
        for (a, b) in gguf.metadata().iter().zip(after.metadata()).filter(|(a, _)| a.0 != "a.u8") {
            assert_eq!(a, b);
        }
        assert_eq!(gguf.tensors(), &after.tensors()[..3]);
        assert_eq!(&out[after.data_range(&after.tensors()[3])], &[7; 12]);

        let keys = |set: &[(&str, Value)]| {
            let set = set.iter().map(|(key, value)| ((*key).to_string(), value.clone())).collect();
            amended_header(&bytes, &gguf, &Changes { set, ..Changes::default() })
        };
        let fixed = keys(&[("general.alignment", Value::U32(64))]);
        assert!(matches!(fixed, Err(GgufError::FixedKey { .. })));
        let twice = keys(&[("k", Value::U8(1)), ("k", Value::U8(2))]);
        assert!(matches!(twice, Err(GgufError::DuplicateKey { .. })));
        assert!(matches!(keys(&[("", Value::U8(1))]), Err(GgufError::EmptyKey { .. })));
        let add = vec![NewTensor { name: "matrix".into(), ne: vec![1], ty: GgmlType::F32 }];
        let taken = amended_header(&bytes, &gguf, &Changes { add, ..Changes::default() });
        assert!(matches!(taken, Err(GgufError::DuplicateTensor { .. })));

        // A bool written as 2 by someone stays 2: pairs are copied, not written anew.
        let at = gguf.pair_ranges[8].end - 1;
        bytes[at] = 2;
        let gguf = Gguf::parse(&bytes).unwrap();
        let changes = Changes { set: vec![("k".into(), Value::U8(1))], ..Changes::default() };
        let out = amended_header(&bytes, &gguf, &changes).unwrap();
        assert_eq!(out[at], 2);
    }

    #[test]
    fn amending_leaves_keys_out_and_moves_tensors_behind_one_of_another_type() {
        let bytes = small();
        let gguf = Gguf::parse(&bytes).unwrap();
        let remove = vec!["a.strings".to_string(), "not.there".into()];
        let retype = vec![("matrix".to_string(), GgmlType::F32)];
        let out = amended_header(&bytes, &gguf, &Changes { remove, retype, ..Changes::default() }).unwrap();
        let after = Gguf::parse(&[out, vec![0; 32 + 32 + 136]].concat()).unwrap();
        let kept = gguf.metadata().iter().filter(|(key, _)| key != "a.strings");
        assert!(kept.eq(after.metadata()));
        let places = |gguf: &Gguf| gguf.tensors().iter().map(|t| (t.offset, t.bytes)).collect::<Vec<_>>();
        assert_eq!(places(&gguf), [(0, 4), (32, 12), (64, 136)]);
        assert_eq!(places(&after), [(0, 4), (32, 24), (64, 136)]);
        let none = Changes { remove: vec!["not.there".into()], step: 4096, ..Changes::default() };
        assert_eq!(amended_header(&bytes, &gguf, &none).unwrap(), bytes[gguf.header_bytes()]);
    }

    #[test]
    fn the_data_moves_by_whole_steps_whatever_is_added() {
        let bytes = small();
        let gguf = Gguf::parse(&bytes).unwrap();
        let mut widths = std::collections::HashSet::new();
        for (step, n) in [512, 4096].into_iter().flat_map(|step| (0..700).map(move |n| (step, n))) {
            let set = vec![("ggsteer.note".into(), Value::from("n".repeat(n).as_str()))];
            let out = amended_header(&bytes, &gguf, &Changes { set, step, ..Changes::default() }).unwrap();
            let moved = (out.len() - gguf.header_bytes().end) as u64;
            assert!(moved.is_multiple_of(step) && moved < n as u64 + 150 + step, "{n}: {moved}");
            let file = [&out[..], &bytes[gguf.header_bytes().end..]].concat();
            let once = Gguf::parse(&file).unwrap();
            assert_eq!(once.tensors(), gguf.tensors());
            widths.insert(once.get(PADDING_KEY).is_some());
            // Once more, with room to spare: the old zeros make way and nothing moves.
            let set = vec![("ggsteer.note".into(), Value::from("n"))];
            let again = amended_header(&file, &once, &Changes { set, step, ..Changes::default() }).unwrap();
            assert!(((out.len() - again.len()) as u64).is_multiple_of(step));
            assert!(Gguf::parse(&[again, vec![0; 4096]].concat()).unwrap().metadata().len() >= 19);
        }
        assert_eq!(widths.len(), 2, "with and without padding");
    }
}
