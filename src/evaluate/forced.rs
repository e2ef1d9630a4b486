//! Teacher forcing: the logits of a model along tokens that are given, many sequences to a batch.

#![forbid(unsafe_code)]

use std::sync::Arc;

use super::kl::kl;
use crate::intervention::Intervention;
use crate::runtime::sampling::Sampler;
use crate::runtime::{Error, GenerateOptions, Item, Outputs, Prompt, Session, Token, jobs};

/// A sequence of given tokens.
#[derive(Debug, Clone)]
pub struct Forced<'a> {
    /// What the user or a document says.
    pub prompt: &'a [Token],
    /// What is put into the model's mouth.
    pub answer: &'a [Token],
    /// How many tokens at the end give logits: 1 to all.
    pub n_out: usize,
    /// What is done to its stream.
    pub intervention: Option<Arc<Intervention>>,
}

impl Forced<'_> {
    fn len(&self) -> usize {
        self.prompt.len() + self.answer.len()
    }

    /// Tokens `start..end` as items of sequence `seq`: those of the prompt, those of the answer.
    fn items(&self, seq: usize, start: usize, end: usize) -> impl Iterator<Item = Item<'_>> {
        let border = self.prompt.len();
        let first_output = self.len() - self.n_out.min(self.len());
        let parts = [
            (start, &self.prompt[start.min(border)..end.min(border)], true),
            (start.max(border), &self.answer[start.max(border) - border..end.max(border) - border], false),
        ];
        parts.into_iter().filter(|(_, tokens, _)| !tokens.is_empty()).map(move |(start, tokens, prompt)| {
            Item {
                seq,
                start,
                tokens,
                prompt,
                outputs: Outputs::Last((start + tokens.len()).saturating_sub(first_output)),
                intervention: self.intervention.clone(),
            }
        })
    }
}

/// Hands out the logits (`n_vocab`) after each of the last `n_out` tokens of every sequence, in order: the
/// index of the sequence, that of the token in it, the logits.
///
/// # Errors
/// An empty sequence, one that is longer than the context, or as [`Session::decode`].
pub fn logits(
    session: &mut Session<'_>,
    sequences: &[Forced<'_>],
    sink: &mut dyn FnMut(usize, usize, &[f32]),
) -> Result<(), Error> {
    let (n_batch, n_seq) = (session.options().n_batch, session.options().n_seq);
    let room = session.options().n_ctx.min(session.model().n_ctx_train());
    for found in sequences.iter().map(Forced::len) {
        match found {
            0 => return Err(Error::EmptyPrompt),
            _ if found > room => return Err(Error::TooLong { what: "sequence".into(), found, room }),
            _ => (),
        }
    }
    let mut next = 0;
    while next < sequences.len() {
        session.clear();
        let mut size = 0;
        let fits = sequences[next..].iter().take(n_seq).take_while(|sequence| {
            size += sequence.len();
            size <= n_batch
        });
        // A sequence that outgrows a batch goes alone, in pieces.
        let n = fits.count().max(1);
        let group = &sequences[next..next + n];
        let longest = group.iter().map(Forced::len).max().unwrap_or(0);
        for start in (0..longest).step_by(n_batch) {
            let parts = group.iter().enumerate().map(|(seq, sequence)| {
                let end = sequence.len().min(start + n_batch);
                (seq, sequence, end)
            });
            let items: Vec<Item<'_>> =
                parts.clone().flat_map(|(seq, sequence, end)| sequence.items(seq, start, end)).collect();
            session.decode(&items, None)?;
            let mut row = 0;
            for (seq, sequence, end) in parts {
                let first_output = sequence.len() - sequence.n_out.min(sequence.len());
                for token in start..end {
                    if token >= first_output {
                        sink(next + seq, token, session.logits(row));
                    }
                    row += 1;
                }
            }
        }
        next += n;
    }
    Ok(())
}

/// The first `n` tokens of the model's own greedy answers, with the token that ends them where they are
/// shorter: what [`divergences`] forces on another.
///
/// # Errors
/// As [`Session::generate`].
pub fn openings(
    session: &mut Session<'_>,
    prompts: &[Prompt],
    n: usize,
    step: &mut dyn FnMut(),
) -> Result<Vec<Vec<Token>>, Error> {
    let options = GenerateOptions { max_tokens: n, sampler: Sampler::greedy() };
    let answers = session.generate(&jobs(prompts, None), &options, &mut |_, _| (), &mut |_, _| step())?;
    Ok(answers.into_iter().map(|answer| answer.tokens).collect())
}

/// How many sequences' logits are held at once: bounds the memory to this many times positions × vocabulary.
const GROUP: usize = 8;

/// KL(base ‖ other) in nats along the base's own answers, by position: entry `[i][j]` is that of the
/// distributions of answer token `j` to prompt `i`, given the prompt and the first `j` tokens of
/// `openings[i]` (from [`openings`]), for as many `j` as the opening has tokens and one more for the end of a
/// shorter one, at most `n`; at least one.
///
/// `base` runs plain, `other` (of the same vocabulary) under `intervention`.
///
/// # Errors
/// As [`logits`].
///
/// # Panics
/// When the vocabularies are of different sizes.
pub fn divergences(
    base: &mut Session<'_>,
    other: &mut Session<'_>,
    prompts: &[Prompt],
    openings: &[Vec<Token>],
    n: usize,
    intervention: Option<&Arc<Intervention>>,
    step: &mut dyn FnMut(),
) -> Result<Vec<Vec<f64>>, Error> {
    let mut all = Vec::with_capacity(prompts.len());
    for (prompts, openings) in prompts.chunks(GROUP).zip(openings.chunks(GROUP)) {
        let forced = |intervention: Option<&Arc<Intervention>>| -> Vec<Forced<'_>> {
            let pairs = prompts.iter().zip(openings);
            pairs
                .map(|(prompt, opening)| {
                    // The last token scored is predicted, not read.
                    let answer = &opening[..opening.len().min(n.saturating_sub(1))];
                    let intervention = intervention.cloned();
                    Forced { prompt: &prompt.tokens, answer, n_out: answer.len() + 1, intervention }
                })
                .collect()
        };
        let mut plain: Vec<Vec<f32>> = Vec::new();
        logits(base, &forced(None), &mut |_, _, row| plain.push(row.to_vec()))?;
        let mut plain = plain.iter();
        let first = all.len();
        all.resize_with(first + prompts.len(), Vec::new);
        logits(other, &forced(intervention), &mut |i, _, row| {
            let base = plain.next().expect("both give logits at the same tokens");
            all[first + i].push(kl(base, row));
        })?;
        prompts.iter().for_each(|_| step());
    }
    Ok(all)
}
