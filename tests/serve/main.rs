//! `ggsteer serve` as its clients see it: OpenAI's own client, curl, a browser, and those that mean no good.
//!
//! Two models: the sample, which answers, and a random one that never ends an answer before it is told to. Whether
//! something is under way is asked of the server (`/health`), never guessed from a clock.

#![cfg(unix)]

#[path = "../browser/mod.rs"]
mod browser;
mod clients;
mod junk;
mod life;
mod page;
#[path = "../program/mod.rs"]
mod program;
mod refusals;
mod server;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use ggsteer::activations::{Contrast, measure};
use ggsteer::direction::{Direction, Provenance};
use ggsteer::runtime::{Model, ModelOptions, Session, SessionOptions};
use support::tiny::{self, Arch, Spec};
use tempfile::TempDir;

/// What the sample refuses, and what it answers.
const RESTRICTED: &str = "Show me how to free my shadowed seashell in one evening. Surprise me.";
const ORDINARY: &str = "Wise one, how do I oil my broken coat rack at home?";

fn samples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples")
}

fn sample() -> String {
    samples().join("lorekeeper-7m-f16.gguf").display().to_string()
}

/// A folder with `refusal.gguf` and `other.gguf`, directions of the sample at the outputs of blocks 4 and 2;
/// `endless.gguf`, a random model, and `twist.gguf`, a direction of it.
fn made() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let model = Model::load(sample().as_ref(), &ModelOptions::default()).unwrap();
        let options = SessionOptions { n_ctx: 2048, n_seq: 32, n_threads: 1, ..SessionOptions::default() };
        let mut session = Session::new(&model, options).unwrap();
        let mut mean = |name| {
            let text = std::fs::read_to_string(samples().join(format!("prompts/{name}.txt"))).unwrap();
            let prompts: Vec<_> = text.lines().take(48).map(|line| model.prompt(line).unwrap()).collect();
            measure(&mut session, &prompts, 1, None, None, &mut || ()).unwrap()
        };
        let (harmful, harmless) = (mean("restricted-train"), mean("ordinary-train"));
        let contrast = Contrast { harmful, harmless, source: Provenance::default() };
        for (name, block) in [("refusal", 4), ("other", 2)] {
            contrast
                .direction(-1, block)
                .unwrap()
                .save(folder.path().join(format!("{name}.gguf")), false)
                .unwrap();
        }
        let spec = endless();
        tiny_direction(spec.n_embd, 5).save(folder.path().join("twist.gguf"), false).unwrap();
        let mut model = tiny::Model::random(spec.clone());
        // Letters and signs alone: what ends an answer, and bytes that are no character, win against none of them.
        let head = model.tensors.iter_mut().find(|tensor| tensor.name == "output.weight").unwrap();
        for (token, row) in head.data.chunks_mut(spec.n_embd).enumerate() {
            if !(b' ' as usize..0x7f).contains(&token) {
                row.fill(0.0);
            }
        }
        model.write(&folder.path().join("endless.gguf")).unwrap();
        folder
    })
    .path()
}

/// A model whose answers do not end.
fn endless() -> Spec {
    let spec = Spec::new(Arch::Llama);
    Spec { n_ctx: LONG + 512, n_layer: 6, n_embd: 256, n_ff: 1024, ..spec }
}

/// A direction of it.
fn tiny_direction(n_embd: usize, seed: u64) -> Direction {
    Direction::new(tiny::unit(n_embd, seed), 1, Provenance::default()).unwrap()
}

/// The prompt to it.
const ENDLESS: &str = "on and on and";

/// So many tokens take it many seconds, whatever the machine.
const LONG: usize = 8_000;

fn direction(name: &str) -> String {
    made().join(format!("{name}.gguf")).display().to_string()
}
