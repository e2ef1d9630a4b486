//! The hook against an independent forward pass: what it captures, and what its interventions do.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ggsteer::intervention::{Intervention, Positions, dot};
use ggsteer::runtime::{
    CapturePlan, Captured, Error, HookError, Item, Job, Model, ModelOptions, Outputs, Probe, Session,
    SessionOptions, Site, Token,
};

mod support;

use support::forward::{Edit, Rows, forward};
use support::tiny::{self, Arch, IM_END, IM_START, Spec, unit};

/// Largest difference allowed, as a part of the largest value of the oracle.
const TOLERANCE: f64 = 1e-4;
const TOKENS: [i32; 20] = [
    IM_START, 117, 115, 259, 10, 71, 256, 257, 111, 32, 119, 261, 108, 100, 263, 46, IM_END, 10, IM_START, 97,
];

fn tokens(ids: &[i32]) -> Vec<Token> {
    ids.iter().map(|&t| Token(t)).collect()
}

fn load(model: &tiny::Model, folder: &Path) -> Model {
    let path = folder.join(format!("{}.gguf", model.spec.arch.name()));
    model.write(&path).unwrap();
    Model::load(&path, &ModelOptions::default()).unwrap()
}

fn exact() -> SessionOptions {
    SessionOptions {
        n_ctx: 256,
        n_batch: 128,
        n_seq: 4,
        n_threads: 1,
        exact: true,
        ..SessionOptions::default()
    }
}

/// Everything that one decode of whole sequences shows.
#[derive(Default)]
struct Seen {
    blocks: HashMap<(usize, usize), Vec<f32>>,
    probes: HashMap<(usize, usize), Vec<f32>>,
    inputs: HashMap<(String, usize), Vec<f32>>,
    logits: Rows,
}

fn run(
    session: &mut Session<'_>,
    sequences: &[(&[i32], Option<Arc<Intervention>>)],
    outputs: Outputs,
    plan: &CapturePlan,
) -> Result<Seen, Error> {
    let sequences: Vec<_> = sequences.iter().map(|(ids, i)| (tokens(ids), i.clone())).collect();
    let items: Vec<Item<'_>> = (sequences.iter().enumerate())
        .map(|(seq, (tokens, i))| Item {
            seq,
            start: 0,
            tokens,
            prompt: true,
            outputs,
            intervention: i.clone(),
        })
        .collect();
    let mut seen = Seen::default();
    let mut sink = |c: Captured<'_>| {
        let again = match c.site {
            Site::Block(il) => seen.blocks.insert((il, c.token), c.row.to_vec()),
            Site::WriterInput(name) => seen.inputs.insert((name.to_string(), c.token), c.row.to_vec()),
            Site::Probe(probe) => seen.probes.insert((probe, c.token), c.row.to_vec()),
            Site::ExpertInput(..) => unreachable!("no model here has experts"),
        };
        assert!(again.is_none(), "{:?} of token {} came twice", c.site, c.token);
    };
    session.clear();
    session.decode(&items, Some((plan, &mut sink)))?;
    if outputs == Outputs::All {
        let n: usize = items.iter().map(|i| i.tokens.len()).sum();
        seen.logits = (0..n).map(|i| session.logits(i).to_vec()).collect();
    }
    Ok(seen)
}

fn assert_close(found: &[f32], expected: &[f32], what: &str) {
    assert_within(TOLERANCE, found, expected, what);
}

fn assert_within(tolerance: f64, found: &[f32], expected: &[f32], what: &str) {
    let scale = expected.iter().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
    let worst = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    assert_eq!(found.len(), expected.len(), "{what}");
    assert!(worst <= tolerance * scale, "{what}: differs by {worst:e} of {scale:e}");
}

fn stream() -> CapturePlan {
    CapturePlan { stream: true, ..CapturePlan::default() }
}

/// A name, the intervention, its vector, and the coefficient of an addition.
type Case = (&'static str, Option<Arc<Intervention>>, Vec<f32>, Option<f32>);

/// The interventions that are compared with the oracle.
fn cases(model: &tiny::Model) -> Vec<Case> {
    let r = unit(model.spec.n_embd, 11);
    let ablate = Intervention::ablate(&[&r]).unwrap();
    let add = Intervention::add(1, &r, 3.5, Positions::All).unwrap();
    vec![
        ("plain", None, r.clone(), None),
        ("ablation", Some(Arc::new(ablate)), r.clone(), None),
        ("addition", Some(Arc::new(add)), r, Some(3.5)),
    ]
}

fn edit<'a>(what: &str, r: &'a [f32], scale: Option<f32>) -> Edit<'a> {
    Edit { ablate: (what == "ablation").then_some(r), add: scale.map(|c| (1, r, c)), shift: None }
}

#[test]
fn every_block_position_and_logit_agrees_with_a_plain_forward_pass() {
    let folder = tempfile::tempdir().unwrap();
    for arch in Arch::ALL {
        let tiny = tiny::Model::random(Spec::new(arch));
        let model = load(&tiny, folder.path());
        let mut session = Session::new(&model, exact()).unwrap();
        for (what, intervention, r, scale) in cases(&tiny) {
            let oracle = forward(&tiny, &TOKENS, edit(what, &r, scale));
            let seen = run(&mut session, &[(&TOKENS, intervention)], Outputs::All, &stream()).unwrap();
            assert_eq!(seen.blocks.len(), tiny.spec.n_layer * TOKENS.len());
            for (&(il, token), row) in &seen.blocks {
                // The hook captures after its own intervention, as the next block sees the stream.
                assert_close(
                    row,
                    &oracle.l_out[il][token],
                    &format!("{arch:?} {what}: block {il}, token {token}"),
                );
            }
            for (token, row) in seen.logits.iter().enumerate() {
                assert_close(
                    row,
                    &oracle.logits[token],
                    &format!("{arch:?} {what}: logits of token {token}"),
                );
            }
        }
    }
}

#[test]
fn sequences_of_one_batch_keep_their_own_interventions() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny::Model::random(Spec::new(Arch::Llama));
    let model = load(&tiny, folder.path());
    let mut session = Session::new(&model, exact()).unwrap();
    let cases = cases(&tiny);
    let lengths = [20, 7, 13];
    let batch: Vec<_> = cases.iter().zip(lengths).map(|(c, n)| (&TOKENS[..n], c.1.clone())).collect();
    let seen = run(&mut session, &batch, Outputs::All, &stream()).unwrap();
    let mut first = 0;
    for ((what, _, r, scale), n) in cases.iter().zip(lengths) {
        let oracle = forward(&tiny, &TOKENS[..n], edit(what, r, *scale));
        for token in 0..n {
            assert_close(
                &seen.logits[first + token],
                &oracle.logits[token],
                &format!("{what}: token {token}"),
            );
            for il in 0..tiny.spec.n_layer {
                assert_close(&seen.blocks[&(il, first + token)], &oracle.l_out[il][token], what);
            }
        }
        first += n;
    }
}

#[test]
fn the_last_block_is_cut_to_the_outputs_and_rows_still_find_their_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny::Model::random(Spec::new(Arch::Qwen2));
    let model = load(&tiny, folder.path());
    let mut session = Session::new(&model, exact()).unwrap();
    let (_, ablate, r, _) = cases(&tiny).remove(1);
    let batch = [(&TOKENS[..9], None), (&TOKENS[..20], ablate)];
    let seen = run(&mut session, &batch, Outputs::Last(3), &stream()).unwrap();
    assert_eq!(seen.blocks.len(), 2 * 3 * tiny.spec.n_layer);
    let plain = forward(&tiny, &TOKENS[..9], Edit::default());
    let ablated = forward(&tiny, &TOKENS, edit("ablation", &r, None));
    for il in 0..tiny.spec.n_layer {
        for back in 1..=3 {
            assert_close(&seen.blocks[&(il, 9 - back)], &plain.l_out[il][9 - back], "plain");
            assert_close(&seen.blocks[&(il, 29 - back)], &ablated.l_out[il][20 - back], "ablated");
        }
    }
}

#[test]
fn inputs_of_the_writers_are_captured() {
    let folder = tempfile::tempdir().unwrap();
    for arch in Arch::ALL {
        let tiny = tiny::Model::random(Spec::new(arch));
        let model = load(&tiny, folder.path());
        let mut session = Session::new(&model, exact()).unwrap();
        let names = |il: usize| [format!("blk.{il}.attn_output.weight"), format!("blk.{il}.ffn_down.weight")];
        let writer_inputs = (0..tiny.spec.n_layer).flat_map(names).collect();
        let plan = CapturePlan { writer_inputs, ..CapturePlan::default() };
        let seen = run(&mut session, &[(&TOKENS, None)], Outputs::All, &plan).unwrap();
        let oracle = forward(&tiny, &TOKENS, Edit::default());
        assert_eq!(seen.inputs.len(), 2 * tiny.spec.n_layer * TOKENS.len());
        for il in 0..tiny.spec.n_layer {
            let [attention, ffn] = names(il);
            for token in 0..TOKENS.len() {
                let what = format!("{arch:?}: block {il}, token {token}");
                assert_close(
                    &seen.inputs[&(attention.clone(), token)],
                    &oracle.attn_output_in[il][token],
                    &what,
                );
                // gpt2's GELU comes from a table of f16, so a value on the edge may fall one f16 step to either side.
                let tolerance = if arch == Arch::Gpt2 { f64::powi(2.0, -10) } else { TOLERANCE };
                assert_within(
                    tolerance,
                    &seen.inputs[&(ffn.clone(), token)],
                    &oracle.ffn_down_in[il][token],
                    &what,
                );
            }
        }
    }
}

/// r·x at the output of blocks 1, 2 (the last, cut to the outputs) and 1 again, for two directions.
fn probes(n_embd: usize) -> Vec<Probe> {
    let probe = |(block, seed)| Probe { block, vector: unit(n_embd, seed) };
    [(1, 21), (2, 21), (1, 22)].map(probe).into()
}

#[test]
fn probes_read_the_stream_at_their_blocks() {
    let folder = tempfile::tempdir().unwrap();
    for arch in Arch::ALL {
        let tiny = tiny::Model::random(Spec::new(arch));
        let model = load(&tiny, folder.path());
        let mut session = Session::new(&model, exact()).unwrap();
        let probes = probes(tiny.spec.n_embd);
        let alone = CapturePlan { probes: probes.clone().into(), ..CapturePlan::default() };
        let beside = CapturePlan { stream: true, ..alone.clone() };
        let batch = [(&TOKENS[..9], None), (&TOKENS[..], None)];
        let seen = run(&mut session, &batch, Outputs::Last(3), &beside).unwrap();
        assert_eq!((seen.probes.len(), seen.blocks.len()), (3 * 6, tiny.spec.n_layer * 6));
        for (&(i, token), read) in &seen.probes {
            let plain = dot(&probes[i].vector, &seen.blocks[&(probes[i].block, token)]);
            assert_eq!(read, &[plain as f32], "{arch:?}: probe {i}, token {token}");
        }
        let again = run(&mut session, &batch, Outputs::Last(3), &alone).unwrap();
        assert_eq!(again.probes, seen.probes, "{arch:?}: without the captures");
        assert!(again.blocks.is_empty());
    }
}

#[test]
fn probes_read_before_the_intervention_at_their_block() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny::Model::random(Spec::new(Arch::Llama));
    let model = load(&tiny, folder.path());
    let mut session = Session::new(&model, exact()).unwrap();
    let probes = probes(tiny.spec.n_embd);
    let r = &probes[0].vector;
    let plan = CapturePlan {
        stream: true,
        writer_inputs: ["blk.1.ffn_down.weight".to_string()].into(),
        probes: probes.clone().into(),
    };
    let mut under =
        |i: Intervention| run(&mut session, &[(&TOKENS, Some(Arc::new(i)))], Outputs::All, &plan).unwrap();

    let added = under(Intervention::add(1, r, 3.5, Positions::All).unwrap());
    let erased = under(Intervention::ablate(&[r]).unwrap());
    let down = tiny.tensors.iter().find(|t| t.name == "blk.1.ffn_down.weight").unwrap();
    for token in 0..TOKENS.len() {
        // What is captured stands behind the addition.
        let after = dot(r, &added.blocks[&(1, token)]);
        assert_within(1e-5, &[3.5 + added.probes[&(0, token)][0]], &[after as f32], "added");
        // The stream comes to the FFN without r, so what is read is r·(W h) of its last write.
        let input = &erased.inputs[&("blk.1.ffn_down.weight".to_string(), token)];
        let written: f64 = (r.iter().zip(down.data.chunks_exact(input.len())))
            .map(|(r, w)| f64::from(*r) * dot(w, input))
            .sum();
        assert_within(1e-4, &erased.probes[&(0, token)], &[written as f32], "erased");
        assert!(written.abs() > 1e-3 && dot(r, &erased.blocks[&(1, token)]).abs() < 1e-5);
    }
}

#[test]
fn two_directions_are_erased_together() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny::Model::random(Spec::new(Arch::Gpt2));
    let model = load(&tiny, folder.path());
    let mut session = Session::new(&model, exact()).unwrap();
    let (a, b) = (unit(tiny.spec.n_embd, 1), unit(tiny.spec.n_embd, 2));
    let both = Arc::new(Intervention::ablate(&[&a, &b]).unwrap());
    let seen = run(&mut session, &[(&TOKENS, Some(both))], Outputs::All, &stream()).unwrap();
    for row in seen.blocks.values() {
        let size = dot(row, row).sqrt();
        for r in [&a, &b] {
            assert!(dot(r, row).abs() < 1e-5 * size);
        }
    }
}

#[test]
fn what_goes_wrong_in_the_graph_is_an_error_that_names_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny::Model::random(Spec::new(Arch::Llama));
    let model = load(&tiny, folder.path());
    let mut session = Session::new(&model, exact()).unwrap();
    let mut attempt =
        |i: Intervention| run(&mut session, &[(&TOKENS, Some(Arc::new(i)))], Outputs::All, &stream());

    let narrow = attempt(Intervention::ablate(&[unit(32, 1)]).unwrap()).err().unwrap();
    assert_eq!(narrow.to_string(), "hook: node embd: the direction has 32 elements, the residual stream 64");

    let beyond = attempt(Intervention::add(9, &unit(64, 1), 1.0, Positions::All).unwrap()).err().unwrap();
    assert_eq!(beyond.to_string(), "hook: addition at block 9: the model has blocks 0 to 2");

    let mut attempt = |block, n_embd| {
        let probes = [Probe { block, vector: unit(n_embd, 1) }].into();
        let plan = CapturePlan { probes, ..CapturePlan::default() };
        run(&mut session, &[(&TOKENS, None)], Outputs::All, &plan).err().unwrap().to_string()
    };
    assert_eq!(attempt(3, 64), "hook: probe at block 3: the model has blocks 0 to 2");
    assert_eq!(attempt(2, 32), "hook: node l_out-2: the direction has 32 elements, the residual stream 64");

    // The session is usable after an error.
    assert!(run(&mut session, &[(&TOKENS, None)], Outputs::All, &stream()).is_ok());
}

#[test]
fn a_stream_that_is_no_number_is_an_error_that_names_the_block() {
    let folder = tempfile::tempdir().unwrap();
    let mut tiny = tiny::Model::random(Spec::new(Arch::Llama));
    let broken = tiny.tensors.iter_mut().find(|t| t.name == "blk.1.ffn_down.weight").unwrap();
    broken.data[5] = f32::NAN;
    let model = load(&tiny, folder.path());
    let mut session = Session::new(&model, exact()).unwrap();
    let ablate = Arc::new(Intervention::ablate(&[unit(64, 1)]).unwrap());
    let error = run(&mut session, &[(&TOKENS, Some(ablate))], Outputs::All, &stream()).err().unwrap();
    assert!(matches!(error, Error::Hook(HookError::NotAblated { block: 1, token: 0, .. })), "{error}");
}

#[test]
fn a_panic_in_the_sink_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let model = load(&tiny::Model::random(Spec::new(Arch::Llama)), folder.path());
    let mut session = Session::new(&model, exact()).unwrap();
    let tokens = tokens(&TOKENS);
    let item =
        Item { seq: 0, start: 0, tokens: &tokens, prompt: true, outputs: Outputs::All, intervention: None };
    let mut sink = |_: Captured<'_>| panic!("no room");
    let error = session.decode(std::slice::from_ref(&item), Some((&stream(), &mut sink))).unwrap_err();
    assert_eq!(error.to_string(), "hook: panic in the eval callback: no room");
    session.clear();
    assert!(session.decode(&[item], None).is_ok());
}

#[test]
fn what_prompts_have_in_common_is_computed_once() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = tiny::Model::random(Spec::new(Arch::Llama));
    let model = load(&tiny, folder.path());
    // 20 tokens in common and 1 to 9 of their own, six times for each intervention.
    let own = |n: usize| (0..n).map(move |i| (31 * n + 7 * i) as i32 % 250);
    let prompts: Vec<Vec<i32>> =
        (0..6).map(|k| TOKENS.iter().copied().chain(own(1 + 3 * k % 9)).collect()).collect();
    let cases = cases(&tiny);
    let sequences: Vec<(Vec<Token>, usize)> =
        (0..cases.len()).flat_map(|case| prompts.iter().map(move |p| (tokens(p), case))).collect();
    let jobs: Vec<Job<'_>> = (sequences.iter())
        .map(|(tokens, case)| Job { tokens, n_out: 1, intervention: cases[*case].1.clone() })
        .collect();
    let own: usize = prompts.iter().map(|p| p.len() - TOKENS.len()).sum();
    // Batches of many groups, that end within a group, and of one job.
    for (n_batch, n_seq, n_ctx) in [(128, 16, 256), (24, 3, 96), (33, 2, 64), (128, 16, 30)] {
        let options =
            SessionOptions { n_ctx, n_batch, n_seq, n_threads: 1, exact: true, ..SessionOptions::default() };
        let mut session = Session::new(&model, options).unwrap();
        let mut seen: HashMap<(usize, usize), Vec<f32>> = HashMap::new();
        let mut logits: HashMap<usize, Vec<f32>> = HashMap::new();
        let mut sink = |job: usize, position: i32, site: Site<'_>, row: &[f32]| {
            let Site::Block(il) = site else { panic!("only the stream is captured") };
            assert_eq!(position, -1);
            assert!(seen.insert((job, il), row.to_vec()).is_none(), "job {job}, block {il} came twice");
        };
        let on_logits = &mut |job: usize, row: &[f32]| {
            assert!(logits.insert(job, row.to_vec()).is_none(), "job {job} came twice");
        };
        session.prefill(&jobs, Some((&stream(), &mut sink)), on_logits).unwrap();
        assert_eq!(session.n_evaluated(), (cases.len() * (TOKENS.len() + own)) as u64, "{n_batch}");
        assert_eq!(session.cost(&jobs), session.n_evaluated());
        for (job, (_, case)) in sequences.iter().enumerate() {
            let (name, _, r, scale) = &cases[*case];
            let edit = match scale {
                Some(scale) => Edit { add: Some((1, r, *scale)), ..Edit::default() },
                None if *name == "plain" => Edit::default(),
                None => Edit { ablate: Some(r), ..Edit::default() },
            };
            let oracle = forward(&tiny, &prompts[job % prompts.len()], edit);
            let what = format!("{name}, job {job}, batches of {n_batch}");
            assert_close(&logits[&job], oracle.logits.last().unwrap(), &what);
            for (il, rows) in oracle.l_out.iter().enumerate() {
                assert_close(&seen[&(job, il)], rows.last().unwrap(), &what);
            }
        }
        // The inputs of writers are wanted at every token, so nothing is left out there.
        let plan = CapturePlan {
            writer_inputs: ["blk.0.ffn_down.weight".to_string()].into(),
            ..CapturePlan::default()
        };
        let mut rows = 0;
        session.prefill(&jobs, Some((&plan, &mut |_, _, _, _| rows += 1)), &mut |_, _| ()).unwrap();
        assert_eq!(rows, cases.len() * (6 * TOKENS.len() + own));
    }
}
