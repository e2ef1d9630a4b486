//! llama.cpp's importance matrices, as the diagonal where no sample is there.
//!
//! Two formats. GGUF, with `general.type` = `imatrix`: for each matrix `NAME.in_sum2` (F32, n_in × n_slices sums of
//! squares) and `NAME.counts` (F32, one or n_slices numbers of tokens). And the older binary one, little-endian: the
//! number of entries (i32), then for each the length of its name, the name, the number of calls, the number of values
//! (all i32) and the values (f32), mean squares times the number of calls; what follows is about the text they are of.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::sample::Store;
use super::{Calibration, CalibrationError, Inputs, Origin, Slice, Target};
use crate::gguf::{Gguf, GgufError};
use crate::input;
use crate::quant::GgmlType;

/// The most bytes of an imatrix file; those of the largest models have a few GB.
const MOST: u64 = 1 << 33;

/// An imatrix file's mean squares.
#[derive(Debug, Clone, PartialEq)]
pub struct Imatrix {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    /// Mean squares, a slice after the other.
    values: Vec<f32>,
    /// Tokens (in the older format: calls), for each slice or for all.
    counts: Vec<u64>,
}

impl Imatrix {
    /// Reads either format.
    ///
    /// # Errors
    /// A file that is neither, or of which a part is missing or no number.
    pub fn load(path: &Path) -> Result<Self, CalibrationError> {
        let fail = |source| CalibrationError::Gguf { path: path.into(), source };
        let bytes = input::read(path, MOST).map_err(|e| fail(GgufError::Write(e)))?;
        let entries = if bytes.starts_with(b"GGUF") {
            let gguf = Gguf::parse(&bytes).map_err(fail)?;
            let kind = gguf.get_str("general.type");
            if !matches!(kind, Ok("imatrix")) {
                return Err(CalibrationError::Kind {
                    path: path.into(),
                    expected: "an imatrix file",
                    key: "type",
                    found: kind.map_or("missing".into(), |k| format!("{k:?}")),
                });
            }
            from_gguf(path, &gguf, &bytes)?
        } else {
            Legacy { path, bytes: &bytes, at: 0 }.entries()?
        };
        for (name, entry) in &entries {
            if let Some(i) = entry.values.iter().position(|x| !(x.is_finite() && *x >= 0.0)) {
                let found = format!("{} at element {i}", entry.values[i]);
                return Err(wrong(path, name, "mean squares".into(), found));
            }
        }
        Ok(Self { path: path.into(), entries })
    }

    /// Mean of x_j² for every input of a slice: n_in. Where an expert was never chosen, llama.cpp stores ones.
    ///
    /// # Errors
    /// [`CalibrationError::Tensor`]: an imatrix of another model.
    pub fn mean_square(&self, target: &Target, slice: usize) -> Result<&[f32], CalibrationError> {
        let Target { tensor, n_in, n_slices } = target;
        let values = self.entries.get(tensor).map(|e| e.values.as_slice());
        let fitting = values.filter(|v| v.len() == n_in * n_slices);
        let fitting = fitting.ok_or_else(|| {
            let expected = format!("{n_in} values for each of {n_slices} slices, as this model has");
            let found = values.map_or("nothing".into(), |v| format!("{} values", v.len()));
            wrong(&self.path, tensor, expected, found)
        })?;
        Ok(&fitting[slice * n_in..][..*n_in])
    }

    /// Every tensor with its mean squares, a slice after the other, by name.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry.values.as_slice()))
    }

    /// A calibration without rows: the mean squares of `targets` alone.
    ///
    /// # Errors
    /// As [`Imatrix::mean_square`].
    pub fn calibration(&self, targets: &[Target]) -> Result<Calibration, CalibrationError> {
        let store = Arc::new(Mutex::new(Store::spool(0)));
        let inputs = |target: &Target| -> Result<(String, Inputs), CalibrationError> {
            let slice = |i: usize| -> Result<Slice, CalibrationError> {
                let counts = self.entries.get(&target.tensor).map_or(&[][..], |e| &e.counts);
                Ok(Slice {
                    fit: Vec::new(),
                    held_out: Vec::new(),
                    mean_square: self.mean_square(target, i)?.to_vec(),
                    count: counts.get(i).or(counts.first()).copied().unwrap_or(0),
                })
            };
            let slices = (0..target.n_slices).map(slice).collect::<Result<_, _>>()?;
            Ok((target.tensor.clone(), Inputs { n_in: target.n_in, slices, store: Arc::clone(&store) }))
        };
        let inputs = targets.iter().map(inputs).collect::<Result<_, _>>()?;
        Ok(Calibration { inputs, origin: Origin::default() })
    }
}

fn wrong(path: &Path, name: &str, expected: String, found: String) -> CalibrationError {
    CalibrationError::Tensor { path: path.into(), name: name.into(), expected, found }
}

type Entries = BTreeMap<String, Entry>;

fn from_gguf(path: &Path, gguf: &Gguf, bytes: &[u8]) -> Result<Entries, CalibrationError> {
    let floats = |name: &str| -> Result<Vec<f32>, CalibrationError> {
        let info = gguf.tensor(name);
        let info = info.filter(|t| t.ty == GgmlType::F32).ok_or_else(|| {
            wrong(path, name, "F32".into(), info.map_or("nothing".into(), |t| t.ty.to_string()))
        })?;
        let chunks = bytes[gguf.data_range(info)].as_chunks::<4>().0;
        Ok(chunks.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    let mut entries = Entries::new();
    for info in gguf.tensors() {
        let Some(name) = info.name.strip_suffix(".in_sum2") else { continue };
        let mut values = floats(&info.name)?;
        let counts_name = format!("{name}.counts");
        let counts = floats(&counts_name)?;
        if counts.is_empty() || !values.len().is_multiple_of(counts.len()) {
            let expected = format!("a number for each slice of {} values", values.len());
            return Err(wrong(path, &counts_name, expected, format!("{} numbers", counts.len())));
        }
        if let Some(found) = counts.iter().find(|n| !(n.is_finite() && **n >= 0.0)) {
            return Err(wrong(path, &counts_name, "numbers of tokens".into(), found.to_string()));
        }
        let n = (values.len() / counts.len()).max(1);
        for (sums, count) in values.chunks_exact_mut(n).zip(&counts) {
            sums.iter_mut().for_each(|x| *x = if *count > 0.0 { *x / count } else { 1.0 });
        }
        let counts = counts.iter().map(|n| *n as u64).collect();
        entries.insert(name.into(), Entry { values, counts });
    }
    Ok(entries)
}

/// The older format, read front to back.
struct Legacy<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Legacy<'a> {
    fn entries(mut self) -> Result<Entries, CalibrationError> {
        let n = self.count("number of entries", 17)?;
        let mut entries = Entries::new();
        for i in 0..n {
            let length = self.count(&format!("length of name {i}"), 1)?;
            let start = self.at;
            let name = self.take(length, &format!("name {i}"))?;
            let name = std::str::from_utf8(name)
                .map_err(|_| self.fail(&format!("name {i}"), start, "not UTF-8".into()))?;
            let calls = self.int(&format!("calls of {name:?}"))?;
            let n_values = self.count(&format!("number of values of {name:?}"), 4)?;
            let values = self.take(n_values * 4, &format!("values of {name:?}"))?;
            let divisor = if calls > 0 { calls as f32 } else { 1.0 };
            let values = values.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) / divisor).collect();
            let counts = vec![u64::try_from(calls).unwrap_or(0)];
            entries.insert(name.into(), Entry { values, counts });
        }
        Ok(entries)
    }

    fn fail(&self, what: &str, offset: usize, found: String) -> CalibrationError {
        CalibrationError::Imatrix { path: self.path.into(), what: what.into(), offset, found }
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], CalibrationError> {
        let taken = self.bytes.get(self.at..).and_then(|rest| rest.get(..n));
        let taken = taken.ok_or_else(|| {
            let found = format!("needs {n} bytes, file ends at {}", self.bytes.len());
            self.fail(what, self.at, found)
        })?;
        self.at += n;
        Ok(taken)
    }

    fn int(&mut self, what: &str) -> Result<i32, CalibrationError> {
        let bytes = self.take(4, what)?;
        Ok(bytes.first_chunk().map_or(0, |b| i32::from_le_bytes(*b)))
    }

    /// A number of things of at least `size` bytes each, of which there is at least one.
    fn count(&mut self, what: &str, size: usize) -> Result<usize, CalibrationError> {
        let start = self.at;
        let n = self.int(what)?;
        let room = self.bytes.len() - self.at;
        let fitting = usize::try_from(n).ok().filter(|n| (1..=room / size).contains(n));
        fitting.ok_or_else(|| {
            let found = if n < 1 { "expected at least 1".into() } else { format!("{room} bytes follow") };
            self.fail(what, start, format!("{n}, {found}"))
        })
    }
}
