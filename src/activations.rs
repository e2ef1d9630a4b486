//! Residual-stream means over two prompt sets, at every post-instruction position and block.
//!
//! Shapes: a [`Means`] holds `n_pos × n_block × n_embd` sums in f64, position −1 (the last token) first.
//!
//! ```
//! use ggsteer::activations::{Contrast, Means};
//! use ggsteer::direction::Provenance;
//!
//! let [mut harmful, mut harmless] = [Means::new(1, 1, 2), Means::new(1, 1, 2)];
//! harmful.add(-1, 0, &[1.0, 2.0]);
//! harmful.add(-1, 0, &[3.0, 6.0]);
//! harmless.add(-1, 0, &[1.0, 1.0]);
//! let contrast = Contrast { harmful, harmless, source: Provenance::default() };
//! assert_eq!(contrast.difference(-1, 0), [1.0, 3.0]);
//! ```
#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::calibration::{Collector, outputs};
use crate::direction::{Direction, DirectionError, Provenance};
use crate::gguf::{GgufError, GgufFile, Writer};
use crate::intervention::{Intervention, dot64};
use crate::output::{OutputError, OutputFile};
use crate::quant::{self, GgmlType};
use crate::runtime::{CapturePlan, Error, Job, Prompt, Session, Site};

/// Running means of the stream at the output of each block, for the last `n_pos` positions of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    n_pos: usize,
    n_block: usize,
    n_embd: usize,
    /// Rows added per (position, block).
    counts: Vec<u64>,
    sums: Vec<f64>,
}

impl Means {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(n_pos: usize, n_block: usize, n_embd: usize) -> Self {
        let cells = n_pos * n_block;
        Self { n_pos, n_block, n_embd, counts: vec![0; cells], sums: vec![0.0; cells * n_embd] }
    }

    /// (positions, blocks, width).
    #[must_use]
    pub fn shape(&self) -> (usize, usize, usize) {
        (self.n_pos, self.n_block, self.n_embd)
    }

    fn cell(&self, position: i32, block: usize) -> usize {
        let back = usize::try_from(-1 - position).expect("positions are negative");
        assert!(back < self.n_pos && block < self.n_block, "position {position}, block {block}");
        back * self.n_block + block
    }

    /// Adds one row (`n_embd`) seen at `position` (−1 is the last) of a prompt, at the output of `block`.
    pub fn add(&mut self, position: i32, block: usize, row: &[f32]) {
        let cell = self.cell(position, block);
        self.counts[cell] += 1;
        let sums = &mut self.sums[cell * self.n_embd..][..self.n_embd];
        sums.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x));
    }

    /// The mean (`n_embd`) at `position` and `block`; NaN where nothing was added.
    #[must_use]
    pub fn mean(&self, position: i32, block: usize) -> Vec<f64> {
        let cell = self.cell(position, block);
        let n = self.counts[cell] as f64;
        self.sums[cell * self.n_embd..][..self.n_embd].iter().map(|s| s / n).collect()
    }

    /// Prompts seen at the last position.
    #[must_use]
    pub fn n(&self) -> u64 {
        self.counts.first().copied().unwrap_or(0)
    }
}

/// The means of the two sets, whose differences are the candidate directions.
#[derive(Debug, Clone, PartialEq)]
pub struct Contrast {
    /// Over the prompts that show the behaviour.
    pub harmful: Means,
    /// Over those that do not.
    pub harmless: Means,
    /// The model and the prompts.
    pub source: Provenance,
}

/// Why a directions file cannot be saved or loaded.
#[derive(Debug, thiserror::Error)]
pub enum ContrastError {
    /// Not a GGUF file, or one that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: GgufError,
    },
    /// Another kind of GGUF file.
    #[error("{}: not a directions file of `ggsteer extract`: general.architecture is {found:?}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// Its architecture.
        found: String,
    },
    /// Means that are missing, or of a shape that does not fit.
    #[error("{}: tensor {name:?} is {found}, expected {expected}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its type and shape.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The output file could not be finished.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The output file could not be written; the cause names it.
    #[error(transparent)]
    Write(GgufError),
}

/// `general.architecture` of a directions file.
pub(crate) const KIND: &str = "ggsteer-directions";

impl Contrast {
    /// mean(harmful) − mean(harmless), `n_embd`, at `position` and the output of `block`.
    #[must_use]
    pub fn difference(&self, position: i32, block: usize) -> Vec<f32> {
        let (a, b) = (self.harmful.mean(position, block), self.harmless.mean(position, block));
        a.iter().zip(&b).map(|(a, b)| (a - b) as f32).collect()
    }

    /// That difference as a direction, with where it was measured.
    ///
    /// # Errors
    /// One that is zero or not finite.
    pub fn direction(&self, position: i32, block: usize) -> Result<Direction, DirectionError> {
        let meta = Provenance { position: Some(position), ..self.source.clone() };
        let mut direction = Direction::new(self.difference(position, block), block, meta)?;
        direction.meta.raw_norm = Some(direction.norm());
        let unit: Vec<f64> = direction.unit().into_iter().map(f64::from).collect();
        let reading = |means: &Means| dot64(&unit, &means.mean(position, block));
        direction.meta.readings = Some((reading(&self.harmless), reading(&self.harmful)));
        Ok(direction)
    }

    /// Every (position, block) measured, the last position first.
    pub fn candidates(&self) -> impl Iterator<Item = (i32, usize)> + use<> {
        let (n_pos, n_block, _) = self.harmful.shape();
        (1..=n_pos as i32).flat_map(move |back| (0..n_block).map(move |block| (-back, block)))
    }
}

/// Directions files: GGUF with three F32 tensors of ne = \[n_embd, n_block, n_pos\], position −1 first.
impl Contrast {
    /// Writes the means and the raw differences.
    ///
    /// # Errors
    /// A disk that refuses.
    pub fn save_to(&self, mut out: OutputFile) -> Result<(), ContrastError> {
        let (n_pos, n_block, n_embd) = self.harmful.shape();
        let ne = [n_embd, n_block, n_pos].map(|n| n as u64);
        let mut writer = Writer::new().key("general.architecture", KIND);
        if let Some(architecture) = &self.source.architecture {
            writer = writer.key("ggsteer.model.architecture", architecture.as_str());
        }
        for (key, value) in self.source.origin_keys() {
            writer = writer.key(key, value);
        }
        for name in NAMES {
            writer = writer.tensor(name, &ne, GgmlType::F32);
        }
        let bytes = |of: &dyn Fn(i32, usize) -> Vec<f32>| -> Vec<u8> {
            self.candidates().flat_map(|(p, il)| of(p, il)).flat_map(f32::to_le_bytes).collect()
        };
        let means = |means: &Means| bytes(&|p, il| means.mean(p, il).iter().map(|&x| x as f32).collect());
        let written = writer.start(&mut out).and_then(|mut stream| {
            stream.data(&means(&self.harmful))?;
            stream.data(&means(&self.harmless))?;
            stream.data(&bytes(&|p, il| self.difference(p, il)))?;
            stream.finish()?.flush()?;
            Ok(())
        });
        written.map_err(ContrastError::Write)?;
        Ok(out.commit()?)
    }

    /// Reads the means back.
    ///
    /// # Errors
    /// See [`ContrastError`].
    pub fn load(path: &Path) -> Result<Self, ContrastError> {
        let fail = |source| match source {
            // Names the path itself.
            GgufError::Io { path, source } => ContrastError::Gguf { path, source: GgufError::Write(source) },
            source => ContrastError::Gguf { path: path.to_path_buf(), source },
        };
        let file = GgufFile::open(path).map_err(fail)?;
        let kind = file.arch().map_err(fail)?;
        if kind != KIND {
            return Err(ContrastError::Kind { path: path.to_path_buf(), found: kind.into() });
        }
        let mut source = Provenance::read(&file);
        source.architecture = file.get_str("ggsteer.model.architecture").ok().map(Into::into);
        let shape = file.tensor(NAMES[0]).map(|t| t.ne);
        let means = |name: &str| -> Result<Means, ContrastError> {
            let info = file.tensor(name);
            let plain = info.filter(|t| t.ty == GgmlType::F32 && Some(t.ne) == shape && t.ne[3] == 1);
            let info = plain.ok_or_else(|| ContrastError::Tensor {
                path: path.to_path_buf(),
                name: name.into(),
                found: info.map_or("missing".into(), |t| format!("{} {:?}", t.ty, t.shape())),
                expected: format!("F32 [n_embd, n_block, n_pos] {shape:?}"),
            })?;
            let mut values = vec![0.0; info.elements() as usize];
            let tensor = |source: quant::CodecError| ContrastError::Tensor {
                path: path.to_path_buf(),
                name: name.into(),
                found: source.to_string(),
                expected: "f32 values".into(),
            };
            quant::decode(info.ty, file.tensor_data(info), &mut values).map_err(tensor)?;
            let [n_embd, n_block, n_pos] = [0, 1, 2].map(|i| info.ne[i] as usize);
            let sums = values.into_iter().map(f64::from).collect();
            Ok(Means { n_pos, n_block, n_embd, counts: vec![1; n_pos * n_block], sums })
        };
        Ok(Self { harmful: means(NAMES[0])?, harmless: means(NAMES[1])?, source })
    }
}

/// The tensors of a directions file.
const NAMES: [&str; 3] = ["harmful.mean", "harmless.mean", "difference"];

/// Post-instruction positions that all prompts share.
#[must_use]
pub fn shared_positions<'a>(prompts: impl IntoIterator<Item = &'a Prompt>) -> usize {
    prompts.into_iter().map(|p| p.n_post.min(p.tokens.len())).min().unwrap_or(0).max(1)
}

/// Runs every prompt once, under an intervention if one is given, and averages the stream at its last `n_pos`
/// positions; `step` is called after each prompt.
/// With a collector the same run samples the inputs of its targets; `prompts` are its sequences from `first` on.
///
/// # Errors
/// As [`Session::prefill`].
pub fn measure(
    session: &mut Session<'_>,
    prompts: &[Prompt],
    n_pos: usize,
    intervention: Option<&Arc<Intervention>>,
    mut collector: Option<(&mut Collector<'_>, usize)>,
    step: &mut dyn FnMut(),
) -> Result<Means, Error> {
    let model = session.model();
    let mut means = Means::new(n_pos, model.n_block(), model.n_embd());
    let seen = outputs(model.n_vocab());
    let n_out = |p: &Prompt| if collector.is_some() { n_pos.max(seen(p.tokens.len())) } else { n_pos };
    let jobs: Vec<Job<'_>> = (prompts.iter())
        .map(|p| Job { tokens: &p.tokens, n_out: n_out(p), intervention: intervention.cloned() })
        .collect();
    let plan = collector.as_ref().map_or_else(CapturePlan::default, |(collector, _)| collector.plan());
    let plan = CapturePlan { stream: true, ..plan };
    let mut sink = |job: usize, position: i32, site: Site<'_>, row: &[f32]| match site {
        Site::Block(block) if position >= -(n_pos as i32) => means.add(position, block, row),
        Site::Block(_) | Site::Probe(_) => {}
        Site::WriterInput(_) | Site::ExpertInput(..) => {
            if let Some((collector, first)) = &mut collector {
                collector.add(*first + job, position, site, row);
            }
        }
    };
    session.prefill(&jobs, Some((&plan, &mut sink)), &mut |_, _| step())?;
    Ok(means)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_of_means() {
        let mut harmful = Means::new(2, 3, 2);
        harmful.add(-2, 1, &[1.0, 2.0]);
        harmful.add(-2, 1, &[3.0, 6.0]);
        let mut harmless = Means::new(2, 3, 2);
        harmless.add(-2, 1, &[1.0, 1.0]);
        let source = Provenance { model_name: Some("tiny".into()), ..Provenance::default() };
        let contrast = Contrast { harmful, harmless, source };
        assert_eq!(contrast.difference(-2, 1), [1.0, 3.0]);
        let direction = contrast.direction(-2, 1).unwrap();
        let (harmless, harmful) = direction.meta.readings.unwrap();
        assert!(
            (harmful - harmless - direction.norm()).abs() < 1e-6,
            "they lie the direction's length apart"
        );
        assert!((harmless - 4.0 / 10f64.sqrt()).abs() < 1e-6);
        assert!(contrast.difference(-1, 0)[0].is_nan(), "nothing measured there");
        let all: Vec<_> = contrast.candidates().collect();
        assert_eq!((all.len(), all[0], all[5]), (6, (-1, 0), (-2, 2)));
    }
    #[test]
    fn a_directions_file_gives_the_means_back() {
        let mut means = [Means::new(2, 2, 3), Means::new(2, 2, 3)];
        for (i, m) in means.iter_mut().enumerate() {
            for position in [-1, -2] {
                for block in 0..2 {
                    m.add(position, block, &[i as f32, position as f32, block as f32]);
                }
            }
        }
        let [harmful, harmless] = means;
        let source = Provenance {
            architecture: Some("llama".into()),
            model_name: Some("tiny".into()),
            n_harmful: Some(1),
            ..Provenance::default()
        };
        let contrast = Contrast { harmful, harmless, source };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("directions.gguf");
        contrast.save_to(OutputFile::create(&path, false, &[]).unwrap()).unwrap();
        let read = Contrast::load(&path).unwrap();
        assert_eq!((&read.harmful, &read.harmless), (&contrast.harmful, &contrast.harmless));
        assert_eq!(read.source.model_name, contrast.source.model_name);
        assert_eq!((read.source.architecture.as_deref(), read.source.n_harmful), (Some("llama"), Some(1)));
    }
}
