//! Models in several files, `NAME-00001-of-00003.gguf` and so on, by the keys and names that llama.cpp goes by.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use super::{Gguf, GgufError, Value};

/// What a part says of the model it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Split {
    /// `split.no`: its number, from 0.
    pub no: u16,
    /// `split.count`: parts in all, at least 2.
    pub count: u16,
    /// `split.tensors.count`: tensors in all parts together.
    pub n_tensors: i32,
}

impl Split {
    /// None for a model in one file. The types are those llama.cpp insists on.
    pub fn of(gguf: &Gguf) -> Result<Option<Self>, GgufError> {
        let u16 = |key: &str| match gguf.require(key)? {
            Value::U16(n) => Ok(*n),
            other => Err(GgufError::KeyType { key: key.into(), expected: "u16", found: other.describe() }),
        };
        let count = match gguf.get("split.count") {
            None => return Ok(None),
            Some(_) => u16("split.count")?,
        };
        if count < 2 {
            return Ok(None);
        }
        let key = "split.tensors.count";
        let n_tensors = match gguf.require(key)? {
            Value::I32(n) => *n,
            other => {
                return Err(GgufError::KeyType { key: key.into(), expected: "i32", found: other.describe() });
            }
        };
        Ok(Some(Self { no: u16("split.no")?, count, n_tensors }))
    }

    /// The paths of all parts, from that of this one.
    pub fn paths(self, path: &Path) -> Result<Vec<PathBuf>, GgufError> {
        let expected = suffix(self.no.into(), self.count.into());
        let name = path.file_name().and_then(|name| name.to_str());
        let prefix = name.and_then(|name| name.strip_suffix(expected.as_str())).filter(|p| !p.is_empty());
        let Some(prefix) = prefix.filter(|_| self.no < self.count) else {
            let (no, count) = (u64::from(self.no) + 1, self.count.into());
            return Err(GgufError::PartName { path: path.into(), no, count, expected });
        };
        let count = usize::from(self.count);
        Ok((0..count).map(|no| path.with_file_name(format!("{prefix}{}", suffix(no, count)))).collect())
    }
}

fn suffix(no: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", no + 1)
}

/// Where `count` parts go that were asked for under the name `path`: `out.gguf` and `out-00002-of-00003.gguf` both give
/// `out-00001-of-0000N.gguf` and so on. A single part keeps the path.
#[must_use]
pub fn part_paths(path: &Path, count: usize) -> Vec<PathBuf> {
    if count < 2 {
        return vec![path.to_path_buf()];
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".gguf").unwrap_or(&name);
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = stem.rsplitn(4, '-').collect();
    let prefix = match parts[..] {
        [n, "of", no, prefix] if digits(n) && digits(no) && !prefix.is_empty() => prefix,
        _ => stem,
    };
    (0..count).map(|no| path.with_file_name(format!("{prefix}{}", suffix(no, count)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_named_as_llama_cpp_names_them() {
        let split = Split { no: 1, count: 3, n_tensors: 0 };
        let names = ["d/big-00001-of-00003.gguf", "d/big-00002-of-00003.gguf", "d/big-00003-of-00003.gguf"];
        assert_eq!(split.paths(Path::new(names[1])).unwrap(), names.map(PathBuf::from));
        for other in ["d/big.gguf", names[0], "d/big-00002-of-00004.gguf", "d/-00002-of-00003.gguf", "d/.."] {
            let error = split.paths(Path::new(other)).unwrap_err();
            assert!(error.to_string().contains("-00002-of-00003.gguf"), "{error}");
        }
    }

    #[test]
    fn outputs_take_the_name_or_its_prefix() {
        let first = |path: &str, n| part_paths(Path::new(path), n)[0].display().to_string();
        assert_eq!(first("d/out.gguf", 1), "d/out.gguf");
        assert_eq!(first("out-00001-of-00003.gguf", 1), "out-00001-of-00003.gguf");
        assert_eq!(first("d/out.gguf", 2), "d/out-00001-of-00002.gguf");
        assert_eq!(first("out", 2), "out-00001-of-00002.gguf");
        assert_eq!(first("out-v2-00003-of-00009.gguf", 2), "out-v2-00001-of-00002.gguf");
        assert_eq!(first("-00003-of-00009.gguf", 2), "-00003-of-00009-00001-of-00002.gguf");
        assert_eq!(first("out-3-of-9.gguf", 2), "out-3-of-9-00001-of-00002.gguf");
        assert_eq!(part_paths(Path::new("out.gguf"), 12)[11], Path::new("out-00012-of-00012.gguf"));
    }
}
