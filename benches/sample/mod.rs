//! What the benches on the sample model share: its prompts, its direction, its writers' inputs.

// Each bench includes this module whole and uses its own part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ggsteer::activations::{Contrast, measure, shared_positions};
use ggsteer::arch;
use ggsteer::calibration::{self, Calibration, Origin, Target};
use ggsteer::direction::{Direction, Provenance};
use ggsteer::evaluate::Markers;
use ggsteer::evaluate::run::Set;
use ggsteer::gguf::GgufFile;
use ggsteer::intervention::Intervention;
use ggsteer::prompts::PromptSet;
use ggsteer::runtime::{Model, ModelOptions, Prompt, Session, SessionOptions};
use ggsteer::select::race::Race;
use ggsteer::select::{Checkpoint, Choice, Request, Rules, select};

/// The tokens of an answer: in calibration and in evaluation.
pub const ANSWER: [usize; 2] = [16, 48];

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("gguf-samples")
}

pub fn f16() -> PathBuf {
    folder().join("lorekeeper-7m-f16.gguf")
}

pub fn load(path: &Path) -> Model {
    Model::load(path, &ModelOptions::default()).unwrap()
}

/// One thread: a model this small is fastest so.
pub fn session(model: &Model) -> Session<'_> {
    let options = SessionOptions {
        n_ctx: 8192,
        n_batch: 512,
        n_seq: 32,
        n_threads: 1,
        exact: false,
        ..SessionOptions::default()
    };
    Session::new(model, options).unwrap()
}

/// \[restricted, ordinary\] of a part of the sample's prompts.
pub fn sets(model: &Model, part: &str) -> [Set; 2] {
    ["restricted", "ordinary"].map(|kind| {
        let path = folder().join("prompts").join(format!("{kind}-{part}.txt"));
        let texts = PromptSet::load(&path.display().to_string()).unwrap().prompts;
        let prompts: Vec<Prompt> = texts.iter().map(|text| model.prompt(text).unwrap()).collect();
        Set { texts, prompts }
    })
}

/// Means over the training prompts.
pub fn contrast(model: &Model) -> Contrast {
    let mut session = session(model);
    let [harmful, harmless] = sets(model, "train");
    let n_pos = shared_positions(harmful.prompts.iter().chain(&harmless.prompts));
    let mut mean = |set: &Set| measure(&mut session, &set.prompts, n_pos, None, None, &mut || ()).unwrap();
    Contrast {
        harmful: mean(&harmful),
        harmless: mean(&harmless),
        source: Provenance { architecture: Some(model.architecture()), ..Provenance::default() },
    }
}

/// The choice on the validation prompts, in the order of `seed`.
pub fn choose(model: &Model, contrast: &Contrast, race: Option<Race>, seed: u64) -> Choice {
    let [harmful, harmless] = sets(model, "validation").map(|set| set.prompts);
    let request = Request {
        contrast,
        prompts: [&harmful, &harmless],
        refusal_tokens: None,
        markers: &Markers::default(),
        rules: Rules::default(),
        race,
        erased: &[],
        seed,
    };
    select(&mut session(model), &request, &mut Checkpoint::none(), &mut ()).unwrap()
}

/// Measured on the training prompts, chosen on the validation prompts; where the rules leave no candidate of this model,
/// measured where `other` (position and block) was chosen.
pub fn direction(model: &Model, other: Option<&Direction>) -> Direction {
    let contrast = contrast(model);
    let choice = choose(model, &contrast, Some(Race::default()), 0);
    let chosen = choice.selection.chosen.map(|i| &choice.candidates[i]);
    let chosen = chosen.map(|c| (c.position, c.layer.block().unwrap()));
    let given = other.map(|d| (d.meta.position.unwrap(), d.block));
    let (position, block) = chosen.or(given).expect("a candidate that survives the rules");
    if chosen.is_none() {
        println!("no candidate survives the rules here: measured at position {position}, block {block}");
    }
    contrast.direction(position, block).unwrap()
}

pub fn ablation(direction: &Direction) -> Arc<Intervention> {
    Arc::new(Intervention::ablate(&[&direction.vector]).unwrap())
}

/// The writers' inputs under ablation, on the training prompts and the answers to them.
pub fn calibration(model: &Model, direction: &Direction, seed: u64) -> Calibration {
    let file = GgufFile::open(model.path()).unwrap();
    let targets = Target::of(&file, &arch::writers(&file).unwrap());
    let [harmful, harmless] = sets(model, "train");
    let options = calibration::Options { seed, generated: ANSWER[0], ..calibration::Options::default() };
    calibration::collect(
        &mut session(model),
        [&harmful.prompts, &harmless.prompts],
        &targets,
        Some(&ablation(direction)),
        &options,
        Origin::default(),
        &mut || (),
    )
    .unwrap()
}
