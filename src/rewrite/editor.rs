//! The tensors of a plan, one after the other as they are written, their descents several at a time.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::io::Write;

use super::basis::{Basis, seen_by};
use super::figures::Totals;
use super::nearest::Saturation;
use super::round::{Done, How, Method, Rounding, Slice, descend_all};
use super::{Plan, PlannedTensor, RewriteError, Rows, TensorReport};
use crate::arch::Axis;
use crate::calibration::CalibrationError;
use crate::gguf::{GgufFile, TensorInfo};

/// Bytes that the descents under way may hold together, unless one alone needs more.
const MEMORY: usize = 900 << 20;

/// Edits the tensors of a plan in the order in which they are asked for: that of the file.
pub(super) struct Editor<'a> {
    file: &'a GgufFile,
    how: How<'a>,
    /// Each planned tensor with R as it sees it, in the order of the file.
    tensors: Vec<(&'a PlannedTensor, &'a TensorInfo, Cow<'a, Basis>)>,
    /// Their places there, by their names.
    places: HashMap<&'a str, usize>,
    /// Descents that are done: tensor and slice, and what came of them.
    ready: VecDeque<((usize, usize), Descended)>,
}

/// The new bytes of a slice and what they are.
type Descended = Result<(Vec<u8>, Done), RewriteError>;

impl<'a> Editor<'a> {
    /// Checks all that can be checked before the first tensor.
    pub fn new(file: &'a GgufFile, plan: &'a Plan, how: &How<'a>) -> Result<Self, RewriteError> {
        let by_name = plan.by_name();
        let mut tensors = Vec::new();
        let mut places = HashMap::new();
        for info in file.tensors() {
            let Some(&planned) = by_name.get(info.name.as_str()) else { continue };
            if let Some(source) = how.source {
                matching(source, info)?;
            }
            let basis = seen_by(file, &planned.writer, &plan.basis)?;
            places.insert(info.name.as_str(), tensors.len());
            tensors.push((planned, info, basis));
        }
        let editor = Self { file, how: *how, tensors, places, ready: VecDeque::new() };
        for tensor in 0..editor.tensors.len() {
            if let Some(slice) = editor.slices(tensor)?.first() {
                slice.check()?;
            }
        }
        Ok(editor)
    }

    fn slices(&self, tensor: usize) -> Result<Vec<Slice<'_>>, RewriteError> {
        let (planned, info, basis) = &self.tensors[tensor];
        let axis = planned.writer.axis;
        let source = match self.how.source {
            Some(source) => Some((source, matching(source, info)?)),
            None => None,
        };
        let weights = source.map_or((self.file, *info), |(file, info)| (file, info));
        let old = Rows::slices(self.file, info, axis);
        let slices = old.into_iter().zip(Rows::slices(weights.0, weights.1, axis)).enumerate();
        Ok(slices
            .map(|(index, (matrix, weights))| Slice {
                planned,
                basis,
                matrix,
                weights,
                has_source: source.is_some(),
                index,
                inputs: self.how.calibration.and_then(|all| all.inputs(&info.name)),
                rounding: self.how.rounding,
                seed: self.how.seed,
            })
            .collect())
    }

    /// Writes the new bytes of the planned tensor of this name.
    pub fn edit(&mut self, name: &str, out: &mut dyn Write) -> Result<TensorReport, RewriteError> {
        let tensor =
            self.places.get(name).copied().ok_or_else(|| RewriteError::OtherFile { tensor: name.into() })?;
        let mut all =
            Done { method: Method::Kept, totals: Totals::default(), saturation: Saturation::default() };
        let mut add = |done: Done| {
            if done.method != Method::Kept {
                all.method = done.method;
            }
            all.totals.add(&done.totals);
            all.saturation.add(done.saturation);
        };
        let slices = self.slices(tensor)?;
        // All slices of a tensor go one way.
        if slices.first().is_some_and(Slice::descends) {
            for index in 0..slices.len() {
                let (bytes, done) = self.descent(tensor, index)?;
                out.write_all(&bytes)?;
                add(done);
            }
        } else {
            for slice in &slices {
                add(slice.write(out)?);
            }
        }
        Ok(self.report(tensor, &all))
    }

    /// The descent of one slice, from those that are done, or with as many as follow it and fit.
    fn descent(&mut self, tensor: usize, index: usize) -> Result<(Vec<u8>, Done), RewriteError> {
        if self.ready.front().is_none_or(|(place, _)| *place != (tensor, index)) {
            let mut places = Vec::new();
            let mut slices = Vec::new();
            let mut memory = 0;
            'fill: for next in tensor..self.tensors.len() {
                for slice in self.slices(next)? {
                    if (next, slice.index) < (tensor, index) || !slice.descends() {
                        continue;
                    }
                    memory += slice.memory();
                    let full = slices.len() == rayon::current_num_threads() || memory > MEMORY;
                    if full && !slices.is_empty() {
                        break 'fill;
                    }
                    places.push((next, slice.index));
                    slices.push(slice);
                }
            }
            let done = descend_all(&slices);
            self.ready = places.into_iter().zip(done).collect();
        }
        self.ready.pop_front().expect("the slice asked for is the first").1
    }

    fn report(&self, tensor: usize, done: &Done) -> TensorReport {
        let (planned, info, _) = &self.tensors[tensor];
        let edit = done.totals.edit;
        TensorReport {
            name: info.name.clone(),
            r#type: info.ty,
            out_type: planned.out_type,
            kind: planned.writer.kind,
            block: planned.writer.block,
            edited: done.method != Method::Kept,
            method: done.method,
            figures: done.totals.figures(),
            saturated: done.saturation.elements,
            saturated_share: if edit > 0.0 { (done.saturation.left / edit).sqrt() } else { 0.0 },
            bytes: planned.out_bytes(),
            error_x: done.totals.off_x / done.totals.n_inputs.max(1) as f64,
        }
    }
}

/// The tensor of a source of higher precision that stands for this one.
pub(super) fn matching<'a>(source: &'a GgufFile, info: &TensorInfo) -> Result<&'a TensorInfo, RewriteError> {
    let wrong = |found: String| RewriteError::Source {
        what: format!("tensor {:?}", info.name),
        expected: format!("{:?} of a float type", info.shape()),
        found,
    };
    let other = source.tensor(&info.name).ok_or_else(|| wrong("none".into()))?;
    if other.ne != info.ne || !other.ty.can_decode() {
        return Err(wrong(format!("{:?} {}", other.shape(), other.ty)));
    }
    Ok(other)
}

impl Slice<'_> {
    /// What would only come to light when the slice's turn comes.
    fn check(&self) -> Result<(), RewriteError> {
        let uncalibrated = || RewriteError::Uncalibrated {
            tensor: self.planned.writer.tensor.clone(),
            ty: self.planned.out_type,
        };
        let matrix = self.planned.writer.axis == Axis::Output;
        let anew = self.planned.is_encoded_anew() && self.rounding != Rounding::Reencode;
        let needed = self.descends() || anew || self.planned.out_type.needs_importance();
        if matrix && self.inputs.is_none() && needed {
            return Err(uncalibrated());
        }
        let n_slices = self.planned.ne[2] as usize;
        if let Some(inputs) = self.inputs.filter(|i| i.n_in() != self.matrix.n || i.n_slices() != n_slices) {
            let shape = |n_in, n_slices| format!("inputs of {n_in} elements for {n_slices} slices");
            return Err(RewriteError::Calibration(CalibrationError::Misfit {
                what: format!("tensor {:?}", self.planned.writer.tensor),
                expected: shape(self.matrix.n, n_slices),
                found: shape(inputs.n_in(), inputs.n_slices()),
            }));
        }
        Ok(())
    }
}
