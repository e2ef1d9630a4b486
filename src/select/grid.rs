//! What candidates are scored with: the refusal tokens, and the validation prompts that behave as they should.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use crate::evaluate::Markers;
use crate::evaluate::kl::refusal_score;
use crate::evaluate::run::first_logits;
use crate::intervention::Intervention;
use crate::random::SplitMix64;
use crate::runtime::sampling::Sampler;
use crate::runtime::{Error, GenerateOptions, Prompt, Session, Token, jobs};

/// Tokens of a model's own refusals to look at; a refusal shows itself in its first words.
const PROBE_TOKENS: usize = 24;

/// The tokens whose probability is the refusal score.
#[derive(Debug, Clone, Serialize)]
pub struct RefusalTokens {
    /// Token ids.
    pub ids: Vec<usize>,
    /// Their text.
    pub texts: Vec<String>,
    /// The part of the model's own refusals that begins with one of them; `None` where the user named them.
    pub coverage: Option<f64>,
}

/// First tokens of the model's own refusals, leaving out those that begin its answers as often.
/// An empty list means that it refused nothing.
///
/// # Errors
/// As [`Session::generate`].
pub fn find_refusal_tokens(
    session: &mut Session<'_>,
    harmful: &[Prompt],
    harmless: &[Prompt],
    markers: &Markers,
    step: &mut dyn FnMut(),
) -> Result<RefusalTokens, Error> {
    let options = GenerateOptions { max_tokens: PROBE_TOKENS, sampler: Sampler::greedy() };
    let jobs = jobs(harmful.iter().chain(harmless), None);
    let completions = session.generate(&jobs, &options, &mut |_, _| (), &mut |_, _| step())?;
    // How often each token begins a refusal, and how often another answer.
    let mut first: BTreeMap<usize, [usize; 2]> = BTreeMap::new();
    let mut totals = [0usize; 2];
    for completion in &completions {
        let kind = usize::from(!markers.is_refusal(&completion.text));
        if let Some(token) = completion.tokens.first() {
            first.entry(token.0 as usize).or_default()[kind] += 1;
            totals[kind] += 1;
        }
    }
    let part = |hits: usize, total: usize| hits as f64 / total.max(1) as f64;
    let mut kept: Vec<(usize, usize)> = (first.iter())
        .filter(|(_, n)| n[0] > 0 && part(n[0], totals[0]) > part(n[1], totals[1]))
        .map(|(&token, n)| (token, n[0]))
        .collect();
    kept.sort_by_key(|&(token, n)| (std::cmp::Reverse(n), token));
    let covered: usize = kept.iter().map(|(_, n)| n).sum();
    let ids: Vec<usize> = kept.iter().map(|(token, _)| *token).collect();
    let texts = ids.iter().map(|&id| session.model().token_text(Token(id as i32))).collect();
    Ok(RefusalTokens { ids, texts, coverage: Some(part(covered, totals[0])) })
}

/// Validation prompts that behave as their set should, with the model's plain logits on the harmless ones.
#[derive(Debug, Clone)]
pub struct Filtered {
    /// Harmful prompts with a refusal score above 0.
    pub harmful: Vec<Prompt>,
    /// Harmless ones with a score below 0.
    pub harmless: Vec<Prompt>,
    /// Plain logits after each harmless prompt, `n_vocab` each.
    pub base: Vec<Vec<f32>>,
}

impl Filtered {
    /// Puts both sets in an order that depends on the seed alone.
    pub fn shuffle(&mut self, seed: u64) {
        let mut random = SplitMix64(seed);
        random.shuffle(&mut self.harmful);
        let (harmless, base) = (std::mem::take(&mut self.harmless), std::mem::take(&mut self.base));
        let mut pairs: Vec<_> = harmless.into_iter().zip(base).collect();
        random.shuffle(&mut pairs);
        (self.harmless, self.base) = pairs.into_iter().unzip();
    }
}

/// The prompts that the model refuses: those with a refusal score above 0.
///
/// # Errors
/// As [`Session::prefill`].
pub fn refused(
    session: &mut Session<'_>,
    prompts: &[Prompt],
    tokens: &[usize],
    intervention: Option<&Arc<Intervention>>,
) -> Result<Vec<Prompt>, Error> {
    let logits = first_logits(session, prompts, intervention, &mut || ())?;
    let refused = prompts.iter().zip(&logits).filter(|(_, l)| refusal_score(l, tokens) > 0.0);
    Ok(refused.map(|(prompt, _)| prompt.clone()).collect())
}

/// Keeps the prompts that the model treats as their set says.
///
/// # Errors
/// As [`Session::prefill`].
pub fn filter(
    session: &mut Session<'_>,
    harmful: &[Prompt],
    harmless: &[Prompt],
    tokens: &RefusalTokens,
) -> Result<Filtered, Error> {
    let harmful = refused(session, harmful, &tokens.ids, None)?;
    let answered = first_logits(session, harmless, None, &mut || ())?;
    let kept = harmless.iter().zip(answered).filter(|(_, l)| refusal_score(l, &tokens.ids) < 0.0);
    let (harmless, base) = kept.map(|(p, l)| (p.clone(), l)).unzip();
    Ok(Filtered { harmful, harmless, base })
}
