//! Settings and where they come from, completions, manual pages, the doctor, and what is said to a slip of the pen.

mod program;
mod support;

use std::fs;
use std::sync::{Arc, Mutex};

use ggsteer::runtime::{FileType, Model, ModelOptions, QuantizeOptions, quantize_with};
use program::{Folder, refusal};
use serde_json::Value;
use support::tiny;

/// What `ggsteer config` says of a key of `generate`: its value, and the kind of place it comes from.
fn setting(folder: &Folder, line: &str, vars: &[(&str, &str)], key: &str) -> (Value, String) {
    let mut command = folder.ggsteer();
    command.args(["config", "--json", "generate"]).args(line.split_whitespace());
    command.env("XDG_CONFIG_HOME", folder.path("home")).envs(vars.iter().copied());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let settings = json["settings"].as_array().unwrap();
    let found: Vec<&Value> = settings.iter().filter(|s| s["key"] == key).collect();
    assert_eq!(found.len(), 1, "{key}");
    (found[0]["value"].clone(), found[0]["from"]["kind"].as_str().unwrap().to_owned())
}

#[test]
fn the_environment_comes_before_the_projects_file_and_that_before_the_users() {
    let folder = Folder::new();
    let of = |vars: &[(&str, &str)], key| {
        let (value, from) = setting(&folder, "", vars, key);
        (value.as_str().map(str::to_owned), from)
    };
    let some = |value: &str, from: &str| (Some(value.to_owned()), from.to_owned());
    assert_eq!(of(&[], "max-tokens"), some("256", "default"));
    assert_eq!(of(&[], "prompt"), (None, "default".to_owned()));

    fs::create_dir_all(folder.path("home/ggsteer")).unwrap();
    folder.file("home/ggsteer/ggsteer.toml", "max-tokens = 3\nseed = 1\nquiet = true\n");
    assert_eq!(of(&[], "max-tokens"), some("3", "user"));
    folder.file(
        "ggsteer.toml",
        "max-tokens = 4\nthreads = 1\n[generate]\nseed = 2\nrpc = [\"a:1\", \"b:2\"]\n",
    );
    assert_eq!(of(&[], "max-tokens"), some("4", "project"));
    assert_eq!(of(&[], "seed"), some("2", "project"));
    assert_eq!(of(&[], "quiet"), some("true", "user"));
    assert_eq!(
        of(&[("GGSTEER_MAX_TOKENS", "5"), ("GGSTEER_QUIET", "0")], "max-tokens"),
        some("5", "environment")
    );
    assert_eq!(of(&[("GGSTEER_QUIET", "0")], "quiet"), some("false", "environment"));
    assert_eq!(setting(&folder, "", &[], "rpc").0, serde_json::json!(["a:1", "b:2"]));
    // A table is of its command alone.
    let json: Value = serde_json::from_str(&folder.accepts("config --json evaluate")[0]).unwrap();
    let seed = json["settings"].as_array().unwrap().iter().find(|s| s["key"] == "seed").unwrap();
    assert_eq!((&seed["value"], &seed["from"]["kind"]), (&"0".into(), &"default".into()));

    // Another file in the project's place, by option or by variable.
    folder.file("other.toml", "max-tokens = 6\n");
    assert_eq!(setting(&folder, "--config other.toml", &[], "max-tokens").0, "6");
    assert_eq!(setting(&folder, "", &[("GGSTEER_CONFIG", "other.toml")], "max-tokens").0, "6");
}

#[test]
fn a_key_is_set_and_not_shown() {
    let folder = Folder::new();
    folder.file("ggsteer.toml", "[serve]\napi-key = \"open-sesame\"\n");
    for line in ["config serve", "config serve --json"] {
        let [shown, _] = folder.accepts(line);
        assert!(shown.contains("api-key") && shown.contains("(set)") && !shown.contains("sesame"), "{shown}");
    }
}

/// The answer's number of tokens, and what was said on stderr.
fn answer(folder: &Folder, line: &str) -> (u64, String) {
    let [stdout, stderr] = folder.accepts(&format!("generate model.gguf --threads 1 --json {line}"));
    let json: Value = serde_json::from_str(&stdout).unwrap();
    (json["n_tokens"].as_u64().unwrap(), stderr)
}

#[test]
fn a_run_takes_what_the_files_say_and_the_command_line_has_the_last_word() {
    let folder = Folder::new();
    folder.file("ggsteer.toml", "max-tokens = 3\nprompt = \"hello\"\nquiet = false\n");
    let (n, words) = answer(&folder, "");
    assert!(n <= 3, "{n}");
    assert!(words.contains("settings from ggsteer.toml: ") && words.contains("max-tokens"), "{words}");
    let (n, words) = answer(&folder, "-n 2 --prompt hi");
    assert!(n <= 2 && !words.contains("max-tokens"), "{words}");

    // A switch that a file turns on is turned off again.
    folder.file("ggsteer.toml", "quiet = true\nprompt = \"hello\"\n");
    assert_eq!(answer(&folder, "-n 2").1, "");
    assert!(answer(&folder, "-n 2 --quiet=false").1.contains("prompt"));
    // llama.cpp's short names.
    answer(&folder, "-n 2 -ngl 0 -fa off -c 64");
}

#[test]
fn what_excludes_or_needs_another_is_minded() {
    let folder = Folder::new();
    folder.direction("d.gguf", "llama", &tiny::unit(32, 1));
    // The command line's --ablate excludes the file's add.
    folder.file("ggsteer.toml", "add = \"d.gguf\"\n");
    folder.accepts("generate model.gguf --threads 1 -p hello -n 2 --ablate d.gguf");
    // Both in one file exclude each other.
    folder.file("ggsteer.toml", "add = \"d.gguf\"\nablate = [\"d.gguf\"]\n");
    folder.refuses("generate model.gguf -p hello", &["cannot be used with", "ggsteer.toml"]);
    // What needs another that nobody gives is left out, and said.
    folder.file("ggsteer.toml", "harmful = \"harmful.txt\"\n");
    let [_, words] = folder.accepts("extract model.gguf --threads 1 --quiet -o a.gguf");
    assert!(words.contains("warning: harmful of ggsteer.toml is left out: it needs --harmless"), "{words}");
    folder.file("ggsteer.toml", "harmful = \"harmful.txt\"\nharmless = \"harmless.txt\"\n");
    let [_, words] = folder.accepts("extract model.gguf --threads 1 -o b.gguf");
    assert!(words.contains("settings from ggsteer.toml: harmful, harmless"), "{words}");
    // What the command line lacks may stand in the file.
    folder.file("ggsteer.toml", "[orthogonalize]\ndirection = [\"d.gguf\"]\nuncalibrated = true\n");
    folder.accepts("orthogonalize model.gguf -o c.gguf");
}

#[test]
fn a_mistake_in_a_file_is_named_with_its_place_and_what_comes_near() {
    let folder = Folder::new();
    for (text, words) in [
        ("treads = 4\n", vec!["ggsteer.toml: treads: unknown key", "did you mean threads?"]),
        ("threads = \"four\"\n", vec!["threads: invalid value \"four\""]),
        ("threads = true\n", vec!["threads: expected a number", "found boolean"]),
        ("threads = 4000\n", vec!["threads: invalid value", "512"]),
        ("quiet = \"yes\"\n", vec!["quiet: expected true or false, found string"]),
        ("chat-template = 4\n", vec!["chat-template: expected text in quotes, found integer"]),
        ("flash-attn = \"of\"\n", vec!["flash-attn: invalid value \"of\""]),
        ("force = true\n", vec!["force: belongs on the command line"]),
        ("[generat]\nseed = 1\n", vec!["[generat] is no command", "did you mean generate?"]),
        ("[generate]\nsede = 1\n", vec!["[generate] sede: unknown key", "did you mean seed?"]),
        ("seed = 1\nseed 2\n", vec!["ggsteer.toml: line 2"]),
    ] {
        folder.file("ggsteer.toml", text);
        folder.refuses("generate model.gguf -p hello", &words);
    }
    folder.file("ggsteer.toml", "");
    folder.refuses("generate model.gguf -p hello --config nowhere.toml", &["nowhere.toml"]);
    let output =
        folder.ggsteer().args(["inspect", "model.gguf"]).env("GGSTEER_BATCH", "none").output().unwrap();
    refusal(&output, &["GGSTEER_BATCH: invalid value \"none\""]);
    let output =
        folder.ggsteer().args(["inspect", "model.gguf"]).env("GGSTEER_TREADS", "2").output().unwrap();
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && words.contains("did you mean GGSTEER_THREADS?"), "{words}");
    folder.refuses("config generat", &["no command generat", "did you mean generate?"]);
}

#[test]
fn the_written_file_is_read_again_and_so_is_each_line_of_it() {
    let folder = Folder::new();
    folder.accepts("config --init");
    let text = fs::read_to_string(folder.path("ggsteer.toml")).unwrap();
    folder.refuses("config --init", &["ggsteer.toml: exists already", "--force"]);
    assert_eq!(folder.accepts("config --json generate")[0].matches("\"project\"").count(), 0);
    // Every default, uncommented, is a value that its option takes.
    let set: Vec<&str> = (text.lines().filter_map(|line| line.strip_prefix("# ")))
        .filter(|line| line.split_once(" = ").is_some_and(|(key, _)| !key.contains(' ')))
        .filter(|line| !line.contains('…'))
        .collect();
    assert!(set.len() > 15 && set.contains(&"threads = 0"), "{set:?}");
    folder.file("ggsteer.toml", set.join("\n"));
    let config = folder.accepts("config --json")[0].clone();
    assert!(config.matches("\"project\"").count() >= set.len());
    let [table, _] = folder.accepts("config");
    assert!(table.lines().any(|l| l.starts_with("threads ") && l.contains("ggsteer.toml")), "{table}");
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let folder = Folder::new();
    // A broken file is no hindrance.
    folder.file("ggsteer.toml", "nonsense");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let [script, _] = folder.accepts(&format!("completions {shell}"));
        for word in ["abliterate", "doctor", "worker", "gpu-layers", "config"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let [bash, _] = folder.accepts("completions bash");
    folder.file("ggsteer.bash", bash);
    let complete = "source ./ggsteer.bash && COMP_WORDS=(ggsteer ablit) COMP_CWORD=1 && _ggsteer ggsteer ablit ggsteer \
                    && echo \"${COMPREPLY[@]}\"";
    let output = folder.command("bash").args(["-c", complete]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "abliterate", "{output:?}");

    let [words, _] = folder.accepts("man pages/man1");
    assert!(words.contains("pages in pages/man1"), "{words}");
    let help = folder.accepts("help")[0].clone();
    let commands = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    let commands: Vec<&str> =
        commands.filter(|l| !l.starts_with("   ")).filter_map(|l| l.split_whitespace().next()).collect();
    assert!(commands.len() > 15, "{commands:?}");
    for command in commands.into_iter().filter(|c| *c != "help") {
        let page = fs::read_to_string(folder.path(&format!("pages/man1/ggsteer-{command}.1"))).unwrap();
        assert!(page.contains(".TH ") && page.contains(".SH SYNOPSIS"), "{command}");
    }
    assert!(
        fs::read_to_string(folder.path("pages/man1/ggsteer-export-lora.1")).unwrap().contains("direction")
    );
    folder.refuses("man pages/man1", &["exists already", "--force"]);
    folder.accepts("man pages/man1 --force");
}

#[test]
fn the_doctor_knows_the_build_and_says_whether_a_model_fits() {
    let folder = Folder::new();
    let doctor = |line: &str| -> Value {
        serde_json::from_str(&folder.accepts(&format!("doctor --json --threads 1 {line}"))[0]).unwrap()
    };
    let check = |json: &Value, what: &str| -> (String, String) {
        let checks = json["checks"].as_array().unwrap();
        let check = checks.iter().find(|c| c["what"] == what).unwrap_or_else(|| panic!("{what}"));
        assert_eq!(check["next"].is_null(), check["verdict"] == "ok", "{check}");
        (check["verdict"].as_str().unwrap().into(), check["found"].as_str().unwrap().into())
    };
    let json = doctor("");
    assert!(check(&json, "version").1.contains(env!("CARGO_PKG_VERSION")));
    let threads = std::thread::available_parallelism().unwrap().to_string();
    assert!(check(&json, "threads").1.starts_with(&threads));
    assert!(json["devices"].as_array().unwrap().iter().any(|d| d["kind"] == "cpu"));
    assert_eq!(check(&json, "RPC"), ("ok".into(), "yes".into()), "the tests' build is scripts/setup.sh's");

    let json = doctor("model.gguf --ctx 64");
    assert!(check(&json, "file").1.starts_with("llama, 2 blocks × 32"));
    assert_eq!(check(&json, "rewriting").0, "ok");
    // 2 blocks × 1 head of keys and values × 16 each, 64 tokens, 2 bytes.
    assert!(check(&json, "memory").1.contains("8.2 kB cache of 64 tokens"), "{json}");
    assert!(check(&json, "speed").1.contains("tokens/s"));

    folder.file("broken.gguf", b"GGUF and no more");
    let output = folder.run("doctor broken.gguf");
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        table.lines().any(|l| l.starts_with("file ") && l.contains("error") && l.contains("→")),
        "{table}"
    );
    assert!(String::from_utf8(output.stderr).unwrap().contains("error: 1 of "));
}

#[test]
fn a_slip_of_the_pen_is_answered_with_what_comes_near() {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    for (line, near) in [
        ("inspect modle.gguf", "did you mean model.gguf?"),
        ("generate model.ggu -p hello", "did you mean model.gguf?"),
        ("generate model.gguf -p hello --ablate dirction.gguf", "did you mean direction.gguf?"),
        ("generate nowhere/model.gguf -p hello", "there is no folder nowhere"),
        (
            "extract model.gguf --harmful harmfull.txt --harmless harmless.txt -o a.gguf",
            "did you mean harmful.txt?",
        ),
        ("generate model.gguf -p hello --chat-template chatlm", "did you mean chatml?"),
        ("quantize model.gguf --type Q4_K_X -o a.gguf", "Q4_K_"),
    ] {
        folder.refuses(line, &[near]);
    }
    folder.file("prompts.csv", "promt,id\nhello,1\nthere,2\n");
    folder.refuses(
        "extract model.gguf --harmful prompts.csv:prompt --harmless harmless.txt -o a.gguf",
        &["column \"prompt\"", "did you mean promt?"],
    );
}

#[test]
fn a_context_too_short_is_refused_and_zero_is_the_models_own() {
    let folder = Folder::new();
    folder.refuses("generate model.gguf --threads 1 -p hello -n 32 --ctx 16", &["--ctx 16", "raise --ctx"]);
    folder.accepts("generate model.gguf --threads 1 -p hello -n 4 --ctx 0");
    folder.accepts("generate model.gguf --threads 1 -p hello -n 4 --flash-attn on");
}

#[test]
fn colours_are_left_out_where_nobody_wants_them() {
    let folder = Folder::new();
    let help = |vars: &[(&str, &str)]| {
        let output = folder
            .ggsteer()
            .arg("--help")
            .env_remove("NO_COLOR")
            .envs(vars.iter().copied())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().contains('\x1b')
    };
    assert!(help(&[("CLICOLOR_FORCE", "1")]));
    assert!(!help(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
    assert!(!help(&[]));
}

#[test]
fn loading_and_quantizing_say_how_far_they_are() {
    let folder = Folder::new();
    let parts: Arc<Mutex<Vec<f32>>> = Arc::default();
    let seen = Arc::clone(&parts);
    let path = folder.path("model.gguf");
    let model =
        Model::load_with(&path, &ModelOptions::default(), move |part| seen.lock().unwrap().push(part))
            .unwrap();
    let parts = parts.lock().unwrap();
    assert!(parts.is_sorted() && parts.last() == Some(&1.0), "{parts:?}");
    drop(model);

    let counts: Arc<Mutex<Vec<(u64, u64)>>> = Arc::default();
    let seen = Arc::clone(&counts);
    let options = QuantizeOptions { n_threads: 1, ..QuantizeOptions::default() };
    let file_type = FileType::from_name("Q8_0").unwrap();
    quantize_with(&path, &folder.path("q8.gguf"), file_type, &options, move |tensor, n| {
        seen.lock().unwrap().push((tensor, n));
    })
    .unwrap();
    let n = ggsteer::gguf::GgufFile::open(&path).unwrap().tensors().len() as u64;
    let expected: Vec<(u64, u64)> = (1..=n).map(|tensor| (tensor, n)).collect();
    assert_eq!(*counts.lock().unwrap(), expected);

    // A panic in there does not go up through llama.cpp.
    let model = Model::load_with(&path, &ModelOptions::default(), |_| panic!("of a bar"));
    assert!(model.unwrap().n_block() > 0);
    let again = folder.path("again.gguf");
    quantize_with(&path, &again, file_type, &options, |_, _| panic!("of a bar")).unwrap();
    assert!(again.is_file());
}
