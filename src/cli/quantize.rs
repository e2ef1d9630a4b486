//! `ggsteer quantize`: llama.cpp's own quantizer, and an edit that starts from the model it was given.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use ggsteer::arch;
use ggsteer::calibration::Imatrix;
use ggsteer::direction::Direction;
use ggsteer::gguf::{GgufFile, ModelSummary, TypeCount};
use ggsteer::output::OutputFile;
use ggsteer::runtime::{self, FileType, QuantizeOptions};
use serde::Serialize;

use super::args::{DirectionArgs, OptionalPromptArgs, PromptArgs, RunArgs, describe as describe_model};
use super::calibrate::{CalibrationArgs, Prompts};
use super::rewrite::{Job, RewriteArgs, Rewritten, check_calibration, rewrite};
use super::ui::{Ui, bytes, table, warn};

/// Quantize a model with llama.cpp's own quantizer, which chooses the type of each tensor
///
/// With --direction the writers are edited in the precision they are given in, and rounded to the quantized grid for the
/// inputs they get: the prompts' or a calibration's.
///
/// Example: ggsteer quantize model-f16.gguf --type Q4_K_M -o model-q4.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, mut_arg("direction", |arg| arg.required(false)))]
pub struct Args {
    /// The model, best in full precision
    model: PathBuf,
    /// llama.cpp's name of the quantization: Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, IQ4_XS, Q3_K_M, Q2_K, IQ2_M, …
    #[arg(long = "type", value_name = "TYPE")]
    file_type: String,
    /// Where to write the quantized model
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Quantize tensors that are quantized already, too: their errors add up
    #[arg(long)]
    allow_requantize: bool,
    /// The same type for every matrix, in place of llama.cpp's mixture
    #[arg(long)]
    pure: bool,
    /// Overwrite an existing output
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    directions: DirectionArgs,
    #[command(flatten)]
    prompts: OptionalPromptArgs,
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    rewrite: RewriteArgs,
    /// Seed of the sample of inputs and of the order in which they are rounded for
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Serialize)]
struct Output {
    model: String,
    output: String,
    r#type: &'static str,
    imatrix: Option<String>,
    before: Size,
    after: Size,
    directions: Vec<String>,
    /// Of the edit, where there was one.
    rewritten: Option<Rewritten>,
}

/// What a file takes.
#[derive(Serialize)]
struct Size {
    file_size: u64,
    bits_per_weight: f64,
    types: Vec<TypeCount>,
}

impl Size {
    fn of(file: &GgufFile) -> Result<Self> {
        let summary = ModelSummary::new(file)?;
        let bits_per_weight = summary.bits_per_weight();
        Ok(Self { file_size: summary.file_size, bits_per_weight, types: summary.types })
    }
}

/// llama.cpp's quantizer, with progress.
pub fn quantize(
    ui: Ui,
    input: &Path,
    output: &Path,
    file_type: FileType,
    options: &QuantizeOptions<'_>,
) -> Result<(), runtime::Error> {
    let bar = ui.progress(0, "quantizing");
    let shown = bar.clone();
    let done = runtime::quantize_with(input, output, file_type, options, move |tensor, n| {
        shown.set_length(n);
        shown.set_position(tensor.saturating_sub(1));
    });
    bar.finish_and_clear();
    done
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let file_type = FileType::from_name(&self.file_type).context("--type")?;
        let prompts = self.prompts.both();
        let floats = ["F32", "F16", "BF16"].contains(&file_type.name);
        self.check(prompts.is_some(), floats)?;
        let at = || self.model.display().to_string();
        let file = GgufFile::open(&self.model).with_context(at)?;
        // Of a split model, each part.
        let mut inputs: Vec<&Path> = file.paths();
        inputs.extend(self.calibration.paths().chain(self.directions.paths()));
        let prompt_files: Vec<PathBuf> = prompts.iter().flat_map(PromptArgs::paths).collect();
        inputs.extend(prompt_files.iter().map(PathBuf::as_path));
        let out = OutputFile::create(&self.output, self.force, &inputs)?;
        let out_calibration = self.calibration.sample.create(&self.output, self.force, &inputs)?;
        let before = Size::of(&file).with_context(at)?;
        let directions = self.directions.load(&file)?;
        if !directions.is_empty() {
            // What would only come to light after the quantizing.
            self.rewrite.plan(&file, &directions)?;
        }
        let imatrix = self.calibration.imatrix.as_deref().map(Imatrix::load).transpose()?;
        let importance: Option<Vec<(&str, &[f32])>> = imatrix.as_ref().map(|i| i.entries().collect());
        if let (Some(importance), Some(path)) = (&importance, &self.calibration.imatrix) {
            check(importance, &file).with_context(|| path.display().to_string())?;
        }
        let options = QuantizeOptions {
            n_threads: self.run.threads.into(),
            allow_requantize: self.allow_requantize,
            pure: self.pure,
            importance: importance.as_deref(),
        };
        ui.note(&format!("quantizing {} ({}) to {}", at(), bytes(before.file_size), file_type.name));
        let path = || self.output.display().to_string();
        let (after, rewritten) = if directions.is_empty() {
            quantize(ui, &self.model, &out.fillable(), file_type, &options)?;
            let written = GgufFile::open(out.temporary()).with_context(path)?;
            let after = Size::of(&written).with_context(path)?;
            out.commit()?;
            (after, None)
        } else {
            // Never given its name: the edited one takes it.
            let plain = OutputFile::create(&self.output, true, &inputs)?;
            quantize(ui, &self.model, &plain.fillable(), file_type, &options)?;
            let quantized = GgufFile::open(plain.temporary()).with_context(path)?;
            let rewritten = self.edit(ui, [&file, &quantized], &directions, prompts, out, out_calibration)?;
            let written = GgufFile::open(&self.output).with_context(path)?;
            (Size::of(&written).with_context(path)?, Some(rewritten))
        };
        let quantized = before.types.iter().any(|t| !matches!(t.r#type.as_str(), "f32" | "f16" | "bf16"));
        if self.allow_requantize && quantized {
            warn(
                "the model was quantized already: the errors of both add up; full precision makes a better file",
            );
        }
        let output = Output {
            model: at(),
            output: path(),
            r#type: file_type.name,
            imatrix: self.calibration.imatrix.as_ref().map(|p| p.display().to_string()),
            before,
            after,
            directions: self.directions.names(),
            rewritten,
        };
        ui.print(&output, || describe(&output))
    }

    /// Whether the flags of an edit are there for one, and no two of them for the same.
    fn check(&self, prompts: bool, floats: bool) -> Result<()> {
        let CalibrationArgs { calibration, uncalibrated, sample, imatrix, .. } = &self.calibration;
        let RewriteArgs { partial, blocks, writers, preserve_norm, upcast, max_growth, .. } = &self.rewrite;
        let edits = [
            ("--harmful", prompts),
            ("--calibration", calibration.is_some()),
            ("--uncalibrated", *uncalibrated),
            ("--partial", *partial),
            ("--blocks", blocks.is_some()),
            ("--writers", writers.is_some()),
            ("--preserve-norm", *preserve_norm),
            ("--upcast", upcast.is_some()),
            ("--max-growth", max_growth.is_some()),
        ];
        let edit = edits.iter().find(|(_, given)| *given);
        if let Some((flag, _)) = edit.filter(|_| self.directions.direction.is_empty()) {
            bail!("{flag} is for an edit: give its --direction too");
        }
        // An importance matrix is the quantizer's too, so it may stand beside the others.
        ensure!(
            !prompts || !(calibration.is_some() || *uncalibrated),
            "the writers' inputs come from the prompts, or from --calibration, or nowhere (--uncalibrated)"
        );
        let known = prompts || calibration.is_some() || imatrix.is_some() || *uncalibrated || floats;
        ensure!(
            known || self.directions.direction.is_empty(),
            "to round the edit for the inputs that the writers get, they must be known: give prompts (--harmful and \
             --harmless), or --calibration or --imatrix with a file, or round to the nearest code with --uncalibrated"
        );
        sample.check(prompts)
    }

    /// Edits the quantized file from the weights of the one it was made from.
    fn edit(
        &self,
        ui: Ui,
        [file, quantized]: [&GgufFile; 2],
        directions: &[Direction],
        prompts: Option<PromptArgs>,
        out: OutputFile,
        out_calibration: Option<OutputFile>,
    ) -> Result<Rewritten> {
        let plan = self.rewrite.plan(quantized, directions)?;
        check_calibration(&plan, &self.calibration, prompts.is_some())?;
        let wanted = plan.needs_calibration().is_some() || out_calibration.is_some();
        let calibration = match prompts.filter(|_| wanted) {
            None if !wanted || self.calibration.uncalibrated => None,
            None => self.calibration.load(file, &arch::partial_writers(file)?)?,
            Some(prompts) => {
                let sets = prompts.load(ui)?;
                let model = self.run.load(&self.model)?;
                describe_model(ui, &model);
                let by = Prompts { sets: &sets, directions, seed: self.seed };
                Some(self.calibration.collect(ui, &self.run, &model, file, &by, out_calibration)?)
            }
        };
        let job = Job {
            calibration: calibration.as_ref(),
            uncalibrated: self.calibration.uncalibrated,
            source: Some(file),
            max_growth: self.rewrite.max_growth,
            seed: self.seed,
            ..Job::new(quantized, directions, plan)
        };
        rewrite(ui, job, out)
    }
}

/// Whether the importance matrix is for this model: every tensor that both have is as wide in both, and there is one.
fn check(importance: &[(&str, &[f32])], file: &GgufFile) -> Result<()> {
    let mut known = 0;
    for (name, values) in importance {
        let Some(tensor) = file.tensor(name) else { continue };
        let expected = tensor.ne[0] * tensor.ne[2];
        anyhow::ensure!(
            values.len() as u64 == expected,
            "importance of tensor {name:?} has {} values, the model's needs {expected}: made for another model",
            values.len()
        );
        known += 1;
    }
    anyhow::ensure!(known > 0, "has no tensor of the model: made for another model");
    Ok(())
}

fn describe(output: &Output) -> String {
    let mut names: Vec<&str> = Vec::new();
    for count in output.before.types.iter().chain(&output.after.types) {
        if !names.contains(&count.r#type.as_str()) {
            names.push(&count.r#type);
        }
    }
    let of = |size: &Size, name: &str| match size.types.iter().find(|t| t.r#type == name) {
        Some(count) => [count.tensors.to_string(), bytes(count.bytes)],
        None => ["–".to_string(), "–".to_string()],
    };
    let rows = names.into_iter().map(|name| {
        let mut row = vec![name.to_string()];
        row.extend(of(&output.before, name));
        row.extend(of(&output.after, name));
        row
    });
    let (before, after) = (&output.before, &output.after);
    let edit = output.rewritten.as_ref().map_or(String::new(), |r| r.table() + &r.summary());
    format!(
        "{edit}{}{:.2} → {:.2} bits a weight, {} → {}; written to {}\n",
        table(&["type", "before", "size", "after", "size"], 1, rows),
        before.bits_per_weight,
        after.bits_per_weight,
        bytes(before.file_size),
        bytes(after.file_size),
        output.output
    )
}
