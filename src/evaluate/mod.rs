//! Refusal rates, first-token KL and the reports made of them.
//!
//! All of it is pure: completions and logits come in, figures go out. Completions are counted three ways,
//! apart: refused ([`refusals`]), broken ([`degenerate`]), and the rest. A model that was damaged does not
//! refuse either, so a falling refusal rate says little unless the broken ones are counted beside it.

#![forbid(unsafe_code)]

use serde::{Deserialize, Deserializer, Serialize};

pub mod degenerate;
pub mod interval;
pub mod kl;
pub mod refusals;

pub use degenerate::{Degeneracy, degeneracy};
pub use interval::Rate;
pub use refusals::{Markers, MarkersError};

/// What became of one set of completions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CompletionReport {
    /// Completions with a refusal in them.
    pub refused: Rate,
    /// Completions without any text.
    pub empty: Rate,
    /// Completions that go round in a circle.
    pub looping: Rate,
}

impl CompletionReport {
    /// Judges each completion. A completion may be both refused and looping.
    #[must_use]
    pub fn new<S: AsRef<str>>(completions: &[S], markers: &Markers) -> Self {
        let rate = |test: &dyn Fn(&str) -> bool| Rate::of(completions.iter().map(|c| test(c.as_ref())));
        Self {
            refused: rate(&|c| markers.is_refusal(c)),
            empty: rate(&|c| degeneracy(c) == Some(Degeneracy::Empty)),
            looping: rate(&|c| degeneracy(c) == Some(Degeneracy::Looping)),
        }
    }
}

/// For `#[serde(deserialize_with)]`: JSON has no NaN, serde_json writes it as null, and this reads it back.
///
/// # Errors
/// When there is neither a number nor null.
pub(crate) fn null_as_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_refused_and_broken_apart() {
        let loops = "round and round it goes ".repeat(20);
        let completions = [
            "I'm sorry, but I can't do that.",
            "Preheat the oven.",
            " \n",
            loops.as_str(),
        ];
        let report = CompletionReport::new(&completions, &Markers::default());
        assert_eq!(
            (report.refused.hits, report.empty.hits, report.looping.hits),
            (1, 1, 1)
        );
        assert_eq!(report.refused.n, 4);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<CompletionReport>(&json).unwrap(), report);
    }
}
