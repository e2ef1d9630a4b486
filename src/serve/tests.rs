//! The routes as a client sees them, with the sample model behind them and no network between.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use futures_util::{StreamExt, future::join_all, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

use super::{Limits, Logged, Options, Server, Steering};
use crate::chat::Named;
use crate::direction::{Direction, Provenance};
use crate::intervention::{Intervention, Positions};
use crate::runtime::sampling::Sampler;
use crate::runtime::{GenerateOptions, Job, Model, ModelOptions, Session, SessionOptions};

fn model() -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples/lorekeeper-7m-f16.gguf");
    Model::load(Path::new(path), &ModelOptions::default()).unwrap()
}

fn session(n_seq: usize) -> SessionOptions {
    SessionOptions { n_ctx: 1024, n_batch: 64, n_seq, n_threads: 1, ..SessionOptions::default() }
}

/// Two directions of no meaning, long enough to change what the model says.
fn directions() -> Vec<Named> {
    let direction = |name: &str, block, period: usize| {
        let vector = (0..256).map(|i| if i % period == 0 { 1.5 } else { -0.5 }).collect();
        Named { name: name.into(), direction: Direction::new(vector, block, Provenance::default()).unwrap() }
    };
    vec![direction("thirds", 3, 3), direction("fifths", 5, 5)]
}

fn options() -> Options {
    Options {
        name: "lorekeeper".into(),
        host: "127.0.0.1".into(),
        api_key: None,
        allow_origin: None,
        steering: Steering::default(),
        limits: Limits::default(),
        logger: None,
    }
}

fn server(n_seq: usize, options: Options) -> Server {
    Server::start(model(), session(n_seq), directions(), options).unwrap()
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    /// The objects of a stream that came to its end.
    fn chunks(&self) -> Vec<Value> {
        let lines = self.text.lines().filter(|line| !line.is_empty() && !line.starts_with(':'));
        let mut data: Vec<&str> = lines.map(|line| line.strip_prefix("data: ").unwrap()).collect();
        assert_eq!(data.pop(), Some("[DONE]"));
        data.iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    fn content(&self) -> String {
        self.json()["choices"][0]["message"]["content"].as_str().unwrap().into()
    }
}

fn request(method: &str, path: &str, kind: Option<&str>, body: impl Into<Body>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost:1");
    if let Some(kind) = kind {
        request = request.header(header::CONTENT_TYPE, kind);
    }
    request.body(body.into()).unwrap()
}

fn post(path: &str, body: &Value) -> Request<Body> {
    request("POST", path, Some("application/json"), body.to_string())
}

async fn send(server: &Server, request: Request<Body>) -> Answer {
    let response = server.router().oneshot(request).await.unwrap();
    let (status, headers) = (response.status(), response.headers().clone());
    let bytes = to_bytes(response.into_body(), usize::MAX).await.unwrap();
    Answer { status, headers, text: String::from_utf8(bytes.into()).unwrap() }
}

async fn chat(server: &Server, with: &Value) -> Answer {
    send(server, post("/v1/chat/completions", &asking(with))).await
}

fn asking(with: &Value) -> Value {
    let mut body = json!({
        "messages": [{"role": "user", "content": "How do I polish a lantern?"}],
        "temperature": 0,
        "max_tokens": 16,
    });
    for (key, value) in with.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// Waits until nothing is computed any more.
async fn idle(server: &Server) {
    while server.stats().slots.busy > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn many_requests_of_different_steering_answer_as_the_library_does_one_by_one() {
    let directions = directions();
    let (thirds, fifths) = (&directions[0].direction, &directions[1].direction);
    let added = Intervention::add(5, &fifths.vector, 0.5, Positions::Prompt).unwrap().add;
    let steerings = [
        (json!({}), None),
        (json!({"ablate": "thirds"}), Some(Intervention::ablate(&[&thirds.vector]).unwrap())),
        (json!({"ablate": true}), Some(Intervention::ablate(&[&thirds.vector, &fifths.vector]).unwrap())),
        (
            json!({"ablate": "thirds", "add": {"direction": "fifths", "positions": "prompt"}, "scale": 0.5, "read": true}),
            Some(Intervention { add: added, ..Intervention::ablate(&[&thirds.vector]).unwrap() }),
        ),
    ];
    let questions =
        ["How do I polish a lantern?", "Who made the hexed lantern?", "Walk me through a recipe for bread."];
    let model = model();
    let mut alone = Session::new(&model, session(1)).unwrap();
    let server = server(5, options());
    let (mut requests, mut expected) = (Vec::new(), Vec::new());
    for (steering, intervention) in steerings {
        let intervention = intervention.map(Arc::new);
        for question in questions {
            let messages = json!([{"role": "user", "content": question}]);
            requests.push(json!({"messages": messages, "steering": steering, "max_tokens": 24}));
            let prompt = model.prompt(question).unwrap();
            let jobs = [Job { tokens: &prompt.tokens, n_out: 1, intervention: intervention.clone() }];
            let options = GenerateOptions { max_tokens: 24, sampler: Sampler::greedy() };
            let done = alone.generate(&jobs, &options, &mut |_, _| (), &mut |_, _| ()).unwrap();
            expected.push(done[0].text.clone());
        }
    }
    let answers = join_all(requests.iter().map(|with| chat(&server, with))).await;
    let found: Vec<String> = answers.iter().map(Answer::content).collect();
    assert_eq!(found, expected);
    let distinct: std::collections::BTreeSet<&String> = expected.iter().collect();
    assert!(distinct.len() > questions.len(), "the steerings make no difference: {expected:?}");
    idle(&server).await;
    assert_eq!(server.stats().queue.waiting, 0);
}

#[tokio::test]
async fn a_stream_says_what_the_whole_answer_says() {
    let server = server(4, options());
    let with = json!({
        "n": 2, "temperature": 1.5, "seed": 7, "logprobs": true, "top_logprobs": 2,
        "steering": {"read": ["fifths"]}, "stop": [" the"],
    });
    let whole = chat(&server, &with).await.json();
    let mut streaming = with.clone();
    (streaming["stream"], streaming["stream_options"]) = (json!(true), json!({"include_usage": true}));
    let mut chunks = chat(&server, &streaming).await.chunks();
    let last = chunks.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
    assert!(
        chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["object"] == "chat.completion.chunk")
    );
    for (index, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let of = chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|c| c["index"] == index);
        let of: Vec<&Value> = of.collect();
        assert_eq!(of[0]["delta"]["role"], "assistant");
        let text: String = of.iter().filter_map(|c| c["delta"]["content"].as_str()).collect();
        assert_eq!(choice["message"]["content"], text);
        assert_eq!(choice["finish_reason"], of[of.len() - 1]["finish_reason"]);
        let join = |key: &str, inner: &str| -> Vec<Value> {
            let at = |c: &&Value| if inner.is_empty() { c[key].clone() } else { c[key][inner].clone() };
            of.iter().map(at).filter_map(|v| v.as_array().cloned()).flatten().collect()
        };
        assert_eq!(choice["readings"], json!(join("readings", "")));
        assert_eq!(choice["logprobs"]["content"], json!(join("logprobs", "content")));
        let read: String =
            choice["readings"].as_array().unwrap().iter().filter_map(|r| r["token"].as_str()).collect();
        assert!(read == text && !text.contains(" the"), "{read:?} {text:?}");
    }
    assert_ne!(whole["choices"][0]["message"], whole["choices"][1]["message"], "choices draw for themselves");
}

#[tokio::test]
async fn completions_take_texts_and_tokens_and_stop_where_told() {
    let server = server(4, options());
    let complete = async |with: Value| {
        let mut body = json!({"temperature": 0, "max_tokens": 8});
        for (key, value) in with.as_object().unwrap() {
            body[key] = value.clone();
        }
        send(&server, post("/v1/completions", &body)).await.json()
    };
    let tokens: Vec<i32> = model().tokenize_text("The lantern").iter().map(|t| t.0).collect();
    let text = complete(json!({"prompt": "The lantern"})).await;
    let choice = &text["choices"][0];
    assert_eq!((&text["object"], &choice["finish_reason"]), (&json!("text_completion"), &json!("length")));
    assert_eq!(
        text["usage"],
        json!({
            "prompt_tokens": tokens.len(), "completion_tokens": 8, "total_tokens": tokens.len() + 8,
        })
    );
    let several = complete(json!({"prompt": [tokens, tokens], "n": 2, "logprobs": 1})).await;
    let choices = several["choices"].as_array().unwrap();
    assert!(choices.len() == 4 && choices.iter().all(|c| c["text"] == choice["text"]));
    assert_eq!(several["usage"]["prompt_tokens"], 2 * tokens.len());
    let logprobs = &choices[3]["logprobs"];
    let pieces: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(choice["text"], pieces.concat());
    assert_eq!(logprobs["text_offset"][1], pieces[0].chars().count());
    for (i, piece) in pieces.iter().enumerate() {
        assert_eq!(
            logprobs["top_logprobs"][i][*piece], logprobs["token_logprobs"][i],
            "greedy draws the likeliest"
        );
    }
    let (before, stop) = (pieces[..2].concat(), pieces[2..4].concat());
    let stopped = complete(json!({"prompt": "The lantern", "stop": stop})).await;
    assert_eq!(stopped["choices"][0]["text"], before);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["usage"]["completion_tokens"], 4);
}

#[tokio::test]
async fn what_is_wrong_has_its_status_its_field_and_its_code() {
    let server = server(2, Options { limits: Limits { body: 40_000, ..Limits::default() }, ..options() });
    let long = "lantern ".repeat(2000);
    for (with, status, param, code) in [
        (json!({"messages": [{"role": "user", "content": 5}]}), 400, "messages[0].content", ""),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), 400, "messages[0].role", ""),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            "messages[0].content[0].type",
            "",
        ),
        (json!({"messages": []}), 400, "messages", ""),
        (json!({"messages": null}), 400, "messages", ""),
        (json!({"messages": [{"content": "x"}]}), 400, "messages[0].role", ""),
        (
            json!({"messages": [{"role": "user", "content": long}]}),
            400,
            "messages",
            "context_length_exceeded",
        ),
        (json!({"max_tokens": 1020}), 400, "messages", "context_length_exceeded"),
        (json!({"max_tokens": 0}), 400, "max_tokens", ""),
        (json!({"max_completion_tokens": 4000}), 400, "max_completion_tokens", ""),
        (json!({"temperature": 2.5}), 400, "temperature", ""),
        (json!({"temperature": "hot"}), 400, "temperature", ""),
        (json!({"top_p": -0.1}), 400, "top_p", ""),
        (json!({"n": 9}), 400, "n", ""),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), 400, "stop", ""),
        (json!({"stop": ""}), 400, "stop", ""),
        (json!({"top_logprobs": 3}), 400, "top_logprobs", ""),
        (json!({"logprobs": true, "top_logprobs": 21}), 400, "top_logprobs", ""),
        (json!({"tools": [{"type": "function"}]}), 400, "tools", "unsupported"),
        (json!({"response_format": {"type": "json_object"}}), 400, "response_format", "unsupported"),
        (json!({"steering": {"ablate": "third"}}), 400, "steering.ablate", "direction_not_found"),
        (json!({"steering": {"erase": "thirds"}}), 400, "steering.erase", ""),
        (json!({"model": "gpt"}), 404, "model", "model_not_found"),
    ] {
        let answer = chat(&server, &with).await;
        let error = &answer.json()["error"];
        assert_eq!(answer.status.as_u16(), status, "{with}: {error}");
        assert_eq!(error["param"], param, "{error}");
        assert_eq!(error["code"].as_str().unwrap_or_default(), code, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let fine = json!({
        "model": "lorekeeper", "tools": null, "tool_choice": "none", "response_format": {"type": "text"}, "logit_bias": {},
        "presence_penalty": 0, "user": "x", "unknown": {"a": 1}, "max_tokens": 1,
    });
    assert_eq!(chat(&server, &fine).await.status, 200);

    let json = Some("application/json");
    let path = "/v1/chat/completions";
    let deep = format!("{{\"messages\":{}", "[".repeat(9000));
    for (request, status) in [
        (request("POST", path, json, "{\"messages\": ["), 400),
        (request("POST", path, json, asking(&json!({})).to_string() + " x"), 400),
        (request("POST", path, json, deep), 400),
        (request("POST", path, json, vec![0xff, 0xfe]), 400),
        (request("POST", path, json, "[1]"), 400),
        (request("POST", path, Some("text/plain"), "{}"), 415),
        (request("POST", path, None, "{}"), 415),
        (request("POST", path, json, "x".repeat(40_001)), 413),
        (request("GET", path, None, ""), 405),
        (request("GET", "/v1/nothing", None, ""), 404),
        (request("GET", "/v1/models/gpt", None, ""), 404),
        (request("GET", "/v1/directions/%ff", None, ""), 400),
        (request("PUT", "/v1/directions/x?block=-1", None, ""), 400),
        (request("PUT", "/v1/directions/x", None, "junk"), 400),
        (request("DELETE", "/v1/directions/x", None, ""), 404),
        (request("GET", "/", None, ""), 200),
        (request("GET", "/v1/models/lorekeeper", None, ""), 200),
    ] {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = send(&server, request).await;
        assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.text);
        if status >= 400 {
            assert!(answer.json()["error"]["message"].is_string(), "{what}");
        }
    }
}

#[tokio::test]
async fn a_request_that_breaks_the_model_breaks_no_other() {
    let server = server(3, options());
    let alone = chat(&server, &json!({})).await.content();
    // What is added overflows, and cannot be erased after it.
    let add = json!([{"direction": "thirds", "scale": 2e38}, {"direction": "thirds", "scale": 2e38}]);
    let broken = json!({"steering": {"ablate": "fifths", "add": add}});
    let (plain, broken) = (json!({}), chat(&server, &broken));
    let (before, broken, after) = tokio::join!(chat(&server, &plain), broken, chat(&server, &plain));
    assert_eq!((before.content(), after.content()), (alone.clone(), alone.clone()));
    let error = &broken.json()["error"];
    assert_eq!((broken.status.as_u16(), &error["type"]), (500, &json!("server_error")), "{error}");
    assert_eq!(chat(&server, &plain).await.content(), alone);
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_place_and_a_full_queue_says_so() {
    let limits = Limits { queue: 1, ..Limits::default() };
    // A prompt of many decodes, so that it is under way for long.
    let slow = SessionOptions { n_batch: 1, ..session(1) };
    let server = Server::start(model(), slow, directions(), Options { limits, ..options() }).unwrap();
    let messages = json!([{"role": "user", "content": "lantern ".repeat(400)}]);
    let long = asking(&json!({"messages": messages, "stream": true}));
    let open = async || server.router().oneshot(post("/v1/chat/completions", &long)).await.unwrap();
    let (first, second) = (open().await, open().await);
    let full = chat(&server, &json!({})).await;
    assert_eq!((full.status.as_u16(), full.json()["error"]["code"].as_str()), (429, Some("queue_full")));
    assert_eq!(full.headers[header::RETRY_AFTER], "1");
    let (busy, waiting) = (server.stats().slots.busy, server.stats().queue.waiting);
    assert_eq!((first.status(), second.status(), busy + waiting), (StatusCode::OK, StatusCode::OK, 2));
    drop((first, second));
    assert_eq!(chat(&server, &json!({})).await.status, 200);
    idle(&server).await;
    let stats = server.stats();
    assert!(stats.queue.waiting == 0 && stats.tokens.prompt < 700, "{stats:?}");
    let too_many = json!({"prompt": "a", "n": 3});
    assert_eq!(send(&server, post("/v1/completions", &too_many)).await.status, 400);
}

#[tokio::test]
async fn directions_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("direction.gguf");
    directions()[0].direction.save(&path, false).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let steering = serde_json::from_value(json!({"add": "thirds", "scale": 4})).unwrap();
    let server = server(2, Options { steering, ..options() });
    let put = || request("PUT", "/v1/directions/my%20own", Some("application/octet-stream"), bytes.clone());
    let answer = send(&server, put()).await;
    assert_eq!(answer.status, 201);
    let listed = answer.json();
    assert_eq!((&listed["id"], &listed["block"], &listed["layer"]), (&json!("my own"), &json!(3), &json!(4)));
    assert_eq!(send(&server, put()).await.status, 200);
    let mine = json!({"steering": {"add": {"direction": "my own", "scale": 4.0}}});
    // Requests that bring no steering have that of the server; an empty one is plain.
    let (own, default, plain) = (
        chat(&server, &mine).await,
        chat(&server, &json!({})).await,
        chat(&server, &json!({"steering": {}})).await,
    );
    assert_eq!(own.content(), default.content());
    assert_ne!(own.content(), plain.content());
    let delete = |name: &str| request("DELETE", &format!("/v1/directions/{name}"), None, "");
    assert_eq!(send(&server, delete("my%20own")).await.status, 204);
    assert_eq!(send(&server, delete("thirds")).await.status, 409);
    assert_eq!(chat(&server, &mine).await.json()["error"]["code"], "direction_not_found");
    let list = send(&server, request("GET", "/v1/directions", None, "")).await.json();
    let names: Vec<&Value> = list["data"].as_array().unwrap().iter().map(|d| &d["id"]).collect();
    assert_eq!(names, ["thirds", "fifths"]);
}

#[tokio::test]
async fn only_those_who_may_are_served() {
    let get = |path: &str, name: &'static str, value: &'static str| {
        let mut request = request("GET", path, None, "");
        request.headers_mut().insert(name, HeaderValue::from_static(value));
        request
    };
    let open = server(1, options());
    for (host, status) in
        [("localhost", 200), ("127.0.0.1:8080", 200), ("[::1]:80", 200), ("evil.example", 403)]
    {
        assert_eq!(send(&open, get("/health", "host", host)).await.status.as_u16(), status, "{host}");
    }
    let no_preflight = send(&open, get("/health", "origin", "https://evil.example")).await;
    assert!(!no_preflight.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));

    let allow_origin = Some(HeaderValue::from_static("https://lantern.example"));
    let closed = server(1, Options { api_key: Some("s3cret".into()), allow_origin, ..options() });
    for (value, status) in [
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("Bearer s3cre", 401),
        ("Bearer s3cret ", 401),
        ("Bearer ", 401),
        ("s3cret", 401),
        ("Basic s3cret", 401),
    ] {
        let answer = send(&closed, get("/v1/models", "authorization", value)).await;
        assert_eq!(answer.status.as_u16(), status, "{value}");
    }
    assert_eq!(send(&closed, request("GET", "/v1/models", None, "")).await.status, 401);
    for path in ["/", "/health"] {
        assert_eq!(send(&closed, get(path, "host", "lantern.example")).await.status, 200);
    }
    let mut preflight = request("OPTIONS", "/v1/chat/completions", None, "");
    let headers = preflight.headers_mut();
    headers.insert(header::ORIGIN, HeaderValue::from_static("https://lantern.example"));
    headers.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("POST"));
    let allowed = send(&closed, preflight).await;
    assert_eq!(allowed.headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://lantern.example");
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let limits = Limits { timeout: Duration::from_millis(20), ..Limits::default() };
    let server = server(1, Options { limits, ..options() });
    let begun =
        stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) }).chain(stream::pending());
    let slow = request("POST", "/v1/completions", Some("application/json"), Body::from_stream(begun));
    assert_eq!(send(&server, slow).await.status, 408);
    let cut = stream::iter([Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("cut"))]);
    let cut = request("POST", "/v1/completions", Some("application/json"), Body::from_stream(cut));
    assert_eq!(send(&server, cut).await.status, 400);
}

#[tokio::test]
async fn the_log_has_a_line_a_request_and_no_word_of_it() {
    let lines: Arc<Mutex<Vec<Logged>>> = Arc::default();
    let kept = Arc::clone(&lines);
    let logger = Arc::new(move |logged: &Logged| kept.lock().unwrap().push(logged.clone()));
    let server = server(1, Options { logger: Some(logger), ..options() });
    let said = chat(&server, &json!({"stream": true})).await.chunks();
    assert!(said.len() > 2);
    send(&server, request("GET", "/v1/models/secret", None, "")).await;
    send(&server, request("GET", "/secret", None, "")).await;
    let lines = lines.lock().unwrap();
    let shown: Vec<String> = lines.iter().map(|l| format!("{} {} {}", l.method, l.route, l.status)).collect();
    assert_eq!(shown, ["POST /v1/chat/completions 200", "GET /v1/models/{id} 404", "GET - 404"]);
    assert!(lines[0].n_tokens > 0 && lines[1].n_tokens == 0);
}

#[tokio::test]
async fn an_end_completes_what_is_under_way_and_takes_no_more() {
    let server = server(1, options());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(server.run(listener, async { drop(ended.await) }));
    let mut client = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut idle = tokio::net::TcpStream::connect(address).await.unwrap();
    let body = asking(&json!({"stream": true, "max_tokens": 64})).to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let length = body.len();
    let request = format!("{head}Content-Length: {length}\r\n\r\n{body}");
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 16];
    client.read_exact(&mut answer).await.unwrap();
    end.send(()).unwrap();
    client.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("data: [DONE]"), "{answer}");
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap_or(0), 0, "a silent connection is closed");
    running.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
