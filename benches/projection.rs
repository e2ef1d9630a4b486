//! What an ablation costs a decoded token: in the graph of the patched llama.cpp, and by the hook, against the bare context.
//!
//! `sh scripts/patched.sh bench` runs it; on llama.cpp as it comes it says so and fails. Like `benches/hook.rs`, it takes them in
//! turn on a random 140 MB Q8_0 llama (12 blocks × 1024), and prints medians and the ratio to the bare context of
//! the same round.

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ggsteer::direction::{Direction, Provenance};
use ggsteer::intervention::Intervention;
use ggsteer::runtime::{Item, Model, ModelOptions, Outputs, Session, SessionOptions, Stock, Token, threads};

const PROMPT: usize = 32;
const DECODE: usize = 48;
const ROUNDS: usize = 15;
const N_EMBD: usize = 1024;

fn tokens() -> Vec<Token> {
    (0..PROMPT + DECODE).map(|i| Token((i * 7 % 250) as i32)).collect()
}

/// Milliseconds a token.
fn stock(stock: &mut Stock, tokens: &[Token]) -> f64 {
    stock.logits(&tokens[..PROMPT]).unwrap();
    let start = Instant::now();
    for token in &tokens[PROMPT..] {
        std::hint::black_box(stock.more(std::slice::from_ref(token)).unwrap()[0][0]);
    }
    start.elapsed().as_secs_f64() * 1e3 / DECODE as f64
}

fn hook(session: &mut Session<'_>, tokens: &[Token], intervention: &Arc<Intervention>) -> f64 {
    session.clear();
    let mut decode = |start: usize, end: usize| {
        let item = Item {
            seq: 0,
            start,
            tokens: &tokens[start..end],
            prompt: true,
            outputs: Outputs::Last(1),
            intervention: Some(intervention.clone()),
        };
        session.decode(&[item], None).unwrap();
        std::hint::black_box(session.logits(end - start - 1)[0]);
    };
    decode(0, PROMPT);
    let start = Instant::now();
    (PROMPT..tokens.len()).for_each(|i| decode(i, i + 1));
    start.elapsed().as_secs_f64() * 1e3 / DECODE as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn load(model: &Path, threads: usize) -> Stock {
    Stock::load(model, PROMPT + DECODE, threads).unwrap()
}

fn main() {
    let folder = tempfile::tempdir().unwrap();
    let (path, vector) = (folder.path().join("random-q8_0.gguf"), folder.path().join("vector.gguf"));
    support::tiny::big_q8_0(&path, 1).unwrap();
    let r = support::tiny::unit(N_EMBD, 20);
    Direction::new(r.clone(), 6, Provenance::default()).unwrap().save(&vector, true).unwrap();
    let (threads, tokens) = (threads(0), tokens());

    let (mut bare, mut graph) = (load(&path, threads), load(&path, threads));
    if let Err(error) = graph.set_control_vector(&vector, 1.0) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
    let model = Model::load(&path, &ModelOptions::default()).unwrap();
    let n = PROMPT + DECODE;
    let options = SessionOptions {
        n_ctx: n,
        n_batch: n,
        n_seq: 1,
        n_threads: threads,
        exact: true,
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, options).unwrap();
    let ablation = Arc::new(Intervention::ablate(&[&r]).unwrap());

    println!(
        "decode, random llama, 12 blocks x 1024, Q8_0; {threads} threads, {DECODE} tokens after {PROMPT}, {ROUNDS} rounds"
    );
    let mut rounds = Vec::new();
    for round in 0..=ROUNDS {
        let times =
            [stock(&mut bare, &tokens), stock(&mut graph, &tokens), hook(&mut session, &tokens, &ablation)];
        // The first warms up.
        if round > 0 {
            rounds.push(times);
        }
    }
    for (i, name) in ["bare", "in the graph", "hook"].into_iter().enumerate() {
        let ms = median(rounds.iter().map(|times| times[i]).collect());
        let ratio = median(rounds.iter().map(|times| times[i] / times[0]).collect());
        println!("{name:12} {ms:8.3} ms a token   x {ratio:.3}");
    }
}
