//! The documents that a report is made of: what commands print with `--json`, read back and checked.
//!
//! Only what a report shows is read; what else a document holds is left alone.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::Error;
use super::plot::number;
use crate::analysis::Analysis as BlockByBlock;
use crate::evaluate::run::{Answer, Evaluation, SetResult};
use crate::evaluate::{Mean, Rate, null_as_nan};
use crate::prompts::split::Used;
use crate::select::{Candidate, Rules, Verdict};

/// The first keys of every document: what printed it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The subcommand.
    pub command: String,
    /// Of this program.
    #[serde(default)]
    pub version: String,
    /// What it was called with.
    #[serde(default)]
    pub arguments: Vec<String>,
}

impl Made {
    /// By this very run of the program.
    #[must_use]
    pub fn by(command: &str) -> Self {
        let arguments = std::env::args_os().skip(1).map(|a| a.to_string_lossy().into_owned());
        Self {
            command: command.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            arguments: arguments.collect(),
        }
    }
}

/// A checked document.
#[derive(Debug)]
pub struct Document {
    /// Where it is from, for messages and the page.
    pub file: String,
    /// SHA-256 of its bytes, where it was a file.
    pub sha256: Option<String>,
    /// What printed it.
    pub made: Made,
    pub(super) run: Run,
}

#[derive(Debug)]
pub(super) enum Run {
    Abliterate(Box<Abliterate>, Written),
    Analyze(Analyze, BlockByBlock),
    Select(Select, Choice),
    Evaluate(Box<Evaluate>),
    Rewrite(Rewrite, Written),
    Verify(Verify),
    Compare(Compare),
    Optimize(Box<Optimize>),
}

/// The commands whose documents are known.
pub const COMMANDS: [&str; 8] =
    ["abliterate", "analyze", "compare", "evaluate", "optimize", "orthogonalize", "select", "verify"];

impl Document {
    /// From the bytes of a file.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read(file: &str, bytes: &[u8]) -> Result<Self, Error> {
        let json =
            serde_json::from_slice(bytes).map_err(|source| Error::Json { file: file.into(), source })?;
        let sha256 = crate::hex(&Sha256::digest(bytes));
        Ok(Self { sha256: Some(sha256), ..Self::of(file, json)? })
    }

    /// From a document as it is printed.
    ///
    /// # Errors
    /// As [`Document::read`], but for bytes that are no JSON.
    pub fn of(file: &str, json: Value) -> Result<Self, Error> {
        let unknown =
            |found: String| Err(Error::Command { file: file.into(), found, known: COMMANDS.join(", ") });
        let command = match json.get("command") {
            Some(Value::String(command)) => command.clone(),
            Some(other) => return unknown(other.to_string()),
            None => return unknown("missing".into()),
        };
        let made: Made = keys(file, &command, json.clone())?;
        let run = match command.as_str() {
            // Read twice, for keys that are flattened into others have no path to be named by.
            "abliterate" => Run::Abliterate(keys(file, &command, json.clone())?, keys(file, &command, json)?),
            "analyze" => Run::Analyze(keys(file, &command, json.clone())?, keys(file, &command, json)?),
            "compare" => Run::Compare(keys(file, &command, json)?),
            "evaluate" => Run::Evaluate(keys(file, &command, json)?),
            "optimize" => Run::Optimize(keys(file, &command, json)?),
            "orthogonalize" => Run::Rewrite(keys(file, &command, json.clone())?, keys(file, &command, json)?),
            "select" => Run::Select(keys(file, &command, json.clone())?, keys(file, &command, json)?),
            "verify" => Run::Verify(keys(file, &command, json)?),
            other => return unknown(format!("{other:?}")),
        };
        let document = Self { file: file.into(), sha256: None, made, run };
        document.check()?;
        Ok(document)
    }

    /// Whether lists that belong together are of one length.
    fn check(&self) -> Result<(), Error> {
        let same = |key: &str, found: usize, expected: usize| {
            let fail = || Error::Length { file: self.file.clone(), key: key.into(), found, expected };
            if found == expected { Ok(()) } else { Err(fail()) }
        };
        let choice = |choice: &Choice| {
            let n = choice.candidates.len();
            same("verdicts", choice.verdicts.len(), n)?;
            same("scored_on", choice.scored_on.len(), n)?;
            // An index beyond the list.
            choice.chosen.map_or(Ok(()), |i| same("chosen", i.max(n - n.min(1)), n - n.min(1)))
        };
        let some = |key: &str, n: usize| same(key, n, n.max(1));
        let analysis = |analysis: &BlockByBlock| {
            some("blocks", analysis.blocks.len())?;
            same("scatter", analysis.scatter.len(), analysis.blocks.len())?;
            (analysis.scatter.iter().flat_map(|s| [Some(&s.harmful), Some(&s.harmless), s.ablated.as_ref()]))
                .flatten()
                .try_for_each(|points| same("scatter.pc2", points.pc2.len(), points.pc1.len()))
        };
        match &self.run {
            Run::Select(_, found) => choice(found),
            Run::Analyze(_, found) => analysis(found),
            Run::Abliterate(run, _) => {
                run.choice.as_ref().map_or(Ok(()), choice)?;
                let Some(story) = &run.story else { return Ok(()) };
                analysis(&story.analysis.analysis)?;
                let first = story.answers.first().map_or([0, 0], Said::lens);
                story.answers.iter().try_for_each(|said| {
                    let [harmful, harmless] = said.lens();
                    same("story.answers.harmful", harmful, first[0])?;
                    same("story.answers.harmless", harmless, first[1])
                })
            }
            Run::Compare(run) => some("models", run.models.len()),
            _ => Ok(()),
        }
    }
}

/// The keys that are read of a document.
fn keys<T: DeserializeOwned>(file: &str, command: &str, json: Value) -> Result<T, Error> {
    serde_path_to_error::deserialize(json).map_err(|error| Error::Key {
        file: file.into(),
        command: command.into(),
        key: match error.path().to_string().as_str() {
            "." => "(the whole)".into(),
            path => path.into(),
        },
        source: error.into_inner(),
    })
}

/// What `abliterate` prints beside its usual keys, with `--report`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Story {
    /// The prompts to evaluate on, in the stream.
    pub analysis: Measured,
    /// The direction added at the prompts' positions, coefficient 1.
    pub added: Evaluation,
    /// What was said, run by run: every run to the same prompts.
    pub answers: Vec<Said>,
    /// The files read and written.
    pub files: Vec<FileRecord>,
}

/// An analysis, and what it is of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Measured {
    /// Prompts that show the behaviour.
    pub n_harmful: usize,
    /// Prompts that do not.
    pub n_harmless: usize,
    /// Position, counted from the end of the templated prompt.
    pub position: i32,
    /// Block by block.
    #[serde(flatten)]
    pub analysis: BlockByBlock,
}

/// What was said in one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Said {
    /// Which run, in words.
    pub run: String,
    /// To the harmful prompts.
    pub harmful: Vec<Answer>,
    /// To the harmless ones.
    pub harmless: Vec<Answer>,
}

impl Said {
    fn lens(&self) -> [usize; 2] {
        [self.harmful.len(), self.harmless.len()]
    }
}

/// A file and its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// What it is in the run.
    pub role: String,
    /// Its path as it was given.
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
}

impl FileRecord {
    /// Reads a file whole; `step` is told how many bytes more were read.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of(role: &str, path: &Path, step: &mut dyn FnMut(u64)) -> io::Result<Self> {
        let (mut file, mut hash, mut bytes) = (File::open(path)?, Sha256::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            hash.update(&buffer[..n]);
            bytes += n as u64;
            step(n as u64);
        }
        let sha256 = crate::hex(&hash.finalize());
        Ok(Self { role: role.into(), path: path.display().to_string(), bytes, sha256 })
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Abliterate {
    pub model: String,
    pub output: String,
    pub prompts: Used,
    pub direction: Place,
    pub subspace: Option<Subspace>,
    pub choice: Option<Choice>,
    pub before: Evaluation,
    pub ablated: Evaluation,
    pub after: Evaluation,
    pub story: Option<Story>,
}

/// Where a direction is from.
#[derive(Debug, Deserialize)]
pub(super) struct Place {
    pub block: usize,
    pub position: Option<i32>,
    pub raw_norm: Option<f64>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Written {
    pub max_leak: f64,
    pub max_data_leak: Option<f64>,
    pub max_edit_error: Option<f64>,
    pub n_edited: usize,
    pub n_untouched: usize,
    pub file_size: u64,
    pub tensors: Vec<Tensor>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Tensor {
    pub name: String,
    #[serde(rename = "type", alias = "type_before")]
    pub before: String,
    #[serde(rename = "out_type", alias = "type_after")]
    pub after: String,
    pub kind: String,
    pub block: Option<usize>,
    #[serde(deserialize_with = "null_as_nan")]
    pub leak: f64,
    pub data_leak: Option<f64>,
    pub edit_error: Option<f64>,
    #[serde(deserialize_with = "null_as_nan")]
    pub distance: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub share: f64,
    pub method: Option<String>,
    pub bytes: u64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Analyze {
    pub model: String,
    pub n_harmful: usize,
    pub n_harmless: usize,
    pub position: i32,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct Choice {
    pub n_harmful: [usize; 2],
    pub n_harmless: [usize; 2],
    pub rules: Rules,
    pub candidates: Vec<Candidate>,
    pub scored_on: Vec<[usize; 3]>,
    pub verdicts: Vec<Verdict>,
    pub chosen: Option<usize>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Select {
    pub model: String,
    pub output: String,
    pub direction: Place,
    pub subspace: Option<Subspace>,
}

/// Directions that are erased together.
#[derive(Debug, Deserialize)]
pub(super) struct Subspace {
    /// How many, the first among them.
    pub rank: usize,
}

#[derive(Debug, Deserialize)]
pub(super) struct Evaluate {
    pub model: String,
    pub base: Option<String>,
    pub ablate: Vec<String>,
    pub add: Option<String>,
    pub scale: Option<f64>,
    pub n_kl_tokens: usize,
    pub harmful: SetResult,
    pub harmless: SetResult,
    pub control: Option<Evaluation>,
    pub perplexity: Option<Perplexities>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Perplexities {
    pub text: String,
    pub base: Perplexity,
    pub this: Perplexity,
    pub ratio: Ratio,
}

#[derive(Debug, Deserialize)]
pub(super) struct Perplexity {
    #[serde(deserialize_with = "null_as_nan")]
    pub perplexity: f64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Ratio {
    #[serde(deserialize_with = "null_as_nan")]
    pub ratio: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub low: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub high: f64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Rewrite {
    pub model: String,
    pub output: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Verify {
    pub original: String,
    pub rewritten: String,
    pub ok: bool,
    pub max_leak: f64,
    pub max_data_leak: Option<f64>,
    pub max_edit_error: Option<f64>,
    pub n_untouched: usize,
    pub tensors: Vec<Tensor>,
    pub differences: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Compare {
    pub prompts: Used,
    pub models: Vec<Compared>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Compared {
    pub model: String,
    pub file_size: u64,
    pub bits_per_weight: f64,
    pub cosines: Vec<Cosine>,
    pub chosen: Option<Candidate>,
    pub no_choice: Option<String>,
    pub place: Place,
    #[serde(deserialize_with = "null_as_nan")]
    pub cosine: f64,
    pub plain: Evaluation,
    pub ablated: Evaluation,
    pub ablated_by_first: Evaluation,
    pub perplexity: Option<Perplexity>,
    pub perplexity_ratio: Option<Ratio>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Cosine {
    pub position: i32,
    pub block: usize,
    #[serde(deserialize_with = "null_as_nan")]
    pub cosine: f64,
}

#[derive(Debug, Deserialize)]
pub(super) struct Optimize {
    pub model: String,
    pub n_harmful: usize,
    pub n_harmless: usize,
    pub trials: usize,
    pub untouched: Trial,
    pub plain: Trial,
    pub pareto: Vec<Trial>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Trial {
    pub trial: Option<usize>,
    pub direction: Option<String>,
    #[serde(flatten)]
    pub counts: Counts,
    pub test: Option<Counts>,
    pub command: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Counts {
    pub answered: Rate,
    pub refused: Rate,
    pub broken: Rate,
    pub kl: Mean,
    pub dominates_plain: bool,
}

impl Place {
    /// In words.
    pub fn words(&self) -> String {
        let position = self.position.map_or_else(|| "of unknown".into(), |p| number(f64::from(p)));
        format!("output of block {}, position {position}", self.block)
    }

    /// The same, and whether others go with it.
    pub fn with(&self, subspace: Option<&Subspace>) -> String {
        match subspace {
            Some(Subspace { rank }) if *rank > 1 => {
                format!("{}, the first of {rank} erased together", self.words())
            }
            _ => self.words(),
        }
    }
}
