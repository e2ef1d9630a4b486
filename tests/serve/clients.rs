//! OpenAI's own client and curl.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value as Json, json};

use crate::program::Folder;
use crate::server::{Server, content};
use crate::{ENDLESS, LONG, ORDINARY, RESTRICTED, direction, sample, samples};

/// Runs a script of this folder that reads JSON and prints JSON; `None`, and a loud word, where there is no Python.
fn python(script: &str, input: &Json) -> Option<Json> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no python3 for OpenAI's client");
        return None;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", root.join(".tools/openai")).env("PYTHONDONTWRITEBYTECODE", "1");
    // A proxy of this machine's is not for what runs on it.
    python.env("NO_PROXY", "127.0.0.1").env_remove("OPENAI_API_KEY").env_remove("OPENAI_BASE_URL");
    python.arg(root.join("tests/serve").join(script)).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = python.spawn().unwrap();
    python.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{script} (`make test` installs Python's openai package)");
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn openais_own_client_is_served() {
    let server = Server::sample("");
    let small = Server::endless("--slots 1 --queue 0 --api-key sesame");
    let input = json!({
        "url": server.url(), "restricted": RESTRICTED, "ordinary": ORDINARY,
        "small": small.url(), "key": "sesame", "endless": ENDLESS, "long": LONG,
    });
    let Some(said) = python("tour.py", &input) else { return };
    println!("{said:#}");
    small.stop();
    server.stop();
}

#[test]
fn sixteen_clients_at_once_get_what_each_gets_alone() {
    let server = Server::sample("--slots 16");
    let lines = |name: &str, n| -> Vec<String> {
        let text = std::fs::read_to_string(samples().join(format!("prompts/{name}.txt"))).unwrap();
        text.lines().take(n).map(str::to_owned).collect()
    };
    let prompts = [lines("restricted-test", 30), lines("ordinary-test", 30)].concat();
    let half = json!({"direction": "refusal", "scale": 0.5});
    let input = json!({
        "url": server.url(),
        "prompts": prompts,
        "max_tokens": 48,
        "steerings": [
            {},
            {"ablate": "refusal"},
            {"add": {"direction": "refusal", "positions": "prompt"}},
            {"ablate": "other", "add": half, "scale": -1},
        ],
    });
    let Some(found) = python("parallel.py", &input) else { return };
    server.stop();

    // The program by itself, with the same steering, says the same.
    let [refusal, other] = ["refusal", "other"].map(direction);
    let flags = [
        String::new(),
        format!("--ablate {refusal}"),
        format!("--add {refusal} --at prompt"),
        format!("--ablate {other} --add {refusal} --scale -0.5"),
    ];
    let folder = Folder::new();
    let answers = found["answers"].as_array().unwrap();
    assert_eq!(answers.len(), 16);
    for answer in answers {
        let mut generate = folder.ggsteer();
        generate.args(["--quiet", "--json", "generate", &sample(), "--threads", "1", "-n", "48", "-p"]);
        generate.arg(answer["prompt"].as_str().unwrap());
        generate.args(flags[answer["steering"].as_u64().unwrap() as usize].split_whitespace());
        let output = generate.output().unwrap();
        let printed: Json = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(printed["completion"], answer["text"], "{answer}: {printed}");
    }
    let mut shown = found.clone();
    shown.as_object_mut().unwrap().remove("answers");
    println!("{shown:#}");
}

#[test]
fn curl_is_served() {
    let server = Server::sample("");
    let folder = Folder::new();
    let curl = |line: &str, body: &Json| {
        let mut curl = folder.command("curl");
        curl.args(["--silent", "--show-error", "--noproxy", "*"]).args(line.split_whitespace());
        if !body.is_null() {
            curl.args(["--json", &body.to_string()]);
        }
        let output = curl.output().expect("`make test` installs curl");
        assert!(output.status.success(), "curl {line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let url = server.url();
    let models: Json = serde_json::from_str(&curl(&format!("{url}/v1/models"), &Json::Null)).unwrap();
    assert_eq!(models["data"][0]["id"], "lorekeeper-7m-f16");

    let path = format!("{url}/v1/chat/completions");
    let steering = json!({"ablate": "refusal"});
    let mut body = json!({"messages": [{"role": "user", "content": RESTRICTED}], "temperature": 0, "steering": steering});
    let answer: Json = serde_json::from_str(&curl(&path, &body)).unwrap();
    let expected = content(&answer).to_owned();
    assert_eq!(content(&server.chat(RESTRICTED, &json!({"steering": steering}))), expected);
    body["stream"] = json!(true);
    let events = curl(&format!("-N {path}"), &body);
    assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    let mut text = String::new();
    for event in events.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()) {
        if event != "[DONE]" {
            let chunk: Json = serde_json::from_str(event).unwrap();
            text += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or("");
        }
    }
    assert_eq!(text, expected);

    // A direction by its file: loaded, used, removed.
    let name = format!("{url}/v1/directions/mine");
    let status = "-o answer.json -w %{http_code}";
    let file = direction("refusal");
    assert_eq!(curl(&format!("{status} -T {file} {name}"), &Json::Null), "201");
    body["steering"] = json!({"ablate": "mine"});
    body["stream"] = json!(false);
    assert_eq!(content(&serde_json::from_str(&curl(&path, &body)).unwrap()), expected);
    assert_eq!(curl(&format!("{status} -X DELETE {name}"), &Json::Null), "204");
    assert_eq!(curl(&format!("{status} -X DELETE {name}"), &Json::Null), "404");
    server.stop();
}
