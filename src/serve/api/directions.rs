//! `/v1/directions`: what there is to steer by, and its change while the server runs.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::models::List;
use super::request::read_body;
use super::{ApiError, blocking};
use crate::chat::Named;
use crate::direction::Direction;
use crate::serve::App;

/// A direction as it is listed.
#[derive(Debug, Serialize)]
pub struct Listed {
    id: String,
    object: &'static str,
    /// 0-based block at whose output it was measured.
    block: usize,
    /// The same as the paper counts.
    layer: usize,
    n_embd: usize,
    norm: f64,
    made_for: Option<String>,
    /// What the means of the two prompt sets read, where the file says so.
    readings: Option<Means>,
}

#[derive(Debug, Serialize)]
pub struct Means {
    harmless: f64,
    harmful: f64,
}

impl Listed {
    fn new(named: &Named) -> Self {
        let Named { name, direction } = named;
        Self {
            id: name.clone(),
            object: "direction",
            block: direction.block,
            layer: direction.block + 1,
            n_embd: direction.vector.len(),
            norm: direction.norm(),
            made_for: direction.meta.architecture.clone(),
            readings: direction.meta.readings.map(|(harmless, harmful)| Means { harmless, harmful }),
        }
    }
}

/// Which of a file's directions.
#[derive(Debug, Deserialize)]
pub struct Chosen {
    block: Option<usize>,
}

pub async fn list(State(app): State<Arc<App>>) -> Json<List<Listed>> {
    let data = app.directions.loaded().iter().map(|named| Listed::new(named)).collect();
    Json(List { object: "list", data })
}

pub async fn get(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Listed>, ApiError> {
    let Path(name) = name?;
    let loaded = app.directions.loaded();
    let named = loaded.iter().find(|named| named.name == name).ok_or_else(|| unknown(&name))?;
    Ok(Json(Listed::new(named)))
}

pub async fn put(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
    chosen: Result<Query<Chosen>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<Listed>), ApiError> {
    let (Path(name), Query(Chosen { block })) = (name?, chosen?);
    let bytes = read_body(&app, &headers, body).await?;
    let shared = Arc::clone(&app);
    blocking(&shared, move || {
        let direction = Direction::read(&name, &bytes, block)
            .map_err(|error| ApiError::bad(error.to_string()).code("invalid_direction"))?;
        let listed = Listed::new(&Named { name: name.clone(), direction: direction.clone() });
        let replaced = app.directions.put(name, direction)?;
        Ok((if replaced { StatusCode::OK } else { StatusCode::CREATED }, Json(listed)))
    })
    .await
}

pub async fn delete(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let Path(name) = name?;
    if app.options.steering.names(&name) {
        let words =
            format!("{name:?} steers the requests that bring no steering; replace it with PUT instead");
        return Err(ApiError::new(StatusCode::CONFLICT, words).code("direction_in_use"));
    }
    if app.directions.remove(&name) { Ok(StatusCode::NO_CONTENT) } else { Err(unknown(&name)) }
}

fn unknown(name: &str) -> ApiError {
    let name: String = name.chars().take(100).collect();
    ApiError::new(StatusCode::NOT_FOUND, format!("no direction is called {name:?}"))
        .code("direction_not_found")
}
