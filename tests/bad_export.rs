//! Exporting, quantizing and verifying through the program: what is refused, in which words, and with which code.
#![forbid(unsafe_code)]

mod program;
mod support;

use std::fs;

use ggsteer::direction::{Direction, Provenance};
use ggsteer::gguf::{GgufFile, Value, Writer};
use ggsteer::quant::GgmlType;
use program::Folder;
use support::tiny::{self, Arch, Spec};

fn folder() -> Folder {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &tiny::unit(32, 1));
    folder
}

/// A model on whose widths every type fits.
fn wide() -> Spec {
    let spec = Spec { n_embd: 256, n_head: 4, n_head_kv: 4, n_ff: 256, n_layer: 2, ..Spec::new(Arch::Llama) };
    Spec { tied: false, ..spec }
}

/// An importance matrix in llama.cpp's GGUF form: `width` ones for every matrix of the blocks.
fn importance(folder: &Folder, name: &str, kind: &str, tensors: &[&str], width: u64) {
    let mut writer = Writer::new().key("general.type", kind);
    for tensor in tensors {
        writer = writer.tensor(format!("{tensor}.in_sum2"), &[width], GgmlType::F32).tensor(
            format!("{tensor}.counts"),
            &[1],
            GgmlType::F32,
        );
    }
    let mut stream = writer.start(Vec::new()).unwrap();
    for _ in tensors {
        for values in [width as usize, 1] {
            stream.data(&1f32.to_le_bytes().repeat(values)).unwrap();
        }
    }
    folder.file(name, stream.finish().unwrap());
}

const MATRICES: [&str; 7] = [
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
];

fn matrices() -> Vec<String> {
    (0..2).flat_map(|il| MATRICES.map(|name| format!("blk.{il}.{name}"))).collect()
}

#[test]
fn an_adapter_is_made_for_the_model_its_direction_is_for() {
    let folder = folder();
    folder.direction("wide.gguf", "llama", &tiny::unit(64, 1));
    folder.direction("other.gguf", "qwen2", &tiny::unit(32, 1));
    folder.direction("zero.gguf", "llama", &[0.0; 32]);
    folder.direction("nan.gguf", "llama", &[f32::NAN; 32]);
    let line = |direction: &str| format!("export lora model.gguf --direction {direction} -o out.gguf");
    folder.refuses(&line("wide.gguf"), &["wide.gguf", "n_embd 64", "32"]);
    folder.refuses(&line("other.gguf"), &["other.gguf", "\"qwen2\"", "\"llama\""]);
    folder.refuses(&line("zero.gguf"), &["zero.gguf", "zero"]);
    folder.refuses(&line("nan.gguf"), &["nan.gguf", "not finite"]);
    folder.refuses(&line("none.gguf"), &["none.gguf"]);
    folder.refuses(&line("model.gguf"), &["model.gguf", "not a control vector"]);
    folder.refuses(&line("direction.gguf --direction direction.gguf"), &["direction 1", "span"]);
    folder
        .refuses("export lora harmful.txt --direction direction.gguf -o out.gguf", &["harmful.txt", "GGUF"]);
    folder.refuses("export lora model.gguf --direction direction.gguf -o none/out.gguf", &["no folder"]);
    folder.refuses(
        "export lora model.gguf --direction direction.gguf -o model.gguf --force",
        &["is the input"],
    );
    let unknown = Spec { extra: vec![("general.architecture".into(), text("martian"))], ..program::spec() };
    folder.model("martian.gguf", unknown);
    folder.direction("any.gguf", "martian", &tiny::unit(32, 1));
    folder.refuses("export lora martian.gguf --direction any.gguf -o out.gguf", &["martian.gguf"]);
}

fn text(value: &str) -> support::writer::Value {
    support::writer::Value::Str(value.into())
}

#[test]
fn an_adapter_names_what_it_leaves_out() {
    let folder = folder();
    let spec = Spec { n_embd: 32, n_head: 2, n_head_kv: 2, n_ff: 64, n_layer: 2, ..Spec::new(Arch::Gpt2) };
    folder.model("gpt2.gguf", spec);
    folder.direction("d.gguf", "gpt2", &tiny::unit(32, 1));
    let [stdout, stderr] = folder.accepts("--json export lora gpt2.gguf --direction d.gguf -o out.gguf");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    let names = |list: &serde_json::Value| list.as_array().unwrap().len();
    assert_eq!((json["rank"].as_u64(), names(&json["tensors"]), names(&json["left_out"])), (Some(1), 4, 6));
    assert_eq!(json["left_out"][1]["tensor"], "position_embd.weight");
    assert_eq!(json["left_out"][1]["reason"], "looked_up");
    for word in ["6 writers", "token_embd.weight", "position_embd.weight", "blk.1.ffn_down.bias", "partial"] {
        assert!(stderr.contains(word), "{word}: {stderr}");
    }
    // The file says it too, and which direction it is of.
    let file = GgufFile::open(folder.path("out.gguf")).unwrap();
    assert_eq!(file.get("ggsteer.edit"), Some(&Value::from("lora")));
    assert!(matches!(file.get("ggsteer.lora.left_out"), Some(Value::Array(a)) if a.len() == 6));
    assert_eq!(file.get_str("ggsteer.direction.0.sha256").unwrap().len(), 64);
    folder.refuses("export lora gpt2.gguf --direction d.gguf -o out.gguf", &["out.gguf", "--force"]);
    folder.accepts("-q export lora gpt2.gguf --direction d.gguf -o out.gguf --force");
}

#[test]
fn control_vectors_say_what_stock_llama_cpp_makes_of_them() {
    let folder = folder();
    let line = |more: &str| format!("export control-vector direction.gguf -o out.gguf {more}");
    let [_, stderr] = folder.accepts(&line("--projective"));
    assert!(stderr.contains("warning:") && stderr.contains("TOWARD"), "{stderr}");
    let [stdout, stderr] = folder.accepts(&line("--additive --scale -2 --force --json"));
    assert!(stderr.contains("output of block 1"), "{stderr}");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((json["mode"].as_str(), json["block"].as_u64()), (Some("add"), Some(1)));
    assert!((json["norm"].as_f64().unwrap() - 2.0).abs() < 1e-5);
    fs::remove_file(folder.path("out.gguf")).unwrap();
    for scale in ["0", "nan", "inf"] {
        folder.refuses(&line(&format!("--additive --scale {scale}")), &["direction.gguf", "scale"]);
    }
    folder.refuses(&line("--additive --block 3"), &["no direction for block 3"]);
    folder.refuses("export control-vector model.gguf --additive -o out.gguf", &["not a control vector"]);
    folder.refuses(
        "export control-vector direction.gguf --additive -o direction.gguf --force",
        &["is the input"],
    );
    let first = Direction::new(vec![1.0; 32], 0, Provenance::default()).unwrap();
    first.save(folder.path("first.gguf"), false).unwrap();
    let first = "export control-vector first.gguf -o out.gguf";
    folder.refuses(&format!("{first} --additive"), &["first.gguf", "block 0", "llama.cpp"]);
    // One of the two must be chosen.
    assert_eq!(folder.run(first).status.code(), Some(2));
    assert_eq!(folder.run(&format!("{first} --additive --projective")).status.code(), Some(2));
}

#[test]
fn quantizing_is_refused_in_one_line_and_leaves_nothing() {
    let folder = folder();
    folder.model("wide.gguf", wide());
    let line = |more: &str| format!("quantize wide.gguf --threads 1 -o out.gguf {more}");
    folder.refuses(&line("--type Q4_M"), &["--type", "Q4_M", "did you mean", "Q4_K_M"]);
    folder.refuses(&line("--type tiny"), &["unknown type tiny", "Q8_0, Q6_K"]);
    folder.refuses("quantize none.gguf --type Q8_0 -o out.gguf", &["none.gguf"]);
    folder.refuses("quantize harmful.txt --type Q8_0 -o out.gguf", &["harmful.txt", "GGUF"]);
    folder.refuses("quantize wide.gguf --type Q8_0 -o ./wide.gguf --force", &["is the input wide.gguf"]);
    folder.refuses("quantize wide.gguf --type Q8_0 -o none/out.gguf", &["no folder none"]);
    let names = matrices();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    importance(&folder, "narrow.gguf", "imatrix", &names, 128);
    importance(&folder, "other.gguf", "imatrix", &["blk.0.nothing.weight"], 256);
    importance(&folder, "some.gguf", "imatrix", &names[..1], 256);
    importance(&folder, "model.imatrix", "model", &names, 256);
    let with = |file: &str| line(&format!("--type IQ2_XS --imatrix {file}"));
    folder.refuses(&with("narrow.gguf"), &["narrow.gguf", "blk.0.attn_k.weight", "128", "256"]);
    folder.refuses(&with("other.gguf"), &["other.gguf", "another model"]);
    folder.refuses(&with("some.gguf"), &["wide.gguf", "importance matrix"]);
    folder.refuses(&with("model.imatrix"), &["model.imatrix", "imatrix"]);
    folder.refuses(&with("harmful.txt"), &["harmful.txt"]);
    folder.refuses(&with("wide.gguf"), &["wide.gguf"]);
    folder.refuses(&line("--type IQ2_XS"), &["wide.gguf", "IQ2_XS", "--imatrix"]);
    importance(&folder, "imatrix.gguf", "imatrix", &names, 256);
    let pure = line("--type IQ2_XS --imatrix imatrix.gguf --pure");
    folder.refuses(&pure, &["token_embd.weight", "--pure"]);
    let [stdout, _] = folder.accepts(&line("--type q2_k_s --imatrix imatrix.gguf --json"));
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((json["type"].as_str(), json["imatrix"].as_str()), (Some("Q2_K_S"), Some("imatrix.gguf")));
    assert!(json["after"]["bits_per_weight"].as_f64() < json["before"]["bits_per_weight"].as_f64());
    fs::remove_file(folder.path("out.gguf")).unwrap();
    // Twice: refused, until it is asked for.
    folder.accepts(&format!("-q {}", line("--type q8_0")));
    folder.refuses(&line("--type Q8_0"), &["out.gguf", "--force"]);
    let again = "quantize out.gguf --type Q4_0 -o again.gguf";
    folder.refuses(again, &["out.gguf", "q8_0", "--allow-requantize"]);
    let [stdout, stderr] = folder.accepts(&format!("{again} --allow-requantize"));
    assert!(stdout.contains("q8_0") && stdout.contains("q4_0"), "{stdout}");
    assert!(stderr.contains("warning:"), "{stderr}");
}

const VERIFY: &str = "verify model.gguf out.gguf --direction direction.gguf";

#[test]
fn a_file_that_is_what_it_says_passes() {
    let folder = folder();
    folder.accepts("-q orthogonalize model.gguf --direction direction.gguf -o out.gguf");
    let [stdout, stderr] = folder.accepts(VERIFY);
    assert!(stdout.contains("nothing else changed") && stderr.is_empty(), "{stdout}{stderr}");
    let [stdout, _] = folder.accepts(&format!("--json {VERIFY}"));
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((json["ok"].as_bool(), json["has_provenance"].as_bool()), (Some(true), Some(true)));
    assert_eq!(json["tensors"].as_array().unwrap().len(), 5);
    assert!(json["max_leak"].as_f64().unwrap() < 1e-5 && json["bytes_changed"].as_u64() > Some(1000));
    assert!(json["max_edit_error"].is_null());
    // Untied and skipped embeddings are what the file says, too.
    folder.model("tied.gguf", Spec { tied: true, ..program::spec() });
    for (tied, untied, strength) in [("edit", false, 1.0), ("untie", true, 1.0), ("skip", false, 0.0)] {
        let make =
            format!("-q orthogonalize tied.gguf --direction direction.gguf -o t.gguf --force --tied {tied}");
        folder.accepts(&make);
        let [stdout, _] = folder.accepts("--json verify tied.gguf t.gguf --direction direction.gguf");
        let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(json["untied"].as_bool(), Some(untied), "{tied}");
        assert_eq!(json["tensors"][0]["strength"].as_f64(), Some(strength), "{tied}");
    }
}

/// Runs a `verify` that must end with 3, and returns its one line on stderr.
fn differs(folder: &Folder, line: &str, words: &[&str]) {
    let output = folder.run(&format!("-q --json {line}"));
    let [stdout, stderr] = [output.stdout, output.stderr].map(|b| String::from_utf8(b).unwrap());
    assert_eq!(output.status.code(), Some(3), "{stderr}");
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(json["ok"], false);
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word) || stdout.contains(word), "{word:?} is missing: {stderr}{stdout}");
    }
}

#[test]
fn every_difference_ends_with_three() {
    let folder = folder();
    folder.accepts("-q orthogonalize model.gguf --direction direction.gguf -o out.gguf");
    // Another direction, another original.
    folder.direction("second.gguf", "llama", &tiny::unit(32, 2));
    differs(&folder, "verify model.gguf out.gguf --direction second.gguf", &["SHA-256"]);
    let two = "verify model.gguf out.gguf --direction direction.gguf --direction second.gguf";
    differs(&folder, two, &["direction 1", "none"]);
    folder.model("other.gguf", Spec { seed: 9, ..program::spec() });
    differs(&folder, "verify other.gguf out.gguf --direction direction.gguf", &["fingerprint", "attn_q"]);
    // A byte of a tensor that was not to be edited.
    let good = fs::read(folder.path("out.gguf")).unwrap();
    let file = GgufFile::open(folder.path("out.gguf")).unwrap();
    let at = file.data_range(file.tensor("blk.1.ffn_up.weight").unwrap()).start;
    drop(file);
    let mut bad = good.clone();
    bad[at + 2] ^= 1;
    folder.file("out.gguf", &bad);
    differs(&folder, VERIFY, &["blk.1.ffn_up.weight", "byte 2"]);
    // A key of the original.
    let mut bad = good.clone();
    let name = b"tiny llama";
    let at = bad.windows(name.len()).position(|w| w == name).unwrap();
    bad[at] = b'T';
    folder.file("out.gguf", &bad);
    differs(&folder, VERIFY, &["general.name"]);
    // A tensor named otherwise.
    let mut bad = good.clone();
    let name = b"blk.0.ffn_down.weight";
    let at = bad.windows(name.len()).rposition(|w| w == name).unwrap();
    bad[at + 4] = b'7';
    folder.file("out.gguf", &bad);
    differs(&folder, VERIFY, &["blk.7.ffn_down.weight", "expected"]);
    // Edited, but not said to be.
    let mut bad = good.clone();
    let at = bad.windows(name.len()).position(|w| w == name).unwrap();
    bad[at + 4] = b'7';
    folder.file("out.gguf", &bad);
    differs(
        &folder,
        VERIFY,
        &["blk.0.ffn_down.weight", "was not to be edited", "blk.7.ffn_down.weight", "no writer"],
    );
    // A file of another kind altogether is an error, not a difference.
    folder.refuses("verify model.gguf harmful.txt --direction direction.gguf", &["harmful.txt", "GGUF"]);
    folder.refuses("verify model.gguf none.gguf --direction direction.gguf", &["none.gguf"]);
    folder.refuses(&format!("{VERIFY} --calibration direction.gguf"), &["direction.gguf", "calibration"]);
}

#[test]
fn a_file_that_says_nothing_is_measured_and_told() {
    let folder = folder();
    let [stdout, stderr] = folder.accepts("verify model.gguf model.gguf --direction direction.gguf");
    assert!(stderr.contains("says nothing of how it was made"), "{stderr}");
    assert!(stdout.contains("largest leak 1.0"), "{stdout}");
}

#[test]
fn figures_on_inputs_come_with_a_calibration() {
    let folder = folder();
    let sets = "--threads 1 --harmful harmful.txt --harmless harmless.txt";
    folder.accepts(&format!("-q extract model.gguf {sets} -o d.gguf --save-calibration inputs.gguf"));
    folder.accepts("-q quantize model.gguf --type Q4_0 --threads 1 -o q4.gguf");
    folder.accepts("-q orthogonalize q4.gguf --direction direction.gguf -o out.gguf");
    let line = "--json verify q4.gguf out.gguf --direction direction.gguf --calibration inputs.gguf";
    let [stdout, _] = folder.accepts(line);
    let json: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    for tensor in json["tensors"].as_array().unwrap() {
        let figure = |name: &str| tensor[name].as_f64();
        let matrix = tensor["name"].as_str().unwrap().starts_with("blk.");
        assert_eq!(figure("data_leak").is_some() && figure("edit_error").is_some(), matrix, "{tensor}");
        assert!(figure("edit_error").is_none_or(|x| x > 0.0 && x < 2.0), "{tensor}");
    }
    assert!(json["max_data_leak"].as_f64().unwrap() > 0.0);
}
