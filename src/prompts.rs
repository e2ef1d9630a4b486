//! Loading contrast sets.
//!
//! A *spec* is what a user writes after `--harmful` or `--harmless`: a path, and for formats with columns
//! optionally `:COLUMN` after it. Formats go by the extension:
//!
//! | extension | shape |
//! |---|---|
//! | `.txt`, none | one prompt a line; white space around a line is dropped |
//! | `.jsonl`, `.ndjson` | one string or one object a line |
//! | `.json` | an array of strings or of objects |
//! | `.csv` | a header, then one record a prompt |
//!
//! Without a column, the one text column is taken, or else the first of [`USUAL_COLUMNS`] there is. Blank
//! prompts are left out; duplicates are kept and counted.

#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

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

/// Why a contrast set could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The file cannot be read at all.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The extension is none of those known.
    #[error("{}: unknown prompt format \".{extension}\", expected txt, json, jsonl or csv", path.display())]
    UnknownFormat {
        /// The file.
        path: PathBuf,
        /// Its extension.
        extension: String,
    },
    /// A column was asked of a text file.
    #[error("{}: a text file has no columns, yet column \"{column}\" was asked for", path.display())]
    NoColumns {
        /// The file.
        path: PathBuf,
        /// The column asked for.
        column: String,
    },
    /// Bytes that are not UTF-8.
    #[error("{}: line {line}: not UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The 1-based line.
        line: usize,
    },
    /// JSON or CSV that does not parse.
    #[error("{}: line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The 1-based line.
        line: usize,
        /// What the parser said.
        message: String,
    },
    /// The column is not there, or holds something other than text.
    #[error("{}: {at}: no text in column \"{column}\", found {}", path.display(), list(found))]
    WrongColumn {
        /// The file.
        path: PathBuf,
        /// The line or item.
        at: String,
        /// The column asked for.
        column: String,
        /// The columns there are.
        found: Vec<String>,
    },
    /// No column was asked for and none is the obvious one.
    #[error("{}: {at}: which column holds the prompts? found {}; write PATH:COLUMN", path.display(), list(found))]
    AmbiguousColumn {
        /// The file.
        path: PathBuf,
        /// The line or item.
        at: String,
        /// The columns there are.
        found: Vec<String>,
    },
    /// A JSON value of the wrong kind.
    #[error("{}: {at}: expected {expected}, found {found}", path.display())]
    WrongShape {
        /// The file.
        path: PathBuf,
        /// The line or item.
        at: String,
        /// What should be there.
        expected: &'static str,
        /// What is there.
        found: &'static str,
    },
    /// Nothing but blanks.
    #[error("{}: no prompts in it", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
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

    /// Loads `PATH` or `PATH:COLUMN`.
    ///
    /// If the whole spec is a file it is that file, whatever colons its name has; a column is cut off at a
    /// colon only where a file with columns stands to its left.
    ///
    /// # Errors
    /// See [`PromptError`]; each names the file and, where there is one, the line.
    pub fn load(spec: &str) -> Result<Self, PromptError> {
        let (path, column) = split_spec(spec);
        let bytes = std::fs::read(path).map_err(|source| PromptError::Read { path: path.into(), source })?;
        let prompts = parse(path, &bytes, column)?;
        if prompts.is_empty() {
            return Err(PromptError::Empty { path: path.into() });
        }
        Ok(Self::new(prompts, spec))
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

/// How many different prompts stand in both sets: training prompts among the validation prompts, say.
#[must_use]
pub fn overlap(a: &PromptSet, b: &PromptSet) -> usize {
    let a: HashSet<&String> = a.prompts.iter().collect();
    b.prompts.iter().collect::<HashSet<_>>().intersection(&a).count()
}

/// The file of a spec, without its column.
#[must_use]
pub fn path_of(spec: &str) -> &Path {
    split_spec(spec).0
}

/// `PATH` or `PATH:COLUMN`, told apart by which files there are. When there is none, the whole spec is the path.
fn split_spec(spec: &str) -> (&Path, Option<&str>) {
    let whole = Path::new(spec);
    if whole.is_file() {
        return (whole, None);
    }
    spec.rmatch_indices(':')
        .map(|(at, _)| (Path::new(&spec[..at]), &spec[at + 1..]))
        .find(|(path, column)| !column.is_empty() && path.is_file())
        .map_or((whole, None), |(path, column)| (path, Some(column)))
}

fn parse(path: &Path, bytes: &[u8], column: Option<&str>) -> Result<Vec<String>, PromptError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].split(|&b| b == b'\n').count();
        PromptError::NotUtf8 { path: path.into(), line }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
    let mut prompts = match extension.as_str() {
        "" | "txt" => match column {
            None => text.lines().map(|line| line.trim().to_owned()).collect(),
            Some(column) => {
                return Err(PromptError::NoColumns { path: path.into(), column: column.into() });
            }
        },
        "jsonl" | "ndjson" => parse_jsonl(path, text, column)?,
        "json" => parse_json(path, text, column)?,
        "csv" => parse_csv(path, text, column)?,
        _ => {
            return Err(PromptError::UnknownFormat { path: path.into(), extension });
        }
    };
    prompts.retain(|prompt| !prompt.trim().is_empty());
    Ok(prompts)
}

fn parse_jsonl(path: &Path, text: &str, column: Option<&str>) -> Result<Vec<String>, PromptError> {
    let mut chosen = column.map(str::to_owned);
    let mut prompts = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value: Value = serde_json::from_str(line).map_err(|error| syntax(path, i + 1, &error))?;
        prompts.push(take(path, &format!("line {}", i + 1), value, &mut chosen)?);
    }
    Ok(prompts)
}

fn parse_json(path: &Path, text: &str, column: Option<&str>) -> Result<Vec<String>, PromptError> {
    let value: Value = serde_json::from_str(text).map_err(|error| syntax(path, error.line(), &error))?;
    let Value::Array(items) = value else {
        let expected = "an array of strings or objects";
        return Err(PromptError::WrongShape {
            path: path.into(),
            at: "line 1".into(),
            expected,
            found: kind(&value),
        });
    };
    let mut chosen = column.map(str::to_owned);
    let items = items.into_iter().enumerate();
    items.map(|(i, item)| take(path, &format!("item {}", i + 1), item, &mut chosen)).collect()
}

/// The prompt in one JSON value. The first object settles the column for all.
fn take(path: &Path, at: &str, value: Value, chosen: &mut Option<String>) -> Result<String, PromptError> {
    let mut object = match value {
        Value::String(_) if chosen.is_some() => {
            let (expected, found) = ("an object", "a string");
            return Err(PromptError::WrongShape { path: path.into(), at: at.into(), expected, found });
        }
        Value::String(prompt) => return Ok(prompt),
        Value::Object(object) => object,
        other => {
            let (expected, found) = ("a string or an object", kind(&other));
            return Err(PromptError::WrongShape { path: path.into(), at: at.into(), expected, found });
        }
    };
    if chosen.is_none() {
        let texts: Vec<&str> =
            object.iter().filter(|(_, v)| v.is_string()).map(|(k, _)| k.as_str()).collect();
        let Some(guess) = guess(&texts) else {
            let found = object.keys().cloned().collect();
            return Err(PromptError::AmbiguousColumn { path: path.into(), at: at.into(), found });
        };
        *chosen = Some(guess.to_owned());
    }
    let column = chosen.as_deref().expect("set just above when it was not");
    match object.get_mut(column).map(Value::take) {
        Some(Value::String(prompt)) => Ok(prompt),
        _ => Err(PromptError::WrongColumn {
            path: path.into(),
            at: at.into(),
            column: column.to_owned(),
            found: object.keys().cloned().collect(),
        }),
    }
}

fn parse_csv(path: &Path, text: &str, column: Option<&str>) -> Result<Vec<String>, PromptError> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let failed = |error: &csv::Error| {
        let line = error.position().map_or(1, |position| position.line() as usize);
        syntax(path, line, error)
    };
    let header = reader.headers().map_err(|error| failed(&error))?.clone();
    let names: Vec<&str> = header.iter().map(str::trim).collect();
    let at = || "line 1".to_owned();
    let found = || names.iter().map(|&name| name.to_owned()).collect();
    let name = match column {
        Some(column) => column,
        None => guess(&names).ok_or_else(|| PromptError::AmbiguousColumn {
            path: path.into(),
            at: at(),
            found: found(),
        })?,
    };
    let index = names.iter().position(|&n| n == name).ok_or_else(|| PromptError::WrongColumn {
        path: path.into(),
        at: at(),
        column: name.to_owned(),
        found: found(),
    })?;
    let record = |record: csv::Result<csv::StringRecord>| match record {
        Ok(record) => Ok(record.get(index).unwrap_or_default().to_owned()),
        Err(error) => Err(failed(&error)),
    };
    reader.records().map(record).collect()
}

/// The only column, or the first of the usual ones (whatever their case).
fn guess<'a>(columns: &[&'a str]) -> Option<&'a str> {
    if let [only] = columns {
        return Some(only);
    }
    let usual = |&name: &&str| columns.iter().copied().find(|column| column.eq_ignore_ascii_case(name));
    USUAL_COLUMNS.iter().find_map(usual)
}

fn syntax(path: &Path, line: usize, error: &dyn std::fmt::Display) -> PromptError {
    PromptError::Syntax { path: path.into(), line, message: error.to_string() }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn list(columns: &[String]) -> String {
    if columns.is_empty() { "no columns".to_owned() } else { format!("columns {}", columns.join(", ")) }
}

#[cfg(test)]
mod tests;
