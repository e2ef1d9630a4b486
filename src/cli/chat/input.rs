//! Where lines come from: an editor at a terminal, or whatever is piped in.

use std::io::{BufRead, ErrorKind, IsTerminal, StdinLock};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};

use super::command::{goes_on, names};
use crate::cli::ui::warn;

/// What came in.
pub enum Input {
    /// A line, or several that belong together.
    Line(String),
    /// Ctrl-C at the prompt.
    Interrupted,
    /// Nothing more will come.
    End,
}

/// A source of lines.
pub enum Source {
    /// A person at a terminal.
    Terminal {
        /// Edits lines and remembers them.
        editor: Box<Editor<Help, FileHistory>>,
        /// Where they are remembered.
        history: Option<PathBuf>,
    },
    /// A program.
    Pipe {
        /// Stdin.
        lines: StdinLock<'static>,
        /// Lines read so far.
        n: usize,
    },
}

/// Lines remembered.
const HISTORY: usize = 1000;

impl Source {
    /// A line editor where stdin and stdout are a terminal, plain lines where not. The editor remembers lines in `history`.
    pub fn open(history: Option<PathBuf>) -> Result<Self> {
        if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
            return Ok(Self::Pipe { lines: std::io::stdin().lock(), n: 0 });
        }
        let config = Config::builder().max_history_size(HISTORY)?.history_ignore_space(true).build();
        let mut editor = Editor::with_config(config).context("the terminal")?;
        editor.set_helper(Some(Help));
        let mut source = Self::Terminal { editor: Box::new(editor), history };
        source.remember(None);
        Ok(source)
    }

    /// Whether a person is at the other end.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The last line that was read, for an error in it; `None` at a terminal.
    pub fn line_number(&self) -> Option<usize> {
        match self {
            Self::Terminal { .. } => None,
            Self::Pipe { n, .. } => Some(*n),
        }
    }

    /// The next line.
    pub fn next(&mut self) -> Result<Input> {
        match self {
            Self::Terminal { editor, .. } => match editor.readline("> ") {
                Ok(line) => {
                    self.remember(Some(&line));
                    Ok(Input::Line(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Input::Interrupted),
                Err(ReadlineError::Eof) => Ok(Input::End),
                Err(error) => Err(error).context("the terminal"),
            },
            Self::Pipe { lines, n } => {
                let mut text = String::new();
                loop {
                    *n += 1;
                    let mut line = String::new();
                    let read = lines.read_line(&mut line).with_context(|| format!("stdin, line {n}"))?;
                    text += line.trim_end_matches(['\n', '\r']);
                    if read == 0 {
                        return Ok(if text.is_empty() { Input::End } else { Input::Line(text) });
                    }
                    if !goes_on(&text) {
                        return Ok(Input::Line(text));
                    }
                    text.push('\n');
                }
            }
        }
    }

    /// Adds a line to the history; without one, reads what was remembered. A history that cannot be kept is no reason not
    /// to talk: it is told once.
    fn remember(&mut self, line: Option<&str>) {
        let Self::Terminal { editor, history } = self else { return };
        let Some(path) = history.clone() else {
            if let Some(line) = line {
                // Fails on nothing that is in memory alone.
                let _ = editor.add_history_entry(line);
            }
            return;
        };
        let kept = match line {
            Some(line) => editor.add_history_entry(line).and_then(|_| editor.append_history(&path)),
            None => match editor.load_history(&path) {
                Err(ReadlineError::Io(e)) if e.kind() == ErrorKind::NotFound => Ok(()),
                other => other,
            },
        };
        if let Err(error) = kept {
            warn(&format!("{}: no history is kept: {error}", path.display()));
            *history = None;
        }
    }
}

/// The history file in the user's folder for state, which is made.
pub fn history_file() -> Option<PathBuf> {
    let absolute = |path: PathBuf| Some(path).filter(|p| p.is_absolute());
    let state = std::env::var_os("XDG_STATE_HOME").and_then(|v| absolute(v.into()));
    let state = state.or_else(|| Some(absolute(std::env::home_dir()?)?.join(".local/state")))?;
    let folder = state.join("ggsteer");
    if let Err(error) = std::fs::create_dir_all(&folder) {
        warn(&format!("{}: no history is kept: {error}", folder.display()));
        return None;
    }
    Some(folder.join("chat-history"))
}

/// Completes commands, and lets a line go on where it ends with a backslash.
pub struct Help;

impl Helper for Help {}
impl Highlighter for Help {}

impl Hinter for Help {
    type Hint = String;
}

impl Completer for Help {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = &line[..at];
        let fits = names().filter(|name| !begun.is_empty() && name.starts_with(begun));
        Ok((0, fits.map(|name| format!("{name} ")).collect()))
    }
}

impl Validator for Help {
    fn validate(&self, input: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(if goes_on(input.input()) { ValidationResult::Incomplete } else { ValidationResult::Valid(None) })
    }
}
