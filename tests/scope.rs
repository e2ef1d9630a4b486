//! Parts and variants of an edit, through the program and the library: which writers, how much of it, lengths, additions.

mod exact;
mod program;
mod support;

use std::sync::Arc;

use exact::{difference, logits};
use ggsteer::activations::{Contrast, Means};
use ggsteer::direction::{Direction, Provenance};
use ggsteer::gguf::{GgufFile, TensorInfo};
use ggsteer::intervention::{Intervention, Positions};
use ggsteer::output::OutputFile;
use ggsteer::quant;
use ggsteer::rewrite::{How, Options, Plan, Scope, execute, verify_untouched};
use program::{Folder, spec};
use serde_json::Value as Json;
use support::split;
use support::tiny::{self, Arch, Spec, project_out, unit};
use support::writer::{self, Info, Type, Value};

const DOWN: &str = "blk.1.ffn_down.weight";

fn values(file: &GgufFile, name: &str) -> Vec<f32> {
    let info = file.tensor(name).unwrap();
    let mut values = vec![0.0; info.elements() as usize];
    quant::decode(info.ty, file.tensor_data(info), &mut values).unwrap();
    values
}

/// The columns of a matrix, n_in vectors of the stream.
fn columns(file: &GgufFile, name: &str) -> Vec<Vec<f32>> {
    let n_in = file.tensor(name).unwrap().ne[0] as usize;
    let w = values(file, name);
    (0..n_in).map(|i| w.iter().skip(i).step_by(n_in).copied().collect()).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The names of the tensors whose bytes differ.
fn changed(folder: &Folder, out: &str) -> Vec<String> {
    let (a, b) = (folder.path("model.gguf"), folder.path(out));
    let (a, b) = (GgufFile::open(a).unwrap(), GgufFile::open(b).unwrap());
    let differs = |t: &&TensorInfo| a.tensor_data(t) != b.tensor_data(b.tensor(&t.name).unwrap());
    a.tensors().iter().filter(differs).map(|t| t.name.clone()).collect()
}

/// The model of 2 blocks, 32 wide, with a direction for it.
fn folder() -> Folder {
    let folder = Folder::new();
    folder.direction("direction.gguf", "llama", &unit(32, 7));
    folder
}

fn json(folder: &Folder, line: &str) -> Json {
    serde_json::from_str(&folder.accepts(&format!("--json --quiet {line}"))[0]).unwrap()
}

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-5, "{found}, expected {expected}");
}

const EDIT: &str = "orthogonalize model.gguf --direction direction.gguf --force -o out.gguf";
const VERIFY: &str = "verify model.gguf out.gguf --direction direction.gguf";

#[test]
fn blocks_and_groups_choose_the_writers() {
    let folder = folder();
    let attention = |il: usize| format!("blk.{il}.attn_output.weight");
    let down = |il: usize| format!("blk.{il}.ffn_down.weight");
    let all = vec!["token_embd.weight".into(), attention(0), down(0), attention(1), down(1)];
    for (scope, expected) in [
        ("", all.clone()),
        ("--blocks 0-1", all[1..].to_vec()),
        ("--blocks 1", vec![attention(1), down(1)]),
        ("--writers ffn,embedding", vec![all[0].clone(), down(0), down(1)]),
        ("--blocks 1 --writers ffn", vec![down(1)]),
        ("--strength 0,1=1", vec![attention(1), down(1)]),
    ] {
        let result = json(&folder, &format!("{EDIT} {scope}"));
        assert_eq!(changed(&folder, "out.gguf"), expected, "{scope}");
        assert_eq!(result["n_edited"], expected.len(), "{scope}");
        // The proof knows what was to be edited: the others are compared byte for byte.
        let proof = json(&folder, VERIFY);
        assert_eq!((&proof["ok"], &proof["differences"]), (&true.into(), &Json::Array(vec![])), "{scope}");
    }
    let line = "orthogonalize model.gguf --direction direction.gguf -o other.gguf";
    folder.refuses(&format!("{line} --blocks 1-2"), &["model.gguf", "block 2", "blocks 0 to 1"]);
    folder.refuses(&format!("{line} --strength 7=1"), &["block 7"]);
    folder.refuses(&format!("{line} --writers experts"), &["nothing is left to edit", "5 writers"]);
    folder.refuses(&format!("{line} --strength 0"), &["nothing is left to edit"]);
    for wrong in ["--blocks 4-", "--writers heads", "--strength 3", "--strength x", "--max-growth 5"] {
        let output = folder.run(&format!("{line} {wrong}"));
        assert_eq!(output.status.code(), Some(2), "{wrong}");
    }
}

#[test]
fn strength_takes_out_a_part_and_leaves_the_rest() {
    let folder = folder();
    let leaks = |result: &Json| -> Vec<(String, f64)> {
        let tensors = result["tensors"].as_array().unwrap().iter();
        tensors.map(|t| (t["name"].as_str().unwrap().into(), t["leak"].as_f64().unwrap())).collect()
    };
    for (name, leak) in leaks(&json(&folder, &format!("{EDIT} --strength 0.25"))) {
        assert!((leak - 0.75).abs() < 1e-5, "{name}: {leak}");
    }
    // Twice the projection turns what is written along the direction around.
    let result = json(&folder, &format!("{EDIT} --strength 0=0.5,1=2 --blocks 0-1"));
    for (name, leak) in leaks(&result) {
        close(leak, if name.starts_with("blk.0.") { 0.5 } else { 1.0 });
    }
    let r = unit(32, 7);
    let [before, after] = ["model.gguf", "out.gguf"].map(|f| GgufFile::open(folder.path(f)).unwrap());
    for (a, b) in columns(&before, DOWN).iter().zip(columns(&after, DOWN)) {
        assert!((dot(a, &r) + dot(&b, &r)).abs() < 1e-5);
    }
    let proof = json(&folder, VERIFY);
    assert_eq!(proof["ok"], true);
    for t in proof["tensors"].as_array().unwrap() {
        let strength = t["strength"].as_f64().unwrap();
        close(t["leak"].as_f64().unwrap(), (1.0 - strength).abs());
        assert!(strength == 0.0 || t["distance"].as_f64().unwrap() < 1e-4, "{t}");
    }
}

#[test]
fn preserved_lengths_keep_the_direction_out() {
    let folder = folder();
    json(&folder, &format!("{EDIT} --preserve-norm"));
    let r = unit(32, 7);
    let [before, after] = ["model.gguf", "out.gguf"].map(|f| GgufFile::open(folder.path(f)).unwrap());
    let rows = |file: &GgufFile| -> Vec<Vec<f32>> {
        values(file, "token_embd.weight").chunks(32).map(<[f32]>::to_vec).collect()
    };
    let mut longer = 0;
    for (a, b) in [(rows(&before), rows(&after)), (columns(&before, DOWN), columns(&after, DOWN))] {
        for (a, b) in a.iter().zip(&b) {
            let (old, new) = (dot(a, a), dot(b, b));
            assert!((old - new).abs() < 1e-5 * old, "{old} and {new}");
            assert!(dot(b, &r).abs() < 1e-5 * old.sqrt());
            let mut plain = a.clone();
            project_out(&mut plain, &r);
            longer += usize::from(new > 1.001 * dot(&plain, &plain));
        }
    }
    assert!(longer > 100, "lengths that had to be given back: {longer}");
    let proof = json(&folder, VERIFY);
    assert_eq!(proof["ok"], true);
    for t in proof["tensors"].as_array().unwrap() {
        assert!(t["distance"].as_f64().unwrap() < 1e-4, "{t}");
    }
}

#[test]
fn a_partial_edit_is_asked_for_and_told() {
    let folder = folder();
    // An architecture that no table has, of the same tensors.
    let model = tiny::Model::random(spec());
    let metadata = model.spec.metadata().into_iter().map(|(key, value)| match value {
        Value::Str(name) if key == "general.architecture" => {
            (key, Value::Str(name.replace("llama", "madeup")))
        }
        value => (key.replace("llama.", "madeup."), value),
    });
    let metadata: Vec<(String, Value)> = metadata.collect();
    let infos: Vec<Info> = (model.tensors.iter())
        .map(|t| Info { name: t.name.clone(), ne: t.ne.iter().map(|n| *n as u64).collect(), ty: Type::F32 })
        .collect();
    writer::write(&folder.path("model.gguf"), &metadata, &infos, |i, out| {
        model.tensors[i].data.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
    })
    .unwrap();
    folder.direction("direction.gguf", "madeup", &unit(32, 7));
    let line = "orthogonalize model.gguf --direction direction.gguf -o out.gguf";
    folder.refuses(line, &["\"madeup\"", "not known", "--partial"]);
    let [stdout, stderr] = folder.accepts(&format!("{line} --partial"));
    assert!(stderr.contains("warning: a partial edit") && stdout.contains("5 tensors rewritten"), "{stderr}");
    assert_eq!(changed(&folder, "out.gguf").len(), 5);
    assert_eq!(json(&folder, VERIFY)["ok"], true);
}

#[test]
fn a_direction_is_made_orthogonal_to_the_harmless_mean() {
    let folder = folder();
    // Means of 3 positions and 2 blocks; the direction is that of position −2 and block 1.
    let means = |seed: u64| {
        let mut means = Means::new(3, 2, 32);
        for (i, (position, block)) in (-3..0).flat_map(|p| [(p, 0), (p, 1)]).enumerate() {
            means.add(position, block, &unit(32, seed + i as u64));
        }
        means
    };
    let source = Provenance { architecture: Some("llama".into()), ..Provenance::default() };
    let contrast = Contrast { harmful: means(20), harmless: means(40), source };
    contrast.save_to(OutputFile::create(&folder.path("dirs.gguf"), false, &[]).unwrap()).unwrap();
    let save = |name: &str, position: Option<i32>, block: usize| {
        let meta = Provenance { position, architecture: Some("llama".into()), ..Provenance::default() };
        let vector = contrast.difference(-2, 1);
        Direction::new(vector, block, meta).unwrap().save(folder.path(name), false).unwrap();
    };
    save("measured.gguf", Some(-2), 1);
    let with = "--project-out-harmless dirs.gguf";
    json(&folder, &format!("orthogonalize model.gguf --direction measured.gguf {with} -o out.gguf"));
    let m: Vec<f32> = contrast.harmless.mean(-2, 1).iter().map(|x| *x as f32).collect();
    let mut r = contrast.difference(-2, 1);
    project_out(&mut r, &m);
    let [before, after] = ["model.gguf", "out.gguf"].map(|f| GgufFile::open(folder.path(f)).unwrap());
    for (a, b) in columns(&before, DOWN).iter().zip(columns(&after, DOWN)) {
        assert!(dot(&b, &r).abs() < 1e-5, "the direction is out");
        assert!((dot(a, &m) - dot(&b, &m)).abs() < 1e-5, "the mean is as it was");
    }
    // The proof is of the direction that was taken out.
    let verify = "verify model.gguf out.gguf --direction measured.gguf";
    assert_eq!(json(&folder, &format!("{verify} {with}"))["ok"], true);
    assert_eq!(folder.run(verify).status.code(), Some(3));

    save("late.gguf", Some(-4), 1);
    let line =
        |direction: &str| format!("orthogonalize model.gguf --direction {direction} {with} -o new.gguf");
    folder.refuses(&line("late.gguf"), &["late.gguf", "dirs.gguf", "no mean at position -4 of block 1"]);
    folder.refuses(&line("direction.gguf"), &["direction.gguf", "does not say at which position", "select"]);
    let along = Direction::new(m, 1, Provenance { position: Some(-2), ..Provenance::default() }).unwrap();
    along.save(folder.path("along.gguf"), false).unwrap();
    folder.refuses(&line("along.gguf"), &["along.gguf", "direction is zero"]);
}

#[test]
fn an_addition_in_the_file_is_the_addition_of_the_hook() {
    let folder = folder();
    let r = unit(64, 20);
    let mut v = unit(64, 21);
    // Orthogonal to the direction, or the hook would take it out again behind the block that gets it.
    project_out(&mut v, &r);
    for arch in [Arch::Llama, Arch::Gpt2] {
        tiny::Model::random(Spec::new(arch)).untied().write(&folder.path("model.gguf")).unwrap();
        folder.direction("r.gguf", arch.name(), &r);
        folder.direction("v.gguf", arch.name(), &v);
        let add = Intervention::add(1, &v, -3.0, Positions::All).unwrap();
        let both = Intervention { add: add.add.clone(), ..Intervention::ablate(&[&r]).unwrap() };
        for (line, hook) in [("", add), ("--direction r.gguf", both)] {
            let line = format!("orthogonalize model.gguf {line} --add v.gguf --scale -3 --force -o out.gguf");
            json(&folder, &line);
            let plain = logits(&folder.path("model.gguf"), None);
            let hooked = logits(&folder.path("model.gguf"), Some(Arc::new(hook)));
            let written = logits(&folder.path("out.gguf"), None);
            let (moved, apart) = (difference(&plain, &hooked), difference(&written, &hooked));
            println!("{arch:?} {line}: plain to hook {moved:.3}, file to hook {apart:.2e}");
            assert!(moved > 0.01 && apart <= 1e-4, "{line}: {moved} and {apart:e}");
        }
        // Both are said in the file.
        let proof = json(&folder, "verify model.gguf out.gguf --direction r.gguf");
        assert_eq!(proof["ok"], true, "{proof}");
        let bias = "blk.1.ffn_down.bias";
        let is_new = GgufFile::open(folder.path("model.gguf")).unwrap().tensor(bias).is_none();
        assert_eq!(is_new, arch == Arch::Llama);
    }
}

#[test]
fn an_addition_without_a_place_is_refused() {
    let folder = folder();
    let line = "orthogonalize model.gguf --add v.gguf -o out.gguf";
    tiny::Model::random(Spec::new(Arch::Qwen2)).write(&folder.path("model.gguf")).unwrap();
    folder.direction("v.gguf", "qwen2", &unit(64, 3));
    folder.refuses(line, &["v.gguf", "\"qwen2\" has no bias in block 1", "export control-vector"]);
    folder.model("model.gguf", spec());
    folder.refuses(line, &["v.gguf", "\"qwen2\"", "\"llama\""]);
    folder.direction("v.gguf", "llama", &unit(64, 3));
    folder.refuses(line, &["v.gguf", "n_embd 64", "32"]);
    assert_eq!(folder.run("orthogonalize model.gguf -o out.gguf").status.code(), Some(2));
}

#[test]
fn an_addition_to_a_split_model_comes_last() {
    let folder = tempfile::tempdir().unwrap();
    let model = tiny::Model::random(Spec::new(Arch::Llama));
    let at = |name: &str, no| folder.path().join(split::name(name, no, 3));
    for (no, part) in split::parts(&model, &[9, 9]).iter().enumerate() {
        part.write(&at("model", no));
    }
    let file = GgufFile::open(at("model", 0)).unwrap();
    let options = Options { tied: ggsteer::rewrite::Tied::Edit, ..Options::default() };
    let mut plan = Plan::new(&file, &[unit(64, 1)], options).unwrap();
    plan.add(&file, 2, &unit(64, 2)).unwrap();
    plan.add(&file, 0, &unit(64, 3)).unwrap();
    plan.add(&file, 2, &unit(64, 4)).unwrap();
    assert!(plan.to_string().contains("blk.2.ffn_down.bias"), "{plan}");
    let out = OutputFile::create(&folder.path().join("out.gguf"), false, &[]).unwrap();
    execute(&file, &plan, &How::default(), out, &[], &mut |_| ()).unwrap().commit().unwrap();
    let written = GgufFile::open(at("out", 0)).unwrap();
    verify_untouched(&file, &written, &plan).unwrap();
    let names: Vec<&str> = written.tensors().iter().rev().take(2).map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["blk.0.ffn_down.bias", "blk.2.ffn_down.bias"]);
    let sum: Vec<f32> = unit(64, 2).iter().zip(unit(64, 4)).map(|(a, b)| a + b).collect();
    assert_eq!(values(&written, "blk.2.ffn_down.bias"), sum, "two for one block add up");
    // A plan for a model without the bias is none for one that has it.
    let other =
        Plan::new(&written, &[unit(64, 1)], Options { scope: Scope::default(), ..Options::default() });
    assert!(other.unwrap().tensors.iter().any(|t| t.writer.tensor == "blk.2.ffn_down.bias"));
    let again = OutputFile::create(&folder.path().join("again.gguf"), false, &[]).unwrap();
    assert!(execute(&written, &plan, &How::default(), again, &[], &mut |_| ()).is_err());
}

#[test]
fn a_dry_run_tells_all_and_writes_nothing() {
    let folder = folder();
    folder.accepts("-q quantize model.gguf --type Q8_0 -o q8.gguf");
    let before = folder.contents();
    let line = "orthogonalize q8.gguf --direction direction.gguf --dry-run --blocks 1 --strength 0.5";
    let [text, _] = folder.accepts(line);
    for words in
        ["2 of 21 tensors", "blk.1.ffn_down.weight", "q8_0", "64 × 32", "strength 0.5", "about ", "missing: "]
    {
        assert!(text.contains(words), "{words:?} is missing: {text}");
    }
    let result = json(&folder, &format!("{line} --upcast F16 -o out.gguf"));
    assert_eq!((&result["bytes"], &result["out_bytes"]), (&3264.into(), &6144.into()));
    assert_eq!(result["plan"]["tensors"].as_array().unwrap().len(), 2);
    assert!(result["seconds"].as_f64().unwrap() >= 0.0 && result["missing"].is_null(), "{result}");
    assert!(folder.contents() == before, "the folder has changed");
}

#[test]
fn directions_that_are_no_numbers_or_span_each_other_are_refused() {
    let folder = folder();
    let (a, b) = (unit(32, 1), unit(32, 2));
    folder.direction("a.gguf", "llama", &a);
    folder.direction("b.gguf", "llama", &b);
    let both: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 2.0 * a - 3.0 * b).collect();
    folder.direction("both.gguf", "llama", &both);
    let mut nan = a;
    nan[5] = f32::NAN;
    folder.direction("nan.gguf", "llama", &nan);
    folder.direction("zero.gguf", "llama", &[0.0; 32]);
    let line = |of: &str| format!("orthogonalize model.gguf {of} -o out.gguf");
    let three = "--direction a.gguf --direction b.gguf --direction both.gguf";
    folder.refuses(&line(three), &["model.gguf", "direction 2", "span"]);
    folder.refuses(&line("--direction nan.gguf"), &["nan.gguf", "value 5 is NaN"]);
    folder.refuses(&line("--direction zero.gguf"), &["zero.gguf", "direction is zero"]);
    let result = json(&folder, &line("--direction a.gguf --direction b.gguf"));
    assert_eq!(result["n_edited"], 5);
}
