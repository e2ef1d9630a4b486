//! Choosing a direction: the race against scoring everything, scores against a plain computation, and interrupted runs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ggsteer::activations::{Contrast, Means, measure, shared_positions};
use ggsteer::direction::{Direction, Provenance};
use ggsteer::evaluate::Markers;
use ggsteer::evaluate::control::control;
use ggsteer::evaluate::run::first_logits;
use ggsteer::intervention::{Basis, Intervention};
use ggsteer::prompts::PromptSet;
use ggsteer::runtime::{Model, ModelOptions, Prompt, Session, SessionOptions};
use ggsteer::select::grid::{RefusalTokens, filter};
use ggsteer::select::race::Race;
use ggsteer::select::subspace::{Growth, Stop, grow};
use ggsteer::select::{Candidate, Checkpoint, Choice, Request, Rules, Verdict, select};

mod support;

use support::forward::{Edit, forward};
use support::tiny::{self, Arch, Spec};

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples")
}

fn list(name: &str) -> String {
    samples().join("prompts").join(format!("{name}.txt")).display().to_string()
}

fn session(model: &Model) -> Session<'_> {
    let options = SessionOptions { n_ctx: 4096, n_threads: 1, ..SessionOptions::default() };
    Session::new(model, options).unwrap()
}

/// The sample's prompts of a part, restricted and ordinary.
fn prompts(model: &Model, part: &str, n: usize) -> [Vec<Prompt>; 2] {
    ["restricted", "ordinary"].map(|kind| {
        let texts = PromptSet::load(&list(&format!("{kind}-{part}"))).unwrap().prompts;
        texts.iter().take(n).map(|text| model.prompt(text).unwrap()).collect()
    })
}

fn contrast(session: &mut Session<'_>, [harmful, harmless]: [&[Prompt]; 2]) -> Contrast {
    let n_pos = shared_positions(harmful.iter().chain(harmless));
    let mut mean =
        |set: &[Prompt]| -> Means { measure(session, set, n_pos, None, None, &mut || ()).unwrap() };
    Contrast { harmful: mean(harmful), harmless: mean(harmless), source: Provenance::default() }
}

fn request<'a>(contrast: &'a Contrast, prompts: &'a [Vec<Prompt>; 2], markers: &'a Markers) -> Request<'a> {
    Request {
        contrast,
        prompts: [&prompts[0], &prompts[1]],
        refusal_tokens: None,
        markers,
        rules: Rules::default(),
        race: Some(Race::default()),
        erased: &[],
        seed: 0,
    }
}

fn choose(session: &mut Session<'_>, request: &Request<'_>) -> Choice {
    select(session, request, &mut Checkpoint::none(), &mut ()).unwrap()
}

/// p of a softmax, as in a textbook.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let exps: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|e| e / total).collect()
}

/// ln(p / (1 − p)) of the refusal tokens' probability.
fn log_odds(logits: &[f32], tokens: &[usize]) -> f64 {
    let p = softmax(logits);
    let yes: f64 = tokens.iter().map(|&t| p[t]).sum();
    (yes / (1.0 - yes)).ln()
}

/// Σ p ln(p / q).
fn divergence(base: &[f32], here: &[f32]) -> f64 {
    softmax(base).iter().zip(softmax(here)).map(|(p, q)| p * (p / q).ln()).sum()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.collect();
    values.iter().sum::<f64>() / values.len() as f64
}

fn assert_scores(found: &Candidate, expected: [f64; 3], tolerance: f64) {
    for (found, expected) in [found.bypass, found.induce, found.kl].into_iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{found} and {expected}");
    }
}

#[test]
fn the_race_chooses_what_scoring_everything_does() {
    let model = Model::load(&samples().join("lorekeeper-7m-f16.gguf"), &ModelOptions::default()).unwrap();
    let mut session = session(&model);
    let [harmful, harmless] = prompts(&model, "train", 32);
    let contrast = contrast(&mut session, [&harmful, &harmless]);
    let (validation, markers) = (prompts(&model, "validation", 24), Markers::default());
    let race = request(&contrast, &validation, &markers);
    let everything = choose(&mut session, &Request { race: None, ..race.clone() });
    assert_eq!(everything.tokens_evaluated, everything.tokens_exhaustive);
    let expected = everything.selection.chosen.unwrap();
    assert_eq!(everything.refusal_tokens.texts, ["I"]);
    for seed in 0..2 {
        let choice = choose(&mut session, &Request { seed, ..race.clone() });
        println!("{} of {} tokens", choice.tokens_evaluated, everything.tokens_evaluated);
        assert_eq!(choice.selection.chosen, Some(expected), "seed {seed}");
        assert_eq!(choice.tokens_exhaustive, everything.tokens_evaluated);
        assert!(4 * choice.tokens_evaluated <= everything.tokens_evaluated);
        assert_eq!(choice.scored_on[expected], [choice.n_harmful[1], 24, 24]);
        // With the prompts in the same order, the figures of the chosen one are the same to the bit.
        if seed == 0 {
            assert_eq!(choice.candidates[expected], everything.candidates[expected]);
        }
        assert!(choice.selection.count(Verdict::Outrun) + choice.selection.count(Verdict::Induce) > 20);
        assert_eq!(choice.selection.count(Verdict::LateLayer), 15);
    }

    // The chosen one's scores, from the logits that its batches give, by the textbook's formulas on 16 prompts.
    let few = validation.map(|set| set[..16].to_vec());
    let choice = choose(&mut session, &request(&contrast, &few, &markers));
    let chosen = &choice.candidates[choice.selection.chosen.unwrap()];
    let mut kept = filter(&mut session, &few[0], &few[1], &choice.refusal_tokens).unwrap();
    kept.shuffle(0);
    let block = chosen.layer.block().unwrap();
    let raw = contrast.difference(chosen.position, block);
    let ablate = Arc::new(Intervention::ablate(&[&raw]).unwrap());
    let add = Intervention::add(block, &raw, 1.0, ggsteer::intervention::Positions::All).unwrap();
    let mut logits = |set: &[Prompt], how| first_logits(&mut session, set, Some(how), &mut || ()).unwrap();
    let (bypassed, ablated) = (logits(&kept.harmful, &ablate), logits(&kept.harmless, &ablate));
    let added = logits(&kept.harmless, &Arc::new(add));
    let ids = &choice.refusal_tokens.ids;
    let expected = [
        mean(bypassed.iter().map(|l| log_odds(l, ids))),
        mean(added.iter().map(|l| log_odds(l, ids))),
        mean(kept.base.iter().zip(&ablated).map(|(base, here)| divergence(base, here))),
    ];
    assert_scores(chosen, expected, 1e-9);
}

#[test]
fn scores_agree_with_a_plain_forward_pass_on_16_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let spec = Spec { n_embd: 32, n_head: 2, n_head_kv: 1, n_ff: 64, n_layer: 2, ..Spec::new(Arch::Llama) };
    let tiny = tiny::Model::random(spec);
    tiny.write(&path).unwrap();
    let model = Model::load(&path, &ModelOptions::default()).unwrap();
    let options = SessionOptions {
        n_ctx: 2048,
        n_batch: 256,
        n_seq: 8,
        n_threads: 1,
        exact: true,
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, options).unwrap();

    let plain = |p: &Prompt, edit: Edit<'_>| {
        let ids: Vec<i32> = p.tokens.iter().map(|t| t.0).collect();
        forward(&tiny, &ids, edit).logits.pop().unwrap()
    };
    let all: Vec<(Prompt, Vec<f32>)> = (0..60)
        .map(|i| model.prompt(&format!("{} tale {i}", ["a", "Why", "seven"][i % 3])).unwrap())
        .map(|p| (p.clone(), plain(&p, Edit::default())))
        .collect();
    // A random model refuses nothing: so many tokens count as a refusal that it is likely for half of the prompts.
    let median = |ids: &[usize]| {
        let mut odds: Vec<f64> = all.iter().map(|(_, logits)| log_odds(logits, ids)).collect();
        odds.sort_by(f64::total_cmp);
        odds[odds.len() / 2]
    };
    let n = (1..model.n_vocab()).find(|&n| median(&(0..n).collect::<Vec<_>>()) > 0.0).unwrap();
    let ids: Vec<usize> = (0..n).collect();
    let (harmful, harmless): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|(_, logits)| log_odds(logits, &ids) > 0.0);
    let [mut harmful, mut harmless] =
        [harmful, harmless].map(|set| set.into_iter().map(|(p, _)| p).collect::<Vec<Prompt>>());
    harmful.truncate(16);
    harmless.truncate(16);
    assert_eq!([harmful.len(), harmless.len()], [16, 16]);

    let contrast = contrast(&mut session, [&harmful, &harmless]);
    let (both, markers) = ([harmful, harmless], Markers::default());
    let refusal_tokens = RefusalTokens { ids: ids.clone(), texts: vec![], coverage: None };
    let how = request(&contrast, &both, &markers);
    let choice = choose(&mut session, &Request { refusal_tokens: Some(refusal_tokens), race: None, ..how });
    assert_eq!([choice.n_harmful, choice.n_harmless], [[16, 16]; 2]);
    let (n_pos, n_block, _) = contrast.harmful.shape();
    assert_eq!(choice.candidates.len(), n_pos * n_block);
    for candidate in &choice.candidates {
        let block = candidate.layer.block().unwrap();
        let raw = contrast.difference(candidate.position, block);
        let length = raw.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        let unit: Vec<f32> = raw.iter().map(|x| (f64::from(*x) / length) as f32).collect();
        let ablate = Edit { ablate: Some(&unit), ..Edit::default() };
        let add = Edit { add: Some((block, &raw, 1.0)), ..Edit::default() };
        let expected = [
            mean(both[0].iter().map(|p| log_odds(&plain(p, ablate), &ids))),
            mean(both[1].iter().map(|p| log_odds(&plain(p, add), &ids))),
            mean(both[1].iter().map(|p| divergence(&plain(p, Edit::default()), &plain(p, ablate)))),
        ];
        assert_scores(candidate, expected, 1e-4);
    }
}

/// `ggsteer select` on the sample, in a folder that has `directions.gguf`.
struct Select {
    folder: tempfile::TempDir,
}

impl Select {
    fn new() -> Self {
        let this = Self { folder: tempfile::tempdir().unwrap() };
        let sets = ["--harmful", &list("restricted-train"), "--harmless", &list("ordinary-train")];
        let args = ["extract", "-o", "directions.gguf", "--limit", "32"];
        let output = this.command(&[&args[..], &sets].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        this
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ggsteer"));
        command.current_dir(self.folder.path()).arg("--json").args(args).args(["--threads", "1"]);
        command.arg(samples().join("lorekeeper-7m-f16.gguf"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Small batches: the work comes in many pieces.
    fn select(&self, output: &str, more: &[&str]) -> Command {
        let sets = ["--harmful", &list("restricted-validation"), "--harmless", &list("ordinary-validation")];
        let args =
            ["select", "--directions", "directions.gguf", "--limit", "12", "--batch", "96", "-o", output];
        self.command(&[&args[..], &sets, more].concat())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// Waits for the end, or for the checkpoint to be written `times` times; whether the process still runs then.
fn await_checkpoint(child: &mut Child, path: &Path, times: usize) -> bool {
    let start = Instant::now();
    let modified = || path.metadata().and_then(|m| m.modified()).ok();
    let (mut last, mut seen) = (modified(), 0);
    while seen < times {
        assert!(start.elapsed() < Duration::from_mins(5), "no checkpoint in five minutes");
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_millis(3));
        if modified().is_some() && modified() != last {
            (last, seen) = (modified(), seen + 1);
        }
    }
    true
}

/// What a run printed, without the name of its output and its arguments.
fn outcome(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    json["output"].take();
    json["arguments"].take();
    json.to_string()
}

#[test]
fn a_run_that_was_killed_goes_on_and_ends_the_same_to_the_bit() {
    let run = Select::new();
    let whole = run.select("whole.gguf", &[]).output().unwrap();
    let checkpoint = run.path("parts.gguf.checkpoint");
    assert!(!run.path("whole.gguf.checkpoint").exists(), "removed at the end");

    // Killed at moments that differ, the last time by Ctrl-C.
    let mut killed = 0;
    for delay in [0, 90, 300] {
        let mut child = run.select("parts.gguf", &[]).spawn().unwrap();
        if await_checkpoint(&mut child, &checkpoint, 1) {
            std::thread::sleep(Duration::from_millis(delay));
            killed += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
        }
        child.wait().unwrap();
    }
    assert!(killed > 0 && checkpoint.is_file() && !run.path("parts.gguf").exists(), "killed {killed} times");
    #[cfg(unix)]
    {
        let mut child = run.select("parts.gguf", &[]).spawn().unwrap();
        assert!(await_checkpoint(&mut child, &checkpoint, 1), "it ended before it could be interrupted");
        let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{stderr}");
        let last = stderr.lines().last().unwrap();
        assert_eq!(
            last,
            "error: interrupted; run the same command again to go on from parts.gguf.checkpoint"
        );
    }
    let before = std::fs::read(&checkpoint).unwrap();
    let other = run.select("parts.gguf", &["--seed", "1"]).output().unwrap();
    let stderr = String::from_utf8(other.stderr).unwrap();
    assert_eq!(other.status.code(), Some(1));
    assert!(
        stderr.contains("its seed is 0, here it is 1; delete it, or begin anew with --restart"),
        "{stderr}"
    );
    assert!(std::fs::read(&checkpoint).unwrap() == before, "the checkpoint was changed");

    let parts = run.select("parts.gguf", &[]).output().unwrap();
    assert!(String::from_utf8_lossy(&parts.stderr).contains("going on from a checkpoint"));
    assert_eq!(outcome(&parts), outcome(&whole));
    assert!(!checkpoint.exists(), "removed at the end");
    let [whole, parts] = ["whole.gguf", "parts.gguf"].map(|name| std::fs::read(run.path(name)).unwrap());
    assert!(whole == parts, "the direction files differ");
}

#[test]
fn a_model_that_never_refuses_has_no_direction() {
    let run = Select::new();
    let ordinary = ["--harmful", &list("ordinary-validation"), "--harmless", &list("ordinary-test")];
    let args = ["-q", "select", "--directions", "directions.gguf", "--limit", "6", "-o", "out.gguf"];
    let output = run.command(&[&args[..], &ordinary].concat()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{stderr}");
    let words = "refuses none of the 6 harmful validation prompts, so there is no direction to find";
    assert!(stderr.contains(words), "{stderr}");
    let left: Vec<_> =
        std::fs::read_dir(run.folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["directions.gguf"]);
}

#[test]
fn a_second_direction_is_found_where_the_first_leaves_refusals_and_only_there() {
    let model = Model::load(&samples().join("lorekeeper-7m-f16.gguf"), &ModelOptions::default()).unwrap();
    let mut session = session(&model);
    let train = prompts(&model, "train", 64);
    let contrast = contrast(&mut session, [&train[0], &train[1]]);
    let (validation, markers) = (prompts(&model, "validation", 24), Markers::default());
    // The sample's addition is near the rule's bound by itself, and less of it is nearer.
    let rules = Rules { induce_min: -0.5, ..Rules::default() };
    let request = Request { rules, ..request(&contrast, &validation, &markers) };
    let mut checkpoint = Checkpoint::none();
    let choice = select(&mut session, &request, &mut checkpoint, &mut ()).unwrap();
    let best = choice.direction(&contrast).unwrap();
    let growth = Growth { rank: 3, train: [&train[0], &train[1]], error: 0.01 };

    // One direction is enough for the sample.
    let alone = grow(&mut session, &request, best.clone(), &growth, &mut checkpoint, &mut ()).unwrap();
    assert_eq!(alone.directions, std::slice::from_ref(&best));
    assert!(matches!(alone.stop, Stop::FewRefused { refused: 0..8, of: 64 }), "{:?}", alone.stop);
    assert!(alone.steps.is_empty());

    // A first direction that only leans toward it leaves most of the refusals; the second makes up for it.
    let unit = best.unit();
    let random = control(&Intervention::ablate(&[&unit]).unwrap(), 3).unwrap();
    let leaning: Vec<f32> =
        unit.iter().zip(&random.ablate.vectors()[0]).map(|(r, x)| 0.25 * r + 0.968 * x).collect();
    let first = Direction::new(leaning, best.block, Provenance::default()).unwrap();
    let found = grow(&mut session, &request, first.clone(), &growth, &mut checkpoint, &mut ()).unwrap();
    println!("{:?}", found.steps.iter().map(|s| (s.n_refused, s.gain)).collect::<Vec<_>>());
    assert_eq!(found.directions[0], first);
    assert_eq!(found.directions[1].meta.erased, [first.sha256()]);
    assert!(found.steps[0].n_refused >= 24, "{}", found.steps[0].n_refused);
    let gain = found.steps[0].gain.unwrap();
    assert!(gain.before > 0.5 && gain.after < 0.15 && gain.at_least > 0.25, "{gain:?}");
    assert!(matches!(found.stop, Stop::FewRefused { .. }), "{:?}", found.stop);
    // Together they hold the best one.
    let span = Basis::new(&found.directions.iter().map(|d| &d.vector).collect::<Vec<_>>()).unwrap();
    let mut rest = unit.clone();
    span.ablate(&mut rest);
    let left = rest.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    assert!(left < 0.5, "{left}");

    // Where every prompt of a set is the other's, nothing tells them apart and nothing is added.
    let blind = Growth { train: [&train[0], &train[0]], ..growth };
    let none = grow(&mut session, &request, first, &blind, &mut checkpoint, &mut ()).unwrap();
    assert_eq!(none.directions.len(), 1);
    assert!(matches!(none.stop, Stop::NoneKept | Stop::NoGain), "{:?}", none.stop);
}

#[test]
fn one_direction_is_enough_for_the_sample() {
    let run = Select::new();
    let sets = ["--train-harmful", &list("restricted-train"), "--train-harmless", &list("ordinary-train")];
    let more = ["--rank", "2"];
    let output = run.select("one.gguf", &[&sets[..], &more].concat()).output().unwrap();
    let json: serde_json::Value = serde_json::from_str(&outcome(&output)).unwrap();
    assert_eq!(json["subspace"]["rank"], 1);
    assert_eq!(json["subspace"]["stop"]["why"], "few_refused");
    assert!(run.path("one.gguf").is_file() && !run.path("one.2.gguf").exists());
    assert!(!run.path("one.gguf.checkpoint").exists() && !run.path("one.gguf.checkpoint.2").exists());

    let error = |args: &[&str]| {
        let output = run.select("two.gguf", args).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).unwrap()
    };
    let words = "error: --rank 2: further directions are measured with those before them erased; give --train-harmful";
    assert!(error(&more).contains(words));
    assert!(error(&sets).contains("error: --train-harmful and --train-harmless are for --rank 2 and more"));
    let same = list("restricted-validation");
    let overlap =
        error(&["--rank", "2", "--train-harmful", &same, "--train-harmless", &list("ordinary-train")]);
    assert!(overlap.contains("the harmful training prompts"), "{overlap}");
}
