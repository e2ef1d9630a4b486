//! What the hook costs: prefill and decode with capture, with ablation on all blocks and with sampling of the writers'
//! inputs, against the bare context.
//!
//! `make bench` (or `cargo bench --bench hook`) writes a random 140 MB Q8_0 llama (12 blocks × 1024) to a temporary
//! folder, runs them in turn, many rounds, and prints medians and the ratio to the bare context of the same round.
//! Not criterion's harness, because it runs its benchmarks one after the other and a noisy machine drifts meanwhile.

#[path = "../tests/support/mod.rs"]
mod support;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use ggsteer::calibration::{Collector, Options, Origin, Target};
use ggsteer::gguf::GgufFile;
use ggsteer::intervention::Intervention;
use ggsteer::runtime::{
    CapturePlan, Captured, Item, Model, ModelOptions, Outputs, Session, SessionOptions, Token,
};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;

const PREFILL: usize = 512;
const DECODE: usize = 24;
const ROUNDS: usize = 15;
const N_BLOCK: usize = 12;

/// Seconds of prefill and of decode, the latter a token at a time after the former.
type Times = [f64; 2];

fn tokens() -> Vec<Token> {
    (0..PREFILL + DECODE).map(|i| Token((i * 7 % 250) as i32)).collect()
}

fn bare(ctx: &mut LlamaContext<'_>, tokens: &[Token]) -> Times {
    let mut batch = LlamaBatch::new(PREFILL, 1);
    let mut decode = |range: std::ops::Range<usize>| {
        batch.clear();
        for i in range.clone() {
            batch.add(tokens[i], i as i32, &[0], i + 1 == range.end).unwrap();
        }
        ctx.decode(&mut batch).unwrap();
        std::hint::black_box(ctx.get_logits_ith(batch.n_tokens() - 1)[0]);
    };
    let start = Instant::now();
    decode(0..PREFILL);
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    (PREFILL..tokens.len()).for_each(|i| decode(i..i + 1));
    let times = [prefill, start.elapsed().as_secs_f64()];
    ctx.clear_kv_cache();
    times
}

fn hooked(
    session: &mut Session<'_>,
    tokens: &[Token],
    intervention: Option<&Arc<Intervention>>,
    plan: Option<&CapturePlan>,
) -> Times {
    let mut rows = 0usize;
    let mut decode = |range: std::ops::Range<usize>| {
        let item = Item {
            seq: 0,
            start: range.start,
            tokens: &tokens[range.clone()],
            prompt: true,
            outputs: Outputs::Last(1),
            intervention: intervention.cloned(),
        };
        let mut sink = |c: Captured<'_>| rows += usize::from(c.row[0].is_finite());
        session.decode(&[item], plan.map(|plan| (plan, &mut sink as _))).unwrap();
        std::hint::black_box(session.logits(range.len() - 1)[0]);
    };
    let start = Instant::now();
    decode(0..PREFILL);
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    (PREFILL..tokens.len()).for_each(|i| decode(i..i + 1));
    let times = [prefill, start.elapsed().as_secs_f64()];
    assert_eq!(rows, plan.map_or(0, |_| N_BLOCK * (1 + DECODE)), "every block of every output was captured");
    session.clear();
    times
}

/// Every writer's input at every token through a collector, as `extract --save-calibration` does.
fn sampled(session: &mut Session<'_>, tokens: &[Token], targets: &[Target]) -> Times {
    let mut collector = Collector::new(targets, [&[tokens], &[]], &Options::default());
    let plan = collector.plan();
    let mut decode = |range: std::ops::Range<usize>| {
        let item = Item {
            seq: 0,
            start: range.start,
            tokens: &tokens[range.clone()],
            prompt: true,
            outputs: Outputs::Last(1),
            intervention: None,
        };
        let first = range.start as i32 - tokens.len() as i32;
        let mut sink = |c: Captured<'_>| collector.add(0, first + c.token as i32, c.site, c.row);
        session.decode(&[item], Some((&plan, &mut sink))).unwrap();
        std::hint::black_box(session.logits(range.len() - 1)[0]);
    };
    let start = Instant::now();
    decode(0..PREFILL);
    let prefill = start.elapsed().as_secs_f64();
    let start = Instant::now();
    (PREFILL..tokens.len()).for_each(|i| decode(i..i + 1));
    let times = [prefill, start.elapsed().as_secs_f64()];
    let calibration = collector.finish(Origin::default()).unwrap();
    assert_eq!(calibration.inputs("blk.0.ffn_down.weight").unwrap().count(0), tokens.len() as u64);
    session.clear();
    times
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("random-q8_0.gguf");
    support::tiny::big_q8_0(&path, 1).unwrap();
    let megabytes = std::fs::metadata(&path).unwrap().len() as f64 / 1e6;
    println!(
        "random llama, 12 blocks x 1024, Q8_0, {megabytes:.0} MB; prefill {PREFILL}, decode {DECODE}, {ROUNDS} rounds"
    );

    let threads = std::thread::available_parallelism().unwrap().get();
    let model = Model::load(&path, &ModelOptions::default()).unwrap();
    let options = SessionOptions {
        n_ctx: 1024,
        n_batch: PREFILL,
        n_seq: 1,
        n_threads: threads,
        exact: false,
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, options).unwrap();

    // The bare context: llama-cpp-2 alone, the same model and sizes, no callback.
    let backend = ggsteer::runtime::backend().unwrap();
    let plain = LlamaModel::load_from_file(backend, &path, &LlamaModelParams::default()).unwrap();
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(1024))
        .with_n_batch(PREFILL as u32)
        .with_n_ubatch(PREFILL as u32)
        .with_kv_unified(true)
        .with_n_threads(threads as i32)
        .with_n_threads_batch(threads as i32);
    let mut context = plain.new_context(backend, params).unwrap();

    let tokens = tokens();
    let r = support::tiny::unit(1024, 3);
    let ablation = Arc::new(Intervention::ablate(&[&r]).unwrap());
    let plan = CapturePlan { stream: true, ..CapturePlan::default() };
    let file = GgufFile::open(&path).unwrap();
    let targets = Target::of(&file, &ggsteer::arch::writers(&file).unwrap());
    let names = ["bare context", "hook, idle", "hook, capture", "hook, ablation", "hook, sampling"];
    let mut times: [Vec<Times>; 5] = Default::default();
    for round in 0..=ROUNDS {
        // Turning the order around cancels what one run leaves behind for the next.
        let mut order = [0, 1, 2, 3, 4];
        order.rotate_left(round % 5);
        for which in order {
            let t = match which {
                0 => bare(&mut context, &tokens),
                1 => hooked(&mut session, &tokens, None, None),
                2 => hooked(&mut session, &tokens, None, Some(&plan)),
                3 => hooked(&mut session, &tokens, Some(&ablation), None),
                _ => sampled(&mut session, &tokens, &targets),
            };
            // The first round warms up.
            if round > 0 {
                times[which].push(t);
            }
        }
    }
    println!("{:16}{:>18}{:>8}{:>18}{:>8}", "", "prefill tokens/s", "ratio", "decode tokens/s", "ratio");
    for (name, of) in names.iter().zip(&times) {
        let speed = |k: usize, n: usize| n as f64 / median(of.iter().map(|t| t[k]).collect());
        let ratio = |k: usize| median(times[0].iter().zip(of).map(|(bare, t)| bare[k] / t[k]).collect());
        println!(
            "{name:16}{:>18.1}{:>8.3}{:>18.1}{:>8.3}",
            speed(0, PREFILL),
            ratio(0),
            speed(1, DECODE),
            ratio(1)
        );
    }
}
