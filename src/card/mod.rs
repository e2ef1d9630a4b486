//! What goes with a file that ggsteer made: a model card, an Ollama `Modelfile`, and the command lines of llama.cpp's own
//! programs.
//!
//! Everything said comes from the file itself (its metadata and the [`Record`] that the rewriter left in it) and from the
//! JSON of runs ([`Run`]). What neither says is left out, never guessed.
//!
//! ```
//! use ggsteer::card::{markdown, shell, yaml};
//!
//! // What a file calls itself is text, wherever it stands.
//! assert_eq!(markdown("<b>*x*</b>"), r"&lt;b&gt;\*x\*&lt;/b&gt;");
//! assert_eq!(yaml("a: \"b\""), r#""a: \"b\"""#);
//! assert_eq!(shell("it's.gguf"), r"'it'\''s.gguf'");
//! ```
#![forbid(unsafe_code)]

mod escape;
mod modelfile;
mod readme;
mod run;
mod template;
#[cfg(test)]
mod tests;

pub use escape::{code_block, markdown, shell, yaml};
pub use run::{Evaluated, Run, RunError};

use std::path::Path;

use crate::direction::Provenance;
use crate::gguf::{Array, GgufError, GgufFile, ModelSummary, Value};
use crate::rewrite::Record;

/// Why no card can be made.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// The file's metadata is not as it should be.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// ggsteer did not make it.
    #[error(
        "no ggsteer.edit in it: a card tells what ggsteer did to a file; give one that `ggsteer orthogonalize`, `abliterate` \
         or `export` wrote"
    )]
    NotOurs,
    /// A name that cannot stand in a command line.
    #[error("file name {name:?} has control characters: rename the file")]
    Name {
        /// The name.
        name: String,
    },
    /// A repository's name that is none.
    #[error("base model {found:?}: expected OWNER/NAME, as on the hub")]
    BaseModel {
        /// What was given.
        found: String,
    },
    /// A run of another file.
    #[error("the run wrote {found:?}, this file is {expected:?}")]
    OtherFile {
        /// The card's file.
        expected: String,
        /// What the run wrote.
        found: String,
    },
}

/// What a file is.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// A whole model.
    Model(ModelSummary),
    /// A LoRA adapter; the writers that it leaves as they are.
    Lora {
        /// `ggsteer.lora.left_out`.
        left_out: Vec<String>,
    },
    /// A direction, or a control vector made of one.
    ControlVector {
        /// The 0-based block.
        block: u32,
        /// Where it comes from.
        origin: Box<Provenance>,
    },
}

/// A card of one file, to be written as [`Card::readme`] and [`Card::modelfile`].
#[derive(Debug)]
pub struct Card {
    /// The file's name, without its folder.
    pub file: String,
    /// What it is.
    pub kind: Kind,
    /// What was done; nothing for a control vector, whose origin says it.
    pub record: Option<Record>,
    /// The repository of the model it was made from, as OWNER/NAME.
    pub base_model: Option<String>,
    /// `general.license`, `general.license.name` and `general.license.link`.
    pub license: [Option<String>; 3],
    /// `general.architecture` of the model.
    pub architecture: String,
    /// `general.name` of the model.
    pub name: Option<String>,
    /// Parts of a split model.
    pub n_parts: usize,
    /// Texts at which generation ends.
    pub stops: Vec<String>,
    /// Whether the file has a chat template.
    pub has_template: bool,
    /// The format of its chat template, where it is a known one.
    pub format: Option<&'static str>,
    /// What was measured.
    pub runs: Vec<Run>,
}

impl Card {
    /// The card of a file; `base_model` (OWNER/NAME) goes before what the file says.
    ///
    /// # Errors
    /// A file that ggsteer did not make, a name that is none, a run that wrote another file.
    pub fn new(file: &GgufFile, base_model: Option<&str>, runs: Vec<Run>) -> Result<Self, CardError> {
        let name =
            file.path().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        if name.is_empty() || name.chars().any(char::is_control) {
            return Err(CardError::Name { name });
        }
        if let Some(found) = base_model.filter(|name| !is_repository(name)) {
            return Err(CardError::BaseModel { found: found.into() });
        }
        let text =
            |key: &str| file.get_str(key).ok().filter(|text| !text.trim().is_empty()).map(str::to_owned);
        let record = Record::read(file);
        let kind = match (file.arch()?, file.get_str("general.type").ok()) {
            ("controlvector", _) => control_vector(file)?,
            (_, Some("adapter")) => Kind::Lora { left_out: strings(file.get("ggsteer.lora.left_out")) },
            _ => Kind::Model(ModelSummary::new(file)?),
        };
        if record.is_none() && !matches!(kind, Kind::ControlVector { .. }) {
            return Err(CardError::NotOurs);
        }
        for found in runs.iter().filter_map(|run| run.output.as_deref()).filter_map(file_name) {
            if found != name {
                return Err(CardError::OtherFile { expected: name, found });
            }
        }
        let architecture = match &kind {
            Kind::ControlVector { origin, .. } => origin.architecture.clone().unwrap_or_default(),
            _ => file.arch()?.to_owned(),
        };
        Ok(Self {
            name: match &kind {
                Kind::ControlVector { origin, .. } => origin.model_name.clone(),
                _ => text("general.name"),
            },
            file: name,
            record,
            base_model: base_model.map(str::to_owned).or_else(|| base_of(file)),
            license: ["general.license", "general.license.name", "general.license.link"].map(text),
            architecture,
            n_parts: file.n_parts(),
            stops: modelfile::stops(file),
            has_template: file.get("tokenizer.chat_template").is_some(),
            format: template::format_of(file),
            kind,
            runs,
        })
    }

    /// The model card: Markdown after YAML front matter, as the hub reads it.
    #[must_use]
    pub fn readme(&self) -> String {
        readme::write(self)
    }

    /// Ollama's `Modelfile`, to lie beside the file; none for what is no model in one file.
    #[must_use]
    pub fn modelfile(&self) -> Option<String> {
        (matches!(self.kind, Kind::Model(_)) && self.n_parts == 1).then(|| modelfile::write(self))
    }

    /// Command lines that run the file in llama.cpp's own programs and in Ollama, each with what it does.
    #[must_use]
    pub fn commands(&self) -> Vec<(&'static str, String)> {
        modelfile::commands(self)
    }
}

fn control_vector(file: &GgufFile) -> Result<Kind, CardError> {
    let block = file.tensors().iter().find_map(|t| t.name.strip_prefix("direction.")?.parse().ok());
    let block = block.ok_or(CardError::NotOurs)?;
    Ok(Kind::ControlVector { block, origin: Box::new(Provenance::read(file)) })
}

fn strings(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::Array(Array::String(strings))) => strings.clone(),
        _ => Vec::new(),
    }
}

fn file_name(path: &str) -> Option<String> {
    Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned())
}

/// OWNER/NAME in the characters that the hub allows.
fn is_repository(name: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    name.split_once('/').is_some_and(|(owner, name)| part(owner) && part(name))
}

/// The repository that the file says it comes from.
fn base_of(file: &GgufFile) -> Option<String> {
    let keys = ["general.base_model.0.repo_url", "general.source.repo_url", "general.repo_url"];
    keys.iter().find_map(|key| {
        let url = file.get_str(key).ok()?;
        let name = url.trim_end_matches('/').strip_prefix("https://huggingface.co/")?;
        is_repository(name).then(|| name.to_owned())
    })
}
