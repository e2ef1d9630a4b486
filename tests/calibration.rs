//! Calibration inputs: against the independent forward pass, and whatever the batch and the threads.

use std::path::Path;
use std::sync::Arc;

use ggsteer::calibration::{Calibration, Options, Origin, Target, collect};
use ggsteer::gguf::GgufFile;
use ggsteer::intervention::Intervention;
use ggsteer::runtime::{Model, ModelOptions, Prompt, Session, SessionOptions};

mod support;

use support::forward::{Edit, Rows, forward};
use support::tiny::{self, Arch, Spec, unit};

/// A part of a row's largest value: half a unit in the last place of bfloat16, and a step of gpt2's f16 table of GELU.
const TOLERANCE: f64 = 1.0 / 256.0 + 1.0 / 1024.0;

struct Made {
    tiny: tiny::Model,
    model: Model,
    targets: Vec<Target>,
}

fn make(spec: Spec, folder: &Path) -> Made {
    let tiny = tiny::Model::random(spec);
    let path = folder.join("model.gguf");
    tiny.write(&path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let targets = Target::of(&file, &ggsteer::arch::writers(&file).unwrap());
    Made { tiny, model: Model::load(&path, &ModelOptions::default()).unwrap(), targets }
}

/// Sets of seven and six prompts of several lengths.
fn sets(model: &Model) -> [Vec<Prompt>; 2] {
    let words =
        ["hello there", "in the order", "her other hell", "a", "the thin tiller, then", "or", "inner"];
    let prompts = |n: usize, end: &str| {
        words[..n].iter().map(|w| model.prompt(&format!("{w}{end}")).unwrap()).collect::<Vec<_>>()
    };
    [prompts(7, "!"), prompts(6, "?")]
}

fn session(model: &Model, n_batch: usize, n_threads: u32) -> Session<'_> {
    let n_threads = n_threads as usize;
    Session::new(model, SessionOptions { n_ctx: 512, n_batch, n_seq: 8, n_threads, exact: true }).unwrap()
}

fn run(
    session: &mut Session<'_>,
    targets: &[Target],
    intervention: Option<&Arc<Intervention>>,
    options: &Options,
) -> Calibration {
    let [a, b] = sets(session.model());
    collect(session, [&a, &b], targets, intervention, options, Origin::default(), &mut || ()).unwrap()
}

/// What the writers of one block are given at every fitted and every held-out token.
fn oracle(made: &Made, tensor: &str, edit: Edit<'_>) -> [Rows; 2] {
    let block: usize = tensor.split('.').nth(1).unwrap().parse().unwrap();
    let mut rows = [Rows::new(), Rows::new()];
    let sets = sets(&made.model);
    let fitted: Vec<&Prompt> =
        sets.iter().flat_map(|s| s.iter().enumerate()).filter(|p| p.0 != 4).map(|p| p.1).collect();
    for (i, prompt) in sets.iter().flat_map(|set| set.iter().enumerate()) {
        let ids: Vec<i32> = prompt.tokens.iter().map(|t| t.0).collect();
        let trace = forward(&made.tiny, &ids, edit);
        let all = if tensor.contains("attn_output") { &trace.attn_output_in } else { &trace.ffn_down_in };
        if i == 4 {
            let shared =
                |f: &&Prompt| f.tokens.iter().zip(&prompt.tokens).take_while(|(a, b)| a == b).count();
            rows[1].extend_from_slice(&all[block][fitted.iter().map(shared).max().unwrap()..]);
        } else {
            rows[0].extend_from_slice(&all[block]);
        }
    }
    rows
}

/// Whether both hold the same rows in any order, to within bfloat16.
fn assert_same_rows(found: &[f32], expected: &Rows, what: &str) {
    let n = expected[0].len();
    assert_eq!(found.len(), n * expected.len(), "{what}");
    let close = |a: &[f32], b: &[f32]| {
        let size = b.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
        a.iter().zip(b).all(|(a, b)| f64::from((a - b).abs()) <= TOLERANCE * size)
    };
    let mut left: Vec<&[f32]> = found.chunks_exact(n).collect();
    for row in expected {
        let at = left.iter().position(|f| close(f, row));
        left.swap_remove(at.unwrap_or_else(|| panic!("{what}: a row is missing")));
    }
}

#[test]
fn collected_inputs_are_those_of_a_plain_forward_pass_at_every_token() {
    let folder = tempfile::tempdir().unwrap();
    for arch in Arch::ALL {
        let made = make(Spec::new(arch), folder.path());
        assert_eq!(made.targets.len(), 6);
        let r = unit(64, 3);
        let ablation = Arc::new(Intervention::ablate(&[&r]).unwrap());
        let cases = [(None, Edit::default()), (Some(&ablation), Edit { ablate: Some(&r), add: None })];
        for (intervention, edit) in cases {
            let calibration =
                run(&mut session(&made.model, 64, 1), &made.targets, intervention, &Options::default());
            for target in &made.targets {
                let what = format!("{arch:?}, {}, ablated: {}", target.tensor, intervention.is_some());
                let inputs = calibration.inputs(&target.tensor).unwrap();
                let [fit, held_out] = oracle(&made, &target.tensor, edit);
                assert_eq!(inputs.count(0), fit.len() as u64, "{what}");
                assert_same_rows(&inputs.fit(0).unwrap(), &fit, &what);
                assert_same_rows(&inputs.held_out(0).unwrap(), &held_out, &what);
                for (j, &found) in inputs.mean_square(0).iter().enumerate() {
                    let sum: f64 = fit.iter().map(|row| f64::from(row[j]).powi(2)).sum();
                    let expected = sum / fit.len() as f64;
                    assert!((f64::from(found) - expected).abs() <= 1e-3 * expected + 1e-6, "{what}: {found}");
                }
            }
        }
    }
}

#[test]
fn the_sample_does_not_depend_on_the_batch_or_the_threads() {
    let folder = tempfile::tempdir().unwrap();
    let made = make(Spec::new(Arch::Llama), folder.path());
    let options = Options { rows: Some(12), generated: 5, ..Options::default() };
    let one = run(&mut session(&made.model, 256, 1), &made.targets, None, &options);
    let others = [
        ("two threads", run(&mut session(&made.model, 256, 2), &made.targets, None, &options)),
        ("small batches", run(&mut session(&made.model, 17, 1), &made.targets, None, &options)),
        (
            "on disk",
            run(&mut session(&made.model, 256, 1), &made.targets, None, &Options { memory: 1, ..options }),
        ),
    ];
    for target in &made.targets {
        let a = one.inputs(&target.tensor).unwrap();
        assert_eq!((a.n_fit(0), a.n_held_out(0)), (12, 3));
        for (what, other) in &others {
            let b = other.inputs(&target.tensor).unwrap();
            assert_eq!(a.count(0), b.count(0), "{what}");
            for (a, b) in [(a.fit(0), b.fit(0)), (a.held_out(0), b.held_out(0))] {
                let (a, b) = (a.unwrap(), b.unwrap());
                let size = a.iter().fold(0f32, |m, x| m.max(x.abs()));
                let worst = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst <= size / 200.0, "{what}, {}: {worst} of {size}", target.tensor);
            }
        }
    }
}
