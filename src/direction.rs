//! The direction type and its GGUF file.
//!
//! A direction file is a llama.cpp control vector: `general.architecture = controlvector`, one F32 tensor `direction.N`
//! of ne = [n_embd], where N is the 0-based block at whose *output* llama.cpp adds it. The tensor holds the raw
//! difference of means, so scale 1 there is the paper's addition. Two things to know about stock llama.cpp: it only
//! adds (a direction meant for ablation then pushes *toward* the behaviour), and it refuses a file with `direction.0`,
//! so a direction of block 0 is for ggsteer alone. Some tools number from 1 and act one block late; their files load
//! here as they are.
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::gguf::{GgufError, GgufFile, TensorInfo, Value, Writer};
use crate::output::{OutputError, OutputFile};
use crate::quant::{self, GgmlType};

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

/// Where a direction comes from. Everything may be unknown: other tools' files say less.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Provenance {
    /// The model's `general.architecture` (`controlvector.model_hint`).
    pub architecture: Option<String>,
    /// The token position it was measured at: negative, from the end of the templated prompt.
    pub position: Option<i32>,
    /// Its length when it was measured.
    pub raw_norm: Option<f64>,
    /// Its scores in the selection.
    pub scores: Option<Scores>,
    /// [`crate::gguf::fingerprint`] of the model file.
    pub model_fingerprint: Option<String>,
    /// `general.name` of the model.
    pub model_name: Option<String>,
    /// SHA-256 of the harmful prompts.
    pub prompts_harmful_sha256: Option<String>,
    /// SHA-256 of the harmless prompts.
    pub prompts_harmless_sha256: Option<String>,
    /// Number of harmful prompts.
    pub n_harmful: Option<u32>,
    /// Number of harmless prompts.
    pub n_harmless: Option<u32>,
    /// Program and version that wrote the file.
    pub created_by: Option<String>,
    /// `glp.mode`: `project` for a direction to be taken out, `add` for one to be added.
    pub mode: Option<String>,
    /// `glp.alpha_default`: the strength to use when none is given.
    pub alpha_default: Option<f32>,
    /// `glp.hook_point`: the node it belongs to; `l_out` is a block's output.
    pub hook_point: Option<String>,
}

/// The scores by which a direction was chosen (Arditi et al. 2024, appendix C).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Scores {
    /// Mean refusal score on harmful prompts with the direction ablated.
    pub bypass: f64,
    /// Mean refusal score on harmless prompts with the direction added.
    pub induce: f64,
    /// KL(base ‖ ablated) on harmless prompts at the last position.
    pub kl: f64,
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
        use sha2::{Digest, Sha256};
        let mut hash = Sha256::new();
        self.vector.iter().for_each(|x| hash.update(x.to_le_bytes()));
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
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
        let file = GgufFile::open(path).map_err(fail)?;
        let arch = file.arch().map_err(fail)?;
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
        quant::decode(info.ty, file.tensor_data(info), &mut vector)
            .expect("an f32 tensor holds its elements: checked when the file was read");
        let direction = Self { vector, block, meta: Provenance::read(&file) };
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

impl Provenance {
    /// The keys that say which model and which prompts, as in every file of ours.
    pub(crate) fn origin_keys(&self) -> Vec<(&'static str, Value)> {
        let string = |s: &Option<String>| s.as_deref().map(Value::from);
        let created_by = concat!("ggsteer ", env!("CARGO_PKG_VERSION"));
        let keys = [
            ("ggsteer.model.fingerprint", string(&self.model_fingerprint)),
            ("ggsteer.model.name", string(&self.model_name)),
            ("ggsteer.prompts.harmful.sha256", string(&self.prompts_harmful_sha256)),
            ("ggsteer.prompts.harmless.sha256", string(&self.prompts_harmless_sha256)),
            ("ggsteer.prompts.harmful.count", self.n_harmful.map(Value::from)),
            ("ggsteer.prompts.harmless.count", self.n_harmless.map(Value::from)),
            ("ggsteer.created_by", Some(Value::from(self.created_by.as_deref().unwrap_or(created_by)))),
        ];
        keys.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// The keys of a direction file, in their order there. `norm` stands in for an unknown raw norm.
    fn keys(&self, norm: f64) -> Vec<(&'static str, Value)> {
        let default = |s: &Option<String>, other: &str| Some(Value::from(s.as_deref().unwrap_or(other)));
        let score = |f: fn(&Scores) -> f64| self.scores.as_ref().map(|s| Value::F64(f(s)));
        [
            ("glp.mode", default(&self.mode, "project")),
            ("glp.alpha_default", Some(Value::F32(self.alpha_default.unwrap_or(1.0)))),
            ("glp.hook_point", default(&self.hook_point, "l_out")),
            ("glp.rank", Some(Value::U32(1))),
            ("ggsteer.position", self.position.map(Value::from)),
            ("ggsteer.raw_norm", Some(Value::F64(self.raw_norm.unwrap_or(norm)))),
            ("ggsteer.scores.bypass", score(|s| s.bypass)),
            ("ggsteer.scores.induce", score(|s| s.induce)),
            ("ggsteer.scores.kl", score(|s| s.kl)),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key, value?)))
        .chain(self.origin_keys())
        .collect()
    }

    /// What a file says; keys that are missing or of another type are unknown.
    pub(crate) fn read(file: &GgufFile) -> Self {
        let string = |key: &str| file.get_str(key).ok().map(str::to_string);
        let double = |key: &str| match file.get(key)? {
            Value::F64(x) => Some(*x),
            Value::F32(x) => Some(f64::from(*x)),
            _ => None,
        };
        let scores = || {
            Some(Scores {
                bypass: double("ggsteer.scores.bypass")?,
                induce: double("ggsteer.scores.induce")?,
                kl: double("ggsteer.scores.kl")?,
            })
        };
        Self {
            architecture: string("controlvector.model_hint"),
            position: match file.get("ggsteer.position") {
                Some(Value::I32(n)) => Some(*n),
                _ => None,
            },
            raw_norm: double("ggsteer.raw_norm"),
            scores: scores(),
            model_fingerprint: string("ggsteer.model.fingerprint"),
            model_name: string("ggsteer.model.name"),
            prompts_harmful_sha256: string("ggsteer.prompts.harmful.sha256"),
            prompts_harmless_sha256: string("ggsteer.prompts.harmless.sha256"),
            n_harmful: file.get_u32("ggsteer.prompts.harmful.count").ok(),
            n_harmless: file.get_u32("ggsteer.prompts.harmless.count").ok(),
            created_by: string("ggsteer.created_by"),
            mode: string("glp.mode"),
            alpha_default: file.get_f32("glp.alpha_default").ok(),
            hook_point: string("glp.hook_point"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn write(path: &Path, writer: Writer, data: &[&[u8]]) {
        let mut stream = writer.start(Vec::new()).unwrap();
        data.iter().for_each(|d| stream.data(d).unwrap());
        std::fs::write(path, stream.finish().unwrap()).unwrap();
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    #[test]
    fn comes_back_as_it_was_saved() {
        let dir = dir();
        let path = dir.path().join("d.gguf");
        let meta = Provenance {
            architecture: Some("qwen3".into()),
            position: Some(-2),
            raw_norm: Some(5.0),
            scores: Some(Scores { bypass: -3.5, induce: 1.25, kl: 0.04 }),
            model_fingerprint: Some("ab".repeat(32)),
            model_name: Some("make-believe 1B".into()),
            prompts_harmful_sha256: Some("cd".repeat(32)),
            prompts_harmless_sha256: Some("ef".repeat(32)),
            n_harmful: Some(128),
            n_harmless: Some(127),
            created_by: Some("ggsteer test".into()),
            mode: Some("project".into()),
            alpha_default: Some(1.0),
            hook_point: Some("l_out".into()),
        };
        let saved = Direction::new(vec![3.0, 0.0, -4.0], 7, meta).unwrap();
        saved.save(&path, false).unwrap();
        let loaded = Direction::load(&path, None).unwrap();
        assert_eq!(loaded, saved);
        assert!((loaded.norm() - 5.0).abs() < 1e-12);
        assert_eq!(loaded.unit(), [0.6, 0.0, -0.8]);
        assert!(matches!(saved.save(&path, false), Err(DirectionError::Output(OutputError::Exists { .. }))));
        saved.save(&path, true).unwrap();
    }

    #[test]
    fn the_file_is_a_control_vector() {
        let dir = dir();
        let path = dir.path().join("d.gguf");
        let meta = Provenance { architecture: Some("llama".into()), ..Provenance::default() };
        Direction::new(vec![1.0; 8], 3, meta).unwrap().save(&path, false).unwrap();
        let file = GgufFile::open(&path).unwrap();
        assert_eq!(file.arch().unwrap(), "controlvector");
        assert_eq!(file.get_str("controlvector.model_hint").unwrap(), "llama");
        assert_eq!(file.get("controlvector.layer_count"), Some(&Value::I32(3)));
        assert_eq!(file.get_str("glp.mode").unwrap(), "project");
        assert_eq!(file.get("glp.alpha_default"), Some(&Value::F32(1.0)));
        assert_eq!(file.get_str("glp.hook_point").unwrap(), "l_out");
        assert_eq!(file.get("glp.rank"), Some(&Value::U32(1)));
        let tensor = file.tensor("direction.3").unwrap();
        assert_eq!((tensor.ty, tensor.shape()), (GgmlType::F32, &[8][..]));
    }

    #[test]
    fn files_of_other_tools_load() {
        let dir = dir();
        let path = dir.path().join("other.gguf");
        let writer = || Writer::new().key("general.architecture", "controlvector");
        write(&path, writer().tensor("direction.5", &[2], GgmlType::F32), &[&bytes(&[1.0, 2.0])]);
        let one = Direction::load(&path, None).unwrap();
        assert_eq!((one.block, one.vector.as_slice()), (5, &[1.0, 2.0][..]));
        assert_eq!(one.meta, Provenance::default());
        one.check_model("anything", 2).unwrap();

        let several =
            writer().tensor("direction.2", &[2], GgmlType::F32).tensor("direction.11", &[2], GgmlType::F32);
        write(&path, several, &[&bytes(&[1.0, 2.0]), &bytes(&[3.0, 4.0])]);
        let error = Direction::load(&path, None).unwrap_err().to_string();
        assert!(error.contains("must be chosen") && error.contains("[2, 11]"), "{error}");
        assert_eq!(Direction::load(&path, Some(11)).unwrap().vector, [3.0, 4.0]);
        let error = Direction::load(&path, Some(3)).unwrap_err().to_string();
        assert!(error.contains("no direction for block 3") && error.contains("[2, 11]"), "{error}");
    }

    #[test]
    fn bad_directions_are_refused() {
        let nan = Direction::new(vec![0.0, f32::NAN], 1, Provenance::default());
        assert!(matches!(nan, Err(DirectionError::NotFinite { index: 1, .. })));
        assert!(matches!(Direction::new(vec![0.0; 4], 1, Provenance::default()), Err(DirectionError::Zero)));
        assert!(matches!(Direction::new(vec![], 1, Provenance::default()), Err(DirectionError::Zero)));
        let meta = Provenance { architecture: Some("llama".into()), ..Provenance::default() };
        let direction = Direction::new(vec![1.0; 512], 1, meta).unwrap();
        let width = direction.check_model("llama", 256).unwrap_err();
        assert_eq!(width.to_string(), "direction has n_embd 512, model has 256");
        assert!(matches!(direction.check_model("qwen3", 512), Err(DirectionError::Architecture { .. })));

        let dir = dir();
        let path = dir.path().join("x.gguf");
        let writer = |arch: &str| Writer::new().key("general.architecture", arch);
        write(&path, writer("llama"), &[]);
        let error = Direction::load(&path, None).unwrap_err();
        assert!(matches!(error, DirectionError::NotAControlVector { .. }), "{error}");
        write(&path, writer("controlvector"), &[]);
        assert!(matches!(Direction::load(&path, None), Err(DirectionError::Empty { .. })));
        let two_rows = writer("controlvector").tensor("direction.1", &[1, 2], GgmlType::F32);
        write(&path, two_rows, &[&bytes(&[1.0, 2.0])]);
        assert!(matches!(Direction::load(&path, None), Err(DirectionError::Tensor { .. })));
        let half = writer("controlvector").tensor("direction.1", &[2], GgmlType::F16);
        write(&path, half, &[&[0; 4]]);
        assert!(matches!(Direction::load(&path, None), Err(DirectionError::Tensor { .. })));
        let zero = writer("controlvector").tensor("direction.1", &[2], GgmlType::F32);
        write(&path, zero, &[&[0; 8]]);
        assert!(matches!(Direction::load(&path, None), Err(DirectionError::Zero)));
        std::fs::write(&path, b"words").unwrap();
        let error = Direction::load(&path, None).unwrap_err().to_string();
        assert!(error.contains("x.gguf") && error.contains("not a GGUF file"), "{error}");
        let error = Direction::load(dir.path().join("none.gguf"), None).unwrap_err().to_string();
        assert_eq!(error.matches("none.gguf").count(), 1, "{error}");
    }
}
