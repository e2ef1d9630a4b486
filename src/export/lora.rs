//! The ablation as a low-rank adapter for llama.cpp's `--lora`.
//!
//! llama.cpp computes Wx + (alpha / rank)·s·B(Ax), s being the scale it is loaded with. With A = RᵀW, B = −R and alpha =
//! rank, that is W'x at s = 1: exact on the quantized bytes as they are, reversible, and as small as k rows and k columns
//! a matrix. Tensors `NAME.lora_a` have ne = [n_in, k(, n_expert)], `NAME.lora_b` ne = [k, n_out(, n_expert)]. A token
//! embedding is looked up, not multiplied, and has the two the other way round: `lora_a` holds W R, one row a token.
//!
//! An adapter has no place for biases and learned positions, llama.cpp multiplies a few matrices without adapters, and
//! it stops the process on an adapter for a token embedding that is the output matrix too: [`Lora::left_out`] names each
//! writer that stays as it is.
//!
//! ```
//! use ggsteer::export::lora::Lora;
//! use ggsteer::gguf::GgufFile;
//!
//! let file = GgufFile::open(concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples/lorekeeper-7m-f16.gguf"))?;
//! let lora = Lora::new(&file, &[vec![1.0; 256]])?;
//! assert_eq!((lora.rank, lora.tensors.len(), lora.left_out.len()), (1, 17, 0));
//! # Ok::<(), ggsteer::export::ExportError>(())
//! ```
#![forbid(unsafe_code)]

use std::io::Write;

use serde::Serialize;

use super::ExportError;
use crate::arch::{self, Axis, Writer};
use crate::gguf::{self, Array, GgufFile, TensorInfo, TensorStream, Value};
use crate::output::OutputFile;
use crate::quant::GgmlType;
use crate::rewrite::{Rows, orthonormal, seen_by};

/// Architectures in which llama.cpp multiplies these writers without adapters, in some blocks or all: read in its graph
/// code.
const WITHOUT_ADAPTERS: &[(&str, &[&str])] = &[
    ("bailingmoe3", &["attn_output.weight"]),
    ("glm5-next", &["attn_output.weight"]),
    ("granite-switch", &["token_embd.weight"]),
    ("kimi-k3", &["attn_output.weight", "ffn_down.weight", "ffn_down_shexp.weight", "ffn_routed_up.weight"]),
    ("kimi-linear", &["attn_output.weight"]),
    ("nemotron_h", &["ffn_latent_up.weight"]),
    ("nemotron_h_moe", &["ffn_latent_up.weight"]),
];

/// Architectures in which the attention output's own scale comes after the adapter, not before it.
const SCALED_AFTER: &[&str] = &["glm4", "glm4moe", "jais2"];

/// Why a writer is not in an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Adapters have matrices alone.
    Bias,
    /// Rows that llama.cpp looks up without adapters.
    LookedUp,
    /// Also the output matrix: llama.cpp would stop the process.
    Tied,
    /// A matrix that llama.cpp multiplies without adapters.
    WithoutAdapters,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Bias => "a bias, which no adapter can carry",
            Self::LookedUp => "rows that llama.cpp looks up without adapters",
            Self::Tied => "the output matrix too, where llama.cpp would stop the process on an adapter",
            Self::WithoutAdapters => "a matrix that llama.cpp multiplies without adapters",
        })
    }
}

/// A writer that stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOut {
    /// The tensor.
    pub tensor: String,
    /// Why.
    pub reason: Reason,
}

/// An adapter that can be written: made by [`Lora::new`], written by [`Lora::write`].
#[derive(Debug, Serialize)]
pub struct Lora {
    /// `general.architecture` of the model.
    pub architecture: String,
    /// k: directions, after orthonormalisation.
    pub rank: usize,
    /// Tensors that it carries, embeddings first, then block by block.
    pub tensors: Vec<String>,
    /// Writers that it cannot carry: what they write along the directions stays in the stream.
    pub left_out: Vec<LeftOut>,
    #[serde(skip)]
    writers: Vec<Writer>,
    #[serde(skip)]
    basis: Vec<Vec<f64>>,
}

impl Lora {
    /// Plans an adapter that erases the span of `directions` (each n_embd) from the writers of `file`.
    ///
    /// # Errors
    /// Directions that do not fit the model or each other; a file whose writers cannot all be told, or none of whose
    /// writers can be carried.
    pub fn new(file: &GgufFile, directions: &[Vec<f32>]) -> Result<Self, ExportError> {
        if directions.is_empty() {
            return Err(ExportError::NoDirection);
        }
        let architecture = file.arch()?.to_string();
        let n_embd = file.get_u64(&format!("{architecture}.embedding_length"))? as usize;
        let basis = orthonormal(directions, n_embd)?;
        let tied = arch::tied_embeddings(file);
        let mut lora = Self {
            architecture,
            rank: basis.len(),
            tensors: Vec::new(),
            left_out: Vec::new(),
            writers: Vec::new(),
            basis,
        };
        for writer in arch::writers(file)? {
            let tensor = writer.tensor.clone();
            if let Some(reason) = lora.obstacle(&writer, tied) {
                lora.left_out.push(LeftOut { tensor, reason });
                continue;
            }
            let found = tensor.len() + ".lora_a".len();
            if found >= 64 {
                return Err(ExportError::Name { tensor, found });
            }
            lora.tensors.push(tensor);
            lora.writers.push(writer);
        }
        if lora.tensors.is_empty() {
            return Err(ExportError::Nothing { left_out: lora.left_out.len() });
        }
        Ok(lora)
    }

    fn obstacle(&self, writer: &Writer, tied: bool) -> Option<Reason> {
        let without = WITHOUT_ADAPTERS.iter().find(|(arch, _)| *arch == self.architecture);
        let base = writer.tensor.strip_prefix("blk.").and_then(|name| name.split_once('.'));
        let base = base.map_or(writer.tensor.as_str(), |(_, base)| base);
        match writer.axis {
            Axis::Bias => Some(Reason::Bias),
            // One row an expert.
            Axis::Row if writer.kind.group() == "bias" => Some(Reason::Bias),
            _ if without.is_some_and(|(_, names)| names.contains(&base)) => Some(Reason::WithoutAdapters),
            Axis::Row if writer.tensor != "token_embd.weight" => Some(Reason::LookedUp),
            Axis::Row if tied => Some(Reason::Tied),
            Axis::Row | Axis::Output => None,
        }
    }

    /// Writes the adapter of `file` with `provenance` among its keys, whole or not at all. `step` is called after each
    /// tensor. Memory: k rows of one matrix, or k numbers a token, beside the map.
    ///
    /// # Errors
    /// Weights that are not finite or of a type that cannot be decoded; an output that cannot be written.
    pub fn write(
        &self,
        file: &GgufFile,
        mut out: OutputFile,
        provenance: &[(String, Value)],
        step: &mut dyn FnMut(),
    ) -> Result<(), ExportError> {
        let left_out = self.left_out.iter().map(|l| l.tensor.clone()).collect();
        let mut plan = gguf::Writer::new()
            .key("general.type", "adapter")
            .key("general.architecture", self.architecture.as_str())
            .key("adapter.type", "lora")
            .key("adapter.lora.alpha", self.rank as f32)
            .key("ggsteer.lora.left_out", Array::String(left_out));
        for (key, value) in provenance {
            plan = plan.key(key.as_str(), value.clone());
        }
        let mut matrices = Vec::new();
        for writer in &self.writers {
            // Every writer is a tensor of its file.
            let Some(info) = file.tensor(&writer.tensor) else { continue };
            let (k, [n, rows, slices, _]) = (self.rank as u64, info.ne);
            let [a, b] = match writer.axis {
                Axis::Output => [vec![n, k, slices], vec![k, rows, slices]],
                Axis::Row | Axis::Bias => [vec![k, rows], vec![k, n]],
            };
            for (half, mut ne) in [("lora_a", a), ("lora_b", b)] {
                // As llama.cpp's own converter writes them: three dimensions for experts alone.
                if info.n_dims < 3 {
                    ne.truncate(2);
                }
                plan = plan.tensor(format!("{}.{half}", info.name), &ne, GgmlType::F32);
            }
            matrices.push((writer, info));
        }
        let mut stream = plan.start(&mut out)?;
        for (writer, info) in matrices {
            self.matrix(file, writer, info, &mut stream)?;
            step();
        }
        stream.finish()?.flush()?;
        Ok(out.commit()?)
    }

    /// The two halves for one tensor.
    fn matrix(
        &self,
        file: &GgufFile,
        writer: &Writer,
        info: &TensorInfo,
        stream: &mut TensorStream<&mut OutputFile>,
    ) -> Result<(), ExportError> {
        let mut basis = seen_by(file, writer, &self.basis)?.into_owned();
        // A direction that a norm lets nothing of through: zeros keep the rank that the scale is reckoned by.
        basis.resize(self.rank, vec![0.0; basis.first().map_or(0, Vec::len)]);
        let slices = Rows::slices(file, info, writer.axis);
        let scales = self.scales(file, writer, slices.len())?;
        for (rows, scale) in slices.iter().zip(&scales) {
            if writer.axis == Axis::Output {
                for along in rows.project(&basis)? {
                    stream.data(&bytes(along.iter().map(|x| x * scale)))?;
                }
                continue;
            }
            let along = |_, w: Vec<f32>| {
                let dots = w.chunks_exact(rows.n).flat_map(|w| basis.iter().map(|r| mixed_dot(w, r)));
                Ok(bytes(dots))
            };
            rows.each(along, |bytes| Ok(stream.data(&bytes)?))?;
        }
        let columns = basis.first().map_or(0, Vec::len);
        let minus: Vec<u8> = bytes((0..columns).flat_map(|j| basis.iter().map(move |r| -r[j])));
        slices.iter().try_for_each(|_| stream.data(&minus))?;
        Ok(())
    }

    /// What llama.cpp multiplies each slice's product with before the adapter is added: 1 where there is no such tensor.
    fn scales(&self, file: &GgufFile, writer: &Writer, slices: usize) -> Result<Vec<f64>, ExportError> {
        let after = writer.tensor.ends_with("attn_output.weight")
            && SCALED_AFTER.contains(&self.architecture.as_str());
        let name = writer.tensor.strip_suffix("weight").map(|base| format!("{base}scale"));
        let scale =
            name.and_then(|name| file.tensor(&name)).filter(|_| !after && writer.axis == Axis::Output);
        let Some(info) = scale else { return Ok(vec![1.0; slices]) };
        let mut values = Vec::new();
        for rows in Rows::slices(file, info, Axis::Bias) {
            values.extend(rows.decode(0, rows.rows)?.into_iter().map(f64::from));
        }
        // One for all slices, or one each.
        Ok((0..slices).map(|i| values.get(i).or(values.last()).copied().unwrap_or(1.0)).collect())
    }
}

fn mixed_dot(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * y).sum()
}

fn bytes(values: impl Iterator<Item = f64>) -> Vec<u8> {
    values.flat_map(|x| (x as f32).to_le_bytes()).collect()
}
