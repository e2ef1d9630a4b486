//! `ggsteer select`: which of the measured directions carries the behaviour.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use ggsteer::activations::Contrast;
use ggsteer::output::OutputFile;
use ggsteer::runtime::{Model, Token};
use ggsteer::select::grid::RefusalTokens;
use serde::Serialize;

use super::args::{MarkerArgs, PromptArgs, RunArgs, describe, tokenize};
use super::steps::{self, Choice};
use super::ui::Ui;

/// Choose the direction by bypass, induce and KL on validation prompts, as Arditi et al. 2024 do
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
        let sets = self.prompts.load(ui)?;
        let markers = self.markers.load()?;
        let contrast = Contrast::load(&self.directions)?;
        let model = self.run.load(&self.model)?;
        describe(ui, &model);
        check(&contrast, &model).with_context(|| self.directions.display().to_string())?;
        let tokens = self.tokens.load(&model)?;
        let (harmful, harmless) = (tokenize(&model, &sets.harmful)?, tokenize(&model, &sets.harmless)?);
        let choice =
            steps::select(ui, &self.run, &model, &contrast, [&harmful, &harmless], &markers, tokens)?;
        let direction = choice.direction(&contrast)?;
        direction.save_to(out)?;
        let output = Output {
            model: self.model.display().to_string(),
            output: self.output.display().to_string(),
            direction: Chosen::of(&direction),
            choice: &choice,
        };
        ui.print(&output, || format!("{}written to {}\n", choice.table(12), output.output))
    }
}
