//! `POST /v1/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;

use super::answer::{Answering, Route};
use super::request::{Common, check_length, parse, top};
use super::{ApiError, Prepared, respond};
use crate::runtime::Token;
use crate::serve::App;
use crate::serve::log::Entry;

#[derive(Debug, Deserialize)]
struct Request {
    prompt: Prompt,
    logprobs: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a string, a list of strings, a list of tokens, or a list of lists of tokens"
)]
enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<i64>),
    Several(Vec<Vec<i64>>),
}

impl Prompt {
    /// Its tokens; of texts, with those that the model wants at its ends.
    fn tokens(self, app: &App) -> Result<Vec<Vec<Token>>, ApiError> {
        let model = &app.model;
        let text = |text: &str| {
            check_length(app, "prompt", [text])?;
            Ok(model.tokenize_text(text))
        };
        let ids = |ids: Vec<i64>| -> Result<Vec<Token>, ApiError> {
            let n_vocab = model.n_vocab();
            let id = |id: i64| match usize::try_from(id) {
                Ok(token) if token < n_vocab => Ok(Token(token as i32)),
                _ => Err(ApiError::bad(format!("prompt: token {id}: the model has 0 to {}", n_vocab - 1))
                    .at("prompt")),
            };
            ids.into_iter().map(id).collect()
        };
        match self {
            Self::Text(one) => Ok(vec![text(&one)?]),
            // An empty list is one of either.
            Self::Texts(texts) if texts.is_empty() => Err(ApiError::bad("prompt: empty").at("prompt")),
            Self::Texts(texts) => texts.iter().map(|one| text(one)).collect(),
            Self::Tokens(tokens) => Ok(vec![ids(tokens)?]),
            Self::Several(prompts) => prompts.into_iter().map(ids).collect(),
        }
    }
}

pub async fn complete(
    State(app): State<Arc<App>>,
    Extension(log): Extension<Arc<Entry>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let prepare = move |app: &Arc<App>, bytes: &[u8]| {
        let request: Request = parse(bytes)?;
        let settings = parse::<Common>(bytes)?.check(app)?;
        let logprobs = request.logprobs.map(|n| top("logprobs", n)).transpose()?;
        let prompts = request.prompt.tokens(app)?;
        let n_prompt_tokens = prompts.iter().map(Vec::len).sum();
        let n = prompts.len() * settings.n;
        let (tasks, events) = settings.tasks(app, prompts, "prompt", logprobs)?;
        let answering = Answering::new(app, Route::Completions, &settings, n, n_prompt_tokens, log);
        Ok(Prepared { answering, stream: settings.stream, tasks, events })
    };
    respond(&app, &headers, body, prepare).await
}
