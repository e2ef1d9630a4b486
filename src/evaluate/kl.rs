//! Figures of merit at one token position: KL divergence and the refusal score.
//!
//! Logits are raw f32 of shape `[n_vocab]`, as llama.cpp hands them out; all sums are f64. A logit of −∞ is a
//! token of probability zero. NaN in gives NaN out.
//!
//! ```
//! use ggsteer::evaluate::kl::{kl, refusal_score};
//!
//! assert_eq!(kl(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]), 0.0);
//! // Half of the probability is on token 0: the log-odds are 0.
//! assert!(refusal_score(&[0.0, 0.0], &[0]).abs() < 1e-12);
//! ```

#![forbid(unsafe_code)]

/// ln Σ exp(x) as (m, ln Σ exp(x − m)) with m the maximum, apart so that the second is not lost in the first:
/// (−∞, 0) for no items, NaN if any is NaN.
fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let max = values.clone().fold(f64::NEG_INFINITY, |a, b| if b > a || b.is_nan() { b } else { a });
    if max.is_nan() || max.is_infinite() {
        return (max, 0.0);
    }
    (max, values.map(|v| (v - max).exp()).sum::<f64>().ln())
}

/// ln softmax(logits), shape `[n_vocab]` to `[n_vocab]`.
#[must_use]
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let (max, rest) = log_sum_exp(logits.iter().map(|&l| f64::from(l)));
    logits.iter().map(|&l| (f64::from(l) - max) - rest).collect()
}

/// ln softmax(logits) of one token.
///
/// # Panics
/// When the token is not in the vocabulary.
#[must_use]
pub fn log_prob(logits: &[f32], token: usize) -> f64 {
    let (max, rest) = log_sum_exp(logits.iter().map(|&l| f64::from(l)));
    (f64::from(logits[token]) - max) - rest
}

/// KL(p‖q) = Σ pᵢ (ln pᵢ − ln qᵢ) in nats, for p = softmax(`p_logits`) and q = softmax(`q_logits`): never
/// negative, 0 for equal distributions, ∞ where q forbids what p allows.
///
/// # Panics
/// When the two have different lengths.
#[must_use]
pub fn kl(p_logits: &[f32], q_logits: &[f32]) -> f64 {
    assert_eq!(p_logits.len(), q_logits.len(), "two vocabularies cannot be compared");
    let (p, q) = (log_softmax(p_logits), log_softmax(q_logits));
    let sum: f64 =
        p.iter().zip(&q).map(|(&p, &q)| if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }).sum();
    if sum < 0.0 { 0.0 } else { sum } // rounding only; NaN passes
}

/// The refusal score ln(p/(1−p)), where p is the probability of the `refusal_tokens` together (Arditi et al.
/// 2024, appendix B).
///
/// It is the log-sum-exp of those tokens' logits less that of the others', so it neither saturates nor needs
/// the small constant of the published code (which keeps that one within ±18.4). A token given twice counts
/// once. No tokens give −∞, all tokens +∞.
///
/// # Panics
/// When a token is not in the vocabulary.
#[must_use]
pub fn refusal_score(logits: &[f32], refusal_tokens: &[usize]) -> f64 {
    let mut refuses = vec![false; logits.len()];
    for &token in refusal_tokens {
        assert!(token < logits.len(), "refusal token {token} is outside a vocabulary of {}", logits.len());
        refuses[token] = true;
    }
    let group = |wanted: bool| {
        let members = logits.iter().zip(&refuses).filter(move |&(_, &r)| r == wanted);
        log_sum_exp(members.map(|(&l, _)| f64::from(l)))
    };
    let ((yes, yes_rest), (no, no_rest)) = (group(true), group(false));
    (yes - no) + (yes_rest - no_rest)
}

#[cfg(test)]
#[allow(clippy::float_cmp)] // exact where exactness is the claim
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The textbook softmax, for logits small enough for it.
    fn softmax(logits: &[f32]) -> Vec<f64> {
        let exps: Vec<f64> = logits.iter().map(|&l| f64::from(l).exp()).collect();
        let total: f64 = exps.iter().sum();
        exps.iter().map(|e| e / total).collect()
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * (1.0 + a.abs().max(b.abs()))
    }

    fn two_rows() -> impl Strategy<Value = (Vec<f32>, Vec<f32>)> {
        (2usize..40).prop_flat_map(|n| {
            let row = || proptest::collection::vec(-12.0f32..12.0, n);
            (row(), row())
        })
    }

    proptest! {
        #[test]
        fn kl_is_the_textbook_sum((a, b) in two_rows()) {
            let naive: f64 = softmax(&a).iter().zip(softmax(&b)).map(|(p, q)| p * (p / q).ln()).sum();
            prop_assert!(close(kl(&a, &b), naive.max(0.0)));
            prop_assert!(kl(&a, &b) >= 0.0);
            prop_assert_eq!(kl(&a, &a), 0.0);
            prop_assert_eq!(log_prob(&a, 1), log_softmax(&a)[1]);
        }

        #[test]
        fn kl_does_not_feel_a_shift((a, b) in two_rows(), shift in -64i8..64) {
            let shifted: Vec<f32> = b.iter().map(|x| (x * 1024.0).round() / 1024.0 + f32::from(shift)).collect();
            let rounded: Vec<f32> = b.iter().map(|x| (x * 1024.0).round() / 1024.0).collect();
            prop_assert!(close(kl(&a, &rounded), kl(&a, &shifted)));
        }

        #[test]
        fn the_score_is_the_log_odds((a, _) in two_rows(), pick in any::<u64>()) {
            let tokens: Vec<usize> = (0..a.len()).filter(|i| pick >> i & 1 == 1).collect();
            prop_assume!(!tokens.is_empty() && tokens.len() < a.len());
            let p = softmax(&a);
            let yes: f64 = tokens.iter().map(|&t| p[t]).sum();
            let no: f64 = (0..a.len()).filter(|t| !tokens.contains(t)).map(|t| p[t]).sum();
            prop_assert!(close(refusal_score(&a, &tokens), (yes / no).ln()));
            let twice: Vec<usize> = tokens.iter().chain(&tokens).copied().collect();
            prop_assert_eq!(refusal_score(&a, &tokens), refusal_score(&a, &twice));
        }
    }

    #[test]
    fn far_logits_neither_overflow_nor_saturate() {
        assert!(close(refusal_score(&[1000.0, 0.0, -1000.0], &[0]), 1000.0));
        assert!(close(refusal_score(&[1000.0, 0.0, -1000.0], &[2]), -2000.0));
        assert!(close(kl(&[1000.0, 0.0], &[0.0, 1000.0]), 1000.0));
        assert!(close(log_softmax(&[f32::MAX, f32::MAX])[0], -(2f64.ln())));
    }

    #[test]
    fn edges() {
        let no = f32::NEG_INFINITY;
        assert!(close(kl(&[0.0, no], &[0.0, 0.0]), 2f64.ln()));
        assert_eq!(kl(&[0.0, 0.0], &[0.0, no]), f64::INFINITY);
        assert_eq!(kl(&[no, 1.0], &[no, 5.0]), 0.0);
        assert!(kl(&[0.0, f32::NAN], &[0.0, 0.0]).is_nan());
        assert!(kl(&[0.0, 0.0], &[f32::NAN, 0.0]).is_nan());
        assert!(refusal_score(&[0.0, f32::NAN, 1.0], &[0]).is_nan());
        assert_eq!(refusal_score(&[0.0, 1.0], &[]), f64::NEG_INFINITY);
        assert_eq!(refusal_score(&[0.0, 1.0], &[0, 1]), f64::INFINITY);
        assert_eq!(kl(&[], &[]), 0.0);
    }

    #[test]
    #[should_panic(expected = "refusal token 2 is outside a vocabulary of 2")]
    fn a_token_outside_the_vocabulary_panics() {
        let _ = refusal_score(&[0.0, 1.0], &[2]);
    }
}
