//! `ggsteer analyze`: how the two prompt sets lie to each other in every block.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Result, ensure};
use ggsteer::activations::shared_positions;
use ggsteer::analysis::{Analysis, COINCIDE};
use ggsteer::intervention::Intervention;
use ggsteer::report::run::Made;
use serde::Serialize;

use super::args::{PromptArgs, RunArgs, describe, direction, tokenize_both};
use super::steps;
use super::ui::{Ui, percent, table};

/// Show block by block how far apart the two prompt sets lie: first principal component, separation, norms
///
/// Example: ggsteer analyze model.gguf --harmful a.txt --harmless b.txt
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    prompts: PromptArgs,
    /// Position to look at, counted from the end of the templated prompt: -1 is its last token
    #[arg(long, value_name = "P", default_value_t = -1, allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(..0))]
    position: i32,
    /// |cosine| from which on the first component and the difference in means count as one
    #[arg(long, value_name = "C", default_value_t = COINCIDE)]
    coincide: f64,
    /// Show the harmful prompts in --json also with this direction erased, as `ggsteer report` draws them
    #[arg(long, value_name = "DIRECTION")]
    ablate: Option<PathBuf>,
    /// Which block's direction to take from a file that holds several
    #[arg(long, value_name = "IL", requires = "ablate")]
    block: Option<usize>,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Serialize)]
struct Output {
    #[serde(flatten)]
    made: Made,
    model: String,
    n_harmful: usize,
    n_harmless: usize,
    position: i32,
    #[serde(flatten)]
    analysis: Analysis,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let sets = self.prompts.load(ui)?;
        for set in [&sets.harmful, &sets.harmless] {
            ensure!(set.len() > 1, "{}: one prompt has no variance; give two at least", set.source);
        }
        let model = self.run.load(&self.model)?;
        describe(ui, &model);
        let [harmful, harmless] = tokenize_both(&model, &sets)?;
        let shared = shared_positions(harmful.prompts.iter().chain(&harmless.prompts));
        ensure!(
            self.position >= -(shared as i32),
            "--position {}: after the user's text the template has {shared} tokens, so -{shared} to -1 mean the same in \
             every prompt",
            self.position
        );
        let direction = self.ablate.as_deref().map(|path| direction(path, self.block, &model)).transpose()?;
        let ablation = direction.map(|d| Intervention::ablate(&[&d.vector]).map(Arc::new)).transpose()?;
        let sets = [&harmful, &harmless];
        let analysis =
            steps::analyze(ui, &self.run, &model, sets, ablation.as_ref(), self.position, self.coincide)?;
        let output = Output {
            made: Made::by("analyze"),
            model: self.model.display().to_string(),
            n_harmful: harmful.prompts.len(),
            n_harmless: harmless.prompts.len(),
            position: self.position,
            analysis,
        };
        ui.print(&output, || output.text())
    }
}

impl Output {
    fn text(&self) -> String {
        let Self { n_harmful, n_harmless, position, analysis, .. } = self;
        let rows = analysis.blocks.iter().map(|b| {
            vec![
                b.block.to_string(),
                percent(b.pc1_variance),
                format!("{:.3}", b.pc1_auc),
                format!("{:.3}", b.pc1_cosine),
                format!("{:.3}", b.difference_auc),
                format!("{:.2}", b.harmful_norm),
                format!("{:.2}", b.harmless_norm),
                format!("{:.2}", b.difference_norm),
                format!("{:.2}", b.signal_to_noise),
            ]
        });
        let header = [
            "block",
            "PC1 variance",
            "PC1 AUC",
            "|cos|",
            "diff AUC",
            "‖harmful‖",
            "‖harmless‖",
            "‖diff‖",
            "signal/noise",
        ];
        let at = analysis.coincide_at;
        let verdict = match analysis.coincide_from {
            Some(block) => format!("from block {block} on they are one (|cos| ≥ {at})"),
            None => format!("they do not come to be one (|cos| ≥ {at} to the last block)"),
        };
        format!(
            "{n_harmful} harmful and {n_harmless} harmless prompts at position {position}\n{}\
             the first principal component and the difference in means: {verdict}\n",
            table(&header, 1, rows)
        )
    }
}
