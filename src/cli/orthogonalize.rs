//! `ggsteer orthogonalize`: the direction out of the weights, for good.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ggsteer::gguf::GgufFile;
use ggsteer::output::OutputFile;
use ggsteer::rewrite::{Report, Tied};
use serde::Serialize;

use super::args::DirectionArgs;
use super::steps::{self, leak_table};
use super::ui::{Ui, bytes};

/// Write a new model whose residual writers are orthogonal to the direction; every tensor keeps its type
///
/// Example: ggsteer orthogonalize model.gguf --direction direction.gguf -o out.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    directions: DirectionArgs,
    /// What to do with a token embedding that is the output head too
    #[arg(long, value_enum, default_value_t = TiedArg::Edit)]
    tied: TiedArg,
    /// Where to write the new model
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Overwrite an existing output
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum TiedArg {
    /// Edit it: the head loses the direction too (as published)
    Edit,
    /// Keep the original as output.weight and edit the embedding: equals the run-time ablation
    Untie,
    /// Leave it as it is
    Skip,
}

impl From<TiedArg> for Tied {
    fn from(arg: TiedArg) -> Self {
        match arg {
            TiedArg::Edit => Self::Edit,
            TiedArg::Untie => Self::Untie,
            TiedArg::Skip => Self::Skip,
        }
    }
}

#[derive(Serialize)]
struct Output<'a> {
    model: String,
    output: String,
    directions: Vec<String>,
    tied_embeddings: bool,
    tied: Tied,
    #[serde(flatten)]
    report: &'a Report,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let mut inputs: Vec<&std::path::Path> = vec![&self.model];
        inputs.extend(self.directions.paths());
        let out = OutputFile::create(&self.output, self.force, &inputs)?;
        let at = || self.model.display().to_string();
        let directions = self.directions.load(&GgufFile::open(&self.model).with_context(at)?)?;
        let (plan, report) = steps::orthogonalize(ui, &self.model, &directions, self.tied.into(), out)?;
        let output = Output {
            model: at(),
            output: report.files[0].display().to_string(),
            directions: self.directions.names(),
            tied_embeddings: plan.tied_embeddings,
            tied: plan.tied,
            report: &report,
        };
        ui.print(&output, || {
            let tied = if plan.tied_embeddings {
                format!(", tied embedding: {:?}", plan.tied)
            } else {
                String::new()
            };
            format!(
                "{}{} tensors rewritten, {} byte-identical{tied}; largest leak {:.5}; {} written to {}\n",
                leak_table(&report),
                report.n_edited,
                report.n_untouched,
                report.max_leak,
                bytes(report.file_size),
                output.output
            )
        })
    }
}
