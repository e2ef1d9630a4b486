//! `ggsteer select`: which of the measured directions carries the behaviour.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ggsteer::activations::Contrast;
use ggsteer::output::OutputFile;
use ggsteer::report::run::Made;
use ggsteer::runtime::{Model, Token};
use ggsteer::select::Choice;
use ggsteer::select::grid::RefusalTokens;
use serde::Serialize;

use super::args::{MarkerArgs, PromptArgs, RunArgs, describe, tokenize_both};
use super::steps::{self, ScoringArgs};
use super::ui::Ui;

/// Choose the direction by bypass, induce and KL on validation prompts, as Arditi et al. 2024 do
///
/// Candidates are scored on more and more prompts, and left when they break a rule or when one that keeps the rules is
/// better beyond doubt; the choice is that of scoring all (--exhaustive), with an error probability of a hundredth at most.
///
/// Example: ggsteer select model.gguf --directions dirs.gguf --harmful a.txt --harmless b.txt -o direction.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
    /// What `ggsteer extract` measured
    #[arg(long, value_name = "DIRS")]
    directions: PathBuf,
    #[command(flatten)]
    prompts: PromptArgs,
    #[command(flatten)]
    tokens: TokenArgs,
    #[command(flatten)]
    markers: MarkerArgs,
    #[command(flatten)]
    scoring: ScoringArgs,
    /// Seed of the order in which the prompts are taken
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Where to write the chosen direction (a GGUF control vector)
    #[arg(short, long, value_name = "DIRECTION")]
    output: PathBuf,
    /// Overwrite an existing output
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    run: RunArgs,
}

/// Whose probability is the refusal score.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TokenArgs {
    /// First words of refusals, whose first tokens make the refusal score [default: found in the model's own]
    #[arg(long, value_name = "TEXT")]
    pub refusal_token: Vec<String>,
}

impl TokenArgs {
    /// The named tokens, if any were.
    pub fn load(&self, model: &Model) -> Result<Option<RefusalTokens>> {
        let mut ids = Vec::new();
        for text in &self.refusal_token {
            match model.tokenize(text).first() {
                Some(token) => ids.push(token.0 as usize),
                None => bail!("--refusal-token {text:?}: no token"),
            }
        }
        ids.sort_unstable();
        ids.dedup();
        let texts = ids.iter().map(|&id| model.token_text(Token(id as i32))).collect();
        Ok((!ids.is_empty()).then_some(RefusalTokens { ids, texts, coverage: None }))
    }
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    made: Made,
    model: String,
    output: String,
    direction: Chosen,
    #[serde(flatten)]
    choice: &'a Choice,
}

/// The chosen direction, for people and machines.
#[derive(Serialize)]
pub struct Chosen {
    pub block: usize,
    pub position: Option<i32>,
    pub paper_layer: usize,
    pub raw_norm: f64,
    pub scores: Option<ggsteer::direction::Scores>,
}

impl Chosen {
    pub fn of(direction: &ggsteer::direction::Direction) -> Self {
        Self {
            block: direction.block,
            position: direction.meta.position,
            paper_layer: direction.block + 1,
            raw_norm: direction.norm(),
            scores: direction.meta.scores,
        }
    }

    /// Where it is and how long.
    pub fn words(&self) -> String {
        let position = self.position.unwrap_or(-1);
        format!("direction: output of block {}, position {position}, length {:.3}", self.block, self.raw_norm)
    }
}

/// Whether the directions can have been measured on this model.
fn check(contrast: &Contrast, model: &Model) -> Result<()> {
    let (_, n_block, n_embd) = contrast.harmful.shape();
    let shape = (model.n_block(), model.n_embd());
    if (n_block, n_embd) != shape {
        bail!("directions of {n_block} blocks × {n_embd}, the model has {} × {}", shape.0, shape.1);
    }
    match &contrast.source.architecture {
        Some(found) if *found != model.architecture() => {
            bail!("directions were made for architecture {found:?}, model is {:?}", model.architecture())
        }
        _ => Ok(()),
    }
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let prompts = self.prompts.paths();
        let mut inputs = vec![self.model.as_path(), self.directions.as_path()];
        inputs.extend(prompts.iter().map(PathBuf::as_path));
        let out = OutputFile::create(&self.output, self.force, &inputs)?;
        let mut checkpoint = self.scoring.open(&self.output, &inputs)?;
        let sets = self.prompts.load(ui)?;
        let markers = self.markers.load()?;
        let contrast = Contrast::load(&self.directions)?;
        let model = self.run.load(&self.model)?;
        describe(ui, &model);
        check(&contrast, &model).with_context(|| self.directions.display().to_string())?;
        let tokens = self.tokens.load(&model)?;
        let [harmful, harmless] = tokenize_both(&model, &sets)?;
        let how = self.scoring.how(&markers, tokens.as_ref(), self.seed);
        let sets = [&harmful, &harmless];
        let choice = steps::select(ui, &self.run, &model, &contrast, sets, how, &mut checkpoint)?;
        let direction = steps::chosen(&choice, &contrast);
        if direction.is_err() {
            checkpoint.remove()?;
        }
        let direction = direction?;
        direction.save_to(out)?;
        checkpoint.remove()?;
        let output = Output {
            made: Made::by("select"),
            model: self.model.display().to_string(),
            output: self.output.display().to_string(),
            direction: Chosen::of(&direction),
            choice: &choice,
        };
        ui.print(&output, || {
            let (table, cost) = (steps::choice_table(&choice, 12), steps::choice_cost(&choice));
            format!("{table}{cost}\nwritten to {}\n", output.output)
        })
    }
}
