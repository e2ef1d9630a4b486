//! The steps of the pipeline with their progress, as several subcommands take them.

use anyhow::{Context, Result, bail};
use ggsteer::activations::{Contrast, measure as measure_set, shared_positions};
use ggsteer::calibration::Collector;
use ggsteer::direction::{Direction, Provenance, Scores};
use ggsteer::evaluate::Markers;
use ggsteer::evaluate::run::Set;
use ggsteer::gguf::{GgufFile, fingerprint};
use ggsteer::runtime::Model;
use ggsteer::select::grid::{self, RefusalTokens};
use ggsteer::select::{Candidate, Rules, Selection, Verdict, choose};
use serde::Serialize;

use super::args::{PARALLEL, RunArgs, Sets, longest};
use super::ui::{Ui, table, warn};

/// Where directions measured on `model` with `sets` come from.
pub fn source(model: &Model, sets: &Sets) -> Result<Provenance> {
    let file = GgufFile::open(model.path()).with_context(|| model.path().display().to_string())?;
    Ok(Provenance {
        architecture: Some(model.architecture()),
        model_fingerprint: Some(fingerprint(&file)),
        model_name: model.meta("general.name"),
        prompts_harmful_sha256: Some(sets.harmful.sha256.clone()),
        prompts_harmless_sha256: Some(sets.harmless.sha256.clone()),
        n_harmful: u32::try_from(sets.harmful.len()).ok(),
        n_harmless: u32::try_from(sets.harmless.len()).ok(),
        ..Provenance::default()
    })
}

/// Means over both sets, at every position that all prompts share; with a collector also samples of the writers' inputs.
pub fn measure(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    [harmful, harmless]: [&Set; 2],
    source: Provenance,
    mut collector: Option<&mut Collector<'_>>,
) -> Result<Contrast> {
    let n_pos = shared_positions(harmful.prompts.iter().chain(&harmless.prompts));
    let mut session = run.session(model, PARALLEL, longest([harmful, harmless]))?;
    let bar = ui.progress(harmful.prompts.len() + harmless.prompts.len(), "measuring activations");
    let mut first = 0;
    let mut measure = |set: &Set| {
        let collector = collector.as_deref_mut().map(|collector| (collector, first));
        first += set.prompts.len();
        measure_set(&mut session, &set.prompts, n_pos, collector, &mut || bar.inc(1))
    };
    let (harmful, harmless) = (measure(harmful)?, measure(harmless)?);
    bar.finish_and_clear();
    Ok(Contrast { harmful, harmless, source })
}

/// Every candidate with its scores, and which one the rules take.
#[derive(Serialize)]
pub struct Choice {
    pub refusal_tokens: RefusalTokens,
    /// Validation prompts given, and those kept because the model treats them as their set says.
    pub n_harmful: [usize; 2],
    pub n_harmless: [usize; 2],
    pub rules: Rules,
    pub candidates: Vec<Candidate>,
    #[serde(flatten)]
    pub selection: Selection,
}

/// Scores the whole grid on validation prompts and applies the rules.
pub fn select(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    contrast: &Contrast,
    [harmful, harmless]: [&Set; 2],
    markers: &Markers,
    tokens: Option<RefusalTokens>,
) -> Result<Choice> {
    let mut session = run.session(model, PARALLEL, longest([harmful, harmless]) + 32)?;
    let tokens = if let Some(tokens) = tokens {
        tokens
    } else {
        let bar = ui.progress(harmful.prompts.len() + harmless.prompts.len(), "finding refusal tokens");
        let step = &mut || bar.inc(1);
        let found =
            grid::find_refusal_tokens(&mut session, &harmful.prompts, &harmless.prompts, markers, step)?;
        bar.finish_and_clear();
        found
    };
    if tokens.ids.is_empty() {
        bail!(
            "{} refuses none of the {} harmful validation prompts, so there is no direction to find; \
             use prompts that it refuses, or --markers with its own refusal phrases",
            model.path().display(),
            harmful.prompts.len()
        );
    }
    ui.note(&format!(
        "refusal tokens: {}",
        tokens.texts.iter().map(|t| format!("{t:?}")).collect::<Vec<_>>().join(" ")
    ));
    let kept = grid::filter(&mut session, &harmful.prompts, &harmless.prompts, &tokens)?;
    if kept.harmful.is_empty() || kept.harmless.is_empty() {
        bail!(
            "validation prompts that behave as their set should: {} of {} harmful (refused), {} of {} harmless \
             (answered); at least one of each is needed",
            kept.harmful.len(),
            harmful.prompts.len(),
            kept.harmless.len(),
            harmless.prompts.len()
        );
    }
    let bar = ui.progress(contrast.candidates().count(), "scoring candidates");
    let candidates = grid::score(&mut session, contrast, &kept, &tokens, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    let rules = Rules::default();
    Ok(Choice {
        refusal_tokens: tokens,
        n_harmful: [harmful.prompts.len(), kept.harmful.len()],
        n_harmless: [harmless.prompts.len(), kept.harmless.len()],
        selection: choose(&candidates, model.n_block(), &rules),
        rules,
        candidates,
    })
}

impl Choice {
    /// The chosen direction; where none survived the rules, an error, and the table on stderr.
    pub fn direction(&self, contrast: &Contrast) -> Result<Direction> {
        let Some(chosen) = self.selection.chosen else {
            warn(&format!("every candidate was dropped:\n{}", self.table(usize::MAX)));
            bail!("no candidate survives the rules (the table says why for each); nothing was written");
        };
        let Candidate { position, layer, bypass, induce, kl } = self.candidates[chosen];
        let block = layer.block().context("a candidate at the embedding cannot be written")?;
        let vector = contrast.difference(position, block);
        let meta = Provenance {
            position: Some(position),
            scores: Some(Scores { bypass, induce, kl }),
            ..contrast.source.clone()
        };
        let mut direction = Direction::new(vector, block, meta)?;
        direction.meta.raw_norm = Some(direction.norm());
        Ok(direction)
    }

    /// The candidates, the chosen one marked, at most `n` of them: best bypass first, survivors before the dropped.
    pub fn table(&self, n: usize) -> String {
        let mut order: Vec<usize> = (0..self.candidates.len()).collect();
        let rank = |&i: &usize| {
            let dropped = self.selection.verdicts[i] != Verdict::Kept;
            (self.selection.chosen != Some(i), dropped)
        };
        order.sort_by(|a, b| {
            rank(a).cmp(&rank(b)).then(self.candidates[*a].bypass.total_cmp(&self.candidates[*b].bypass))
        });
        let rows = order.iter().take(n).map(|&i| {
            let c = &self.candidates[i];
            let verdict = match self.selection.verdicts[i] {
                Verdict::Kept if self.selection.chosen == Some(i) => "chosen",
                Verdict::Kept => "",
                Verdict::NotANumber => "not a number",
                Verdict::LateLayer => "late layer",
                Verdict::Kl => "KL too high",
                Verdict::Induce => "does not induce",
            };
            vec![
                verdict.to_string(),
                c.position.to_string(),
                c.layer.block().map_or("–".into(), |il| il.to_string()),
                c.layer.paper().to_string(),
                format!("{:.3}", c.bypass),
                format!("{:.3}", c.induce),
                format!("{:.4}", c.kl),
            ]
        });
        table(&["", "position", "block", "paper layer", "bypass", "induce", "KL"], 1, rows)
    }
}
