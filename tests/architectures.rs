//! A rewritten file behaves like the run-time ablation on every architecture of the table in `support/architectures`:
//! the same stream and the same logits at F32, or, where a norm stands between the writers and the stream, a stream
//! without the direction.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ggsteer::arch::ArchError;
use ggsteer::gguf::GgufFile;
use ggsteer::intervention::Intervention;
use ggsteer::output::OutputFile;
use ggsteer::rewrite::{How, Options, Plan, RewriteError, Rounding, Written, execute};
use ggsteer::runtime::{
    CapturePlan, Captured, Item, Model, ModelOptions, Outputs, Session, SessionOptions, Site, Token,
};

mod support;

use support::architectures::table::{ADDED, NORMED};
use support::architectures::{Head, N_BLOCK, N_EMBD, Spec};
use support::tiny::{project_out, unit};

/// Largest difference of an element, as a part of the largest element; and of |r·x| as a part of ‖x‖.
const TOLERANCE: f64 = 1e-4;
/// What an ablation has to move for a comparison to say something, in the same parts.
const MOVED: f64 = 0.01;

/// What a model computes of the same 40 tokens.
struct Run {
    logits: Vec<Vec<f32>>,
    /// The stream, block by block, token by token.
    stream: Vec<Vec<f32>>,
}

fn run(path: &Path, intervention: Option<&Arc<Intervention>>) -> Run {
    let model = Model::load(path, &ModelOptions::default()).unwrap();
    let options = SessionOptions {
        n_ctx: 64,
        n_batch: 64,
        n_seq: 1,
        n_threads: 1,
        exact: true,
        ..SessionOptions::default()
    };
    let mut session = Session::new(&model, options).unwrap();
    let tokens: Vec<Token> = (0..40).map(|i| Token(i * 7 % 250)).collect();
    let intervention = intervention.map(Arc::clone);
    let item = Item { seq: 0, start: 0, tokens: &tokens, prompt: true, outputs: Outputs::All, intervention };
    let mut stream = vec![Vec::new(); N_BLOCK * tokens.len()];
    let mut sink = |row: Captured<'_>| {
        if let Site::Block(block) = row.site {
            stream[block * tokens.len() + row.token] = row.row.to_vec();
        }
    };
    let plan = CapturePlan { stream: true, ..CapturePlan::default() };
    session.decode(&[item], Some((&plan, &mut sink))).unwrap();
    assert!(stream.iter().all(|row| row.len() == N_EMBD));
    Run { logits: (0..tokens.len()).map(|i| session.logits(i).to_vec()).collect(), stream }
}

fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let scale = b.iter().flatten().map(|x| f64::from(x.abs())).fold(0.0, f64::max);
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max) / scale
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The largest |r·x| / ‖x‖ over the stream.
fn left(run: &Run, directions: &[Vec<f32>]) -> f64 {
    let parts = run.stream.iter().flat_map(|x| directions.iter().map(|r| dot(x, r).abs() / dot(x, x).sqrt()));
    parts.fold(0.0, f64::max)
}

/// `k` unit vectors at right angles.
fn directions(k: u64) -> Vec<Vec<f32>> {
    let mut all: Vec<Vec<f32>> = Vec::new();
    for i in 0..k {
        let mut r = unit(N_EMBD, 20 + i);
        all.iter().for_each(|other| project_out(&mut r, other));
        let norm = dot(&r, &r).sqrt();
        r.iter_mut().for_each(|x| *x = (f64::from(*x) / norm) as f32);
        all.push(r);
    }
    all
}

fn rewrite(from: &Path, to: &Path, directions: &[Vec<f32>]) {
    let file = GgufFile::open(from).unwrap();
    let plan = Plan::new(&file, directions, Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let out = OutputFile::create(to, true, &[from]).unwrap();
    let report = execute(&file, &plan, &reencode(), out, &[], &mut |_| ()).and_then(Written::commit).unwrap();
    assert!(report.max_leak < 1e-5, "F32 leaves {}", report.max_leak);
}

/// Files of one model.
struct Files {
    /// The random model.
    original: PathBuf,
    /// What the hook runs on: the original, without the direction in the output matrix where that is the embedding.
    hooked: PathBuf,
    /// The rewritten original.
    written: PathBuf,
}

/// Calls `check` with a random model of each architecture and what was taken out: one direction, and two at once. It
/// gives back what is wrong, and all of that is told at the end.
fn each(specs: &[Spec], check: impl Fn(&str, &Files, &[Vec<f32>]) -> Option<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (original, hooked, written) = (path("original.gguf"), path("hooked.gguf"), path("written.gguf"));
    let files = Files { original, hooked, written };
    let mut wrong = Vec::new();
    for (seed, spec) in specs.iter().enumerate() {
        let model = spec.random(100 + seed as u64);
        for k in 1..=2 {
            let directions = directions(k);
            model.write(&files.original).unwrap();
            rewrite(&files.original, &files.written, &directions);
            let model = model.clone();
            let model = if spec.head == Head::Tied { model.without(&directions) } else { model };
            model.write(&files.hooked).unwrap();
            let name = format!("{}, k {k}", spec.title());
            wrong.extend(check(&name, &files, &directions).map(|what| format!("{name}: {what}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rewritten_file_is_the_ablation() {
    each(ADDED, |name, files, directions| {
        let hook = Arc::new(Intervention::ablate(directions).unwrap());
        let plain = run(&files.original, None);
        let (hooked, file) = (run(&files.hooked, Some(&hook)), run(&files.written, None));
        let moved = difference(&plain.logits, &hooked.logits);
        let logits = difference(&file.logits, &hooked.logits);
        let stream = difference(&file.stream, &hooked.stream);
        println!(
            "{name:28} plain to hook {moved:.3}, file to hook: logits {logits:.1e}, stream {stream:.1e}"
        );
        let right = moved > MOVED && logits <= TOLERANCE && stream <= TOLERANCE;
        (!right)
            .then(|| format!("moved {moved:.3}, off by {logits:e} in logits and {stream:e} in the stream"))
    });
}

#[test]
fn behind_norms_the_stream_of_the_rewritten_file_is_without_the_direction() {
    each(NORMED, |name, files, directions| {
        let hook = Arc::new(Intervention::ablate(directions).unwrap());
        let plain = run(&files.original, None);
        let (hooked, file) = (run(&files.hooked, Some(&hook)), run(&files.written, None));
        let again = run(&files.written, Some(&hook));
        let (before, after) = (left(&plain, directions), left(&file, directions));
        let moved = difference(&plain.logits, &hooked.logits);
        let apart = difference(&file.logits, &hooked.logits);
        let changed = difference(&again.logits, &file.logits);
        println!(
            "{name:28} |r·x|/|x| plain {before:.3}, file {after:.1e}; logits plain to hook {moved:.3}, \
             file to hook {apart:.3}, file to file with hook {changed:.1e}"
        );
        let right = before > MOVED && moved > MOVED && after <= TOLERANCE && changed <= TOLERANCE;
        (!right).then(|| {
            format!(
                "{before:.3} of the stream was along r and {after:e} is left; the hook changes {changed:e}"
            )
        })
    });
}

#[test]
fn an_architecture_that_is_not_in_the_table_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    ADDED[0].named("unheard-of").random(1).write(&path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    let error = Plan::new(&file, &directions(1), Options::default()).unwrap_err();
    assert!(
        matches!(&error, RewriteError::Arch(ArchError::Unknown { arch, .. }) if arch == "unheard-of"),
        "{error}"
    );
}

/// By ggml's own quantizer.
fn reencode() -> How<'static> {
    How { rounding: Rounding::Reencode, ..How::default() }
}
