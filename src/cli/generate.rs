//! `ggsteer generate`: one answer, plain or steered, as it comes.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use ggsteer::direction::{Direction, ablation};
use ggsteer::intervention::{Intervention, Positions};
use ggsteer::runtime::sampling::Sampler;
use ggsteer::runtime::{Finish, GenerateOptions, Job, Model};
use serde::Serialize;

use super::args::{RunArgs, at_least_one, check_company, direction};
use super::ui::{Ui, warn};

/// Answer one prompt, with a direction erased or added
///
/// Example: ggsteer generate model.gguf -p "How do I bake bread?" --ablate direction.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
    /// What to ask
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    #[command(flatten)]
    steer: SteerArgs,
    #[command(flatten)]
    sample: SampleArgs,
    #[command(flatten)]
    run: RunArgs,
}

/// How answers are drawn.
#[derive(Debug, Clone, clap::Args)]
pub struct SampleArgs {
    /// The most tokens to generate
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub max_tokens: usize,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Sample among the K likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 40)]
    top_k: usize,
    /// Sample among the likeliest tokens that together have probability P
    #[arg(long, value_name = "P", default_value_t = 0.95)]
    top_p: f32,
    /// Sample among tokens at least P times as likely as the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.05)]
    min_p: f32,
    /// Seed of the sampling
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
}

impl SampleArgs {
    /// The sampler they describe.
    pub fn sampler(&self) -> Sampler {
        if self.temperature > 0.0 {
            Sampler::new(self.temperature, self.top_k, self.top_p, self.min_p, self.seed)
        } else {
            Sampler::greedy()
        }
    }
}

/// What is done to the residual stream.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SteerArgs {
    /// Erase this direction from the residual stream, after every write to it
    #[arg(long, value_name = "DIRECTION", conflicts_with = "add")]
    pub ablate: Vec<PathBuf>,
    /// Add this direction at its block's output, at every position
    #[arg(long, value_name = "DIRECTION")]
    pub add: Option<PathBuf>,
    /// Coefficient of --add: 1 adds the raw difference in means once; auto (in evaluate) finds the smallest
    /// that makes the model refuse ordinary prompts in whole sentences
    #[arg(long, value_name = "C|auto", default_value = "1", allow_negative_numbers = true)]
    pub scale: Scale,
    /// Where --add acts: at every position, or at those of the prompt alone, which keeps a large coefficient
    /// fluent
    #[arg(long, value_enum, default_value_t = AtArg::All)]
    pub at: AtArg,
    /// Which block's direction to take from a file that holds several
    #[arg(long, value_name = "IL")]
    pub block: Option<usize>,
}

/// The coefficient of an addition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// To be found.
    Auto,
    /// Given.
    By(f32),
}

impl Default for Scale {
    fn default() -> Self {
        Self::By(1.0)
    }
}

impl std::str::FromStr for Scale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.eq_ignore_ascii_case("auto") {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::By).map_err(|_| "neither a number nor auto".into())
    }
}

/// Where an addition acts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum AtArg {
    /// At every position (as published)
    #[default]
    All,
    /// At the positions of the prompt
    Prompt,
}

impl From<AtArg> for Positions {
    fn from(arg: AtArg) -> Self {
        match arg {
            AtArg::All => Self::All,
            AtArg::Prompt => Self::Prompt,
        }
    }
}

impl SteerArgs {
    /// The coefficient, where something is added.
    pub fn coefficient(&self) -> Result<Option<f32>> {
        match (self.scale, &self.add) {
            (Scale::By(c), add) => Ok(add.as_ref().map(|_| c)),
            (Scale::Auto, Some(_)) => {
                bail!(
                    "--scale auto: `ggsteer evaluate` finds the coefficient, on ordinary prompts; give here what \
                     it found"
                )
            }
            (Scale::Auto, None) => bail!("--scale auto: nothing is added; name a direction with --add"),
        }
    }

    /// The intervention they describe.
    pub fn load(&self, model: &Model) -> Result<Option<Arc<Intervention>>> {
        let scale = self.coefficient()?;
        if let Some((path, scale)) = self.add.as_ref().zip(scale) {
            let direction = direction(path, self.block, model)?;
            return Ok(Some(Arc::new(Intervention::add(
                direction.block,
                &direction.vector,
                scale,
                self.at.into(),
            )?)));
        }
        if self.ablate.is_empty() {
            return Ok(None);
        }
        let directions = erased(&self.ablate, self.block, model)?;
        Ok(Some(Arc::new(ablation(&directions)?)))
    }
}

/// Directions to be erased, with a warning where one was made for something else.
pub fn erased(paths: &[PathBuf], block: Option<usize>, model: &Model) -> Result<Vec<Direction>> {
    let directions = paths.iter().map(|path| direction(path, block, model)).collect::<Result<Vec<_>>>()?;
    for (path, _) in paths.iter().zip(&directions).filter(|(_, d)| d.meta.mode.as_deref() == Some("add")) {
        warn(&format!("{}: made to be added (glp.mode), and erased here", path.display()));
    }
    check_company(&directions);
    Ok(directions)
}

#[derive(Serialize)]
struct Output<'a> {
    model: String,
    prompt: &'a str,
    completion: &'a str,
    finish: Finish,
    n_prompt_tokens: usize,
    n_tokens: usize,
    ablate: &'a [PathBuf],
    add: &'a Option<PathBuf>,
    scale: Option<f32>,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let scale = self.steer.coefficient()?;
        let model = self.run.load(&self.model)?;
        let intervention = self.steer.load(&model)?;
        let prompt = model.prompt(&self.prompt)?;
        let mut session =
            self.run.session(&model, 1, prompt.tokens.len().saturating_add(self.sample.max_tokens))?;
        let options = GenerateOptions { max_tokens: self.sample.max_tokens, sampler: self.sample.sampler() };
        let jobs = [Job { tokens: &prompt.tokens, n_out: 1, intervention }];
        let mut written = Ok(());
        let mut show = |_: usize, text: &str| {
            if !ui.json && written.is_ok() {
                let mut stdout = std::io::stdout().lock();
                written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
            }
        };
        let completions = session.generate(&jobs, &options, &mut show, &mut |_, _| ())?;
        written.context("stdout")?;
        let completion = &completions[0];
        let output = Output {
            model: self.model.display().to_string(),
            prompt: &self.prompt,
            completion: &completion.text,
            finish: completion.finish,
            n_prompt_tokens: prompt.tokens.len(),
            n_tokens: completion.tokens.len(),
            ablate: &self.steer.ablate,
            add: &self.steer.add,
            scale,
        };
        ui.print(&output, String::new)
    }
}
