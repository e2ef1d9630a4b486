//! The routes.

mod answer;
mod chat;
mod completions;
mod directions;
mod error;
mod models;
mod request;
mod types;

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::mpsc::Receiver;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{Any, CorsLayer};

pub use error::ApiError;
pub(super) use request::now;

use super::App;
use super::guard::guard;
use super::page::{Page, page as the_page};
use super::slot::{Event, Task};
use answer::Answering;
use request::read_json;

/// All routes with what stands before them.
pub(super) fn router(app: &Arc<App>) -> Router {
    let mut router = Router::new()
        .route("/", get(page))
        .route("/health", get(models::health))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{id}", get(models::get))
        .route("/v1/chat/completions", post(chat::complete))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/directions", get(directions::list))
        .route("/v1/directions/{name}", get(directions::get).put(directions::put).delete(directions::delete))
        .fallback(async || ApiError::not_found())
        .method_not_allowed_fallback(async || ApiError::method())
        .layer(CatchPanicLayer::custom(|_| ApiError::fault().into_response()))
        .layer(from_fn_with_state(Arc::clone(app), guard));
    if let Some(origin) = &app.options.allow_origin {
        let cors =
            CorsLayer::new().allow_methods(Any).allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION]);
        router = router.layer(match origin {
            origin if origin == "*" => cors.allow_origin(Any),
            origin => cors.allow_origin(origin.clone()),
        });
    }
    router.with_state(Arc::clone(app))
}

async fn page() -> Response {
    let Page { html, policy } = the_page();
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, html.as_str()).into_response()
}

/// An answer before the engine has anything of it.
struct Prepared {
    answering: Answering,
    stream: bool,
    tasks: Vec<Task>,
    events: Receiver<Event>,
}

/// Reads a request, has `prepare` make of its bytes what is to be computed, and answers.
async fn respond(
    app: &Arc<App>,
    headers: &HeaderMap,
    body: Body,
    prepare: impl FnOnce(&Arc<App>, &[u8]) -> Result<Prepared, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let bytes = read_json(app, headers, body).await?;
    let inner = Arc::clone(app);
    let Prepared { answering, stream, tasks, events } =
        blocking(app, move || prepare(&inner, &bytes)).await?;
    app.engine.submit(tasks)?;
    if stream { Ok(answering.stream(events)) } else { answering.whole(events).await }
}

/// Runs what may take long beside the threads that serve, and not on all processors at once.
async fn blocking<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let permit = Arc::clone(&app.preparing).acquire_owned().await.map_err(|_| ApiError::fault())?;
    let work = move || {
        let _permit = permit;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| ApiError::fault())?
}

impl ApiError {
    /// A model that is not here.
    fn model(asked: &str, here: &str) -> Self {
        let asked: String = asked.chars().take(100).collect();
        let words = format!("no model is called {asked:?}; the one here is {here:?}");
        Self::new(StatusCode::NOT_FOUND, words).at("model").code("model_not_found")
    }
}
