//! `ggsteer abliterate`: measure, select, rewrite, verify and evaluate in one go.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ggsteer::direction::{Direction, Provenance, ablation};
use ggsteer::evaluate::run::{Evaluated, Evaluation, Options, Set};
use ggsteer::gguf::GgufFile;
use ggsteer::output::OutputFile;
use ggsteer::prompts::split::{Parts, Used};
use ggsteer::report::run::{Made, Story};
use ggsteer::runtime::Model;
use ggsteer::select::subspace::Subspace;
use ggsteer::select::{Checkpoint, Choice};
use serde::Serialize;

use super::args::{
    MarkerArgs, PromptArgs, RunArgs, Sets, at_least_one, check_length, describe, direction, longest,
    tokenize_both,
};
use super::calibrate::{CalibrationArgs, Prompts};
use super::card;
use super::evaluate::{Base, evaluate, evaluation_table};
use super::parts::{HeldOutArgs, used};
use super::report::{self, ReportArgs};
use super::rewrite::{Job, RewriteArgs, Rewritten, SourceArgs, check_calibration, rewrite};
use super::select::{Chosen, DirectionFiles, Grown, TokenArgs};
use super::steps::{self, How, RankArgs, ScoringArgs};
use super::ui::Ui;

/// Measure the direction, choose it, write it out of the model, and prove it, in one go
///
/// Of each prompt set, a fifth (by --seed) is kept for choosing and a fifth for evaluating; the rest is
/// measured on, and run again with the direction ablated, to round quantized matrices for the inputs they
/// will get. No prompt stands in two of these parts. Without prompt sets, the default ones are taken.
///
/// Example: ggsteer abliterate model.gguf -o out.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    held_out: HeldOutArgs,
    /// Take this direction, in place of measuring and choosing one
    #[arg(long, value_name = "DIRECTION", conflicts_with_all = ["refusal_token", "rank"])]
    direction: Option<PathBuf>,
    /// Which block's direction to take from a file that holds several
    #[arg(long, value_name = "IL", requires = "direction")]
    block: Option<usize>,
    #[command(flatten)]
    calibration: CalibrationArgs,
    #[command(flatten)]
    rewrite: RewriteArgs,
    #[command(flatten)]
    source: SourceArgs,
    /// Where to write the new model
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Keep the chosen direction there; further ones go beside it, as NAME.2.gguf and so on
    #[arg(long, value_name = "FILE")]
    save_direction: Option<PathBuf>,
    /// Overwrite existing outputs
    #[arg(long)]
    force: bool,
    /// The most tokens of an answer in the evaluation
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = at_least_one)]
    max_tokens: usize,
    /// Seed of the split of the prompt sets, of the sample of inputs and of the order in which they are rounded for
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    markers: MarkerArgs,
    #[command(flatten)]
    scoring: ScoringArgs,
    #[command(flatten)]
    rank: RankArgs,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    made: Made,
    model: String,
    output: String,
    prompts: Used,
    direction: Chosen,
    #[serde(skip_serializing_if = "Option::is_none")]
    subspace: Option<Grown<'a>>,
    /// Absent where a direction was given.
    choice: Option<&'a Choice>,
    before: &'a Evaluation,
    ablated: &'a Evaluation,
    after: &'a Evaluation,
    #[serde(flatten)]
    rewritten: &'a Rewritten,
    /// What only a report shows.
    story: Option<Story>,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        self.calibration.check(false)?;
        let prompts = [self.prompts.paths(), self.held_out.paths()].concat();
        let mut inputs: Vec<&Path> = vec![&self.model];
        inputs.extend(prompts.iter().map(PathBuf::as_path));
        inputs.extend(self.calibration.paths());
        inputs.extend(self.source.source.iter().chain(&self.direction).map(PathBuf::as_path));
        let out = OutputFile::create(&self.output, self.force, &inputs)?;
        let out_directions = (self.save_direction.as_ref())
            .map(|path| DirectionFiles::create(path, self.rank.rank, self.force, &inputs))
            .transpose()?;
        if self.save_direction.as_ref() == Some(&self.output) {
            bail!("{}: both --output and --save-direction", self.output.display());
        }
        let out_calibration = self.calibration.sample.create(&self.output, self.force, &inputs)?;
        let page = self.report.open(self.force, &inputs, &[&self.output])?;
        let mut checkpoint = self.scoring.open(&self.output, &inputs)?;
        let parts = self.held_out.load(ui, &self.prompts, self.seed)?;
        let prompts = parts.used(self.seed);
        let Parts { train, validation, test } = parts;
        let markers = self.markers.load()?;
        let model = self.run.load(&self.model)?;
        describe(ui, &model);
        // What would only come to light after the measuring: a file that cannot be rewritten, answers that do not fit.
        let file = GgufFile::open(&self.model)?;
        let given = self.direction.as_deref().map(|path| direction(path, self.block, &model)).transpose()?;
        let any = || Direction::new(vec![1.0; model.n_embd()], 0, Provenance::default());
        let trial = self.rewrite.plan(&file, &[given.clone().map_or_else(any, Ok)?])?;
        check_calibration(&trial, &self.calibration, true)?;
        let source = self.source.open()?;
        if let Some(source) = &source {
            trial.check_source(&file, source).with_context(|| source.path().display().to_string())?;
        }
        let writers = ggsteer::arch::partial_writers(&file)?;
        let loaded = self.calibration.load(&file, &writers)?;
        out.check_parts(file.n_parts(), &file.paths())?;
        for sets in [&train, &validation, &test] {
            check_length(&model, longest(&tokenize_both(&model, sets)?).saturating_add(self.max_tokens))?;
        }
        let tokens = self.tokens.load(&model)?;
        let how = self.scoring.how(&markers, tokens.as_ref(), self.seed);
        let (directions, choice, subspace) = if let Some(direction) = given {
            (vec![direction], None, None)
        } else {
            let sets = [&train, &validation];
            let found = find(ui, &self.run, &model, sets, self.rank.rank, how, &mut checkpoint)?;
            (found.directions, Some(found.choice), found.subspace)
        };
        let directions = &directions[..];
        let files = out_directions.map(|out| out.save(directions)).transpose()?.unwrap_or_default();
        let plan = self.rewrite.plan(&file, directions)?;
        let collected =
            plan.needs_calibration().is_some() && loaded.is_none() && !self.calibration.uncalibrated;
        let calibration = if collected || out_calibration.is_some() {
            let by = Prompts { sets: &train, directions, seed: self.seed };
            Some(self.calibration.collect(ui, &self.run, &model, &file, &by, out_calibration)?)
        } else {
            loaded
        };
        let job = Job {
            calibration: calibration.as_ref(),
            uncalibrated: self.calibration.uncalibrated,
            source: source.as_ref(),
            max_growth: self.rewrite.max_growth,
            seed: self.seed,
            ..Job::new(&file, directions, plan)
        };
        let rewritten = rewrite(ui, job, out)?;
        let options = Options { max_tokens: self.max_tokens, markers, seed: self.seed, ..Options::default() };
        let written = &rewritten.report.files[0];
        let proof = prove(ui, &self.run, &model, directions, written, &test, &options)?;
        let story = |_| {
            let written = rewritten.report.files.iter().map(PathBuf::as_path).collect();
            let files = [("model", file.paths()), ("written file", written)];
            report::story(ui, &self.run, &model, directions, &proof, &options, &files)
        };
        let story = page.as_ref().map(story).transpose()?;
        let output = Output {
            made: Made::by("abliterate"),
            model: self.model.display().to_string(),
            output: written.display().to_string(),
            prompts,
            direction: Chosen::of(&directions[0]),
            subspace: subspace.as_ref().map(|found| Grown::of(found, &files)),
            choice: choice.as_ref(),
            before: &proof.before.0,
            ablated: &proof.ablated.0,
            after: &proof.after.0,
            rewritten: &rewritten,
            story,
        };
        if let Some(page) = page {
            page.write_one(ui, &output)?;
        }
        ui.print(&output, || output.text())?;
        card::hint(ui, &output.output);
        Ok(())
    }
}

impl Output<'_> {
    fn text(&self) -> String {
        let rows =
            [("before", self.before), ("run-time ablation", self.ablated), ("written file", self.after)];
        format!(
            "{}direction: {}\n{}{}\n{}{}written to {}\n",
            used(&self.prompts),
            self.direction.place(),
            self.subspace.as_ref().map_or(String::new(), Grown::words),
            evaluation_table(&rows),
            self.rewritten.table(),
            self.rewritten.summary(),
            self.output
        )
    }
}

/// The chosen directions, the first one first, with all that led to them.
pub struct Found {
    pub choice: Choice,
    pub directions: Vec<Direction>,
    pub subspace: Option<Subspace>,
}

/// Measures on `train` and chooses on `validation`; with a `rank` above 1 more than one, on evidence.
pub fn find(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    [train, validation]: [&Sets; 2],
    rank: usize,
    how: How<'_>,
    checkpoint: &mut Checkpoint,
) -> Result<Found> {
    let source = steps::source(model, train)?;
    let [train, validation] = [tokenize_both(model, train)?, tokenize_both(model, validation)?];
    let contrast = steps::measure(ui, run, model, [&train[0], &train[1]], source, None)?;
    let both = [&validation[0], &validation[1]];
    let choice = steps::select(ui, run, model, &contrast, both, how, checkpoint)?;
    let first = steps::chosen(&choice, &contrast);
    let subspace = match &first {
        Ok(first) if rank > 1 => {
            let begun = (&contrast, first.clone(), rank);
            Some(steps::grow(ui, run, model, begun, [&train, &validation], how, checkpoint)?)
        }
        _ => None,
    };
    // Scoring is what takes long, and is done: what fails from here on would fail again.
    checkpoint.remove()?;
    let directions = match &subspace {
        Some(found) => found.directions.clone(),
        None => vec![first?],
    };
    Ok(Found { choice, directions, subspace })
}

/// The model before, under run-time ablation, and as rewritten.
pub struct Proof<'m> {
    pub base: Base<'m>,
    pub test: [Set; 2],
    pub before: Evaluated,
    pub ablated: Evaluated,
    pub after: Evaluated,
}

/// Evaluates all three on `test`.
pub fn prove<'m>(
    ui: Ui,
    run: &RunArgs,
    model: &'m Model,
    directions: &[Direction],
    written: &Path,
    test: &Sets,
    options: &Options,
) -> Result<Proof<'m>> {
    let test = tokenize_both(model, test)?;
    let sets = [&test[0], &test[1]];
    let base = Base::measure(ui, run, model, sets, options)?;
    let erased = Arc::new(ablation(directions)?);
    let before = evaluate(ui, run, model, sets, None, &base, options)?;
    let ablated = evaluate(ui, run, model, sets, Some(&erased), &base, options)?;
    let rewritten = run.load(written)?;
    let after = evaluate(ui, run, &rewritten, sets, None, &base, options)?;
    Ok(Proof { base, test, before, ablated, after })
}
