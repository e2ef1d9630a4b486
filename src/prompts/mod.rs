//! Loading contrast sets.
//!
//! A *spec* is what a user writes after `--harmful` or `--harmless`: `PLACE[:COLUMN][[SLICE]]`, where the
//! place is a file, a folder of files, or `hf:OWNER/NAME[@REVISION][/PATH]`, a dataset of the Hugging Face
//! hub. Of a folder or a dataset a split is taken: `[SPLIT]` or `[SPLIT[SLICE]]`, and `train` where none is
//! named. What exists under the name that was given is that file, whatever colons and brackets its name has.
//! Formats go by the extension:
//!
//! | extension | shape |
//! |---|---|
//! | `.txt`, none | one prompt a line; white space around a line is dropped |
//! | `.jsonl`, `.ndjson` | one string or one object a line |
//! | `.json` | an array of strings or of objects, or an object a line |
//! | `.csv`, `.tsv` | a header, then one record a prompt |
//! | `.parquet` | a column of text; nulls are left out |
//!
//! Without a column, the one text column is taken, or else the first of [`USUAL_COLUMNS`] there is. Blank
//! prompts are left out, and a slice counts those that remain; duplicates are kept and counted.
//!
//! ```
//! use ggsteer::prompts::PromptSet;
//!
//! let spec = concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples/prompts/restricted-test.txt[:10]");
//! let set = PromptSet::load(spec)?;
//! assert_eq!((set.len(), set.n_duplicates()), (10, 0));
//! # Ok::<(), ggsteer::prompts::PromptError>(())
//! ```

#![forbid(unsafe_code)]

mod error;
mod folder;
mod formats;
pub mod hub;
mod parquet;
mod spec;
pub mod split;
pub mod standard;

use std::collections::HashSet;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

pub use error::PromptError;
use hub::{Hub, Progress};
use spec::{Place, Slice, Spec};
pub use split::Sets;

/// Column names taken without asking, in this order.
pub const USUAL_COLUMNS: [&str; 6] = ["instruction", "prompt", "text", "question", "goal", "query"];

/// Prompts in their order, where they came from and a fingerprint of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptSet {
    /// The prompts, none of them blank.
    pub prompts: Vec<String>,
    /// The spec they were loaded from, or whatever the maker of the set called it.
    pub source: String,
    /// SHA-256, in lower-case hexadecimal, of every prompt followed by one zero byte.
    pub sha256: String,
}

impl PromptSet {
    /// A set made in memory: a subset of another, a test's. `source` is kept as it is.
    #[must_use]
    pub fn new(prompts: Vec<String>, source: impl Into<String>) -> Self {
        let mut hash = Sha256::new();
        for prompt in &prompts {
            hash.update(prompt.as_bytes());
            hash.update([0]);
        }
        let sha256 = crate::hex(&hash.finalize());
        Self { prompts, source: source.into(), sha256 }
    }

    /// Loads what a spec says, with the hub that the environment says.
    ///
    /// # Errors
    /// See [`PromptError`]; each names the file and, where there is one, the line.
    pub fn load(spec: &str) -> Result<Self, PromptError> {
        Self::load_from(spec, &Hub::from_env(), &mut |_| ())
    }

    /// As [`PromptSet::load`], from a given hub; `progress` hears of downloads.
    ///
    /// # Errors
    /// See [`PromptError`].
    pub fn load_from(text: &str, hub: &Hub, progress: &mut dyn FnMut(Progress)) -> Result<Self, PromptError> {
        let spec = Spec::parse(text)?;
        let prompts = match &spec.place {
            Place::Local(path) if path.is_dir() => {
                let root = folder::root(path);
                let at = path.display().to_string();
                let files = folder::choose(&at, &folder::list(&root)?, None, spec.split.as_deref())?;
                read_all(&spec, &files, |file| Ok(root.join(file)))?
            }
            Place::Local(path) => {
                if let Some(split) = &spec.split {
                    return Err(PromptError::NoSplits { path: path.clone(), split: split.clone() });
                }
                read_all(&spec, &[String::new()], |_| Ok(path.clone()))?
            }
            Place::Hub(address) => from_hub(&spec, address, hub, progress)?,
        };
        let Some(slice) = &spec.slice else { return Ok(Self::new(prompts, text)) };
        let range = slice.resolve(prompts.len(), text)?;
        Ok(Self::new(prompts[range].to_vec(), text))
    }

    /// How many prompts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there are none: never so for a loaded set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// How many prompts repeat an earlier one.
    #[must_use]
    pub fn n_duplicates(&self) -> usize {
        self.prompts.len() - self.prompts.iter().collect::<HashSet<_>>().len()
    }
}

/// The files on this machine that a spec leads to, to be kept from being overwritten; a file that is not
/// there is named all the same.
#[must_use]
pub fn files_of(spec: &str) -> Vec<PathBuf> {
    let below = |root: PathBuf| -> Vec<PathBuf> {
        folder::list(&root).unwrap_or_default().iter().map(|file| root.join(file)).collect()
    };
    match Spec::parse(spec).map(|spec| spec.place) {
        Ok(Place::Local(path)) if path.is_dir() => below(folder::root(&path)),
        Ok(Place::Local(path)) => vec![path],
        Ok(Place::Hub(address)) => Hub::from_env().cached(&address).map_or_else(Vec::new, below),
        Err(_) => Vec::new(),
    }
}

/// The prompts of some files one after the other, as many as the slice needs; `find` says where a file is.
fn read_all(
    spec: &Spec,
    files: &[String],
    mut find: impl FnMut(&str) -> Result<PathBuf, PromptError>,
) -> Result<Vec<String>, PromptError> {
    let enough = spec.slice.as_ref().and_then(Slice::enough);
    let mut prompts = Vec::new();
    let mut last = PathBuf::new();
    for file in files {
        if enough.is_some_and(|enough| prompts.len() >= enough) {
            break;
        }
        last = find(file)?;
        let enough = enough.map(|enough| enough - prompts.len());
        prompts.extend(formats::read(&last, spec.column.as_deref(), enough)?);
    }
    if prompts.is_empty() {
        return Err(PromptError::Empty { path: last });
    }
    Ok(prompts)
}

/// The prompts of a dataset of the hub: out of the cache where that has them all, or else downloaded.
fn from_hub(
    spec: &Spec,
    address: &spec::Address,
    hub: &Hub,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<String>, PromptError> {
    let at = address.to_string();
    let path = address.path.as_deref();
    let choose = |files: &[String], split| folder::choose(&at, files, path, split);
    let split = spec.split.as_deref();
    // What the cache holds may be a part, in which a split could look like the only one.
    let in_cache = split.or((!hub.offline && path.is_none()).then_some(folder::TRAIN));
    let cached = hub.cached(address);
    let chosen = cached.as_ref().map(|root| folder::list(root).and_then(|files| choose(&files, in_cache)));
    match (cached, chosen) {
        (Some(root), Some(Ok(files))) if folder::is_complete(&files) => {
            return read_all(spec, &files, |file| Ok(root.join(file)));
        }
        (_, chosen) if hub.offline => {
            let why = match chosen {
                Some(Ok(_)) => "a piece of the split is missing",
                Some(Err(_)) => "what was asked for is not",
                None => "it is not",
            };
            return Err(hub.not_cached(address, why).into());
        }
        _ => (),
    }
    let dataset = hub.list(address)?;
    let files = choose(&dataset.files(), split)?;
    read_all(spec, &files, |file| Ok(hub.fetch(address, &dataset, file, progress)?))
}

#[cfg(test)]
mod tests;
