//! `GET /v1/models`, `GET /v1/models/{id}` and `GET /health`.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde::Serialize;

use super::ApiError;
use crate::serve::App;
use crate::serve::engine::Stats;

#[derive(Debug, Serialize)]
pub struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
}

#[derive(Debug, Serialize)]
pub struct List<T> {
    pub object: &'static str,
    pub data: Vec<T>,
}

#[derive(Debug, Serialize)]
pub struct Health {
    status: &'static str,
    #[serde(flatten)]
    stats: Stats,
}

fn model(app: &App) -> Model {
    Model { id: app.options.name.clone(), object: "model", created: app.started, owned_by: "ggsteer" }
}

pub async fn list(State(app): State<Arc<App>>) -> Json<List<Model>> {
    Json(List { object: "list", data: vec![model(&app)] })
}

pub async fn get(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(id) = id?;
    if id == app.options.name { Ok(Json(model(&app))) } else { Err(ApiError::model(&id, &app.options.name)) }
}

pub async fn health(State(app): State<Arc<App>>) -> Json<Health> {
    let status = if app.engine.is_closing() { "shutting down" } else { "ok" };
    Json(Health { status, stats: app.engine.stats() })
}
