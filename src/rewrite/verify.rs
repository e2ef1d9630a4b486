//! Proof, from two files, that a rewrite changed what it planned and nothing else, and of how well it did.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use super::editor::matching;
use super::figures::{Figures, Part, Totals};
use super::record::RecordedAddition;
use super::target::{Edit, Target};
use super::{Plan, PlannedAddition, Record, RewriteError, Rows, Tied, orthonormal, seen_by};
use crate::arch::{self, Axis, Writer, WriterKind};
use crate::direction::Direction;
use crate::gguf::{GgufFile, NewTensor, TensorInfo, Value, fingerprint};
use crate::quant::GgmlType;

/// What differs that should not.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum VerifyError {
    /// Another number or order of tensors, or another shape or type.
    #[error("tensor {index}: expected {expected}, found {found}")]
    Tensors {
        /// Its place in the file.
        index: usize,
        /// The tensor that should be there.
        expected: String,
        /// The tensor that is there.
        found: String,
    },
    /// A tensor that was not to be edited.
    #[error("tensor {name:?} was not to be edited, and differs at byte {at} of its data")]
    Bytes {
        /// The tensor.
        name: String,
        /// The first byte that differs.
        at: usize,
    },
    /// A key that was there before and is not, or has another value, or another place.
    #[error("key {key:?} is gone or differs")]
    Key {
        /// The key.
        key: String,
    },
    /// Made from another file than the original.
    #[error("made from a file of fingerprint {expected}, the original has {found}")]
    Source {
        /// What the file says.
        expected: String,
        /// The original's.
        found: String,
    },
    /// Made with other directions.
    #[error("made with direction {index} of SHA-256 {expected}, given is {found}")]
    Direction {
        /// The direction's place.
        index: usize,
        /// What the file says.
        expected: String,
        /// That of the direction given.
        found: String,
    },
    /// The file says it edited what is no writer of the original.
    #[error("tensor {name:?} is said to be edited, and is no writer of the original")]
    NoWriter {
        /// The tensor.
        name: String,
    },
}

/// What the rewriting of a file came to.
#[derive(Debug, Serialize)]
pub struct Verification {
    /// Whether the file says how it was made; otherwise every writer counts as edited.
    pub has_provenance: bool,
    /// Every writer of the original: embeddings first, then block by block.
    pub tensors: Vec<TensorCheck>,
    /// Tensors that were compared byte for byte, writers that were not to be edited among them.
    pub n_untouched: usize,
    /// Whether the original embedding was added as `output.weight`.
    pub untied: bool,
    /// What is not as the file says, or changed and should not have; empty when all is well.
    #[serde(serialize_with = "as_words")]
    pub differences: Vec<VerifyError>,
}

fn as_words<S: serde::Serializer>(all: &[VerifyError], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(all.iter().map(ToString::to_string))
}

/// One writer, before and after.
#[derive(Debug, Clone, Serialize)]
pub struct TensorCheck {
    /// The tensor.
    pub name: String,
    /// What it is.
    pub kind: WriterKind,
    /// Its block, 0-based.
    pub block: Option<usize>,
    /// How much of the edit it was to get: 1 all, 0 none.
    pub strength: f64,
    /// Whether a constant was added to it besides; its figures then say little.
    pub added: bool,
    /// Its type before.
    pub type_before: GgmlType,
    /// Its type after.
    pub type_after: GgmlType,
    /// Its bytes after.
    pub bytes: u64,
    /// How many of them differ from before; all where the type does.
    pub bytes_changed: u64,
    /// What is left of the directions, and how near the exact edit it is.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Gives the held-out inputs of a slice of a tensor, n × n_in, flat; none where there are none.
pub type HeldOut<'a, E> = dyn FnMut(&str, usize) -> Result<Vec<f32>, E> + 'a;

/// Compares a rewritten file with the original: the figures of every writer on what both decode to, and everything that
/// is not as `out` says of itself ([`Record`]) or that changed and should not have.
///
/// With a `source`, the same model at a higher precision from which the edit started, the figures are those of the edit of
/// its weights. `tied` says what was to be done about a tied embedding where the file does not. `held_out` gives inputs that were not
/// used in the rewriting; `step` is called once for each tensor of `original` and once more for each writer.
///
/// # Errors
/// Files that cannot be compared at all: an original whose writers cannot be told, directions that do not fit it,
/// weights that are not finite or of types that cannot be decoded; what `held_out` finds wrong. Differences are no
/// errors, but part of the result.
pub fn verify<E: From<RewriteError>>(
    original: &GgufFile,
    out: &GgufFile,
    directions: &[Direction],
    tied: Tied,
    source: Option<&GgufFile>,
    held_out: &mut HeldOut<'_, E>,
    step: &mut dyn FnMut(),
) -> Result<Verification, E> {
    let record = Record::read(out);
    let writers = record.as_ref().map_or_else(|| arch::writers(original), |r| r.writers(original));
    let writers = writers.map_err(RewriteError::from)?;
    let n_embd = original.arch().and_then(|arch| original.get_u64(&format!("{arch}.embedding_length")));
    let n_embd = n_embd.map_err(RewriteError::from)? as usize;
    let vectors: Vec<&[f32]> = directions.iter().map(|d| d.vector.as_slice()).collect();
    let basis = orthonormal(&vectors, n_embd)?;

    let is_tied = arch::tied_embeddings(original);
    let tied = record.as_ref().and_then(|r| r.tied).unwrap_or(tied);
    let untied = is_tied && tied == Tied::Untie;
    // A file may have tens of thousands of tensors.
    let edits = record.as_ref().map(Record::edits).unwrap_or_default();
    let by_name: HashMap<&str, &Writer> = writers.iter().map(|w| (w.tensor.as_str(), w)).collect();
    let strength = |writer: &Writer| match &record {
        Some(record) if record.tensors.is_some() => edits.get(writer.tensor.as_str()).map_or(0.0, |e| e.1),
        _ if is_tied && tied == Tied::Skip && writer.kind == WriterKind::TokenEmbedding => 0.0,
        _ => 1.0,
    };
    let additions = record.as_ref().map_or(&[][..], |r| &r.additions);
    let added = |name: &str| additions.iter().any(|a| a.tensor == name);
    let edited = |name: &str| {
        let type_of = || edits.get(name).and_then(|e| e.0).map_or(Retyped::ToAny, Retyped::To);
        match by_name.get(name) {
            Some(writer) if strength(writer) != 0.0 => Some(type_of()),
            _ => added(name).then_some(Retyped::ToAny),
        }
    };

    let mut differences = record.as_ref().map_or(Vec::new(), |r| unlike(r, original, directions, &writers));
    let mut extras: Vec<Extra<'_>> = Vec::new();
    for RecordedAddition { tensor, .. } in additions {
        let known = extras.iter().any(|e| e.name == *tensor) || original.tensor(tensor).is_some();
        if !known {
            extras.push(Extra { name: tensor, ne: vec![n_embd as u64], ty: GgmlType::F32, copy_of: None });
        }
    }
    let (n_untouched, found) = compare(original, out, &edited, &with_head(original, untied, extras), step);
    differences.extend(found);

    let mut tensors = Vec::new();
    for writer in &writers {
        let (Some(before), Some(after)) = (original.tensor(&writer.tensor), out.tensor(&writer.tensor))
        else {
            step();
            continue;
        };
        // Of another shape: told above, and not to be measured.
        if before.ne == after.ne {
            let basis = seen_by(original, writer, &basis)?;
            let strength = strength(writer);
            let lengths = record.as_ref().is_some_and(|r| r.preserve_norm) && writer.kind.group() != "bias";
            let edit = Edit { basis: &basis, axis: writer.axis, strength, lengths };
            let exact = source.map(|source| Ok((source, matching(source, before)?)));
            let exact = exact.transpose().map_err(|e: RewriteError| E::from(e))?;
            let weights = exact.unwrap_or((original, before));
            let totals = measure(weights, (out, after), edit, held_out)?;
            tensors.push(TensorCheck {
                name: writer.tensor.clone(),
                kind: writer.kind,
                block: writer.block,
                strength,
                type_before: before.ty,
                type_after: after.ty,
                added: added(&writer.tensor),
                bytes: after.bytes,
                bytes_changed: if before.ty == after.ty {
                    original.n_differences(before, (out, after))
                } else {
                    after.bytes
                },
                figures: totals.figures(),
            });
            for (file, info) in [weights, (original, before), (out, after)] {
                file.release(info);
            }
        }
        step();
    }
    Ok(Verification { has_provenance: record.is_some(), tensors, n_untouched, untied, differences })
}

/// What the record says that does not hold for these files.
fn unlike(
    record: &Record,
    original: &GgufFile,
    directions: &[Direction],
    writers: &[Writer],
) -> Vec<VerifyError> {
    let mut all = Vec::new();
    let found = fingerprint(original);
    if record.source != found {
        all.push(VerifyError::Source { expected: record.source.clone(), found });
    }
    for index in 0..record.directions.len().max(directions.len()) {
        let none = || "none".to_string();
        let expected = record.directions.get(index).map_or_else(none, |d| d.sha256.clone());
        let found = directions.get(index).map_or_else(none, Direction::sha256);
        if expected != found {
            all.push(VerifyError::Direction { index, expected, found });
        }
    }
    let names: HashSet<&str> = writers.iter().map(|w| w.tensor.as_str()).collect();
    for name in record.tensors.iter().flatten() {
        if !names.contains(name.as_str()) {
            all.push(VerifyError::NoWriter { name: name.clone() });
        }
    }
    all
}

/// The sums over all slices of a tensor.
fn measure<E: From<RewriteError>>(
    (file, before): (&GgufFile, &TensorInfo),
    (out, after): (&GgufFile, &TensorInfo),
    edit: Edit<'_>,
    held_out: &mut HeldOut<'_, E>,
) -> Result<Totals, E> {
    let axis = edit.axis;
    let mut totals = Totals::default();
    let slices = Rows::slices(file, before, axis);
    for (slice, (w, written)) in slices.iter().zip(Rows::slices(out, after, axis)).enumerate() {
        let inputs = if axis == Axis::Output { held_out(&before.name, slice)? } else { Vec::new() };
        let target = Target::new(edit, w, &inputs)?;
        let mut sum: Option<Part> = None;
        w.each(
            |first, rows| {
                let written = written.decode(first, rows.len() / w.n)?;
                Ok(target.measure(first, &rows, &target.ideal(first, &rows), &written))
            },
            |part| {
                match &mut sum {
                    None => sum = Some(part),
                    Some(sum) => sum.add(&part),
                }
                Ok(())
            },
        )?;
        if let Some(sum) = sum {
            totals.add(&target.meter().totals(&sum));
        }
    }
    Ok(totals)
}

/// Checks that `out` has the tensors of `original` in the same order with the same shapes and types (and, where the
/// plan unties, the original embedding as `output.weight` behind them), every tensor the plan does not name byte for
/// byte, and every key of `original`, in order, with its value, those of `ggsteer.` excepted. Returns the number of
/// tensors compared.
///
/// # Errors
/// [`VerifyError`] with the first difference.
pub fn verify_untouched(original: &GgufFile, out: &GgufFile, plan: &Plan) -> Result<usize, VerifyError> {
    verify_untouched_with(original, out, plan, &mut || ())
}

/// As [`verify_untouched`]; `step` is called once for each tensor of `original`.
///
/// # Errors
/// As [`verify_untouched`].
pub fn verify_untouched_with(
    original: &GgufFile,
    out: &GgufFile,
    plan: &Plan,
    step: &mut dyn FnMut(),
) -> Result<usize, VerifyError> {
    let by_name = plan.by_name();
    let edited = |name: &str| {
        let planned = by_name.get(name).map(|p| p.out_type);
        let added = || original.tensor(name).filter(|_| plan.addition(name).is_some()).map(|t| t.ty);
        planned.or_else(added).map(Retyped::To)
    };
    let biases: Vec<NewTensor> = plan.new_biases().map(PlannedAddition::new_tensor).collect();
    let extras = biases.iter().map(|b| Extra { name: &b.name, ne: b.ne.clone(), ty: b.ty, copy_of: None });
    let (compared, differences) =
        compare(original, out, &edited, &with_head(original, plan.unties(), extras.collect()), step);
    differences.into_iter().next().map_or(Ok(compared), Err)
}

/// The type that an edited tensor may have.
enum Retyped {
    To(GgmlType),
    ToAny,
}

/// A tensor that stands behind those of the original.
struct Extra<'a> {
    name: &'a str,
    ne: Vec<u64>,
    ty: GgmlType,
    /// The tensor whose bytes it has; any bytes where there is none.
    copy_of: Option<&'a TensorInfo>,
}

/// With the embedding in front, where it was untied.
fn with_head<'a>(original: &'a GgufFile, untied: bool, mut extras: Vec<Extra<'a>>) -> Vec<Extra<'a>> {
    if let Some(info) = original.tensor("token_embd.weight").filter(|_| untied) {
        let (ne, ty) = (info.shape().to_vec(), info.ty);
        extras.insert(0, Extra { name: "output.weight", ne, ty, copy_of: Some(info) });
    }
    extras
}

/// The number of tensors compared, and everything that differs outside the `edited` ones. The `extras` must stand behind
/// the tensors.
fn compare(
    original: &GgufFile,
    out: &GgufFile,
    edited: &dyn Fn(&str) -> Option<Retyped>,
    extras: &[Extra<'_>],
    step: &mut dyn FnMut(),
) -> (usize, Vec<VerifyError>) {
    let mut differences = Vec::new();
    // Of a split model, the number of tensors follows from them, and they are compared below.
    let may_differ = |key: &str| key.starts_with("ggsteer.") || key == "split.tensors.count";
    let mut theirs = out.parts().iter().flat_map(|part| part.metadata());
    let ours = original.parts().iter().flat_map(|part| part.metadata());
    for (key, value) in ours.filter(|(key, _)| !may_differ(key)) {
        let rest = theirs.clone();
        if !theirs.by_ref().any(|(k, v)| k == key && stored(v) == stored(value)) {
            differences.push(VerifyError::Key { key: key.clone() });
            theirs = rest;
        }
    }

    let n = original.tensors().len();
    let mut compared = 0;
    for index in 0..out.tensors().len().max(n + extras.len()) {
        let (old, new) = (original.tensors().get(index), out.tensors().get(index));
        if index < n {
            step();
        }
        let extra = index.checked_sub(n).and_then(|i| extras.get(i));
        let edit = old.and_then(|old| edited(&old.name));
        let any = matches!(edit, Some(Retyped::ToAny));
        let describe = |name: &str, shape: &[u64], ty: GgmlType| {
            let ty = if any { String::new() } else { format!(" {ty}") };
            format!("{name} {shape:?}{ty}")
        };
        let expected = match (old, extra) {
            (Some(t), _) => {
                let ty = if let Some(Retyped::To(ty)) = edit { ty } else { t.ty };
                describe(&t.name, t.shape(), ty)
            }
            (None, Some(e)) => describe(e.name, &e.ne, e.ty),
            (None, None) => "nothing".into(),
        };
        let found = new.map_or_else(|| "nothing".into(), |t| describe(&t.name, t.shape(), t.ty));
        if expected != found {
            differences.push(VerifyError::Tensors { index, expected, found });
            continue;
        }
        // What stands here in the original, or under another name.
        let same = old.filter(|_| edit.is_none()).or_else(|| extra.and_then(|e| e.copy_of));
        let (Some(old), Some(new)) = (same, new) else { continue };
        if let Some(at) = original.first_difference(old, (out, new)) {
            differences.push(VerifyError::Bytes { name: new.name.clone(), at });
            continue;
        }
        compared += 1;
    }
    (compared, differences)
}

/// A value as it stands in a file: NaN is equal to itself there.
fn stored(value: &Value) -> (crate::gguf::ValueType, Vec<u8>) {
    let mut bytes = Vec::new();
    value.write(&mut bytes);
    (value.value_type(), bytes)
}
