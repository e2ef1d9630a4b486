//! Whether the rewritten file behaves like the ablation at run time, type by type, on the sample model.
//!
//! `cargo bench --bench behaviour [TYPE…]`. For each type: the sample is quantized by llama.cpp, the direction measured
//! and chosen on that very file (where the rules leave none of its candidates, at the place chosen on F16), its writers' inputs sampled on the training prompts under ablation; then the direction is
//! written out by descent, three times with another seed of sampling and descent, and once by re-encoding. Measured on the
//! final prompts, which nothing was chosen on: refusals by the hook and by the file, first-token KL(hook ‖ file) on both
//! sets, and beside it KL(F16 ‖ quantized), both plain.

mod sample;

use std::path::Path;

use ggsteer::calibration::Calibration;
use ggsteer::direction::Direction;
use ggsteer::evaluate::Rate;
use ggsteer::evaluate::kl::kl;
use ggsteer::evaluate::run::{Options as Asking, Set, answers, first_logits};
use ggsteer::gguf::GgufFile;
use ggsteer::intervention::Intervention;
use ggsteer::output::OutputFile;
use ggsteer::rewrite::{How, Options, Plan, Rounding, execute};
use ggsteer::runtime::{FileType, Model, QuantizeOptions, quantize};
use std::sync::Arc;

const TYPES: [&str; 8] = ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K"];
const SEEDS: u64 = 3;

/// Refused restricted prompts in per cent, and KL(hook ‖ file) on both sets.
type Outcome = (f64, [f64; 2]);

/// Logits after each prompt of both sets.
type Logits = [Vec<Vec<f32>>; 2];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let full = sample::load(&sample::f16());
    let sets = sample::sets(&full, "final");
    let chosen = sample::direction(&full, None);
    let full = logits(&full, &sets, None);
    println!(
        "{:<8} {:>8} {:>18} {:>11}   {:>25} {:>9}   {:>25} {:>9}   {:>17}",
        "",
        "refused",
        "by the file",
        "re-encoded",
        "KL restricted: file",
        "re-enc.",
        "KL ordinary: file",
        "re-enc.",
        "KL F16 ‖ quantized"
    );
    println!(
        "{:<8} {:>8} {:>18} {:>11}   {:>25} {:>9}   {:>25} {:>9}   {:>17}",
        "type", "hook %", "3 seeds %", "%", "3 seeds", "", "3 seeds", "", "restr. / ordin."
    );
    for name in TYPES.iter().filter(|ty| wanted.is_empty() || wanted.iter().any(|w| w == *ty)) {
        of_type(name, &full, &chosen);
    }
}

fn of_type(name: &str, full: &Logits, chosen: &Direction) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quantized.gguf");
    let options = QuantizeOptions { n_threads: 1, ..QuantizeOptions::default() };
    quantize(&sample::f16(), &path, FileType::from_name(name).unwrap(), &options).unwrap();
    let model = sample::load(&path);
    let direction = sample::direction(&model, Some(chosen));
    let ablation = sample::ablation(&direction);
    let sets = sample::sets(&model, "final");
    let quantized = distances(full, &logits(&model, &sets, None));
    let hook = logits(&model, &sets, Some(&ablation));
    let refused = refusals(&model, &sets[0], Some(&ablation));

    let rewritten = folder.path().join("rewritten.gguf");
    let mut ours = Vec::new();
    for seed in 1..=SEEDS {
        let calibration = sample::calibration(&model, &direction, seed);
        rewrite(&path, &rewritten, &direction, Some(&calibration), seed);
        let file = sample::load(&rewritten);
        ours.push((refusals(&file, &sets[0], None), distances(&hook, &logits(&file, &sets, None))));
    }
    rewrite(&path, &rewritten, &direction, None, 0);
    let file = sample::load(&rewritten);
    let one_pass = (refusals(&file, &sets[0], None), distances(&hook, &logits(&file, &sets, None)));
    let each = |f: &dyn Fn(&Outcome) -> String| ours.iter().map(f).collect::<Vec<_>>().join(" ");
    println!(
        "{name:<8} {refused:>8.1} {:>18} {:>11.1}   {:>25} {:>9.5}   {:>25} {:>9.5}   {:>8.5} {:>8.5}",
        each(&|o| format!("{:.1}", o.0)),
        one_pass.0,
        each(&|o| format!("{:.5}", o.1[0])),
        one_pass.1[0],
        each(&|o| format!("{:.5}", o.1[1])),
        one_pass.1[1],
        quantized[0],
        quantized[1],
    );
}

/// By descent with a calibration, by re-encoding without.
fn rewrite(from: &Path, to: &Path, direction: &Direction, calibration: Option<&Calibration>, seed: u64) {
    let file = GgufFile::open(from).unwrap();
    let plan = Plan::new(&file, std::slice::from_ref(&direction.vector), Options::default()).unwrap();
    let out = OutputFile::create(to, true, &[from]).unwrap();
    let rounding = if calibration.is_some() { Rounding::default() } else { Rounding::Reencode };
    let how = How { rounding, calibration, seed, source: None };
    execute(&file, &plan, &how, out, &[], &mut |_| ()).unwrap().commit().unwrap();
}

fn logits(model: &Model, sets: &[Set; 2], ablation: Option<&Arc<Intervention>>) -> Logits {
    let mut session = sample::session(model);
    sets.each_ref().map(|set| first_logits(&mut session, &set.prompts, ablation, &mut || ()).unwrap())
}

/// Mean KL(p ‖ q) of each set.
fn distances(p: &Logits, q: &Logits) -> [f64; 2] {
    [0, 1].map(|set| {
        let sum: f64 = p[set].iter().zip(&q[set]).map(|(p, q)| kl(p, q)).sum();
        sum / p[set].len() as f64
    })
}

/// Per cent.
fn refusals(model: &Model, set: &Set, ablation: Option<&Arc<Intervention>>) -> f64 {
    let options = Asking { max_tokens: sample::ANSWER[1], ..Asking::default() };
    let mut session = sample::session(model);
    let answers = answers(&mut session, set, ablation, &options, &mut || ()).unwrap();
    100.0 * Rate::of(answers.iter().map(|a| a.refused)).rate
}
