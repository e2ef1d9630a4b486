//! What was measured: the JSON that `evaluate`, `abliterate`, `orthogonalize` and `verify` print.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::evaluate::interval::{Mean, Rate};
use crate::input;
use crate::prompts::split::Used;

/// Why a run cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file cannot be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It is no JSON, or not of a run.
    #[error("{}: not what `ggsteer … --json` prints: {source}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it is not.
        source: serde_json::Error,
    },
    /// JSON of another command.
    #[error(
        "{}: nothing in it for a card; give what `ggsteer evaluate`, `abliterate`, `orthogonalize` or `verify` prints with \
         --json",
        .path.display()
    )]
    Nothing {
        /// The file.
        path: PathBuf,
    },
}

/// What one command printed.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Run {
    /// The model that was run or edited.
    #[serde(default)]
    pub model: Option<String>,
    /// The model that an evaluation measures the distance to.
    #[serde(default)]
    pub base: Option<String>,
    /// The file that was written.
    #[serde(default)]
    pub output: Option<String>,
    /// Directions that an evaluation erased while the model ran.
    #[serde(default)]
    pub ablate: Vec<String>,
    /// A direction that an evaluation added while the model ran.
    #[serde(default)]
    pub add: Option<String>,
    /// The largest leak over the tensors edited.
    #[serde(default)]
    pub max_leak: Option<f64>,
    /// The largest leak on held-out inputs.
    #[serde(default)]
    pub max_data_leak: Option<f64>,
    /// The largest edit error on held-out inputs.
    #[serde(default)]
    pub max_edit_error: Option<f64>,
    /// An abliteration's evaluation of the model as it was.
    #[serde(default)]
    pub before: Option<Evaluated>,
    /// With the direction erased while the model ran.
    #[serde(default)]
    pub ablated: Option<Evaluated>,
    /// Of the file that was written.
    #[serde(default)]
    pub after: Option<Evaluated>,
    /// An evaluation's prompts that show the behaviour.
    #[serde(default)]
    pub harmful: Option<SetFigures>,
    /// An evaluation's prompts that do not.
    #[serde(default)]
    pub harmless: Option<SetFigures>,
    /// Its perplexity.
    #[serde(default)]
    pub perplexity: Option<Perplexity>,
    /// An abliteration's prompts.
    #[serde(default)]
    pub prompts: Option<Used>,
}

/// Both sets of an evaluation.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Evaluated {
    /// Of prompts that show the behaviour.
    pub harmful: SetFigures,
    /// Of prompts that do not.
    pub harmless: SetFigures,
}

/// Figures of one set.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct SetFigures {
    /// Refused in the opening of the answer.
    pub refused: Rate,
    /// Empty, looping or garbled.
    pub broken: Rate,
    /// KL(base ‖ this) of the first token.
    pub kl_first: Mean,
}

/// Perplexity on a text.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Perplexity {
    /// The text's file.
    pub text: String,
    /// Of the base.
    pub base: Value,
    /// Of this.
    pub this: Value,
}

/// A perplexity with its error.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Value {
    /// The perplexity.
    pub perplexity: f64,
    /// llama.cpp's ±.
    pub standard_error: f64,
}

impl Run {
    /// Reads one.
    ///
    /// # Errors
    /// [`RunError`]: unreadable, no JSON, or of a command that measures nothing of a file.
    pub fn load(path: &Path) -> Result<Self, RunError> {
        let at = || path.to_path_buf();
        let text =
            input::read_text(path, input::JSON).map_err(|source| RunError::Read { path: at(), source })?;
        let run: Self =
            serde_json::from_str(&text).map_err(|source| RunError::Json { path: at(), source })?;
        if run.max_leak.is_none() && run.harmful.is_none() && run.after.is_none() {
            return Err(RunError::Nothing { path: at() });
        }
        Ok(run)
    }
}
