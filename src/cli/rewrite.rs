//! Rewriting, as several subcommands do it: what is edited, by what it is rounded, and what came of it.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use ggsteer::calibration::Calibration;
use ggsteer::direction::Direction;
use ggsteer::gguf::{GgufFile, fingerprint};
use ggsteer::near::did_you_mean;
use ggsteer::output::OutputFile;
use ggsteer::quant::GgmlType;
use ggsteer::rewrite::{
    self, Blocks, Groups, Grown, Growth, How, Method, Options, Plan, Record, RecordedAddition, Report,
    RewriteError, Rounding, Scope, Strength, TensorReport, Tied,
};
use serde::Serialize;

use super::calibrate::CalibrationArgs;
use super::ui::{Ui, bytes, percent, table, warn};

/// What is edited.
#[derive(Debug, Clone, Default, Args)]
pub struct RewriteArgs {
    /// What to do with a token embedding that is the output head too
    #[arg(long, value_enum, default_value_t = TiedArg::Edit)]
    pub tied: TiedArg,
    /// Edit what can be placed where not all writers can: the direction then stays in the stream in part
    #[arg(long)]
    pub partial: bool,
    /// Edit the writers of these blocks alone, such as 4-20,24; the embeddings belong to none
    #[arg(long, value_name = "BLOCKS")]
    pub blocks: Option<Blocks>,
    /// Edit these writers alone: embedding, attention, ffn, experts, ssm, bias, with commas
    #[arg(long, value_name = "GROUPS")]
    pub writers: Option<Groups>,
    /// How much of the direction is taken out, 1 being all: a number, or one for each range of blocks, as
    /// 0-9=0.5,10-20=1, or for a group of writers there, as ffn:10-20=1
    #[arg(long, value_name = "S", default_value = "1")]
    pub strength: Strength,
    /// Scale the columns of matrices (the rows of embeddings) back to the lengths they had
    #[arg(long)]
    pub preserve_norm: bool,
    /// Write quantized writers in this type, where it has more bits than theirs: Q8_0, Q6_K, F16, …
    #[arg(long, value_name = "TYPE", value_parser = ggml_type)]
    pub upcast: Option<GgmlType>,
    /// Let the file grow by so much, for more bits where the edit is least exact
    #[arg(long, value_name = "PERCENT", value_parser = share, conflicts_with = "uncalibrated")]
    pub max_growth: Option<f64>,
}

/// The file that an edit starts from, beside the one that it changes.
#[derive(Debug, Clone, Default, Args)]
pub struct SourceArgs {
    /// The same model at a higher precision: the edit then starts from its weights
    #[arg(long, value_name = "F16.gguf")]
    pub source: Option<PathBuf>,
}

impl SourceArgs {
    /// Opens it.
    pub fn open(&self) -> Result<Option<GgufFile>> {
        let open = |path: &PathBuf| GgufFile::open(path).with_context(|| path.display().to_string());
        self.source.as_ref().map(open).transpose()
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum TiedArg {
    /// Edit it: the head loses the direction too (as published)
    #[default]
    Edit,
    /// Keep the original as output.weight and edit the embedding: equals the run-time ablation
    Untie,
    /// Leave it as it is
    Skip,
}

impl From<TiedArg> for Tied {
    fn from(arg: TiedArg) -> Self {
        match arg {
            TiedArg::Edit => Self::Edit,
            TiedArg::Untie => Self::Untie,
            TiedArg::Skip => Self::Skip,
        }
    }
}

fn ggml_type(text: &str) -> Result<GgmlType, String> {
    let ty = GgmlType::from_name(text).filter(|ty| ty.can_encode() && !ty.needs_importance());
    ty.ok_or_else(|| {
        let names =
            GgmlType::all().filter(|ty| ty.can_encode() && !ty.needs_importance()).map(GgmlType::name);
        let near = did_you_mean(text, names);
        format!("not a type that weights can be written in, such as Q8_0, Q6_K or F16{near}")
    })
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').and_then(|n| n.trim().parse::<f64>().ok());
    number
        .filter(|n| (0.0..=1000.0).contains(n))
        .map(|n| n / 100.0)
        .ok_or_else(|| "expected a percentage, such as 5%".into())
}

impl RewriteArgs {
    /// What taking `directions` out of `file` would change, or why it cannot be done.
    pub fn plan(&self, file: &GgufFile, directions: &[Direction]) -> Result<Plan> {
        let scope = Scope {
            blocks: self.blocks.clone(),
            groups: self.writers.clone(),
            strength: self.strength.clone(),
        };
        let options = Options {
            tied: self.tied.into(),
            partial: self.partial,
            scope,
            preserve_norm: self.preserve_norm,
            upcast: self.upcast,
        };
        let vectors: Vec<Vec<f32>> = directions.iter().map(|d| d.vector.clone()).collect();
        Plan::new(file, &vectors, options).with_context(|| file.path().display().to_string())
    }
}

/// Checks, before anything is run, that what a plan needs to be rounded by was named; `prompts` says that there are some
/// to collect it with.
pub fn check_calibration(plan: &Plan, args: &CalibrationArgs, prompts: bool) -> Result<()> {
    let given = [
        ("prompts", prompts),
        ("--calibration", args.calibration.is_some()),
        ("--imatrix", args.imatrix.is_some()),
        ("--uncalibrated", args.uncalibrated),
    ];
    let given: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    let Some(planned) = plan.needs_calibration() else { return Ok(()) };
    let (name, ty) = (&planned.writer.tensor, planned.out_type);
    ensure!(
        !given.is_empty(),
        "tensor {name:?} is {ty}: to round it for the inputs it gets, they must be known. Give prompts (--harmful and \
         --harmless), or --calibration or --imatrix with a file, or round to the nearest code with --uncalibrated, or \
         leave the file as it is with `ggsteer export lora`"
    );
    let anew = plan.tensors.iter().find(|t| t.needs_calibration() && t.is_encoded_anew());
    if let Some(planned) = anew.filter(|_| args.uncalibrated) {
        bail!(
            "tensor {:?} is {}: it has no codes to round to one at a time, and is encoded anew by its inputs. Give \
             prompts, --calibration or --imatrix in place of --uncalibrated, or --upcast with a type of more bits",
            planned.writer.tensor,
            planned.out_type
        );
    }
    Ok(())
}

/// An edit that is about to be done.
pub struct Job<'a> {
    pub file: &'a GgufFile,
    pub directions: &'a [Direction],
    pub plan: Plan,
    pub calibration: Option<&'a Calibration>,
    pub uncalibrated: bool,
    pub source: Option<&'a GgufFile>,
    pub max_growth: Option<f64>,
    pub seed: u64,
    pub additions: Vec<RecordedAddition>,
}

impl<'a> Job<'a> {
    /// The plain one.
    pub fn new(file: &'a GgufFile, directions: &'a [Direction], plan: Plan) -> Self {
        Self {
            file,
            directions,
            plan,
            calibration: None,
            uncalibrated: false,
            source: None,
            max_growth: None,
            seed: 0,
            additions: Vec::new(),
        }
    }
}

/// An edit that was done.
#[derive(Serialize)]
pub struct Rewritten {
    pub tied_embeddings: bool,
    pub tied: Tied,
    /// Why the writers edited may not be all.
    pub partial: Option<String>,
    /// `descent`, `nearest`, or `exact` where nothing was to be rounded.
    pub rounding: &'static str,
    pub growth: Option<Growth>,
    pub max_data_leak: Option<f64>,
    pub max_edit_error: Option<f64>,
    #[serde(flatten)]
    pub report: Report,
}

/// Writes `job` to `out`, measured and verified; warnings where little of the edit is in it.
pub fn rewrite(ui: Ui, job: Job<'_>, out: OutputFile) -> Result<Rewritten> {
    let Job { file, directions, mut plan, calibration, uncalibrated, source, max_growth, seed, additions } =
        job;
    let at = || file.path().display().to_string();
    if let Some(source) = source {
        plan.check_source(file, source).with_context(|| source.path().display().to_string())?;
    }
    if let Some(why) = &plan.partial {
        warn(&format!("a partial edit, after which the direction stays in the stream in part: {why}"));
    }
    if uncalibrated && plan.needs_calibration().is_some() {
        warn(
            "rounding to the nearest code, without regard to the inputs: the fewer the bits, the less of the edit is left \
             (measured below as the distance: 0 is the exact edit, 1 as far from it as no edit)",
        );
    }
    let rounding = if uncalibrated { Rounding::Nearest } else { Rounding::default() };
    let how = How { rounding, calibration, source, seed };
    let mut growth = None;
    if let Some(max_growth) = max_growth.filter(|_| plan.needs_calibration().is_some()) {
        let bar = ui.progress(plan.tensors.len(), "looking for the worst");
        let grown = rewrite::grow(file, &mut plan, &how, max_growth, &mut |p| bar.inc(u64::from(p.edited)));
        bar.finish_and_clear();
        growth = Some(grown.with_context(at)?);
    }
    let rounding = match (plan.needs_calibration(), uncalibrated) {
        (None, _) => "exact",
        (Some(_), true) => "nearest",
        (Some(_), false) => "descent",
    };
    let record = Record {
        rounding: Some(rounding.into()),
        precise: source.map(fingerprint),
        additions,
        ..Record::new("orthogonalize", file, directions).of_plan(&plan)
    };
    let path = out.path().to_path_buf();
    let bar = ui.progress(plan.tensors.len() + plan.additions.len(), "rewriting");
    let step = &mut |p: rewrite::Progress<'_>| bar.inc(u64::from(p.edited));
    let written = rewrite::execute(file, &plan, &how, out, &record.keys(), step);
    let written = written.map_err(|error| match error {
        // Names the output, and the input is not to blame.
        RewriteError::Output(_) | RewriteError::Write(_) => error.into(),
        _ => anyhow::Error::from(error).context(at()),
    })?;
    bar.finish_and_clear();
    let bar = ui.progress(file.tensors().len(), "comparing with the original");
    let untouched = rewrite::verify_untouched_with(file, written.file(), &plan, &mut || bar.inc(1));
    untouched.with_context(|| path.display().to_string())?;
    bar.finish_and_clear();
    let bar = ui.busy("sending it to the disk");
    let report = written.commit()?;
    bar.finish_and_clear();
    judge(&report);
    let largest =
        |of: fn(&TensorReport) -> Option<f64>| report.tensors.iter().filter_map(of).reduce(f64::max);
    Ok(Rewritten {
        tied_embeddings: plan.tied_embeddings,
        tied: plan.tied,
        partial: plan.partial,
        rounding,
        growth,
        max_data_leak: largest(|t| t.figures.data_leak),
        max_edit_error: largest(|t| t.figures.edit_error),
        report,
    })
}

/// How far from the exact edit, in units of the edit, a written tensor may be without a word.
const FAR: f64 = 0.5;

/// How far it is: on inputs, where they were measured, and by its weights where it was rounded by them alone. The weights
/// of what was rounded for its inputs say nothing.
fn off(t: &TensorReport) -> Option<f64> {
    let by_weights = matches!(t.method, Method::Nearest | Method::Reencoded);
    t.figures.edit_error.or(by_weights.then_some(t.figures.distance))
}

/// A warning where much of the edit is not there.
fn judge(report: &Report) {
    let far = report.tensors.iter().filter_map(|t| Some((t, off(t).filter(|off| *off > FAR)?)));
    let far: Vec<(&TensorReport, f64)> = far.collect();
    let Some((worst, off)) = far.iter().max_by(|a, b| a.1.total_cmp(&b.1)) else { return };
    let measure = if worst.figures.edit_error.is_some() { "edit error" } else { "distance" };
    warn(&format!(
        "much of the edit is not there in {} of {} tensors, the worst being {} ({measure} {off:.2}, where 1 is no better \
         than no edit). Measure the file with `ggsteer evaluate`; a calibration, --max-growth, --upcast or a file of more \
         bits bring more of it",
        far.len(),
        report.n_edited,
        worst.name,
    ));
}

/// `before`, or `before → after`.
pub fn types(before: GgmlType, after: GgmlType) -> String {
    if before == after { before.to_string() } else { format!("{before} → {after}") }
}

impl Rewritten {
    /// The rewritten tensors with what is left in them.
    pub fn table(&self) -> String {
        let known = |x: Option<f64>| x.map_or("–".to_string(), |x| format!("{x:.4}"));
        let rows = self.report.tensors.iter().map(|t| {
            vec![
                t.name.clone(),
                types(t.r#type, t.out_type),
                format!("{:.5}", t.figures.leak),
                known(t.figures.data_leak),
                known(t.figures.edit_error),
                format!("{:.4}", t.figures.distance),
                t.method.to_string(),
                bytes(t.bytes),
            ]
        });
        table(&["tensor", "type", "leak", "data leak", "edit error", "distance", "method", "size"], 2, rows)
    }

    /// All of it in a line or two.
    pub fn summary(&self) -> String {
        let report = &self.report;
        let tied = if self.tied_embeddings {
            format!(", tied embedding: {:?}", self.tied).to_lowercase()
        } else {
            String::new()
        };
        let mut text = String::new();
        for Grown { tensor, from, to, bytes: more, error } in self.growth.iter().flat_map(|g| &g.tensors) {
            let [before, after] = error.map(f64::sqrt);
            text += &format!(
                "grown: {tensor} {from} → {to}, {} more, error {before:.2e} → {after:.2e}\n",
                bytes(*more)
            );
        }
        text += &format!(
            "{} tensors rewritten, {} byte-identical{tied}; largest leak {:.5}",
            report.n_edited, report.n_untouched, report.max_leak
        );
        if let (Some(leak), Some(error)) = (self.max_data_leak, self.max_edit_error) {
            text += &format!(", data leak {leak:.4}, edit error {error:.4}");
        }
        text += &format!("; {}\n", bytes(report.file_size));
        let saturated = || report.tensors.iter().filter(|t| t.saturated > 0);
        let elements: u64 = saturated().map(|t| t.saturated).sum();
        if let Some(worst) = saturated().max_by(|a, b| a.saturated_share.total_cmp(&b.saturated_share)) {
            text += &format!(
                "{elements} elements of {} tensors should lie beyond the range of their blocks: up to {} of the edit is left \
                 undone by it, in {}\n",
                saturated().count(),
                percent(worst.saturated_share),
                worst.name
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_a_percentage_and_types_are_ones_to_write() {
        assert_eq!((share("5%"), share("0.5 %")), (Ok(0.05), Ok(0.005)));
        for text in ["5", "", "%", "-1%", "NaN%", "x%"] {
            assert!(share(text).is_err(), "{text}");
        }
        assert_eq!(ggml_type("Q8_0"), Ok(GgmlType::Q8_0));
        assert_eq!(ggml_type("bf16"), Ok(GgmlType::BF16));
        for text in ["i8", "iq2_xxs", "q9"] {
            assert!(ggml_type(text).is_err(), "{text}");
        }
    }
}
