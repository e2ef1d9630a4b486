//! Errors as OpenAI's clients read them.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::chat::harmless;
use crate::serve::directions::RegistryError;
use crate::serve::engine::Refused;
use crate::serve::slot::Failure;
use crate::serve::steering::SteeringError;

/// Characters of a message: what it quotes may be long.
const MAX_MESSAGE: usize = 1000;

/// An answer that is none.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
}

/// The body of such an answer.
#[derive(Debug, Serialize)]
pub struct Body<'a> {
    error: Fields<'a>,
}

#[derive(Debug, Serialize)]
struct Fields<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    /// An error of this status; nothing in the message commands a terminal.
    pub fn new(status: StatusCode, message: impl AsRef<str>) -> Self {
        let message = harmless(message.as_ref()).chars().take(MAX_MESSAGE).collect();
        Self { status, message, param: None, code: None }
    }

    /// A request that cannot be answered as it is.
    pub fn bad(message: impl AsRef<str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Names the field to blame.
    #[must_use]
    pub fn at(mut self, param: impl AsRef<str>) -> Self {
        self.param = Some(harmless(param.as_ref()).chars().take(MAX_MESSAGE).collect());
        self
    }

    /// With a code for programs.
    #[must_use]
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Nothing is to be found there.
    pub fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "no such route; the routes are in docs/serve.md")
    }

    /// Another method would do.
    pub fn method() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this route has no such method")
    }

    /// A fault of ours.
    pub fn fault() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "a fault in the server")
    }

    /// No new work.
    pub fn closing() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down").code("shutting_down")
    }

    /// As one event of a stream that is under way.
    pub fn event(&self) -> String {
        serde_json::to_string(&self.body()).expect("strings serialize")
    }

    fn body(&self) -> Body<'_> {
        let kind = match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let Self { message, param, code, .. } = self;
        Body { error: Fields { message, kind, param: param.as_deref(), code: *code } }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // What is left of the request is not read.
            StatusCode::REQUEST_TIMEOUT | StatusCode::PAYLOAD_TOO_LARGE => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            _ => {}
        }
        response
    }
}

impl From<SteeringError> for ApiError {
    fn from(error: SteeringError) -> Self {
        let bad = Self::bad(error.to_string()).at(error.at());
        match error {
            SteeringError::Unknown { .. } => bad.code("direction_not_found"),
            _ => bad,
        }
    }
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        Self::bad(error.to_string()).code("invalid_direction")
    }
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full => Self::new(StatusCode::TOO_MANY_REQUESTS, "the queue is full; try again later")
                .code("queue_full"),
            Refused::Closing => Self::closing(),
            Refused::Broken => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the model cannot be run any more")
            }
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Model(words) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, words).code("model_failed"),
            Failure::Closing => Self::closing(),
        }
    }
}

impl From<PathRejection> for ApiError {
    fn from(rejection: PathRejection) -> Self {
        Self::bad(rejection.body_text())
    }
}

impl From<QueryRejection> for ApiError {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad(rejection.body_text())
    }
}
