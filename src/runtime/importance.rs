//! llama.cpp's importance matrices: for each tensor the mean square of each element of its input.

use std::path::{Path, PathBuf};

use crate::gguf::{GgufError, GgufFile, TensorInfo};
use crate::quant::{self, GgmlType};

/// What each column of each matrix counts for, as `llama-imatrix` measures it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    entries: Vec<(String, Vec<f32>)>,
}

/// Why a file is no importance matrix.
#[derive(Debug, thiserror::Error)]
pub enum ImportanceError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The file system's answer.
        source: std::io::Error,
    },
    /// A GGUF file that cannot be read.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: GgufError,
    },
    /// Something else, or broken.
    #[error("{}: not an importance matrix: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, or expected and found.
        what: String,
    },
}

impl Importance {
    /// Reads a file, of the GGUF kind or the older one (`imatrix.dat`).
    ///
    /// # Errors
    /// A file that is neither, is cut short, or has values that are negative or not finite.
    pub fn load(path: &Path) -> Result<Self, ImportanceError> {
        let at = || path.to_path_buf();
        let fail = |source| ImportanceError::Io { path: at(), source };
        let mut magic = [0; 4];
        let mut file = std::fs::File::open(path).map_err(fail)?;
        let is_gguf = std::io::Read::read_exact(&mut file, &mut magic).is_ok() && magic == *b"GGUF";
        let entries = if is_gguf {
            let file = GgufFile::open(path).map_err(|source| ImportanceError::Gguf { path: at(), source })?;
            read_gguf(&file)
        } else {
            read_old(&std::fs::read(path).map_err(fail)?)
        };
        let content = |what| ImportanceError::Content { path: at(), what };
        let entries = entries.map_err(content)?;
        for (name, values) in &entries {
            if let Some(i) = values.iter().position(|x| !x.is_finite() || *x < 0.0) {
                return Err(content(format!("tensor {name:?}: value {} at {i}", values[i])));
            }
        }
        Ok(Self { entries })
    }

    /// The mean squares for a tensor: n_in, or n_expert × n_in.
    #[must_use]
    pub fn get(&self, tensor: &str) -> Option<&[f32]> {
        self.entries.iter().find(|(name, _)| name == tensor).map(|(_, values)| values.as_slice())
    }

    /// Every tensor with its values, in the file's order.
    #[must_use]
    pub fn entries(&self) -> &[(String, Vec<f32>)] {
        &self.entries
    }
}

type Entries = Vec<(String, Vec<f32>)>;

/// `NAME.in_sum2` holds sums of squares, ne = [n_in, n_matrix], `NAME.counts` the tokens they are over, ne = [1, n_matrix].
fn read_gguf(file: &GgufFile) -> Result<Entries, String> {
    let kind = file.get_str("general.type").unwrap_or("missing");
    if kind != "imatrix" {
        return Err(format!("general.type is {kind:?}, expected \"imatrix\""));
    }
    let read = |info: &TensorInfo| -> Result<Vec<f32>, String> {
        if info.ty != GgmlType::F32 {
            return Err(format!("tensor {:?} is of type {}, expected f32", info.name, info.ty));
        }
        let mut values = vec![0.0; info.elements() as usize];
        quant::decode(info.ty, file.tensor_data(info), &mut values).map_err(|e| e.to_string())?;
        Ok(values)
    };
    let mut entries = Vec::new();
    for info in file.tensors() {
        let Some(name) = info.name.strip_suffix(".in_sum2") else { continue };
        let counts = file.tensor(&format!("{name}.counts"));
        let counts = counts.ok_or_else(|| format!("tensor {:?} is missing", format!("{name}.counts")))?;
        if counts.elements() != info.rows() {
            let (found, expected) = (counts.elements(), info.rows());
            return Err(format!("tensor {:?}: {found} counts, expected {expected}", counts.name));
        }
        let mut values = read(info)?;
        for (row, count) in values.chunks_exact_mut((info.ne[0] as usize).max(1)).zip(read(counts)?) {
            // An expert that no token went to: every column counts alike.
            row.iter_mut().for_each(|x| *x = if count > 0.0 { *x / count } else { 1.0 });
        }
        entries.push((name.to_string(), values));
    }
    if entries.is_empty() { Err("no tensor of sums in it".into()) } else { Ok(entries) }
}

/// A count of entries, then for each the name (length, bytes), the calls, and the summed values (length, f32s).
fn read_old(bytes: &[u8]) -> Result<Entries, String> {
    let mut rest = bytes;
    let mut take = |n: usize, what: &str| -> Result<&[u8], String> {
        let (head, tail) = rest.split_at_checked(n).ok_or_else(|| format!("it ends within {what}"))?;
        rest = tail;
        Ok(head)
    };
    let number = |bytes: &[u8]| bytes.first_chunk::<4>().map_or(0, |b| i32::from_le_bytes(*b));
    let n_entries = number(take(4, "its first number")?);
    if n_entries < 1 {
        return Err(format!("{n_entries} entries"));
    }
    let mut entries = Vec::new();
    for i in 0..n_entries {
        let what = format!("entry {i} of {n_entries}");
        let length = |n: i32| usize::try_from(n).map_err(|_| format!("{what}: length {n}"));
        let n = length(number(take(4, &what)?))?;
        let name = String::from_utf8(take(n, &what)?.to_vec()).map_err(|_| format!("{what}: no name"))?;
        let calls = number(take(4, &what)?);
        let n = length(number(take(4, &what)?))?;
        let values = take(n.checked_mul(4).ok_or_else(|| format!("{what}: {n} values"))?, &what)?;
        let divisor = if calls > 0 { calls as f32 } else { 1.0 };
        let values = values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) / divisor).collect();
        entries.push((name, values));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Writer;

    fn load(bytes: &[u8]) -> Result<Importance, ImportanceError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("imatrix");
        std::fs::write(&path, bytes).unwrap();
        Importance::load(&path)
    }

    fn gguf(kind: &str, counts: &[f32]) -> Vec<u8> {
        let writer = Writer::new()
            .key("general.type", kind)
            .tensor("a.weight.in_sum2", &[3, 2], GgmlType::F32)
            .tensor("a.weight.counts", &[1, counts.len() as u64], GgmlType::F32);
        let mut stream = writer.start(Vec::new()).unwrap();
        let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
        stream.data(&bytes(&[2.0, 4.0, 6.0, 7.0, 8.0, 9.0])).unwrap();
        stream.data(&bytes(counts)).unwrap();
        stream.finish().unwrap()
    }

    fn old(values: &[f32]) -> Vec<u8> {
        let mut bytes = 1i32.to_le_bytes().to_vec();
        bytes.extend(8i32.to_le_bytes());
        bytes.extend(b"a.weight");
        bytes.extend(2i32.to_le_bytes());
        bytes.extend((values.len() as i32).to_le_bytes());
        bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        bytes
    }

    #[test]
    fn both_kinds_are_read_as_means() {
        let new = load(&gguf("imatrix", &[2.0, 0.0])).unwrap();
        assert_eq!(new.get("a.weight"), Some(&[1.0, 2.0, 3.0, 1.0, 1.0, 1.0][..]));
        assert_eq!(load(&old(&[2.0, 4.0])).unwrap().get("a.weight"), Some(&[1.0, 2.0][..]));
        assert_eq!(new.get("b.weight"), None);
    }

    #[test]
    fn what_is_none_is_refused_by_name() {
        let error = |bytes: &[u8]| load(bytes).unwrap_err().to_string();
        assert!(error(&gguf("model", &[1.0, 1.0])).contains("\"model\""));
        assert!(error(&gguf("imatrix", &[1.0])).contains("1 counts, expected 2"));
        assert!(error(&old(&[1.0, f32::NAN])).contains("NaN at 1"));
        assert!(error(&old(&[-1.0])).contains("-0.5"));
        assert!(error(b"").contains("its first number"));
        assert!(error(&0i32.to_le_bytes()).contains("0 entries"));
        let whole = old(&[1.0, 2.0]);
        for end in 4..whole.len() {
            assert!(error(&whole[..end]).contains("entry 0 of 1"), "cut at {end}");
        }
    }
}
