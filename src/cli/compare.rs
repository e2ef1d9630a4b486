//! `ggsteer compare`: what quantization, or an edit, does to a direction and to the behaviour.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use ggsteer::activations::Contrast;
use ggsteer::evaluate::Rate;
use ggsteer::evaluate::perplexity::{Perplexity, Ratio};
use ggsteer::evaluate::run::{Evaluated, Evaluation, Options, Set};
use ggsteer::gguf::{GgufFile, ModelSummary};
use ggsteer::intervention::{Intervention, cosine};
use ggsteer::prompts::split::{Parts, Used};
use ggsteer::report::run::Made;
use ggsteer::runtime::sampling::Sampler;
use ggsteer::runtime::{GenerateOptions, Model, jobs};
use ggsteer::select::{Candidate, Checkpoint, Error as SelectError};
use serde::Serialize;

use super::args::{
    MarkerArgs, PARALLEL, PromptArgs, RunArgs, at_least_one, check_length, describe, longest, tokenize_both,
};
use super::evaluate::{Base, evaluate, interval};
use super::parts::{HeldOutArgs, used};
use super::perplexity::{PerplexityArgs, Text};
use super::report::ReportArgs;
use super::select::TokenArgs;
use super::steps;
use super::ui::{Ui, bytes, percent, table};

/// Compare files of one model: full precision and its quantizations, or before and after an edit
///
/// Each file is measured and its direction chosen as `abliterate` does. The first file is the one the others
/// are compared with: its direction is erased in every file beside the file's own, and KL and perplexity are
/// taken against it.
///
/// Example: ggsteer compare model-f16.gguf model-q8_0.gguf model-q4_k_m.gguf --harmful a.txt --harmless b.txt
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The files, the one to compare with first
    #[arg(required = true, num_args = 2.., value_name = "MODEL")]
    models: Vec<PathBuf>,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    held_out: HeldOutArgs,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    rules: steps::RuleArgs,
    /// Score every candidate on every prompt, also those that a bound says cannot win
    #[arg(long)]
    exhaustive: bool,
    #[command(flatten)]
    markers: MarkerArgs,
    #[command(flatten)]
    perplexity: PerplexityArgs,
    /// The most tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = at_least_one)]
    max_tokens: usize,
    /// Positions of the first file's own answers that KL is taken over
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    kl_tokens: usize,
    /// Seed of the split of the prompt sets and of the intervals
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    report: ReportArgs,
    /// Overwrite an existing --report and --png
    #[arg(long, requires = "report")]
    force: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Serialize)]
struct Output {
    #[serde(flatten)]
    made: Made,
    prompts: Used,
    models: Vec<Compared>,
}

/// One file.
#[derive(Serialize)]
struct Compared {
    model: String,
    file_size: u64,
    bits_per_weight: f64,
    speed: Speed,
    /// Every candidate's cosine with that of the first file.
    cosines: Vec<Cosine>,
    /// The candidate that the rules take of this file.
    chosen: Option<Candidate>,
    /// Why none is.
    no_choice: Option<String>,
    /// Where `ablated` was measured: the place chosen, or the first file's where none is.
    place: Place,
    /// The cosine of that direction with the first file's own.
    cosine: f64,
    plain: Evaluation,
    /// Its own direction erased.
    ablated: Evaluation,
    /// The first file's direction erased; for the first file the same.
    ablated_by_first: Evaluation,
    perplexity: Option<Perplexity>,
    /// Over the first file's.
    perplexity_ratio: Option<Ratio>,
}

/// Tokens a second, of the same prompts in every file.
#[derive(Clone, Copy, Serialize)]
struct Speed {
    /// Prompts read, as they are measured on.
    prompt: f64,
    /// Answers written, many at once.
    answer: f64,
}

#[derive(Serialize)]
struct Cosine {
    position: i32,
    block: usize,
    cosine: f64,
}

#[derive(Clone, Copy, Serialize)]
struct Place {
    position: i32,
    block: usize,
}

/// What the other files are compared with.
struct First<'m> {
    model: &'m Model,
    contrast: Contrast,
    place: Place,
    direction: Vec<f32>,
    base: Base<'m>,
    text: Option<Text>,
    perplexity: Option<Perplexity>,
}

/// What one file was found to be, before anything is asked of it.
struct Found {
    contrast: Contrast,
    chosen: Option<Candidate>,
    no_choice: Option<String>,
    /// Tokens a second.
    prompt_speed: f64,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let prompts = [self.prompts.paths(), self.held_out.paths()].concat();
        let inputs: Vec<&Path> = self
            .models
            .iter()
            .chain(&prompts)
            .chain(&self.perplexity.perplexity)
            .map(PathBuf::as_path)
            .collect();
        let page = self.report.open(self.force, &inputs, &[])?;
        let parts = self.held_out.load(ui, &self.prompts, self.seed)?;
        let used_prompts = parts.used(self.seed);
        let markers = self.markers.load()?;
        let options =
            Options { max_tokens: self.max_tokens, markers, kl_tokens: self.kl_tokens, seed: self.seed };
        let first = self.run.load(&self.models[0])?;
        // All are opened before the long work, and none is of another model.
        for path in &self.models[1..] {
            let file = GgufFile::open(path).with_context(|| path.display().to_string())?;
            comparable(&first, &file).with_context(|| path.display().to_string())?;
        }
        let test = tokenize_both(&first, &parts.test)?;
        let sets = [&test[0], &test[1]];
        check_length(&first, longest(sets).saturating_add(self.max_tokens.max(self.kl_tokens)))?;

        let found = self.find(ui, &first, &parts, &options)?;
        let Some(chosen) = found.chosen else {
            let why = found.no_choice.unwrap_or_default();
            bail!("{}: {why}; the other files have nothing to be compared with", self.models[0].display());
        };
        let place = place(&chosen)?;
        let text = self.perplexity.load(&first)?;
        let perplexity = text.as_ref().map(|text| text.of(ui, &self.run, &first, None)).transpose()?;
        let reference = First {
            model: &first,
            direction: found.contrast.difference(place.position, place.block),
            contrast: found.contrast.clone(),
            place,
            base: Base::measure(ui, &self.run, &first, sets, &options)?,
            text,
            perplexity,
        };
        let mut models = vec![self.compared(ui, &first, found, &reference, sets, &options)?];
        for path in &self.models[1..] {
            let model = self.run.load(path)?;
            ensure!(
                first.same_vocabulary(&model),
                "{}: its vocabulary is not that of {}",
                path.display(),
                self.models[0].display()
            );
            let found = self.find(ui, &model, &parts, &options)?;
            models.push(self.compared(ui, &model, found, &reference, sets, &options)?);
        }
        let output = Output { made: Made::by("compare"), prompts: used_prompts, models };
        if let Some(page) = page {
            page.write_one(ui, &output)?;
        }
        ui.print(&output, || output.text())
    }

    /// Measures a file on the training prompts and chooses on the validation prompts.
    fn find(&self, ui: Ui, model: &Model, parts: &Parts, options: &Options) -> Result<Found> {
        describe(ui, model);
        let [harmful, harmless] = tokenize_both(model, &parts.train)?;
        let source = steps::source(model, &parts.train)?;
        let start = Instant::now();
        let contrast = steps::measure(ui, &self.run, model, [&harmful, &harmless], source, None)?;
        let n_tokens: usize =
            [&harmful, &harmless].iter().flat_map(|s| &s.prompts).map(|p| p.tokens.len()).sum();
        let prompt_speed = n_tokens as f64 / start.elapsed().as_secs_f64();
        let [harmful, harmless] = tokenize_both(model, &parts.validation)?;
        let tokens = self.tokens.load(model)?;
        let how = steps::How {
            markers: &options.markers,
            tokens: tokens.as_ref(),
            rules: self.rules.rules(),
            seed: self.seed,
            exhaustive: self.exhaustive,
        };
        let sets = [&harmful, &harmless];
        let choice = steps::select(ui, &self.run, model, &contrast, sets, how, &mut Checkpoint::none());
        // A file that refuses nothing, as an edited one, has no choice: a finding, not a failure.
        let (chosen, no_choice) = match choice {
            Ok(choice) => match choice.selection.chosen {
                Some(i) => (Some(choice.candidates[i]), None),
                None => (None, Some("no candidate survives the rules".into())),
            },
            Err(error) => match error.downcast_ref() {
                Some(SelectError::NeverRefuses { .. } | SelectError::Filtered { .. }) => {
                    (None, Some(error.to_string()))
                }
                _ => return Err(error),
            },
        };
        Ok(Found { contrast, chosen, no_choice, prompt_speed })
    }

    /// Asks a file everything, plain and with either direction erased.
    fn compared(
        &self,
        ui: Ui,
        model: &Model,
        found: Found,
        first: &First<'_>,
        sets: [&Set; 2],
        options: &Options,
    ) -> Result<Compared> {
        let is_first = std::ptr::eq(model, first.model);
        let Found { contrast, chosen, no_choice, prompt_speed } = found;
        let place = chosen.as_ref().map_or(Ok(first.place), place)?;
        let own = contrast.difference(place.position, place.block);
        let with = |direction: Option<&[f32]>| -> Result<Evaluated> {
            let ablation = direction.map(|d| Intervention::ablate(&[d]).map(Arc::new)).transpose()?;
            evaluate(ui, &self.run, model, sets, ablation.as_ref(), &first.base, options)
        };
        let plain = with(None)?.0;
        let ablated = with(Some(&own))?.0;
        let ablated_by_first = if is_first { ablated.clone() } else { with(Some(&first.direction))?.0 };
        let perplexity = match (&first.text, is_first) {
            (Some(_), true) => first.perplexity.clone(),
            (Some(text), false) => Some(text.of(ui, &self.run, model, None)?),
            (None, _) => None,
        };
        let file = GgufFile::open(model.path())?;
        let summary = ModelSummary::new(&file)?;
        Ok(Compared {
            model: model.path().display().to_string(),
            file_size: file.file_len(),
            bits_per_weight: summary.bits_per_weight(),
            speed: Speed { prompt: prompt_speed, answer: self.answer_speed(ui, model, sets[1])? },
            cosines: (contrast.candidates())
                .map(|(position, block)| Cosine {
                    position,
                    block,
                    cosine: cosine(
                        &contrast.difference(position, block),
                        &first.contrast.difference(position, block),
                    ),
                })
                .collect(),
            chosen,
            no_choice,
            place,
            cosine: cosine(&own, &first.direction),
            plain,
            ablated,
            ablated_by_first,
            perplexity_ratio: perplexity.as_ref().zip(first.perplexity.as_ref()).map(|(a, b)| a.over(b)),
            perplexity,
        })
    }

    /// Tokens a second that the file writes, for as many prompts at once as are evaluated.
    fn answer_speed(&self, ui: Ui, model: &Model, set: &Set) -> Result<f64> {
        const TOKENS: usize = 32;
        let prompts = &set.prompts[..set.prompts.len().min(PARALLEL)];
        let mut session = self.run.session(model, PARALLEL, longest([set]) + TOKENS)?;
        let options = GenerateOptions { max_tokens: TOKENS, sampler: Sampler::greedy() };
        let bar = ui.progress(prompts.len(), "timing answers");
        let (mut n, mut start) = (0, None);
        // From the first token on: before it, prompts are read.
        session.generate(
            &jobs(prompts, None),
            &options,
            &mut |_, _| {
                start.get_or_insert_with(Instant::now);
                n += 1;
            },
            &mut |_, _| bar.inc(1),
        )?;
        bar.finish_and_clear();
        Ok(start.map_or(0.0, |start| f64::from(n) / start.elapsed().as_secs_f64()))
    }
}

/// Whether a file can be of the same model, by its header.
fn comparable(first: &Model, file: &GgufFile) -> Result<()> {
    let summary = ModelSummary::new(file)?;
    let ours = (first.architecture(), first.n_block() as u64, first.n_embd() as u64);
    let theirs = (summary.architecture, summary.n_block, summary.n_embd);
    ensure!(
        ours == theirs,
        "{} of {} blocks × {}, but {} is {} of {} × {}: only files of one model can be compared",
        theirs.0,
        theirs.1,
        theirs.2,
        first.path().display(),
        ours.0,
        ours.1,
        ours.2
    );
    Ok(())
}

fn place(candidate: &Candidate) -> Result<Place> {
    let block = candidate.layer.block().context("a candidate at the embedding")?;
    Ok(Place { position: candidate.position, block })
}

/// The file's name without its folder.
fn short(model: &str) -> String {
    let name = Path::new(model).file_name().map_or_else(|| model.into(), |name| name.to_string_lossy());
    name.strip_suffix(".gguf").unwrap_or(&name).to_string()
}

impl Output {
    fn text(&self) -> String {
        format!(
            "{}\nthe direction of each file\n{}\nrefusals, and the distance to the first file\n{}\ncosine with the first \
             file's direction, output of each block at position {}\n{}",
            used(&self.prompts),
            self.directions(),
            self.behaviour(),
            self.models[0].place.position,
            self.cosines()
        )
    }

    fn directions(&self) -> String {
        let header = [
            "",
            "size",
            "bits",
            "prompt t/s",
            "answer t/s",
            "position",
            "block",
            "bypass",
            "induce",
            "KL",
            "cos",
        ];
        let rows = self.models.iter().map(|m| {
            let score =
                |of: fn(&Candidate) -> f64| m.chosen.map_or("–".into(), |c| format!("{:.3}", of(&c)));
            vec![
                short(&m.model),
                bytes(m.file_size),
                format!("{:.2}", m.bits_per_weight),
                format!("{:.0}", m.speed.prompt),
                format!("{:.0}", m.speed.answer),
                m.chosen.map_or("none".into(), |c| c.position.to_string()),
                m.chosen.map_or("none".into(), |_| m.place.block.to_string()),
                score(|c| c.bypass),
                score(|c| c.induce),
                score(|c| c.kl),
                format!("{:.4}", m.cosine),
            ]
        });
        let none = self.models.iter().filter_map(|m| Some((m, m.no_choice.as_ref()?)));
        let notes: String = none.map(|(m, why)| format!("{}: {why}\n", short(&m.model))).collect();
        table(&header, 1, rows) + &notes
    }

    fn behaviour(&self) -> String {
        let header = [
            "",
            "refused",
            "95 % interval",
            "own erased",
            "first's erased",
            "over-refusal",
            "KL harmful",
            "KL harmless",
            "perplexity",
            "ratio",
        ];
        let rate = |rate: &Rate| percent(rate.rate);
        let rows = self.models.iter().map(|m| {
            vec![
                short(&m.model),
                rate(&m.plain.harmful.refused),
                interval(&m.plain.harmful.refused),
                rate(&m.ablated.harmful.refused),
                rate(&m.ablated_by_first.harmful.refused),
                rate(&m.plain.over_refusal),
                format!("{:.4}", m.plain.harmful.kl_tokens.mean),
                format!("{:.4}", m.plain.harmless.kl_tokens.mean),
                m.perplexity.as_ref().map_or("–".into(), |p| format!("{:.3}", p.perplexity)),
                m.perplexity_ratio.as_ref().map_or("–".into(), |r| format!("{:.4}", r.ratio)),
            ]
        });
        table(&header, 1, rows)
    }

    fn cosines(&self) -> String {
        let position = self.models[0].place.position;
        let names: Vec<String> = self.models[1..].iter().map(|m| short(&m.model)).collect();
        let header: Vec<&str> = std::iter::once("block").chain(names.iter().map(String::as_str)).collect();
        let here = |m: &Compared| -> Vec<f64> {
            m.cosines.iter().filter(|c| c.position == position).map(|c| c.cosine).collect()
        };
        let columns: Vec<Vec<f64>> = self.models[1..].iter().map(here).collect();
        let n_block = columns.iter().map(Vec::len).max().unwrap_or(0);
        let rows = (0..n_block).map(|block| {
            let cells =
                columns.iter().map(|c| c.get(block).map_or("–".into(), |cosine| format!("{cosine:.4}")));
            std::iter::once(block.to_string()).chain(cells).collect()
        });
        table(&header, 1, rows)
    }
}
