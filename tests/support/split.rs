//! Models in several files, written as `llama-gguf-split` writes them: all keys in the first part, those of the split in
//! each.

use std::path::Path;

use super::tiny::{Model, Tensor};
use super::writer::{self, Info, Type, Value};

/// One part, to be changed by a test before it is written.
pub struct Part {
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

/// `model` in parts of so many tensors, and one more with what is left.
pub fn parts(model: &Model, sizes: &[usize]) -> Vec<Part> {
    let mut rest = model.tensors.as_slice();
    let count = sizes.len() + 1;
    let parts = (0..count).map(|no| {
        let (own, others) = rest.split_at(sizes.get(no).copied().unwrap_or(rest.len()));
        rest = others;
        let mut metadata = if no == 0 { model.spec.metadata() } else { Vec::new() };
        metadata.push(("split.no".to_owned(), Value::U16(no as u16)));
        metadata.push(("split.count".to_owned(), Value::U16(count as u16)));
        metadata.push(("split.tensors.count".to_owned(), Value::I32(model.tensors.len() as i32)));
        Part { metadata, tensors: own.to_vec() }
    });
    parts.collect()
}

/// The name of a part, counted from 0.
pub fn name(prefix: &str, no: usize, count: usize) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", no + 1)
}

impl Part {
    /// Puts another value in the place of a key's.
    pub fn set(&mut self, key: &str, value: Value) {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.push((key.to_owned(), value));
    }

    pub fn write(&self, path: &Path) {
        let info = |t: &Tensor| Info {
            name: t.name.clone(),
            ne: t.ne.iter().map(|n| *n as u64).collect(),
            ty: Type::F32,
        };
        let infos: Vec<Info> = self.tensors.iter().map(info).collect();
        let data = |i: usize| self.tensors[i].data.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        writer::write(path, &self.metadata, &infos, |i, out| out.write_all(&data(i))).unwrap();
    }
}
