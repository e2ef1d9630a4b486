//! What stands before every route: who may ask, and by what name the server was called.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::App;
use super::api::ApiError;
use super::log::Entry;

/// Routes that need no key: a page that is to ask for it, and what a supervisor asks.
const OPEN: [&str; 2] = ["/", "/health"];

pub(super) async fn guard(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("-", MatchedPath::as_str).to_owned();
    let entry = Entry::begin(request.method().as_str(), &route, app.options.logger.clone());
    let response = if let Err(refused) = admit(&app, &route, &request) {
        refused.into_response()
    } else {
        request.extensions_mut().insert(Arc::clone(&entry));
        next.run(request).await
    };
    entry.answer(response.status().as_u16());
    response
}

fn admit(app: &App, route: &str, request: &Request) -> Result<(), ApiError> {
    match &app.options.api_key {
        Some(key) if !OPEN.contains(&route) => authorize(key, request.headers())?,
        Some(_) => {}
        None => check_host(app, request)?,
    }
    if app.engine.is_closing() && !OPEN.contains(&route) {
        return Err(ApiError::closing());
    }
    Ok(())
}

/// Compares in a time that depends on neither key.
fn authorize(key: &str, headers: &HeaderMap) -> Result<(), ApiError> {
    let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let given = match given.split_at_checked(7) {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer ") => given,
        _ => &[],
    };
    if bool::from(Sha256::digest(given).as_slice().ct_eq(Sha256::digest(key).as_slice())) {
        return Ok(());
    }
    let words =
        if given.is_empty() { "an API key is needed: Authorization: Bearer KEY" } else { "wrong API key" };
    Err(ApiError::new(StatusCode::UNAUTHORIZED, words).code("invalid_api_key"))
}

/// Without a key, a page of another site could reach the server by a name of its own that leads to this machine.
fn check_host(app: &App, request: &Request) -> Result<(), ApiError> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = request.uri().host().or_else(|| host.map(without_port)).unwrap_or_default();
    let here = ["localhost", "127.0.0.1", "[::1]", "::1", app.options.host.as_str()];
    if here.iter().any(|name| name.eq_ignore_ascii_case(host)) {
        return Ok(());
    }
    let words =
        "the Host header names another machine; call the server localhost, or start it with an API key";
    Err(ApiError::new(StatusCode::FORBIDDEN, words).code("wrong_host"))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::without_port;

    #[test]
    fn a_host_is_known_without_its_port() {
        for (host, name) in [
            ("localhost:8080", "localhost"),
            ("localhost", "localhost"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("::1", "::1"),
            ("evil.example:80", "evil.example"),
            ("", ""),
        ] {
            assert_eq!(without_port(host), name);
        }
    }
}
