//! Where prompts come from, as the program is asked for them: the hub through a stand-in server, folders,
//! slices, the default sets, and the parts they are split into.
#![forbid(unsafe_code)]

mod program;
mod support;

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};

use ggsteer::prompts::PromptSet;
use ggsteer::prompts::hub::Hub;
use program::{Folder, refusal};
use serde_json::Value;
use sha2::{Digest, Sha256};
use support::tiny;
use tempfile::TempDir;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const SETS: &str = "--harmful harmful.txt --harmless harmless.txt";

/// What the stand-in answers to a path.
#[derive(Clone)]
struct Reply {
    status: &'static str,
    headers: String,
    body: Vec<u8>,
    /// The length it promises, where not the true one.
    promised: Option<usize>,
}

impl Reply {
    fn ok(body: impl AsRef<[u8]>) -> Self {
        Self { status: "200 OK", headers: String::new(), body: body.as_ref().to_vec(), promised: None }
    }

    fn status(status: &'static str, code: &str) -> Self {
        let headers = if code.is_empty() { String::new() } else { format!("X-Error-Code: {code}\r\n") };
        Self { status, headers, ..Self::ok("{\"error\":\"no\"}") }
    }
}

/// A small web server that answers from a table, on a thread of its own, and keeps what it was asked.
struct Server {
    endpoint: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn new(replies: impl IntoIterator<Item = (String, Reply)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, replies) = (Arc::clone(&asked), replies.into_iter().collect::<HashMap<_, _>>());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &replies, &log);
            }
        });
        Self { endpoint, asked }
    }

    /// A hub with one dataset of these files; the last is what it answers in place of a file or the list.
    fn dataset(files: &[(&str, &[u8])], instead: &[(&str, Reply)]) -> Self {
        let siblings: Vec<Value> = files
            .iter()
            .map(|(name, bytes)| {
                let large = name.ends_with(".parquet").then(
                    || serde_json::json!({"sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 130}),
                );
                let id = "b".repeat(40);
                serde_json::json!({"rfilename": name, "size": bytes.len(), "blobId": id, "lfs": large})
            })
            .collect();
        let list = serde_json::json!({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).to_string();
        let mut replies = HashMap::from([(LIST.to_owned(), Reply::ok(list))]);
        for (name, bytes) in files {
            // The hub sends to another place for large files; here a relative one.
            let place = format!("/elsewhere/{name}");
            let moved =
                Reply { status: "302 Found", headers: format!("Location: {place}\r\n"), ..Reply::ok("") };
            replies.insert(format!("/datasets/owner/name/resolve/{COMMIT}/{name}"), moved);
            replies.insert(place, Reply::ok(bytes));
        }
        replies.extend(instead.iter().map(|(path, reply)| ((*path).to_owned(), reply.clone())));
        Self::new(replies)
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

const LIST: &str = "/api/datasets/owner/name/revision/main?blobs=true";

fn answer(mut stream: TcpStream, replies: &HashMap<String, Reply>, log: &Mutex<Vec<String>>) {
    let lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else { return };
    let token = head.iter().find(|line| line.to_lowercase().starts_with("authorization:"));
    log.lock().unwrap().push(format!("{path} {}", token.map_or("", |line| &line[15..])));
    let missing = Reply::status("404 Not Found", "EntryNotFound");
    let reply = replies.get(path).unwrap_or(&missing);
    let length = reply.promised.unwrap_or(reply.body.len());
    let (status, headers) = (reply.status, &reply.headers);
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    // A client may have gone already.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&reply.body));
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Twelve prompts as the crate's own fixture of pyarrow has them.
fn parquet() -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/prompts-pyarrow.parquet")).unwrap()
}

const ORDINARY: &[u8] = b"text\none\ntwo\nthree\nfour\nfive\nsix\nseven\neight\nnine\nten\neleven\ntwelve\n";

/// Runs a line with the hub at `endpoint` and its cache in `cache`.
fn run(folder: &Folder, cache: &TempDir, endpoint: &str, line: &str) -> Output {
    let mut command = folder.ggsteer();
    for key in ["HF_HOME", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
        command.env_remove(key);
    }
    let command = command.env("HF_ENDPOINT", endpoint).env("HF_HUB_CACHE", cache.path());
    command.env("HOME", cache.path()).args(line.split_whitespace()).output().unwrap()
}

#[test]
fn a_dataset_is_downloaded_once_into_the_shared_cache() {
    let (folder, cache) = (Folder::new(), tempfile::tempdir().unwrap());
    let file = "data/train-00000-of-00001.parquet";
    let bytes = parquet();
    let server =
        Server::dataset(&[("README.md", b"words"), (file, &bytes), ("data/test.csv", ORDINARY)], &[]);
    let line = "extract model.gguf --threads 1 --harmful hf:owner/name:large[train[:10]] \
                --harmless hf:owner/name[test[-10:]] -o out.gguf --force --json";
    let output = run(&folder, &cache, &server.endpoint, line);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains(&format!("downloading {file} from {}", server.endpoint)), "{stderr}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["n_harmful"], &json["n_harmless"]), (&Value::from(10), &Value::from(10)));
    let asked = server.asked();
    assert_eq!(asked.len(), 6, "{asked:?}");

    let dataset = cache.path().join("datasets--owner--name");
    assert_eq!(fs::read_to_string(dataset.join("refs/main")).unwrap(), COMMIT);
    let snapshot = dataset.join("snapshots").join(COMMIT);
    assert_eq!(fs::read(snapshot.join(file)).unwrap(), bytes);
    if cfg!(unix) {
        let [large, small] = [file, "data/test.csv"].map(|f| fs::read_link(snapshot.join(f)).unwrap());
        assert_eq!(large, Path::new("../../../blobs").join(sha256(&bytes)));
        assert_eq!(small, Path::new("../../../blobs").join("b".repeat(40)));
    }
    // Again, from the cache alone.
    let again = run(&folder, &cache, &server.endpoint, line);
    assert!(again.status.success());
    assert_eq!(String::from_utf8(again.stdout).unwrap(), String::from_utf8(output.stdout).unwrap());
    assert_eq!(server.asked().len(), 6);
    let offline = run(&folder, &cache, "http://127.0.0.1:9", &format!("{line} --offline"));
    assert!(offline.status.success(), "{}", String::from_utf8_lossy(&offline.stderr));
}

#[test]
fn progress_goes_through_a_callback_and_the_token_to_the_hub_only() {
    let cache = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..40_000).flat_map(|i| format!("prompt {i}\n").into_bytes()).collect();
    // What the hub sends on to lies on another host, as far as a client can tell.
    let other = Server::new([("/big".to_owned(), Reply::ok(&bytes))]);
    let moved = Reply {
        status: "302 Found",
        headers: format!("Location: {}/big\r\n", other.endpoint.replace("127.0.0.1", "localhost")),
        ..Reply::ok("")
    };
    let path = format!("/datasets/owner/name/resolve/{COMMIT}/train.txt");
    let server = Server::dataset(&[("train.txt", &bytes)], &[(&path, moved)]);
    let hub = Hub {
        endpoint: server.endpoint.clone(),
        token: Some("hf_secret".into()),
        cache: cache.path().into(),
        offline: false,
    };
    let mut seen = Vec::new();
    let set = PromptSet::load_from("hf:owner/name[train[:3]]", &hub, &mut |now| {
        assert_eq!((now.file, now.total), ("train.txt", Some(bytes.len() as u64)));
        seen.push(now.done);
    });
    assert_eq!(set.unwrap().prompts, ["prompt 0", "prompt 1", "prompt 2"]);
    assert!(seen.len() > 2 && seen.is_sorted(), "{seen:?}");
    assert_eq!((seen[0], seen[seen.len() - 1]), (0, bytes.len() as u64));
    assert!(server.asked().iter().all(|line| line.ends_with("Bearer hf_secret")), "{:?}", server.asked());
    assert_eq!(other.asked(), ["/big "]);
}

#[test]
fn what_the_hub_refuses_is_told_in_a_line_with_the_next_step() {
    let (folder, cache) = (Folder::new(), tempfile::tempdir().unwrap());
    let bytes = parquet();
    let file = format!("/datasets/owner/name/resolve/{COMMIT}/train.parquet");
    let html = Reply::ok("<html>log in</html>");
    let escape =
        Reply::ok(format!("{{\"sha\":\"{COMMIT}\",\"siblings\":[{{\"rfilename\":\"../../train.csv\"}}]}}"));
    let cut = Reply { promised: Some(bytes.len()), ..Reply::ok(&bytes[..1000]) };
    let short = Reply::ok(&bytes[..1000]);
    let mut wrong = bytes.clone();
    wrong[500] ^= 1;
    let page = "/datasets/owner/name";
    let cases: [(&str, Reply, &[&str]); 12] = [
        (
            LIST,
            Reply::status("404 Not Found", "RepoNotFound"),
            &["has no such dataset", "check its name", "local file"],
        ),
        (LIST, Reply::status("401 Unauthorized", ""), &["no such dataset to strangers", "set HF_TOKEN"]),
        (LIST, Reply::status("401 Unauthorized", "GatedRepo"), &["gated", page, "set HF_TOKEN"]),
        (LIST, Reply::status("403 Forbidden", "GatedRepo"), &["gated", page, "set HF_TOKEN"]),
        (&file, Reply::status("403 Forbidden", "GatedRepo"), &["gated", page, "set HF_TOKEN"]),
        (LIST, Reply::status("404 Not Found", "RevisionNotFound"), &["no revision \"main\"", "leave it out"]),
        (LIST, Reply::status("503 Service Unavailable", ""), &["answers 503", "try again later"]),
        (LIST, html, &["does not answer as the hub does", "HF_ENDPOINT"]),
        (LIST, escape, &["does not answer as the hub does", "../../train.csv"]),
        (&file, cut, &["train.parquet broke off at", "nothing was kept, try again"]),
        (&file, short, &["train.parquet ended at 1000 of", "nothing was kept, try again"]),
        (&file, Reply::ok(&wrong), &["train.parquet has SHA-256", "expected", "try again"]),
    ];
    for (path, reply, words) in cases {
        let server = Server::dataset(&[("train.parquet", &bytes)], &[(path, reply)]);
        let line = "--quiet extract model.gguf --harmful hf:owner/name --harmless harmless.txt -o out.gguf";
        let message = refusal(&run(&folder, &cache, &server.endpoint, line), words);
        assert!(message.starts_with("error: hf:owner/name: "), "{message}");
        assert_eq!(files_in(cache.path()), 0, "{message}");
        assert!(!folder.path("out.gguf").exists());
    }
    // Nobody listens at a port that was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let line = "--quiet extract model.gguf --harmful hf:owner/name --harmless harmless.txt -o out.gguf";
    let words = ["cannot reach http://127.0.0.1", "check the network, or give a local file"];
    refusal(&run(&folder, &cache, &format!("http://{free}"), line), &words);
    let words = ["it is not in the cache at", "downloads are off", "give a local file"];
    refusal(&run(&folder, &cache, &format!("http://{free}"), &format!("{line} --offline")), &words);
}

fn files_in(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files_in(&path) } else { 1 }).sum()
}

#[test]
fn splits_files_and_slices_that_are_not_there_are_told() {
    let (folder, cache) = (Folder::new(), tempfile::tempdir().unwrap());
    let files: [(&str, &[u8]); 3] =
        [("en/train.csv", ORDINARY), ("fr/train.csv", ORDINARY), ("fr/test.csv", ORDINARY)];
    let server = Server::dataset(&files, &[]);
    for (spec, words) in [
        ("hf:owner/name", &["which file", "en/train.csv, fr/train.csv", "hf:owner/name/en/train.csv"][..]),
        ("hf:owner/name/fr[final]", &["hf:owner/name/fr: no split \"final\", found test, train"]),
        ("hf:owner/name/de", &["hf:owner/name/de: no prompt file"]),
        ("hf:owner/name/fr:goal", &["no text in column \"goal\", found columns text"]),
        ("hf:owner/name/fr[train[:13]]", &["[:13] reaches outside the set of 12 prompts"]),
        ("hf:owner/name/fr[train[8:3]]", &["[8:3] takes nothing"]),
        ("hf:owner", &["no such dataset"]),
        ("hf:../name", &["write hf:OWNER/NAME"]),
        ("harmful.txt[:99]", &["harmful.txt[:99]: the slice [:99] reaches outside the set of 12 prompts"]),
        ("harmful.txt[:0]", &["the slice [:0] takes nothing: it goes from 0 to 0 of 12 prompts"]),
        ("harmful.txt[train]", &["harmful.txt: a file has no splits"]),
        ("none.txt[:5]", &["error: none.txt: No such file"]),
    ] {
        let line = format!("--quiet extract model.gguf --harmful {spec} --harmless harmless.txt -o out.gguf");
        refusal(&run(&folder, &cache, &server.endpoint, &line), words);
    }
}

#[test]
fn sets_that_share_a_prompt_are_refused_before_the_model_is_run() {
    let folder = Folder::new();
    let words = [
        "harmful prompts (harmful.txt)",
        "harmless prompts (harmful.txt)",
        "have 12 in common",
        "\"harmful 0\"",
    ];
    for line in [
        "extract model.gguf --harmful harmful.txt --harmless harmful.txt -o out.gguf",
        "evaluate model.gguf --harmful harmful.txt --harmless harmful.txt",
        "abliterate model.gguf --harmful harmful.txt --harmless harmful.txt -o out.gguf",
    ] {
        folder.refuses(line, &words);
    }
    folder.file("more.txt", (20..32).map(|i| format!("more {i}\n")).collect::<String>());
    folder.file("seen.txt", "new one\n harmful 3 \n");
    let line = format!("abliterate model.gguf {SETS} -o out.gguf");
    folder.refuses(
        &format!("{line} --val-harmful seen.txt --val-harmless more.txt"),
        &["harmful training prompts (harmful.txt)", "harmful validation prompts (seen.txt)", "\"harmful 3\""],
    );
    let line = format!("{line} --val-harmful more.txt --val-harmless harmless.txt[:1]");
    let line = format!("{line} --test-harmful seen.txt --test-harmless more.txt");
    folder.refuses(&line, &["in common", "out of one"]);
}

#[test]
fn one_set_without_the_other_is_wrong_usage() {
    let folder = Folder::new();
    for line in [
        "extract model.gguf --harmful harmful.txt -o out.gguf",
        "evaluate model.gguf --harmless harmless.txt",
        "abliterate model.gguf --harmful harmful.txt -o out.gguf",
        &format!("abliterate model.gguf {SETS} --val-harmful harmful.txt -o out.gguf"),
    ] {
        let output = folder.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{line}: {stderr}");
        assert!(stderr.contains("required arguments were not provided"), "{stderr}");
    }
}

#[test]
fn an_output_may_not_be_one_of_the_prompt_files() {
    let folder = Folder::new();
    fs::create_dir(folder.path("data")).unwrap();
    folder.file("data/train.csv", ORDINARY);
    for (spec, out) in [("data", "data/train.csv"), ("harmful.txt[:3]", "harmful.txt")] {
        let line = format!("extract model.gguf --harmful {spec} --harmless harmless.txt -o {out} --force");
        folder.refuses(&line, &[out, "input"]);
    }
}

#[test]
fn abliterate_says_which_prompts_were_used_where() {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    folder.file("val.txt", "v one\nv two\n");
    folder.file("test.csv", "id,goal\n1,t one\n2,t two\n3,t three\n");
    let line = "abliterate model.gguf --direction direction.gguf --threads 1 -n 2 --seed 5 --json";
    let run = |more: &str| -> Value {
        let [stdout, _] = folder.accepts(&format!("{line} {more}"));
        serde_json::from_str::<Value>(&stdout).unwrap()["prompts"].take()
    };
    let sets = |prompts: &Value, key: &str| -> Vec<Value> {
        let parts = ["train", "validation", "test"].iter();
        parts.flat_map(|p| ["harmful", "harmless"].map(|s| prompts[p][s][key].clone())).collect()
    };
    let split = run(&format!("{SETS} -o a.gguf"));
    assert_eq!(
        (&split["seed"], sets(&split, "n")),
        (&Value::from(5), [8, 8, 2, 2, 2, 2].map(Value::from).to_vec())
    );
    assert_eq!(sets(&split, "source")[..2], ["harmful.txt", "harmless.txt"].map(Value::from));
    let hashes = sets(&split, "sha256");
    assert!(hashes.iter().all(|hash| hash.as_str().unwrap().len() == 64));
    assert_eq!(hashes.iter().collect::<std::collections::HashSet<_>>().len(), 6);

    let given = run("--harmful harmful.txt --harmless harmless.txt[2:] --val-harmful val.txt \
                     --val-harmless harmless.txt[:2] --test-harmful test.csv:goal \
                     --test-harmless test.csv:id -o b.gguf");
    assert_eq!(sets(&given, "n"), [12, 10, 2, 2, 3, 3].map(Value::from));
    assert_eq!(
        sets(&given, "source")[2..],
        ["val.txt", "harmless.txt[:2]", "test.csv:goal", "test.csv:id"].map(Value::from)
    );
    let test = PromptSet::load(&format!("{}:goal", folder.path("test.csv").display())).unwrap();
    assert_eq!(given["test"]["harmful"]["sha256"], test.sha256);
    // What was not given comes out of the others: one of five, by the seed.
    let half = run(&format!("{SETS} --test-harmful test.csv:goal --test-harmless test.csv:id -o c.gguf"));
    assert_eq!(sets(&half, "n"), [10, 10, 2, 2, 3, 3].map(Value::from));
}

#[test]
fn without_prompts_the_default_sets_are_taken_and_said_so() {
    let folder = Folder::new();
    let output = folder.run("abliterate model.gguf -o out.gguf --threads 1 -n 8");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("no --harmful and --harmless: taking the default sets of 128 mild and 128"),
        "{stderr}"
    );
    // Random weights refuse nothing.
    let last = stderr.lines().last().unwrap();
    assert!(
        last.starts_with("error: ") && last.contains("refuses none of the 25 harmful validation"),
        "{stderr}"
    );
    assert!(!folder.path("out.gguf").exists());
    let [stdout, stderr] = folder.accepts("extract model.gguf -o dirs.gguf --threads 1 --json");
    let json: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&json["n_harmful"], &json["n_harmless"]), (&Value::from(128), &Value::from(128)));
    assert!(stderr.contains("default sets"), "{stderr}");
    // Where there is a direction, nothing else is needed.
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    let line = "abliterate model.gguf -o out.gguf --direction direction.gguf --threads 1 -n 2 --json";
    let json: Value = serde_json::from_str(&folder.accepts(line)[0]).unwrap();
    let test = &json["prompts"]["test"]["harmless"];
    assert_eq!((&test["n"], &test["source"]), (&Value::from(25), &Value::from("default set, ordinary")));
}
