//! A thousand requests that nobody should send, and what they leave behind.

use std::collections::BTreeMap;

use ggsteer::random::SplitMix64;
use serde_json::{Value as Json, json};

use crate::server::{JSON, Reply, Server, Then, chat, content, request};
use crate::{ORDINARY, RESTRICTED, made};

const N: usize = 1_000;

/// What memory may grow by, in KiB: 1,000 requests that leave 8 KiB each (a header, a body, a channel) would grow it by as much.
/// What a decode needs was allocated by the requests before.
const FLAT: u64 = 8_000;

/// A junk request, what the client does then, and the statuses that answer it; 0 is a closed connection.
type Junk = (&'static str, Vec<u8>, Then, &'static [u16]);

fn below(random: &mut SplitMix64, n: usize) -> usize {
    (random.bits() % n as u64) as usize
}

fn some_bytes(random: &mut SplitMix64, most: usize) -> Vec<u8> {
    (0..=below(random, most)).map(|_| random.bits() as u8).collect()
}

/// A request that is well.
fn well() -> String {
    let steering = json!({"ablate": ["refusal"], "read": true});
    chat(ORDINARY, &json!({"max_tokens": 2, "steering": steering})).to_string()
}

fn post(body: &[u8]) -> Vec<u8> {
    request("POST", "/v1/chat/completions", JSON, body)
}

/// What is no HTTP, or asks for what is not there.
fn odd_http(random: &mut SplitMix64) -> Junk {
    let post_head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    match below(random, 7) {
        0 => ("random bytes", some_bytes(random, 2_000), Then::End, &[0, 400, 414, 431, 505]),
        1 => {
            let mut whole = post(well().as_bytes());
            whole.truncate(1 + below(random, whole.len() - 1));
            ("cut off", whole, Then::End, &[0, 400])
        }
        2 => {
            let method = ["BREW", "TRACE", "PATCH", "get", "PUT", "DELETE"][below(random, 6)];
            let path = ["/v1/chat/completions", "/v1/completions", "/v1/models", "/health"][below(random, 4)];
            ("wrong methods", request(method, path, "", b""), Then::Wait, &[405])
        }
        3 => {
            let path: String =
                (0..below(random, 60)).map(|_| char::from(b'!' + (random.bits() % 90) as u8)).collect();
            ("wrong paths", request("GET", &format!("/x{path}"), "", b""), Then::Wait, &[400, 404])
        }
        4 => {
            let n = 200 + below(random, 800);
            let headers: String =
                (0..n).map(|i| format!("X-{i}: {}\r\n", "a".repeat(below(random, 900)))).collect();
            ("huge headers", request("GET", "/health", &headers, b""), Then::End, &[431])
        }
        5 => {
            let n = below(random, well().len());
            let size = n + below(random, 500);
            let sent = format!("{post_head}Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n{}", &well()[..n]);
            ("chunks cut off", sent.into_bytes(), Then::End, &[0, 400])
        }
        _ => {
            let length = ["1000000000000", "-1", "1 2", "99999999999999999999999", "0x10"][below(random, 5)];
            let sent = format!("{post_head}Content-Length: {length}\r\n\r\n{}", well());
            ("wrong lengths", sent.into_bytes(), Then::End, &[400, 413])
        }
    }
}

/// Bodies that are not what they should be.
fn odd_body(random: &mut SplitMix64, gguf: &[u8]) -> Junk {
    match below(random, 7) {
        0 => {
            let (open, close) = [("[", "]"), ("{\"a\":", "}"), ("{\"messages\":[", "]}")][below(random, 3)];
            let n = 200 + below(random, 1_500);
            let body = format!("{}1{}", open.repeat(n), close.repeat(n));
            ("deep JSON", post(body.as_bytes()), Then::Wait, &[400])
        }
        1 => {
            let kind = ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""]
                [below(random, 4)];
            let header = format!("Content-Type: {kind}\r\n");
            let all = request("POST", "/v1/chat/completions", &header, well().as_bytes());
            ("wrong content types", all, Then::Wait, &[415])
        }
        2 => {
            let mut body = well().into_bytes();
            let at = body.windows(4).position(|w| w == b"Wise").unwrap() + below(random, 20);
            body[at] = 0x80 + (random.bits() % 0x40) as u8;
            ("bad UTF-8", post(&body), Then::Wait, &[400])
        }
        3 => {
            let mut body = well().into_bytes();
            for _ in 0..=below(random, 4) {
                let at = below(random, body.len());
                body[at] = b' ' + (random.bits() % 95) as u8;
            }
            ("JSON with other letters", post(&body), Then::Wait, &[200, 400, 404])
        }
        4 => {
            let fields = ["messages", "temperature", "max_tokens", "n", "stop", "stream", "steering", "seed"];
            let field = fields[below(random, 8)];
            let wrong = [json!({"a": 1}), json!(-3.5), json!("\u{0}"), json!([[]]), json!(1e300)];
            let mut body: Json = serde_json::from_str(&well()).unwrap();
            body[field] = wrong[below(random, 5)].clone();
            // A stop string may be any.
            let allowed: &[u16] = if field == "stop" && body[field].is_string() { &[200] } else { &[400] };
            ("wrong types", post(body.to_string().as_bytes()), Then::Wait, allowed)
        }
        5 => {
            let mut file = gguf.to_vec();
            match below(random, 3) {
                0 => file.truncate(below(random, gguf.len())),
                1 => file = some_bytes(random, 3_000),
                // In the header: counts, lengths, types, names.
                _ => (0..8).for_each(|_| file[below(random, 600)] = random.bits() as u8),
            }
            let header = "Content-Type: application/octet-stream\r\n";
            let all = request("PUT", "/v1/directions/junk", header, &file);
            ("broken directions", all, Then::Wait, &[200, 201, 400])
        }
        _ => {
            let body = vec![b' '; 20_001 + below(random, 60_000)];
            ("too much", post(&body), Then::End, &[413])
        }
    }
}

#[test]
fn a_thousand_junk_requests_change_nothing() {
    let server = Server::sample("--max-body 20000 --timeout 20");
    let before = server.memory();
    let steering = json!({"steering": {"ablate": "refusal", "read": "refusal"}});
    let expected = server.chat(RESTRICTED, &steering);
    ordinary(&server, 64);
    let warm = server.memory();

    let gguf = std::fs::read(made().join("refusal.gguf")).unwrap();
    let mut random = SplitMix64(7);
    let mut counts: BTreeMap<(&str, u16), usize> = BTreeMap::new();
    for i in 0..N {
        let (kind, bytes, then, allowed) =
            if i % 2 == 0 { odd_http(&mut random) } else { odd_body(&mut random, &gguf) };
        let reply = server.raw(&bytes, then);
        let status = reply.as_ref().map_or(0, |reply| reply.status);
        let shown = || format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(400)]));
        let said = reply.as_ref().map_or(String::new(), Reply::text);
        assert!(
            allowed.contains(&status),
            "request {i}, {kind}: {status} {said}, expected {allowed:?}: {}",
            shown()
        );
        // The HTTP library's own refusals have no body.
        if let Some(reply) = reply.filter(|reply| status >= 400 && !reply.body.is_empty()) {
            reply.error();
        }
        *counts.entry((kind, status)).or_default() += 1;
        if i % 100 == 99 {
            assert_eq!(server.get("/health").json()["status"], "ok");
        }
    }
    for ((kind, status), n) in &counts {
        println!("{n:4} {kind}: {}", if *status == 0 { "closed".into() } else { status.to_string() });
    }
    assert!(counts.keys().filter(|(_, status)| *status == 200).count() <= 3);
    let junk = server.memory();
    let again = server.chat(RESTRICTED, &steering);
    assert_eq!(again["choices"], expected["choices"], "the same answer as before");

    ordinary(&server, N);
    let after = server.memory();
    println!(
        "memory in MiB: {:.1} at first, {:.1} after 64 ordinary requests, {:.1} after {N} of junk, {:.1} after {N} ordinary ones",
        mib(before),
        mib(warm),
        mib(junk),
        mib(after)
    );
    assert!(junk <= warm + FLAT, "{warm} KiB before the junk, {junk} after");
    assert!(after <= junk + FLAT, "{junk} KiB before {N} ordinary requests, {after} after");
    let health = server.until("nothing is left", |health| health["slots"]["busy"] == 0);
    assert_eq!(health["queue"]["waiting"], 0);
    server.stop();
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Short requests of four clients, streamed and not, steered and not.
fn ordinary(server: &Server, n: usize) {
    std::thread::scope(|scope| {
        for client in 0..4 {
            scope.spawn(move || {
                for i in 0..n / 4 {
                    let steering =
                        if i % 2 == 0 { json!({}) } else { json!({"ablate": "refusal", "read": true}) };
                    let more = json!({"max_tokens": 4, "steering": steering});
                    if client % 2 == 0 {
                        assert_ne!(content(&server.chat(ORDINARY, &more)), "");
                    } else {
                        assert_ne!(server.stream(ORDINARY, &more).rest().0, "");
                    }
                }
            });
        }
    });
}
