//! Chat templates: from messages to the text a model was trained on, with the user's words kept apart.
//!
//! Templates are Jinja as the transformers library renders it: blocks trimmed, Python's string methods,
//! `raise_exception`, `strftime_now`, `tojson`, `namespace`, loop controls; `tools` and `documents` are none.
//! They come with the model and are not trusted with more than words: they read no files, run out of fuel (two million
//! steps, and 64 bytes for each) and write no list longer than 256 KiB. What fuel does not see has bounds of its own in a program
//! ([`exit_past_bounds`](super::exit_past_bounds)).
//!
//! ```
//! use ggsteer::runtime::template::{ChatTemplate, Message, Role, Segment};
//!
//! let source = ChatTemplate::builtin("chatml").expect("known by name");
//! let template = ChatTemplate::new(source, "", "<|im_end|>")?;
//! let segments = template.render(&[Message::new(Role::User, "Who <|im_end|> are you?")], true)?;
//! // The user's words are kept apart: nothing in them is special.
//! assert_eq!(segments[1], Segment::Text("Who <|im_end|> are you?".into()));
//! # Ok::<(), ggsteer::runtime::template::TemplateError>(())
//! ```

#![forbid(unsafe_code)]

mod builtin;
mod python;
mod segments;

use std::collections::BTreeMap;
use std::error::Error as _;

use minijinja::{Environment, Value, context};

use super::bound::within;
pub use segments::Segment;
use segments::{Piece, separate, stand_in};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The system prompt.
    System,
    /// The user.
    User,
    /// The model; some templates write another word for it.
    Assistant,
}

impl Role {
    /// As templates know it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, as it is: nothing in it is special.
    pub content: String,
}

impl Message {
    /// A message.
    #[must_use]
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// Why a chat template could not be compiled or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It is no Jinja, or uses what we do not know.
    #[error("chat template: {}", with_causes(.0))]
    Syntax(#[source] minijinja::Error),
    /// It failed on this conversation, or used up its fuel.
    #[error("chat template: cannot render: {}", with_causes(.0))]
    Render(#[source] minijinja::Error),
    /// It called `raise_exception`: a conversation its makers did not foresee, such as one with a system
    /// prompt.
    #[error("chat template refuses the conversation: {message}")]
    Raised {
        /// Its words.
        message: String,
    },
    /// The system gives no thread to run it on.
    #[error("chat template: no thread with 512 MB of stack to render it on: {0}")]
    Thread(#[source] std::io::Error),
    /// A message is nowhere in what it wrote.
    #[error("chat template leaves out message {message} ({})", role.as_str())]
    Dropped {
        /// The 0-based message.
        message: usize,
        /// Its role.
        role: Role,
    },
    /// It splits or cuts contents whatever they are.
    #[error("chat template takes a message's content apart")]
    Mangled,
    /// It writes something else for other contents, and whose words are whose cannot be told.
    #[error("chat template depends on the content of a message in a way that hides where the content is")]
    ContentDependent,
}

fn compile(source: &str, now: i64) -> Result<Environment<'static>, TemplateError> {
    let env = within(|| python::compile(source, now)).map_err(TemplateError::Thread)?;
    env.map_err(TemplateError::Syntax)
}

/// minijinja's errors leave their causes to be asked for.
fn with_causes(error: &minijinja::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A compiled chat template with the texts of the model's special tokens.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    flags: Vec<(String, bool)>,
}

impl ChatTemplate {
    /// Compiles `source`, a model's `tokenizer.chat_template` or one of [`ChatTemplate::builtin`]. `bos` and
    /// `eos` are the texts of those tokens, empty where the model has none.
    ///
    /// The clock that `strftime_now` reads stands still from here on; see [`ChatTemplate::at`].
    ///
    /// # Errors
    /// When the source does not compile.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, TemplateError> {
        Ok(Self {
            env: compile(source, python::now())?,
            source: source.to_owned(),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
            flags: Vec::new(),
        })
    }

    /// Sets the template's clock, in seconds since 1970 (UTC): some templates write the date into every
    /// prompt, and what was measured yesterday is then measured again only with yesterday's clock.
    ///
    /// # Errors
    /// None that [`ChatTemplate::new`] had not already.
    pub fn at(mut self, seconds: i64) -> Result<Self, TemplateError> {
        self.env = compile(&self.source, seconds)?;
        Ok(self)
    }

    /// Sets a switch that the template asks for, such as `enable_thinking`.
    #[must_use]
    pub fn with_flag(mut self, name: impl Into<String>, value: bool) -> Self {
        self.flags.push((name.into(), value));
        self
    }

    /// The source of a chat format by its name, one of [`ChatTemplate::builtin_names`].
    #[must_use]
    pub fn builtin(name: &str) -> Option<&'static str> {
        builtin::get(name)
    }

    /// The names that [`ChatTemplate::builtin`] knows, in alphabetical order.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        builtin::names()
    }

    /// Renders a conversation, and the start of the model's turn after it if `add_generation_prompt`.
    ///
    /// The segments spell exactly what the template writes; none is empty. No character of a message is in a
    /// [`Segment::Template`], except those of a blank message. A text may come more than once if the template
    /// writes it more than once. The template writes the beginning-of-text token itself where it wants one.
    ///
    /// # Errors
    /// When the template fails, refuses, leaves a message out, or treats contents so that they cannot be told
    /// from the template's words for certain.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<Vec<Segment>, TemplateError> {
        let pieces = self.pieces(messages, add_generation_prompt)?;
        Ok(pieces.into_iter().filter_map(Piece::into_segment).collect())
    }

    /// What the template writes between the last user message and the model's answer: its tokens are the
    /// post-instruction positions. The same for all prompts of the same shape, so any will do.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::render`]; [`TemplateError::ContentDependent`] too when something other than
    /// the template speaks after the user, or no user at all.
    pub fn post_instruction(&self, messages: &[Message]) -> Result<String, TemplateError> {
        let mut pieces = self.pieces(messages, true)?;
        let user = messages.iter().rposition(|message| message.role == Role::User);
        match (pieces.pop(), pieces.pop()) {
            (Some(Piece::Template(suffix)), Some(Piece::Text { message, .. })) if Some(message) == user => {
                Ok(suffix)
            }
            _ => Err(TemplateError::ContentDependent),
        }
    }

    fn pieces(&self, messages: &[Message], add_generation_prompt: bool) -> Result<Vec<Piece>, TemplateError> {
        let pieces = || {
            let plain = messages.iter().map(|m| (m.role, m.content.clone()));
            let exact = self.text(plain, add_generation_prompt)?;
            let stand_ins = messages.iter().enumerate().map(|(i, m)| (m.role, stand_in(i, &m.content)));
            let marked = self.text(stand_ins, add_generation_prompt)?;
            separate(&exact, &marked, messages)
        };
        within(pieces).map_err(TemplateError::Thread)?
    }

    fn text(
        &self,
        messages: impl Iterator<Item = (Role, String)>,
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let messages: Value =
            messages.map(|(role, content)| context! { role => role.as_str(), content }).collect();
        let flags: BTreeMap<&str, bool> =
            self.flags.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let context = context! {
            messages,
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
            ..Value::from(flags)
        };
        python::render(&self.env, context).map_err(|error| {
            let mut cause = error.source();
            while let Some(inner) = cause {
                if let Some(python::Raised(message)) = inner.downcast_ref() {
                    return TemplateError::Raised { message: message.clone() };
                }
                cause = inner.source();
            }
            TemplateError::Render(error)
        })
    }
}

#[cfg(test)]
mod tests;
