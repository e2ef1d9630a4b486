//! Refusal rates, KL, perplexity and the reports made of them.
//!
//! Completions are counted apart: refused at once or late ([`refusals`]), broken ([`degenerate`]), and the
//! rest. A model that was damaged does not refuse either, so a falling refusal rate says little unless the
//! broken ones are counted beside it, a random direction is erased beside it ([`control`]), and a second
//! opinion is asked ([`judge`]).
//!
//! | figure | of | module |
//! |---|---|---|
//! | rates with Wilson intervals, means with bootstrap ones | | [`interval`] |
//! | refusals, broken answers, all that [`run::evaluate`] counts | two prompt sets | [`run`] |
//! | KL(base ‖ this), first token and along the base's own answers | two prompt sets | [`forced`], [`kl`] |
//! | perplexity as llama.cpp defines it | a text | [`mod@perplexity`] |
//! | a one-token verdict of another model | answers | [`judge`] |
//! | the smallest coefficient that induces fluent refusals | ordinary prompts | [`scale`] |

#![forbid(unsafe_code)]

use serde::{Deserialize, Deserializer};

pub mod control;
pub mod degenerate;
pub mod forced;
pub mod interval;
pub mod judge;
pub mod kl;
pub mod perplexity;
pub mod refusals;
pub mod run;
pub mod scale;

pub use degenerate::{Degeneracy, degeneracy};
pub use interval::{Mean, Rate};
pub use perplexity::{Perplexity, perplexity};
pub use refusals::{Markers, MarkersError};

/// For `#[serde(deserialize_with)]`: JSON has no NaN, serde_json writes it as null, and this reads it back.
///
/// # Errors
/// When there is neither a number nor null.
pub(crate) fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
