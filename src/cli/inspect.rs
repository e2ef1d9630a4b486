//! `ggsteer inspect`: what a model file is, and which of its tensors write the residual stream.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ggsteer::arch::{self, Writer};
use ggsteer::gguf::{GgufFile, ModelSummary};
use serde::Serialize;

use super::ui::{Ui, bytes, table};

/// Show a model's metadata, types, sizes, and every tensor that writes the residual stream
///
/// Example: ggsteer inspect model.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
}

#[derive(Serialize)]
struct Output {
    model: String,
    fingerprint: String,
    #[serde(flatten)]
    summary: ModelSummary,
    writers: Vec<Row>,
    /// Why the writers cannot be told.
    writers_error: Option<String>,
}

#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    writer: Writer,
    r#type: String,
    shape: Vec<u64>,
    bytes: u64,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let file = GgufFile::open(&self.model).with_context(|| self.model.display().to_string())?;
        let summary = ModelSummary::new(&file).with_context(|| self.model.display().to_string())?;
        let (writers, writers_error) = match arch::writers(&file) {
            Ok(writers) => (writers, None),
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        let row = |writer: Writer| {
            let info = file.tensor(&writer.tensor)?;
            let shape = info.shape().to_vec();
            Some(Row { r#type: info.ty.to_string(), shape, bytes: info.bytes, writer })
        };
        let output = Output {
            model: self.model.display().to_string(),
            fingerprint: ggsteer::gguf::fingerprint(&file),
            writers: writers.into_iter().filter_map(row).collect(),
            writers_error,
            summary,
        };
        ui.print(&output, || describe(&output))
    }
}

fn describe(output: &Output) -> String {
    let s = &output.summary;
    let known = |n: Option<u64>| n.map_or("unknown".to_string(), |n| n.to_string());
    let yes = |b: bool| if b { "yes" } else { "no" }.to_string();
    let facts = [
        ("model", output.model.clone()),
        ("name", s.name.clone().unwrap_or_else(|| "none".into())),
        ("architecture", s.architecture.clone()),
        ("blocks × width", format!("{} × {}", s.n_block, s.n_embd)),
        ("vocabulary", known(s.n_vocab)),
        ("trained context", known(s.n_ctx_train)),
        ("parameters", format!("{:.2} M", s.n_parameters as f64 / 1e6)),
        ("file", format!("{}, GGUF v{}", bytes(s.file_size), s.gguf_version)),
        ("chat template", yes(s.has_chat_template)),
        ("tied embeddings", yes(s.tied_embeddings)),
        ("fingerprint", output.fingerprint.clone()),
    ];
    let mut text: String = facts.iter().map(|(name, value)| format!("{name:<17}{value}\n")).collect();
    text += "\n";
    let types = s.types.iter().map(|t| vec![t.r#type.clone(), t.tensors.to_string(), bytes(t.bytes)]);
    text += &table(&["type", "tensors", "size"], 1, types);
    text += "\nwriters of the residual stream\n";
    if let Some(error) = &output.writers_error {
        return text + "unknown: " + error + "\n";
    }
    let rows = output.writers.iter().map(|row| {
        let through = row.writer.norm_after.clone().unwrap_or_else(|| "–".into());
        let shape = row.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ");
        vec![
            row.writer.tensor.clone(),
            row.writer.kind.to_string(),
            through,
            row.r#type.clone(),
            shape,
            bytes(row.bytes),
        ]
    });
    text + &table(&["tensor", "kind", "norm after", "type", "shape", "size"], 4, rows)
}
