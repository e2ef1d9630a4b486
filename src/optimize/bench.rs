//! Trying a point on a model: its LoRA adapter, whole answers to the harmful prompts, one token to the
//! harmless ones.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::{ATTENTION, FFN, OptimizeError, Outcome, Point};
use crate::arch::Writer;
use crate::direction::Direction;
use crate::evaluate::kl::kl;
use crate::evaluate::run::{Options, Set, answers, first_logits};
use crate::export::ExportError;
use crate::export::lora::Lora;
use crate::gguf::{self, GgufFile};
use crate::intervention::Intervention;
use crate::output::OutputFile;
use crate::quant::GgmlType;
use crate::runtime::{Error, Model, Session, SessionOptions};

/// A model with the prompts that edits of it are tried on.
pub struct Bench<'a> {
    model: &'a mut Model,
    file: &'a GgufFile,
    directions: &'a [Direction],
    harmful: &'a Set,
    harmless: &'a Set,
    session: SessionOptions,
    options: Options,
    writers: Vec<Writer>,
    /// Plain logits after each harmless prompt.
    base: Vec<Vec<f32>>,
    folder: TempDir,
    /// Where the whole adapter of each direction is, once it was made.
    adapters: Vec<Option<PathBuf>>,
}

impl<'a> Bench<'a> {
    /// Looks at the writers of `file`, which `model` was loaded from, and computes the plain model's
    /// logits; both sets are \[harmful, harmless\]. `options.kl_tokens` is not used: KL is over the first
    /// token.
    ///
    /// # Errors
    /// A writer of attention or FFN that no adapter can carry; a model that cannot be run.
    pub fn new(
        model: &'a mut Model,
        file: &'a GgufFile,
        directions: &'a [Direction],
        [harmful, harmless]: [&'a Set; 2],
        session: SessionOptions,
        options: Options,
    ) -> Result<Self, OptimizeError> {
        let writers = crate::arch::writers(file).map_err(ExportError::from)?;
        let searched = |tensor: &str| {
            let writer = writers.iter().find(|w| w.tensor == tensor);
            writer.is_some_and(|w| ATTENTION.iter().chain(&FFN).any(|group| *group == w.kind.group()))
        };
        let first: Vec<Vec<f32>> = directions.iter().take(1).map(|d| d.vector.clone()).collect();
        let lora = Lora::new(file, &first)?;
        if let Some(left) = lora.left_out.into_iter().find(|left| searched(&left.tensor)) {
            let (tensor, reason) = (left.tensor, left.reason.to_string());
            return Err(OptimizeError::NotCarried { tensor, reason });
        }
        let folder = tempfile::tempdir().map_err(OptimizeError::Temporary)?;
        let mut plain = Session::new(model, session.clone())?;
        let base = first_logits(&mut plain, &harmless.prompts, None, &mut || ())?;
        drop(plain);
        let adapters = vec![None; directions.len()];
        Ok(Self {
            model,
            file,
            directions,
            harmful,
            harmless,
            session,
            options,
            writers,
            base,
            folder,
            adapters,
        })
    }

    /// The same model with other prompts, no longer than what `session` was made for.
    ///
    /// # Errors
    /// A model that cannot be run.
    pub fn on(mut self, [harmful, harmless]: [&'a Set; 2]) -> Result<Self, OptimizeError> {
        let mut plain = Session::new(self.model, self.session.clone())?;
        self.base = first_logits(&mut plain, &harmless.prompts, None, &mut || ())?;
        drop(plain);
        (self.harmful, self.harmless) = (harmful, harmless);
        Ok(self)
    }

    /// The writers of the model, which points give strengths to.
    #[must_use]
    pub fn writers(&self) -> &[Writer] {
        &self.writers
    }

    /// The model as it is.
    ///
    /// # Errors
    /// A model that cannot be run.
    pub fn untouched(&self) -> Result<Outcome, OptimizeError> {
        Ok(self.measure(&mut Session::new(self.model, self.session.clone())?, None)?)
    }

    /// Tries a point; without one, the first direction erased after every write.
    ///
    /// # Errors
    /// A direction that cannot be erased, a model that cannot be run, no room for an adapter.
    pub fn measure_at(&mut self, point: Option<&Point>) -> Result<Outcome, OptimizeError> {
        let Some(point) = point else {
            let first: Vec<&Vec<f32>> = self.directions.iter().take(1).map(|d| &d.vector).collect();
            let ablate = Arc::new(Intervention::ablate(&first)?);
            let mut session = Session::new(self.model, self.session.clone())?;
            return Ok(self.measure(&mut session, Some(&ablate))?);
        };
        let whole = self.whole(point.direction)?;
        let path = self.folder.path().join("trial.gguf");
        if !self.scaled(&whole, point, &path)? {
            return self.untouched();
        }
        let mut adapter = self.model.load_adapter(&path)?;
        let mut session = Session::new(self.model, self.session.clone())?;
        session.set_adapter(&mut adapter)?;
        Ok(self.measure(&mut session, None)?)
    }

    fn measure(
        &self,
        session: &mut Session<'_>,
        intervention: Option<&Arc<Intervention>>,
    ) -> Result<Outcome, Error> {
        let step = &mut || ();
        let answers = answers(session, self.harmful, intervention, &self.options, step)?;
        let logits = first_logits(session, &self.harmless.prompts, intervention, step)?;
        let divergences: Vec<f64> =
            self.base.iter().zip(&logits).map(|(base, this)| kl(base, this)).collect();
        Ok(Outcome::new(&answers, &divergences, self.options.seed))
    }

    /// The adapter that takes all of a direction out: the costly part, made once.
    fn whole(&mut self, direction: usize) -> Result<PathBuf, OptimizeError> {
        if let Some(path) = &self.adapters[direction] {
            return Ok(path.clone());
        }
        let path = self.folder.path().join(format!("{direction}.gguf"));
        let lora = Lora::new(self.file, &[self.directions[direction].vector.clone()])?;
        lora.write(self.file, OutputFile::create(&path, true, &[])?, &[], &mut || ())?;
        self.adapters[direction] = Some(path.clone());
        Ok(path)
    }

    /// Writes the adapter at `whole` with the strengths of `point`; false, and nothing written, where all
    /// are 0.
    fn scaled(&self, whole: &Path, point: &Point, to: &Path) -> Result<bool, OptimizeError> {
        let whole = GgufFile::open(whole).map_err(ExportError::from)?;
        let strength = |tensor: &str| {
            let name = tensor.strip_suffix(".lora_a").or_else(|| tensor.strip_suffix(".lora_b"));
            let writer = self.writers.iter().find(|w| Some(w.tensor.as_str()) == name);
            writer.map_or(0.0, |writer| point.strength(writer)) as f32
        };
        let mut plan = gguf::Writer::new();
        for (key, value) in whole.metadata() {
            plan = plan.key(key.as_str(), value.clone());
        }
        let kept: Vec<_> = whole.tensors().iter().filter(|info| strength(&info.name) > 0.0).collect();
        for info in &kept {
            plan = plan.tensor(info.name.as_str(), &info.ne[..info.n_dims as usize], GgmlType::F32);
        }
        if kept.is_empty() {
            return Ok(false);
        }
        let mut out = OutputFile::create(to, true, &[])?;
        let write = |out: &mut OutputFile| -> Result<(), ExportError> {
            let mut stream = plan.start(out)?;
            for info in kept {
                let by = if info.name.ends_with(".lora_b") { strength(&info.name) } else { 1.0 };
                let (values, _) = whole.tensor_data(info).as_chunks::<4>();
                let scaled = values.iter().flat_map(|b| (by * f32::from_le_bytes(*b)).to_le_bytes());
                stream.data(&scaled.collect::<Vec<u8>>())?;
            }
            Ok(stream.finish()?.flush()?)
        };
        write(&mut out)?;
        out.commit()?;
        Ok(true)
    }
}
