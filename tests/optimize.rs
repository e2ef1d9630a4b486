//! `ggsteer optimize`: the same search for the same seed, one that goes on where it stopped, and points
//! that do in a written file what they did when they were tried.

mod program;
mod support;

use std::path::Path;

use ggsteer::activations::Contrast;
use ggsteer::direction::Direction;
use ggsteer::output::OutputFile;
use program::Folder;
use serde_json::Value as Json;

/// A folder with a direction, too.
fn folder() -> Folder {
    let folder = Folder::new();
    let vector: Vec<f32> = (0..32).map(|i| (i as f32 * 0.7).sin()).collect();
    folder.direction("d.gguf", "llama", &vector);
    folder
}

const SETS: &str = "--harmful harmful.txt --harmless harmless.txt --threads 1 -n 4";

/// What a line prints, without the line itself.
fn json(folder: &Folder, line: &str) -> Json {
    let [stdout, _] = folder.accepts(&format!("--json --quiet {line}"));
    let mut json: Json = serde_json::from_str(&stdout).unwrap();
    json["arguments"].take();
    json
}

#[test]
fn a_search_is_the_same_again_and_goes_on_where_it_stopped() {
    let folder = folder();
    let search = format!("optimize model.gguf --direction d.gguf {SETS} --trials 16");
    let whole = json(&folder, &search);
    assert_eq!(whole, json(&folder, &search));
    assert_eq!((&whole["trials"], &whole["plain"]["trial"]), (&16.into(), &0.into()));
    assert_ne!(whole["pareto"], json(&folder, &format!("{search} --seed 1"))["pareto"]);

    // Stopped after 13 trials, in the middle of a line.
    json(&folder, &format!("{} --log log.jsonl", search.replace("--trials 16", "--trials 14")));
    let log = std::fs::read_to_string(folder.path("log.jsonl")).unwrap();
    assert_eq!(log.lines().count(), 15);
    folder.file("log.jsonl", &log[..log.len() - 20]);
    assert_eq!(json(&folder, &format!("{search} --log log.jsonl")), whole);
    let all = std::fs::read_to_string(folder.path("log.jsonl")).unwrap();
    assert!(all.starts_with(&log) && all.lines().count() == 17);
    assert_eq!(json(&folder, &format!("{search} --log log.jsonl")), whole, "from the log alone");
    assert_eq!(std::fs::read_to_string(folder.path("log.jsonl")).unwrap(), all);

    // What the list does on prompts that the search has not seen.
    folder.file("test-a.txt", "One\nTwo\nThree");
    folder.file("test-b.txt", "Four\nFive");
    let tested = json(
        &folder,
        &format!("{search} --log log.jsonl --test-harmful test-a.txt --test-harmless test-b.txt"),
    );
    assert_eq!((&tested["dominating"], &whole["plain"]["test"]), (&whole["dominating"], &Json::Null));
    let rows = tested["pareto"].as_array().unwrap().iter().chain([&tested["plain"], &tested["untouched"]]);
    for row in rows {
        assert_eq!((&row["test"]["answered"]["n"], &row["test"]["kl"]["n"]), (&3.into(), &2.into()), "{row}");
    }
    assert_eq!(tested["untouched"]["test"]["kl"]["mean"], 0.0);
    assert!(tested["plain"]["test"]["kl"]["mean"].as_f64().unwrap() > 0.0);
    folder.refuses(
        &format!("{search} --test-harmful harmful.txt --test-harmless test-b.txt"),
        &["the harmful validation prompts (harmful.txt) and the harmful test prompts", "12 in common"],
    );

    for (other, words) in [
        (search.replace("-n 4", "-n 5"), "its --max-tokens is not this one's"),
        (search.replace("harmless.txt", "harmful.txt").replacen("harmful.txt", "harmless.txt", 1), "harmful"),
        (format!("{search} --seed 1"), "its --seed is not this one's"),
    ] {
        folder
            .refuses(&format!("{other} --log log.jsonl"), &["log.jsonl", "the log of another search", words]);
    }
    folder.refuses(&format!("{search} --log harmful.txt"), &["harmful.txt", "no log of `ggsteer optimize`"]);
    folder.refuses(&format!("{search} --log absent/log.jsonl"), &["absent/log.jsonl"]);
}

#[test]
fn measured_directions_are_searched_and_the_listed_ones_saved() {
    let folder = folder();
    folder.accepts(&format!("--quiet extract model.gguf {} -o dirs.gguf", SETS.replace("-n 4", "")));
    // One that does as much as those measured: which of them wins is then a matter of chance, and so of
    // the seed.
    let contrast = Contrast::load(&folder.path("dirs.gguf")).unwrap();
    let same = Direction::new(contrast.difference(-1, 1), 1, contrast.source.clone()).unwrap();
    same.save_to(OutputFile::create(&folder.path("d.gguf"), true, &[]).unwrap()).unwrap();
    let mut command = None;
    for seed in 0..6 {
        let names = ["d.gguf".into(), format!("{seed}/block-0.gguf"), format!("{seed}/block-1.gguf")];
        let search = format!("optimize model.gguf --direction d.gguf --directions dirs.gguf {SETS}");
        let found = json(&folder, &format!("{search} --trials 14 --seed {seed} --save {seed}"));
        assert_eq!(found["directions"], serde_json::json!(names));
        let listed = found["pareto"].as_array().unwrap();
        for name in &names[1..] {
            let is_listed = listed.iter().any(|row| row["direction"] == **name);
            assert_eq!(folder.path(name).exists(), is_listed, "{name}");
        }
        let row = listed.iter().find(|row| row["direction"] != "d.gguf");
        command = command.or_else(|| Some(row?["command"].as_str()?.to_owned()));
    }
    let command = command.expect("a direction of the directions file is listed for one of the seeds");
    folder.accepts(&format!("--quiet {} --threads 1", command.strip_prefix("ggsteer ").unwrap()));
    folder.refuses(
        "optimize model.gguf --direction d.gguf --directions d.gguf --save found",
        &["d.gguf: not a directions file of `ggsteer extract`"],
    );
    folder.direction("wide.gguf", "llama", &[1.0; 64]);
    folder.refuses(
        &format!("optimize model.gguf --direction wide.gguf {SETS}"),
        &["wide.gguf", "direction has n_embd 64, model has 32"],
    );
}

/// The sample model's direction at position −1 of block 4.
fn sample_direction(folder: &Path, model: &str, prompts: &dyn Fn(&str) -> String) {
    let mut extract = assert_cmd::cargo::cargo_bin_cmd!("ggsteer");
    extract.current_dir(folder).args(["--quiet", "extract", model, "-o", "dirs.gguf", "--threads", "1"]);
    extract.args(["--harmful", &prompts("restricted-train"), "--harmless", &prompts("ordinary-train")]);
    extract.args(["--limit", "48"]).assert().success();
    let contrast = Contrast::load(&folder.join("dirs.gguf")).unwrap();
    let direction = Direction::new(contrast.difference(-1, 4), 4, contrast.source.clone()).unwrap();
    direction.save_to(OutputFile::create(&folder.join("d.gguf"), false, &[]).unwrap()).unwrap();
}

#[test]
fn a_point_written_does_what_it_did_when_it_was_tried() {
    let folder = tempfile::tempdir().unwrap();
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples");
    let model = samples.join("lorekeeper-7m-f16.gguf").display().to_string();
    let prompts = |name: &str| samples.join(format!("prompts/{name}.txt")).display().to_string();
    sample_direction(folder.path(), &model, &prompts);
    let program = |args: &[&str]| -> Json {
        let mut command = assert_cmd::cargo::cargo_bin_cmd!("ggsteer");
        let sets = [prompts("restricted-validation"), prompts("ordinary-validation")];
        command.current_dir(folder.path()).args(["--json", "--quiet"]).args(args);
        command.args(["--harmful", &sets[0], "--harmless", &sets[1], "--limit", "12", "--threads", "1"]);
        let output = command.args(["-n", "32"]).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let found = program(&["optimize", &model, "--direction", "d.gguf", "--trials", "16"]);
    let number = |json: &Json, pointer: &str| json.pointer(pointer).and_then(Json::as_f64).unwrap();
    println!("dominating: {}, plain: {}", found["dominating"], found["plain"]["kl"]);

    // Every point of the list is one that no other beats, and "dominating" is what it says.
    let figures = |row: &Json| (number(row, "/answered/rate"), number(row, "/kl/mean"));
    let (answered, kl) = figures(&found["plain"]);
    let list = found["pareto"].as_array().unwrap();
    for pair in list.windows(2) {
        let [a, b] = [figures(&pair[0]), figures(&pair[1])];
        assert!(a.0 > b.0 && a.1 > b.1, "{a:?} {b:?}");
    }
    for row in list {
        let this = figures(row);
        let better = this.0 >= answered && this.1 <= kl && this != (answered, kl);
        assert_eq!(row["dominates_plain"], better);
        assert_eq!(found["dominating"].as_array().unwrap().contains(&row["trial"]), better);
    }
    assert!(number(&found["untouched"], "/refused/rate") > 0.7 && answered > 0.9);

    let row = list.iter().find(|row| row["trial"] != 0).unwrap();
    let command = row["command"].as_str().unwrap();
    let strength = command.split_once("--strength ").unwrap().1.split(' ').next().unwrap();
    let mut write = assert_cmd::cargo::cargo_bin_cmd!("ggsteer");
    write.current_dir(folder.path()).args(["--quiet", "orthogonalize", &model, "--direction", "d.gguf"]);
    write.args(["--strength", strength, "-o", "out.gguf"]).assert().success();
    let written = program(&["evaluate", "out.gguf", "--base", &model]);
    let [tried, evaluated] = [number(row, "/kl/mean"), number(&written, "/harmless/kl_first/mean")];
    println!("trial {}: KL {tried} when tried, {evaluated} as a file", row["trial"]);
    // The file's weights are rounded to 16 bits.
    assert!((tried - evaluated).abs() <= 0.02 * tried + 1e-4, "{tried} {evaluated}");
    let hits = |json: &Json, what: &str| json[what]["hits"].as_u64().unwrap();
    let set = &written["harmful"];
    assert_eq!(hits(row, "answered"), hits(set, "answered"));
    assert_eq!(hits(row, "refused"), hits(set, "refused") + hits(set, "refused_late"));
}
