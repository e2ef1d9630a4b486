//! The whole way on the trained sample model: the subcommands one after the other, and the written file in three readers.
//! (The demo and its claims are run with the README, in `documented`.)

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ggsteer::gguf::{GgufFile, Value};
use ggsteer::output::OutputFile;
use ggsteer::rewrite::{How, Options, Plan, Rounding, execute};
use serde_json::Value as Json;

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples")
}

fn sample() -> PathBuf {
    samples().join("lorekeeper-7m-f16.gguf")
}

fn prompts(name: &str) -> String {
    samples().join("prompts").join(format!("{name}.txt")).display().to_string()
}

/// Runs the program with `--json` and one thread, on which a model this small is fastest where others compute too.
fn json(folder: &Path, args: &[&str]) -> Json {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ggsteer"));
    let output = command.current_dir(folder).args(["--json", "--quiet"]).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(json: &Json, pointer: &str) -> f64 {
    json.pointer(pointer).and_then(Json::as_f64).unwrap_or_else(|| panic!("{pointer} in {json:#}"))
}

#[test]
fn the_subcommands_lead_from_the_model_to_a_rewritten_one() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = sample().display().to_string();
    let train = ["--harmful", &prompts("restricted-train"), "--harmless", &prompts("ordinary-train")]
        .map(String::from);
    let train: Vec<&str> = train.iter().map(String::as_str).collect();
    let threads = ["--threads", "1"];

    let mut args = vec!["extract", &model, "-o", "dirs.gguf", "--limit", "64"];
    args.extend(train.iter().chain(&threads));
    let extracted = json(at, &args);
    assert_eq!((number(&extracted, "/n_block"), number(&extracted, "/n_embd")), (8.0, 256.0));
    assert_eq!(extracted["positions"], serde_json::json!([-1, -2, -3, -4, -5]));
    assert_eq!(extracted["differences"].as_array().unwrap().len(), 40);

    let (restricted, ordinary) = (prompts("restricted-validation"), prompts("ordinary-validation"));
    let mut args =
        vec!["select", &model, "--directions", "dirs.gguf", "-o", "direction.gguf", "--limit", "16"];
    args.extend(["--harmful", &restricted, "--harmless", &ordinary]);
    args.extend(threads);
    let selected = json(at, &args);
    assert_eq!(selected["candidates"].as_array().unwrap().len(), 40);
    let block = number(&selected, "/direction/block");
    assert_eq!(number(&selected, "/direction/paper_layer"), block + 1.0);

    let written = json(at, &["orthogonalize", &model, "--direction", "direction.gguf", "-o", "out.gguf"]);
    assert_eq!((number(&written, "/n_edited"), number(&written, "/n_untouched")), (17.0, 58.0));
    assert!(number(&written, "/max_leak") < 0.01);

    let (restricted, ordinary) = (prompts("restricted-test"), prompts("ordinary-test"));
    let evaluate = |model: &str, more: &[&str]| {
        let mut args = vec!["evaluate", model, "--limit", "24", "-n", "24"];
        args.extend(["--harmful", &restricted, "--harmless", &ordinary]);
        args.extend(threads.iter().chain(more));
        json(at, &args)
    };
    let plain = evaluate(&model, &["--completions", "plain.jsonl"]);
    let hooked = evaluate(&model, &["--ablate", "direction.gguf"]);
    let rewritten = evaluate("out.gguf", &["--base", &model]);
    assert_eq!((number(&plain, "/n"), number(&plain, "/max_tokens")), (48.0, 24.0));
    // On 24 prompts the rate itself is loose (the demo asserts it on 100): what counts is that the edits move it.
    assert!(number(&plain, "/harmful/refusal_rate") > 0.75);
    assert!(number(&hooked, "/harmful/refusal_rate") < 0.1);
    assert!(number(&rewritten, "/harmful/refusal_rate") < 0.1);
    assert_eq!(number(&plain, "/harmless/kl_first_token"), 0.0, "the model against itself");
    // At F16 the file is the hook, but for the rounding of the weights.
    let (hook, file) =
        (number(&hooked, "/harmful/kl_first_token"), number(&rewritten, "/harmful/kl_first_token"));
    assert!((hook - file).abs() < 0.01 * hook, "{hook} and {file}");
    assert_eq!(fs::read_to_string(at.join("plain.jsonl")).unwrap().lines().count(), 48);

    let first = fs::read_to_string(&restricted).unwrap().lines().next().unwrap().to_string();
    let ask = |more: &[&str]| {
        let mut args = vec!["generate", &model, "-p", &first, "-n", "24"];
        args.extend(threads.iter().chain(more));
        json(at, &args)["completion"].as_str().unwrap().to_string()
    };
    assert_ne!(ask(&[]), ask(&["--ablate", "direction.gguf"]));
    let inspected = json(at, &["inspect", "out.gguf"]);
    assert_eq!(inspected["writers"].as_array().unwrap().len(), 17);
}

#[test]
fn abliterate_does_it_in_one_go_and_its_file_loads_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    // Training and validation prompts in one list: abliterate splits it by itself.
    for kind in ["restricted", "ordinary"] {
        let list = |part| fs::read_to_string(prompts(&format!("{kind}-{part}"))).unwrap();
        let all: Vec<String> = [list("train"), list("validation")]
            .iter()
            .flat_map(|l| l.lines().take(60).map(String::from).collect::<Vec<_>>())
            .collect();
        fs::write(at.join(format!("{kind}.txt")), all.join("\n")).unwrap();
    }
    let model = sample().display().to_string();
    let args =
        ["abliterate", &model, "--harmful", "restricted.txt", "--harmless", "ordinary.txt", "-o", "out.gguf"];
    let more = ["--save-direction", "direction.gguf", "-n", "24", "--threads", "1"];
    let result = json(at, &[args.as_slice(), &more].concat());
    assert!(number(&result, "/direction/block") < 8.0 && number(&result, "/direction/position") < 0.0);
    assert!(number(&result, "/before/harmful/refusal_rate") > 0.75);
    assert!(number(&result, "/after/harmful/refusal_rate") < 0.15);
    assert!(number(&result, "/max_leak") < 0.01);
    assert_eq!(number(&result, "/prompts/test/harmless/n"), 24.0);

    let (original, out) = (GgufFile::open(sample()).unwrap(), GgufFile::open(at.join("out.gguf")).unwrap());
    let edited: BTreeSet<&str> = (original.tensors().iter().zip(out.tensors()))
        .filter(|(a, b)| original.tensor_data(a) != out.tensor_data(b))
        .map(|(a, _)| a.name.as_str())
        .collect();
    let expected: BTreeSet<String> = (0..8)
        .flat_map(|il| [format!("blk.{il}.attn_output.weight"), format!("blk.{il}.ffn_down.weight")])
        .chain(["token_embd.weight".into()])
        .collect();
    assert_eq!(edited, expected.iter().map(String::as_str).collect());
    assert_eq!(out.get("ggsteer.edit"), Some(&Value::from("orthogonalize")));
    for (key, value) in original.metadata() {
        assert_eq!(out.get(key), Some(value), "{key}");
    }

    // A second reader, of Rust. (llama.cpp is the third: the evaluation above ran in it.)
    let path = at.join("out.gguf").display().to_string();
    let read = gguf_rs::get_gguf_container(&path).unwrap().decode().unwrap();
    assert_eq!(read.model_family(), "llama");
    let shapes: Vec<_> = read.tensors().iter().map(|t| (t.name.clone(), t.shape.clone(), t.offset)).collect();
    assert_eq!(shapes.len(), 75);
    for (tensor, (name, shape, offset)) in out.tensors().iter().zip(&shapes) {
        assert_eq!((&tensor.name, tensor.offset), (name, *offset));
        assert_eq!(tensor.shape(), shape);
    }
    python_reads(&sample(), &at.join("out.gguf"), &edited);
}

/// Python's `gguf` reader finds the same edited tensors, and nothing else changed.
fn python_reads(original: &Path, written: &Path, edited: &BTreeSet<&str>) {
    const SCRIPT: &str = "
import sys
from gguf import GGUFReader
a, b = (GGUFReader(path) for path in sys.argv[1:])
assert [t.name for t in a.tensors] == [t.name for t in b.tensors]
assert set(b.fields) >= set(a.fields)
print('\\n'.join(t.name for t, u in zip(a.tensors, b.tensors) if t.data.tobytes() != u.data.tobytes()))
";
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIPPED: there is no python3 to read the file with");
        return;
    }
    let packages = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/gguf");
    let mut python = Command::new("python3");
    python.env("PYTHONPATH", packages).args(["-c", SCRIPT]).args([original, written]);
    let output = python.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "run `make test`, which installs Python's gguf package: {stderr}");
    let found = String::from_utf8(output.stdout).unwrap();
    assert_eq!(found.lines().collect::<BTreeSet<_>>(), *edited);
}

#[test]
fn a_rewrite_with_no_edits_is_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("same.gguf");
    let file = GgufFile::open(sample()).unwrap();
    let plan = Plan::new(&file, &[], Options::default()).unwrap();
    let out = OutputFile::create(&path, false, &[&sample()]).unwrap();
    execute(&file, &plan, &reencode(), out, &[], &mut |_| ()).unwrap().commit().unwrap();
    assert!(fs::read(&path).unwrap() == file.bytes(), "differs from the input");
}

/// By ggml's own quantizer.
fn reencode() -> How<'static> {
    How { rounding: Rounding::Reencode, ..How::default() }
}
