//! The page, used in a browser.

use std::fs;

use base64::Engine as _;
use serde_json::{Value as Json, json};

use crate::browser::Browser;
use crate::program::Folder;
use crate::server::{Server, content};
use crate::{ENDLESS, LONG, RESTRICTED, direction, made};

/// What a model, a file or a server might say that should stay text.
const MARKUP: &str =
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> & \u{202e}";

/// Waits until an expression is true in the page.
fn until(browser: &mut Browser, expression: &str) {
    let wait = format!(
        "new Promise((done, fail) => {{ const end = Date.now() + 110000; const look = () => {{ if ({expression}) done(true); \
         else if (Date.now() > end) fail(new Error(document.body.innerText)); else setTimeout(look, 10); }}; look(); }})"
    );
    assert_eq!(browser.eval(&wait), true, "{expression}");
}

fn text(browser: &mut Browser, selector: &str) -> String {
    browser.eval(&format!("document.querySelector({selector:?}).textContent")).as_str().unwrap().to_owned()
}

/// Types a prompt and asks for both answers by the keyboard; waits for their end.
fn ask(browser: &mut Browser, prompt: &str) {
    browser.eval("(() => { const box = document.querySelector('#prompt'); box.focus(); box.select(); })()");
    browser.call("Input.insertText", &json!({"text": prompt}));
    begin(browser);
    ended(browser);
}

/// Ctrl+Enter.
fn begin(browser: &mut Browser) {
    for kind in ["rawKeyDown", "keyUp"] {
        let event = json!({"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "modifiers": 2});
        browser.call("Input.dispatchKeyEvent", &event);
    }
}

fn ended(browser: &mut Browser) {
    until(
        browser,
        "!document.querySelector('.busy') && document.querySelector('#stop').disabled && \
         document.querySelector('#answers').getAttribute('aria-busy') === 'false'",
    );
}

fn size(browser: &mut Browser, width: u32) {
    let screen = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500});
    browser.call("Emulation.setDeviceMetricsOverride", &screen);
}

/// Gives files to the page's own field.
fn upload(browser: &mut Browser, files: &[&str]) {
    let root = browser.call("DOM.getDocument", &json!({}))["root"]["nodeId"].clone();
    let field =
        browser.call("DOM.querySelector", &json!({"nodeId": root, "selector": "#file"}))["nodeId"].clone();
    browser.call("DOM.setFileInputFiles", &json!({"nodeId": field, "files": files}));
}

#[test]
fn the_page_compares_colours_and_loads() {
    let server = Server::sample("");
    let Some(mut browser) = Browser::start() else { return };
    let may = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
    browser.call("Browser.grantPermissions", &may);
    browser.call("Emulation.setFocusEmulationEnabled", &json!({"enabled": true}));
    size(&mut browser, 1280);
    browser.visit(&format!("{}/", server.url()));
    until(&mut browser, "document.querySelectorAll('#directions input').length === 6");
    assert_eq!(text(&mut browser, "#model"), "lorekeeper-7m-f16");
    let first = text(&mut browser, "#directions strong");
    assert_eq!(text(&mut browser, "#steered .what"), format!("{first} ablated"));

    // Both answers are the server's, token by token.
    let erased = json!({"max_tokens": 128, "seed": 1, "steering": {"ablate": first, "read": first}});
    let expected = [json!({"max_tokens": 128, "seed": 1, "steering": {"read": first}}), erased]
        .map(|more| server.chat(RESTRICTED, &more));
    ask(&mut browser, RESTRICTED);
    let mut longest = 0;
    for (pane, answer) in ["plain", "steered"].into_iter().zip(&expected) {
        assert_eq!(text(&mut browser, &format!("#{pane} .said")), content(answer), "{pane}");
        let n = answer["usage"]["completion_tokens"].as_u64().unwrap();
        assert_eq!(browser.eval(&format!("document.querySelectorAll('#{pane} .said span').length")), n);
        let figures = text(&mut browser, &format!("#{pane} .figures"));
        assert!(figures.starts_with(&format!("{n} tokens, ")) && figures.contains("tokens/s"), "{figures}");
        assert!(figures.ends_with("ended by itself"), "{figures}");
        longest = longest.max(n);
    }
    assert_ne!(content(&expected[0]), content(&expected[1]));
    coloured(&mut browser, &expected, &first, longest);
    parted(&mut browser, &expected);
    keys(&mut browser, &expected, &first);
    copied(&mut browser, &server);
    strength(&mut browser, &server);
    named(&mut browser);
    for width in [390, 820, 1280] {
        size(&mut browser, width);
        let wide = browser.eval("document.documentElement.scrollWidth - innerWidth").as_i64().unwrap();
        assert!(wide <= 0, "the page is {wide} pixels wider than a window of {width}");
    }
    browser.themes();

    // A direction by its file.
    upload(&mut browser, &[made().join("other.gguf").to_str().unwrap()]);
    until(&mut browser, "document.querySelector('#told').textContent === 'other is loaded'");
    let folder = Folder::new();
    let odd = folder.path("a \u{e9} & mood.gguf");
    fs::copy(direction("refusal"), &odd).unwrap();
    upload(&mut browser, &[odd.to_str().unwrap()]);
    until(&mut browser, "document.querySelectorAll('#directions li').length === 3");
    let list = server.get("/v1/directions").json();
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().filter_map(|d| d["id"].as_str()).collect();
    assert!(names.contains(&"a \u{e9} & mood"), "{names:?}");
    let strength = "document.querySelector('#directions [type=number]').value";
    assert_eq!(browser.eval(strength), "-3", "switches stay");
    let remove = "[...document.querySelectorAll('#directions li')].find(li => li.dataset.id.includes('mood')).querySelector('button')";
    browser.eval(&format!("{remove}.click()"));
    assert_eq!(browser.eval(&format!("{remove}.textContent")), "Remove for all?");
    browser.eval(&format!("{remove}.click()"));
    until(&mut browser, "document.querySelectorAll('#directions li').length === 2");

    assert!(browser.complaints().is_empty(), "{:#?}", browser.complaints());
    let home = server.url();
    for url in browser.requests() {
        let path = url.strip_prefix(&home).unwrap_or_else(|| panic!("a request to {url}"));
        assert!(path == "/" || path == "/health" || path.starts_with("/v1/"), "{url}");
    }

    // What the server refuses is said in its words; the browser notes the status.
    let from = browser.events.len();
    upload(&mut browser, &[direction("twist").as_str()]);
    until(&mut browser, "!document.querySelector('#trouble').hidden");
    let words = text(&mut browser, "#trouble");
    assert!(words.starts_with("twist.gguf: ") && words.contains("256"), "{words}");
    browser.eval("document.querySelector('#max_tokens').value = 100000");
    ask(&mut browser, RESTRICTED);
    let words = text(&mut browser, "#plain .error");
    assert!(words.contains("max_tokens"), "{words}");
    let noted = |event: &Json| event["params"]["entry"]["source"] == "network";
    let complaints = browser.events[from..].iter().filter(|event| event["method"] == "Log.entryAdded");
    assert!(complaints.clone().count() >= 3 && complaints.clone().all(noted));
    server.stop();
    browser.eval("document.querySelector('#max_tokens').value = 8");
    ask(&mut browser, RESTRICTED);
    assert!(text(&mut browser, "#plain .error").contains("cannot be reached"));
}

/// Each token has its reading as a colour, and the table says the same in numbers.
fn coloured(browser: &mut Browser, expected: &[Json; 2], name: &str, longest: u64) {
    let values = |answer: &Json| -> Vec<f64> {
        let readings = answer["choices"][0]["readings"].as_array().unwrap();
        readings.iter().map(|reading| reading["values"][name].as_f64().unwrap()).collect()
    };
    browser.eval("document.querySelector('#readings').open = true");
    assert_eq!(browser.eval("document.querySelectorAll('#readings tbody tr').length"), longest);
    let legend = ["low", "middle", "high"].map(|id| {
        let shown = text(browser, &format!("#{id}"));
        shown.replace('\u{2212}', "-").parse::<f64>().unwrap()
    });
    assert!(legend[0] < legend[1] && legend[1] < legend[2], "{legend:?}");
    for (i, answer) in expected.iter().enumerate() {
        let column = format!(
            "[...document.querySelectorAll('#readings tbody tr')].map(row => row.cells[{}].textContent)",
            2 + 2 * i
        );
        let shown = browser.eval(&column);
        for (shown, value) in shown.as_array().unwrap().iter().zip(values(answer)) {
            let number: f64 = shown.as_str().unwrap().replace('\u{2212}', "-").parse().unwrap();
            assert!((number - value).abs() < 0.02, "{shown} for {value}");
            assert!(
                legend[0] - 0.02 < value && value < legend[2] + 0.02,
                "{value} is in the legend {legend:?}"
            );
        }
        let pane = ["plain", "steered"][i];
        let seen = browser.eval(&format!(
            "[...document.querySelectorAll('#{pane} .said span')].map(s => [s.className.includes('up'), getComputedStyle(s).backgroundColor])"
        ));
        for (seen, value) in seen.as_array().unwrap().iter().zip(values(answer)) {
            assert_eq!(seen[0], value >= legend[1], "{value}, the middle is {}", legend[1]);
            assert!(seen[1].as_str().unwrap().contains('('), "{seen}");
        }
        let distinct: std::collections::BTreeSet<String> =
            seen.as_array().unwrap().iter().map(|seen| seen[1].to_string()).collect();
        assert!(distinct.len() > 3, "{distinct:?}");
    }
    browser.eval("document.querySelector('#readings').open = false");
}

/// The first token of a difference is marked in both answers.
fn parted(browser: &mut Browser, expected: &[Json; 2]) {
    let tokens = |answer: &Json| -> Vec<String> {
        let readings = answer["choices"][0]["readings"].as_array().unwrap();
        readings.iter().filter_map(|reading| reading["token"].as_str()).map(str::to_owned).collect()
    };
    let [plain, steered] = [&expected[0], &expected[1]].map(tokens);
    let at = plain.iter().zip(&steered).position(|(a, b)| a != b).unwrap();
    for pane in ["plain", "steered"] {
        let marked = format!(
            "[...document.querySelectorAll('#{pane} .said span')].map((s, i) => s.classList.contains('first') ? i : -1).filter(i => i >= 0).join()"
        );
        assert_eq!(browser.eval(&marked), at.to_string(), "{pane}");
    }
    let words = text(browser, "#difference");
    assert!(words.contains(plain[at].trim()) && words.contains(steered[at].trim()), "{words}");
}

/// Arrow keys go through the tokens and say what was read there.
fn keys(browser: &mut Browser, expected: &[Json; 2], name: &str) {
    browser.eval("document.querySelector('#steered .said').focus()");
    for _ in 0..3 {
        browser.press("ArrowRight", 39);
    }
    browser.press("ArrowLeft", 37);
    let tip = text(browser, "#tip");
    assert_eq!(browser.eval("document.querySelector('#tip').hidden"), false);
    let reading = &expected[1]["choices"][0]["readings"][1];
    let value = reading["values"][name].as_f64().unwrap();
    assert!(tip.starts_with("token 2 ") && tip.contains(reading["token"].as_str().unwrap().trim()), "{tip}");
    let shown = tip.split_whitespace().last().unwrap().replace('\u{2212}', "-").parse::<f64>().unwrap();
    assert!((shown - value).abs() < 0.02 && tip.contains(name), "{tip}: {value}");
    let place = browser.eval(
        "(() => { const box = document.querySelector('#plain .said span').getBoundingClientRect(); \
         return [box.x + box.width / 2, box.y + box.height / 2]; })()",
    );
    browser.call("Input.dispatchMouseEvent", &json!({"type": "mouseMoved", "x": place[0], "y": place[1]}));
    assert!(text(browser, "#tip").starts_with("token 1 "));
}

/// The curl command asks for the same answer.
fn copied(browser: &mut Browser, server: &Server) {
    let command = browser.eval(
        "(async () => { document.querySelector('[data-curl=steered]').click(); \
         await new Promise(done => setTimeout(done, 50)); return await navigator.clipboard.readText(); })()",
    );
    let command = command.as_str().unwrap();
    assert!(command.starts_with("curl -N ") && command.contains(&server.url()), "{command}");
    let folder = Folder::new();
    let output = folder.command("sh").args(["-c", command]).env("no_proxy", "*").output().unwrap();
    let events = String::from_utf8(output.stdout).unwrap();
    assert!(events.contains("\"readings\"") && events.ends_with("[DONE]\n\n"), "{command}: {events}");
    assert_eq!(text(browser, "#steered .said"), said(&events));
}

/// All text of a stream.
fn said(events: &str) -> String {
    let events = events.lines().filter_map(|line| line.strip_prefix("data: {"));
    let events = events.map(|event| serde_json::from_str::<Json>(&format!("{{{event}")).unwrap());
    events.map(|event| event["choices"][0]["delta"]["content"].as_str().unwrap_or("").to_owned()).collect()
}

/// The strength by keys and as a number, with a new answer at each change.
fn strength(browser: &mut Browser, server: &Server) {
    browser.eval("document.querySelector('#again').click(); document.querySelector('#directions [type=checkbox]').click()");
    ended(browser);
    assert_eq!(text(browser, "#steered .said"), text(browser, "#plain .said"));
    assert_eq!(text(browser, "#difference"), "Both answers are the same.");
    let first = text(browser, "#directions strong");
    browser.eval("document.querySelector('#directions [type=range]').focus()");
    for _ in 0..3 {
        browser.press("ArrowLeft", 37);
    }
    ended(browser);
    assert_eq!(browser.eval("document.querySelector('#directions [type=number]').value"), "-0.15");
    assert_eq!(text(browser, "#steered .what"), format!("{first} added \u{d7} \u{2212}0.15"));
    browser.eval("(() => { const box = document.querySelector('#directions [type=number]'); box.focus(); box.select(); })()");
    browser.call("Input.insertText", &json!({"text": "-3"}));
    browser.press("Tab", 9);
    ended(browser);
    assert_eq!(browser.eval("document.querySelector('#directions [type=range]').value"), "-2", "its end");
    let add = json!({"direction": first, "scale": -3, "positions": "prompt"});
    let answer = server.chat(RESTRICTED, &json!({"max_tokens": 128, "steering": {"add": [add]}}));
    assert_eq!(text(browser, "#steered .said"), content(&answer));
    browser.eval("document.querySelector('#again').click()");
}

/// Whatever can be focused has a name for those who cannot see it.
fn named(browser: &mut Browser) {
    let tree = browser.call("Accessibility.getFullAXTree", &json!({}));
    let mut n = 0;
    for node in tree["nodes"].as_array().unwrap() {
        let focusable = node["properties"]
            .as_array()
            .is_some_and(|all| all.iter().any(|p| p["name"] == "focusable" && p["value"]["value"] == true));
        let role = node["role"]["value"].as_str().unwrap_or("");
        // Tokens are their own text, and the page as a whole has its title.
        if !focusable || node["ignored"] == true || role == "generic" {
            continue;
        }
        n += 1;
        assert!(node["name"]["value"].as_str().is_some_and(|name| !name.trim().is_empty()), "{node}");
    }
    assert!(n > 20, "{n}");
}

#[test]
fn the_page_asks_for_the_key_and_stops_what_runs() {
    let server = Server::endless("--slots 4 --api-key sesame");
    let Some(mut browser) = Browser::start() else { return };
    browser.visit(&format!("{}/", server.url()));
    until(&mut browser, "!document.querySelector('#key').hidden && document.activeElement.id === 'secret'");
    for (key, words) in [("guess", "does not know"), ("sesame", "")] {
        browser.eval("document.querySelector('#secret').value = ''");
        browser.call("Input.insertText", &json!({"text": key}));
        browser.eval("document.querySelector('#key').requestSubmit()");
        until(
            &mut browser,
            &format!(
                "document.querySelector('#trouble').textContent.includes('{words}') && \
              document.querySelector('#trouble').hidden === {}",
                words.is_empty()
            ),
        );
    }
    until(
        &mut browser,
        "document.querySelector('#key').hidden && document.querySelectorAll('#directions input').length === 3",
    );
    assert!(!browser.eval("document.documentElement.outerHTML").as_str().unwrap().contains("sesame"));

    browser.eval(
        "document.querySelector('#max_tokens').value = 4000; document.querySelector('#prompt').focus()",
    );
    browser.call("Input.insertText", &json!({"text": ENDLESS}));
    begin(&mut browser);
    until(
        &mut browser,
        "document.querySelectorAll('#plain .said span').length > 20 && document.querySelectorAll('#steered .said span').length > 20",
    );
    assert_eq!(server.busy(), 2);
    browser.press("Escape", 27);
    ended(&mut browser);
    for pane in ["plain", "steered"] {
        assert!(text(&mut browser, &format!("#{pane} .figures")).ends_with("stopped"));
    }
    let health = server.until("both slots are free", |health| health["slots"]["busy"] == 0);
    assert!(health["tokens"]["completion"].as_u64().unwrap() < LONG as u64, "{health}");
    server.stop();
}

#[test]
fn what_a_model_says_stays_text() {
    let server = Server::sample("");
    let Some(mut browser) = Browser::start() else { return };
    browser.visit(&format!("{}/", server.url()));
    until(&mut browser, "document.querySelectorAll('#directions input').length === 6");
    browser.call("Fetch.enable", &json!({"patterns": [{"urlPattern": "*/v1/chat/completions"}]}));
    let piece = |text: &str| {
        json!({"choices": [{"index": 0, "delta": {"content": text},
        "readings": [{"token": text, "values": {"refusal": 1.0}}]}]})
    };
    let error = json!({"error": {"message": MARKUP, "type": "server_error", "param": null, "code": null}});
    let whole = format!("data: {}\n\ndata: {}\n\ndata: [DONE]\n\n", piece(MARKUP), piece("\n\u{1f33e}"));
    let failing = format!("data: {}\n\ndata: {error}\n\n", piece("Well"));
    let broken = format!("data: {}\n\n", piece("Well"));
    for (answer, words) in [(&whole, ""), (&failing, MARKUP), (&broken, "broke off")] {
        let from = browser.events.len();
        browser.eval(
            "document.querySelector('#prompt').value = 'a'; document.querySelector('#ask').requestSubmit()",
        );
        for i in 0..2 {
            let paused = |event: &Json| event["method"] == "Fetch.requestPaused";
            let event = loop {
                let all: Vec<Json> =
                    browser.events[from..].iter().filter(|event| paused(event)).cloned().collect();
                if let Some(event) = all.get(i) {
                    break event.clone();
                }
                let seen = browser.events.len();
                browser.wait(seen, "a request", paused);
            };
            let body = base64::engine::general_purpose::STANDARD.encode(answer);
            let head = json!([{"name": "content-type", "value": "text/event-stream"}]);
            let fulfil = json!({"requestId": event["params"]["requestId"], "responseCode": 200, "responseHeaders": head, "body": body});
            browser.call("Fetch.fulfillRequest", &fulfil);
        }
        ended(&mut browser);
        if words.is_empty() {
            assert_eq!(text(&mut browser, "#plain .said"), format!("{MARKUP}\n\u{1f33e}"));
            assert!(text(&mut browser, "#readings tbody").contains(MARKUP));
        } else {
            assert!(text(&mut browser, "#plain .error").contains(words));
        }
        assert_eq!(
            browser.eval("document.querySelectorAll('img, iframe, main script, [onerror]').length"),
            0
        );
        assert!(!browser.eval("document.title").as_str().unwrap().contains("owned"));
    }
    assert!(browser.complaints().is_empty(), "{:#?}", browser.complaints());
    server.stop();
}
