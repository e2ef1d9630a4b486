//! Refusal rates, first-token KL and the reports made of them.
//!
//! [`run`] asks a model; the rest is pure: completions and logits come in, figures go out. Completions are counted three ways,
//! apart: refused ([`refusals`]), broken ([`degenerate`]), and the rest. A model that was damaged does not
//! refuse either, so a falling refusal rate says little unless the broken ones are counted beside it.

#![forbid(unsafe_code)]

use serde::{Deserialize, Deserializer};

pub mod degenerate;
pub mod interval;
pub mod kl;
pub mod refusals;
pub mod run;

pub use degenerate::{Degeneracy, degeneracy};
pub use interval::Rate;
pub use refusals::{Markers, MarkersError};

/// For `#[serde(deserialize_with)]`: JSON has no NaN, serde_json writes it as null, and this reads it back.
///
/// # Errors
/// When there is neither a number nor null.
pub(crate) fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
