//! `ggsteer inspect`: what a model file is, and which of its tensors write the residual stream.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use ggsteer::arch::{self, Coverage, Gap, Writer};
use ggsteer::gguf::{GgufFile, ModelSummary};
use serde::Serialize;

use super::ui::{Ui, bytes, table};

/// Show a model's metadata, types, sizes, and what writes the residual stream, block by block
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
    /// The writers that have a place: all of them where `writers_error` is null.
    writers: Vec<Row>,
    /// Why there may be more writers, or why none can be told.
    writers_error: Option<String>,
    missing: Vec<Gap>,
    misshapen: Vec<Gap>,
    unplaced: Vec<Gap>,
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
        let (coverage, problem) = match arch::coverage(&file) {
            Ok(coverage) => {
                let problem = coverage.problem();
                (coverage, problem)
            }
            Err(error) => (Coverage::default(), Some(error)),
        };
        let row = |writer: Writer| {
            let info = file.tensor(&writer.tensor)?;
            let shape = info.shape().to_vec();
            Some(Row { r#type: info.ty.to_string(), shape, bytes: info.bytes, writer })
        };
        let Coverage { writers, missing, misshapen, unplaced, .. } = coverage;
        let output = Output {
            model: self.model.display().to_string(),
            fingerprint: ggsteer::gguf::fingerprint(&file),
            writers: writers.into_iter().filter_map(row).collect(),
            writers_error: problem.map(|problem| problem.to_string()),
            missing,
            misshapen,
            unplaced,
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
    if !output.writers.is_empty() {
        text += &coverage_table(output);
    }
    match &output.writers_error {
        Some(error) => text + "incomplete: " + error + "\n",
        None => text + "complete: every tensor that could write the stream has its place\n",
    }
}

/// What one block, or the model outside its blocks, writes the stream through: a row of the table.
#[derive(Default, PartialEq)]
struct Cells {
    attention: Vec<String>,
    ffn: Vec<String>,
    other: Vec<String>,
    biases: Vec<String>,
    norms: Vec<String>,
    gaps: Vec<String>,
}

/// A row for what stands outside the blocks, and one for all blocks that are alike.
fn coverage_table(output: &Output) -> String {
    // Block `None` is the outside, and first.
    let mut blocks: BTreeMap<Option<usize>, (Cells, u64)> = BTreeMap::new();
    for Row { writer, bytes, .. } in &output.writers {
        let (cells, sum) = blocks.entry(writer.block).or_default();
        *sum += bytes;
        let cell = match writer.kind.group() {
            "bias" => &mut cells.biases,
            "attention" => &mut cells.attention,
            "ffn" | "experts" => &mut cells.ffn,
            _ => &mut cells.other,
        };
        cell.push(short(&writer.tensor));
        for norm in writer.norms().map(short) {
            if !cells.norms.contains(&norm) {
                cells.norms.push(norm);
            }
        }
    }
    let gaps = [("no ", &output.missing), ("misshapen ", &output.misshapen), ("", &output.unplaced)];
    for (word, gap) in gaps.iter().flat_map(|(word, gaps)| gaps.iter().map(move |gap| (word, gap))) {
        let (cells, _) = blocks.entry(gap.block).or_default();
        let names: Vec<String> = gap.tensor.split(" or ").map(short).collect();
        cells.gaps.push(format!("{word}{}", names.join(" or ")));
    }

    let mut rows: Vec<(Vec<Option<usize>>, Cells, u64)> = Vec::new();
    for (block, (cells, bytes)) in blocks {
        match rows
            .iter_mut()
            .find(|(alike, other, _)| alike[0].is_some() == block.is_some() && *other == cells)
        {
            Some((alike, _, sum)) => {
                alike.push(block);
                *sum += bytes;
            }
            None => rows.push((vec![block], cells, bytes)),
        }
    }
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(alike, cells, bytes_of_all)| {
            let mut row = vec![ranges(&alike)];
            let lists = [cells.attention, cells.ffn, cells.other, cells.biases, cells.norms, cells.gaps];
            row.extend(lists.map(|names| names.join("\n")));
            row.push(bytes(bytes_of_all));
            row
        })
        .collect();
    let header = ["block", "attention", "FFN", "other", "bias", "norm after", "not placed", "size"];
    // A column in which nothing stands is left out.
    let kept: Vec<usize> = (0..header.len()).filter(|i| rows.iter().any(|row| !row[*i].is_empty())).collect();
    let cell = |text: &str| if text.is_empty() { "–".into() } else { text.to_string() };
    let rows = rows.iter().map(|row| kept.iter().map(|i| cell(&row[*i])).collect());
    table(&kept.iter().map(|i| header[*i]).collect::<Vec<_>>(), kept.len() - 1, rows)
}

/// A tensor's name without its block and without `.weight` and `.bias`.
fn short(name: &str) -> String {
    let behind =
        name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, rest)| rest);
    let bare = behind.strip_suffix(".weight").or_else(|| behind.strip_suffix(".bias"));
    bare.unwrap_or(behind).to_string()
}

/// Ascending blocks as people write them, a line for each five: `0–3, 5, 7–31`.
fn ranges(blocks: &[Option<usize>]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for block in blocks.iter().flatten() {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *block => *last = *block,
            _ => runs.push((*block, *block)),
        }
    }
    let runs: Vec<String> =
        runs.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}–{b}") }).collect();
    let lines: Vec<String> = runs.chunks(5).map(|line| line.join(", ")).collect();
    if lines.is_empty() { "outside".into() } else { lines.join(",\n") }
}
