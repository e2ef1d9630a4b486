//! A file from which interrupted scoring goes on.
//!
//! JSON: what the scores are of, in words and hashes, and the scores as the 16 hexadecimal digits of their bits, so that
//! they come back exactly. It is replaced as a whole, through a temporary file and a rename. Work is saved in slices that
//! are computed again from their beginning, in the same batches: a run that was interrupted ends with the bits of one
//! that was not.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::grid::RefusalTokens;
use crate::input;
use crate::output::{OutputError, OutputFile};

/// Between two savings.
const INTERVAL: Duration = Duration::from_millis(500);

/// Why scoring cannot go on from a file, or not be saved to it.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It cannot be read.
    #[error("{}: cannot read it: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is something else, or damaged.
    #[error("{}: not a checkpoint of ggsteer ({why}); delete it, or begin anew with --restart", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// It was made by another run.
    #[error(
        "{}: is a checkpoint of another run: its {what} is {found}, here it is {expected}; delete it, or begin anew with \
         --restart",
        path.display()
    )]
    Differs {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
        /// In the file.
        found: String,
        /// In this run.
        expected: String,
    },
    /// It could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// It could not be written.
    #[error(transparent)]
    Write(#[from] std::io::Error),
}

/// A candidate's scores: for each sheet and measure, those on the first prompts.
pub(super) type Row = [[Vec<f64>; 3]; 2];

/// What has been computed so far, and where it is kept.
#[derive(Debug, Default)]
pub struct Checkpoint {
    path: Option<PathBuf>,
    restart: bool,
    /// Those of further steps.
    steps: Vec<PathBuf>,
    identity: Vec<(String, String)>,
    saved: Option<Instant>,
    pub(super) refusal_tokens: Option<RefusalTokens>,
    /// Tokens that the scores took.
    pub(super) n_evaluated: u64,
    pub(super) rows: Vec<Row>,
}

#[derive(Serialize, Deserialize)]
struct File {
    format: String,
    identity: Vec<(String, String)>,
    refusal_tokens: Option<Tokens>,
    n_evaluated: u64,
    rows: Vec<[[String; 3]; 2]>,
}

#[derive(Serialize, Deserialize)]
struct Tokens {
    ids: Vec<usize>,
    texts: Vec<String>,
    coverage: Option<String>,
}

/// The first words of every such file.
const FORMAT: &str = "ggsteer-checkpoint 1";

impl Checkpoint {
    /// One that is never saved.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// One at `path`, to go on from where it exists; with `restart` what is there is ignored, and replaced.
    #[must_use]
    pub fn at(path: &Path, restart: bool) -> Self {
        Self { path: Some(path.to_path_buf()), restart, ..Self::default() }
    }

    /// One for the n-th step of the same work, kept beside it and removed with it.
    pub(super) fn step(&mut self, n: usize) -> Self {
        let Some(path) = &self.path else { return Self::none() };
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        self.steps.push(name.into());
        Self::at(&self.steps[self.steps.len() - 1], self.restart)
    }

    /// Where it is kept.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Takes up what the file holds, after a check that it is of the same work: of this `identity` (what, and its value)
    /// and so many candidates. Where there is no file, nothing is done yet.
    ///
    /// # Errors
    /// See [`CheckpointError`]: a file that cannot be read, is none of ours or damaged, or is of other work.
    pub fn begin(
        &mut self,
        identity: Vec<(String, String)>,
        n_candidates: usize,
    ) -> Result<(), CheckpointError> {
        self.identity = identity;
        self.rows = vec![Row::default(); n_candidates];
        let Some(path) = self.path.clone().filter(|path| !self.restart && path.exists()) else {
            return Ok(());
        };
        let text = input::read_text(&path, input::JSON)
            .map_err(|source| CheckpointError::Read { path: path.clone(), source })?;
        let kind = |why: String| CheckpointError::Kind { path: path.clone(), why };
        let file: File = serde_json::from_str(&text).map_err(|e| kind(e.to_string()))?;
        if file.format != FORMAT {
            return Err(kind(format!("it says {:?}, not {FORMAT:?}", file.format)));
        }
        for (what, expected) in &self.identity {
            let found = file.identity.iter().find(|(w, _)| w == what).map_or("missing", |(_, v)| v);
            if found != expected {
                let (what, found, expected) = (what.clone(), found.to_string(), expected.clone());
                return Err(CheckpointError::Differs { path, what, found, expected });
            }
        }
        let rows: Option<Vec<Row>> = file.rows.iter().map(decode_row).collect();
        let rows = rows.filter(|rows| rows.len() == n_candidates);
        self.rows = rows.ok_or_else(|| kind("its scores are damaged".into()))?;
        self.n_evaluated = file.n_evaluated;
        self.refusal_tokens = match file.refusal_tokens {
            None => None,
            Some(Tokens { ids, texts, coverage }) => {
                let coverage = coverage.map(|hex| {
                    let one = decode(&hex).and_then(|values| values.first().copied());
                    one.ok_or_else(|| kind("its refusal tokens are damaged".into()))
                });
                Some(RefusalTokens { ids, texts, coverage: coverage.transpose()? })
            }
        };
        Ok(())
    }

    /// Whether anything is there to go on from.
    pub(super) fn is_begun(&self) -> bool {
        self.rows.iter().flatten().flatten().any(|scores| !scores.is_empty())
    }

    /// Saves it unless that was done just before.
    pub(super) fn save_now_and_then(&mut self) -> Result<(), CheckpointError> {
        if self.saved.is_some_and(|saved| saved.elapsed() < INTERVAL) {
            return Ok(());
        }
        self.save()
    }

    /// Saves it.
    pub(super) fn save(&mut self) -> Result<(), CheckpointError> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = File {
            format: FORMAT.into(),
            identity: self.identity.clone(),
            refusal_tokens: self.refusal_tokens.clone().map(|tokens| Tokens {
                ids: tokens.ids,
                texts: tokens.texts,
                coverage: tokens.coverage.map(|coverage| encode(&[coverage])),
            }),
            n_evaluated: self.n_evaluated,
            rows: self
                .rows
                .iter()
                .map(|row| row.each_ref().map(|m| m.each_ref().map(|s| encode(s))))
                .collect(),
        };
        let mut out = OutputFile::create(path, true, &[])?;
        out.write_all(serde_json::to_string(&file).map_err(std::io::Error::from)?.as_bytes())?;
        out.commit()?;
        self.saved = Some(Instant::now());
        Ok(())
    }

    /// Removes the file, and those of further steps, once what it was for is done.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self) -> Result<(), CheckpointError> {
        let remove = |path: &PathBuf| match fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        };
        self.steps.iter().chain(&self.path).try_for_each(remove)
    }
}

fn encode(scores: &[f64]) -> String {
    scores.iter().map(|score| format!("{:016x}", score.to_bits())).collect()
}

fn decode(hex: &str) -> Option<Vec<f64>> {
    let digits = hex.as_bytes().chunks(16);
    digits
        .map(|digits| {
            let digits = std::str::from_utf8(digits).ok().filter(|digits| digits.len() == 16)?;
            u64::from_str_radix(digits, 16).ok().map(f64::from_bits)
        })
        .collect()
}

fn decode_row(row: &[[String; 3]; 2]) -> Option<Row> {
    let mut scores = Row::default();
    for (into, hex) in scores.iter_mut().flatten().zip(row.iter().flatten()) {
        *into = decode(hex)?;
    }
    Some(scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(seed: &str) -> Vec<(String, String)> {
        vec![("model".into(), "abc".into()), ("seed".into(), seed.into())]
    }

    fn bits(rows: &[Row]) -> Vec<u64> {
        rows.iter().flatten().flatten().flatten().map(|score| score.to_bits()).collect()
    }

    #[test]
    fn scores_come_back_to_the_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let mut first = Checkpoint::at(&path, false);
        first.begin(identity("1"), 2).unwrap();
        assert!(!first.is_begun());
        first.rows[1][0][2] = vec![0.1 + 0.2, f64::NAN, -0.0, f64::MIN_POSITIVE / 3.0];
        first.n_evaluated = 77;
        first.refusal_tokens =
            Some(RefusalTokens { ids: vec![4], texts: vec!["I".into()], coverage: Some(2.0 / 3.0) });
        first.save().unwrap();
        let mut second = Checkpoint::at(&path, false);
        second.begin(identity("1"), 2).unwrap();
        assert_eq!(bits(&second.rows), bits(&first.rows));
        assert!(second.is_begun() && second.n_evaluated == 77);
        assert_eq!(second.refusal_tokens.unwrap().coverage, Some(2.0 / 3.0));
        let mut anew = Checkpoint::at(&path, true);
        anew.begin(identity("2"), 2).unwrap();
        assert!(!anew.is_begun());
        second.refusal_tokens = None;
        anew.remove().unwrap();
        assert!(!path.exists());
        anew.remove().unwrap();
    }

    #[test]
    fn another_run_and_another_file_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        let mut first = Checkpoint::at(&path, false);
        first.begin(identity("1"), 2).unwrap();
        first.save().unwrap();
        let begin = |seed, n| Checkpoint::at(&path, false).begin(identity(seed), n).unwrap_err().to_string();
        assert!(
            begin("2", 2).contains("its seed is 1, here it is 2; delete it, or begin anew with --restart")
        );
        assert!(begin("1", 3).contains("its scores are damaged"));
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, &good[..good.len() / 2]).unwrap();
        assert!(begin("1", 2).contains("not a checkpoint of ggsteer (EOF"));
        fs::write(&path, good.replace("checkpoint 1", "checkpoint 0")).unwrap();
        assert!(begin("1", 2).contains("it says \"ggsteer-checkpoint 0\""));
        fs::write(&path, good.replace("\"\"", "\"12\"")).unwrap();
        assert!(begin("1", 2).contains("its scores are damaged"));
    }
}
