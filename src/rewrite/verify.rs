//! Proof, from two files, that a rewrite changed what it planned and nothing else.
#![forbid(unsafe_code)]

use super::Plan;
use crate::gguf::{GgufFile, TensorInfo};

/// What differs that should not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VerifyError {
    /// Another number or order of tensors, or another shape or type.
    #[error("tensor {index}: expected {expected}, found {found}")]
    Tensors {
        /// Its place in the file.
        index: usize,
        /// The tensor that should be there.
        expected: String,
        /// The tensor that is there.
        found: String,
    },
    /// A tensor that was not to be edited.
    #[error("tensor {name:?} was not to be edited, and differs at byte {at} of its data")]
    Bytes {
        /// The tensor.
        name: String,
        /// The first byte that differs.
        at: usize,
    },
    /// A key that was there before and is not, or has another value, or another place.
    #[error("key {key:?} is gone or differs")]
    Key {
        /// The key.
        key: String,
    },
}

/// Checks that `out` has the tensors of `original` in the same order with the same shapes and types (and, where the
/// plan unties, the original embedding as `output.weight` behind them), every tensor the plan does not name byte for
/// byte, and every key of `original`, in order, with its value, those of `ggsteer.` excepted. Returns the number of
/// tensors compared.
///
/// # Errors
/// [`VerifyError`] with the first difference.
pub fn verify_untouched(original: &GgufFile, out: &GgufFile, plan: &Plan) -> Result<usize, VerifyError> {
    // Of a split model, the number of tensors follows from them, and they are compared below.
    let may_differ = |key: &str| key.starts_with("ggsteer.") || key == "split.tensors.count";
    let mut theirs = out.parts().iter().flat_map(|part| part.metadata());
    let ours = original.parts().iter().flat_map(|part| part.metadata());
    for (key, value) in ours.filter(|(key, _)| !may_differ(key)) {
        // Compared as they stand in a file: NaN is equal to itself there.
        let bytes = |v: &crate::gguf::Value| {
            let mut bytes = Vec::new();
            v.write(&mut bytes);
            (v.value_type(), bytes)
        };
        if !theirs.by_ref().any(|(k, v)| k == key && bytes(v) == bytes(value)) {
            return Err(VerifyError::Key { key: key.clone() });
        }
    }

    let embedding = if plan.unties() { original.tensor("token_embd.weight") } else { None };
    let n = original.tensors().len();
    let describe = |file: &GgufFile, index: usize| match file.tensors().get(index) {
        Some(t) => format!("{} {:?} {}", t.name, t.shape(), t.ty),
        None => "nothing".to_string(),
    };
    let mut compared = 0;
    for index in 0..n.max(out.tensors().len()) {
        let mut expected = describe(original, index);
        let retyped = |t: &TensorInfo| plan.tensors.iter().find(|p| p.writer.tensor == t.name);
        if let Some((t, planned)) = original.tensors().get(index).and_then(|t| Some((t, retyped(t)?))) {
            expected = format!("{} {:?} {}", t.name, t.shape(), planned.out_type);
        }
        if let (true, Some(t)) = (index == n, embedding) {
            expected = format!("output.weight {:?} {}", t.shape(), t.ty);
        }
        let found = describe(out, index);
        if expected != found {
            return Err(VerifyError::Tensors { index, expected, found });
        }
        let new = &out.tensors()[index];
        let Some(old) = original.tensors().get(index).or(embedding) else {
            continue;
        };
        if index < n && plan.tensors.iter().any(|p| p.writer.tensor == old.name) {
            continue;
        }
        if let Some(at) = original.first_difference(old, (out, new)) {
            return Err(VerifyError::Bytes { name: new.name.clone(), at });
        }
        compared += 1;
    }
    if embedding.is_some() && out.tensors().len() == n {
        let expected = "output.weight".to_string();
        return Err(VerifyError::Tensors { index: n, expected, found: "nothing".into() });
    }
    Ok(compared)
}
