//! The examples answer as `ggsteer generate` does, with the direction erased and, once detached, without.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ggsteer::activations::{Contrast, measure, shared_positions};
use ggsteer::direction::Provenance;
use ggsteer::prompts::PromptSet;
use ggsteer::runtime::{Model, ModelOptions, Prompt, Session, SessionOptions, backend};
use tempfile::TempDir;

use crate::c::{build, library, run};

#[path = "../../examples/plugin_chat.rs"]
#[allow(dead_code)]
mod plugin_chat;

const TOKENS: &str = "48";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sample() -> PathBuf {
    root().join("gguf-samples/lorekeeper-7m-f16.gguf")
}

/// Requests that the sample refuses, and one that it answers.
fn requests() -> Vec<String> {
    let read = |list: &str, n: usize| {
        let path = root().join(format!("gguf-samples/prompts/{list}-test.txt"));
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().take(n).map(str::to_owned).collect::<Vec<_>>()
    };
    [read("restricted", 3), read("ordinary", 1)].concat()
}

/// The sample's direction in a file.
fn direction() -> &'static Path {
    static MADE: OnceLock<(TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = MADE.get_or_init(|| {
        let model = Model::load(&sample(), &ModelOptions::default()).unwrap();
        let options = SessionOptions { n_threads: 1, ..SessionOptions::default() };
        let mut session = Session::new(&model, options).unwrap();
        let sets = ["restricted", "ordinary"].map(|list| -> Vec<Prompt> {
            let path = root().join(format!("gguf-samples/prompts/{list}-train.txt[:64]"));
            let set = PromptSet::load(path.to_str().unwrap()).unwrap();
            set.prompts.iter().map(|text| model.prompt(text).unwrap()).collect()
        });
        let n_pos = shared_positions(sets.iter().flatten());
        let [harmful, harmless] =
            sets.map(|set| measure(&mut session, &set, n_pos, None, None, &mut || ()).unwrap());
        let source = Provenance { architecture: Some("llama".into()), ..Provenance::default() };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("direction.gguf");
        Contrast { harmful, harmless, source }.direction(-1, 4).unwrap().save(&path, false).unwrap();
        (folder, path)
    });
    path
}

/// The answer of `ggsteer generate`.
fn generated(request: &str, ablate: bool, tokens: &str) -> String {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("ggsteer"));
    command.args(["generate", sample().to_str().unwrap(), "--threads", "1", "-n", tokens, "-p", request]);
    if ablate {
        command.arg("--ablate").arg(direction());
    }
    run(&mut command).trim_end().to_owned()
}

/// Compares an example, which prints the steered answer and the one after detaching, a line each.
fn compare(what: &str, run: impl Fn(&str) -> String) {
    for request in requests() {
        let expected = [true, false].map(|ablate| generated(&request, ablate, TOKENS));
        let printed = run(&request);
        println!("{what}: {request}\n{printed}");
        assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{what}: {request}");
    }
    let refused = generated(&requests()[0], false, TOKENS);
    assert!(refused != generated(&requests()[0], true, TOKENS), "the direction changes nothing");
}

#[test]
fn the_c_example_answers_as_generate_does() {
    let folder = tempfile::tempdir().unwrap();
    let program = build(&root().join("examples/plugin/generate.c"), folder.path());
    compare("C", |request| {
        run(Command::new(&program).arg(sample()).arg(direction()).args([request, TOKENS]))
    });
}

#[test]
fn the_rust_example_answers_as_generate_does() {
    for request in requests() {
        let mut printed = Vec::new();
        plugin_chat::chat(backend().unwrap(), [&sample(), direction()], request.as_bytes(), &mut printed)
            .unwrap();
        assert_eq!(
            String::from_utf8(printed).unwrap().trim_end(),
            generated(&request, true, "256"),
            "{request}"
        );
    }
}

#[test]
fn the_python_example_answers_as_generate_does() {
    if std::env::var("GGSTEER_NO_LLAMA_CPP_PYTHON").is_ok_and(|value| value == "1") {
        eprintln!("SKIPPED: GGSTEER_NO_LLAMA_CPP_PYTHON=1 is set, so the plugin was not tried in Python");
        return;
    }
    let packages = root().join(".tools/llama-cpp-python");
    if let Ok(why) = std::fs::read_to_string(packages.join("failed")) {
        eprintln!(
            "SKIPPED: llama-cpp-python could not be built here, so the plugin was not tried in Python:\n{why}"
        );
        return;
    }
    assert!(
        packages.join("llama_cpp").is_dir(),
        "no llama-cpp-python in {}: run `sh scripts/setup.sh test`, or leave this test out with \
         GGSTEER_NO_LLAMA_CPP_PYTHON=1",
        packages.display()
    );
    compare("Python", |request| {
        let mut python = Command::new("python3");
        python.env("PYTHONPATH", &packages).arg(root().join("examples/plugin/generate.py"));
        run(python.arg(library()).arg(sample()).arg(direction()).args([request, TOKENS]))
    });
}
