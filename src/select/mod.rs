//! Choosing the direction by the paper's rules.
//!
//! Arditi et al. 2024, appendix C: of all candidates, one for each position and layer, drop those whose
//! scores are not numbers, that lie in the last fifth of the model, whose ablation changes harmless answers
//! (KL) or whose addition does not induce refusal; of the rest take the one whose ablation leaves the lowest
//! refusal score. The rules reproduce the published choice for all five models whose scores were published.
//!
//! ```
//! use ggsteer::select::{Candidate, Layer, Rules, Verdict, choose};
//!
//! let at = |block, bypass, induce, kl| Candidate { position: -1, layer: Layer::output_of(block), bypass, induce, kl };
//! let candidates = [at(2, -9.0, 1.0, 0.3), at(3, -5.0, 0.5, 0.05), at(4, -4.0, 0.5, 0.01), at(7, -9.0, 2.0, 0.0)];
//! let selection = choose(&candidates, 8, &Rules::default());
//! assert_eq!(selection.chosen, Some(1));
//! assert_eq!(selection.verdicts[0], Verdict::Kl);
//! assert_eq!(selection.verdicts[3], Verdict::LateLayer);
//! ```

#![forbid(unsafe_code)]

pub mod bound;
pub mod checkpoint;
pub mod grid;
mod pipeline;
pub mod race;
mod scorer;
pub mod subspace;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use pipeline::{Choice, Error, Request, Watch, select};

use serde::{Deserialize, Serialize};

use crate::evaluate::null_as_nan;

/// A place in the residual stream, counted as the paper does: layer l is the *input* of block l. So 0 is the
/// embedding, and l = il + 1 is the output of the 0-based block il.
///
/// In JSON it is the bare paper number, always under a key that says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Layer(usize);

impl Layer {
    /// The (scaled) embedding, before any block.
    pub const EMBEDDING: Self = Self(0);

    /// The output of the 0-based block `il`, llama.cpp's `l_out-{il}`.
    #[must_use]
    pub const fn output_of(il: usize) -> Self {
        Self(il + 1)
    }

    /// From the paper's number.
    #[must_use]
    pub const fn from_paper(layer: usize) -> Self {
        Self(layer)
    }

    /// The paper's number.
    #[must_use]
    pub const fn paper(self) -> usize {
        self.0
    }

    /// The 0-based block whose output this is; `None` for the embedding.
    #[must_use]
    pub const fn block(self) -> Option<usize> {
        self.0.checked_sub(1)
    }
}

/// One (position, layer) and its three scores. A score that could not be had is NaN, in JSON null.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Negative, counted from the end of the templated prompt: −1 is its last token.
    pub position: i32,
    /// Where in the stream.
    #[serde(rename = "paper_layer")]
    pub layer: Layer,
    /// Mean refusal score on harmful prompts with the direction ablated everywhere: lower is better.
    #[serde(deserialize_with = "null_as_nan")]
    pub bypass: f64,
    /// Mean refusal score on harmless prompts with the raw vector added at its layer: higher is better.
    #[serde(deserialize_with = "null_as_nan")]
    pub induce: f64,
    /// KL(base ‖ ablated) in nats on harmless prompts at the last position: lower is better.
    #[serde(deserialize_with = "null_as_nan")]
    pub kl: f64,
}

/// The thresholds; [`Rules::default`] has the paper's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rules {
    /// Candidates with a larger KL are dropped.
    pub kl_max: f64,
    /// Candidates with a lower induce score are dropped.
    pub induce_min: f64,
    /// Paper layers from ⌊`layer_fraction` · n_block⌋ on are dropped; above 1 keeps all.
    pub layer_fraction: f64,
}

impl Default for Rules {
    fn default() -> Self {
        Self { kl_max: 0.1, induce_min: 0.0, layer_fraction: 0.8 }
    }
}

impl Rules {
    /// Whether `layer` lies in the dropped last part of a model with `n_block` blocks.
    #[must_use]
    pub fn is_late(&self, layer: Layer, n_block: usize) -> bool {
        layer.paper() as f64 >= (n_block as f64 * self.layer_fraction).floor()
    }
}

/// What the rules said of a candidate: the first rule it failed, in this order, or that it was kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// A score is NaN or infinite.
    NotANumber,
    /// It lies in the last part of the model.
    LateLayer,
    /// Ablating it changes harmless answers too much.
    Kl,
    /// Adding it does not induce refusal.
    Induce,
    /// Another candidate that keeps the rules bypasses more; it was not scored any further.
    Outrun,
    /// It passed; the chosen one is among these.
    Kept,
}

/// The outcome of [`choose`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Index of the chosen candidate; `None` when none was kept.
    pub chosen: Option<usize>,
    /// One for each candidate, in their order.
    pub verdicts: Vec<Verdict>,
}

impl Selection {
    /// How many candidates got this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> usize {
        self.verdicts.iter().filter(|&&v| v == verdict).count()
    }
}

/// Applies the rules to the candidates of a model with `n_block` blocks.
///
/// The lowest bypass score wins; among equals the lower KL, then the earlier layer, then the position nearer
/// the end, so the choice does not depend on the order in which candidates come.
#[must_use]
pub fn choose(candidates: &[Candidate], n_block: usize, rules: &Rules) -> Selection {
    let verdict = |c: &Candidate| {
        if ![c.bypass, c.induce, c.kl].iter().all(|score| score.is_finite()) {
            Verdict::NotANumber
        } else if rules.is_late(c.layer, n_block) {
            Verdict::LateLayer
        } else if c.kl > rules.kl_max {
            Verdict::Kl
        } else if c.induce < rules.induce_min {
            Verdict::Induce
        } else {
            Verdict::Kept
        }
    };
    let verdicts: Vec<Verdict> = candidates.iter().map(verdict).collect();
    let kept = candidates.iter().enumerate().filter(|&(i, _)| verdicts[i] == Verdict::Kept);
    let best = kept.min_by(|(_, a), (_, b)| {
        let scores = a.bypass.total_cmp(&b.bypass).then(a.kl.total_cmp(&b.kl));
        scores.then(a.layer.cmp(&b.layer)).then(b.position.cmp(&a.position))
    });
    Selection { chosen: best.map(|(i, _)| i), verdicts }
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Induce, Kept, Kl, LateLayer, NotANumber};
    use super::*;

    /// Model, position, paper layer, bypass, induce, KL, whether it was selected.
    type Row = (String, i32, usize, f64, f64, f64, u8);

    const PUBLISHED: &str = include_str!("../../tests/fixtures/published-candidate-scores.csv");

    fn candidate(position: i32, layer: usize, bypass: f64, induce: f64, kl: f64) -> Candidate {
        Candidate { position, layer: Layer::from_paper(layer), bypass, induce, kl }
    }

    /// Each model's candidates and the index of the one its authors selected.
    fn published() -> Vec<(String, Vec<Candidate>, usize)> {
        let mut models: Vec<(String, Vec<Candidate>, usize)> = Vec::new();
        let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(PUBLISHED.as_bytes());
        for row in reader.deserialize::<Row>() {
            let (model, position, layer, bypass, induce, kl, chosen) = row.unwrap();
            if models.last().is_none_or(|(last, ..)| *last != model) {
                models.push((model, Vec::new(), usize::MAX));
            }
            let (_, candidates, selected) = models.last_mut().unwrap();
            if chosen == 1 {
                *selected = candidates.len();
            }
            candidates.push(candidate(position, layer, bypass, induce, kl));
        }
        models
    }

    #[test]
    fn the_five_published_choices_are_reproduced() {
        let models = published();
        let mut outcomes = Vec::new();
        for (model, candidates, selected) in &models {
            let n_block = candidates.iter().map(|c| c.layer.paper()).max().unwrap() + 1;
            let selection = choose(candidates, n_block, &Rules::default());
            assert_eq!(selection.chosen, Some(*selected), "{model}");
            let chosen = &candidates[*selected];
            outcomes.push((
                model.as_str(),
                chosen.position,
                chosen.layer.paper(),
                selection.count(Verdict::Kept),
            ));

            let reversed: Vec<Candidate> = candidates.iter().rev().copied().collect();
            let backwards = choose(&reversed, n_block, &Rules::default()).chosen.unwrap();
            assert_eq!(&reversed[backwards], chosen, "{model}");
        }
        let expected = [
            ("gemma-2b-it", -2, 10, 13),
            ("llama-2-7b-chat-hf", -1, 14, 5),
            ("meta-llama-3-8b-instruct", -5, 12, 25),
            ("qwen-1_8b-chat", -2, 15, 12),
            ("yi-6b-chat", -5, 20, 7),
        ];
        assert_eq!(outcomes, expected);
    }

    /// The same from the files as they were published, where they are at hand.
    #[test]
    fn the_published_files_give_the_published_choices() {
        #[derive(serde::Deserialize)]
        struct Scored {
            position: i32,
            layer: usize,
            refusal_score: Option<f64>,
            steering_score: Option<f64>,
            kl_div_score: Option<f64>,
        }
        #[derive(serde::Deserialize)]
        struct Selected {
            pos: i32,
            layer: usize,
        }
        let folder = std::env::var_os("GGSTEER_PUBLISHED_SCORES").map_or_else(
            || {
                std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("../shared/data/published-candidate-scores")
            },
            Into::into,
        );
        if !folder.is_dir() {
            eprintln!("SKIPPED: no published scores in {}; see GGSTEER_PUBLISHED_SCORES", folder.display());
            return;
        }
        // They are Python's JSON, which writes NaN as a word of its own.
        let read = |name: String| std::fs::read_to_string(folder.join(name)).unwrap().replace("NaN", "null");
        for (model, fixture, _) in published() {
            let scored: Vec<Scored> = serde_json::from_str(&read(format!("{model}.scores.json"))).unwrap();
            let score = |score: Option<f64>| score.unwrap_or(f64::NAN);
            let all: Vec<Candidate> = (scored.iter())
                .map(|s| {
                    let [bypass, induce, kl] = [s.refusal_score, s.steering_score, s.kl_div_score].map(score);
                    candidate(s.position, s.layer, bypass, induce, kl)
                })
                .collect();
            let n_block = all.iter().map(|c| c.layer.paper()).max().unwrap() + 1;
            let chosen = &all[choose(&all, n_block, &Rules::default()).chosen.unwrap()];
            let selected: Selected = serde_json::from_str(&read(format!("{model}.selected.json"))).unwrap();
            let expected = (selected.pos, Layer::from_paper(selected.layer));
            assert_eq!((chosen.position, chosen.layer), expected, "{model}");
            assert_eq!(all.len(), fixture.len(), "{model}");
        }
    }

    #[test]
    fn each_rule_drops_what_it_names() {
        let candidates = [
            candidate(-1, 3, f64::NAN, 1.0, 0.0),
            candidate(-1, 9, -9.0, f64::INFINITY, 0.0),
            candidate(-1, 8, -9.0, 1.0, 0.0),
            candidate(-1, 7, -9.0, 1.0, 0.100_1),
            candidate(-1, 7, -9.0, -0.1, 0.1),
            candidate(-1, 7, -1.0, 0.0, 0.1),
            candidate(-2, 0, -1.5, 0.0, 0.1),
        ];
        let selection = choose(&candidates, 10, &Rules::default());
        assert_eq!(selection.verdicts, [NotANumber, NotANumber, LateLayer, Kl, Induce, Kept, Kept]);
        assert_eq!((selection.chosen, selection.count(Kept)), (Some(6), 2));
    }

    #[test]
    fn nothing_is_chosen_when_nothing_is_kept() {
        assert_eq!(choose(&[], 10, &Rules::default()), Selection { chosen: None, verdicts: vec![] });
        assert_eq!(choose(&[candidate(-1, 0, 0.0, 0.0, 0.0)], 1, &Rules::default()).chosen, None);
        let all = Rules { layer_fraction: 2.0, ..Rules::default() };
        assert_eq!(choose(&[candidate(-1, 1, 0.0, 0.0, 0.0)], 1, &all).chosen, Some(0));
    }

    #[test]
    fn ties_do_not_depend_on_the_order() {
        let mut candidates = [
            candidate(-2, 3, -1.0, 0.0, 0.05),
            candidate(-1, 3, -1.0, 0.0, 0.05),
            candidate(-1, 4, -1.0, 0.0, 0.05),
            candidate(-1, 2, -1.0, 0.0, 0.06),
        ];
        for _ in 0..4 {
            candidates.rotate_left(1);
            let chosen = choose(&candidates, 10, &Rules::default()).chosen.unwrap();
            assert_eq!((candidates[chosen].position, candidates[chosen].layer.paper()), (-1, 3));
        }
    }

    #[test]
    fn layers_count_from_the_embedding() {
        assert_eq!((Layer::EMBEDDING.paper(), Layer::EMBEDDING.block()), (0, None));
        assert_eq!((Layer::output_of(0).paper(), Layer::output_of(0).block()), (1, Some(0)));
        assert_eq!(Layer::from_paper(13), Layer::output_of(12));
    }

    #[test]
    fn candidates_survive_json_with_their_nans() {
        let json = serde_json::to_string(&candidate(-3, 5, f64::NAN, 0.5, 0.25)).unwrap();
        assert_eq!(json, r#"{"position":-3,"paper_layer":5,"bypass":null,"induce":0.5,"kl":0.25}"#);
        let back: Candidate = serde_json::from_str(&json).unwrap();
        assert!(back.bypass.is_nan() && back.layer.block() == Some(4));
    }
}
