//! From measured activations to a chosen direction: refusal tokens, prompts that behave as they should, scores, rules.

use std::path::PathBuf;

use serde::Serialize;

use super::checkpoint::{Checkpoint, CheckpointError};
use super::grid::{self, RefusalTokens};
use super::race::{Dropped, Measure, Race, Scores as _, Sheet, mean};
use super::scorer::{Scorer, steering};
use super::{Candidate, Layer, Rules, Selection, Verdict, choose};
use crate::activations::Contrast;
use crate::direction::{Direction, DirectionError, Scores};
use crate::evaluate::Markers;
use crate::gguf::{GgufError, GgufFile, fingerprint};
use crate::intervention;
use crate::runtime::{self, Prompt, Session};

/// Why no direction was chosen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model could not be run.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// The model's file could not be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The checkpoint is of something else, or cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The direction is none.
    #[error(transparent)]
    Direction(#[from] DirectionError),
    /// The directions are not independent.
    #[error(transparent)]
    Intervention(#[from] intervention::Error),
    /// It answers everything.
    #[error(
        "{} refuses none of the {n} harmful validation prompts, so there is no direction to find; use prompts that it \
         refuses, or --markers with its own refusal phrases",
        model.display()
    )]
    NeverRefuses {
        /// The model.
        model: PathBuf,
        /// Harmful prompts.
        n: usize,
    },
    /// Nothing to score on.
    #[error(
        "validation prompts that behave as their set should: {} of {} harmful (refused), {} of {} harmless (answered); at \
         least one of each is needed",
        kept[0], given[0], kept[1], given[1]
    )]
    Filtered {
        /// Harmful and harmless prompts that behave.
        kept: [usize; 2],
        /// All of them.
        given: [usize; 2],
    },
    /// Asked to by [`Watch::stop`].
    #[error("interrupted{}", checkpoint.as_ref().map_or(String::new(), |path| format!(
        "; run the same command again to go on from {}", path.display()
    )))]
    Stopped {
        /// Where the work so far is.
        checkpoint: Option<PathBuf>,
    },
    /// The rules drop every candidate.
    #[error("no candidate survives the rules (the table says why for each); nothing was written{}", nearest(best.as_ref(), rules))]
    NoneKept {
        /// The one of the lowest bypass, where any was scored.
        best: Option<Candidate>,
        /// The rules.
        rules: Rules,
    },
}

/// What would keep the best of the dropped candidates.
fn nearest(best: Option<&Candidate>, rules: &Rules) -> String {
    let Some(best) = best else { return String::new() };
    let mut flags = Vec::new();
    if best.kl > rules.kl_max {
        flags.push(format!("--kl-max {:.3}", (best.kl * 1e3).ceil() / 1e3));
    }
    if best.induce < rules.induce_min {
        flags.push(format!("--induce-min {:.2}", (best.induce * 1e2).floor() / 1e2));
    }
    let (position, block) = (best.position, best.layer.block().unwrap_or(0));
    let keep = if flags.is_empty() { String::new() } else { format!("; to keep it: {}", flags.join(" ")) };
    format!(
        ". The one that bypasses best is position {position} of block {block}, with induce {:.3} and KL {:.4}{keep}",
        best.induce, best.kl
    )
}

/// Looks on while a direction is chosen, and can stop it. `()` does neither.
pub trait Watch {
    /// Refusal tokens are being looked for, in answers to so many prompts.
    fn asking(&mut self, _prompts: usize) {}
    /// One of those was answered.
    fn answered(&mut self) {}
    /// The refusal tokens, found, given or from a checkpoint.
    fn refusal_tokens(&mut self, _tokens: &RefusalTokens) {}
    /// Scoring goes on from a checkpoint, with so many tokens behind it.
    fn resumed(&mut self, _tokens: u64) {}
    /// Scoring will take so many tokens in all, at most. Said again, and smaller, as candidates drop out.
    fn expect(&mut self, _tokens: u64) {}
    /// Scoring has taken so many.
    fn advance(&mut self, _tokens: u64) {}
    /// A further direction, the n-th, is being measured: on so many prompts still refused, of so many in all.
    fn measuring(&mut self, _n: usize, _refused: usize, _prompts: usize) {}
    /// One of those was run.
    fn measured(&mut self) {}
    /// Whether to save and stop.
    fn stop(&self) -> bool {
        false
    }
}

impl Watch for () {}

/// What to choose from, and how.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The measured means: a candidate for each position and block.
    pub contrast: &'a Contrast,
    /// Validation prompts, harmful and harmless.
    pub prompts: [&'a [Prompt]; 2],
    /// The refusal tokens; `None` to find them in the model's answers.
    pub refusal_tokens: Option<RefusalTokens>,
    /// What counts as a refusal there.
    pub markers: &'a Markers,
    /// The rules.
    pub rules: Rules,
    /// How to leave out what cannot win; `None` to score every candidate on every prompt.
    pub race: Option<Race>,
    /// Directions that are ablated throughout, the contrast having been measured so: for one more beside them.
    pub erased: &'a [Direction],
    /// Of the order in which the prompts are taken.
    pub seed: u64,
}

/// Every candidate with its scores, and which one the rules take.
#[derive(Debug, Clone, Serialize)]
pub struct Choice {
    /// Whose probability the refusal score is.
    pub refusal_tokens: RefusalTokens,
    /// Harmful validation prompts given, and those kept because the model refuses them.
    pub n_harmful: [usize; 2],
    /// Harmless ones given, and those kept because it answers them.
    pub n_harmless: [usize; 2],
    /// The rules.
    pub rules: Rules,
    /// Of the order of the prompts.
    pub seed: u64,
    /// Every candidate was scored on every prompt.
    pub exhaustive: bool,
    /// The candidates, the last position first. A score not looked at is NaN.
    pub candidates: Vec<Candidate>,
    /// Prompts that each candidate's bypass, induce and KL are means over.
    pub scored_on: Vec<[usize; 3]>,
    /// What the rules said, and which one they take.
    #[serde(flatten)]
    pub selection: Selection,
    /// Prompt tokens that the scores took, over all runs where this one went on from a checkpoint.
    pub tokens_evaluated: u64,
    /// Prompt tokens that scoring every candidate on every prompt takes.
    pub tokens_exhaustive: u64,
}

/// Chooses a direction of `session`'s model.
///
/// The outcome is the same to the bit whatever the number of threads, and whether or not it was interrupted and went on
/// from the checkpoint; the figures of the chosen candidate are also those of scoring everything. The
/// caller removes the checkpoint when it has what it wanted.
///
/// # Errors
/// See [`Error`]; a choice of none is no error here, see [`Choice::direction`].
pub fn select(
    session: &mut Session<'_>,
    request: &Request<'_>,
    checkpoint: &mut Checkpoint,
    watch: &mut dyn Watch,
) -> Result<Choice, Error> {
    let [harmful, harmless] = request.prompts;
    let steering = steering(request.contrast, request.erased);
    checkpoint.begin(identity(session, request)?, steering.len())?;
    let refusal_tokens = refusal_tokens(session, request, checkpoint, watch)?;
    watch.refusal_tokens(&refusal_tokens);
    let mut prompts = grid::filter(session, harmful, harmless, &refusal_tokens)?;
    let kept = [prompts.harmful.len(), prompts.harmless.len()];
    if kept.contains(&0) {
        return Err(Error::Filtered { kept, given: [harmful.len(), harmless.len()] });
    }
    prompts.shuffle(request.seed);
    if checkpoint.is_begun() {
        watch.resumed(checkpoint.n_evaluated);
    }

    let n_block = session.model().n_block();
    let places: Vec<(i32, usize)> = request.contrast.candidates().collect();
    let usable: Vec<usize> = (0..places.len()).filter(|&i| steering[i].is_some()).collect();
    let mut scorer = Scorer::new(session, &steering, &prompts, &refusal_tokens.ids, checkpoint, watch);
    let dropped: Dropped = match &request.race {
        None => {
            for (done, &candidate) in usable.iter().enumerate() {
                scorer.left(&usable[done..]);
                scorer.complete(candidate)?;
            }
            vec![None; places.len()]
        }
        Some(race) => {
            let mut dropped: Dropped = (places.iter().zip(&steering))
                .map(|(&(_, block), steering)| match steering {
                    None => Some(Verdict::NotANumber),
                    Some(_) => {
                        request.rules.is_late(Layer::output_of(block), n_block).then_some(Verdict::LateLayer)
                    }
                })
                .collect();
            let early: Vec<usize> = (0..places.len()).filter(|&i| dropped[i].is_none()).collect();
            scorer.left(&early);
            let out = race.run(&mut scorer, places.len(), &early, &request.rules)?;
            early.into_iter().for_each(|i| dropped[i] = out[i]);
            dropped
        }
    };
    let (candidates, scored_on): (Vec<Candidate>, Vec<[usize; 3]>) =
        (0..places.len()).map(|i| candidate(&scorer, places[i], i)).unzip();
    let tokens_exhaustive = usable.len() as u64 * scorer.whole();
    // The table shows a dropped candidate's means so far, but the rules are for whole ones.
    let whole: Vec<usize> = (0..places.len()).filter(|&i| dropped[i].is_none()).collect();
    let decided = choose(&whole.iter().map(|&i| candidates[i]).collect::<Vec<_>>(), n_block, &request.rules);
    let mut verdicts: Vec<Verdict> = dropped.into_iter().map(|v| v.unwrap_or(Verdict::Kept)).collect();
    whole.iter().zip(&decided.verdicts).for_each(|(&i, &verdict)| verdicts[i] = verdict);
    let selection = Selection { chosen: decided.chosen.map(|i| whole[i]), verdicts };
    Ok(Choice {
        refusal_tokens,
        n_harmful: [harmful.len(), kept[0]],
        n_harmless: [harmless.len(), kept[1]],
        rules: request.rules,
        seed: request.seed,
        exhaustive: request.race.is_none(),
        candidates,
        scored_on,
        selection,
        tokens_evaluated: checkpoint.n_evaluated,
        tokens_exhaustive,
    })
}

/// Those given, or kept in the checkpoint, or found in the model's answers, which the checkpoint then keeps.
pub(super) fn refusal_tokens(
    session: &mut Session<'_>,
    request: &Request<'_>,
    checkpoint: &mut Checkpoint,
    watch: &mut dyn Watch,
) -> Result<RefusalTokens, Error> {
    let [harmful, harmless] = request.prompts;
    let known = request.refusal_tokens.clone().or(checkpoint.refusal_tokens.take());
    let tokens = if let Some(tokens) = known {
        tokens
    } else {
        watch.asking(harmful.len() + harmless.len());
        let step = &mut || watch.answered();
        grid::find_refusal_tokens(session, harmful, harmless, request.markers, step)?
    };
    if tokens.ids.is_empty() {
        let model = session.model().path().to_path_buf();
        return Err(Error::NeverRefuses { model, n: harmful.len() });
    }
    checkpoint.refusal_tokens = Some(tokens.clone());
    Ok(tokens)
}

/// A candidate's means over all prompts, or over those it was looked at on before it was dropped.
fn candidate(scorer: &Scorer<'_, '_>, (position, block): (i32, usize), i: usize) -> (Candidate, [usize; 3]) {
    let scores = Measure::ALL.map(|measure| {
        let sheets = [Sheet::Full, Sheet::Race].map(|sheet| scorer.get(sheet, i, measure));
        if sheets[0].is_empty() { sheets[1] } else { sheets[0] }
    });
    let [bypass, induce, kl] = scores.map(mean);
    (Candidate { position, layer: Layer::output_of(block), bypass, induce, kl }, scores.map(<[f64]>::len))
}

/// What scores depend on, for a checkpoint to be known by.
fn identity(session: &Session<'_>, request: &Request<'_>) -> Result<Vec<(String, String)>, Error> {
    let model = session.model();
    let bytes = |values: Vec<f32>| values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    let contrast = request.contrast;
    let directions = crate::digest(contrast.candidates().map(|(p, il)| bytes(contrast.difference(p, il))));
    let [harmful, harmless] = request.prompts.map(runtime::digest);
    let refusal = if let Some(tokens) = &request.refusal_tokens {
        format!("{:?}", tokens.ids)
    } else {
        format!("found by markers {}", crate::digest([format!("{:?}", request.markers).into_bytes()]))
    };
    let rules = format!("{:?}, {:?}", request.rules, request.race.unwrap_or_default());
    let options = session.options();
    Ok([
        ("version", env!("CARGO_PKG_VERSION").to_string()),
        ("model", fingerprint(&GgufFile::open(model.path())?)),
        ("set of directions", directions),
        (
            "list of erased directions",
            request.erased.iter().map(Direction::sha256).collect::<Vec<_>>().join(" "),
        ),
        ("set of harmful prompts", harmful),
        ("set of harmless prompts", harmless),
        ("choice of refusal tokens", refusal),
        ("set of rules", rules),
        ("seed", request.seed.to_string()),
        ("batch", format!("{} tokens of {} in {} sequences", options.n_batch, options.n_ctx, options.n_seq)),
    ]
    .map(|(what, value)| (what.to_string(), value))
    .into())
}

impl Choice {
    /// Of the candidates whose three scores are known, the one of the lowest bypass.
    fn best_dropped(&self) -> Option<Candidate> {
        let scored = self.candidates.iter().zip(&self.scored_on).filter(|(_, n)| !n.contains(&0));
        scored.map(|(c, _)| *c).min_by(|a, b| a.bypass.total_cmp(&b.bypass))
    }

    /// The chosen direction, with where it comes from.
    ///
    /// # Errors
    /// [`Error::NoneKept`] where none survived the rules.
    pub fn direction(&self, contrast: &Contrast) -> Result<Direction, Error> {
        let none = || Error::NoneKept { best: self.best_dropped(), rules: self.rules };
        let chosen = self.selection.chosen.ok_or_else(none)?;
        let Candidate { position, layer, bypass, induce, kl } = self.candidates[chosen];
        let block = layer.block().ok_or_else(none)?;
        let mut direction = contrast.direction(position, block)?;
        direction.meta.scores = Some(Scores { bypass, induce, kl });
        Ok(direction)
    }
}
