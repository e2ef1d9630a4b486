//! What is refused, by which status and in which words; and who may ask at all.

use std::process::Output;

use serde_json::{Value as Json, json};

use crate::program::refusal;
use crate::server::{JSON, Server, Then, command, request};
use crate::{RESTRICTED, direction, made, sample};

const CHAT: &str = "/v1/chat/completions";
const TEXT: &str = "/v1/completions";

/// Checks the status, the code and the words of a refusal.
fn refused(server: &Server, path: &str, body: &[u8], status: u16, field: &str, words: &[&str]) -> Json {
    let reply = server.ask("POST", path, JSON, body);
    let shown = String::from_utf8_lossy(&body[..body.len().min(200)]);
    assert_eq!(reply.status, status, "{shown}: {}", reply.text());
    assert_eq!(reply.header("content-type"), Some("application/json"), "{shown}");
    let error = reply.error();
    println!("{status} {error}");
    let expected = if status == 404 || status == 400 { "invalid_request_error" } else { "server_error" };
    assert_eq!(error["type"], expected, "{shown}");
    if !field.is_empty() {
        assert_eq!(error["param"], field, "{shown}: {error}");
    }
    for word in words {
        assert!(error["message"].as_str().unwrap().contains(word), "{shown}: {word:?} is missing: {error}");
    }
    error
}

/// A small request with other fields.
fn with(mut body: Json, more: &Json) -> String {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

fn chat(more: &Json) -> String {
    with(json!({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}), more)
}

fn text(more: &Json) -> String {
    with(json!({"prompt": "hello", "max_tokens": 2}), more)
}

#[test]
fn what_is_wrong_is_named_and_the_server_goes_on() {
    let server = Server::sample("--max-tokens 200 --max-body 100000");
    no_json(&server);
    wrong_chats(&server);
    wrong_prompts(&server);
    wrong_routes(&server);
    wrong_directions(&server);
    let answer = server.chat(RESTRICTED, &json!({"steering": {}}));
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    server.stop();
}

/// No JSON, or not what it should hold.
fn no_json(server: &Server) {
    for body in
        ["", "{", "nothing", "{\"messages\": [}", "\u{feff}{}", "{\"messages\":[]}{", "[]", "3", "null"]
    {
        for path in [CHAT, TEXT] {
            refused(server, path, body.as_bytes(), 400, "", &[]);
        }
    }
    for body in ["[]", "3", "null", "\"words\"", "true"] {
        refused(server, CHAT, body.as_bytes(), 400, "", &["JSON object"]);
    }
    refused(server, CHAT, b"{\"messages\": \"\xff\xfe\"}", 400, "", &[]);
    refused(server, CHAT, "[".repeat(90_000).as_bytes(), 400, "", &[]);
    refused(
        server,
        CHAT,
        format!("{}1{}", "{\"a\":".repeat(9_000), "}".repeat(9_000)).as_bytes(),
        400,
        "",
        &[],
    );
}

fn wrong_chats(server: &Server) {
    for (more, field, words) in [
        (json!({"messages": 3}), "messages", &["messages"][..]),
        (json!({"messages": []}), "messages", &["messages"]),
        (json!({"messages": [{"role": "user"}]}), "", &["content"]),
        (json!({"messages": [{"role": "user", "content": 3}]}), "", &["messages[0]"]),
        (json!({"messages": [{"role": "wizard", "content": "a"}]}), "", &["role", "wizard"]),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]}),
            "",
            &["text", "image_url"],
        ),
        (json!({"max_tokens": "many"}), "max_tokens", &["max_tokens"]),
        (json!({"max_tokens": 0}), "max_tokens", &["max_tokens"]),
        (json!({"max_tokens": -1}), "max_tokens", &["max_tokens"]),
        (json!({"max_tokens": 201}), "max_tokens", &["200"]),
        (json!({"max_tokens": 1e30}), "max_tokens", &["max_tokens"]),
        (json!({"temperature": "hot"}), "temperature", &["temperature"]),
        (json!({"temperature": -1}), "temperature", &["temperature"]),
        (json!({"top_p": 2}), "top_p", &["top_p"]),
        (json!({"n": 0}), "n", &["n"]),
        (json!({"n": 9}), "n", &["8"]),
        (json!({"stop": 3}), "stop", &["stop"]),
        (json!({"stop": ["a", "b", "c", "d", "e"]}), "stop", &["4"]),
        (json!({"stream": "yes"}), "stream", &["stream"]),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs", &["20"]),
        (json!({"top_logprobs": 2}), "top_logprobs", &["logprobs"]),
        (json!({"seed": 1.5}), "seed", &["seed"]),
        (json!({"tools": [{"type": "function"}]}), "tools", &["tools"]),
        (json!({"response_format": {"type": "json_object"}}), "response_format", &["response_format"]),
        (json!({"presence_penalty": 1}), "presence_penalty", &["presence_penalty"]),
        (json!({"steering": 3}), "", &["steering"]),
        (json!({"steering": {"ablation": true}}), "", &["ablation"]),
        (json!({"steering": {"ablate": 3}}), "", &["ablate"]),
        (json!({"steering": {"add": {"direction": "refusal", "strength": 2}}}), "", &["steering.add"]),
        (json!({"steering": {"add": {"direction": "refusal", "positions": "some"}}}), "", &["steering.add"]),
        (json!({"steering": {"add": {"direction": "refusal", "block": 99}}}), "", &["99"]),
    ] {
        let error = refused(server, CHAT, chat(&more).as_bytes(), 400, field, words);
        assert!(error["code"].is_null() || error["code"].is_string(), "{error}");
    }
    for more in [
        json!({"ablate": "refusl"}),
        json!({"add": "refusl"}),
        json!({"read": "refusl"}),
        json!({"ablate": ["other", "refusl"]}),
    ] {
        let body = chat(&json!({"steering": more}));
        let error = refused(server, CHAT, body.as_bytes(), 400, "", &["refusl", "refusal"]);
        assert_eq!(error["code"], "direction_not_found");
    }
}

fn wrong_prompts(server: &Server) {
    for (more, field, words) in [
        (json!({"prompt": {"a": 1}}), "prompt", &["prompt"][..]),
        (json!({"prompt": []}), "prompt", &["prompt"]),
        (json!({"prompt": [1, "a"]}), "", &["prompt"]),
        (json!({"prompt": [99999]}), "", &["99999"]),
        (json!({"prompt": [-1]}), "", &["prompt"]),
        (json!({"echo": true}), "echo", &["echo"]),
        (json!({"logprobs": true}), "logprobs", &["logprobs"]),
        (json!({"logprobs": 21}), "logprobs", &["20"]),
        (json!({"suffix": "a"}), "suffix", &["suffix"]),
    ] {
        refused(server, TEXT, text(&more).as_bytes(), 400, field, words);
    }
    let long = "dust ".repeat(2_000);
    for (path, body) in [
        (CHAT, chat(&json!({"messages": [{"role": "user", "content": long}]}))),
        (TEXT, text(&json!({"prompt": long}))),
        (TEXT, text(&json!({"prompt": vec![65; 600]}))),
    ] {
        let error = refused(server, path, body.as_bytes(), 400, "", &["512"]);
        assert_eq!(error["code"], "context_length_exceeded");
    }
    for (path, body) in [(CHAT, chat(&json!({"model": "gpt-9"}))), (TEXT, text(&json!({"model": "gpt-9"})))] {
        let error = refused(server, path, body.as_bytes(), 404, "model", &["gpt-9", "lorekeeper-7m-f16"]);
        assert_eq!(error["code"], "model_not_found");
    }
}

/// Before any route reads a body.
fn wrong_routes(server: &Server) {
    let long_path = format!("/{}", "a".repeat(3_000));
    for (method, path, headers, body, status) in [
        ("GET", CHAT, "", &b""[..], 405),
        ("DELETE", CHAT, "", b"", 405),
        ("POST", "/v1/models", JSON, b"{}", 405),
        ("BREW", "/", "", b"", 405),
        ("GET", "/v2/models", "", b"", 404),
        ("GET", "/v1/models/gpt-9", "", b"", 404),
        ("GET", "/../etc/passwd", "", b"", 404),
        ("GET", long_path.as_str(), "", b"", 404),
        ("DELETE", "/v1/directions/none", "", b"", 404),
        ("POST", CHAT, "Content-Type: text/plain\r\n", b"{}", 415),
        ("POST", CHAT, "", b"{}", 415),
        ("PUT", "/v1/directions/new", "Content-Type: application/octet-stream\r\n", b"GGUF", 400),
        ("PUT", "/v1/directions/new", "Content-Type: application/octet-stream\r\n", b"", 400),
        ("POST", CHAT, JSON, &vec![b' '; 100_001], 413),
        (
            "PUT",
            "/v1/directions/new",
            "Content-Type: application/octet-stream\r\n",
            &vec![b'G'; 100_001],
            413,
        ),
    ] {
        let reply = server.ask(method, path, headers, body);
        assert_eq!(reply.status, status, "{method} {path} {headers}: {}", reply.text());
        println!("{status} {method} {} {}", &path[..path.len().min(30)], reply.error());
    }
}

/// Names and files.
fn wrong_directions(server: &Server) {
    let big = std::fs::read(made().join("refusal.gguf")).unwrap();
    for name in ["a/b", "%2e%2e%2fb", "a%00b", "%ff", "a%0ab", &"n".repeat(300)] {
        let reply = server.ask(
            "PUT",
            &format!("/v1/directions/{name}"),
            "Content-Type: application/octet-stream\r\n",
            &big,
        );
        assert!([400, 404].contains(&reply.status), "{name}: {} {}", reply.status, reply.text());
    }
    let twist = std::fs::read(made().join("twist.gguf")).unwrap();
    let reply =
        server.ask("PUT", "/v1/directions/twist", "Content-Type: application/octet-stream\r\n", &twist);
    assert_eq!(reply.status, 400, "a direction of another model: {}", reply.text());
    assert!(reply.error()["message"].as_str().unwrap().contains("256"), "{}", reply.text());
    assert_eq!(server.get("/v1/directions").json()["data"].as_array().unwrap().len(), 2);
}

#[test]
fn without_a_key_only_this_machine_is_answered() {
    let server = Server::sample("");
    let port = server.port;
    for (host, status) in [
        (format!("127.0.0.1:{port}"), 200),
        (format!("localhost:{port}"), 200),
        ("LOCALHOST".into(), 200),
        (format!("[::1]:{port}"), 200),
        ("evil.example".into(), 403),
        (format!("evil.example:{port}"), 403),
        (format!("127.0.0.1.evil.example:{port}"), 403),
        ("localhost.evil.example".into(), 403),
        (String::new(), 403),
    ] {
        for path in ["/v1/models", "/", "/health"] {
            let reply = server.ask("GET", path, &format!("Host: {host}\r\n"), b"");
            assert_eq!(reply.status, status, "{host} {path}");
        }
    }
    // Forms of other sites cannot send JSON, and their scripts are not let in.
    let origin = "Origin: https://evil.example\r\n";
    let asks = format!(
        "{origin}Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n"
    );
    let preflight = server.ask("OPTIONS", CHAT, &asks, b"");
    assert!(preflight.header("access-control-allow-origin").is_none(), "{}", preflight.head);
    assert!(server.ask("GET", "/v1/models", origin, b"").header("access-control-allow-origin").is_none());
    server.stop();

    let server = Server::sample("--allow-origin https://friend.example");
    let asks = asks.replace("evil", "friend");
    let preflight = server.ask("OPTIONS", CHAT, &asks, b"");
    assert_eq!(
        preflight.header("access-control-allow-origin"),
        Some("https://friend.example"),
        "{}",
        preflight.head
    );
    server.stop();
}

#[test]
fn a_key_opens_everything_but_the_page_and_the_health() {
    std::fs::write(made().join("key.txt"), "sesame-1\nanother line\n").unwrap();
    for arguments in ["--api-key sesame-1", "--api-key-file key.txt", "--host 0.0.0.0 --api-key sesame-1"] {
        let server = Server::sample(arguments);
        for path in ["/", "/health"] {
            assert_eq!(server.get(path).status, 200, "{path}");
        }
        for (header, status) in [
            ("", 401),
            ("Authorization: Bearer sesame-2\r\n", 401),
            ("Authorization: Bearer sesame-11\r\n", 401),
            ("Authorization: Bearer \r\n", 401),
            ("Authorization: sesame-1\r\n", 401),
            ("Authorization: Basic c2VzYW1lLTE=\r\n", 401),
            ("Authorization: Bearer sesame-1\r\n", 200),
            ("Host: my.machine.example\r\nAuthorization: Bearer sesame-1\r\n", 200),
        ] {
            for path in ["/v1/models", "/v1/directions"] {
                let reply = server.ask("GET", path, header, b"");
                assert_eq!(reply.status, status, "{header} {path}");
                if status == 401 {
                    let error = reply.error();
                    assert_eq!(error["code"], "invalid_api_key");
                    assert!(!reply.text().contains("sesame"), "{error}");
                }
            }
        }
        for (method, path) in [
            ("POST", CHAT),
            ("POST", TEXT),
            ("PUT", "/v1/directions/a"),
            ("DELETE", "/v1/directions/refusal"),
        ] {
            assert_eq!(server.ask(method, path, JSON, b"{}").status, 401, "{method} {path}");
        }
        assert!(!server.stop().contains("sesame"));
    }

    let fails = |arguments: &str, words: &[&str]| {
        let output: Output = command(arguments).output().unwrap();
        let quiet = String::from_utf8_lossy(&output.stderr)
            .lines()
            .filter(|line| line.starts_with("error: "))
            .count();
        assert_eq!(quiet, 1, "{}", String::from_utf8_lossy(&output.stderr));
        let stderr = [output.stderr.split_inclusive(|b| *b == b'\n').next_back().unwrap()].concat();
        refusal(&Output { stderr, ..output }, words);
    };
    let [model, file] = [sample(), direction("refusal")];
    fails(&format!("{model} --host 0.0.0.0"), &["0.0.0.0", "--api-key"]);
    fails(&format!("{model} --direction {file} --ablate none"), &["none"]);
    fails(&format!("{model} --direction {}", direction("twist")), &["twist"]);
    fails(&format!("{model} --direction {file} --direction refusal={file}"), &["refusal"]);
    fails(&format!("{model} --api-key-file nowhere.txt"), &["nowhere.txt"]);
    let first = Server::sample("");
    fails(&format!("{model} --port {}", first.port), &[&first.port.to_string()]);
    assert_eq!(first.get("/health").status, 200);
    first.stop();
}

#[test]
fn http_that_is_none_is_answered_or_closed() {
    let server = Server::sample("--max-body 100000");
    let long = format!("X-Long: {}\r\n", "a".repeat(600_000));
    let many = (0..500).map(|i| format!("X-{i}: a\r\n")).collect::<String>();
    let expects = server.ask("POST", CHAT, &format!("{JSON}Expect: 100-continue\r\n"), b"{}");
    assert!([100, 400].contains(&expects.status), "{}", expects.head);
    for (bytes, allowed) in [
        (b"\r\n\r\n\r\n".to_vec(), &[0, 400][..]),
        (b"GET\r\n\r\n".to_vec(), &[400]),
        (b"GET / HTTP/9.9\r\n\r\n".to_vec(), &[400, 505]),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header\r\n\r\n".to_vec(), &[400]),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), &[0, 400]),
        (request("GET", "/health", &long, b""), &[431]),
        (request("GET", "/health", &many, b""), &[431]),
        (request("GET", &format!("/{}", "a".repeat(70_000)), "", b""), &[414]),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99999999999999\r\n\r\n".to_vec(), &[413]),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: -3\r\n\r\n".to_vec(), &[400]),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}".to_vec(), &[400]),
        (b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n{}".to_vec(), &[400]),
    ] {
        let reply = server.raw(&bytes, Then::End);
        let status = reply.map_or(0, |reply| reply.status);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert!(allowed.contains(&status), "{shown:?}: {status}, expected one of {allowed:?}");
        assert_eq!(server.get("/health").status, 200, "{shown:?}");
    }
    server.stop();
}
