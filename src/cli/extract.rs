//! `ggsteer extract`: means and raw differences at every post-instruction position and block.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ggsteer::activations::Contrast;
use ggsteer::calibration::{Collector, Origin, Target};
use ggsteer::gguf::GgufFile;
use ggsteer::intervention::dot;
use ggsteer::output::OutputFile;
use serde::Serialize;

use super::args::{PromptArgs, RunArgs, describe, tokenize_both};
use super::calibrate::{SampleArgs, sequences};
use super::steps;
use super::ui::{Ui, table};

/// Measure the residual stream on two prompt sets: means and raw differences, all positions and blocks
///
/// Example: ggsteer extract model.gguf --harmful a.txt --harmless b.txt -o directions.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    prompts: PromptArgs,
    /// Where to write the directions (a GGUF file)
    #[arg(short, long, value_name = "DIRS")]
    output: PathBuf,
    /// Overwrite an existing output
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    sample: SampleArgs,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Serialize)]
struct Output {
    model: String,
    output: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    calibration: Option<String>,
    n_harmful: usize,
    n_harmless: usize,
    n_embd: usize,
    n_block: usize,
    positions: Vec<i32>,
    differences: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    position: i32,
    block: usize,
    /// ‖mean(harmful) − mean(harmless)‖.
    norm: f64,
    /// Its length in units of the mean of both means' lengths.
    relative: f64,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let prompts = self.prompts.paths();
        let mut inputs = vec![self.model.as_path()];
        inputs.extend(prompts.iter().map(PathBuf::as_path));
        let out = OutputFile::create(&self.output, self.force, &inputs)?;
        let out_calibration = self.sample.create(&self.output, self.force, &inputs)?;
        let sets = self.prompts.load(ui)?;
        let model = self.run.load(&self.model)?;
        describe(ui, &model);
        let targets = match &out_calibration {
            Some(_) => self.targets().with_context(|| self.model.display().to_string())?,
            None => Vec::new(),
        };
        let [harmful, harmless] = tokenize_both(&model, &sets)?;
        let source = steps::source(&model, &sets)?;
        let both = [&sequences(&harmful)[..], &sequences(&harmless)];
        let mut collector =
            out_calibration.is_some().then(|| Collector::new(&targets, both, &self.sample.options()));
        let contrast =
            steps::measure(ui, &self.run, &model, [&harmful, &harmless], source, collector.as_mut())?;
        let (n_pos, n_block, n_embd) = contrast.harmful.shape();
        let output = Output {
            model: self.model.display().to_string(),
            output: self.output.display().to_string(),
            calibration: out_calibration.as_ref().map(|out| out.path().display().to_string()),
            n_harmful: harmful.prompts.len(),
            n_harmless: harmless.prompts.len(),
            n_embd,
            n_block,
            positions: (1..=n_pos as i32).map(|back| -back).collect(),
            differences: contrast.candidates().map(|(p, il)| Row::of(&contrast, p, il)).collect(),
        };
        if let (Some(collector), Some(out)) = (collector, out_calibration) {
            let origin = Origin { source: contrast.source.clone(), ..Origin::default() };
            collector.finish(origin)?.save_to(out)?;
        }
        contrast.save_to(out)?;
        ui.print(&output, || {
            let head: Vec<String> = output.positions.iter().map(|p| format!("position {p}")).collect();
            let header: Vec<&str> = std::iter::once("block").chain(head.iter().map(String::as_str)).collect();
            let rows = (0..n_block).map(|block| {
                let cells = output.differences.iter().filter(|row| row.block == block);
                std::iter::once(block.to_string())
                    .chain(cells.map(|row| format!("{:.3}", row.norm)))
                    .collect()
            });
            format!(
                "length of mean(harmful) − mean(harmless), {} and {} prompts\n{}written to {}\n{}",
                output.n_harmful,
                output.n_harmless,
                table(&header, 1, rows),
                output.output,
                output.calibration.as_ref().map_or(String::new(), |path| format!("calibration in {path}\n"))
            )
        })
    }

    fn targets(&self) -> Result<Vec<Target>> {
        let file = GgufFile::open(&self.model)?;
        Ok(Target::of(&file, &ggsteer::arch::writers(&file)?))
    }
}

impl Row {
    fn of(contrast: &Contrast, position: i32, block: usize) -> Self {
        let length = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
        let difference = contrast.difference(position, block);
        let norm = dot(&difference, &difference).sqrt();
        let means = [&contrast.harmful, &contrast.harmless].map(|m| length(&m.mean(position, block)));
        Self { position, block, norm, relative: norm / (means[0] + means[1]) * 2.0 }
    }
}
