//! What choosing a direction costs on the sample model: the race against scoring everything, and both passes over the
//! model against bare llama.cpp.
//!
//! `cargo bench --bench selection [SEEDS]`. First, for each seed (5) of the order of the prompts: the candidate chosen by
//! the race and by scoring everything, the tokens that went through the model and the seconds. Then the tokens a second of
//! extraction and of the grid, and of llama-cpp-2's own context without eval callback on the same tokens in the same
//! batches, in turn, many rounds: medians, and the ratio to the bare context of the same round.

mod sample;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Instant;

use ggsteer::activations::{Contrast, measure};
use ggsteer::evaluate::kl::{kl, refusal_score};
use ggsteer::intervention::{Intervention, Positions};
use ggsteer::runtime::{Job, Model, Prompt, Session};
use ggsteer::select::race::Race;
use ggsteer::select::{Candidate, Choice};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;

const ROUNDS: usize = 9;
const N_BATCH: usize = 512;
const N_SEQ: usize = 32;

fn main() {
    let seeds = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(5);
    let model = sample::load(&sample::f16());
    let contrast = sample::contrast(&model);
    race_against_everything(&model, &contrast, seeds);
    passes_against_bare(&model, &contrast);
}

fn race_against_everything(model: &Model, contrast: &Contrast, seeds: u64) {
    println!("{:<6}{:>26}{:>26}{:>22}{:>8}{:>16}", "seed", "race", "everything", "tokens", "", "seconds");
    for seed in 0..seeds {
        let [(race, fast), (all, slow)] = [Some(Race::default()), None].map(|how| {
            let start = Instant::now();
            let choice = sample::choose(model, contrast, how, seed);
            (choice, start.elapsed().as_secs_f64())
        });
        let (a, b) = (chosen(&race), chosen(&all));
        println!(
            "{seed:<6}{:>26}{:>26}{:>22}{:>8.3}{:>16}{}",
            words(a),
            words(b),
            format!("{} of {}", race.tokens_evaluated, all.tokens_evaluated),
            race.tokens_evaluated as f64 / all.tokens_evaluated as f64,
            format!("{fast:.1} of {slow:.1}"),
            if a == b { "" } else { "  DIFFERENT" }
        );
    }
}

fn chosen(choice: &Choice) -> Option<&Candidate> {
    choice.selection.chosen.map(|i| &choice.candidates[i])
}

fn words(candidate: Option<&Candidate>) -> String {
    candidate.map_or("none".into(), |c| {
        format!("{} / {}: {:.6}", c.position, c.layer.block().unwrap_or(0), c.bypass)
    })
}

/// Extraction: every training prompt, captured at all blocks and shared positions. The grid: a candidate's three scores.
fn passes_against_bare(model: &Model, contrast: &Contrast) {
    let training: Vec<Prompt> =
        sample::sets(model, "train").into_iter().flat_map(|set| set.prompts).collect();
    let [harmful, harmless] = sample::sets(model, "validation").map(|set| set.prompts);
    let grid: Vec<Prompt> = harmful.iter().chain(&harmless).chain(&harmless).cloned().collect();
    let raw = contrast.difference(-1, 4);
    let ablate = Arc::new(Intervention::ablate(&[&raw]).unwrap());
    let add = Arc::new(Intervention::add(4, &raw, 1.0, Positions::All).unwrap());
    let (n_pos, ..) = contrast.harmful.shape();

    // The bare context: llama-cpp-2 alone, the same model and sizes, no callback.
    let backend = ggsteer::runtime::backend().unwrap();
    let plain = LlamaModel::load_from_file(backend, sample::f16(), &LlamaModelParams::default()).unwrap();
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(8192))
        .with_n_batch(N_BATCH as u32)
        .with_n_ubatch(N_BATCH as u32)
        .with_n_seq_max(N_SEQ as u32)
        .with_kv_unified(true)
        .with_n_threads(1)
        .with_n_threads_batch(1);
    let mut context = plain.new_context(backend, params).unwrap();
    let mut session = sample::session(model);
    let base: Vec<Vec<f32>> = bare(&mut context, &harmless);

    // Seconds: extraction, bare; grid, bare.
    let mut times: [Vec<[f64; 2]>; 2] = Default::default();
    for round in 0..=ROUNDS {
        let mut timed = [[0.0; 2]; 2];
        let mut order = [0, 1, 2, 3];
        order.rotate_left(round % 4);
        for which in order {
            let start = Instant::now();
            match which {
                0 => drop(measure(&mut session, &training, n_pos, None, None, &mut || ()).unwrap()),
                1 => drop(bare(&mut context, &training)),
                2 => scores(&mut session, [&harmful, &harmless], [&ablate, &add], &base),
                _ => drop(bare(&mut context, &grid)),
            }
            timed[which / 2][which % 2] = start.elapsed().as_secs_f64();
        }
        // The first round warms up.
        if round > 0 {
            (0..2).for_each(|i| times[i].push(timed[i]));
        }
    }
    println!("\n{:<12}{:>10}{:>12}{:>12}{:>8}", "", "tokens", "tokens/s", "bare", "ratio");
    for (name, prompts, times) in [("extraction", &training, &times[0]), ("grid", &grid, &times[1])] {
        let tokens: usize = prompts.iter().map(|p| p.tokens.len()).sum();
        let speed = |of: usize| tokens as f64 / median(times.iter().map(|t| t[of]).collect());
        let ratio = median(times.iter().map(|t| t[1] / t[0]).collect());
        println!("{name:<12}{tokens:>10}{:>12.0}{:>12.0}{ratio:>8.3}", speed(0), speed(1));
    }
}

/// A candidate's three scores, as the grid computes them.
fn scores(
    session: &mut Session<'_>,
    [harmful, harmless]: [&[Prompt]; 2],
    [ablate, add]: [&Arc<Intervention>; 2],
    base: &[Vec<f32>],
) {
    let mut sum = 0.0;
    for (prompts, how, is_kl) in [(harmful, ablate, false), (harmless, ablate, true), (harmless, add, false)]
    {
        let jobs: Vec<Job<'_>> = (prompts.iter())
            .map(|p| Job { tokens: &p.tokens, n_out: 1, intervention: Some(Arc::clone(how)) })
            .collect();
        let scored = session.prefill(&jobs, None, &mut |i, logits| {
            sum += if is_kl { kl(&base[i], logits) } else { refusal_score(logits, &[0]) };
        });
        scored.unwrap();
    }
    std::hint::black_box(sum);
}

/// Logits after each prompt, as many prompts to a batch as fit.
fn bare(context: &mut LlamaContext<'_>, prompts: &[Prompt]) -> Vec<Vec<f32>> {
    let mut batch = LlamaBatch::new(N_BATCH, 1);
    let mut logits = Vec::new();
    let mut next = 0;
    while next < prompts.len() {
        batch.clear();
        context.clear_kv_cache();
        let mut last = Vec::new();
        for (seq, prompt) in prompts[next..].iter().take(N_SEQ).enumerate() {
            if batch.n_tokens() as usize + prompt.tokens.len() > N_BATCH {
                break;
            }
            for (i, &token) in prompt.tokens.iter().enumerate() {
                batch.add(token, i as i32, &[seq as i32], i + 1 == prompt.tokens.len()).unwrap();
            }
            last.push(batch.n_tokens() - 1);
        }
        context.decode(&mut batch).unwrap();
        logits.extend(last.iter().map(|&i| context.get_logits_ith(i).to_vec()));
        next += last.len();
    }
    logits
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
