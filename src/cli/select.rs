//! `ggsteer select`: which of the measured directions carries the behaviour.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ggsteer::activations::Contrast;
use ggsteer::direction::Direction;
use ggsteer::output::OutputFile;
use ggsteer::prompts::split::check_disjoint;
use ggsteer::report::run::Made;
use ggsteer::runtime::{Model, Token};
use ggsteer::select::Choice;
use ggsteer::select::grid::RefusalTokens;
use ggsteer::select::subspace::{Gain, Step, Stop, Subspace};
use serde::Serialize;

use super::args::{MarkerArgs, PromptArgs, RunArgs, SPEC, describe, tokenize_both};
use super::steps::{self, RankArgs, ScoringArgs};
use super::ui::{Ui, warn};

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
    #[command(flatten)]
    rank: RankArgs,
    /// The prompts that the directions were measured on, to measure further ones by (--rank)
    #[arg(long, value_name = SPEC, requires = "train_harmless")]
    train_harmful: Option<String>,
    /// Those that do not show the behaviour
    #[arg(long, value_name = SPEC, requires = "train_harmful")]
    train_harmless: Option<String>,
    /// Seed of the order in which the prompts are taken
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Where to write the chosen direction (a GGUF control vector); further ones go beside it, as NAME.2.gguf and so on
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
    #[serde(skip_serializing_if = "Option::is_none")]
    subspace: Option<Grown<'a>>,
}

/// The directions beside the first, for people and machines.
#[derive(Serialize)]
pub struct Grown<'a> {
    /// With the first.
    pub rank: usize,
    /// Why there are no more.
    pub stop: Stop,
    pub further: Vec<Chosen>,
    /// The files they were written to.
    pub files: Vec<String>,
    pub steps: &'a [Step],
}

impl<'a> Grown<'a> {
    pub fn of(found: &'a Subspace, files: &[PathBuf]) -> Self {
        Self {
            rank: found.directions.len(),
            stop: found.stop,
            further: found.directions.iter().skip(1).map(Chosen::of).collect(),
            files: files.iter().map(|path| path.display().to_string()).collect(),
            steps: &found.steps,
        }
    }

    /// What was found and what was not, in lines.
    pub fn words(&self) -> String {
        let mut words = String::new();
        for (i, Step { n_refused, gain, .. }) in self.steps.iter().enumerate() {
            let place = self.further.get(i).map_or("none".into(), Chosen::place);
            words += &format!("direction {}, measured on {n_refused} still refused: {place}", i + 2);
            if let Some(Gain { before, after, at_least }) = gain {
                words += &format!(
                    "; probability of refusal {before:.3} to {after:.3}, a fall of {at_least:.3} or more"
                );
            }
            words += "\n";
        }
        words + &format!("no direction {}: {}\n", self.rank + 1, self.stop)
    }
}

/// Files for up to `rank` directions, begun: the first at `path`, the others beside it.
pub struct DirectionFiles(Vec<OutputFile>);

impl DirectionFiles {
    pub fn create(path: &Path, rank: usize, force: bool, inputs: &[&Path]) -> Result<Self> {
        let name = |n: usize| match (n, path.extension()) {
            (1, _) => path.to_path_buf(),
            (_, None) => path.with_extension(n.to_string()),
            (_, Some(end)) => path.with_extension(format!("{n}.{}", end.display())),
        };
        let all: Result<_, _> = (1..=rank).map(|n| OutputFile::create(&name(n), force, inputs)).collect();
        Ok(Self(all?))
    }

    /// Writes the directions, of which there are no more than files; what was written.
    pub fn save(self, directions: &[Direction]) -> Result<Vec<PathBuf>> {
        let save = |(direction, out): (&Direction, OutputFile)| {
            let path = out.path().to_path_buf();
            direction.save_to(out)?;
            Ok(path)
        };
        directions.iter().zip(self.0).map(save).collect()
    }
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
    pub fn place(&self) -> String {
        let position = self.position.unwrap_or(-1);
        format!("output of block {}, position {position}, length {:.3}", self.block, self.raw_norm)
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
        let train = self.train()?;
        let train_files: Vec<PathBuf> = train.iter().flat_map(PromptArgs::paths).collect();
        let mut inputs = vec![self.model.as_path(), self.directions.as_path()];
        inputs.extend(prompts.iter().chain(&train_files).map(PathBuf::as_path));
        let out = DirectionFiles::create(&self.output, self.rank.rank, self.force, &inputs)?;
        let mut checkpoint = self.scoring.open(&self.output, &inputs)?;
        let sets = self.prompts.load(ui)?;
        let train = train.map(|train| train.load(ui)).transpose()?;
        if let Some(train) = &train {
            check_disjoint(&[
                ("harmful training prompts", &train.harmful),
                ("harmless training prompts", &train.harmless),
                ("harmful validation prompts", &sets.harmful),
                ("harmless validation prompts", &sets.harmless),
            ])?;
        }
        let markers = self.markers.load()?;
        let contrast = Contrast::load(&self.directions)?;
        let model = self.run.load(&self.model)?;
        describe(ui, &model);
        check(&contrast, &model).with_context(|| self.directions.display().to_string())?;
        let tokens = self.tokens.load(&model)?;
        let measured = contrast.source.prompts_harmful_sha256.as_deref();
        if measured == Some(&sets.harmful.sha256) {
            warn(
                "the directions were measured on these very prompts: choose on others, for the scores are flattered",
            );
        }
        if train.as_ref().is_some_and(|train| measured.is_some_and(|m| m != train.harmful.sha256)) {
            warn("--train-harmful: the directions were measured on other prompts");
        }
        let sets = tokenize_both(&model, &sets)?;
        let train = train.map(|train| tokenize_both(&model, &train)).transpose()?;
        let how = self.scoring.how(&markers, tokens.as_ref(), self.seed);
        let both = [&sets[0], &sets[1]];
        let choice = steps::select(ui, &self.run, &model, &contrast, both, how, &mut checkpoint)?;
        let direction = steps::chosen(&choice, &contrast);
        if direction.is_err() {
            checkpoint.remove()?;
        }
        let direction = direction?;
        let found = match &train {
            None => None,
            Some(train) => {
                let begun = (&contrast, direction.clone(), self.rank.rank);
                Some(steps::grow(ui, &self.run, &model, begun, [train, &sets], how, &mut checkpoint)?)
            }
        };
        let directions = found.as_ref().map_or(std::slice::from_ref(&direction), |found| &found.directions);
        let files = out.save(directions)?;
        checkpoint.remove()?;
        let output = Output {
            made: Made::by("select"),
            model: self.model.display().to_string(),
            output: self.output.display().to_string(),
            direction: Chosen::of(&direction),
            choice: &choice,
            subspace: found.as_ref().map(|found| Grown::of(found, &files)),
        };
        ui.print(&output, || {
            let (table, cost) = (steps::choice_table(&choice, 12), steps::choice_cost(&choice));
            let written = match &output.subspace {
                None => format!("written to {}\n", output.output),
                Some(found) => format!("{}written to {}\n", found.words(), found.files.join(", ")),
            };
            format!("{table}{cost}\n{written}")
        })
    }

    /// The training prompts, which are needed for more than one direction, and only then.
    fn train(&self) -> Result<Option<PromptArgs>> {
        let Self { train_harmful: harmful, train_harmless: harmless, .. } = self;
        match (self.rank.rank, harmful) {
            (1, None) => Ok(None),
            (1, Some(_)) => bail!("--train-harmful and --train-harmless are for --rank 2 and more"),
            (_, None) => bail!(
                "--rank {}: further directions are measured with those before them erased; give --train-harmful and \
                 --train-harmless, the prompts of `ggsteer extract`",
                self.rank.rank
            ),
            (_, Some(_)) => Ok(Some(PromptArgs {
                harmful: harmful.clone(),
                harmless: harmless.clone(),
                limit: None,
                hub: self.prompts.hub,
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ggsteer::direction::Provenance;

    #[test]
    fn further_directions_go_beside_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let one = |x: f32| Direction::new(vec![x, 1.0], 0, Provenance::default()).unwrap();
        let files = DirectionFiles::create(&at("a.b.gguf"), 3, false, &[]).unwrap();
        let written = files.save(&[one(1.0), one(2.0)]).unwrap();
        assert_eq!(written, [at("a.b.gguf"), at("a.b.2.gguf")]);
        assert_eq!(Direction::load(at("a.b.2.gguf"), None).unwrap().vector, [2.0, 1.0]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "no file for the third");
        let files = DirectionFiles::create(&at("bare"), 2, false, &[]).unwrap();
        assert_eq!(files.save(&[one(1.0), one(2.0)]).unwrap(), [at("bare"), at("bare.2")]);
        // A file of that name that is there, also in the second place, is found before anything is measured.
        assert!(DirectionFiles::create(&at("a.gguf"), 2, false, &[]).is_ok());
        std::fs::write(at("a.2.gguf"), "x").unwrap();
        assert!(DirectionFiles::create(&at("a.gguf"), 2, false, &[]).is_err());
    }
}
