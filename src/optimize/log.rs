//! A search on disk: what it is of, and a line a trial, so that it can go on after a stop.
//!
//! JSON lines. The first says what the search is of; a line is written when its trial is done, and one
//! that a stop cut short is taken back.

#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Kernel, Outcome, Trial};
use crate::direction::Direction;
use crate::evaluate::run::Options;
use crate::input;
use crate::output::sync_folder;
use crate::runtime::{self, Prompt};

/// What a search is of: trials of another one must not be taken for its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// What the file is: always [`KIND`].
    pub log: String,
    /// The model's fingerprint.
    pub model: String,
    /// SHA-256 of each direction's values, in order.
    pub directions: Vec<String>,
    /// SHA-256 of the harmful prompts' tokens.
    pub harmful: String,
    /// SHA-256 of the harmless prompts' tokens.
    pub harmless: String,
    /// SHA-256 of what counts as a refusal.
    pub markers: String,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// Seed of the search.
    pub seed: u64,
}

impl Subject {
    /// A search on the model of this fingerprint, with \[harmful, harmless\] prompts.
    #[must_use]
    pub fn new(
        model: String,
        directions: &[Direction],
        [harmful, harmless]: [&[Prompt]; 2],
        options: &Options,
    ) -> Self {
        Self {
            log: KIND.into(),
            model,
            directions: directions.iter().map(Direction::sha256).collect(),
            harmful: runtime::digest(harmful),
            harmless: runtime::digest(harmless),
            markers: crate::digest([format!("{:?}", options.markers).into_bytes()]),
            max_tokens: options.max_tokens,
            seed: options.seed,
        }
    }
}

/// The first word of a log.
pub const KIND: &str = "ggsteer optimize 1";

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system said no.
    #[error("{}: {source}", path.display())]
    Io {
        /// The log.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Another search is adding to it.
    #[error("{}: is being written by another ggsteer; wait for it, or name another file", path.display())]
    Busy {
        /// The log.
        path: PathBuf,
    },
    /// Another kind of file, which is left as it is.
    #[error("{}: exists and is no log of `ggsteer optimize`; name another file", path.display())]
    NotALog {
        /// The file.
        path: PathBuf,
    },
    /// The log of another search.
    #[error(
        "{}: the log of another search: its {what} is not this one's; name another file, \
         or give what it was begun with",
        path.display()
    )]
    Other {
        /// The log.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// A line that is no trial.
    #[error("{}: line {line} is no trial: {why}", path.display())]
    Line {
        /// The log.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        why: String,
    },
}

/// An open log, to be added to.
#[derive(Debug)]
pub struct Log {
    path: PathBuf,
    file: File,
}

impl Log {
    /// Opens the log at `path`, begun where there is none, and returns it with the trials it has.
    ///
    /// # Errors
    /// See [`LogError`]; a file that is no log of this search is left as it is.
    pub fn open(path: &Path, subject: &Subject) -> Result<(Self, Vec<Trial>), LogError> {
        let io = |source| LogError::Io { path: path.to_path_buf(), source };
        let exists = path.exists();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(!exists)
            .truncate(false)
            .open(path)
            .map_err(io)?;
        #[cfg(unix)]
        if rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            == Err(rustix::io::Errno::WOULDBLOCK)
        {
            return Err(LogError::Busy { path: path.to_path_buf() });
        }
        let text = input::read_from(&mut file, input::JSON).map_err(io)?;
        // What follows the last line break was cut short.
        let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let mut log = Self { path: path.to_path_buf(), file };
        let first = serde_json::to_string(subject).map_err(|e| io(e.into()))?;
        if whole == 0 {
            // Empty, or the first line cut short; nothing else begins like it.
            if !first.as_bytes().starts_with(&text) {
                return Err(LogError::NotALog { path: path.to_path_buf() });
            }
            log.truncate(0)?;
            log.line(&first)?;
            sync_folder(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")));
            return Ok((log, Vec::new()));
        }
        let text = str::from_utf8(&text[..whole]);
        let text = text.map_err(|_| LogError::NotALog { path: path.to_path_buf() })?;
        let mut lines = text.lines();
        let found: Option<Subject> = lines.next().and_then(|line| serde_json::from_str(line).ok());
        let found = found.filter(|found| found.log == KIND);
        let found = found.ok_or_else(|| LogError::NotALog { path: path.to_path_buf() })?;
        if let Some(what) = subject.difference(&found) {
            return Err(LogError::Other { path: path.to_path_buf(), what });
        }
        let trial = |(i, line): (usize, &str)| {
            let wrong = |why: String| LogError::Line { path: path.to_path_buf(), line: i + 2, why };
            let trial: Trial = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
            trial.check(i, subject.directions.len()).map_err(|why| wrong(why.into()))?;
            Ok(trial)
        };
        let trials = lines.enumerate().map(trial).collect::<Result<Vec<Trial>, LogError>>()?;
        log.truncate(whole as u64)?;
        Ok((log, trials))
    }

    /// Adds a trial.
    ///
    /// # Errors
    /// [`LogError::Io`].
    pub fn add(&mut self, trial: &Trial) -> Result<(), LogError> {
        let io = |source| LogError::Io { path: self.path.clone(), source };
        let line = serde_json::to_string(trial).map_err(|e| io(e.into()))?;
        self.line(&line)
    }

    fn truncate(&mut self, len: u64) -> Result<(), LogError> {
        let cut = self.file.set_len(len).and_then(|()| self.file.seek(SeekFrom::End(0)));
        cut.map(|_| ()).map_err(|source| LogError::Io { path: self.path.clone(), source })
    }

    fn line(&mut self, line: &str) -> Result<(), LogError> {
        let written =
            self.file.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|source| LogError::Io { path: self.path.clone(), source })
    }
}

impl Subject {
    /// What the other one differs in, if anything.
    fn difference(&self, other: &Self) -> Option<&'static str> {
        let same = [
            ("model", self.model == other.model),
            ("list of directions", self.directions == other.directions),
            ("set of harmful prompts (or chat template)", self.harmful == other.harmful),
            ("set of harmless prompts (or chat template)", self.harmless == other.harmless),
            ("list of markers", self.markers == other.markers),
            ("--max-tokens", self.max_tokens == other.max_tokens),
            ("--seed", self.seed == other.seed),
        ];
        same.into_iter().find(|(_, same)| !same).map(|(what, _)| what)
    }
}

impl Trial {
    /// What is wrong with the trial at `index` of a search over so many directions.
    fn check(&self, index: usize, n_directions: usize) -> Result<(), &'static str> {
        let Outcome { n, answered, refused, broken, .. } = self.outcome;
        if self.point.is_none() != (index == 0) {
            return Err("trial 0, and no other, is the plain ablation");
        }
        if [answered, refused, broken].iter().any(|&count| count > n) {
            return Err("it counts more answers than there are prompts");
        }
        let Some(point) = self.point else { return Ok(()) };
        if point.direction >= n_directions {
            return Err("there is no such direction");
        }
        let sound = |kernel: &Kernel| {
            let Kernel { peak, floor, centre, width } = *kernel;
            (0.0..=2.0).contains(&peak) && (0.0..=1.0).contains(&floor) && centre.is_finite() && width >= 1.0
        };
        if !sound(&point.attention) || !sound(&point.ffn) {
            return Err("peak must lie in 0 to 2, floor in 0 to 1, and width be 1 or more");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::interval::Mean;
    use crate::optimize::{Point, Space, propose};

    fn subject() -> Subject {
        Subject {
            log: KIND.into(),
            model: "m".into(),
            directions: vec!["d".into()],
            harmful: "a".into(),
            harmless: "b".into(),
            markers: "c".into(),
            max_tokens: 8,
            seed: 3,
        }
    }

    fn trial(before: &[Trial]) -> Trial {
        let space = Space { n_directions: 1, n_block: 4 };
        let kl = Mean { n: 2, mean: 0.123_456_789, low: 0.1, high: f64::NAN };
        let outcome = Outcome { n: 4, answered: before.len(), refused: 1, broken: 0, kl };
        let point = (!before.is_empty()).then(|| propose(space, 3, before));
        Trial { point, outcome }
    }

    #[test]
    fn a_log_gives_its_trials_back_and_drops_what_was_cut_short() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        let (mut log, mut trials) = Log::open(&path, &subject()).unwrap();
        assert!(trials.is_empty());
        for _ in 0..3 {
            let next = trial(&trials);
            log.add(&next).unwrap();
            trials.push(next);
        }
        drop(log);
        let whole = std::fs::read(&path).unwrap();
        let same = |read: &[Trial]| format!("{read:?}") == format!("{trials:?}");
        assert!(same(&Log::open(&path, &subject()).unwrap().1));
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let (mut log, read) = Log::open(&path, &subject()).unwrap();
        assert_eq!(read.len(), 2);
        log.add(&trials[2]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        #[cfg(unix)]
        assert!(matches!(Log::open(&path, &subject()), Err(LogError::Busy { .. })));
        drop(log);
        std::fs::write(&path, &whole[..9]).unwrap();
        assert!(Log::open(&path, &subject()).unwrap().1.is_empty(), "its first line was cut short");
    }

    #[test]
    fn the_log_of_something_else_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log.jsonl");
        Log::open(&path, &subject()).unwrap();
        let other = Subject { seed: 4, ..subject() };
        let error = Log::open(&path, &other).unwrap_err().to_string();
        assert!(error.contains("log.jsonl: the log of another search: its --seed"), "{error}");
        let other = Subject { harmless: String::new(), ..subject() };
        assert!(Log::open(&path, &other).unwrap_err().to_string().contains("harmless prompts"));
        for text in ["a story\n", "a story", "{}\n", "{\"log\":\"ggsteer optimize 0\"}\n"] {
            std::fs::write(&path, text).unwrap();
            let error = Log::open(&path, &subject()).unwrap_err().to_string();
            assert!(error.contains("no log of"), "{error}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        }
        let head = serde_json::to_string(&subject()).unwrap();
        let second = trial(&[trial(&[])]);
        let far = Trial { point: second.point.map(|p| Point { direction: 1, ..p }), ..second };
        let lines = [trial(&[]), far].map(|t| serde_json::to_string(&t).unwrap());
        let mut flat = second;
        flat.point.as_mut().unwrap().ffn.width = 0.0;
        let flat = [lines[0].clone(), serde_json::to_string(&flat).unwrap()].join("\n");
        let far = lines.join("\n");
        let cases =
            [(lines[1].clone(), "line 2"), (far, "line 3"), (flat, "line 3"), ("{}".into(), "line 2")];
        for (text, line) in cases {
            std::fs::write(&path, format!("{head}\n{text}\n")).unwrap();
            let error = Log::open(&path, &subject()).unwrap_err().to_string();
            assert!(error.contains(&format!("{line} is no trial")), "{error}");
        }
    }
}
