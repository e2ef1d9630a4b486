//! Whether a calibration is of the model at hand, and whether it is large enough.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::fmt;

use serde::Serialize;

use super::{Calibration, CalibrationError, Inputs, Target, default_rows};
use crate::arch::Writer;
use crate::gguf::{GgufFile, fingerprint};

/// Rows of a writer without which nothing can be said.
const FEWEST: usize = 32;

/// Whose activations they are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Whose {
    /// This file's.
    Exact,
    /// Another file's with the same architecture, shapes and tensors: another quantization of the same model, or one
    /// that was accepted.
    OtherFile {
        /// Name and fingerprint of the calibrated file.
        calibrated: String,
        /// Name and fingerprint of this one.
        here: String,
    },
    /// The file does not say (an imatrix); its tensors are those of this model.
    Unknown,
}

/// A writer with few rows for its width.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Thin {
    /// The tensor.
    pub tensor: String,
    /// Its slice; the expert.
    pub slice: usize,
    /// Rows to fit on.
    pub rows: usize,
    /// As many as it should have.
    pub wanted: usize,
}

/// How a calibration fits a model. What is wrong with it beyond repair is an error instead.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// Whose it is.
    pub whose: Whose,
    /// Writers with too few rows to trust, the experts apart; all of them for an imatrix, which has none.
    pub thin: Vec<Thin>,
    /// Writers without held-out rows: what is rounded there cannot be measured on inputs.
    pub unmeasured: usize,
}

impl Calibration {
    /// Whether this calibration can be used for `model`, whose writers are `writers`.
    ///
    /// Files are told apart by [`fingerprint`]. Another quantization of the same model (the same `general.name`) fits; a
    /// model of another name fits with `accept_other` alone, and a model of other shapes never.
    ///
    /// # Errors
    /// [`CalibrationError::Misfit`], [`CalibrationError::OtherModel`], [`CalibrationError::Few`].
    pub fn fits(
        &self,
        model: &GgufFile,
        writers: &[Writer],
        accept_other: bool,
    ) -> Result<Fit, CalibrationError> {
        let source = &self.origin.source;
        let architecture = model.arch().unwrap_or_default();
        if let Some(found) = source.architecture.as_deref().filter(|found| *found != architecture) {
            return Err(misfit("architecture", format!("{architecture:?}"), format!("{found:?}")));
        }
        let targets = Target::of(model, writers);
        for target in &targets {
            let found = self.inputs(&target.tensor);
            if found.is_none_or(|i| i.n_in != target.n_in || i.n_slices() != target.n_slices) {
                let shape = |n_in, n_slices| format!("inputs of {n_in} elements for {n_slices} slices");
                let found = found.map_or("none".into(), |i| shape(i.n_in, i.n_slices()));
                return Err(misfit(
                    &format!("tensor {:?}", target.tensor),
                    shape(target.n_in, target.n_slices),
                    found,
                ));
            }
        }
        let names: HashSet<&str> = targets.iter().map(|t| t.tensor.as_str()).collect();
        if let Some(other) = self.tensors().find(|name| !names.contains(name)) {
            // A block more than this model has; an imatrix knows readers too, and is cut to the writers when loaded.
            return Err(misfit(&format!("tensor {other:?}"), "no such writer".into(), "its inputs".into()));
        }
        let whose = self.whose(model, accept_other)?;
        let has_rows = self.inputs.values().any(Inputs::has_rows);
        let mut fit = Fit { whose, thin: Vec::new(), unmeasured: 0 };
        for target in &targets {
            let inputs = &self.inputs[&target.tensor];
            let all: usize = (0..target.n_slices).map(|slice| inputs.n_fit(slice)).sum();
            if has_rows && all < FEWEST {
                return Err(CalibrationError::Few {
                    tensor: target.tensor.clone(),
                    found: all,
                    needed: FEWEST,
                });
            }
            let wanted = (target.n_in / 8).min(default_rows(target));
            let slices = (0..target.n_slices).map(|slice| (slice, inputs.n_fit(slice)));
            fit.thin.extend(slices.filter(|(_, rows)| *rows < wanted).map(|(slice, rows)| Thin {
                tensor: target.tensor.clone(),
                slice,
                rows,
                wanted,
            }));
            fit.unmeasured += usize::from((0..target.n_slices).all(|slice| inputs.n_held_out(slice) == 0));
        }
        Ok(fit)
    }

    fn whose(&self, model: &GgufFile, accept_other: bool) -> Result<Whose, CalibrationError> {
        let source = &self.origin.source;
        let Some(calibrated) = &source.model_fingerprint else { return Ok(Whose::Unknown) };
        let here = fingerprint(model);
        if *calibrated == here {
            return Ok(Whose::Exact);
        }
        let name = model.get_str("general.name").ok();
        let text = |name: Option<&str>, fingerprint: &str| {
            format!("{:?} (fingerprint {:.12})", name.unwrap_or("without a name"), fingerprint)
        };
        let found = text(source.model_name.as_deref(), calibrated);
        let expected = text(name, &here);
        if accept_other || (name.is_some() && name == source.model_name.as_deref()) {
            Ok(Whose::OtherFile { calibrated: found, here: expected })
        } else {
            Err(CalibrationError::OtherModel { expected, found })
        }
    }
}

fn misfit(what: &str, expected: String, found: String) -> CalibrationError {
    CalibrationError::Misfit { what: what.into(), expected, found }
}

impl Fit {
    /// What the user should know, a sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Whose::OtherFile { calibrated, here } = &self.whose {
            warnings.push(format!("the calibration is of another file, {calibrated}; this one is {here}"));
        }
        if let Some(thinnest) = self.thin.iter().min_by_key(|thin| thin.rows) {
            warnings.push(format!(
                "few sampled rows for the width of {} of the inputs, the fewest for {thinnest}; calibrate with more \
                 prompts",
                self.thin.len(),
            ));
        }
        if self.unmeasured > 0 {
            warnings.push(format!(
                "no held-out rows for {} of the tensors, so nothing is measured on inputs there",
                self.unmeasured
            ));
        }
        warnings
    }
}

impl fmt::Display for Thin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensor, slice, rows, wanted } = self;
        write!(f, "{tensor} (slice {slice}): {rows}, should be {wanted}")
    }
}
