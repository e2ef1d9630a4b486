//! Calibration: its arguments, and the step that collects it, as several subcommands take them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::Args;
use ggsteer::arch::{self, Writer};
use ggsteer::calibration::{self, Calibration, Imatrix, Options, Origin, Target};
use ggsteer::direction::{Direction, Provenance};
use ggsteer::evaluate::run::Set;
use ggsteer::gguf::GgufFile;
use ggsteer::intervention::Intervention;
use ggsteer::output::OutputFile;
use ggsteer::runtime::{Model, Token};

use super::args::{PARALLEL, RunArgs, Sets, at_least_one, longest, tokenize_both};
use super::steps;
use super::ui::{Ui, warn};

/// How much is sampled, and where it is kept.
#[derive(Debug, Clone, Default, Args)]
pub struct SampleArgs {
    /// Keep samples of the writers' inputs there, to round a rewritten model by (a GGUF file)
    #[arg(long, value_name = "FILE")]
    pub save_calibration: Option<PathBuf>,
    /// Sampled inputs of each matrix, or of each expert [default: by its width, 256 to 4096]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub samples: Option<usize>,
}

impl SampleArgs {
    /// Begins the file, beside the command's own `output`.
    pub fn create(&self, output: &Path, force: bool, inputs: &[&Path]) -> Result<Option<OutputFile>> {
        let Some(path) = &self.save_calibration else { return Ok(None) };
        if path == output {
            bail!("{}: both --output and --save-calibration", path.display());
        }
        Ok(Some(OutputFile::create(path, force, inputs)?))
    }

    /// Checks that there is something to collect with.
    pub fn check(&self, prompts: bool) -> Result<()> {
        if !prompts && self.save_calibration.is_some() {
            bail!("--save-calibration needs prompts to collect it with: --harmful and --harmless");
        }
        Ok(())
    }

    /// The options of a collector.
    pub fn options(&self) -> Options {
        Options { rows: self.samples, ..Options::default() }
    }
}

/// Tokens of an answer that are sampled: a behaviour shows there, and longer ones tell little more.
pub const ANSWER_TOKENS: usize = 16;

/// What a rewritten model is rounded by.
#[derive(Debug, Clone, Default, Args)]
pub struct CalibrationArgs {
    /// Samples of the writers' inputs, as --save-calibration keeps them
    #[arg(long, value_name = "FILE", conflicts_with_all = ["uncalibrated", "save_calibration"])]
    pub calibration: Option<PathBuf>,
    /// Use a calibration of a model of another name whose tensors have the same shapes
    #[arg(long, requires = "calibration")]
    pub other_calibration: bool,
    /// Mean squares of the writers' inputs alone: an importance matrix of llama.cpp (either format)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["uncalibrated", "save_calibration"])]
    pub imatrix: Option<PathBuf>,
    /// Round to the nearest code, without regard to the inputs: fast, and less exact the fewer the bits
    #[arg(long, conflicts_with = "save_calibration")]
    pub uncalibrated: bool,
    /// Tokens of the model's own answer to sample after each prompt
    #[arg(long, value_name = "N", default_value_t = ANSWER_TOKENS)]
    pub answer_tokens: usize,
    #[command(flatten)]
    pub sample: SampleArgs,
}

impl CalibrationArgs {
    /// The files it reads.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.calibration.iter().chain(&self.imatrix).map(PathBuf::as_path)
    }

    /// Checks that the calibration comes from one place: the prompts, where there are some, or a file.
    pub fn check(&self, prompts: bool) -> Result<()> {
        let places = [
            ("prompts", prompts),
            ("--calibration", self.calibration.is_some()),
            ("--imatrix", self.imatrix.is_some()),
            ("--uncalibrated", self.uncalibrated),
        ];
        let mut given = places.iter().filter(|(_, given)| *given).map(|(place, _)| place);
        if let (Some(one), Some(other)) = (given.next(), given.next()) {
            bail!("the writers' inputs come from {one} or {other}, not from both");
        }
        Ok(())
    }

    /// The calibration that was given as a file, checked against the model; none where none was.
    pub fn load(&self, model: &GgufFile, writers: &[Writer]) -> Result<Option<Calibration>> {
        let (path, calibration) = if let Some(path) = &self.calibration {
            (path, Calibration::load(path)?)
        } else if let Some(path) = &self.imatrix {
            (path, Imatrix::load(path)?.calibration(&Target::of(model, writers))?)
        } else {
            return Ok(None);
        };
        let at = || path.display().to_string();
        let fit = calibration.fits(model, writers, self.other_calibration).with_context(at)?;
        if self.calibration.is_some() {
            fit.warnings().iter().for_each(|words| warn(&format!("{}: {words}", at())));
        }
        Ok(Some(calibration))
    }

    /// Collects the calibration of `file`'s writers while `directions` are ablated in `model`, as the new file will be
    /// run, and keeps it where `out` says.
    pub fn collect(
        &self,
        ui: Ui,
        run: &RunArgs,
        model: &Model,
        file: &GgufFile,
        by: &Prompts<'_>,
        out: Option<OutputFile>,
    ) -> Result<Calibration> {
        let at = || file.path().display().to_string();
        // All of them, be they edited or not: a calibration is then of use for another edit too.
        let writers = arch::partial_writers(file).with_context(at)?;
        let targets = Target::of(file, &writers);
        let sets = tokenize_both(model, by.sets)?;
        let options = Options { seed: by.seed, generated: self.answer_tokens, ..self.sample.options() };
        let source = steps::source(model, by.sets)?;
        let wanted = Wanted { targets: &targets, directions: by.directions, options, source };
        let calibration = calibrate(ui, run, model, [&sets[0], &sets[1]], wanted)?;
        let fit = calibration.fits(file, &writers, true).with_context(at)?;
        fit.warnings().iter().for_each(|words| warn(words));
        if let Some(out) = out {
            calibration.save_to(out)?;
        }
        Ok(calibration)
    }
}

/// What a calibration is collected with.
pub struct Prompts<'a> {
    pub sets: &'a Sets,
    /// Ablated meanwhile.
    pub directions: &'a [Direction],
    pub seed: u64,
}

/// What is to be sampled, and under what.
struct Wanted<'a> {
    targets: &'a [Target],
    /// Ablated meanwhile, as in the file that is to be: its writers will be given what is left then.
    directions: &'a [Direction],
    options: Options,
    source: Provenance,
}

/// Runs both sets through the model and samples what is wanted.
fn calibrate(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    sets: [&Set; 2],
    wanted: Wanted<'_>,
) -> Result<Calibration> {
    let Wanted { targets, directions, options, source } = wanted;
    let vectors: Vec<&[f32]> = directions.iter().map(|d| d.vector.as_slice()).collect();
    let ablation = Arc::new(Intervention::ablate(&vectors)?);
    let ablation = (!directions.is_empty()).then_some(&ablation);
    let ablated = directions.iter().map(Direction::sha256).collect();
    let origin = Origin { source, ablated, ..Origin::default() };
    let mut session = run.session(model, PARALLEL, longest(sets).saturating_add(options.generated))?;
    let steps = if options.generated > 0 { 2 } else { 1 };
    let n_prompts: usize = sets.iter().map(|set| set.prompts.len()).sum();
    let bar = ui.progress(steps * n_prompts, "sampling activations");
    let prompts = sets.map(|set| set.prompts.as_slice());
    let step = &mut || bar.inc(1);
    let calibration = calibration::collect(&mut session, prompts, targets, ablation, &options, origin, step)?;
    bar.finish_and_clear();
    Ok(calibration)
}

/// The tokens of every prompt of a set.
pub fn sequences(set: &Set) -> Vec<&[Token]> {
    set.prompts.iter().map(|p| p.tokens.as_slice()).collect()
}
