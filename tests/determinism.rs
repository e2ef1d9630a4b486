//! The same inputs, seed and version give the same bytes in every output, at one thread and at two, and once more.
#![forbid(unsafe_code)]

mod program;
mod support;

use std::fs;
use std::path::Path;

use program::Folder;
use sha2::{Digest, Sha256};
use support::tiny;

const SETS: &str = "--harmful harmful.txt --harmless harmless.txt";

/// Outputs, and the lines that make them or print them; without a line, one before has made it.
const STEPS: [(&str, &str); 15] = [
    ("directions.gguf", "extract model.gguf {SETS} -o directions.gguf --save-calibration inputs.gguf"),
    ("inputs.gguf", ""),
    ("q8_0.gguf", "quantize model.gguf --type Q8_0 -o q8_0.gguf"),
    ("q2_k.gguf", "quantize model.gguf --type Q2_K -o q2_k.gguf"),
    ("q4_k.gguf", "quantize model.gguf --type Q4_K_M -o q4_k.gguf"),
    ("out.gguf", "orthogonalize q4_k.gguf --direction direction.gguf --calibration inputs.gguf -o out.gguf"),
    (
        "q3_k.gguf",
        "quantize model.gguf --type Q3_K_S --direction direction.gguf --calibration inputs.gguf -o q3_k.gguf",
    ),
    ("lora.gguf", "export lora q4_k.gguf --direction direction.gguf -o lora.gguf"),
    ("vector.gguf", "export control-vector direction.gguf --additive -o vector.gguf"),
    (
        "answers.json",
        "evaluate q4_k.gguf {SETS} --max-tokens 6 --ablate direction.gguf --completions answers.json",
    ),
    ("run.json", "evaluate q4_k.gguf {SETS} --max-tokens 6 --ablate direction.gguf --json"),
    ("report.html", "report run.json -o report.html"),
    ("chosen.gguf", "select sample.gguf --directions measured.gguf {LIMITED} -o chosen.gguf"),
    ("measured.gguf", ""),
    ("text", "generate sample.gguf -n 24 --temperature 0.8 --seed 3 --ablate chosen.gguf -p {PROMPT}"),
];

fn folder() -> Folder {
    let folder = Folder::new();
    let spec = tiny::Spec { n_embd: 256, n_head: 4, n_head_kv: 2, n_ff: 512, n_ctx: 512, ..program::spec() };
    folder.model("model.gguf", spec);
    folder.direction("direction.gguf", "llama", &tiny::unit(256, 1));
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples");
    fs::copy(samples.join("lorekeeper-7m-f16.gguf"), folder.path("sample.gguf")).unwrap();
    for name in ["restricted-train", "ordinary-train", "restricted-validation", "ordinary-validation"] {
        let name = format!("{name}.txt");
        fs::copy(samples.join("prompts").join(&name), folder.path(&name)).unwrap();
    }
    folder
}

/// Runs every step with so many threads; the digest of each output, in order.
fn digests(threads: usize) -> Vec<String> {
    let folder = folder();
    let run = |line: &str| {
        let line = line.replace("{SETS}", SETS);
        let line = line.replace(
            "{LIMITED}",
            "--harmful restricted-validation.txt --harmless ordinary-validation.txt --limit 12",
        );
        let words = line.split_whitespace();
        let words = words.map(|w| if w == "{PROMPT}" { "Who made the hexed lantern?" } else { w });
        // Not as an argument, for those are written into some outputs.
        let mut command = folder.ggsteer();
        let output = command
            .env("GGSTEER_THREADS", threads.to_string())
            .env("OMP_WAIT_POLICY", "passive")
            .arg("-q")
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    run(
        "extract sample.gguf --harmful restricted-train.txt --harmless ordinary-train.txt --limit 24 -o measured.gguf",
    );
    let digest = |(name, line): &(&str, &str)| {
        let printed = if line.is_empty() { Vec::new() } else { run(line) };
        if !folder.path(name).exists() {
            folder.file(name, printed);
        }
        let bytes = fs::read(folder.path(name)).unwrap();
        Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect()
    };
    STEPS.iter().map(digest).collect()
}

#[test]
fn one_thread_two_threads_and_once_more_give_the_same_bytes() {
    let [one, two, again] = [1, 2, 1].map(digests);
    for (i, (name, _)) in STEPS.iter().enumerate() {
        println!("{name:<16} {}", one[i]);
        assert_eq!(one[i], two[i], "{name} depends on the number of threads");
        assert_eq!(one[i], again[i], "{name} differs when it is made again");
    }
}
