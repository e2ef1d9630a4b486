//! `ggsteer card`: what goes with a file that was made.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ggsteer::card::{Card, Kind, Run, shell};
use ggsteer::gguf::GgufFile;
use ggsteer::output::OutputFile;
use serde::Serialize;

use super::ui::Ui;

/// Says how to go on from a file that was just written.
pub fn hint(ui: Ui, written: &str) {
    ui.note(&format!("`ggsteer card {}` writes a model card for it", shell(written)));
}

/// Write a model card for a file that ggsteer made, an Ollama Modelfile, and command lines for llama.cpp
///
/// The card tells what the file says was done to it and what the runs given measured. Without -o it goes to stdout.
///
/// Example: ggsteer card out.gguf abliterate.json -o card
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// A rewritten model, a LoRA adapter or a control vector
    file: PathBuf,
    /// What evaluate, abliterate, orthogonalize or verify printed with --json
    #[arg(value_name = "RUN.json")]
    runs: Vec<PathBuf>,
    /// The repository of the model it was made from, where the file does not say
    #[arg(long, value_name = "OWNER/NAME")]
    base_model: Option<String>,
    /// A folder to write README.md and Modelfile to
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Overwrite existing outputs
    #[arg(long, requires = "output")]
    force: bool,
}

#[derive(Serialize)]
struct Output<'a> {
    file: String,
    kind: &'static str,
    base_model: &'a Option<String>,
    license: &'a Option<String>,
    chat_format: Option<&'static str>,
    stops: &'a [String],
    runs: usize,
    commands: Vec<String>,
    written: Vec<String>,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let at = || self.file.display().to_string();
        let file = GgufFile::open(&self.file).with_context(at)?;
        let runs = self.runs.iter().map(|path| Run::load(path)).collect::<Result<Vec<_>, _>>()?;
        let card = Card::new(&file, self.base_model.as_deref(), runs).with_context(at)?;
        let mut written = Vec::new();
        if let Some(folder) = &self.output {
            let texts = [("README.md", Some(card.readme())), ("Modelfile", card.modelfile())];
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            let inputs: Vec<_> =
                std::iter::once(&self.file).chain(&self.runs).map(PathBuf::as_path).collect();
            // All or none: each is tried before the first gets its name.
            let mut outputs = Vec::new();
            for (name, text) in texts.into_iter().filter_map(|(name, text)| Some((name, text?))) {
                let mut out = OutputFile::create(&folder.join(name), self.force, &inputs)?;
                out.write_all(text.as_bytes()).with_context(|| out.path().display().to_string())?;
                outputs.push(out);
            }
            for out in outputs {
                written.push(out.path().display().to_string());
                out.commit()?;
            }
        }
        let output = Output {
            file: at(),
            kind: match card.kind {
                Kind::Model(_) => "model",
                Kind::Lora { .. } => "lora",
                Kind::ControlVector { .. } => "control_vector",
            },
            base_model: &card.base_model,
            license: &card.license[0],
            chat_format: card.format,
            stops: &card.stops,
            runs: card.runs.len(),
            commands: card.commands().into_iter().map(|(_, line)| line).collect(),
            written,
        };
        if card.runs.is_empty() {
            ui.note("no runs given: the card says what was done and nothing of what was measured");
        }
        if card.base_model.is_none() {
            ui.note(
                "the file does not say which repository it is from: give it with --base-model OWNER/NAME",
            );
        }
        ui.print(&output, || match &output.written[..] {
            [] => card.readme(),
            written => format!("written: {}\n", written.join(", ")),
        })
    }
}
