//! The objects that answers are made of, as OpenAI has them; `readings` are ours.

use std::sync::Arc;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::chat::Named;
use crate::runtime::{Model, Token};
use crate::serve::slot::Piece;

/// An answer, or a chunk of one.
#[derive(Debug, Serialize)]
pub struct Answer<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<Choice>,
    /// Of chunks, null in all but the last where it is wanted at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Told>,
}

/// The tokens of a request, or null where they are not known yet.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Told(pub Option<Usage>);

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
}

/// One of the answers to a prompt.
#[derive(Debug, Default, Serialize)]
pub struct Choice {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<Message>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readings: Option<Vec<Reading>>,
}

/// What the model said.
#[derive(Debug, Serialize)]
pub struct Message {
    pub role: &'static str,
    pub content: String,
    /// Always null: a model that refuses says so in its content.
    pub refusal: Option<String>,
}

/// What is new.
#[derive(Debug, Default, Serialize)]
pub struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// What the directions read where a token was drawn.
#[derive(Debug, Serialize)]
pub struct Reading {
    /// What the token adds to the text.
    token: String,
    values: Values,
}

#[derive(Debug)]
struct Values(Vec<(Arc<Named>, f32)>);

impl Serialize for Values {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (named, value) in &self.0 {
            map.serialize_entry(&named.name, value)?;
        }
        map.end()
    }
}

impl Reading {
    /// Of a token and the directions it was read by.
    pub fn new(piece: &Piece, read: &[Arc<Named>]) -> Self {
        let values = read.iter().cloned().zip(piece.readings.iter().copied()).collect();
        Self { token: piece.text.clone(), values: Values(values) }
    }
}

/// Logarithmic probabilities in the shapes of the two routes.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Logprobs {
    Chat { content: Vec<TokenLogprob>, refusal: Option<Vec<TokenLogprob>> },
    Text(TextLogprobs),
}

/// Those of completions: lists of equal length.
#[derive(Debug, Default, Serialize)]
pub struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    top_logprobs: Vec<Likeliest>,
    /// Characters of the answer before each token.
    text_offset: Vec<usize>,
}

#[derive(Debug)]
struct Likeliest(Vec<(String, f32)>);

impl Serialize for Likeliest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

/// A token, how likely it was, and what else was likely.
#[derive(Debug, Serialize)]
pub struct TokenLogprob {
    #[serde(flatten)]
    drawn: One,
    top_logprobs: Vec<One>,
}

#[derive(Debug, Serialize)]
struct One {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl One {
    fn new(model: &Model, token: Token, logprob: f32) -> Self {
        Self { token: model.token_text(token), logprob, bytes: model.piece(token) }
    }
}

impl Logprobs {
    /// Of these pieces for a chat; `None` where they were not asked for.
    pub fn chat(model: &Model, pieces: &[Piece]) -> Option<Self> {
        let of = |piece: &Piece| {
            let (token, logprobs) = (piece.token?, piece.logprobs.as_ref()?);
            let top = logprobs.top.iter().map(|&(token, logprob)| One::new(model, token, logprob));
            Some(TokenLogprob { drawn: One::new(model, token, logprobs.drawn), top_logprobs: top.collect() })
        };
        let content: Vec<TokenLogprob> = pieces.iter().filter_map(of).collect();
        (!content.is_empty()).then_some(Self::Chat { content, refusal: None })
    }

    /// The same for a completion, after so many characters of it.
    pub fn text(model: &Model, pieces: &[Piece], mut offset: usize) -> Option<Self> {
        let mut all = TextLogprobs::default();
        for piece in pieces {
            if let (Some(token), Some(logprobs)) = (piece.token, &piece.logprobs) {
                all.tokens.push(model.token_text(token));
                all.token_logprobs.push(logprobs.drawn);
                let top = logprobs.top.iter().map(|&(token, logprob)| (model.token_text(token), logprob));
                all.top_logprobs.push(Likeliest(top.collect()));
                all.text_offset.push(offset);
            }
            offset += piece.text.chars().count();
        }
        (!all.tokens.is_empty()).then_some(Self::Text(all))
    }
}
