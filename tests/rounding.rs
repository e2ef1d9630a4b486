//! What a rewritten model is rounded by, through the program: prompts, files, a source of higher precision, more bits.

mod program;
mod support;

use std::fs;

use ggsteer::gguf::{GgufFile, Value, Writer};
use ggsteer::quant::GgmlType;
use program::{Folder, spec};
use serde_json::Value as Json;
use support::tiny::{Arch, Spec, unit};

const PROMPTS: &str = "--harmful harmful.txt --harmless harmless.txt --threads 1";
const EDIT: &str = "orthogonalize q4.gguf --direction direction.gguf";

/// The model at 4 bits as `q4.gguf`, a direction, and a calibration with it ablated.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &unit(32, 7));
    folder.accepts("-q quantize model.gguf --type Q4_0 --pure -o q4.gguf");
    folder.accepts(&format!("-q {EDIT} {PROMPTS} --save-calibration inputs.gguf -o prompts.gguf"));
    folder
}

fn json(folder: &Folder, line: &str) -> Json {
    serde_json::from_str(&folder.accepts(&format!("--json --quiet {line}"))[0]).unwrap()
}

fn figure(result: &Json, tensor: &str, name: &str) -> f64 {
    let tensors = result["tensors"].as_array().unwrap();
    let found = tensors.iter().find(|t| t["name"] == tensor).and_then(|t| t[name].as_f64());
    found.unwrap_or_else(|| panic!("{name} of {tensor} in {result:#}"))
}

fn open(folder: &Folder, name: &str) -> GgufFile {
    GgufFile::open(folder.path(name)).unwrap()
}

const DOWN: &str = "blk.1.ffn_down.weight";

#[test]
fn a_quantized_model_asks_for_the_inputs_of_its_writers() {
    let folder = folder();
    let missing =
        ["\"blk.0.attn_output.weight\" is q4_0", "--harmful", "--calibration", "--imatrix", "--uncalibrated"];
    let message = folder.refuses(&format!("{EDIT} -o out.gguf"), &missing);
    assert!(message.contains("export lora"), "{message}");
    let quantize = "quantize model.gguf --type Q4_0 --direction direction.gguf -o out.gguf";
    folder.refuses(quantize, &["--harmful", "--calibration", "--uncalibrated"]);
    // Full precision has nothing to round, and so do embeddings and biases alone.
    folder.accepts("-q orthogonalize model.gguf --direction direction.gguf -o full.gguf");
    folder.accepts(&format!("-q {EDIT} --writers embedding,bias -o embedding.gguf"));

    let [_, stderr] = folder.accepts(&format!("{EDIT} --uncalibrated -o nearest.gguf"));
    assert!(
        stderr.contains("warning: rounding to the nearest code") && stderr.contains("the distance"),
        "{stderr}"
    );
    for (flags, words) in [
        ("--uncalibrated --calibration inputs.gguf", "cannot be used with"),
        ("--uncalibrated --max-growth 5%", "cannot be used with"),
        ("--harmful harmful.txt", "--harmless"),
    ] {
        let output = folder.run(&format!("{EDIT} {flags} -o out.gguf"));
        assert_eq!(output.status.code(), Some(2), "{flags}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(words), "{flags}");
    }
    folder.refuses(
        &format!("{EDIT} {PROMPTS} --calibration inputs.gguf -o out.gguf"),
        &["prompts or --calibration"],
    );
    folder.refuses(
        &format!("{EDIT} --save-calibration c.gguf -o out.gguf"),
        &["--save-calibration needs prompts"],
    );
}

#[test]
fn prompts_and_the_calibration_kept_of_them_give_the_same_file() {
    let folder = folder();
    let result = json(&folder, &format!("{EDIT} --calibration inputs.gguf -o file.gguf"));
    assert!(fs::read(folder.path("file.gguf")).unwrap() == fs::read(folder.path("prompts.gguf")).unwrap());
    assert_eq!((&result["rounding"], &result["calibration"]), (&"descent".into(), &"inputs.gguf".into()));
    // Rounded for their inputs, the matrices are nearer to the edit on inputs that were held out.
    let verify = |out: &str| {
        let line = format!("verify q4.gguf {out} --direction direction.gguf --calibration inputs.gguf");
        json(&folder, &line)
    };
    folder.accepts(&format!("-q {EDIT} --uncalibrated -o nearest.gguf"));
    let (by_inputs, nearest) = (verify("file.gguf"), verify("nearest.gguf"));
    assert_eq!((&by_inputs["ok"], &nearest["ok"]), (&true.into(), &true.into()));
    for tensor in ["blk.0.attn_output.weight", "blk.0.ffn_down.weight", "blk.1.attn_output.weight", DOWN] {
        let [ours, theirs] = [&by_inputs, &nearest].map(|v| figure(v, tensor, "edit_error"));
        assert!(ours < 0.8 * theirs, "{tensor}: {ours} and {theirs}");
        assert!((figure(&result, tensor, "edit_error") - ours).abs() < 1e-4, "{tensor}: {ours}");
    }
    let file = open(&folder, "file.gguf");
    assert_eq!(file.get("ggsteer.edit.rounding"), Some(&Value::from("descent")));
}

#[test]
fn inputs_of_another_model_are_refused() {
    let folder = folder();
    for (name, spec) in [
        ("deeper", Spec { n_layer: 3, ..spec() }),
        ("wider", Spec { n_ff: 96, ..spec() }),
        (
            "named",
            Spec {
                extra: vec![("general.name".into(), support::writer::Value::Str("other".into()))],
                ..spec()
            },
        ),
        ("qwen", Spec { arch: Arch::Qwen2, ..spec() }),
    ] {
        folder.model(&format!("{name}.gguf"), spec);
    }
    folder.direction("qwen-direction.gguf", "qwen2", &unit(32, 7));
    let line = |model: &str, direction: &str| {
        folder.accepts(&format!("-q quantize {model}.gguf --type Q8_0 -o {model}-q8.gguf"));
        format!("orthogonalize {model}-q8.gguf --direction {direction} --calibration inputs.gguf -o out.gguf")
    };
    let plain = "direction.gguf";
    let words = ["inputs.gguf", "calibration of another model"];
    let refuses = |line: &str, more: &[&str]| folder.refuses(line, &[&words, more].concat());
    refuses(&line("deeper", plain), &["blk.2.attn_output.weight"]);
    refuses(&line("wider", plain), &["ffn_down.weight", "96", "64"]);
    refuses(&line("qwen", "qwen-direction.gguf"), &["architecture", "qwen2"]);
    let named = line("named", plain);
    refuses(&named, &["\"other\"", "\"tiny llama\"", "--other-calibration"]);
    let [_, stderr] = folder.accepts(&format!("{named} --other-calibration"));
    assert!(stderr.contains("warning: inputs.gguf: the calibration is of another file"), "{stderr}");
    folder
        .refuses(&format!("{EDIT} --calibration q4.gguf -o x.gguf"), &["q4.gguf", "not a calibration file"]);
    folder
        .refuses(&format!("{EDIT} --imatrix inputs.gguf -o x.gguf"), &["inputs.gguf", "not an imatrix file"]);
}

/// Writes an importance matrix for the writers, of inputs of `n_in` elements in the FFN.
fn imatrix(folder: &Folder, name: &str, n_ff: usize) {
    let mut writer = Writer::new().key("general.type", "imatrix");
    let mut data = Vec::new();
    for (il, matrix, n_in) in (0..2).flat_map(|il| [(il, "attn_output", 32), (il, "ffn_down", n_ff)]) {
        let tensor = format!("blk.{il}.{matrix}.weight");
        writer = writer.tensor(format!("{tensor}.in_sum2"), &[n_in as u64, 1], GgmlType::F32).tensor(
            format!("{tensor}.counts"),
            &[1, 1],
            GgmlType::F32,
        );
        let sums = (0..n_in).map(|j| 64.0 / (1 + j) as f32).flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
        data.extend([sums, 16f32.to_le_bytes().to_vec()]);
    }
    let mut stream = writer.start(Vec::new()).unwrap();
    data.iter().for_each(|bytes| stream.data(bytes).unwrap());
    fs::write(folder.path(name), stream.finish().unwrap()).unwrap();
}

#[test]
fn an_importance_matrix_is_the_diagonal() {
    let folder = folder();
    imatrix(&folder, "im.gguf", 64);
    imatrix(&folder, "other.gguf", 96);
    let result = json(&folder, &format!("{EDIT} --imatrix im.gguf -o out.gguf"));
    assert_eq!(result["rounding"], "descent");
    assert!(result["max_data_leak"].is_null(), "nothing was held out");
    assert!(figure(&result, DOWN, "leak") < 0.9);
    folder
        .refuses(&format!("{EDIT} --imatrix other.gguf -o x.gguf"), &["other.gguf", "ffn_down", "64", "96"]);
}

#[test]
fn a_source_of_higher_precision_brings_the_edit_nearer_to_its_own() {
    let folder = folder();
    let with = format!("{EDIT} --calibration inputs.gguf --source model.gguf");
    let result = json(&folder, &format!("{with} -o source.gguf"));
    assert_eq!(result["source"], "model.gguf");
    let plain = open(&folder, "prompts.gguf");
    assert_eq!(plain.get("ggsteer.precise.fingerprint"), None);
    let verify = |out: &str| {
        let line = format!("verify q4.gguf {out} --direction direction.gguf --calibration inputs.gguf");
        json(&folder, &format!("{line} --source model.gguf"))
    };
    let (proof, without) = (verify("source.gguf"), verify("prompts.gguf"));
    assert_eq!(proof["ok"], true);
    for name in ["edit_error", "leak", "distance"] {
        let (a, b) = (figure(&proof, DOWN, name), figure(&result, DOWN, name));
        assert!((a - b).abs() < 1e-4 * (1.0 + b), "{name}: {a} and {b}");
    }
    for tensor in ["blk.0.attn_output.weight", "blk.0.ffn_down.weight", "blk.1.attn_output.weight", DOWN] {
        let [ours, theirs] = [&proof, &without].map(|v| figure(v, tensor, "edit_error"));
        assert!(ours < 0.8 * theirs, "{tensor}: {ours} and {theirs}");
    }

    let wrong = |spec: Spec, words: &[&str]| {
        folder.model("wrong.gguf", spec);
        let line = format!("{EDIT} --calibration inputs.gguf --source wrong.gguf -o new.gguf");
        folder.refuses(&line, &[&["wrong.gguf", "source: "], words].concat());
    };
    wrong(Spec { seed: 99, ..spec() }, &["token_embd.weight", "the same weights, more exact", "others"]);
    wrong(Spec { n_ff: 96, ..spec() }, &["ffn_down.weight", "[64, 32]", "[96, 32]"]);
    wrong(Spec { n_layer: 1, ..spec() }, &["blk.1.attn_output.weight", "no such tensor"]);
    wrong(Spec { arch: Arch::Qwen2, ..spec() }, &["architecture", "\"llama\"", "\"qwen2\""]);
}

#[test]
fn quantizing_with_a_direction_edits_the_original_weights() {
    let folder = folder();
    let line = "quantize model.gguf --type Q4_0 --pure --direction direction.gguf --seed 3";
    let result = json(&folder, &format!("{line} {PROMPTS} -o edited.gguf"));
    assert_eq!(result["rewritten"]["n_edited"], 5);
    let edited = open(&folder, "edited.gguf");
    assert_eq!(edited.tensor(DOWN).unwrap().ty, GgmlType::Q4_0);
    // Against the plain quantization it is an edit of the writers and of nothing else.
    let verify = "verify q4.gguf edited.gguf --direction direction.gguf --source model.gguf";
    let proof = json(&folder, verify);
    assert_eq!((&proof["ok"], &proof["n_untouched"]), (&true.into(), &16.into()), "{proof}");
    let names: Vec<_> = folder.contents().into_keys().collect();
    assert!(names.iter().all(|path| !path.to_string_lossy().contains(".part")), "{names:?}");

    folder.accepts(&format!("-q {line} --calibration inputs.gguf -o again.gguf"));
    folder.accepts(&format!("-q {line} --uncalibrated --force -o again.gguf"));
    let plain = "quantize model.gguf --type Q4_0 -o plain.gguf";
    for flag in ["--uncalibrated", "--calibration inputs.gguf", "--blocks 1", "--max-growth 5%"] {
        folder.refuses(&format!("{plain} {flag}"), &[flag.split(' ').next().unwrap(), "--direction"]);
    }
}

#[test]
fn more_bits_are_given_where_asked_for() {
    let folder = folder();
    let calibrated = format!("{EDIT} --calibration inputs.gguf --force -o out.gguf");
    let types = |names: &[&str]| -> Vec<&str> {
        let file = open(&folder, "out.gguf");
        names.iter().map(|name| file.tensor(name).unwrap().ty.name()).collect()
    };
    let all = ["token_embd.weight", "blk.0.attn_output.weight", DOWN, "blk.1.ffn_up.weight"];
    let result = json(&folder, &format!("{calibrated} --upcast q8_0"));
    assert_eq!(types(&all), ["q8_0", "q8_0", "q8_0", "q4_0"]);
    assert!(figure(&result, DOWN, "edit_error") < 0.1);
    assert_eq!(json(&folder, "verify q4.gguf out.gguf --direction direction.gguf")["ok"], true);
    folder.accepts("-q generate out.gguf -p hello -n 2 --threads 1");
    // To floats nothing is rounded, so nothing is asked for.
    let result = json(&folder, &format!("{EDIT} --upcast F16 --force -o out.gguf"));
    assert_eq!((types(&all[..1]), &result["rounding"]), (vec!["f16"], &"exact".into()));
    // What has as many bits already stays.
    json(&folder, &format!("{calibrated} --upcast IQ4_NL"));
    assert_eq!(types(&all), ["q4_0"; 4]);
    let line = format!("{EDIT} --calibration inputs.gguf -o new.gguf --upcast Q6_K");
    folder.refuses(&line, &["token_embd.weight", "cannot become q6_K", "rows of 32", "256"]);

    let result = json(&folder, &format!("{calibrated} --max-growth 4%"));
    let growth = &result["growth"];
    let (budget, spent) = (growth["budget"].as_u64().unwrap(), growth["spent"].as_u64().unwrap());
    let grown = growth["tensors"].as_array().unwrap();
    assert!(!grown.is_empty() && grown.len() < 4 && spent <= budget, "{growth}");
    let data = |file: &GgufFile| file.tensors().iter().map(|t| t.bytes).sum::<u64>();
    let after = open(&folder, "out.gguf");
    assert_eq!(data(&after) - data(&open(&folder, "q4.gguf")), spent);
    for tensor in grown {
        assert_eq!(after.tensor(tensor["tensor"].as_str().unwrap()).unwrap().ty.name(), tensor["to"]);
    }
}

#[test]
fn types_without_codes_of_their_own_are_encoded_anew_by_their_inputs_or_not_at_all() {
    let folder = Folder::new();
    folder.model("model.gguf", Spec { n_embd: 256, n_ff: 256, ..spec() });
    folder.direction("direction.gguf", "llama", &unit(256, 7));
    folder.accepts("-q quantize model.gguf --type IQ3_S --pure -o iq3.gguf");
    let edit = "orthogonalize iq3.gguf --direction direction.gguf";
    let words = ["\"blk.0.attn_output.weight\" is iq3_s", "--calibration", "--upcast"];
    folder.refuses(&format!("{edit} --uncalibrated -o out.gguf"), &words);
    let result = json(&folder, &format!("{edit} {PROMPTS} -o out.gguf"));
    let methods: Vec<&Json> = result["tensors"].as_array().unwrap().iter().map(|t| &t["method"]).collect();
    assert!(methods.contains(&&Json::from("reencoded")), "{methods:?}");
    json(&folder, &format!("{edit} --uncalibrated --upcast Q8_0 --force -o out.gguf"));
    assert_eq!(open(&folder, "out.gguf").tensor(DOWN).unwrap().ty, GgmlType::Q8_0);
}

#[test]
fn a_given_direction_is_not_measured_again() {
    let folder = folder();
    let sets = "--harmful harmful.txt --harmless harmless.txt --threads 1 -n 4";
    let line = format!("abliterate q4.gguf --direction direction.gguf {sets}");
    let result = json(
        &folder,
        &format!("{line} --save-calibration kept.gguf --save-direction kept-direction.gguf -o a.gguf"),
    );
    assert_eq!((&result["direction"]["block"], &result["rounding"]), (&1.into(), &"descent".into()));
    assert_eq!(result["prompts"]["test"]["harmless"]["n"], 2);
    let proof =
        json(&folder, "verify q4.gguf a.gguf --direction kept-direction.gguf --calibration kept.gguf");
    assert_eq!(proof["ok"], true);
    let again = json(&folder, &format!("{line} --calibration kept.gguf --blocks 1 -o b.gguf"));
    assert_eq!(again["n_edited"], 2);
    let data = |name: &str| {
        let file = open(&folder, name);
        file.tensor_data(file.tensor(DOWN).unwrap()).to_vec()
    };
    assert!(data("a.gguf") == data("b.gguf"), "the same inputs, the same codes");
}
