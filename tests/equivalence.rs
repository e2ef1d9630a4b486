//! A rewritten file behaves like the run-time ablation: the same logits, at F32, on three architectures.

use std::path::Path;
use std::sync::Arc;

use ggsteer::gguf::GgufFile;
use ggsteer::intervention::Intervention;
use ggsteer::output::OutputFile;
use ggsteer::rewrite::{How, Options, Plan, Rounding, Tied, execute, verify_untouched};
use ggsteer::runtime::{Item, Model, ModelOptions, Outputs, Session, SessionOptions, Token};

mod support;

use support::tiny::{self, Arch, Spec, unit};

/// Largest difference of a logit, as a part of the largest logit.
const TOLERANCE: f64 = 1e-4;

fn logits(path: &Path, intervention: Option<Arc<Intervention>>) -> Vec<Vec<f32>> {
    let model = Model::load(path, &ModelOptions::default()).unwrap();
    let options = SessionOptions {
        n_ctx: 128,
        n_batch: 128,
        n_seq: 1,
        n_threads: 1,
        exact: true,
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, options).unwrap();
    let tokens: Vec<Token> = (0..40).map(|i| Token(i * 7 % 250)).collect();
    let item = Item { seq: 0, start: 0, tokens: &tokens, prompt: true, outputs: Outputs::All, intervention };
    session.decode(&[item], None).unwrap();
    (0..tokens.len()).map(|i| session.logits(i).to_vec()).collect()
}

fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let scale = b.iter().flatten().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max) / scale
}

fn rewrite(from: &Path, to: &Path, directions: &[Vec<f32>], tied: Tied) {
    let file = GgufFile::open(from).unwrap();
    let plan = Plan::new(&file, directions, Options { tied, ..Options::default() }).unwrap();
    let out = OutputFile::create(to, true, &[from]).unwrap();
    let report = execute(&file, &plan, &reencode(), out, &[], &mut |_| ()).unwrap().commit().unwrap();
    assert!(report.max_leak < 1e-5, "F32 leaves {}", report.max_leak);
    verify_untouched(&file, &GgufFile::open(to).unwrap(), &plan).unwrap();
}

#[test]
fn the_rewritten_file_has_the_logits_of_the_hook() {
    let folder = tempfile::tempdir().unwrap();
    let (original, written) = (folder.path().join("original.gguf"), folder.path().join("written.gguf"));
    for arch in Arch::ALL {
        for (tied, choice) in [(false, Tied::Edit), (true, Tied::Untie)] {
            let model = tiny::Model::random(Spec { tied, n_layer: 4, ..Spec::new(arch) });
            model.write(&original).unwrap();
            for k in 1..=2 {
                let directions: Vec<Vec<f32>> = (0..k).map(|i| unit(model.spec.n_embd, 20 + i)).collect();
                let hook = Arc::new(Intervention::ablate(&directions).unwrap());
                rewrite(&original, &written, &directions, choice);
                let (plain, hooked, file) =
                    (logits(&original, None), logits(&original, Some(hook)), logits(&written, None));
                let (moved, apart) = (difference(&plain, &hooked), difference(&file, &hooked));
                println!("{arch:?}, tied {tied}, k {k}: plain to hook {moved:.3}, file to hook {apart:.2e}");
                assert!(moved > 0.01, "{arch:?}: the ablation does nothing");
                assert!(apart <= TOLERANCE, "{arch:?}, tied {tied}, k {k}: {apart:e}");
            }
        }
    }
}

#[test]
fn an_edited_tied_embedding_changes_the_head_too_and_a_skipped_one_leaves_the_direction_in() {
    let folder = tempfile::tempdir().unwrap();
    let (original, written) = (folder.path().join("original.gguf"), folder.path().join("written.gguf"));
    let model = tiny::Model::random(Spec { tied: true, ..Spec::new(Arch::Llama) });
    model.write(&original).unwrap();
    let r = unit(model.spec.n_embd, 20);
    let hook = Arc::new(Intervention::ablate(&[&r]).unwrap());
    let hooked = logits(&original, Some(hook.clone()));
    for choice in [Tied::Edit, Tied::Skip] {
        rewrite(&original, &written, std::slice::from_ref(&r), choice);
        assert!(difference(&logits(&written, None), &hooked) > 0.001, "{choice:?}");
    }
    // Edited, the stream itself is the hook's: what is left of the direction is nothing.
    rewrite(&original, &written, std::slice::from_ref(&r), Tied::Edit);
    assert!(difference(&logits(&written, Some(hook)), &logits(&written, None)) < TOLERANCE);
}

/// By ggml's own quantizer.
fn reencode() -> How<'static> {
    How { rounding: Rounding::Reencode, ..How::default() }
}
