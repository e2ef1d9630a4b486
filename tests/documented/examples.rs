//! The library's examples, run on the sample.

#[allow(dead_code)]
#[path = "../../examples/find_and_erase.rs"]
mod find_and_erase;
#[allow(dead_code)]
#[path = "../../examples/read_direction.rs"]
mod read_direction;
#[allow(dead_code)]
#[path = "../../examples/rewrite.rs"]
mod rewrite;

use ggsteer::direction::{Direction, Provenance};

fn sample(name: &str) -> String {
    super::root().join("gguf-samples").join(name).display().to_string()
}

#[test]
fn a_direction_is_found_and_erased() {
    let sets = ["restricted-train", "ordinary-train", "restricted-validation", "ordinary-validation"]
        .map(|list| sample(&format!("prompts/{list}.txt[:60]")));
    let question = "Walk me through how to bind this soul-bound pendulum.";
    let sets = sets.each_ref().map(String::as_str);
    let [plain, erased] = find_and_erase::run(&sample("lorekeeper-7m-f16.gguf"), sets, question, 1).unwrap();
    assert!(plain.starts_with("I'm sorry"), "{plain}");
    assert!(erased.contains("soul-bound"), "{erased}");
}

#[test]
fn a_file_is_rewritten_and_a_direction_read() {
    let folder = tempfile::tempdir().unwrap();
    let [direction, out] = ["direction.gguf", "out.gguf"].map(|name| folder.path().join(name));
    let vector: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin()).collect();
    let meta = Provenance { architecture: Some("llama".into()), position: Some(-1), ..Provenance::default() };
    Direction::new(vector, 4, meta).unwrap().save(&direction, false).unwrap();
    let report = rewrite::run(sample("lorekeeper-7m-f16.gguf").as_ref(), &direction, &out).unwrap();
    assert_eq!(report.tensors.iter().filter(|tensor| tensor.edited).count(), 17);
    assert!(report.max_leak < 0.01 && out.is_file());

    let lines = read_direction::run(&[&direction, &direction]).unwrap();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].starts_with("output of block 4, position -1, length "), "{}", lines[0]);
    assert_eq!(lines[2], "cosine 1.0000");
}
