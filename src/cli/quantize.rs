//! `ggsteer quantize`: llama.cpp's own quantizer.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ggsteer::calibration::Imatrix;
use ggsteer::gguf::{GgufFile, ModelSummary, TypeCount};
use ggsteer::output::OutputFile;
use ggsteer::runtime::{FileType, QuantizeOptions, quantize};
use serde::Serialize;

use super::ui::{Ui, bytes, table, warn};

/// Quantize a model with llama.cpp's own quantizer, which chooses the type of each tensor
///
/// Example: ggsteer quantize model-f16.gguf --type Q4_K_M -o model-q4.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model, best in full precision
    model: PathBuf,
    /// llama.cpp's name of the quantization: Q8_0, Q6_K, Q5_K_M, Q4_K_M, Q4_0, IQ4_XS, Q3_K_M, Q2_K, IQ2_M, …
    #[arg(long = "type", value_name = "TYPE")]
    file_type: String,
    /// Where to write the quantized model
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Importance matrix of llama-imatrix; the smallest types need one
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Quantize tensors that are quantized already, too: their errors add up
    #[arg(long)]
    allow_requantize: bool,
    /// The same type for every matrix, in place of llama.cpp's mixture
    #[arg(long)]
    pure: bool,
    /// Threads [default: all]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true,
        value_parser = clap::value_parser!(u16).range(0..=512))]
    threads: u16,
    /// Overwrite an existing output
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Output {
    model: String,
    output: String,
    r#type: &'static str,
    imatrix: Option<String>,
    before: Size,
    after: Size,
}

/// What a file takes.
#[derive(Serialize)]
struct Size {
    file_size: u64,
    bits_per_weight: f64,
    types: Vec<TypeCount>,
}

impl Size {
    fn of(file: &GgufFile) -> Result<Self> {
        let summary = ModelSummary::new(file)?;
        let all: u64 = summary.types.iter().map(|t| t.bytes).sum();
        let bits_per_weight = 8.0 * all as f64 / summary.n_parameters.max(1) as f64;
        Ok(Self { file_size: summary.file_size, bits_per_weight, types: summary.types })
    }
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let file_type = FileType::from_name(&self.file_type).context("--type")?;
        let at = || self.model.display().to_string();
        let file = GgufFile::open(&self.model).with_context(at)?;
        // Of a split model, each part.
        let inputs: Vec<&Path> = file.paths().into_iter().chain(self.imatrix.as_deref()).collect();
        let out = OutputFile::create(&self.output, self.force, &inputs)?;
        let before = Size::of(&file).with_context(at)?;
        let imatrix = self.imatrix.as_deref().map(Imatrix::load).transpose()?;
        let importance: Option<Vec<(&str, &[f32])>> = imatrix.as_ref().map(|i| i.entries().collect());
        if let (Some(importance), Some(path)) = (&importance, &self.imatrix) {
            check(importance, &file).with_context(|| path.display().to_string())?;
        }
        let options = QuantizeOptions {
            n_threads: self.threads.into(),
            allow_requantize: self.allow_requantize,
            pure: self.pure,
            importance: importance.as_deref(),
        };
        ui.note(&format!("quantizing {} ({}) to {}", at(), bytes(before.file_size), file_type.name));
        quantize(&self.model, out.temporary(), file_type, &options)?;
        let path = || self.output.display().to_string();
        let written = GgufFile::open(out.temporary()).with_context(path)?;
        let after = Size::of(&written).with_context(path)?;
        out.commit()?;
        let quantized = before.types.iter().any(|t| !matches!(t.r#type.as_str(), "f32" | "f16" | "bf16"));
        if self.allow_requantize && quantized {
            warn(
                "the model was quantized already: the errors of both add up; full precision makes a better file",
            );
        }
        let output = Output {
            model: at(),
            output: path(),
            r#type: file_type.name,
            imatrix: self.imatrix.as_ref().map(|p| p.display().to_string()),
            before,
            after,
        };
        ui.print(&output, || describe(&output))
    }
}

/// Whether the importance matrix is for this model: every tensor that both have is as wide in both, and there is one.
fn check(importance: &[(&str, &[f32])], file: &GgufFile) -> Result<()> {
    let mut known = 0;
    for (name, values) in importance {
        let Some(tensor) = file.tensor(name) else { continue };
        let expected = tensor.ne[0] * tensor.ne[2];
        anyhow::ensure!(
            values.len() as u64 == expected,
            "importance of tensor {name:?} has {} values, the model's needs {expected}: made for another model",
            values.len()
        );
        known += 1;
    }
    anyhow::ensure!(known > 0, "has no tensor of the model: made for another model");
    Ok(())
}

fn describe(output: &Output) -> String {
    let mut names: Vec<&str> = Vec::new();
    for count in output.before.types.iter().chain(&output.after.types) {
        if !names.contains(&count.r#type.as_str()) {
            names.push(&count.r#type);
        }
    }
    let of = |size: &Size, name: &str| match size.types.iter().find(|t| t.r#type == name) {
        Some(count) => [count.tensors.to_string(), bytes(count.bytes)],
        None => ["–".to_string(), "–".to_string()],
    };
    let rows = names.into_iter().map(|name| {
        let mut row = vec![name.to_string()];
        row.extend(of(&output.before, name));
        row.extend(of(&output.after, name));
        row
    });
    let (before, after) = (&output.before, &output.after);
    format!(
        "{}{:.2} → {:.2} bits a weight, {} → {}; written to {}\n",
        table(&["type", "before", "size", "after", "size"], 1, rows),
        before.bits_per_weight,
        after.bits_per_weight,
        bytes(before.file_size),
        bytes(after.file_size),
        output.output
    )
}
