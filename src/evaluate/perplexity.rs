//! Perplexity of a text, as llama.cpp's `llama-perplexity` defines it.
//!
//! The text's tokens (with the beginning-of-text token where the model wants one) are cut into chunks of
//! `n_ctx`; what is left over at the end is not used. Each chunk is read by itself, its first token replaced
//! by the beginning-of-text token where the model wants one. The first half of a chunk is context only: of
//! chunk tokens x₀ … x₍ₙ₋₁₎, x₍ₕ₊₁₎ … x₍ₙ₋₁₎ are scored, h = ⌊n/2⌋. Perplexity is exp of the mean −ln p over
//! all tokens scored.

#![forbid(unsafe_code)]

use std::sync::Arc;

use serde::Serialize;

use super::forced::{Forced, logits};
use super::interval::Z;
use super::kl::log_prob;
use crate::intervention::Intervention;
use crate::runtime::{Error as RuntimeError, Model, Session, Token};

/// Why a text has no perplexity.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Fewer than two chunks.
    #[error(
        "{found} tokens, but perplexity at a context of {n_ctx} needs at least {}: take a longer text or a \
         smaller context",
        2 * n_ctx
    )]
    TooShort {
        /// Tokens of the text.
        found: usize,
        /// Tokens of a chunk.
        n_ctx: usize,
    },
    /// A chunk in which nothing would be scored.
    #[error("a context of {0} tokens leaves nothing to score; it needs at least 3")]
    TooNarrow(usize),
    /// The model could not be run.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// Perplexity with its standard error and interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// exp(mean of −ln p).
    pub perplexity: f64,
    /// The mean's standard error (tokens taken as independent) times the perplexity: llama.cpp's figure after
    /// ±.
    pub standard_error: f64,
    /// Lower end of the 95 % interval, exp(mean − 1.96 standard errors).
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Tokens of a chunk.
    pub n_ctx: usize,
    /// Chunks read.
    pub n_chunks: usize,
    /// Tokens scored.
    pub n_tokens: usize,
    /// −ln p of each token scored, in nats.
    #[serde(skip)]
    pub nll: Vec<f64>,
}

/// How many times as perplexed one run is as another on the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    /// This perplexity over the base's.
    pub ratio: f64,
    /// Lower end of its 95 % interval, from the differences token by token.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Perplexity {
    /// From −ln p of each token scored.
    fn new(nll: Vec<f64>, n_ctx: usize, n_chunks: usize) -> Self {
        let (mean, error) = mean_and_error(&nll);
        let [perplexity, low, high] = [mean, mean - Z * error, mean + Z * error].map(f64::exp);
        let standard_error = error * perplexity;
        Self { perplexity, standard_error, low, high, n_ctx, n_chunks, n_tokens: nll.len(), nll }
    }

    /// This over `base`, measured on the same text.
    ///
    /// # Panics
    /// When the two scored different numbers of tokens.
    #[must_use]
    pub fn over(&self, base: &Self) -> Ratio {
        assert_eq!(self.nll.len(), base.nll.len(), "perplexities of different texts cannot be compared");
        let differences: Vec<f64> = self.nll.iter().zip(&base.nll).map(|(a, b)| a - b).collect();
        let (mean, error) = mean_and_error(&differences);
        let [ratio, low, high] = [mean, mean - Z * error, mean + Z * error].map(f64::exp);
        Ratio { ratio, low, high }
    }
}

/// The mean and its standard error.
fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    (mean, (variance / (n - 1.0).max(1.0)).sqrt())
}

/// The tokens of a text file's content, as `llama-perplexity -f` reads it: one line end at its end is left
/// out.
#[must_use]
pub fn tokens(model: &Model, text: &str) -> Vec<Token> {
    model.tokenize_text(text.strip_suffix('\n').unwrap_or(text))
}

/// Perplexity of `tokens` (from [`tokens`]) in chunks of `n_ctx`; every token counts as one of a prompt to
/// the intervention. `step` is called after each chunk.
///
/// # Errors
/// Fewer than 2 · `n_ctx` tokens, as in llama.cpp; `n_ctx` below 3 or larger than the session's context; a
/// failed decode.
pub fn perplexity(
    session: &mut Session<'_>,
    tokens: &[Token],
    n_ctx: usize,
    intervention: Option<&Arc<Intervention>>,
    step: &mut dyn FnMut(),
) -> Result<Perplexity, Error> {
    if n_ctx < 3 {
        return Err(Error::TooNarrow(n_ctx));
    }
    if tokens.len() / 2 < n_ctx {
        return Err(Error::TooShort { found: tokens.len(), n_ctx });
    }
    let bos = session.model().leading_bos();
    let chunks: Vec<Vec<Token>> = (tokens.chunks_exact(n_ctx))
        .map(|chunk| {
            let mut chunk = chunk.to_vec();
            chunk[0] = bos.unwrap_or(chunk[0]);
            chunk
        })
        .collect();
    let first = n_ctx / 2;
    // The last token of a chunk is scored, not read.
    let sequences: Vec<Forced<'_>> = (chunks.iter())
        .map(|chunk| Forced {
            prompt: &chunk[..n_ctx - 1],
            answer: &[],
            n_out: n_ctx - 1 - first,
            intervention: intervention.cloned(),
        })
        .collect();
    let mut nll = Vec::with_capacity(chunks.len() * (n_ctx - 1 - first));
    logits(session, &sequences, &mut |i, token, row| {
        nll.push(-log_prob(row, chunks[i][token + 1].0 as usize));
        if token + 2 == n_ctx {
            step();
        }
    })?;
    Ok(Perplexity::new(nll, n_ctx, chunks.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_that_of_the_mean() {
        // Values 1, 2, 3, 6: mean 3, variance 14/4, error √(3.5/3).
        let p = Perplexity::new(vec![1.0, 2.0, 3.0, 6.0], 8, 1);
        let error = (3.5f64 / 3.0).sqrt();
        assert!((p.perplexity - 3f64.exp()).abs() < 1e-12);
        assert!((p.standard_error - error * 3f64.exp()).abs() < 1e-12);
        assert!((p.high.ln() - (3.0 + Z * error)).abs() < 1e-12);
    }

    #[test]
    fn a_ratio_is_paired_token_by_token() {
        let base = Perplexity::new(vec![1.0, 5.0, 0.5, 9.0], 8, 1);
        let shifted = Perplexity::new(base.nll.iter().map(|x| x + 0.25).collect(), 8, 1);
        let ratio = shifted.over(&base);
        for end in [ratio.ratio, ratio.low, ratio.high] {
            assert!((end - 0.25f64.exp()).abs() < 1e-9, "{ratio:?}");
        }
    }
}
