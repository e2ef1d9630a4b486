//! Models in several files, written as `llama-gguf-split` writes them: all keys in the first part, those of the split in
//! each.

use std::io;
use std::path::{Path, PathBuf};

use super::tiny::{Model, Spec, Stream, Tensor};
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
        Part { metadata: metadata(&model.spec, no, count, model.tensors.len()), tensors: own.to_vec() }
    });
    parts.collect()
}

/// The keys of a part of a model.
fn metadata(spec: &Spec, no: usize, count: usize, n_tensors: usize) -> Vec<(String, Value)> {
    let mut metadata = if no == 0 { spec.metadata() } else { Vec::new() };
    metadata.push(("split.no".to_owned(), Value::U16(no as u16)));
    metadata.push(("split.count".to_owned(), Value::U16(count as u16)));
    metadata.push(("split.tensors.count".to_owned(), Value::I32(n_tensors as i32)));
    metadata
}

/// Writes a model of any size, its matrices of one type, in files of about the same length, one or more; returns their
/// paths, `folder/prefix-00001-of-0000N.gguf` and so on, or `folder/prefix.gguf`.
pub fn big(folder: &Path, prefix: &str, spec: &Spec, ty: Type, count: usize) -> io::Result<Vec<PathBuf>> {
    let mut stream = Stream::new(spec, |_| ty);
    let mut infos = stream.infos();
    let n_tensors = infos.len();
    if count < 2 {
        let path = folder.join(format!("{prefix}.gguf"));
        writer::write(&path, &spec.metadata(), &infos, |i, out| stream.write(i, out))?;
        return Ok(vec![path]);
    }
    let bytes = |infos: &[Info]| infos.iter().map(|t| t.ty.bytes(t.ne.iter().product())).sum::<u64>();
    let total = bytes(&infos);
    let mut first = 0;
    let mut paths = Vec::new();
    for no in 0..count {
        let share = total / count as u64;
        let enough = (1..infos.len()).find(|&n| no + 1 < count && bytes(&infos[..n]) >= share);
        let rest = infos.split_off(enough.unwrap_or(infos.len()));
        let path = folder.join(name(prefix, no, count));
        writer::write(&path, &metadata(spec, no, count, n_tensors), &infos, |i, out| {
            stream.write(first + i, out)
        })?;
        first += infos.len();
        infos = rest;
        paths.push(path);
    }
    Ok(paths)
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
