//! A conversation as a file: Markdown to be read, or JSON lines.

use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

use super::{Answer, Chat, ChatError, Steering};
use crate::output::{OutputError, OutputFile};
use crate::runtime::Finish;

/// How a conversation is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Headings and, so that nothing in it is taken for markup, fenced texts.
    Markdown,
    /// A [`Record`] a line.
    JsonLines,
}

impl Format {
    /// The format that a file's extension asks for.
    ///
    /// # Errors
    /// [`ChatError::Format`] for any but `.md` and `.jsonl`.
    pub fn of(path: &Path) -> Result<Self, ChatError> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("md") => Ok(Self::Markdown),
            Some("jsonl") => Ok(Self::JsonLines),
            _ => Err(ChatError::Format { path: path.display().to_string() }),
        }
    }
}

/// An answer with all that belongs to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record<'a> {
    /// The turn, from 1.
    pub turn: usize,
    /// The system prompt.
    pub system: Option<&'a str>,
    /// What the user said.
    pub user: &'a str,
    /// What the model said.
    pub answer: String,
    /// Why it ended.
    pub finish: Finish,
    /// What was switched on.
    pub steering: Steering,
    /// Tokens of the conversation that it answers.
    pub n_prompt_tokens: usize,
    /// Those of them that went through the model for it.
    pub n_evaluated: usize,
    /// Tokens of the answer.
    pub n_tokens: usize,
    /// The oldest turns that the model was not told of when last asked.
    pub n_left_out: usize,
    /// What each direction read at each token of the answer.
    pub readings: Vec<Readings<'a>>,
}

/// What a direction read, a value for each token.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Readings<'a> {
    /// The direction's name.
    pub direction: &'a str,
    /// The 0-based block at whose output it was read.
    pub block: usize,
    /// r·x, see [`super::Piece::readings`].
    pub values: Vec<f32>,
}

impl Chat<'_> {
    /// An answer to the `turn`-th turn (0-based), as a record.
    ///
    /// # Panics
    /// There is no such turn.
    #[must_use]
    pub fn record<'a>(&'a self, turn: usize, answer: &Answer) -> Record<'a> {
        let readings = (self.directions().read().into_iter().enumerate())
            .map(|(i, named)| Readings {
                direction: &named.name,
                block: named.direction.block,
                values: answer.readings(i).collect(),
            })
            .collect();
        Record {
            turn: turn + 1,
            system: self.system(),
            user: &self.turns()[turn].user,
            answer: answer.text(),
            finish: answer.finish,
            steering: answer.steering,
            n_prompt_tokens: answer.n_prompt_tokens,
            n_evaluated: answer.n_evaluated,
            n_tokens: answer.n_tokens,
            n_left_out: self.n_left_out(),
            readings,
        }
    }

    /// Writes the conversation, whole or not at all; `inputs` are files that it must not replace, and `force` lets it
    /// replace another.
    ///
    /// # Errors
    /// [`ChatError::Format`], [`ChatError::NoTurn`], [`ChatError::Output`].
    pub fn save(&self, path: &Path, force: bool, inputs: &[&Path]) -> Result<(), ChatError> {
        let format = Format::of(path)?;
        if self.turns().is_empty() {
            return Err(ChatError::NoTurn);
        }
        let mut out = OutputFile::create(path, force, inputs)?;
        let written = match format {
            Format::Markdown => out.write_all(self.markdown().as_bytes()),
            Format::JsonLines => (self.turns().iter().enumerate()).try_for_each(|(i, turn)| {
                serde_json::to_writer(&mut out, &self.record(i, &turn.answer))?;
                out.write_all(b"\n")
            }),
        };
        written.map_err(|source| OutputError::Io { path: path.to_path_buf(), doing: "write it", source })?;
        Ok(out.commit()?)
    }

    fn markdown(&self) -> String {
        let path = self.session.model().path();
        let model = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let mut text = format!("# A conversation with {}\n\n", inline(&model));
        for named in self.directions().read() {
            text += &format!("- direction {}: block {}\n", inline(&named.name), named.direction.block);
        }
        if let Some(system) = self.system() {
            text += &format!("\n## System\n\n{}", fenced(system));
        }
        for turn in self.turns() {
            let Answer { steering, finish, .. } = &turn.answer;
            let end = match finish {
                Finish::Stop => "",
                Finish::Length => ", cut at the most tokens",
                Finish::Stopped => ", stopped",
            };
            text += &format!("\n## User\n\n{}", fenced(&turn.user));
            text += &format!("\n## Model ({steering}{end})\n\n{}", fenced(&turn.answer.text()));
        }
        text
    }
}

/// A name as code, on one line.
fn inline(name: &str) -> String {
    format!("`{}`", name.replace(|c: char| c == '`' || c.is_control(), "?"))
}

/// A text in a fence that is longer than any row of backticks in it; of control characters, line feeds and tabs alone.
fn fenced(text: &str) -> String {
    let rows = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(rows.max(2) + 1);
    let text = text.replace(|c: char| c.is_control() && c != '\n' && c != '\t', "\u{fffd}");
    format!("{fence}text\n{}\n{fence}\n", text.trim_end_matches('\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_extension_says_how_it_is_written() {
        let of = |path: &str| Format::of(Path::new(path));
        assert_eq!(of("a/b.md").unwrap(), Format::Markdown);
        assert_eq!(of("b.jsonl").unwrap(), Format::JsonLines);
        assert_eq!(
            of("b.txt").unwrap_err().to_string(),
            "b.txt: ends in neither .md (to be read) nor .jsonl (one JSON object a turn)"
        );
    }

    #[test]
    fn no_text_ends_its_fence() {
        assert_eq!(fenced("a\n"), "```text\na\n```\n");
        assert_eq!(fenced("x```\n<b>\u{1b}[31m"), "````text\nx```\n<b>\u{fffd}[31m\n````\n");
        assert_eq!(inline("a`b\n"), "`a?b?`");
    }
}
