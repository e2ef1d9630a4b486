//! A headless Chromium, spoken to by its DevTools protocol: what a test of a page needs and no more.
//!
//! Messages are JSON with a zero byte at their end, over two pipes. The crates that wrap the protocol were looked at and left:
//! they generate all of it at build time, one of them from the network, or need an asynchronous runtime.

// Each test binary includes this module whole and uses its own part of it.
#![allow(dead_code)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tempfile::TempDir;

/// Names and places where a Chromium may be; the first one there is taken.
const NAMES: [&str; 7] = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
];

/// Longer than anything a page does, on any machine: what takes longer hangs.
const HANGS: Duration = Duration::from_mins(2);

/// A browser with one page, and all that it reported.
pub struct Browser {
    process: Child,
    commands: ChildStdin,
    messages: Receiver<Vec<u8>>,
    session: Option<String>,
    last: u64,
    /// Events of the page, in order.
    pub events: Vec<Json>,
    _profile: TempDir,
}

/// The program, where there is one: `$CHROMIUM`, or one of the usual names.
fn program() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("CHROMIUM") {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let places = NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    // An absolute name joined to a folder is itself.
    places.into_iter().find(|place| place.is_file())
}

impl Browser {
    /// The page in the look of this house: light or dark by the system's wish, and the other by its button.
    ///
    /// # Panics
    /// Where it has another colour.
    pub fn themes(&mut self) {
        let colour = "getComputedStyle(document.body).backgroundColor";
        for (system, first, second) in [
            ("light", "rgb(255, 255, 255)", "rgb(20, 23, 27)"),
            ("dark", "rgb(20, 23, 27)", "rgb(255, 255, 255)"),
        ] {
            let wish = json!({"features": [{"name": "prefers-color-scheme", "value": system}]});
            self.call("Emulation.setEmulatedMedia", &wish);
            self.eval("delete document.documentElement.dataset.theme");
            assert_eq!(self.eval(colour), first, "{system}");
            self.eval("document.querySelector('#theme').click()");
            assert_eq!(self.eval(colour), second, "{system}, the other");
        }
    }

    /// Starts it; `None`, and a loud word, where `GGSTEER_NO_BROWSER=1` says that there is none.
    ///
    /// # Panics
    /// Where there is none and nothing says so.
    pub fn start() -> Option<Self> {
        if std::env::var("GGSTEER_NO_BROWSER").is_ok_and(|value| value == "1") {
            eprintln!("SKIPPED: GGSTEER_NO_BROWSER=1 is set, so no page was opened in a browser");
            return None;
        }
        let program = program().expect(
            "no Chromium to open a page in: install one (Debian: apt-get install chromium; or run scripts/setup.sh test), \
             say where it is with CHROMIUM=/path, or leave this test out with GGSTEER_NO_BROWSER=1",
        );
        let profile = tempfile::tempdir().unwrap();
        // The protocol's pipes are file descriptors 3 and 4, which a shell makes of the usual two.
        let mut process = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null 2>&1"])
            .arg(&program)
            .args([
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
            ])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .args(["--remote-debugging-pipe", "--window-size=1280,900"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = process.stdin.take().unwrap();
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let (sender, messages) = channel();
        // Ends with the browser, or with the test.
        std::thread::spawn(move || {
            loop {
                let mut message = Vec::new();
                let end = answers.read_until(0, &mut message);
                if !end.is_ok_and(|n| n > 0) || message.pop() != Some(0) || sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut browser = Self {
            process,
            commands,
            messages,
            session: None,
            last: 0,
            events: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.call("Target.attachToTarget", &attach);
        browser.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        Some(browser)
    }

    /// Calls a method of the protocol; returns its result.
    pub fn call(&mut self, method: &str, parameters: &Json) -> Json {
        self.last += 1;
        let mut message = json!({"id": self.last, "method": method, "params": parameters});
        // Of the browser itself, not of the page.
        let whole = ["Target.", "Browser."].iter().any(|domain| method.starts_with(domain));
        if let Some(session) = self.session.as_ref().filter(|_| !whole) {
            message["sessionId"] = json!(session);
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).expect("the browser listens");
        loop {
            let answer = self.receive();
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {}", answer["error"]);
                return answer["result"].clone();
            }
        }
    }

    /// The next message; events are kept.
    fn receive(&mut self) -> Json {
        let message = self.messages.recv_timeout(HANGS).expect("the browser answers");
        let message: Json = serde_json::from_slice(&message).unwrap();
        if message["method"].is_string() {
            self.events.push(message.clone());
        }
        message
    }

    /// Waits for the first event from `from` on of which `wanted` holds.
    pub fn wait(&mut self, from: usize, what: &str, wanted: impl Fn(&Json) -> bool) -> Json {
        loop {
            if let Some(event) = self.events[from..].iter().find(|event| wanted(event)) {
                return event.clone();
            }
            println!("waiting for {what}");
            self.receive();
        }
    }

    /// Opens a file of this machine and waits until it is loaded.
    pub fn open(&mut self, file: &Path) {
        self.visit(&format!("file://{}", file.display()));
    }

    /// Opens an address and waits until it is loaded.
    pub fn visit(&mut self, url: &str) {
        let from = self.events.len();
        self.call("Page.navigate", &json!({"url": url}));
        self.wait(from, "the page", |event| event["method"] == "Page.loadEventFired");
    }

    /// What an expression comes to in the page, as a user's gesture; a promise is waited for.
    pub fn eval(&mut self, expression: &str) -> Json {
        let parameters = json!({
            "expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true
        });
        let result = self.call("Runtime.evaluate", &parameters);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {}", result["exceptionDetails"]);
        result["result"]["value"].clone()
    }

    /// Presses a key that has no character.
    pub fn press(&mut self, key: &str, code: u32) {
        for kind in ["rawKeyDown", "keyUp"] {
            let event = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", &event);
        }
    }

    /// Messages of the page that are errors or warnings: the console's, the browser's, and exceptions.
    pub fn complaints(&self) -> Vec<&Json> {
        let of = |event: &&Json| match event["method"].as_str() {
            Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled") => true,
            Some("Log.entryAdded") => event["params"]["entry"]["level"] != "verbose",
            _ => false,
        };
        self.events.iter().filter(of).collect()
    }

    /// What the page asked for, but for what it holds itself.
    pub fn requests(&self) -> Vec<&str> {
        let sent = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        let urls = sent.filter_map(|event| event["params"]["request"]["url"].as_str());
        urls.filter(|url| !url.starts_with("data:") && !url.starts_with("blob:")).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
