//! `ggsteer orthogonalize`: the direction out of the weights, for good.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ggsteer::direction::Direction;
use ggsteer::gguf::GgufFile;
use ggsteer::output::OutputFile;
use ggsteer::report::run::Made;
use ggsteer::rewrite::{How, Plan, RecordedAddition, Rounding, estimate};
use serde::Serialize;

use super::args::{DirectionArgs, OptionalPromptArgs, PromptArgs, RunArgs, describe};
use super::calibrate::{CalibrationArgs, Prompts};
use super::card;
use super::rewrite::{Job, RewriteArgs, Rewritten, SourceArgs, check_calibration, rewrite};
use super::ui::{Ui, bytes, warn};

/// Write a new model whose residual writers are orthogonal to the direction; every tensor keeps its type
///
/// Quantized matrices are rounded so that their output is right on the inputs they get: give prompts, to collect these
/// inputs with the direction ablated, or a calibration kept before.
///
/// Example: ggsteer orthogonalize model.gguf --direction direction.gguf --calibration inputs.gguf -o out.gguf
#[derive(Debug, clap::Args)]
#[command(
    verbatim_doc_comment,
    mut_arg("direction", |arg| arg.required(false).required_unless_present("add"))
)]
pub struct Args {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    directions: DirectionArgs,
    #[command(flatten)]
    prompts: OptionalPromptArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    rewrite: RewriteArgs,
    #[command(flatten)]
    source: SourceArgs,
    /// Add this direction at the output of its block for good, as a bias, where the architecture has a place for one
    #[arg(long, value_name = "DIRECTION")]
    add: Vec<PathBuf>,
    /// Coefficient of --add: 1 adds the raw difference in means once
    #[arg(long, value_name = "C", default_value_t = 1.0, allow_negative_numbers = true, requires = "add")]
    scale: f32,
    /// Seed of the sample of inputs and of the order in which they are rounded for
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Print what would be done and how long it would take, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Where to write the new model
    #[arg(short, long, value_name = "OUT", required_unless_present = "dry_run")]
    output: Option<PathBuf>,
    /// Overwrite an existing output
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    made: Made,
    model: String,
    output: String,
    directions: Vec<String>,
    source: Option<String>,
    calibration: Option<String>,
    added: Vec<String>,
    #[serde(flatten)]
    rewritten: &'a Rewritten,
}

#[derive(Serialize)]
struct DryRun {
    model: String,
    directions: Vec<String>,
    plan: Plan,
    bytes: u64,
    out_bytes: u64,
    seconds: f64,
    missing: Option<String>,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let prompts = self.prompts.both();
        self.calibration.check(prompts.is_some())?;
        self.calibration.sample.check(prompts.is_some())?;
        let mut inputs: Vec<&Path> = vec![&self.model];
        inputs.extend(self.directions.paths().chain(self.calibration.paths()));
        inputs.extend(self.source.source.iter().chain(&self.add).map(PathBuf::as_path));
        let prompt_files: Vec<PathBuf> = prompts.iter().flat_map(PromptArgs::paths).collect();
        inputs.extend(prompt_files.iter().map(PathBuf::as_path));
        let begin = |path: &PathBuf| -> Result<_> {
            let out = OutputFile::create(path, self.force, &inputs)?;
            Ok((out, self.calibration.sample.create(path, self.force, &inputs)?))
        };
        let outputs = self.output.as_ref().filter(|_| !self.dry_run).map(begin).transpose()?;

        let at = || self.model.display().to_string();
        let file = GgufFile::open(&self.model).with_context(at)?;
        let directions = self.directions.load(&file)?;
        let mut plan = self.rewrite.plan(&file, &directions)?;
        let additions = self.additions(&file, &mut plan)?;
        let source = self.source.open()?;
        let calibrated = check_calibration(&plan, &self.calibration, prompts.is_some());
        let Some((out, out_calibration)) = outputs else {
            return self.dry_run(ui, &file, plan, source.as_ref(), calibrated.err());
        };
        calibrated?;
        if let Some(source) = &source {
            plan.check_source(&file, source).with_context(|| source.path().display().to_string())?;
        }
        out.check_parts(file.n_parts(), &file.paths())?;

        let wanted = plan.needs_calibration().is_some() || out_calibration.is_some();
        let calibration = match prompts.filter(|_| wanted) {
            None => self.load(&file, &plan, &directions)?,
            Some(prompts) => {
                let sets = prompts.load(ui)?;
                let model = self.run.load(&self.model)?;
                describe(ui, &model);
                let by = Prompts { sets: &sets, directions: &directions, seed: self.seed };
                Some(self.calibration.collect(ui, &self.run, &model, &file, &by, out_calibration)?)
            }
        };
        let job = Job {
            file: &file,
            directions: &directions,
            plan,
            calibration: calibration.as_ref(),
            uncalibrated: self.calibration.uncalibrated,
            source: source.as_ref(),
            max_growth: self.rewrite.max_growth,
            seed: self.seed,
            additions,
        };
        let rewritten = rewrite(ui, job, out)?;
        let shown = |path: &Path| path.display().to_string();
        let output = Output {
            made: Made::by("orthogonalize"),
            model: at(),
            output: shown(&rewritten.report.files[0]),
            directions: self.directions.names(),
            source: self.source.source.as_deref().map(shown),
            calibration: self
                .calibration
                .paths()
                .next()
                .or(self.prompts.harmful.as_ref().map(Path::new))
                .map(shown),
            added: self.add.iter().map(|path| shown(path)).collect(),
            rewritten: &rewritten,
        };
        ui.print(&output, || {
            format!("{}{}written to {}\n", rewritten.table(), rewritten.summary(), output.output)
        })?;
        card::hint(ui, &output.output);
        Ok(())
    }

    /// The calibration that a file holds, where the plan has use for one.
    fn load(
        &self,
        file: &GgufFile,
        plan: &Plan,
        directions: &[Direction],
    ) -> Result<Option<ggsteer::calibration::Calibration>> {
        if plan.needs_calibration().is_none() {
            return Ok(None);
        }
        let writers = ggsteer::arch::partial_writers(file)?;
        let calibration = self.calibration.load(file, &writers)?;
        let ablated = calibration.as_ref().map_or(&[][..], |c| &c.origin().ablated);
        if !ablated.is_empty() && *ablated != directions.iter().map(Direction::sha256).collect::<Vec<_>>() {
            warn(
                "the calibration was collected with another direction ablated: the inputs may be a little off",
            );
        }
        Ok(calibration)
    }

    /// Plans the additions.
    fn additions(&self, file: &GgufFile, plan: &mut Plan) -> Result<Vec<RecordedAddition>> {
        let arch = file.arch()?.to_string();
        let mut recorded = Vec::new();
        for path in &self.add {
            let at = || path.display().to_string();
            let direction = Direction::load(path, self.directions.block).with_context(at)?;
            direction.check_model(&arch, direction.vector.len()).with_context(at)?;
            let vector: Vec<f32> = direction.vector.iter().map(|x| self.scale * x).collect();
            plan.add(file, direction.block, &vector).with_context(at)?;
            let planned = plan.additions.iter().find(|a| a.block == direction.block);
            let planned = planned.with_context(|| format!("{}: was not planned", at()))?;
            if planned.in_front_of_ffn {
                warn(&format!(
                    "{}: block {} has no bias behind its FFN; {} is in the middle of the block, so its FFN sees the addition \
                     too",
                    at(),
                    direction.block,
                    planned.tensor
                ));
            }
            recorded.push(RecordedAddition {
                sha256: direction.sha256(),
                block: direction.block as u32,
                scale: self.scale,
                tensor: planned.tensor.clone(),
            });
        }
        Ok(recorded)
    }

    fn dry_run(
        &self,
        ui: Ui,
        file: &GgufFile,
        plan: Plan,
        source: Option<&GgufFile>,
        missing: Option<anyhow::Error>,
    ) -> Result<()> {
        ensure!(self.calibration.sample.save_calibration.is_none(), "--dry-run writes no --save-calibration");
        let rounding = if self.calibration.uncalibrated { Rounding::Nearest } else { Rounding::default() };
        let how = How { rounding, source, seed: self.seed, ..How::default() };
        let seconds = estimate(file, &plan, &how)?.as_secs_f64();
        let output = DryRun {
            model: self.model.display().to_string(),
            directions: self.directions.names(),
            bytes: plan.bytes(),
            out_bytes: plan.out_bytes(),
            plan,
            seconds,
            missing: missing.map(|error| error.to_string()),
        };
        ui.print(&output, || {
            let mut text = output.plan.to_string();
            let size = file.tensors().iter().map(|t| t.bytes).sum::<u64>() - output.bytes + output.out_bytes;
            text += &format!("about {seconds:.1} s to round and to write {}", bytes(size));
            if self.prompts.harmful.is_some() {
                text += ", and the prompts to run before";
            }
            if self.rewrite.max_growth.is_some() {
                text += "; --max-growth rounds all of it once more, and parts again";
            }
            text += "\n";
            if let Some(missing) = &output.missing {
                text += &format!("missing: {missing}\n");
            }
            text
        })
    }
}
