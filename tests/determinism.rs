//! The same inputs, seed and version give the same bytes in every output, at one thread and at two, and once more.
//!
//! Threads are llama.cpp's (`--threads`) and those of our own loops (rayon's) alike: each output of a step has one writer
//! with sums in a fixed order, and llama.cpp gives every row of a product to one thread whole, so that none of its numbers
//! depends on how many there are. The one thing in an output that does is how fast it went: `compare` counts tokens a
//! second, and its JSON is compared without. A checkpoint of `select` holds as much as was done when it was stopped, so
//! what comes of going on from it is compared instead.
#![forbid(unsafe_code)]

mod program;
mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use ggsteer::gguf::Writer;
use ggsteer::quant::GgmlType;
use program::Folder;
use sha2::{Digest, Sha256};
use support::{split, tiny};

const SETS: &str = "--harmful harmful.txt --harmless harmless.txt";
/// Prompts that the sample model refuses, or answers, and rules that are kept with as few of them.
const SAMPLE: &str = "--harmful restricted-validation.txt --harmless ordinary-validation.txt --kl-max 1e9 --induce-min -1e9 \
                      --layer-fraction 2 --refusal-token I";
/// What is typed: only chat reads it.
const TYPED: &str = "Hello\n/ablate off\nHello again\n/save talk.md\n/save talk.jsonl\n";

/// Lines, and where what they print is kept, if it is an output too.
const STEPS: [(&str, &str); 34] = [
    ("extract model.gguf {SETS} -o directions.gguf --save-calibration inputs.gguf", ""),
    ("quantize model.gguf --type Q8_0 -o q8_0.gguf", ""),
    ("quantize model.gguf --type Q2_K -o q2_k.gguf", ""),
    ("quantize model.gguf --type Q4_K_M -o q4_k.gguf", ""),
    ("quantize model.gguf --type Q3_K_M --imatrix importance.gguf -o important.gguf", ""),
    (
        "quantize model.gguf --type Q3_K_S --direction direction.gguf --calibration inputs.gguf -o q3_k.gguf",
        "",
    ),
    (
        "orthogonalize q4_k.gguf --direction direction.gguf --calibration inputs.gguf -o out.gguf --json",
        "orthogonalize.json",
    ),
    ("verify q4_k.gguf out.gguf --direction direction.gguf --calibration inputs.gguf --json", "verify.json"),
    ("orthogonalize q4_k.gguf --direction direction.gguf --uncalibrated -o nearest.gguf", ""),
    (
        "orthogonalize q4_k.gguf --direction direction.gguf --calibration inputs.gguf --max-growth 5% -o grown.gguf",
        "",
    ),
    ("orthogonalize part-00001-of-00002.gguf --direction direction.gguf -o split.gguf", ""),
    ("export lora q4_k.gguf --direction direction.gguf -o lora.gguf", ""),
    ("export control-vector direction.gguf --additive -o vector.gguf", ""),
    (
        "evaluate q4_k.gguf {SETS} -n 6 --ablate direction.gguf --completions answers.json --json",
        "evaluate.json",
    ),
    ("report evaluate.json -o report.html --png plots", ""),
    ("inspect q4_k.gguf --json", "inspect.json"),
    ("quantize sample.gguf --type Q4_K_M -o sample-q4.gguf", ""),
    ("analyze model.gguf {SETS} --json", "analyze.json"),
    ("compare sample.gguf sample-q4.gguf {SAMPLE} --limit 10 -n 4 --json", "compare.json"),
    ("report compare.json -o compare.html", ""),
    (
        "abliterate sample.gguf {SAMPLE} --limit 10 --answer-tokens 4 -n 6 -o edited.gguf --save-direction found.gguf --report story.html",
        "",
    ),
    (
        "optimize model.gguf --direction direction.gguf {SETS} -n 2 --trials 14 --log log.jsonl --json",
        "optimize.json",
    ),
    (
        "optimize model.gguf --direction direction.gguf --directions directions.gguf {SETS} -n 2 --trials 14 --seed 1 --save saved/1",
        "",
    ),
    (
        "optimize model.gguf --direction direction.gguf --directions directions.gguf {SETS} -n 2 --trials 14 --seed 2 --save saved/2",
        "",
    ),
    (
        "optimize model.gguf --direction direction.gguf --directions directions.gguf {SETS} -n 2 --trials 14 --seed 3 --save saved/3",
        "",
    ),
    ("card out.gguf evaluate.json -o card", ""),
    ("config --init config.toml", ""),
    ("man pages", ""),
    ("chat model.gguf -n 6 --temperature 0.8 --ablate direction.gguf --no-history", ""),
    (
        "extract sample.gguf --harmful restricted-train.txt --harmless ordinary-train.txt --limit 24 -o measured.gguf",
        "",
    ),
    ("select sample.gguf --directions measured.gguf {SAMPLE} --limit 4 -o chosen.gguf --json", "select.json"),
    ("generate sample.gguf -n 24 --temperature 0.8 --seed 3 --ablate chosen.gguf -p {PROMPT}", "text"),
    ("orthogonalize sample.gguf --direction chosen.gguf -o written.gguf", ""),
    (RESUMED, ""),
];

const RESUMED: &str = "select sample.gguf --directions measured.gguf {SAMPLE} --limit 4 -o resumed.gguf";

fn folder() -> Folder {
    let folder = Folder::new();
    let spec = tiny::Spec { n_embd: 256, n_head: 4, n_head_kv: 2, n_ff: 512, n_ctx: 512, ..program::spec() };
    let model = tiny::Model::random(spec.clone());
    folder.model("model.gguf", spec);
    for (no, part) in split::parts(&model, &[5]).iter().enumerate() {
        part.write(&folder.path(&split::name("part", no, 2)));
    }
    importance(&model, &folder.path("importance.gguf"));
    folder.direction("direction.gguf", "llama", &tiny::unit(256, 1));
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples");
    fs::copy(samples.join("lorekeeper-7m-f16.gguf"), folder.path("sample.gguf")).unwrap();
    for name in ["restricted-train", "ordinary-train", "restricted-validation", "ordinary-validation"] {
        let name = format!("{name}.txt");
        fs::copy(samples.join("prompts").join(&name), folder.path(&name)).unwrap();
    }
    folder.file("typed.txt", TYPED);
    folder
}

/// An importance matrix for every matrix of a model, as llama.cpp's tool writes it.
fn importance(model: &tiny::Model, path: &Path) {
    let mut header = Writer::new().key("general.type", "imatrix");
    let matrices: Vec<&tiny::Tensor> = model.tensors.iter().filter(|t| t.ne.len() == 2).collect();
    for matrix in &matrices {
        header = header.tensor(format!("{}.in_sum2", matrix.name), &[matrix.ne[0] as u64, 1], GgmlType::F32);
        header = header.tensor(format!("{}.counts", matrix.name), &[1, 1], GgmlType::F32);
    }
    let mut stream = header.start(File::create(path).unwrap()).unwrap();
    for matrix in &matrices {
        let sums: Vec<u8> = (0..matrix.ne[0]).flat_map(|i| (1.0 + i as f32).to_le_bytes()).collect();
        stream.data(&sums).unwrap();
        stream.data(&16f32.to_le_bytes()).unwrap();
    }
    stream.finish().unwrap();
}

/// Bytes of an output and their digest.
#[derive(Clone, PartialEq, Debug)]
struct Made {
    bytes: usize,
    sha256: String,
}

/// Runs every step with so many threads; every output, a folder as one.
fn outputs(threads: usize) -> BTreeMap<String, Made> {
    let folder = folder();
    let inputs = folder.contents();
    for (line, printed) in STEPS {
        let line = line.replace("{SETS}", SETS).replace("{SAMPLE}", SAMPLE);
        let words = line.split_whitespace();
        let words: Vec<&str> =
            words.map(|w| if w == "{PROMPT}" { "Who made the hexed lantern?" } else { w }).collect();
        let command = || {
            let mut command = folder.command(assert_cmd::cargo::cargo_bin!("ggsteer").to_str().unwrap());
            // Not as an argument, for those are written into some outputs.
            command.env("GGSTEER_THREADS", threads.to_string()).env("RAYON_NUM_THREADS", threads.to_string());
            command.env("OMP_WAIT_POLICY", "passive").arg("-q").args(&words);
            command.stdin(File::open(folder.path("typed.txt")).unwrap());
            command
        };
        if line.ends_with("resumed.gguf") {
            stop(&folder, command());
        }
        let output = command().output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        if !printed.is_empty() {
            folder.file(printed, without_speed(printed, output.stdout));
        }
    }
    let mut made: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (path, bytes) in folder.contents().into_iter().filter(|(path, _)| !inputs.contains_key(path)) {
        let name = path.strip_prefix(folder.path("")).unwrap();
        let first = name.components().next().unwrap().as_os_str().to_str().unwrap();
        made.entry(first.to_owned()).or_default().extend(bytes.unwrap_or_default());
    }
    let digest = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    made.into_iter().map(|(name, all)| (name, Made { bytes: all.len(), sha256: digest(&all) })).collect()
}

/// Starts a command and kills it as soon as there is a checkpoint, or lets it end.
fn stop(folder: &Folder, mut command: std::process::Command) {
    let checkpoint = folder.path("resumed.gguf.checkpoint");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while child.try_wait().unwrap().is_none() && !checkpoint.exists() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let _ = child.kill();
    child.wait().unwrap();
    // What a kill leaves may be there too.
    for path in folder.contents().into_keys().filter(|path| path.extension().is_some_and(|e| e == "part")) {
        fs::remove_file(path).unwrap();
    }
    assert!(
        checkpoint.exists() && !folder.path("resumed.gguf").exists(),
        "it ended before it could be killed"
    );
}

/// The JSON of `compare` without the tokens a second.
fn without_speed(name: &str, text: Vec<u8>) -> Vec<u8> {
    if name != "compare.json" {
        return text;
    }
    let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    for model in json["models"].as_array_mut().unwrap() {
        model["speed"] = serde_json::json!({ "prompt": 1.0, "answer": 1.0 });
    }
    json.to_string().into_bytes()
}

#[test]
fn one_thread_two_threads_and_once_more_give_the_same_bytes() {
    let [one, two, again] = [1, 2, 1].map(outputs);
    let mut table =
        "| output | bytes | SHA-256 | same at 1, 2 and again 1 thread |\n|---|---:|---|---|\n".to_owned();
    let mut wrong = Vec::new();
    for (name, made) in &one {
        assert!(made.bytes > 0, "{name} holds nothing");
        let same = two.get(name) == Some(made) && again.get(name) == Some(made);
        let note = if name == "compare.json" { ", without its tokens a second" } else { "" };
        let said = if same { "yes" } else { "no" };
        table += &format!("| {name} | {} | `{:.16}` | {said}{note} |\n", made.bytes, made.sha256);
        if !same {
            wrong.push(name);
        }
    }
    print!("{table}");
    if let Some(tables) = std::env::var_os("GGSTEER_TABLES") {
        fs::create_dir_all(&tables).unwrap();
        fs::write(Path::new(&tables).join("determinism.md"), &table).unwrap();
    }
    assert!(
        wrong.is_empty() && one.len() == two.len() && one.len() == again.len(),
        "not the same: {wrong:?}"
    );
    assert_eq!(one["resumed.gguf"], one["chosen.gguf"], "gone on with from a checkpoint");
}
