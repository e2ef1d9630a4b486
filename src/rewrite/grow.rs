//! Spending a size budget on the writers whose edit error matters most.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;

use serde::Serialize;

use super::editor::Editor;
use super::execute::{Progress, check};
use super::{How, Plan, PlannedTensor, RewriteError, TensorReport};
use crate::gguf::GgufFile;
use crate::quant::GgmlType;

/// What a budget was spent on.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Growth {
    /// Bytes that could be spent.
    pub budget: u64,
    /// Bytes that were.
    pub spent: u64,
    /// The tensors that get another type, in the order in which they were chosen.
    pub tensors: Vec<Grown>,
}

/// A tensor that gets a type of more bits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Grown {
    /// The tensor.
    pub tensor: String,
    /// Its type.
    pub from: GgmlType,
    /// The one it gets.
    pub to: GgmlType,
    /// Bytes that this takes more.
    pub bytes: u64,
    /// Mean square of what the edit leaves wrong in the stream, a held-out input: at its own type, and at the new one.
    pub error: [f64; 2],
}

/// The types to try, by ascending bits.
const LADDER: [GgmlType; 2] = [GgmlType::Q6_K, GgmlType::Q8_0];

/// Gives writers of `plan` types of more bits ([`PlannedTensor::out_type`]), so that the file grows by no more than
/// `max_growth` of its size.
///
/// Every quantized matrix is rounded once at its own type; then, in the order of error a byte, each is tried at the types
/// that the rest of the budget allows, and takes the one that removes most error for its bytes. The errors are those of
/// what is written to the stream on held-out inputs, so the plan needs a calibration with sampled inputs.
///
/// # Errors
/// As [`execute`](super::execute); nothing is written.
pub fn grow(
    file: &GgufFile,
    plan: &mut Plan,
    how: &How<'_>,
    max_growth: f64,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Growth, RewriteError> {
    check(file, plan)?;
    let size: u64 = file.parts().iter().map(|part| part.bytes().len() as u64).sum();
    let mut growth = Growth { budget: (size as f64 * max_growth.max(0.0)) as u64, ..Growth::default() };
    let mut costs: Vec<(usize, f64)> = Vec::new();
    let bytes_total = plan.bytes();
    let mut bytes_done = 0;
    let places: HashMap<&str, usize> =
        plan.tensors.iter().enumerate().map(|(at, p)| (p.writer.tensor.as_str(), at)).collect();
    let mut editor = Editor::new(file, plan, how)?;
    for info in file.tensors() {
        let Some(&at) = places.get(info.name.as_str()) else { continue };
        progress(Progress { tensor: Some(&info.name), edited: true, bytes_done, bytes_total });
        if plan.tensors[at].needs_calibration() {
            let report = editor.edit(&info.name, &mut io::sink())?;
            costs.push((at, report.error_x));
        }
        bytes_done += info.bytes;
    }
    drop(editor);
    let a_byte = |&(at, error): &(usize, f64)| error / plan.tensors[at].bytes.max(1) as f64;
    costs.sort_by(|a, b| a_byte(b).total_cmp(&a_byte(a)));
    let mut chosen = Vec::new();
    for (at, error) in costs.into_iter().filter(|(_, error)| *error > 0.0) {
        let planned = &plan.tensors[at];
        let mut best: Option<(f64, Grown)> = None;
        for ty in LADDER {
            let Some(bytes) = more_bytes(planned, ty) else { continue };
            if growth.spent + bytes > growth.budget {
                continue;
            }
            let after = try_at(file, plan, at, ty, how)?.error_x;
            let gain = (error - after) / bytes as f64;
            if gain > best.as_ref().map_or(0.0, |(gain, _)| *gain) {
                let (tensor, from) = (planned.writer.tensor.clone(), planned.out_type);
                best = Some((gain, Grown { tensor, from, to: ty, bytes, error: [error, after] }));
            }
        }
        if let Some((_, grown)) = best {
            growth.spent += grown.bytes;
            chosen.push((at, grown.to));
            growth.tensors.push(grown);
        }
    }
    for (at, ty) in chosen {
        plan.tensors[at].out_type = ty;
    }
    progress(Progress { tensor: None, edited: false, bytes_done, bytes_total });
    Ok(growth)
}

/// Bytes that a tensor takes more at a type, where that has more bits and its rows fit.
fn more_bytes(planned: &PlannedTensor, ty: GgmlType) -> Option<u64> {
    let grown = PlannedTensor { out_type: ty, ..planned.clone() };
    planned.ne[0]
        .is_multiple_of(ty.block_size())
        .then(|| grown.out_bytes().checked_sub(planned.out_bytes()))?
        .filter(|n| *n > 0)
}

/// What comes of one tensor at another type.
fn try_at(
    file: &GgufFile,
    plan: &Plan,
    at: usize,
    ty: GgmlType,
    how: &How<'_>,
) -> Result<TensorReport, RewriteError> {
    let mut planned = plan.tensors[at].clone();
    planned.out_type = ty;
    let name = planned.writer.tensor.clone();
    let alone = Plan { tensors: vec![planned], ..plan.clone() };
    Editor::new(file, &alone, how)?.edit(&name, &mut io::sink())
}
