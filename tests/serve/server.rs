//! A server under test, and HTTP by hand: what is sent is exactly what a test says.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::{direction, made, sample};

/// Longer than anything a server does here, on any machine and under any sanitizer: what takes longer hangs.
pub const HANGS: Duration = Duration::from_mins(10);

/// A running `ggsteer serve`.
pub struct Server {
    process: Child,
    /// Where it listens.
    pub port: u16,
    stderr: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves the sample with its two directions.
    pub fn sample(more: &str) -> Self {
        let [refusal, other] = ["refusal", "other"].map(direction);
        Self::start(&format!("{} --direction {refusal} --direction {other} {more}", sample()))
    }

    /// Serves the model whose answers do not end.
    pub fn endless(more: &str) -> Self {
        let model = made().join("endless.gguf");
        Self::start(&format!(
            "{} --direction {} -n {} {more}",
            model.display(),
            direction("twist"),
            crate::LONG
        ))
    }

    /// Serves with these arguments, at a free port unless they name one, and waits until it listens.
    pub fn start(arguments: &str) -> Self {
        let mut process = command(arguments).spawn().unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap());
        let stderr = Arc::new(Mutex::new(String::new()));
        let (sender, port) = channel();
        let kept = Arc::clone(&stderr);
        let reader = std::thread::spawn(move || {
            for line in lines.split(b'\n') {
                let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
                if let Some(address) = line.strip_prefix("listening on http://") {
                    let port = address.rsplit(':').next().unwrap().trim_end_matches('/').parse::<u16>();
                    sender.send(port.unwrap()).unwrap();
                }
                *kept.lock().unwrap() += &(line + "\n");
            }
        });
        let port = port.recv_timeout(HANGS);
        let port = port.unwrap_or_else(|_| panic!("{arguments}: {}", stderr.lock().unwrap()));
        Self { process, port, stderr, reader: Some(reader) }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sends these bytes and reads to the end.
    pub fn raw(&self, bytes: &[u8], then: Then) -> Option<Reply> {
        exchange(self.port, bytes, then)
    }

    /// A whole request, after which the connection is closed.
    pub fn ask(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
        let request = request(method, path, headers, body);
        let reply = self.raw(&request, Then::Wait);
        reply.unwrap_or_else(|| panic!("{method} {path}: no answer; it said: {}", self.said()))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "", b"")
    }

    pub fn post(&self, path: &str, body: &Json) -> Reply {
        self.ask("POST", path, JSON, body.to_string().as_bytes())
    }

    /// What it answers to a chat of one message, with these fields besides, greedily unless they say otherwise.
    pub fn chat(&self, prompt: &str, more: &Json) -> Json {
        let reply = self.post("/v1/chat/completions", &chat(prompt, more));
        assert_eq!(reply.status, 200, "{more}: {}", reply.text());
        reply.json()
    }

    /// The same, as a stream whose events are read one by one.
    pub fn stream(&self, prompt: &str, more: &Json) -> Stream {
        let mut body = chat(prompt, more);
        body["stream"] = json!(true);
        Stream::open(self.port, &request("POST", "/v1/chat/completions", JSON, body.to_string().as_bytes()))
    }

    pub fn health(&self) -> Json {
        self.get("/health").json()
    }

    pub fn busy(&self) -> u64 {
        self.health()["slots"]["busy"].as_u64().unwrap()
    }

    /// Asks until something holds of its health.
    pub fn until(&self, what: &str, holds: impl Fn(&Json) -> bool) -> Json {
        let start = std::time::Instant::now();
        loop {
            let health = self.health();
            if holds(&health) {
                return health;
            }
            assert!(start.elapsed() < HANGS, "{what}: {health}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Memory it holds, in KiB.
    pub fn memory(&self) -> u64 {
        let pid = self.process.id();
        if let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) {
            let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
            return line.split_whitespace().nth(1).unwrap().parse().unwrap();
        }
        let output = Command::new("ps").args(["-o", "rss=", "-p", &pid.to_string()]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    /// What it wrote to stderr so far.
    pub fn said(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    pub fn signal(&self, name: &str) {
        let killed = Command::new("kill").args([format!("-{name}"), self.process.id().to_string()]).status();
        assert!(killed.unwrap().success());
    }

    /// Waits until it takes no connections. ThreadSanitizer delivers a signal only when its thread wakes, as each connection
    /// makes it.
    pub fn closed(&self) {
        let start = std::time::Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
            assert!(start.elapsed() < HANGS, "it goes on after a signal: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How it ended, with all it wrote to stderr.
    pub fn ended(mut self) -> (ExitStatus, String) {
        let status = self.process.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        (status, self.said())
    }

    /// Ends it as a supervisor does; it must end well, and must never have panicked.
    pub fn stop(self) -> String {
        self.signal("TERM");
        self.closed();
        let (status, said) = self.ended();
        assert!(status.success(), "{status}: {said}");
        assert!(!said.contains("panicked") && !said.contains("error: "), "{said}");
        said
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// `ggsteer serve` on one thread, its stderr to be read.
pub fn command(arguments: &str) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("ggsteer"));
    command.arg("serve").args(arguments.split_whitespace()).args(["--threads", "1"]);
    if !arguments.contains("--port") {
        command.args(["--port", "0"]);
    }
    // The settings of whoever runs the tests are not the tests'.
    command
        .current_dir(made())
        .env("XDG_CONFIG_HOME", made().join("no-settings"))
        .env_remove("GGSTEER_API_KEY");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The header of a body that is JSON.
pub const JSON: &str = "Content-Type: application/json\r\n";

/// A greedy chat of one message.
pub fn chat(prompt: &str, more: &Json) -> Json {
    let mut body = json!({"messages": [{"role": "user", "content": prompt}], "temperature": 0});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The text of an answer's only choice.
pub fn content(answer: &Json) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// A request's bytes; `headers` are whole lines.
pub fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let host = if headers.contains("Host:") { "" } else { "Host: localhost\r\n" };
    let head = format!(
        "{method} {path} HTTP/1.1\r\n{host}{headers}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// What a client does when all is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It waits.
    Wait,
    /// It says that nothing more comes.
    End,
}

/// Sends bytes and reads all that comes back; `None` where the connection is closed without a word.
fn exchange(port: u16, bytes: &[u8], then: Then) -> Option<Reply> {
    let mut stream = connect(port);
    // A server that has seen enough need not read the rest.
    let _ = stream.write_all(bytes);
    if then == Then::End {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut read = Vec::new();
    match stream.read_to_end(&mut read) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the server hangs"),
        // What was read before a reset counts.
        _ => Reply::parse(&read),
    }
}

pub fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(HANGS)).unwrap();
    stream
}

/// An answer.
pub struct Reply {
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut reply = Self { status, head, body: bytes[end + 4..].to_vec() };
        if reply.header("transfer-encoding") == Some("chunked") {
            reply.body = whole(&reply.body);
        }
        Some(reply)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.head, self.text()))
    }

    /// Checks that it is an error as OpenAI's are; returns it.
    pub fn error(&self) -> Json {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("{json}"));
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["message", "type", "param", "code"], "{json}");
        assert!(error["message"].as_str().is_some_and(|words| !words.is_empty()), "{json}");
        assert!(!self.text().contains(made().to_str().unwrap()), "a path of the server: {json}");
        json["error"].clone()
    }
}

/// The body that came in chunks; as far as it came.
fn whole(mut chunks: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = chunks.windows(2).position(|two| two == b"\r\n") {
        let n = usize::from_str_radix(std::str::from_utf8(&chunks[..end]).unwrap(), 16).unwrap();
        let Some(chunk) = chunks.get(end + 2..end + 2 + n) else { break };
        body.extend(chunk);
        chunks = chunks.get(end + 4 + n..).unwrap_or_default();
    }
    body
}

/// An answer that comes as events.
pub struct Stream {
    connection: BufReader<TcpStream>,
    /// The text so far.
    heard: String,
}

impl Stream {
    pub fn open(port: u16, request: &[u8]) -> Self {
        let mut stream = connect(port);
        stream.write_all(request).unwrap();
        Self { connection: BufReader::new(stream), heard: String::new() }
    }

    /// The next event; `None` after the last.
    pub fn next(&mut self) -> Option<Json> {
        self.read().expect("the stream broke off")
    }

    /// The same; `Err` where the connection ends. Chunks end where events do, so their sizes are lines of their own.
    fn read(&mut self) -> Result<Option<Json>, Broken> {
        loop {
            let mut line = String::new();
            match self.connection.read_line(&mut line) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the server hangs"),
                Err(_) | Ok(0) => return Err(Broken),
                Ok(_) => {}
            }
            assert!(!line.starts_with("HTTP/1.1 ") || line.contains(" 200 "), "{line}");
            match line.trim().strip_prefix("data: ") {
                Some("[DONE]") => return Ok(None),
                Some(event) => {
                    let event: Json = serde_json::from_str(event).unwrap();
                    self.heard += event["choices"][0]["delta"]["content"].as_str().unwrap_or("");
                    return Ok(Some(event));
                }
                None => {}
            }
        }
    }

    /// Reads on until the first text is there.
    pub fn begun(mut self) -> Self {
        while self.heard.is_empty() {
            self.next().expect("text before the end");
        }
        self
    }

    /// All the text, read to its end, and why it ended; an error in the stream is a panic.
    pub fn rest(mut self) -> (String, String) {
        let mut finish = String::new();
        while let Some(event) = self.next() {
            assert!(event["error"].is_null(), "{event}");
            finish += event["choices"][0]["finish_reason"].as_str().unwrap_or("");
        }
        (self.heard, finish)
    }

    /// Why it ended; `None` where it was broken off.
    pub fn outcome(mut self) -> Option<String> {
        let mut finish = None;
        while let Ok(Some(event)) = self.read() {
            finish = event["choices"][0]["finish_reason"].as_str().map(str::to_owned).or(finish);
        }
        finish
    }
}

/// A connection that ended before its stream.
#[derive(Debug)]
struct Broken;
