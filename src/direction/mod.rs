//! The direction type and its GGUF file.
//!
//! A direction file is a llama.cpp control vector: `general.architecture = controlvector`, one F32 tensor `direction.N`
//! of ne = \[n_embd\], where N is the 0-based block at whose *output* llama.cpp adds it. The tensor holds the raw
//! difference of means, so scale 1 there is the paper's addition. Two things to know about stock llama.cpp: it only
//! adds (a direction meant for ablation then pushes *toward* the behaviour), and it refuses a file with `direction.0`,
//! so a direction of block 0 is for ggsteer alone. Some tools number from 1 and act one block late; their files load
//! here as they are.
//!
//! ```
//! use ggsteer::direction::{Direction, Provenance};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("direction.gguf");
//! let meta = Provenance { architecture: Some("llama".into()), position: Some(-1), ..Provenance::default() };
//! Direction::new(vec![3.0, -4.0], 5, meta)?.save(&path, false)?;
//!
//! let direction = Direction::load(&path, None)?;
//! assert_eq!((direction.block, direction.norm()), (5, 5.0));
//! assert!(direction.check_model("llama", 4096).is_err(), "another width");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod provenance;
#[cfg(test)]
mod tests;

pub use provenance::{Provenance, Scores};

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::gguf::{GgufError, GgufFile, TensorInfo, Writer};
use crate::intervention::{self, Intervention};
use crate::output::{OutputError, OutputFile};
use crate::quant::GgmlType;

/// A direction of the residual stream at the output of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct Direction {
    /// The raw difference of means, n_embd values: its length is the coefficient of the addition.
    pub vector: Vec<f32>,
    /// The 0-based block at whose output it was measured.
    pub block: usize,
    /// Where it comes from, as far as the file says.
    pub meta: Provenance,
}

/// Why a direction cannot be loaded, saved or used.
#[derive(Debug, thiserror::Error)]
pub enum DirectionError {
    /// The file is no GGUF file, or cannot be read.
    #[error("{}: {source}", .path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// A GGUF file of another kind.
    #[error("{}: not a control vector: general.architecture is {found:?}{}", .path.display(), hint(.found))]
    NotAControlVector {
        /// The file.
        path: PathBuf,
        /// Its architecture.
        found: String,
    },
    /// No `direction.N` in it.
    #[error("{}: no direction.N tensor in it", .path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Several directions, and none chosen, or one that is not there.
    #[error("{}: {wanted}; it has directions for blocks {blocks:?}", .path.display())]
    Choose {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// The blocks it has.
        blocks: Vec<usize>,
    },
    /// A tensor of another type or shape.
    #[error("{}: tensor {name:?} is {found}, expected one row of f32", .path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type and shape.
        found: String,
    },
    /// A NaN or an infinity.
    #[error("direction value {index} is {value}, not finite")]
    NotFinite {
        /// Its place.
        index: usize,
        /// The value.
        value: f32,
    },
    /// All zeros, or nothing at all.
    #[error("direction is zero")]
    Zero,
    /// Made for a model of another width.
    #[error("direction has n_embd {found}, model has {expected}")]
    Width {
        /// The model's width.
        expected: usize,
        /// The direction's.
        found: usize,
    },
    /// Made for a model of another architecture.
    #[error("direction was made for architecture {found:?}, model is {expected:?}")]
    Architecture {
        /// The model's architecture.
        expected: String,
        /// The direction's.
        found: String,
    },
    /// The file cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The output file could not be written; the cause names it.
    #[error(transparent)]
    Write(GgufError),
}

/// Erases the span of these directions.
///
/// # Errors
/// As [`Intervention::ablate`].
pub fn ablation(directions: &[Direction]) -> Result<Intervention, intervention::Error> {
    let vectors: Vec<&[f32]> = directions.iter().map(|d| &d.vector[..]).collect();
    Intervention::ablate(&vectors)
}

/// What to do with the file instead.
fn hint(found: &str) -> &'static str {
    if found == crate::activations::KIND {
        "; choose one of its directions with `ggsteer select`"
    } else {
        ""
    }
}

impl Direction {
    /// A direction with nothing known about it.
    ///
    /// # Errors
    /// [`DirectionError::NotFinite`], [`DirectionError::Zero`].
    pub fn new(vector: Vec<f32>, block: usize, meta: Provenance) -> Result<Self, DirectionError> {
        let direction = Self { vector, block, meta };
        direction.check()?;
        Ok(direction)
    }

    /// Its length, in f64.
    #[must_use]
    pub fn norm(&self) -> f64 {
        self.vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
    }

    /// The unit vector along it; all NaN for a zero vector, which [`Direction::new`] and [`Direction::load`] refuse.
    #[must_use]
    pub fn unit(&self) -> Vec<f32> {
        let norm = self.norm();
        self.vector.iter().map(|x| (f64::from(*x) / norm) as f32).collect()
    }

    /// This direction less what lies along `other` (n_embd): r − m(m·r)/(m·m).
    ///
    /// # Errors
    /// [`DirectionError::Width`]; [`DirectionError::Zero`] where nothing is left, [`DirectionError::NotFinite`].
    pub fn without(&self, other: &[f64]) -> Result<Self, DirectionError> {
        let (expected, found) = (self.vector.len(), other.len());
        if expected != found {
            return Err(DirectionError::Width { expected, found });
        }
        let square: f64 = other.iter().map(|m| m * m).sum();
        let along: f64 = self.vector.iter().zip(other).map(|(x, m)| f64::from(*x) * m).sum();
        let factor = if square == 0.0 { 0.0 } else { along / square };
        let vector =
            self.vector.iter().zip(other).map(|(x, m)| (f64::from(*x) - factor * m) as f32).collect();
        let meta = Provenance { readings: None, ..self.meta.clone() };
        let left = Self::new(vector, self.block, meta)?;
        // What is left of a vector along `other` is rounding alone.
        if left.norm() < 1e-5 * self.norm() { Err(DirectionError::Zero) } else { Ok(left) }
    }

    fn check(&self) -> Result<(), DirectionError> {
        if let Some((index, value)) = self.vector.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return Err(DirectionError::NotFinite { index, value: *value });
        }
        if self.norm() == 0.0 { Err(DirectionError::Zero) } else { Ok(()) }
    }

    /// Checks that it was made for such a model. An unknown architecture (other tools' files) passes.
    ///
    /// # Errors
    /// [`DirectionError::Architecture`], [`DirectionError::Width`].
    pub fn check_model(&self, arch: &str, n_embd: usize) -> Result<(), DirectionError> {
        match &self.meta.architecture {
            Some(found) if found != arch => {
                return Err(DirectionError::Architecture { expected: arch.into(), found: found.clone() });
            }
            _ => {}
        }
        if self.vector.len() != n_embd {
            return Err(DirectionError::Width { expected: n_embd, found: self.vector.len() });
        }
        Ok(())
    }

    /// SHA-256 of the vector's bytes (little-endian f32), in hex: which direction a rewritten file has lost.
    #[must_use]
    pub fn sha256(&self) -> String {
        let bytes: Vec<u8> = self.vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        crate::hex(&Sha256::digest(&bytes))
    }

    /// Loads a direction from a control-vector file, of ggsteer or of another tool. A file with several needs `block`.
    ///
    /// # Errors
    /// See [`DirectionError`].
    pub fn load(path: impl AsRef<Path>, block: Option<usize>) -> Result<Self, DirectionError> {
        let path = path.as_ref();
        let at = || path.to_path_buf();
        let fail = |source| match source {
            // Names the path itself.
            GgufError::Io { path, source } => {
                DirectionError::Gguf { path: path.clone(), source: GgufError::Write(source) }
            }
            source => DirectionError::Gguf { path: at(), source },
        };
        Self::from_file(&GgufFile::open(path).map_err(fail)?, block)
    }

    /// As [`Direction::load`], of a file's bytes that have come from elsewhere; errors call it `name`.
    ///
    /// # Errors
    /// As [`Direction::load`]; [`DirectionError::Gguf`] too where no temporary file can be made.
    pub fn read(name: &str, bytes: &[u8], block: Option<usize>) -> Result<Self, DirectionError> {
        let path = PathBuf::from(name);
        let fail = |source| DirectionError::Gguf { path: path.clone(), source };
        let io = |source| fail(GgufError::Write(source));
        let mut file = tempfile::tempfile().map_err(io)?;
        file.write_all(bytes).map_err(io)?;
        let file = GgufFile::from_files(vec![(path.clone(), file)]).map_err(fail)?;
        Self::from_file(&file, block)
    }

    fn from_file(file: &GgufFile, block: Option<usize>) -> Result<Self, DirectionError> {
        let at = || file.path().to_path_buf();
        let arch = file.arch().map_err(|source| DirectionError::Gguf { path: at(), source })?;
        if arch != "controlvector" {
            return Err(DirectionError::NotAControlVector { path: at(), found: arch.into() });
        }
        let mut all: Vec<(usize, &TensorInfo)> = file
            .tensors()
            .iter()
            .filter_map(|t| Some((t.name.strip_prefix("direction.")?.parse().ok()?, t)))
            .collect();
        all.sort_by_key(|(block, _)| *block);
        let blocks = || all.iter().map(|(block, _)| *block).collect();
        let (block, info) = match (block, &all[..]) {
            (_, []) => return Err(DirectionError::Empty { path: at() }),
            (None, [one]) => *one,
            (None, _) => {
                let wanted = "a block must be chosen".into();
                return Err(DirectionError::Choose { path: at(), wanted, blocks: blocks() });
            }
            (Some(wanted), _) => *all.iter().find(|(block, _)| *block == wanted).ok_or_else(|| {
                let wanted = format!("no direction for block {wanted}");
                DirectionError::Choose { path: at(), wanted, blocks: blocks() }
            })?,
        };
        if info.ty != GgmlType::F32 || info.rows() != 1 {
            let found = format!("{} {:?}", info.ty, info.shape());
            return Err(DirectionError::Tensor { path: at(), name: info.name.clone(), found });
        }
        let mut vector = vec![0.0; info.ne[0] as usize];
        for (x, bytes) in vector.iter_mut().zip(file.tensor_data(info).as_chunks::<4>().0) {
            *x = f32::from_le_bytes(*bytes);
        }
        let direction = Self { vector, block, meta: Provenance::read(file) };
        direction.check()?;
        Ok(direction)
    }

    /// Writes the control-vector file (see the module's page), whole or not at all.
    ///
    /// `controlvector.layer_count` is the highest block number in the file, at least 1: what llama.cpp's own generator
    /// writes for directions 1 to n; llama.cpp's loader does not read it.
    ///
    /// # Errors
    /// [`DirectionError::NotFinite`], [`DirectionError::Zero`], [`DirectionError::Output`].
    pub fn save(&self, path: impl AsRef<Path>, force: bool) -> Result<(), DirectionError> {
        let out = OutputFile::create(path.as_ref(), force, &[])?;
        self.save_to(out)
    }

    /// As [`Direction::save`], into an output that was begun before.
    ///
    /// # Errors
    /// As [`Direction::save`].
    pub fn save_to(&self, mut out: OutputFile) -> Result<(), DirectionError> {
        self.check()?;
        let mut writer = Writer::new().key("general.architecture", "controlvector");
        if let Some(arch) = &self.meta.architecture {
            writer = writer.key("controlvector.model_hint", arch.as_str());
        }
        writer = writer.key("controlvector.layer_count", self.block.max(1) as i32);
        for (key, value) in self.meta.keys(self.norm()) {
            writer = writer.key(key, value);
        }
        let name = format!("direction.{}", self.block);
        let writer = writer.tensor(name, &[self.vector.len() as u64], GgmlType::F32);
        let bytes: Vec<u8> = self.vector.iter().flat_map(|x| x.to_le_bytes()).collect();
        let written = writer.start(&mut out).and_then(|mut stream| {
            stream.data(&bytes)?;
            stream.finish()?.flush()?;
            Ok(())
        });
        written.map_err(DirectionError::Write)?;
        Ok(out.commit()?)
    }
}
