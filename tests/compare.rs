//! `compare` and `analyze` on the sample, against what the single commands say.
#![forbid(unsafe_code)]

mod program;
mod support;

use std::path::{Path, PathBuf};

use ggsteer::activations::Contrast;
use program::{Folder, spec};
use serde_json::Value as Json;
use support::tiny::{Arch, Spec};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples")
}

fn f16() -> String {
    samples().join("lorekeeper-7m-f16.gguf").display().to_string()
}

/// `--harmful … --harmless …`, or the same of validation or test prompts, a few of each.
fn sets(of: &str, part: &str, n: usize) -> String {
    let prompts = samples().join("prompts");
    let spec = |kind: &str| format!("{}[:{n}]", prompts.join(format!("{kind}-{part}.txt")).display());
    format!("--{of}harmful {} --{of}harmless {}", spec("restricted"), spec("ordinary"))
}

fn json(folder: &Folder, line: &str) -> Json {
    serde_json::from_str(&folder.accepts(&format!("--json --quiet {line}"))[0]).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn compare_says_what_the_single_commands_say() {
    let folder = Folder::new();
    let f16 = f16();
    folder.accepts(&format!("quantize {f16} --type Q2_K -o q2.gguf"));
    std::fs::copy(&f16, folder.path("copy.gguf")).unwrap();
    let (train, test) = (sets("", "train", 24), sets("test-", "final", 6));
    let text = samples().join("prompts/ordinary-test.txt");
    let text = format!("--perplexity {} --ppl-ctx 64", text.display());
    let output = json(
        &folder,
        &format!(
            "compare {f16} q2.gguf copy.gguf {train} {} {test} {text} -n 12 --kl-tokens 4 --threads 1",
            sets("val-", "validation", 12)
        ),
    );
    let models = output["models"].as_array().unwrap();
    let [first, q2, copy] = models.as_slice() else { panic!("{models:?}") };

    // A copy is the same in everything but its speed.
    for key in ["chosen", "place", "bits_per_weight", "file_size", "perplexity"] {
        assert_eq!(first[key], copy[key], "{key}");
    }
    assert_eq!(first["plain"]["harmful"]["refused"], copy["plain"]["harmful"]["refused"]);
    assert_eq!(copy["ablated"]["harmful"]["refused"], copy["ablated_by_first"]["harmful"]["refused"]);
    let near = |value: &Json, expected: f64| (value.as_f64().unwrap() - expected).abs() < 1e-9;
    for c in copy["cosines"].as_array().unwrap() {
        assert!(near(&c["cosine"], 1.0), "{c}");
    }
    assert!(near(&copy["perplexity_ratio"]["ratio"], 1.0) && near(&copy["cosine"], 1.0));
    assert!(near(&copy["plain"]["harmless"]["kl_tokens"]["mean"], 0.0), "{}", copy["plain"]["harmless"]);
    assert!(q2["bits_per_weight"].as_f64() < first["bits_per_weight"].as_f64());
    assert!(q2["plain"]["harmless"]["kl_tokens"]["mean"].as_f64().unwrap() > 1e-4);

    // Cosines: from what `extract` writes of both files; in other batches, which llama.cpp rounds otherwise.
    for (model, out) in [(f16.as_str(), "a.gguf"), ("q2.gguf", "b.gguf")] {
        folder.accepts(&format!("extract {model} {train} -o {out} --threads 1"));
    }
    let [a, b] = ["a.gguf", "b.gguf"].map(|name| Contrast::load(&folder.path(name)).unwrap());
    let found = q2["cosines"].as_array().unwrap();
    assert_eq!(found.len(), a.candidates().count());
    for (c, (position, block)) in found.iter().zip(a.candidates()) {
        assert_eq!(
            (c["position"].as_i64(), c["block"].as_u64()),
            (Some(position.into()), Some(block as u64))
        );
        let expected = cosine(&a.difference(position, block), &b.difference(position, block));
        assert!((c["cosine"].as_f64().unwrap() - expected).abs() < 1e-3, "{c}: {expected}");
    }

    // The first file's direction in the other: the answers of `evaluate` with it.
    let place = &first["place"];
    let (position, block) = (place["position"].as_i64().unwrap(), place["block"].as_u64().unwrap() as usize);
    let direction = a.difference(position as i32, block);
    assert!(block > 0, "a control vector holds no direction of block 0");
    folder.direction_of("d.gguf", "llama", block, &direction);
    let test = test.replace("--test-", "--");
    let alone = json(
        &folder,
        &format!(
            "evaluate q2.gguf --base {f16} --ablate d.gguf {test} --no-control -n 12 --kl-tokens 4 --threads 1"
        ),
    );
    for set in ["harmful", "harmless"] {
        assert_eq!(alone[set]["refused"], q2["ablated_by_first"][set]["refused"], "{set}");
        let kl = |from: &Json| from[set]["kl_first"]["mean"].as_f64().unwrap();
        let (alone, here) = (kl(&alone), kl(&q2["ablated_by_first"]));
        assert!(alone > 1e-4 && (here / alone - 1.0).abs() < 0.02, "{set}: {here}, {alone}");
    }
}

#[test]
fn analyze_measures_what_extract_measures() {
    let folder = Folder::new();
    let (f16, train) = (f16(), sets("", "train", 24));
    for position in [-1, -3] {
        let analysis = json(&folder, &format!("analyze {f16} {train} --position {position} --threads 1"));
        let extracted = json(&folder, &format!("extract {f16} {train} -o d.gguf --force --threads 1"));
        let here = extracted["differences"].as_array().unwrap().iter();
        let here: Vec<&Json> = here.filter(|d| d["position"].as_i64() == Some(position)).collect();
        let blocks = analysis["blocks"].as_array().unwrap();
        assert_eq!(blocks.len(), here.len());
        for (block, difference) in blocks.iter().zip(here) {
            let [found, expected] =
                [&block["difference_norm"], &difference["norm"]].map(|x| x.as_f64().unwrap());
            assert!((found / expected - 1.0).abs() < 1e-5, "{block} {difference}");
            for key in ["pc1_variance", "pc1_auc", "pc1_cosine", "difference_auc"] {
                assert!((0.0..=1.0 + 1e-9).contains(&block[key].as_f64().unwrap()), "{key}: {block}");
            }
        }
        // The sample tells the two sets apart where it begins its answer.
        let last = blocks.last().unwrap();
        assert!(position != -1 || last["difference_auc"].as_f64().unwrap() > 0.9, "{last}");
    }
    let [text, _] = folder.accepts(&format!("--quiet analyze {f16} {train} --threads 1"));
    assert!(text.contains("PC1 AUC") && text.contains("difference in means"), "{text}");
}

#[test]
fn what_cannot_be_compared_or_analyzed_is_one_line() {
    let folder = Folder::new();
    folder.model("wider.gguf", Spec { n_embd: 64, ..spec() });
    folder.model("other.gguf", Spec { n_embd: 32, n_layer: 2, ..Spec::new(Arch::Qwen2) });
    folder.file("one.txt", "a single prompt");
    let sets = "--harmful harmful.txt --harmless harmless.txt";
    folder.refuses(
        &format!("compare model.gguf wider.gguf {sets}"),
        &["wider.gguf: llama of 2 blocks × 64", "model.gguf is llama of 2 × 32", "only files of one model"],
    );
    folder.refuses(&format!("compare model.gguf other.gguf {sets}"), &["other.gguf: qwen2"]);
    folder.refuses(&format!("compare model.gguf absent.gguf {sets}"), &["absent.gguf"]);
    folder.refuses(
        &format!("compare model.gguf model.gguf {sets} -n 8 --kl-tokens 4"),
        &["model.gguf", "nothing to be compared with"],
    );
    folder.refuses(
        "analyze model.gguf --harmful one.txt --harmless harmless.txt",
        &["one.txt", "two at least"],
    );
    folder.refuses(&format!("analyze model.gguf {sets} --position -40"), &["--position -40", "-1"]);
}
