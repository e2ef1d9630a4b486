//! What will change, as a printable value.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt;

use serde::Serialize;

use super::basis::{self, Basis};
use super::{PlannedAddition, RewriteError, Rows, Scope, ScopeError};
use crate::arch::{self, Axis, Head, Writer, WriterKind};
use crate::gguf::GgufFile;
use crate::quant::{CodecError, GgmlType, Grid};

/// What to do with a token embedding that is also the output matrix.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Tied {
    /// Edit it, the output with it: as published.
    #[default]
    Edit,
    /// Edit it and write the original as `output.weight`: equals the ablation at run time.
    Untie,
    /// Leave it as it is.
    Skip,
}

/// Choices in making a plan. By default every writer of a file whose writers can all be told gets all of the edit and
/// keeps its type.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Options {
    /// For files whose embedding is tied; without effect on others.
    pub tied: Tied,
    /// Edit what can be placed where the writers cannot all be told: a direction then stays in the stream in part.
    pub partial: bool,
    /// Which writers, and how much of the edit each gets.
    pub scope: Scope,
    /// Scale each column of a matrix, and each row of an embedding, back to the length it had: what is written stays
    /// without the directions (a scaled row of the matrix would not), and as large as it was. Biases are left out.
    pub preserve_norm: bool,
    /// The type of quantized writers in the new file, where it has more bits than their own.
    pub upcast: Option<GgmlType>,
}

/// A tensor that will be edited: W' = W − s·R(RᵀW).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedTensor {
    /// How it writes the stream.
    pub writer: Writer,
    /// Its type in the file.
    pub r#type: GgmlType,
    /// Its type in the new file.
    pub out_type: GgmlType,
    /// Its shape.
    pub ne: [u64; 4],
    /// Its bytes in the file.
    pub bytes: u64,
    /// s: above 0, and 1 for all of the edit.
    pub strength: f64,
    /// Whether its columns (of an embedding its rows) get their lengths back, see [`Options::preserve_norm`].
    pub preserve_norm: bool,
}

impl PlannedTensor {
    /// Its bytes in the new file.
    #[must_use]
    pub fn out_bytes(&self) -> u64 {
        let rows: u64 = self.ne[1..].iter().product();
        self.out_type.row_size(self.ne[0]).map_or(self.bytes, |row| row * rows)
    }

    /// Whether it will be rounded to a type of few values, with inputs to be right on: a quantized matrix. Embeddings
    /// and biases have no input.
    #[must_use]
    pub fn needs_calibration(&self) -> bool {
        self.writer.axis == Axis::Output && is_quantized(self.out_type)
    }

    /// Whether its type in the new file holds few values.
    #[must_use]
    pub fn is_quantized(&self) -> bool {
        is_quantized(self.out_type)
    }

    /// Whether its type in the new file has no codes that could be moved one at a time: it is encoded anew, by the
    /// importance of its inputs.
    #[must_use]
    pub fn is_encoded_anew(&self) -> bool {
        is_quantized(self.out_type) && Grid::of(self.out_type).is_none()
    }
}

/// Whether a type holds few values.
fn is_quantized(ty: GgmlType) -> bool {
    ![GgmlType::F32, GgmlType::F16, GgmlType::BF16].contains(&ty)
}

/// Whether `a` takes more bits for an element than `b`.
fn has_more_bits(a: GgmlType, b: GgmlType) -> bool {
    a.type_size() * b.block_size() > b.type_size() * a.block_size()
}

/// A rewrite that can be done: made by [`Plan::new`], printed by `Display`, done by [`execute`](super::execute).
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The architecture; empty when there is nothing to do.
    pub architecture: String,
    /// Directions, after orthonormalisation.
    pub rank: usize,
    /// Tensors to edit: embeddings first, then block by block.
    pub tensors: Vec<PlannedTensor>,
    /// Constants to add, see [`Plan::add`].
    pub additions: Vec<PlannedAddition>,
    /// Whether the embedding is also the output matrix.
    pub tied_embeddings: bool,
    /// What is done about that.
    pub tied: Tied,
    /// Why these may not be all writers, where a partial edit was asked for and the file makes it one.
    pub partial: Option<String>,
    /// Tensors in the file.
    pub n_tensors: usize,
    /// Orthonormal directions, rank × n_embd.
    #[serde(skip)]
    pub(super) basis: Basis,
}

impl Plan {
    /// Plans to write `directions` (each n_embd long, of any length above zero, linearly independent) out of the
    /// writers of `file`. No directions make a plan that changes nothing, for any file.
    ///
    /// # Errors
    /// Directions that do not fit the model or each other; a file whose writers cannot all be told, without
    /// [`Options::partial`]; a scope that does not fit the model, or in which no writer is; a writer whose type cannot be
    /// written, or whose rows are no whole blocks of the type it is to get.
    pub fn new(file: &GgufFile, directions: &[Vec<f32>], options: Options) -> Result<Self, RewriteError> {
        let Options { tied, partial, scope, preserve_norm, upcast } = options;
        let mut plan = Self {
            architecture: String::new(),
            rank: 0,
            tensors: Vec::new(),
            additions: Vec::new(),
            tied_embeddings: arch::tied_embeddings(file),
            tied,
            partial: None,
            n_tensors: file.tensors().len(),
            basis: Basis::new(),
        };
        if directions.is_empty() {
            return Ok(plan);
        }
        let coverage = arch::coverage(file)?;
        match coverage.problem() {
            Some(problem) if !partial => return Err(problem.into()),
            problem => plan.partial = problem.map(|problem| problem.to_string()),
        }
        plan.architecture = coverage.architecture;
        let n_embd = file.get_u64(&format!("{}.embedding_length", plan.architecture))? as usize;
        plan.basis = basis::orthonormal(directions, n_embd)?;
        plan.rank = plan.basis.len();
        scope.check(coverage.n_block)?;
        let n_writers = coverage.writers.len();
        for writer in coverage.writers {
            let strength = scope.strength(&writer);
            let is_head = writer.kind == WriterKind::TokenEmbedding && plan.tied_embeddings;
            if strength == 0.0 || is_head && tied == Tied::Skip {
                if is_head {
                    plan.tied = Tied::Skip;
                }
                continue;
            }
            plan.tensors.push(planned(file, writer, strength, preserve_norm, upcast)?);
        }
        if plan.tensors.is_empty() {
            return Err(ScopeError::Nothing { n_writers }.into());
        }
        if plan.unties() && arch::head(file)? == Head::Tied {
            return Err(RewriteError::CannotUntie { arch: plan.architecture });
        }
        Ok(plan)
    }

    /// Whether the original embedding will be added as `output.weight`.
    #[must_use]
    pub fn unties(&self) -> bool {
        self.tied_embeddings && self.tied == Tied::Untie && self.rank > 0
    }

    /// The tensors to edit, by their names.
    pub(super) fn by_name(&self) -> HashMap<&str, &PlannedTensor> {
        self.tensors.iter().map(|t| (t.writer.tensor.as_str(), t)).collect()
    }

    /// The first tensor that is rounded with regard to its inputs, or else without: see
    /// [`PlannedTensor::needs_calibration`].
    #[must_use]
    pub fn needs_calibration(&self) -> Option<&PlannedTensor> {
        self.tensors.iter().find(|tensor| tensor.needs_calibration())
    }

    /// Checks that `source` is the model of `file` at higher precision: the same architecture, and each tensor to edit
    /// with the same shape, values that can be decoded, and in its first rows nearer to `file`'s than zeros would be.
    ///
    /// # Errors
    /// [`RewriteError::Source`] with what is not the same.
    pub fn check_source(&self, file: &GgufFile, source: &GgufFile) -> Result<(), RewriteError> {
        let wrong = |what: &str, expected: String, found: String| {
            Err(RewriteError::Source { what: what.into(), expected, found })
        };
        let found = source.arch().unwrap_or_default();
        if found != self.architecture {
            return wrong("architecture", format!("{:?}", self.architecture), format!("{found:?}"));
        }
        for PlannedTensor { writer, ne, .. } in &self.tensors {
            let what = format!("tensor {:?}", writer.tensor);
            let Some(info) = file.tensor(&writer.tensor) else {
                return Err(RewriteError::OtherFile { tensor: writer.tensor.clone() });
            };
            let Some(theirs) = source.tensor(&writer.tensor) else {
                return wrong(&what, format!("shape {:?}", info.shape()), "no such tensor".into());
            };
            if theirs.ne != *ne {
                let shape = |shape: &[u64]| format!("shape {shape:?}");
                return wrong(&what, shape(info.shape()), shape(theirs.shape()));
            }
            let [ours, theirs] =
                [(file, info), (source, theirs)].map(|(f, t)| Rows::slices(f, t, writer.axis));
            let (Some(ours), Some(theirs)) = (ours.first(), theirs.first()) else { continue };
            let n = ours.rows.min(16);
            let (ours, theirs) = (ours.decode(0, n)?, theirs.decode(0, n)?);
            // Zeros would be as near.
            let square = |x: f32| f64::from(x).powi(2);
            let apart: f64 = ours.iter().zip(&theirs).map(|(a, b)| square(a - b)).sum();
            let size: f64 = theirs.iter().map(|x| square(*x)).sum();
            if apart > size {
                let found =
                    format!("others: {:.2} of their size away in the first rows", (apart / size).sqrt());
                return wrong(&what, "the same weights, more exact".into(), found);
            }
        }
        Ok(())
    }

    /// Bytes of all tensors to edit, in the file.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes).sum()
    }

    /// Bytes of all tensors to edit, in the new file.
    #[must_use]
    pub fn out_bytes(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::out_bytes).sum()
    }
}

/// What is to be done with one writer.
fn planned(
    file: &GgufFile,
    writer: Writer,
    strength: f64,
    preserve_norm: bool,
    upcast: Option<GgmlType>,
) -> Result<PlannedTensor, RewriteError> {
    let Some(info) = file.tensor(&writer.tensor) else {
        return Err(RewriteError::OtherFile { tensor: writer.tensor });
    };
    let upcast = upcast.filter(|ty| is_quantized(info.ty) && has_more_bits(*ty, info.ty));
    let out_type = upcast.unwrap_or(info.ty);
    let problem = if !info.ty.can_decode() {
        Some(CodecError::NotFloat(info.ty))
    } else if !out_type.can_decode() {
        Some(CodecError::NotFloat(out_type))
    } else if !out_type.can_encode() {
        Some(CodecError::NoEncoder(out_type))
    } else {
        None
    };
    if let Some(source) = problem {
        return Err(RewriteError::Type { tensor: writer.tensor, source });
    }
    if !info.ne[0].is_multiple_of(out_type.block_size()) {
        return Err(RewriteError::Upcast { tensor: writer.tensor, ty: out_type, n: info.ne[0] });
    }
    Ok(PlannedTensor {
        r#type: info.ty,
        out_type,
        ne: info.ne,
        bytes: info.bytes,
        strength,
        preserve_norm: preserve_norm && writer.kind.group() != "bias",
        writer,
    })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tensors.is_empty() && self.additions.is_empty() {
            return writeln!(f, "nothing to edit: all {} tensors stay as they are", self.n_tensors);
        }
        let (n, rank) = (self.tensors.len(), self.rank);
        let s = if rank == 1 { "" } else { "s" };
        writeln!(f, "{}: {n} of {} tensors, {rank} direction{s}", self.architecture, self.n_tensors)?;
        for tensor in &self.tensors {
            let shape: Vec<String> = tensor.ne.iter().map(u64::to_string).collect();
            let shape = shape.join(" × ");
            let shape = shape.trim_end_matches(" × 1");
            let ty = match (tensor.r#type.name(), tensor.out_type.name()) {
                (from, to) if from == to => from.to_string(),
                (from, to) => format!("{from} → {to}"),
            };
            let name = &tensor.writer.tensor;
            write!(f, "  {name:<32} {ty:<15} {shape:<20} {:>12} bytes", tensor.out_bytes())?;
            if tensor.strength != 1.0 {
                write!(f, ", strength {}", tensor.strength)?;
            }
            if tensor.preserve_norm {
                write!(f, ", lengths kept")?;
            }
            for norm in tensor.writer.norms() {
                write!(f, ", behind {norm}")?;
            }
            writeln!(f)?;
        }
        for PlannedAddition { tensor, vector, is_new, .. } in &self.additions {
            let what = if *is_new { "new: a constant" } else { "a constant is added" };
            writeln!(f, "  {tensor:<32} {what} of {} values", vector.len())?;
        }
        let (before, after) = (self.bytes(), self.out_bytes());
        if before == after {
            writeln!(f, "  {after} bytes in all")?;
        } else {
            writeln!(f, "  {before} → {after} bytes in all")?;
        }
        if let Some(why) = &self.partial {
            writeln!(f, "  a partial edit: {why}")?;
        }
        if self.tied_embeddings {
            let words = match self.tied {
                Tied::Edit => "edited as both",
                Tied::Untie => "edited; the original becomes output.weight",
                Tied::Skip => "left as it is",
            };
            writeln!(f, "  token_embd.weight is also the output matrix: {words}")?;
        }
        Ok(())
    }
}
