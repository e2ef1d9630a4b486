//! `ggsteer evaluate`: how often a model refuses, and how far it is from the plain one.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ggsteer::evaluate::run::{Answer, Evaluation, Options, Set, evaluate_set, first_logits};
use ggsteer::intervention::Intervention;
use ggsteer::output::OutputFile;
use ggsteer::runtime::Model;
use serde::Serialize;

use super::args::{MarkerArgs, PARALLEL, PromptArgs, RunArgs, at_least_one, describe, longest, tokenize};
use super::generate::SteerArgs;
use super::ui::{Ui, percent, table};

/// Count refusals on both prompt sets, plain, steered or rewritten, and measure the distance to the base
///
/// Example: ggsteer evaluate model.gguf --harmful a.txt --harmless b.txt --ablate direction.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    steer: SteerArgs,
    /// Measure KL against this model instead of the same one without intervention
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// The most tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = at_least_one)]
    max_tokens: usize,
    #[command(flatten)]
    markers: MarkerArgs,
    /// Save every prompt and answer there, a JSON object a line
    #[arg(long, value_name = "FILE")]
    completions: Option<PathBuf>,
    /// Overwrite an existing --completions file
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Serialize)]
struct Output<'a> {
    model: String,
    base: Option<String>,
    ablate: &'a [PathBuf],
    add: &'a Option<PathBuf>,
    scale: Option<f32>,
    #[serde(flatten)]
    evaluation: &'a Evaluation,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let prompts = self.prompts.paths();
        let mut inputs = vec![self.model.as_path()];
        inputs.extend(prompts.iter().map(PathBuf::as_path));
        let others = self.base.iter().chain(&self.steer.ablate).chain(&self.steer.add);
        inputs.extend(others.map(PathBuf::as_path));
        let out = (self.completions.as_ref())
            .map(|path| OutputFile::create(path, self.force, &inputs))
            .transpose()?;
        let sets = self.prompts.load(ui)?;
        let markers = self.markers.load()?;
        let model = self.run.load(&self.model)?;
        describe(ui, &model);
        let intervention = self.steer.load(&model)?;
        let (harmful, harmless) = (tokenize(&model, &sets.harmful)?, tokenize(&model, &sets.harmless)?);
        let base = match &self.base {
            Some(path) => Some(self.run.load(path).context("--base")?),
            None => None,
        };
        if let Some(other) = base.as_ref().filter(|other| !model.same_vocabulary(other)) {
            bail!(
                "--base {}: its vocabulary is not that of {}",
                other.path().display(),
                self.model.display()
            );
        }
        let base = Base::measure(ui, &self.run, base.as_ref().unwrap_or(&model), [&harmful, &harmless])?;
        let options = Options { max_tokens: self.max_tokens, markers };
        let (evaluation, answers) =
            evaluate(ui, &self.run, &model, [&harmful, &harmless], intervention.as_ref(), &base, &options)?;
        if let Some(mut out) = out {
            write_answers(&mut out, &answers)?;
            out.commit()?;
        }
        let output = Output {
            model: self.model.display().to_string(),
            base: self.base.as_ref().map(|p| p.display().to_string()),
            ablate: &self.steer.ablate,
            add: &self.steer.add,
            scale: self.steer.add.as_ref().map(|_| self.steer.scale),
            evaluation: &evaluation,
        };
        ui.print(&output, || evaluation_table(&[("", &evaluation)]))
    }
}

/// The logits that KL is measured against, on both sets.
pub struct Base {
    harmful: Vec<Vec<f32>>,
    harmless: Vec<Vec<f32>>,
}

impl Base {
    /// Runs the plain `model` over both sets.
    pub fn measure(ui: Ui, run: &RunArgs, model: &Model, [harmful, harmless]: [&Set; 2]) -> Result<Self> {
        let mut session = run.session(model, PARALLEL, longest([harmful, harmless]))?;
        let bar = ui.progress(harmful.prompts.len() + harmless.prompts.len(), "plain logits");
        let harmful = first_logits(&mut session, &harmful.prompts, None, &mut || bar.inc(1))?;
        let harmless = first_logits(&mut session, &harmless.prompts, None, &mut || bar.inc(1))?;
        bar.finish_and_clear();
        Ok(Self { harmful, harmless })
    }
}

/// Evaluates `model` on \[harmful, harmless\], with progress.
pub fn evaluate(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    [harmful, harmless]: [&Set; 2],
    intervention: Option<&Arc<Intervention>>,
    base: &Base,
    options: &Options,
) -> Result<(Evaluation, [Vec<Answer>; 2])> {
    let mut session =
        run.session(model, PARALLEL, longest([harmful, harmless]).saturating_add(options.max_tokens))?;
    let bar = ui.progress(harmful.prompts.len() + harmless.prompts.len(), "answering");
    let mut step = || bar.inc(1);
    let (on_harmful, said) =
        evaluate_set(&mut session, harmful, intervention, &base.harmful, options, &mut step)?;
    let (on_harmless, answered) =
        evaluate_set(&mut session, harmless, intervention, &base.harmless, options, &mut step)?;
    bar.finish_and_clear();
    let n = on_harmful.n + on_harmless.n;
    let evaluation =
        Evaluation { n, max_tokens: options.max_tokens, harmful: on_harmful, harmless: on_harmless };
    Ok((evaluation, [said, answered]))
}

/// One line an answer, with the set it belongs to.
pub fn write_answers(out: &mut impl std::io::Write, answers: &[Vec<Answer>; 2]) -> Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        set: &'a str,
        #[serde(flatten)]
        answer: &'a Answer,
    }
    for (set, answers) in ["harmful", "harmless"].into_iter().zip(answers) {
        for answer in answers {
            serde_json::to_writer(&mut *out, &Line { set, answer })?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}

/// Evaluations side by side, a row each and a row a set.
pub fn evaluation_table(evaluations: &[(&str, &Evaluation)]) -> String {
    let rows = evaluations.iter().flat_map(|(name, e)| {
        [("harmful", &e.harmful), ("harmless", &e.harmless)].map(|(set, r)| {
            vec![
                (*name).to_string(),
                set.to_string(),
                r.n.to_string(),
                percent(r.refusal_rate),
                format!("{:.1}–{:.1}", 100.0 * r.refused.low, 100.0 * r.refused.high),
                r.empty.to_string(),
                r.looping.to_string(),
                format!("{:.4}", r.kl_first_token),
            ]
        })
    });
    let header = ["", "prompts", "n", "refused", "95 % interval", "empty", "looping", "first-token KL"];
    table(&header, 2, rows)
}
