//! Asking a model everything in two prompt sets, plain or steered, and counting.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::forced::{divergences, openings};
use super::interval::Mean;
use super::judge::{Opinion, Verdicts};
use super::{Degeneracy, Markers, Rate, degeneracy, null_as_nan};
use crate::intervention::Intervention;
use crate::runtime::sampling::Sampler;
use crate::runtime::{Error, Finish, GenerateOptions, Prompt, Session, Token, jobs};

/// A prompt set as text and as the model sees it.
#[derive(Debug, Clone, Default)]
pub struct Set {
    /// The user's words.
    pub texts: Vec<String>,
    /// The same, templated and tokenized.
    pub prompts: Vec<Prompt>,
}

/// One answer and what it was counted as.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Answer {
    /// The user's words.
    pub prompt: String,
    /// The model's, greedily.
    pub completion: String,
    /// It begins like a refusal.
    pub refused: bool,
    /// It does not, but says something like a refusal later.
    pub refused_late: bool,
    /// How it is broken, if it is: a broken answer may begin like a refusal too.
    pub broken: Option<Degeneracy>,
    /// Why it ended.
    pub finish: Finish,
    /// What the judge makes of it, where there is one.
    pub judge: Option<Opinion>,
}

impl Answer {
    /// Counts what the model said to `prompt`.
    #[must_use]
    pub fn new(prompt: String, completion: String, finish: Finish, markers: &Markers) -> Self {
        let refused = markers.is_refusal(&completion);
        Self {
            refused,
            refused_late: !refused && markers.clone().with_window(None).is_refusal(&completion),
            broken: degeneracy(&completion),
            prompt,
            completion,
            finish,
            judge: None,
        }
    }

    /// Neither refused, soon or late, nor broken.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        !self.refused && !self.refused_late && self.broken.is_none()
    }
}

/// The counts over one set.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SetResult {
    /// Prompts asked.
    pub n: usize,
    /// Refused, as a part of 1.
    pub refusal_rate: f64,
    /// The same with its 95 % interval.
    pub refused: Rate,
    /// Not refused at the beginning, but with a refusal's words later.
    pub refused_late: Rate,
    /// Answers of no words.
    pub empty: Rate,
    /// Answers that repeat themselves.
    pub looping: Rate,
    /// Answers in no language.
    pub garbled: Rate,
    /// Any of these three.
    pub broken: Rate,
    /// Neither refused, soon or late, nor broken.
    pub answered: Rate,
    /// Mean KL(base ‖ this) of the first answer token's distribution, in nats.
    #[serde(deserialize_with = "null_as_nan")]
    pub kl_first_token: f64,
    /// The same with its 95 % interval over prompts.
    pub kl_first: Mean,
    /// Mean over prompts of the mean KL(base ‖ this) along the first tokens of the base's own answer.
    pub kl_tokens: Mean,
    /// What the judge says, where there is one.
    pub judge: Option<Verdicts>,
}

impl SetResult {
    /// Counts `answers`; `divergences` are those of [`super::forced::divergences`], `seed` is that of the
    /// intervals.
    #[must_use]
    pub fn new(answers: &[Answer], divergences: &[Vec<f64>], seed: u64) -> Self {
        let count = |what: &dyn Fn(&Answer) -> bool| Rate::of(answers.iter().map(what));
        let broken = |how: Degeneracy| count(&|a| a.broken == Some(how));
        let refused = count(&|a| a.refused);
        let first: Vec<f64> = divergences.iter().map(|kl| kl[0]).collect();
        let along: Vec<f64> = divergences.iter().map(|kl| kl.iter().sum::<f64>() / kl.len() as f64).collect();
        let kl_first = Mean::of(&first, seed);
        Self {
            n: refused.n,
            refusal_rate: refused.rate,
            refused,
            refused_late: count(&|a| a.refused_late),
            empty: broken(Degeneracy::Empty),
            looping: broken(Degeneracy::Looping),
            garbled: broken(Degeneracy::Garbled),
            broken: count(&|a| a.broken.is_some()),
            answered: count(&Answer::is_answered),
            kl_first_token: kl_first.mean,
            kl_first,
            kl_tokens: Mean::of(&along, seed),
            judge: None,
        }
    }
}

/// The counts over both sets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Evaluation {
    /// Prompts asked in all.
    pub n: usize,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// The most positions of `kl_tokens`.
    pub n_kl_tokens: usize,
    /// Ordinary prompts refused: `harmless.refused`, by the name it has where nothing was to be induced.
    pub over_refusal: Rate,
    /// Over the prompts that the behaviour is expected on.
    pub harmful: SetResult,
    /// Over those it is not.
    pub harmless: SetResult,
}

/// An evaluation with its answers, \[harmful, harmless\].
pub type Evaluated = (Evaluation, [Vec<Answer>; 2]);

/// What an evaluation is made with.
#[derive(Debug, Clone)]
pub struct Options {
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// What counts as a refusal.
    pub markers: Markers,
    /// Positions of the base's own answers that KL is taken over, at least 1.
    pub kl_tokens: usize,
    /// Seed of the bootstrap.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_tokens: 128, markers: Markers::default(), kl_tokens: 16, seed: 0 }
    }
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

/// Asks every prompt of a set, greedily.
///
/// # Errors
/// As [`Session::generate`].
pub fn answers(
    session: &mut Session<'_>,
    set: &Set,
    intervention: Option<&Arc<Intervention>>,
    options: &Options,
    step: &mut dyn FnMut(),
) -> Result<Vec<Answer>, Error> {
    let generate = GenerateOptions { max_tokens: options.max_tokens, sampler: Sampler::greedy() };
    let jobs = jobs(&set.prompts, intervention);
    let completions = session.generate(&jobs, &generate, &mut |_, _| (), &mut |_, _| step())?;
    let answered = set.texts.iter().zip(completions);
    Ok(answered.map(|(prompt, c)| Answer::new(prompt.clone(), c.text, c.finish, &options.markers)).collect())
}

/// The beginnings of the base's own answers to both sets, along which KL is measured.
#[derive(Debug, Clone)]
pub struct Openings {
    sets: [Vec<Vec<Token>>; 2],
    n: usize,
}

impl Openings {
    /// Lets the plain model of `base` begin its answers to \[harmful, harmless\], `n` tokens each (at least
    /// 1). `step` is called after each prompt.
    ///
    /// # Errors
    /// As [`Session::generate`].
    pub fn measure(
        base: &mut Session<'_>,
        sets: [&Set; 2],
        n: usize,
        step: &mut dyn FnMut(),
    ) -> Result<Self, Error> {
        let n = n.max(1);
        let [harmful, harmless] = sets.map(|set| &set.prompts);
        let sets = [openings(base, harmful, n, step)?, openings(base, harmless, n, step)?];
        Ok(Self { sets, n })
    }
}

/// Asks the model of `session` everything in \[harmful, harmless\], under `intervention`, and measures how
/// far it is from the plain model of `base`, whose `openings` these are. `step` is called twice for each
/// prompt.
///
/// # Errors
/// As [`Session::generate`].
pub fn evaluate(
    session: &mut Session<'_>,
    base: &mut Session<'_>,
    openings: &Openings,
    sets: [&Set; 2],
    intervention: Option<&Arc<Intervention>>,
    options: &Options,
    step: &mut dyn FnMut(),
) -> Result<Evaluated, Error> {
    let mut of = |set: &Set, openings_of: &[Vec<Token>]| {
        let answers = answers(session, set, intervention, options, step)?;
        let prompts = &set.prompts;
        let kl = divergences(base, session, prompts, openings_of, openings.n, intervention, step)?;
        Ok::<_, Error>((SetResult::new(&answers, &kl, options.seed), answers))
    };
    let (harmful, said) = of(sets[0], &openings.sets[0])?;
    let (harmless, answered) = of(sets[1], &openings.sets[1])?;
    let evaluation = Evaluation {
        n: harmful.n + harmless.n,
        max_tokens: options.max_tokens,
        n_kl_tokens: openings.n,
        over_refusal: harmless.refused,
        harmful,
        harmless,
    };
    Ok((evaluation, [said, answered]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(completion: &str) -> Answer {
        Answer::new("Why?".into(), completion.into(), Finish::Stop, &Markers::default())
    }

    #[test]
    fn each_answer_is_counted_as_what_it_is() {
        let steps: Vec<String> = (1..12).map(|i| format!("Step {i}: fold the dough.")).collect();
        let late = steps.join(" ") + " But I cannot go on with this.";
        let stammer = "I'm sorry ".repeat(40);
        let answers = ["I'm sorry, no.", &late, "", &stammer, "Bake it.", "}{ ;; ()~ <> ?! ** ^^ -- ::"];
        let answers = answers.map(answer);
        let divergences = [vec![2.0, 4.0], vec![1.0], vec![0.0; 3], vec![0.0], vec![0.0], vec![0.0]];
        let result = SetResult::new(&answers, &divergences, 0);
        let hits = [
            result.refused,
            result.refused_late,
            result.empty,
            result.looping,
            result.garbled,
            result.broken,
            result.answered,
        ];
        assert_eq!(hits.map(|rate| rate.hits), [2, 1, 1, 1, 1, 3, 1]);
        assert!(hits.iter().all(|rate| rate.n == 6));
        assert!((result.kl_first_token - 0.5).abs() < 1e-12);
        assert!((result.kl_tokens.mean - 4.0 / 6.0).abs() < 1e-12, "each prompt counts once");
    }
}
