//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Extension, State};
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Deserialize;

use super::answer::{Answering, Route};
use super::request::{Common, check_length, parse, top};
use super::{ApiError, Prepared, respond};
use crate::runtime::Error;
use crate::runtime::template::{Message, Role};
use crate::serve::App;
use crate::serve::limits::MAX_MESSAGES;
use crate::serve::log::Entry;

#[derive(Debug, Deserialize)]
struct Request {
    messages: Vec<Said>,
    logprobs: Option<bool>,
    top_logprobs: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object with role and content")]
struct Said {
    role: String,
    content: Option<Content>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of parts of text")]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
#[serde(expecting = "an object with type and text")]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

impl Request {
    /// The conversation as the template takes it.
    fn messages(self) -> Result<Vec<Message>, ApiError> {
        if self.messages.is_empty() || self.messages.len() > MAX_MESSAGES {
            let words = format!("messages: expected 1 to {MAX_MESSAGES}, found {}", self.messages.len());
            return Err(ApiError::bad(words).at("messages"));
        }
        self.messages.into_iter().enumerate().map(|(i, said)| said.message(i)).collect()
    }
}

impl Said {
    fn message(self, i: usize) -> Result<Message, ApiError> {
        let bad = |field: &str, words: &str| {
            let at = format!("messages[{i}].{field}");
            Err(ApiError::bad(format!("{at}: {words}")).at(at))
        };
        let role = match self.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                let words = format!("expected system, developer, user or assistant, found {}", quoted(other));
                return bad("role", &words);
            }
        };
        let content = match self.content {
            None => return bad("content", "missing"),
            Some(Content::Text(text)) => text,
            Some(Content::Parts(parts)) => {
                let mut text = String::new();
                for (j, part) in parts.into_iter().enumerate() {
                    match (part.kind.as_str(), part.text) {
                        ("text", Some(more)) => text += &more,
                        ("text", None) => return bad(&format!("content[{j}].text"), "missing"),
                        (other, _) => {
                            let words = format!(
                                "expected text, as the model takes nothing else, found {}",
                                quoted(other)
                            );
                            return bad(&format!("content[{j}].type"), &words);
                        }
                    }
                }
                text
            }
        };
        Ok(Message::new(role, content))
    }
}

/// A word of the client's in a message.
fn quoted(word: &str) -> String {
    format!("{:?}", word.chars().take(60).collect::<String>())
}

pub async fn complete(
    State(app): State<Arc<App>>,
    Extension(log): Extension<Arc<Entry>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    // A template and a tokenizer may take long on a long conversation.
    let prepare = move |app: &Arc<App>, bytes: &[u8]| {
        let request: Request = parse(bytes)?;
        let settings = parse::<Common>(bytes)?.check(app)?;
        let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs.unwrap_or(0)) {
            (false, 0) => None,
            (false, _) => return Err(ApiError::bad("top_logprobs: needs logprobs").at("top_logprobs")),
            (true, n) => Some(top("top_logprobs", n)?),
        };
        let messages = request.messages()?;
        check_length(app, "messages", messages.iter().map(|message| message.content.as_str()))?;
        let prompt = app.model.chat(&messages).map_err(|error| match error {
            Error::NoTemplate(_) => ApiError::bad(
                "the model has no chat template: start the server with --chat-template NAME or FILE, or use \
                 /v1/completions",
            )
            .code("no_chat_template"),
            error @ Error::Template(_) => ApiError::bad(error.to_string()).at("messages"),
            error => ApiError::bad(error.to_string()),
        })?;
        let n_prompt_tokens = prompt.tokens.len();
        let (tasks, events) = settings.tasks(app, vec![prompt.tokens], "messages", logprobs)?;
        let answering = Answering::new(app, Route::Chat, &settings, settings.n, n_prompt_tokens, log);
        Ok(Prepared { answering, stream: settings.stream, tasks, events })
    };
    respond(&app, &headers, body, prepare).await
}
