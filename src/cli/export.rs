//! `ggsteer export`: the edit as files for a llama.cpp without ggsteer.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ggsteer::direction::Direction;
use ggsteer::export::ExportError;
use ggsteer::export::control_vector::{self, Mode};
use ggsteer::export::lora::{LeftOut, Lora, Reason};
use ggsteer::gguf::GgufFile;
use ggsteer::output::OutputFile;
use ggsteer::rewrite::Record;
use serde::Serialize;

use super::args::DirectionArgs;
use super::ui::{Ui, bytes, warn};

/// Write the edit as a file for stock llama.cpp: a LoRA adapter or a control vector
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Lora(LoraArgs),
    ControlVector(VectorArgs),
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        match self.what {
            What::Lora(args) => args.run(ui),
            What::ControlVector(args) => args.run(ui),
        }
    }
}

/// Write the ablation as a LoRA adapter for llama.cpp's --lora; the model's own bytes stay as they are
///
/// Example: ggsteer export lora model.gguf --direction direction.gguf -o ablate.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct LoraArgs {
    /// The model
    model: PathBuf,
    #[command(flatten)]
    directions: DirectionArgs,
    /// Where to write the adapter
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite an existing output
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct LoraOutput<'a> {
    model: String,
    output: String,
    directions: Vec<String>,
    #[serde(flatten)]
    lora: &'a Lora,
    file_size: u64,
}

impl LoraArgs {
    fn run(self, ui: Ui) -> Result<()> {
        let at = || self.model.display().to_string();
        let file = GgufFile::open(&self.model).with_context(at)?;
        // Of a split model, each part.
        let inputs: Vec<&Path> = file.paths().into_iter().chain(self.directions.paths()).collect();
        let out = OutputFile::create(&self.output, self.force, &inputs)?;
        let directions = self.directions.load(&file)?;
        let vectors: Vec<Vec<f32>> = directions.iter().map(|d| d.vector.clone()).collect();
        let lora = Lora::new(&file, &vectors).with_context(at)?;
        let bar = ui.progress(lora.tensors.len(), "projecting");
        let keys = Record::new("lora", &file, &directions).keys();
        let written = lora.write(&file, out, &keys, &mut || bar.inc(1));
        written.map_err(|error| match error {
            // Names the output, and the input is not to blame.
            ExportError::Output(_) | ExportError::Write(_) => error.into(),
            _ => anyhow::Error::from(error).context(at()),
        })?;
        bar.finish_and_clear();
        if !lora.left_out.is_empty() {
            warn(&left_out(&lora.left_out));
        }
        let output = LoraOutput {
            model: at(),
            output: self.output.display().to_string(),
            directions: self.directions.names(),
            file_size: std::fs::metadata(&self.output).map_or(0, |m| m.len()),
            lora: &lora,
        };
        ui.print(&output, || {
            format!(
                "rank {}, {} tensors carried, {} left out; {} written to {}\n",
                lora.rank,
                lora.tensors.len(),
                lora.left_out.len(),
                bytes(output.file_size),
                output.output
            )
        })
    }
}

/// Which writers an adapter leaves as they are, and what that means.
fn left_out(all: &[LeftOut]) -> String {
    let mut words = format!(
        "{} writers are not in the adapter: what they write along the direction stays in the stream, so the model \
         behaves like a partial ablation (`ggsteer orthogonalize` edits them too):",
        all.len()
    );
    let mut reasons: Vec<Reason> = Vec::new();
    for LeftOut { reason, .. } in all {
        if !reasons.contains(reason) {
            reasons.push(*reason);
        }
    }
    for reason in reasons {
        let tensors: Vec<&str> =
            all.iter().filter(|l| l.reason == reason).map(|l| l.tensor.as_str()).collect();
        words += &format!("\n  {reason}: {}", tensors.join(", "));
    }
    words
}

/// Write a direction as a control vector, to be added (llama.cpp's --control-vector) or projected out (other hosts)
///
/// Example: ggsteer export control-vector direction.gguf --additive --scale -1 -o vector.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
struct VectorArgs {
    /// The direction
    direction: PathBuf,
    /// Which block's direction to take from a file that holds several
    #[arg(long, value_name = "IL")]
    block: Option<usize>,
    /// To be added at the output of its block: what stock llama.cpp does
    #[arg(long, required_unless_present = "projective", conflicts_with = "projective")]
    additive: bool,
    /// To be taken out of the stream: what stock llama.cpp cannot do
    #[arg(long)]
    projective: bool,
    /// Strength: multiplied in where the vector is added, kept as glp.alpha_default where it is projected out
    #[arg(long, value_name = "C", default_value_t = 1.0, allow_negative_numbers = true)]
    scale: f32,
    /// Where to write the control vector
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Overwrite an existing output
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct VectorOutput {
    direction: String,
    output: String,
    mode: Mode,
    block: usize,
    scale: f32,
    n_embd: usize,
    norm: f64,
}

impl VectorArgs {
    fn run(self, ui: Ui) -> Result<()> {
        let out = OutputFile::create(&self.output, self.force, &[&self.direction])?;
        let at = || self.direction.display().to_string();
        let direction = Direction::load(&self.direction, self.block).with_context(at)?;
        let mode = if self.additive { Mode::Add } else { Mode::Project };
        let vector = control_vector::convert(&direction, mode, self.scale).with_context(at)?;
        let (block, norm) = (vector.block, vector.norm());
        vector.save_to(out)?;
        match mode {
            Mode::Add => ui.note(&format!(
                "llama.cpp --control-vector adds it to the output of block {block} at every token, the prompt's \
                 included; a positive scale pushes toward the behaviour, a negative one away from it"
            )),
            Mode::Project => warn(
                "stock llama.cpp only adds: loaded with --control-vector this file pushes TOWARD the behaviour. It is \
                 for programs that read glp.mode, as llama.cpp with the patches in patches/; for stock llama.cpp take \
                 `ggsteer export lora`",
            ),
        }
        let output = VectorOutput {
            direction: at(),
            output: self.output.display().to_string(),
            mode,
            block,
            scale: self.scale,
            n_embd: direction.vector.len(),
            norm,
        };
        ui.print(&output, || {
            let verb = if mode == Mode::Add { "added at" } else { "projected out, measured at" };
            format!("{verb} the output of block {block}, length {norm:.3}; written to {}\n", output.output)
        })
    }
}
