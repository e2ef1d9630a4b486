//! Calibration inputs: against the independent forward pass, and whatever the batch and the threads.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use ggsteer::calibration::{Calibration, Options, Origin, Target, collect};
use ggsteer::gguf::GgufFile;
use ggsteer::intervention::Intervention;
use ggsteer::runtime::sampling::Sampler;
use ggsteer::runtime::{
    CapturePlan, GenerateOptions, Job, Model, ModelOptions, Prompt, Session, SessionOptions, Site, Token,
};

mod support;

use support::architectures::table::{ADDED, NORMED};
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
    Session::new(
        model,
        SessionOptions { n_ctx: 512, n_batch, n_seq: 8, n_threads, exact: true, ..SessionOptions::default() },
    )
    .unwrap()
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

fn ids(prompt: &Prompt) -> Vec<i32> {
    prompt.tokens.iter().map(|t| t.0).collect()
}

/// The sequences that are fitted on: all but the fifth of each set.
fn fitted(model: &Model) -> Vec<Vec<i32>> {
    let sets = sets(model);
    sets.iter().flat_map(|set| set.iter().enumerate()).filter(|(i, _)| *i != 4).map(|(_, p)| ids(p)).collect()
}

/// What a writer is given at every fitted and every held-out token.
fn oracle(made: &Made, tensor: &str, edit: Edit<'_>) -> [Rows; 2] {
    let block: usize = tensor.split('.').nth(1).unwrap().parse().unwrap();
    let given = |ids: &[i32]| {
        let trace = forward(&made.tiny, ids, edit);
        let all = if tensor.contains("attn_output") { trace.attn_output_in } else { trace.ffn_down_in };
        all[block].clone()
    };
    let fitted = fitted(&made.model);
    let held_out = sets(&made.model).map(|set| {
        let held_out = ids(&set[4]);
        let shared = |f: &Vec<i32>| f.iter().zip(&held_out).take_while(|(a, b)| a == b).count();
        given(&held_out)[fitted.iter().map(shared).max().unwrap()..].to_vec()
    });
    [fitted.iter().flat_map(|ids| given(ids)).collect(), held_out.concat()]
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
        let cases =
            [(None, Edit::default()), (Some(&ablation), Edit { ablate: Some(&r), ..Edit::default() })];
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
fn what_experts_are_given_goes_to_their_slices() {
    let folder = tempfile::tempdir().unwrap();
    let made = make(Spec { experts: (6, 2), n_ff: 96, ..Spec::new(Arch::Llama) }, folder.path());
    let r = unit(64, 3);
    let ablation = Arc::new(Intervention::ablate(&[&r]).unwrap());
    for (intervention, edit) in
        [(None, Edit::default()), (Some(&ablation), Edit { ablate: Some(&r), ..Edit::default() })]
    {
        let calibration =
            run(&mut session(&made.model, 64, 1), &made.targets, intervention, &Options::default());
        let expected: Vec<_> = fitted(&made.model).iter().map(|ids| forward(&made.tiny, ids, edit)).collect();
        for target in made.targets.iter().filter(|t| t.tensor.contains("exps")) {
            let inputs = calibration.inputs(&target.tensor).unwrap();
            assert_eq!((target.n_in, target.n_slices, inputs.n_slices()), (96, 6, 6));
            let block: usize = target.tensor.split('.').nth(1).unwrap().parse().unwrap();
            for expert in 0..6 {
                let rows: Rows =
                    (expected.iter().flat_map(|trace| trace.ffn_down_exps_in[block].iter().flatten()))
                        .filter(|(e, _)| *e == expert)
                        .map(|(_, row)| row.clone())
                        .collect();
                let what = format!("{} of expert {expert}", target.tensor);
                assert_eq!(inputs.count(expert), rows.len() as u64, "{what}");
                assert_same_rows(&inputs.fit(expert).unwrap(), &rows, &what);
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

#[test]
fn answers_are_sampled_behind_their_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let made = make(Spec::new(Arch::Qwen2), folder.path());
    let mut session = session(&made.model, 128, 1);
    let r = unit(64, 3);
    let ablation = Arc::new(Intervention::ablate(&[&r]).unwrap());
    let options = Options { generated: 6, ..Options::default() };
    let calibration = run(&mut session, &made.targets, Some(&ablation), &options);

    let prompts = fitted(&made.model);
    let tokens: Vec<Vec<Token>> =
        prompts.iter().map(|ids| ids.iter().map(|&id| Token(id)).collect()).collect();
    let jobs: Vec<Job<'_>> = (tokens.iter())
        .map(|tokens| Job { tokens, n_out: 1, intervention: Some(Arc::clone(&ablation)) })
        .collect();
    let generate = GenerateOptions { max_tokens: 6, sampler: Sampler::greedy() };
    let answers = session.generate(&jobs, &generate, &mut |_, _| (), &mut |_, _| ()).unwrap();
    assert!(answers.iter().any(|a| a.tokens.len() == 6), "there is something behind the prompts");
    let mut expected = [Rows::new(), Rows::new()];
    for (mut ids, answer) in prompts.into_iter().zip(answers) {
        ids.extend(answer.tokens.iter().map(|t| t.0));
        let trace = forward(&made.tiny, &ids, Edit { ablate: Some(&r), ..Edit::default() });
        expected[0].extend_from_slice(&trace.attn_output_in[2]);
        expected[1].extend_from_slice(&trace.ffn_down_in[2]);
    }
    for (name, rows) in ["blk.2.attn_output.weight", "blk.2.ffn_down.weight"].into_iter().zip(&expected) {
        assert_same_rows(&calibration.inputs(name).unwrap().fit(0).unwrap(), rows, name);
    }
}

#[test]
fn another_seed_takes_other_rows_of_the_same_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let made = make(Spec::new(Arch::Llama), folder.path());
    let mut session = session(&made.model, 256, 1);
    let options = Options { rows: Some(12), ..Options::default() };
    let name = "blk.1.ffn_down.weight";
    let [a, b] = [1, 2].map(|seed| {
        let calibration = run(&mut session, &made.targets, None, &Options { seed, ..options.clone() });
        assert_eq!(calibration.origin().seed, seed);
        let inputs = calibration.inputs(name).unwrap();
        (inputs.mean_square(0).to_vec(), inputs.fit(0).unwrap())
    });
    assert_eq!(a.0, b.0, "the moments are over all rows");
    assert_ne!(a.1, b.1);
}

#[test]
fn on_every_architecture_the_inputs_of_all_writers_are_captured() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let tokens: Vec<Token> = (0..40).map(|i| Token(i * 7 % 250)).collect();
    for spec in ADDED.iter().chain(NORMED) {
        spec.random(1).write(&path).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let targets = Target::of(&file, &ggsteer::arch::writers(&file).unwrap());
        assert!(!targets.is_empty(), "{}", spec.title());
        let model = Model::load(&path, &ModelOptions::default()).unwrap();
        let writer_inputs = targets.iter().map(|t| t.tensor.clone()).collect();
        let plan = CapturePlan { writer_inputs, ..CapturePlan::default() };
        // Rows seen of each tensor: an expert writer has as many for each token.
        let mut rows: BTreeMap<String, usize> = BTreeMap::new();
        let mut sink = |_: usize, _: i32, site: Site<'_>, row: &[f32]| {
            let (name, slice) = match site {
                Site::WriterInput(name) => (name, 0),
                Site::ExpertInput(name, expert) => (name, expert),
                Site::Block(_) | Site::Probe(_) => return,
            };
            let target = targets.iter().find(|t| t.tensor == name).unwrap();
            assert!(row.len() == target.n_in && slice < target.n_slices, "{}: {name}", spec.title());
            assert!(
                row.iter().all(|x| x.is_finite()) && row.iter().any(|x| *x != 0.0),
                "{}: {name}",
                spec.title()
            );
            *rows.entry(name.into()).or_default() += 1;
        };
        let job = Job { tokens: &tokens, n_out: 5, intervention: None };
        let ran = session(&model, 64, 1).prefill(&[job], Some((&plan, &mut sink)), &mut |_, _| ());
        ran.unwrap_or_else(|e| panic!("{}: {e}", spec.title()));
        for Target { tensor, n_slices, .. } in &targets {
            let per_token = if *n_slices > 1 { 2 } else { 1 };
            let found = rows.get(tensor).copied().unwrap_or(0);
            // All tokens, or the last block's outputs.
            let right = found == 40 * per_token || found == 5 * per_token;
            assert!(right, "{}: {found} rows of {tensor}", spec.title());
        }
    }
}

#[test]
fn of_a_prompt_longer_than_a_batch_every_token_is_captured_and_the_last_block_at_its_outputs() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<i32> = (0..23).map(|i| 40 + i * 7).collect();
    let tokens: Vec<Token> = ids.iter().map(|&id| Token(id)).collect();
    for experts in [(0, 0), (6, 2)] {
        let made = make(Spec { experts, n_ff: 96, ..Spec::new(Arch::Llama) }, folder.path());
        let trace = forward(&made.tiny, &ids, Edit::default());
        let mut session = session(&made.model, 8, 1);
        let writer_inputs = made.targets.iter().map(|t| t.tensor.clone()).collect();
        let plan = CapturePlan { stream: true, writer_inputs, ..CapturePlan::default() };
        for n_out in [1, 3, 12] {
            let job = Job { tokens: &tokens, n_out, intervention: None };
            let mut seen: BTreeMap<String, Rows> = BTreeMap::new();
            let mut sink = |job: usize, position: i32, site: Site<'_>, row: &[f32]| {
                assert!(job == 0 && (-23..0).contains(&position));
                let name = match site {
                    Site::Block(il) => format!("l_out-{il}"),
                    Site::WriterInput(name) => name.into(),
                    Site::ExpertInput(name, expert) => format!("{name} {expert}"),
                    Site::Probe(_) => unreachable!("nothing is probed"),
                };
                seen.entry(name).or_default().push(row.to_vec());
            };
            session.prefill(&[job], Some((&plan, &mut sink)), &mut |_, _| ()).unwrap();
            let outputs = 23 - n_out..23;
            for il in 0..3 {
                let what = format!("block {il}, experts {experts:?}, outputs {n_out}");
                let check = |name: &str, rows: &[Vec<f32>]| {
                    let found = seen.get(name).map_or(Vec::new(), |rows| rows.concat());
                    assert_eq!(found.is_empty(), rows.is_empty(), "{what}: {name}");
                    if !rows.is_empty() {
                        assert_same_rows(&found, &rows.to_vec(), &format!("{what}: {name}"));
                    }
                };
                check(&format!("l_out-{il}"), &trace.l_out[il][outputs.clone()]);
                check(&format!("blk.{il}.attn_output.weight"), &trace.attn_output_in[il]);
                let computed = if il == 2 { outputs.clone() } else { 0..23 };
                if experts.0 == 0 {
                    check(&format!("blk.{il}.ffn_down.weight"), &trace.ffn_down_in[il][computed]);
                    continue;
                }
                for expert in 0..6 {
                    let given = trace.ffn_down_exps_in[il][computed.clone()].iter().flatten();
                    let rows: Rows =
                        given.filter(|(e, _)| *e == expert).map(|(_, row)| row.clone()).collect();
                    check(&format!("blk.{il}.ffn_down_exps.weight {expert}"), &rows);
                }
            }
        }
    }
}
