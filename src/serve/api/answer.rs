//! From what the engine sends to OpenAI's objects: whole, or in a stream of chunks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::mpsc::Receiver;

use super::ApiError;
use super::request::{Settings, now, random};
use super::types::{Answer, Choice, Delta, Logprobs, Message, Reading, Told, Usage};
use crate::chat::Named;
use crate::runtime::{Finish, Model};
use crate::serve::App;
use crate::serve::log::Entry;
use crate::serve::slot::{Event, Piece};

/// A comment keeps a silent stream's connection in use, and shows whether anybody is there.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Which of the two routes answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Chat,
    Completions,
}

/// What is to be answered, whoever computes it.
pub struct Answering {
    route: Route,
    model: Arc<Model>,
    name: String,
    id: String,
    created: u64,
    n_choices: usize,
    n_prompt_tokens: usize,
    read: Vec<Arc<Named>>,
    include_usage: bool,
    n_tokens: usize,
    log: Arc<Entry>,
    /// Characters of each choice so far.
    offsets: Vec<usize>,
}

impl Answering {
    /// An answer of `n_choices` in all, to prompts of so many tokens.
    pub fn new(
        app: &App,
        route: Route,
        settings: &Settings,
        n_choices: usize,
        n_prompt_tokens: usize,
        log: Arc<Entry>,
    ) -> Self {
        let id = match route {
            Route::Chat => format!("chatcmpl-{:016x}", random()),
            Route::Completions => format!("cmpl-{:016x}", random()),
        };
        Self {
            route,
            model: Arc::clone(&app.model),
            name: app.options.name.clone(),
            id,
            created: now(),
            n_choices,
            n_prompt_tokens,
            read: settings.steering.read.clone(),
            include_usage: settings.include_usage,
            n_tokens: 0,
            log,
            offsets: vec![0; n_choices],
        }
    }

    /// Waits for all of it.
    pub async fn whole(mut self, mut events: Receiver<Event>) -> Result<Response, ApiError> {
        let mut pieces: Vec<Vec<Piece>> = vec![Vec::new(); self.n_choices];
        let mut finished: Vec<Option<Finish>> = vec![None; self.n_choices];
        while finished.iter().any(Option::is_none) {
            match events.recv().await {
                Some(Event::Piece(choice, piece)) => pieces[choice].push(piece),
                Some(Event::End { choice, finish, n_tokens }) => {
                    finished[choice] = Some(finish);
                    self.count(n_tokens);
                }
                Some(Event::Failed(failure)) => return Err(failure.into()),
                None => return Err(ApiError::fault()),
            }
        }
        let choices = pieces.iter().zip(finished).enumerate();
        let choices = choices.map(|(index, (pieces, finish))| {
            let content: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            let mut choice = self.choice(index, pieces, finish);
            match self.route {
                Route::Chat => choice.message = Some(Message { role: "assistant", content, refusal: None }),
                Route::Completions => choice.text = Some(content),
            }
            choice
        });
        let choices = choices.collect();
        let object = match self.route {
            Route::Chat => "chat.completion",
            Route::Completions => "text_completion",
        };
        let usage = Some(Told(Some(self.usage())));
        Ok(Json(self.answer(object, choices, usage)).into_response())
    }

    /// Sends it as it comes.
    pub fn stream(self, events: Receiver<Event>) -> Response {
        let first = match self.route {
            Route::Chat => (0..self.n_choices).map(|index| self.opening(index)).collect(),
            Route::Completions => Vec::new(),
        };
        let ready = first.into_iter().rev().collect();
        let state = Streaming { left: self.n_choices, answering: self, events, ready, over: false };
        let chunks = stream::unfold(state, |mut state| async move {
            let data = state.next().await?;
            Some((Ok::<_, Infallible>(Sent::default().data(data)), state))
        });
        Sse::new(chunks).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
    }

    fn count(&mut self, n_tokens: usize) {
        self.n_tokens += n_tokens;
        self.log.count(n_tokens);
    }

    fn usage(&self) -> Usage {
        let (prompt_tokens, completion_tokens) = (self.n_prompt_tokens, self.n_tokens);
        Usage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens }
    }

    fn answer(&self, object: &'static str, choices: Vec<Choice>, usage: Option<Told>) -> Answer<'_> {
        Answer { id: &self.id, object, created: self.created, model: &self.name, choices, usage }
    }

    /// What comes with these pieces beside their text.
    fn choice(&mut self, index: usize, pieces: &[Piece], finish: Option<Finish>) -> Choice {
        let readings = (!self.read.is_empty()).then(|| {
            let with_token = pieces.iter().filter(|piece| piece.token.is_some());
            with_token.map(|piece| Reading::new(piece, &self.read)).collect()
        });
        let logprobs = match self.route {
            Route::Chat => Logprobs::chat(&self.model, pieces),
            Route::Completions => Logprobs::text(&self.model, pieces, self.offsets[index]),
        };
        self.offsets[index] += pieces.iter().map(|piece| piece.text.chars().count()).sum::<usize>();
        Choice {
            index,
            message: None,
            delta: None,
            text: None,
            logprobs,
            finish_reason: finish.map(|finish| match finish {
                Finish::Length => "length",
                Finish::Stop | Finish::Stopped => "stop",
            }),
            readings,
        }
    }

    fn chunk(&self, choices: Vec<Choice>, usage: Option<Usage>) -> String {
        let object = match self.route {
            Route::Chat => "chat.completion.chunk",
            Route::Completions => "text_completion",
        };
        let usage = self.include_usage.then_some(Told(usage));
        serde_json::to_string(&self.answer(object, choices, usage)).expect("its maps have strings for keys")
    }

    /// Says who speaks.
    fn opening(&self, index: usize) -> String {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
        let choice = Choice { index, delta: Some(delta), ..Choice::default() };
        self.chunk(vec![choice], None)
    }

    fn piece(&mut self, index: usize, piece: &Piece) -> String {
        let mut choice = self.choice(index, std::slice::from_ref(piece), None);
        match self.route {
            Route::Chat => choice.delta = Some(Delta { role: None, content: Some(piece.text.clone()) }),
            Route::Completions => choice.text = Some(piece.text.clone()),
        }
        self.chunk(vec![choice], None)
    }

    fn end(&mut self, index: usize, finish: Finish) -> String {
        let mut choice = self.choice(index, &[], Some(finish));
        (choice.logprobs, choice.readings) = (None, None);
        match self.route {
            Route::Chat => choice.delta = Some(Delta::default()),
            Route::Completions => choice.text = Some(String::new()),
        }
        self.chunk(vec![choice], None)
    }
}

/// A stream under way.
struct Streaming {
    answering: Answering,
    events: Receiver<Event>,
    /// Chunks to be sent before more is waited for, the first one last.
    ready: Vec<String>,
    /// Choices that go on.
    left: usize,
    over: bool,
}

impl Streaming {
    /// The next chunk; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        if let Some(chunk) = self.ready.pop() {
            return Some(chunk);
        }
        if self.over {
            return None;
        }
        let answering = &mut self.answering;
        match self.events.recv().await {
            Some(Event::Piece(choice, piece)) => Some(answering.piece(choice, &piece)),
            Some(Event::End { choice, finish, n_tokens }) => {
                answering.count(n_tokens);
                self.left -= 1;
                if self.left == 0 {
                    self.over = true;
                    self.ready.push("[DONE]".into());
                    if answering.include_usage {
                        self.ready.push(answering.chunk(Vec::new(), Some(answering.usage())));
                    }
                }
                Some(answering.end(choice, finish))
            }
            Some(Event::Failed(failure)) => {
                self.over = true;
                Some(ApiError::from(failure).event())
            }
            None => {
                self.over = true;
                Some(ApiError::fault().event())
            }
        }
    }
}
