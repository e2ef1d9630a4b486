//! An OpenAI-compatible HTTP server whose requests are steered each in its own way.
//!
//! One thread owns the session and decodes all sequences together, each with its own intervention. Handlers turn requests
//! into tasks, give them to it, and read what it sends from a channel that has room for all of it: the thread never waits
//! for a client, and a client that goes away closes the channel, which frees its sequence before the next decode.
//! Rejected: a session for each steering, which needs the memory of several and decodes them one after the other; and
//! prompts shared between requests, where what was computed under one steering could reach another.
#![forbid(unsafe_code)]

mod api;
mod batch;
mod directions;
mod engine;
mod guard;
mod limits;
mod log;
mod net;
mod page;
mod schedule;
mod slot;
mod steering;
mod stop;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::io;
use std::sync::Arc;

use axum::Router;
use axum::http::HeaderValue;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::chat::Named;
use crate::runtime::{self, Model, SessionOptions, Token};

pub use directions::{MAX_DIRECTIONS, RegistryError};
pub use engine::{Slots, Stats, Tokens, Waiting};
pub use limits::{Limits, MAX_LOGPROBS, MAX_MESSAGES, MAX_N, MAX_STOP, MAX_STOP_BYTES};
pub use log::{Logged, Logger};
pub use steering::{Add, At, Steering, SteeringError, Term, Which, Whole};

use directions::{Registry, Shape};
use engine::Engine;

/// Requests that are templated and tokenized at once.
const PREPARING: usize = 2;

/// How to serve.
#[derive(Clone)]
pub struct Options {
    /// What clients call the model.
    pub name: String,
    /// What clients may call this machine where there is no key, beside localhost and its addresses.
    pub host: String,
    /// The key that clients must have; without one only this machine should reach the server.
    pub api_key: Option<String>,
    /// The site whose pages may ask, or `*` for all.
    pub allow_origin: Option<HeaderValue>,
    /// The steering of requests that bring none.
    pub steering: Steering,
    /// What is taken.
    pub limits: Limits,
    /// Hears of each request.
    pub logger: Option<Logger>,
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// Why a server cannot be started, or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model cannot be run.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// Directions that do not fit it.
    #[error(transparent)]
    Directions(#[from] RegistryError),
    /// A steering for requests without one that the directions do not allow.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// The network.
    #[error("cannot accept connections: {0}")]
    Accept(#[from] io::Error),
}

/// What every handler knows.
struct App {
    model: Arc<Model>,
    engine: Engine,
    directions: Registry,
    options: Options,
    /// Permits to template and tokenize.
    preparing: Arc<Semaphore>,
    /// Bytes of the longest text that can fit the context.
    longest_text: usize,
    /// Seconds since 1970.
    started: u64,
}

/// A server, its model running.
pub struct Server {
    app: Arc<App>,
}

impl Server {
    /// Makes the session, of [`SessionOptions::n_seq`] sequences, in a thread of its own.
    ///
    /// # Errors
    /// [`ServeError`], but for the network.
    pub fn start(
        model: Model,
        session: SessionOptions,
        directions: Vec<Named>,
        options: Options,
    ) -> Result<Self, ServeError> {
        let shape =
            Shape { architecture: model.architecture(), n_embd: model.n_embd(), n_block: model.n_block() };
        let directions = Registry::new(shape, directions)?;
        options.steering.apply(&directions.loaded(), model.n_block())?;
        let model = Arc::new(model);
        let engine = Engine::start(Arc::clone(&model), session, options.limits.queue)?;
        let longest_token = (0..model.n_vocab()).map(|id| model.piece(Token(id as i32)).len()).max();
        let app = App {
            longest_text: engine.room().saturating_mul(longest_token.unwrap_or(1)),
            preparing: Arc::new(Semaphore::new(PREPARING)),
            started: api::now(),
            model,
            engine,
            directions,
            options,
        };
        Ok(Self { app: Arc::new(app) })
    }

    /// The routes as a service, for another server than [`Server::run`].
    pub fn router(&self) -> Router {
        api::router(&self.app)
    }

    /// What goes on.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.app.engine.stats()
    }

    /// Serves until `shutdown` comes; then takes no new requests, gives those under way [`Limits::timeout`], and ends.
    ///
    /// # Errors
    /// [`ServeError::Accept`] where the listener fails.
    pub async fn run(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        net::run(&self.app, self.router(), listener, shutdown).await?;
        Ok(())
    }
}
