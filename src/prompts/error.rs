//! Why a contrast set could not be loaded.

use std::path::PathBuf;

use super::hub::HubError;

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
    /// A spec that has no meaning.
    #[error("{spec}: {why}")]
    BadSpec {
        /// The spec.
        spec: String,
        /// What is wrong with it.
        why: String,
    },
    /// A slice that takes nothing, or more than there is.
    #[error("{spec}: the slice [{slice}] {why}")]
    BadSlice {
        /// The spec.
        spec: String,
        /// The slice in it.
        slice: String,
        /// What is wrong with it.
        why: String,
    },
    /// A split was asked for where there are none.
    #[error(
        "{}: a file has no splits, yet \"{split}\" was asked for; a slice is written [FROM:TO]",
        path.display()
    )]
    NoSplits {
        /// The file.
        path: PathBuf,
        /// The split asked for.
        split: String,
    },
    /// The split is not there.
    #[error("{at}: no split \"{split}\", found {}{}", found.join(", "), near(split, found))]
    UnknownSplit {
        /// The folder or dataset.
        at: String,
        /// The split asked for.
        split: String,
        /// The splits there are.
        found: Vec<String>,
    },
    /// Several splits, none of them called train.
    #[error("{at}: which split holds the prompts? found {}; write [{}] after it", found.join(", "), found[0])]
    WhichSplit {
        /// The folder or dataset.
        at: String,
        /// The splits there are.
        found: Vec<String>,
    },
    /// Several files or folders that are not pieces of one set.
    #[error("{at}: which file holds the prompts? found {}; write {at}/{}", found.join(", "), found[0])]
    WhichFile {
        /// The folder or dataset.
        at: String,
        /// The first of them.
        found: Vec<String>,
    },
    /// A folder without a file of a known format.
    #[error("{at}: no prompt file in it, expected {FORMATS}")]
    NoFiles {
        /// The folder or dataset.
        at: String,
    },
    /// The extension is none of those known.
    #[error("{}: unknown prompt format \".{extension}\", expected {FORMATS}", path.display())]
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
    #[error("{}: {at}: not UTF-8", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// The line or row.
        at: String,
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
    /// A parquet file that does not parse.
    #[error("{}: not a sound parquet file: {message}", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        message: String,
    },
    /// The column is not there, or holds something other than text.
    #[error("{}: {at}: no text in column \"{column}\", found {}{}", path.display(), list(found), near(column, found))]
    WrongColumn {
        /// The file.
        path: PathBuf,
        /// The line, item or schema.
        at: String,
        /// The column asked for.
        column: String,
        /// The columns there are.
        found: Vec<String>,
    },
    /// The column holds lists or records in place of text.
    #[error(
        "{}: column \"{column}\" is nested ({}), expected plain text; found {}",
        path.display(),
        fields.join(", "),
        list(found)
    )]
    Nested {
        /// The file.
        path: PathBuf,
        /// The column asked for.
        column: String,
        /// What it consists of.
        fields: Vec<String>,
        /// The columns there are.
        found: Vec<String>,
    },
    /// No column was asked for and none is the obvious one.
    #[error(
        "{}: {at}: which column holds the prompts? found {}; write PATH:COLUMN",
        path.display(),
        list(found)
    )]
    AmbiguousColumn {
        /// The file.
        path: PathBuf,
        /// The line, item or schema.
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
    /// The hub, or its cache on this machine.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// The known formats, for people.
pub(super) const FORMATS: &str = "txt, csv, tsv, json, jsonl or parquet";

fn near(name: &str, found: &[String]) -> String {
    // A column of that name may be there, with something else in it.
    let others = found.iter().map(String::as_str).filter(|other| *other != name);
    crate::near::did_you_mean(name, others)
}

fn list(columns: &[String]) -> String {
    if columns.is_empty() { "no columns".to_owned() } else { format!("columns {}", columns.join(", ")) }
}
