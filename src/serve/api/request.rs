//! What the two routes that generate have in common: reading a request, and what it may say.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use futures_util::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ApiError;
use crate::random::SplitMix64;
use crate::runtime::Token;
use crate::runtime::sampling::Sampler;
use crate::serve::App;
use crate::serve::limits::{MAX_LOGPROBS, MAX_N, MAX_STOP, MAX_STOP_BYTES};
use crate::serve::slot::Task;
use crate::serve::steering::{Applied, Steering};

/// A body that is too large is still read, and forgotten, up to so many bytes: a client hears of it only when it has sent all.
const HEARD_OUT: usize = 64 << 20;

/// The whole body of a request, within the limits of size and time.
pub async fn read_body(app: &App, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, ApiError> {
    let limits = &app.options.limits;
    let read = tokio::time::timeout(limits.timeout, collect(body, headers, limits.body)).await;
    read.unwrap_or_else(|_| {
        let words = "the body took too long to come (--timeout)";
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, words))
    })
}

async fn collect(body: Body, headers: &HeaderMap, limit: usize) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        let words = format!("the body is larger than {limit} bytes (--max-body)");
        Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, words))
    };
    let told = headers.get(header::CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<usize>().ok());
    // Who expects to be told whether to go on is told.
    let patient = headers.contains_key(header::EXPECT) || told > Some(HEARD_OUT.max(limit));
    if told > Some(limit) && patient {
        return too_large();
    }
    let mut body = body.into_data_stream();
    let (mut bytes, mut found) = (Vec::new(), 0_usize);
    while let Some(frame) = body.next().await {
        let frame = frame.map_err(|_| ApiError::bad("the body ended early"))?;
        found = found.saturating_add(frame.len());
        if found <= limit {
            bytes.extend_from_slice(&frame);
        } else if found > HEARD_OUT {
            break;
        }
    }
    if found > limit { too_large() } else { Ok(bytes) }
}

/// A body of JSON, as bytes.
pub async fn read_json(app: &App, headers: &HeaderMap, body: Body) -> Result<Vec<u8>, ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        let words = "the Content-Type must be application/json";
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, words));
    }
    read_body(app, headers, body).await
}

/// A value out of JSON; an error names the field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // A struct of serde's would take a list too.
    if matches!(bytes.trim_ascii_start().first(), Some(first) if b"[\"-0123456789tfn".contains(first)) {
        return Err(ApiError::bad("the body must be a JSON object"));
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| wrong("", &error))?;
    json.end().map_err(|error| ApiError::bad(format!("malformed JSON: {error}")))?;
    Ok(value)
}

/// What is wrong with the JSON of `field`, or of the whole body where that is empty.
fn wrong(field: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> ApiError {
    let words = error.inner().to_string();
    if error.inner().classify() != serde_json::error::Category::Data {
        return ApiError::bad(format!("malformed JSON: {words}"));
    }
    let path = error.path().to_string();
    let path = if path == "." { "" } else { path.as_str() };
    let missing = words.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    let joined = |parts: &[&str]| -> String {
        let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
        parts.join(".")
    };
    let at = joined(&[field, path]);
    let said = if at.is_empty() { words.clone() } else { format!("{at}: {words}") };
    let at = joined(&[&at, missing.unwrap_or_default()]);
    if at.is_empty() { ApiError::bad(said) } else { ApiError::bad(said).at(at) }
}

/// The fields that both routes know.
#[derive(Debug, Deserialize)]
pub struct Common {
    pub model: Option<String>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
    min_p: Option<f64>,
    seed: Option<i64>,
    stop: Option<Stop>,
    n: Option<u64>,
    /// An object: a struct of serde's would take a list too.
    steering: Option<Map<String, Value>>,
    // Known, and not to be had: whoever asks for them must not believe that they got them.
    tools: Option<Value>,
    tool_choice: Option<Value>,
    functions: Option<Value>,
    function_call: Option<Value>,
    response_format: Option<Value>,
    presence_penalty: Option<Value>,
    frequency_penalty: Option<Value>,
    logit_bias: Option<Value>,
    modalities: Option<Value>,
    audio: Option<Value>,
    prediction: Option<Value>,
    web_search_options: Option<Value>,
    echo: Option<Value>,
    suffix: Option<Value>,
    best_of: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// A request that both routes understand alike, checked.
#[derive(Debug)]
pub struct Settings {
    pub stream: bool,
    pub include_usage: bool,
    pub n: usize,
    pub steering: Arc<Applied>,
    max_tokens: Option<usize>,
    sampler: Sampler,
    stop: Arc<[String]>,
}

impl Common {
    /// Checks all that needs no prompt.
    pub fn check(self, app: &App) -> Result<Settings, ApiError> {
        if let Some(model) = self.model.as_ref().filter(|model| **model != app.options.name) {
            return Err(ApiError::model(model, &app.options.name));
        }
        self.refuse_unknown()?;
        let n = self.n.unwrap_or(1);
        if !(1..=MAX_N as u64).contains(&n) {
            return Err(ApiError::bad(format!("n: expected 1 to {MAX_N}, found {n}")).at("n"));
        }
        let stop = match self.stop {
            None => Vec::new(),
            Some(Stop::One(stop)) => vec![stop],
            Some(Stop::Several(stops)) => stops,
        };
        if stop.len() > MAX_STOP {
            return Err(ApiError::bad(format!("stop: at most {MAX_STOP} strings")).at("stop"));
        }
        if stop.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            let words = format!("stop: each string must have 1 to {MAX_STOP_BYTES} bytes");
            return Err(ApiError::bad(words).at("stop"));
        }
        let (param, wanted) = match self.max_completion_tokens {
            Some(n) => ("max_completion_tokens", Some(n)),
            None => ("max_tokens", self.max_tokens),
        };
        let most = app.options.limits.max_tokens as u64;
        if let Some(n) = wanted.filter(|n| !(1..=most).contains(n)) {
            let words = format!("{param}: expected 1 to {most} (--max-tokens of the server), found {n}");
            return Err(ApiError::bad(words).at(param));
        }
        let within = |param: &str, value: Option<f64>, default: f64, most: f64| {
            let value = value.unwrap_or(default);
            if (0.0..=most).contains(&value) {
                return Ok(value as f32);
            }
            Err(ApiError::bad(format!("{param}: expected 0 to {most}, found {value}")).at(param))
        };
        let temperature = within("temperature", self.temperature, 1.0, 2.0)?;
        let top_p = within("top_p", self.top_p, 1.0, 1.0)?;
        let min_p = within("min_p", self.min_p, 0.0, 1.0)?;
        let top_k = usize::try_from(self.top_k.unwrap_or(0)).unwrap_or(0);
        let seed = self.seed.map_or_else(random, |seed| seed as u64);
        let steering = match self.steering {
            None => &app.options.steering,
            Some(map) => &serde_path_to_error::deserialize::<_, Steering>(Value::Object(map))
                .map_err(|error| wrong("steering", &error))?,
        };
        Ok(Settings {
            stream: self.stream.unwrap_or(false),
            include_usage: self.stream_options.and_then(|o| o.include_usage).unwrap_or(false),
            n: n as usize,
            steering: Arc::new(steering.apply(&app.directions.loaded(), app.model.n_block())?),
            max_tokens: wanted.map(|n| n as usize),
            sampler: Sampler::new(temperature, top_k, top_p, min_p, seed),
            stop: stop.into(),
        })
    }

    /// Refuses what is known and not to be had, unless it asks for nothing.
    fn refuse_unknown(&self) -> Result<(), ApiError> {
        let nothing = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(all) => all.is_empty(),
            Value::Object(all) => all.is_empty(),
            Value::String(text) => text.is_empty() || text == "none" || text == "auto",
            Value::Number(n) => n.as_f64() == Some(0.0),
            Value::Bool(true) => false,
        };
        let text = |value: &Value| value.get("type").and_then(Value::as_str) == Some("text");
        let one = |value: &Value| value.as_f64() == Some(1.0);
        let words = |value: &Value| value.as_array().is_some_and(|all| all.len() == 1 && all[0] == "text");
        let asked: [(&str, &Option<Value>, bool); 15] = [
            ("tools", &self.tools, false),
            ("tool_choice", &self.tool_choice, false),
            ("functions", &self.functions, false),
            ("function_call", &self.function_call, false),
            ("response_format", &self.response_format, self.response_format.as_ref().is_some_and(text)),
            ("presence_penalty", &self.presence_penalty, false),
            ("frequency_penalty", &self.frequency_penalty, false),
            ("logit_bias", &self.logit_bias, false),
            ("modalities", &self.modalities, self.modalities.as_ref().is_some_and(words)),
            ("audio", &self.audio, false),
            ("prediction", &self.prediction, false),
            ("web_search_options", &self.web_search_options, false),
            ("echo", &self.echo, false),
            ("suffix", &self.suffix, false),
            ("best_of", &self.best_of, self.best_of.as_ref().is_some_and(one)),
        ];
        match asked.iter().find(|(_, value, fine)| !fine && value.as_ref().is_some_and(|v| !nothing(v))) {
            Some((param, ..)) => Err(ApiError::bad(format!("{param}: not supported here; leave it out"))
                .at(param)
                .code("unsupported")),
            None => Ok(()),
        }
    }
}

impl Settings {
    /// The tasks of these prompts, their choices in order, with the channel that they answer to.
    pub fn tasks(
        &self,
        app: &App,
        prompts: Vec<Vec<Token>>,
        param: &str,
        logprobs: Option<usize>,
    ) -> Result<(Vec<Task>, tokio::sync::mpsc::Receiver<crate::serve::slot::Event>), ApiError> {
        let n_tasks = prompts.len() * self.n;
        let capacity = app.engine.capacity();
        if n_tasks > capacity {
            let words =
                format!("{n_tasks} answers at once; the server takes {capacity} (--slots and --queue)");
            return Err(ApiError::bad(words).at(param));
        }
        let room = app.engine.room();
        let mut most = 0;
        let mut sized = Vec::with_capacity(prompts.len());
        for tokens in prompts {
            if tokens.is_empty() {
                return Err(ApiError::bad(format!("{param}: the prompt has no tokens")).at(param));
            }
            let found = tokens.len();
            let free = room.saturating_sub(found);
            let wanted = self.max_tokens.unwrap_or(app.options.limits.max_tokens.min(free).max(1));
            if wanted > free {
                let words = format!(
                    "the context holds {room} tokens; the prompt has {found}, and the answer may have {wanted}: shorten \
                     the prompt or lower max_tokens"
                );
                return Err(ApiError::bad(words).at(param).code("context_length_exceeded"));
            }
            most = most.max(wanted);
            sized.push((Arc::<[Token]>::from(tokens), wanted));
        }
        let (events, receiver) = tokio::sync::mpsc::channel(Task::events(n_tasks, most).max(1));
        let task = |choice: usize| {
            let (prompt, max_tokens) = &sized[choice / self.n];
            Task {
                choice,
                prompt: Arc::clone(prompt),
                max_tokens: *max_tokens,
                sampler: self.sampler.for_sequence(choice as u64),
                stop: Arc::clone(&self.stop),
                logprobs,
                steering: Arc::clone(&self.steering),
                events: events.clone(),
            }
        };
        Ok(((0..n_tasks).map(task).collect(), receiver))
    }
}

/// Refuses texts that cannot fit the context whatever their tokens are, before those are found.
pub fn check_length<'a>(
    app: &App,
    param: &str,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<(), ApiError> {
    let found: usize = texts.into_iter().map(str::len).sum();
    if found <= app.longest_text {
        return Ok(());
    }
    let words = format!(
        "{found} bytes of text: the context of {} tokens holds {} at most, and mostly less",
        app.engine.room(),
        app.longest_text
    );
    Err(ApiError::bad(words).at(param).code("context_length_exceeded"))
}

/// Checks how many of the likeliest tokens are to be told.
pub fn top(param: &str, n: u64) -> Result<usize, ApiError> {
    if n > MAX_LOGPROBS as u64 {
        return Err(ApiError::bad(format!("{param}: expected 0 to {MAX_LOGPROBS}, found {n}")).at(param));
    }
    Ok(n as usize)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A number that nobody chose.
pub fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    SplitMix64(RandomState::new().hash_one(SystemTime::now())).bits()
}
