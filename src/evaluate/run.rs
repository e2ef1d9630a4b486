//! Asking a model everything in two prompt sets, plain or steered, and counting.

use std::sync::Arc;

use serde::Serialize;

use super::kl::kl;
use super::{Degeneracy, Markers, Rate, degeneracy};
use crate::intervention::Intervention;
use crate::runtime::sampling::Sampler;
use crate::runtime::{Error, Finish, GenerateOptions, Job, Prompt, Session};

/// A prompt set as text and as the model sees it.
#[derive(Debug, Clone)]
pub struct Set {
    /// The user's words.
    pub texts: Vec<String>,
    /// The same, templated and tokenized.
    pub prompts: Vec<Prompt>,
}

/// One answer and what it was counted as.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// The user's words.
    pub prompt: String,
    /// The model's, greedily.
    pub completion: String,
    /// It begins like a refusal.
    pub refused: bool,
    /// It says nothing.
    pub empty: bool,
    /// It repeats itself.
    pub looping: bool,
    /// Why it ended.
    pub finish: Finish,
}

/// The counts over one set.
#[derive(Debug, Clone, Serialize)]
pub struct SetResult {
    /// Prompts asked.
    pub n: usize,
    /// Refused, as a part of 1.
    pub refusal_rate: f64,
    /// The same with its 95 % interval.
    pub refused: Rate,
    /// Answers of no words.
    pub empty: usize,
    /// Answers that repeat themselves.
    pub looping: usize,
    /// Mean KL(base ‖ this) of the first answer token's distribution, in nats.
    pub kl_first_token: f64,
}

/// The counts over both sets.
#[derive(Debug, Clone, Serialize)]
pub struct Evaluation {
    /// Prompts asked in all.
    pub n: usize,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// Over the prompts that the behaviour is expected on.
    pub harmful: SetResult,
    /// Over those it is not.
    pub harmless: SetResult,
}

/// Logits (`n_vocab`) after each prompt, in order.
///
/// # Errors
/// As [`Session::prefill`].
pub fn first_logits(
    session: &mut Session<'_>,
    prompts: &[Prompt],
    intervention: Option<&Arc<Intervention>>,
    step: &mut dyn FnMut(),
) -> Result<Vec<Vec<f32>>, Error> {
    let jobs = jobs(prompts, intervention);
    let mut logits = Vec::with_capacity(prompts.len());
    session.prefill(&jobs, None, &mut |_, row| {
        logits.push(row.to_vec());
        step();
    })?;
    Ok(logits)
}

/// Asks every prompt of a set and counts; `base` holds the logits of the model that KL is measured against.
///
/// # Errors
/// As [`Session::generate`].
pub fn evaluate_set(
    session: &mut Session<'_>,
    set: &Set,
    intervention: Option<&Arc<Intervention>>,
    base: &[Vec<f32>],
    options: &Options,
    step: &mut dyn FnMut(),
) -> Result<(SetResult, Vec<Answer>), Error> {
    let here = first_logits(session, &set.prompts, intervention, &mut || ())?;
    let divergence: f64 = base.iter().zip(&here).map(|(p, q)| kl(p, q)).sum();
    let generate = GenerateOptions { max_tokens: options.max_tokens, sampler: Sampler::greedy() };
    let jobs = jobs(&set.prompts, intervention);
    let completions = session.generate(&jobs, &generate, &mut |_, _| (), &mut |_, _| step())?;
    let answers: Vec<Answer> = (set.texts.iter().zip(completions))
        .map(|(prompt, c)| Answer {
            prompt: prompt.clone(),
            refused: options.markers.is_refusal(&c.text),
            empty: degeneracy(&c.text) == Some(Degeneracy::Empty),
            looping: degeneracy(&c.text) == Some(Degeneracy::Looping),
            finish: c.finish,
            completion: c.text,
        })
        .collect();
    let count = |what: fn(&Answer) -> bool| answers.iter().filter(|a| what(a)).count();
    let refused = Rate::of(answers.iter().map(|a| a.refused));
    let result = SetResult {
        n: refused.n,
        refusal_rate: refused.rate,
        refused,
        empty: count(|a| a.empty),
        looping: count(|a| a.looping),
        kl_first_token: divergence / base.len().max(1) as f64,
    };
    Ok((result, answers))
}

/// What an evaluation is made with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// What counts as a refusal.
    pub markers: Markers,
}

fn jobs<'a>(prompts: &'a [Prompt], intervention: Option<&Arc<Intervention>>) -> Vec<Job<'a>> {
    prompts.iter().map(|p| Job { tokens: &p.tokens, n_out: 1, intervention: intervention.cloned() }).collect()
}
