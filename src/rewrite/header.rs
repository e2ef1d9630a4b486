//! What a rewrite changes in a header.
#![forbid(unsafe_code)]

use super::{Plan, PlannedAddition};
use crate::gguf::{Array, Changes, GgufFile, NewTensor, PADDING_KEY, TensorInfo, Value};
use crate::output::BLOCK;

/// The key with what earlier edits said of themselves, one string an edit, the first one first.
const HISTORY_KEY: &str = "ggsteer.history";

/// The changes in the header of part `no`, where `head` is the embedding that becomes its `output.weight`.
///
/// Only the first part has keys that say what the model is.
pub(super) fn changes(
    file: &GgufFile,
    no: usize,
    plan: &Plan,
    provenance: &[(String, Value)],
    head: Option<&TensorInfo>,
) -> Changes {
    let mut changes = Changes { step: BLOCK, ..Changes::default() };
    if no == 0 && !provenance.is_empty() {
        changes.set = provenance.to_vec();
        if let Some(history) = history(file) {
            changes.set.push((HISTORY_KEY.into(), history));
        }
        let ours = file.metadata().iter().map(|(key, _)| key).filter(|key| key.starts_with("ggsteer."));
        changes.remove = ours.cloned().collect();
    }
    let n_new = plan.new_biases().count() + usize::from(plan.unties());
    if n_new > 0 && file.n_parts() > 1 {
        let n = (file.tensors().len() + n_new) as i32;
        changes.set.push(("split.tensors.count".into(), Value::I32(n)));
    }
    changes.add.extend(head.map(|info| NewTensor {
        name: "output.weight".into(),
        ne: info.shape().to_vec(),
        ty: info.ty,
    }));
    if no + 1 == file.n_parts() {
        changes.add.extend(plan.new_biases().map(PlannedAddition::new_tensor));
    }
    let retyped = plan.tensors.iter().filter(|planned| planned.out_type != planned.r#type);
    changes.retype = retyped.map(|planned| (planned.writer.tensor.clone(), planned.out_type)).collect();
    changes
}

/// The history of a file that was edited before: what it has, and one line more of its own keys.
fn history(file: &GgufFile) -> Option<Value> {
    file.get("ggsteer.edit")?;
    let mut lines = match file.get(HISTORY_KEY) {
        Some(Value::Array(Array::String(lines))) => lines.clone(),
        _ => Vec::new(),
    };
    let own = file.metadata().iter().filter(|(key, _)| key != HISTORY_KEY && key != PADDING_KEY);
    let words = own.filter_map(|(key, value)| {
        let value = match value {
            Value::String(s) => s.clone(),
            Value::U32(n) => n.to_string(),
            Value::I32(n) => n.to_string(),
            Value::F32(x) => x.to_string(),
            Value::F64(x) => x.to_string(),
            Value::Bool(b) => b.to_string(),
            _ => return None,
        };
        Some(format!("{}={value}", key.strip_prefix("ggsteer.")?))
    });
    lines.push(words.collect::<Vec<_>>().join(" "));
    Some(Value::Array(Array::String(lines)))
}
