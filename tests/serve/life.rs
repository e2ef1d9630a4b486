//! Clients that leave or are slow, directions that change under way, and the server's end.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::json;

use crate::server::{JSON, Server, Stream, chat, connect, content, request};
use crate::{ENDLESS, LONG, RESTRICTED, made};

/// So much of a direction that it alone decides every token, whatever the batch does to the last digits.
fn steered(direction: &str) -> serde_json::Value {
    json!({"max_tokens": 600, "steering": {"add": {"direction": direction, "scale": 1_000}}})
}

/// The longest answer there is.
fn long() -> serde_json::Value {
    json!({"max_tokens": LONG})
}

#[test]
fn a_client_that_leaves_frees_its_slot() {
    let server = Server::endless("--slots 2");
    let count = |health: &serde_json::Value| health["tokens"]["completion"].as_u64().unwrap();
    // While it is streamed to, while it waits for the whole, while it waits for a slot.
    let streams: Vec<Stream> = (0..2).map(|_| server.stream(ENDLESS, &long()).begun()).collect();
    let body = chat(ENDLESS, &long()).to_string();
    let mut waiting = connect(server.port);
    waiting.write_all(&request("POST", "/v1/chat/completions", JSON, body.as_bytes())).unwrap();
    server.until("one waits", |health| health["queue"]["waiting"] == 1);
    assert_eq!(server.busy(), 2);
    drop(streams);
    server.until("the waiting one alone", |health| {
        health["slots"]["busy"] == 1 && health["queue"]["waiting"] == 0
    });
    drop(waiting);
    let health = server.until("all have left", |health| health["slots"]["busy"] == 0);
    println!("{health}: of {} tokens asked for", 3 * LONG);
    assert!(count(&health) < LONG as u64, "none was computed to its end: {health}");

    // One that waits and leaves is not begun.
    let streams: Vec<Stream> = (0..2).map(|_| server.stream(ENDLESS, &long()).begun()).collect();
    let mut waiting = connect(server.port);
    waiting.write_all(&request("POST", "/v1/chat/completions", JSON, body.as_bytes())).unwrap();
    server.until("one waits", |health| health["queue"]["waiting"] == 1);
    drop(waiting);
    server.until("it has left", |health| health["queue"]["waiting"] == 0);
    drop(streams);
    let before = server.until("all have left", |health| health["slots"]["busy"] == 0);
    assert_eq!(server.chat(ENDLESS, &json!({"max_tokens": 5}))["usage"]["completion_tokens"], 5);
    // Counted after the answer is sent, perhaps.
    server.until("no more than those", |health| count(health) == count(&before) + 5);
    server.stop();
}

#[test]
fn slow_clients_hold_up_nobody() {
    let server = Server::endless("--slots 4 --timeout 2");
    let before = server.memory();
    // Slow headers, a slow body, and streams that nobody reads: more of them than slots.
    let mut headers: Vec<TcpStream> = (0..40).map(|_| connect(server.port)).collect();
    for stream in &mut headers {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: local").unwrap();
    }
    let mut bodies: Vec<TcpStream> = (0..40).map(|_| connect(server.port)).collect();
    let body = chat(ENDLESS, &json!({"max_tokens": 3})).to_string();
    let whole = request("POST", "/v1/chat/completions", JSON, body.as_bytes());
    for stream in &mut bodies {
        stream.write_all(&whole[..whole.len() - 5]).unwrap();
    }
    let mut asks =
        chat(ENDLESS, &json!({"max_tokens": 1_000, "stream": true, "logprobs": true, "top_logprobs": 20}));
    asks["steering"] = json!({"read": true});
    let asks = request("POST", "/v1/chat/completions", JSON, asks.to_string().as_bytes());
    let deaf: Vec<TcpStream> = (0..8)
        .map(|_| {
            let mut stream = connect(server.port);
            stream.write_all(&asks).unwrap();
            stream
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(server.chat(ENDLESS, &json!({"max_tokens": 3}))["usage"]["completion_tokens"], 3);
    }
    // Nobody reads, and all of it is computed all the same.
    server.until("the unread answers are there", |health| {
        health["slots"]["busy"] == 0 && health["tokens"]["completion"].as_u64() >= Some(8 * 1_000)
    });
    println!("memory in MiB: {} at first, {} with 88 slow clients", before / 1024, server.memory() / 1024);

    // Those who send too slowly are told, or dropped.
    for mut stream in headers {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the server hangs");
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 408"), "{}", String::from_utf8_lossy(&rest));
    }
    for mut stream in bodies {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("the server hangs");
        let rest = String::from_utf8(rest).unwrap();
        assert!(rest.starts_with("HTTP/1.1 408") && rest.contains("--timeout"), "{rest}");
    }
    drop(deaf);
    assert_eq!(server.chat(ENDLESS, &json!({"max_tokens": 3}))["usage"]["completion_tokens"], 3);
    server.stop();
}

#[test]
fn a_full_queue_says_so() {
    let server = Server::endless("--slots 1 --queue 1");
    let running = server.stream(ENDLESS, &long()).begun();
    let waiting = server.stream(ENDLESS, &json!({"max_tokens": 1}));
    server.until("one waits", |health| health["queue"]["waiting"] == 1);
    let reply = server.post("/v1/chat/completions", &chat(ENDLESS, &json!({"max_tokens": 1})));
    assert_eq!(reply.status, 429, "{}", reply.text());
    assert!(reply.header("retry-after").is_some_and(|s| s.parse::<u32>().is_ok()), "{}", reply.head);
    println!("{}", reply.error());
    // More at once than could ever wait is no matter of time.
    let many = server.post("/v1/chat/completions", &chat(ENDLESS, &json!({"max_tokens": 1, "n": 8})));
    assert!([400, 429].contains(&many.status), "{}", many.text());
    drop(running);
    let (_, finish) = waiting.rest();
    assert_eq!(finish, "length", "the one that waited had its turn");
    server.stop();
}

#[test]
fn answers_under_way_keep_their_directions() {
    let server = Server::endless("--slots 2");
    let old = steered("twist");
    let alone = server.stream(ENDLESS, &old).rest();
    assert_eq!(alone.1, "length", "the model is endless");
    let plain = server.stream(ENDLESS, &json!({"max_tokens": 600})).rest();
    assert_ne!(plain.0, alone.0, "the direction matters");

    let put = |name: &str, status| {
        let file = std::fs::read(made().join("twist2.gguf")).unwrap();
        let header = "Content-Type: application/octet-stream\r\n";
        let reply = server.ask("PUT", &format!("/v1/directions/{name}"), header, &file);
        assert_eq!(reply.status, status, "{}", reply.text());
        assert_eq!(reply.json()["id"], name);
    };
    let spec = crate::endless();
    let other = crate::tiny_direction(spec.n_embd, 9);
    other.save(made().join("twist2.gguf"), true).unwrap();

    let running = server.stream(ENDLESS, &old).begun();
    put("twist", 200);
    put("another", 201);
    let after = server.stream(ENDLESS, &old).begun();
    let reply = server.ask("DELETE", "/v1/directions/twist", "", b"");
    assert_eq!(reply.status, 204, "{}", reply.text());
    assert_eq!(server.busy(), 2, "both are under way");
    assert_eq!(running.rest(), alone, "begun before: the old direction to its end");
    let (text, _) = after.rest();
    assert_ne!(text, alone.0, "begun after: the new one");
    assert_eq!(
        server.stream(ENDLESS, &steered("another")).rest().0,
        text,
        "which it keeps after its removal"
    );
    let reply = server.post("/v1/chat/completions", &chat(ENDLESS, &old));
    assert_eq!((reply.status, &reply.error()["code"]), (400, &json!("direction_not_found")));
    server.stop();
}

#[test]
fn the_command_lines_steering_is_for_those_who_bring_none() {
    let server = Server::sample("--ablate refusal");
    let [none, plain, erased] =
        [json!({}), json!({"steering": {}}), json!({"steering": {"ablate": "refusal"}})]
            .map(|more| content(&server.chat(RESTRICTED, &more)).to_owned());
    assert_eq!(none, erased);
    assert_ne!(plain, erased);
    let read = server.chat(RESTRICTED, &json!({"steering": {"read": "refusal"}}));
    assert_eq!(content(&read), plain, "to read is not to steer");
    server.stop();
}

#[test]
fn a_signal_lets_running_answers_end() {
    // Both signals, with a stream and a whole answer under way.
    for signal in ["TERM", "INT"] {
        let server = Server::endless("--slots 2 --timeout 1000");
        let alone = server.stream(ENDLESS, &steered("twist")).rest();
        let stream = server.stream(ENDLESS, &steered("twist")).begun();
        let mut whole = connect(server.port);
        let body = chat(ENDLESS, &json!({"max_tokens": 600})).to_string();
        whole.write_all(&request("POST", "/v1/chat/completions", JSON, body.as_bytes())).unwrap();
        server.until("both are under way", |health| health["slots"]["busy"] == 2);
        server.signal(signal);
        assert_eq!(stream.rest(), alone);
        let mut answer = String::new();
        whole.read_to_string(&mut answer).expect("the server hangs");
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"length\""), "{answer}");
        let (status, said) = server.ended();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    // What does not end in time is ended, and so is everything by a second signal.
    for (arguments, twice) in [("--timeout 1", false), ("--timeout 1000", true)] {
        let server = Server::endless(&format!("{arguments} --slots 2"));
        let streams: Vec<Stream> = (0..2).map(|_| server.stream(ENDLESS, &long()).begun()).collect();
        server.signal("TERM");
        if twice {
            // Of two signals that wait, the system may give the second first.
            server.closed();
            server.signal("INT");
        }
        let (status, said) = server.ended();
        // A second signal is a death by that signal, as shells number it.
        assert_eq!(status.code(), Some(if twice { 130 } else { 0 }), "{said}");
        assert!(!said.contains("panicked"), "{said}");
        let whole =
            streams.into_iter().filter_map(Stream::outcome).filter(|finish| finish == "length").count();
        assert!(whole < 2, "not all came to their end");
    }
}
