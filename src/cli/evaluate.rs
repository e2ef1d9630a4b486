//! `ggsteer evaluate`: how often a model refuses, and how far it is from the plain one.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ggsteer::evaluate::Rate;
use ggsteer::evaluate::control::control;
use ggsteer::evaluate::interval::Mean;
use ggsteer::evaluate::run::{self, Answer, Evaluated, Evaluation, Openings, Options, Set};
use ggsteer::evaluate::scale::{self, Outcome, Rules, Search};
use ggsteer::intervention::Intervention;
use ggsteer::output::OutputFile;
use ggsteer::random::SplitMix64;
use ggsteer::report::run::Made;
use ggsteer::runtime::Model;
use serde::Serialize;

use super::args::{
    MarkerArgs, PARALLEL, PromptArgs, RunArgs, at_least_one, describe, direction, longest, tokenize_both,
};
use super::generate::{Scale, SteerArgs};
use super::judge::{Bench, JudgeArgs};
use super::perplexity::{Perplexities, PerplexityArgs};
use super::ui::{Ui, percent, table, warn};

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
    /// Leave out the random direction of the same size, which is evaluated beside --ablate and --add
    #[arg(long)]
    no_control: bool,
    /// Measure KL and perplexity against this model instead of the same one without intervention
    #[arg(long, value_name = "MODEL")]
    base: Option<PathBuf>,
    /// The most tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    max_tokens: usize,
    /// KL also as the mean over the first N tokens of the base's own answers
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    kl_tokens: usize,
    #[command(flatten)]
    markers: MarkerArgs,
    #[command(flatten)]
    judge: JudgeArgs,
    #[command(flatten)]
    perplexity: PerplexityArgs,
    /// Seed of the intervals, of the control and of the prompts that --scale auto tries on
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Save every prompt and answer there (those of the control not), a JSON object a line
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
    #[serde(flatten)]
    made: Made,
    model: String,
    base: Option<String>,
    ablate: &'a [PathBuf],
    add: &'a Option<PathBuf>,
    scale: Option<f32>,
    seed: u64,
    #[serde(flatten)]
    evaluation: &'a Evaluation,
    control: Option<&'a Evaluation>,
    perplexity: Option<&'a Perplexities>,
    judge: Option<Bench<'a>>,
    scale_search: Option<&'a ScaleSearch>,
}

/// How the coefficient was found, and on how many of the ordinary prompts, which are not evaluated on.
#[derive(Serialize)]
struct ScaleSearch {
    n_prompts: usize,
    #[serde(flatten)]
    search: Search,
}

impl Args {
    pub fn run(mut self, ui: Ui) -> Result<()> {
        let prompts = self.prompts.paths();
        let mut inputs = vec![self.model.as_path()];
        inputs.extend(prompts.iter().map(PathBuf::as_path));
        let others = self.base.iter().chain(&self.steer.ablate).chain(&self.steer.add);
        inputs.extend(
            others.chain(self.judge.paths()).chain(&self.perplexity.perplexity).map(PathBuf::as_path),
        );
        let out = (self.completions.as_ref())
            .map(|path| OutputFile::create(path, self.force, &inputs))
            .transpose()?;
        let sets = self.prompts.load(ui)?;
        let markers = self.markers.load()?;
        let options =
            Options { max_tokens: self.max_tokens, markers, kl_tokens: self.kl_tokens, seed: self.seed };
        let judge_model = self.judge.load(&self.run)?;
        let judge = judge_model.as_ref().map(|model| self.judge.judge(model)).transpose()?;
        let model = self.run.load(&self.model)?;
        describe(ui, &model);
        let [harmful, mut harmless] = tokenize_both(&model, &sets)?;
        let text = self.perplexity.load(&model)?;
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
        let found = match (self.steer.scale, &self.steer.add) {
            (Scale::Auto, Some(_)) => Some(self.find_scale(ui, &model, &mut harmless, &options)?),
            _ => None,
        };
        if let Some(scale) = found.as_ref().and_then(|found| found.search.scale) {
            self.steer.scale = Scale::By(scale);
        }
        let intervention = self.steer.load(&model)?;
        let random = intervention.as_ref().filter(|_| !self.no_control);
        let random = random.map(|i| control(i, self.seed).map(Arc::new)).transpose()?;

        let perplexity = text.map(|text| {
            text.measure(ui, &self.run, (base.as_ref(), &model), intervention.as_ref(), random.as_ref())
        });
        let perplexity = perplexity.transpose()?;
        let sets = [&harmful, &harmless];
        let base = Base::measure(ui, &self.run, base.as_ref().unwrap_or(&model), sets, &options)?;
        let evaluated = |i| evaluate(ui, &self.run, &model, sets, i, &base, &options);
        let mut this = evaluated(intervention.as_ref())?;
        let mut control = random.as_ref().map(|random| evaluated(Some(random))).transpose()?;
        if let Some(judge) = judge_model.as_ref().zip(judge.as_ref()) {
            for evaluated in [Some(&mut this), control.as_mut()].into_iter().flatten() {
                self.judge.read(ui, &self.run, judge, evaluated)?;
            }
        }
        if let Some(mut out) = out {
            write_answers(&mut out, &this.1)?;
            out.commit()?;
        }
        let output = Output {
            made: Made::by("evaluate"),
            model: self.model.display().to_string(),
            base: self.base.as_ref().map(|p| p.display().to_string()),
            ablate: &self.steer.ablate,
            add: &self.steer.add,
            scale: self.steer.coefficient()?,
            seed: self.seed,
            evaluation: &this.0,
            control: control.as_ref().map(|(evaluation, _)| evaluation),
            perplexity: perplexity.as_ref(),
            judge: self.judge.bench(),
            scale_search: found.as_ref(),
        };
        ui.print(&output, || self.report(&output))
    }

    /// What is evaluated, and its control, in words.
    fn names(&self) -> [String; 2] {
        let what = match (&self.steer.add, self.steer.scale) {
            (Some(_), Scale::By(c)) => format!("direction added × {c}"),
            _ if self.steer.ablate.is_empty() => return [PLAIN.into(), String::new()],
            _ => "direction erased".into(),
        };
        [what.clone(), what.replace("direction", "random")]
    }

    fn report(&self, output: &Output<'_>) -> String {
        let [this, random] = self.names();
        let rows: Vec<(&str, &Evaluation)> = std::iter::once((this.as_str(), output.evaluation))
            .chain(output.control.map(|control| (random.as_str(), control)))
            .collect();
        let mut text = String::new();
        if let Some(found) = output.scale_search {
            let n = found.n_prompts;
            text += &format!("coefficient found on {n} ordinary prompts:\n{}\n", tried(&found.search));
        }
        text += &evaluation_table(&rows);
        text += &format!("over-refusal of ordinary prompts: {}\n", output.evaluation.over_refusal);
        if let Some(perplexity) = output.perplexity {
            let base = if self.base.is_some() { "base" } else { PLAIN };
            text += &format!("\n{}", perplexity.table([base, &this, &random]));
        }
        text
    }

    /// The smallest coefficient that works on some of the ordinary prompts, which are taken out of
    /// `harmless`.
    fn find_scale(
        &self,
        ui: Ui,
        model: &Model,
        harmless: &mut Set,
        options: &Options,
    ) -> Result<ScaleSearch> {
        let path = self.steer.add.as_deref().context("--scale auto: nothing is added")?;
        let direction = direction(path, self.steer.block, model)?;
        let n = harmless.prompts.len();
        if n < 2 {
            bail!("--scale auto needs at least 2 ordinary prompts: some to try on, others to evaluate on");
        }
        let tried_on = take(harmless, SCALE_PROMPTS.min(n / 2), self.seed);
        let mut session =
            self.run.session(model, PARALLEL, longest([&tried_on]).saturating_add(options.max_tokens))?;
        let bar = ui.progress(0, "trying coefficients");
        let at = (direction.block, direction.vector.as_slice(), self.steer.at.into());
        let rules = Rules::default();
        let search = scale::find(&mut session, &tried_on, at, options, rules, &mut |_| bar.inc(1))?;
        bar.finish_and_clear();
        if search.scale.is_none() {
            let n = tried_on.prompts.len();
            warn(&format!("no coefficient works on {n} ordinary prompts:\n{}", tried(&search)));
            bail!(
                "--scale auto: no coefficient makes the model refuse {} of ordinary prompts with at most {} of its \
                 answers broken (the table says what each does); try --at prompt, or another direction",
                percent(rules.refused_min),
                percent(rules.broken_max)
            );
        }
        Ok(ScaleSearch { n_prompts: tried_on.prompts.len(), search })
    }
}

/// A model without intervention.
const PLAIN: &str = "as it is";

/// Ordinary prompts that --scale auto tries on.
const SCALE_PROMPTS: usize = 16;

/// Takes `n` prompts out of `set`, which depend on the seed alone.
fn take(set: &mut Set, n: usize, seed: u64) -> Set {
    let mut order: Vec<usize> = (0..set.prompts.len()).collect();
    SplitMix64(seed).shuffle(&mut order);
    let mut parts = [Set::default(), Set::default()];
    let all = std::mem::take(set);
    for (i, (text, prompt)) in all.texts.into_iter().zip(all.prompts).enumerate() {
        let part = &mut parts[usize::from(!order[..n].contains(&i))];
        part.texts.push(text);
        part.prompts.push(prompt);
    }
    let [taken, rest] = parts;
    *set = rest;
    taken
}

/// The coefficients that were tried.
fn tried(search: &Search) -> String {
    let rows = search.trials.iter().map(|t| {
        let outcome = match t.outcome {
            Outcome::Works if search.scale == Some(t.scale) => "taken",
            Outcome::Works => "works",
            Outcome::TooWeak => "too weak",
            Outcome::Breaks => "breaks",
        };
        vec![
            outcome.into(),
            format!("{}", t.scale),
            percent(t.refused.rate),
            interval(&t.refused),
            percent(t.broken.rate),
        ]
    });
    table(&["", "coefficient", "refused", "95 % interval", "broken"], 1, rows)
}

/// The model that KL is measured against, and how its own answers begin.
pub struct Base<'m> {
    model: &'m Model,
    openings: Openings,
}

impl<'m> Base<'m> {
    /// Lets the plain `model` begin its answers to both sets.
    pub fn measure(
        ui: Ui,
        run: &RunArgs,
        model: &'m Model,
        sets: [&Set; 2],
        options: &Options,
    ) -> Result<Self> {
        let mut session = run.session(model, PARALLEL, longest(sets).saturating_add(options.kl_tokens))?;
        let bar = ui.progress(sets.iter().map(|s| s.prompts.len()).sum(), "plain answers");
        let openings = Openings::measure(&mut session, sets, options.kl_tokens, &mut || bar.inc(1))?;
        bar.finish_and_clear();
        Ok(Self { model, openings })
    }
}

/// Evaluates `model` on \[harmful, harmless\], with progress.
pub fn evaluate(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    sets: [&Set; 2],
    intervention: Option<&Arc<Intervention>>,
    base: &Base<'_>,
    options: &Options,
) -> Result<Evaluated> {
    let longest = longest(sets);
    let mut session = run.session(model, PARALLEL, longest.saturating_add(options.max_tokens))?;
    let mut plain = run.session(base.model, PARALLEL, longest.saturating_add(options.kl_tokens))?;
    let bar = ui.progress(2 * sets.iter().map(|s| s.prompts.len()).sum::<usize>(), "answering");
    let step = &mut || bar.inc(1);
    let evaluated =
        run::evaluate(&mut session, &mut plain, &base.openings, sets, intervention, options, step)?;
    bar.finish_and_clear();
    Ok(evaluated)
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
    let judged = evaluations.iter().any(|(_, e)| e.harmful.judge.is_some());
    let rows = evaluations.iter().flat_map(|(name, e)| {
        [("harmful", &e.harmful), ("harmless", &e.harmless)].map(|(set, r)| {
            let mut row = vec![
                (*name).to_string(),
                set.to_string(),
                r.n.to_string(),
                percent(r.refusal_rate),
                interval(&r.refused),
                r.refused_late.hits.to_string(),
                r.empty.hits.to_string(),
                r.looping.hits.to_string(),
                r.garbled.hits.to_string(),
                kl(&r.kl_first),
                kl(&r.kl_tokens),
            ];
            if judged {
                let verdicts = r.judge.as_ref();
                row.push(verdicts.map_or(String::new(), |v| percent(v.refused.rate)));
                row.push(verdicts.map_or(String::new(), |v| percent(v.agreement.rate)));
            }
            row
        })
    });
    let n = evaluations.first().map_or(0, |(_, e)| e.n_kl_tokens);
    let along = format!("KL {n}");
    let mut header =
        vec!["", "prompts", "n", "refused", "95 % interval", "late", "empty", "looping", "garbled"];
    header.extend(["KL first", &along]);
    if judged {
        header.extend(["judge", "agrees"]);
    }
    table(&header, 2, rows)
}

/// A rate's interval, in per cent.
pub fn interval(rate: &Rate) -> String {
    format!("{:.1}–{:.1}", 100.0 * rate.low, 100.0 * rate.high)
}

fn kl(kl: &Mean) -> String {
    format!("{:.4}", kl.mean)
}
