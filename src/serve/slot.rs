//! One sequence: what it is to become, and how far it is.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::steering::Applied;
use super::stop::Held;
use crate::runtime::sampling::Sampler;
use crate::runtime::{Characters, Finish, Item, Model, Outputs, Token};

/// A sequence to be generated: one choice of one request.
#[derive(Debug)]
pub(super) struct Task {
    /// Its number in the request.
    pub choice: usize,
    pub prompt: Arc<[Token]>,
    /// At least 1.
    pub max_tokens: usize,
    pub sampler: Sampler,
    pub stop: Arc<[String]>,
    /// Whether tokens come with their logarithmic probabilities, and with those of so many of the likeliest.
    pub logprobs: Option<usize>,
    pub steering: Arc<Applied>,
    /// Closed when the client went away. It has room for all that its tasks can send, so that nobody ever waits for a
    /// client that reads slowly.
    pub events: mpsc::Sender<Event>,
}

impl Task {
    /// Cells of the cache that it may need.
    pub(super) fn cells(&self) -> usize {
        self.prompt.len() + self.max_tokens
    }

    /// The most events of so many tasks like it: its tokens, its end, and an error.
    pub(super) fn events(n_tasks: usize, max_tokens: usize) -> usize {
        n_tasks * (max_tokens + 2)
    }
}

/// What a task sends; the first number is its choice.
#[derive(Debug)]
pub(super) enum Event {
    Piece(usize, Piece),
    End { choice: usize, finish: Finish, n_tokens: usize },
    Failed(Failure),
}

/// Why an answer cannot be completed.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// The model failed on it; in words.
    Model(String),
    /// The server ends.
    Closing,
}

/// A token and what came with it.
#[derive(Debug, Clone, Default)]
pub(super) struct Piece {
    /// `None` for what is left of a character that never ended.
    pub token: Option<Token>,
    /// The characters that are whole with it, less what belongs to a stop string.
    pub text: String,
    pub logprobs: Option<Logprobs>,
    /// What each of [`Applied::read`] reads where the token was drawn.
    pub readings: Vec<f32>,
}

#[cfg(test)]
impl Piece {
    pub(super) fn of(text: &str) -> Self {
        Self { text: text.into(), ..Self::default() }
    }
}

/// Natural logarithms of probabilities, as the model has them: before temperature and cuts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Logprobs {
    /// Of the token drawn.
    pub drawn: f32,
    /// The likeliest, with the likeliest first.
    pub top: Vec<(Token, f32)>,
}

impl Logprobs {
    /// Of `drawn` and of the `n` likeliest, where `logits` has shape `[n_vocab]`.
    pub(super) fn new(logits: &[f32], drawn: usize, n: usize) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().filter(|x| !x.is_nan()).map(|x| f64::from(x - max).exp()).sum();
        let of = |id: usize| (f64::from(logits[id] - max) - sum.ln()) as f32;
        let by_rank = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        let mut ids: Vec<usize> = (0..logits.len()).filter(|id| !logits[*id].is_nan()).collect();
        if n < ids.len() {
            ids.select_nth_unstable_by(n, by_rank);
            ids.truncate(n);
        }
        ids.sort_unstable_by(by_rank);
        Self { drawn: of(drawn), top: ids.into_iter().map(|id| (Token(id as i32), of(id))).collect() }
    }
}

/// A task under way in a sequence of the session.
pub(super) struct Slot {
    pub task: Task,
    /// Tokens in the cache.
    pub held: usize,
    /// The token drawn last, which goes in next.
    next: Option<Token>,
    /// Tokens drawn.
    pub n_tokens: usize,
    characters: Characters,
    text: Held,
    /// Of [`Applied::read`], at the last output.
    pub readings: Vec<f32>,
}

impl Slot {
    pub(super) fn new(task: Task) -> Self {
        Self {
            held: 0,
            next: None,
            n_tokens: 0,
            characters: Characters::default(),
            text: Held::new(Arc::clone(&task.stop)),
            readings: vec![0.0; task.steering.read.len()],
            task,
        }
    }

    /// Tokens that are to go in before one is drawn: of the prompt, or the one drawn last.
    pub(super) fn needs(&self) -> usize {
        self.task.prompt.len().saturating_sub(self.held).max(1)
    }

    /// Whether its prompt is not wholly in the cache.
    pub(super) fn is_in_prompt(&self) -> bool {
        self.held < self.task.prompt.len()
    }

    /// The next `n` of the tokens it needs, in the sequence `seq`.
    pub(super) fn item(&self, seq: usize, n: usize) -> Item<'_> {
        let prompt = self.is_in_prompt();
        let tokens = if prompt { &self.task.prompt[self.held..self.held + n] } else { self.next.as_slice() };
        let outputs = if n == self.needs() { Outputs::Last(1) } else { Outputs::None };
        let intervention = self.task.steering.intervention.clone();
        Item { seq, start: self.held, tokens, prompt, outputs, intervention }
    }

    /// Draws a token from the logits after all it needed; true when that was the last.
    pub(super) fn advance(&mut self, model: &Model, logits: &[f32]) -> bool {
        let Some(drawn) = self.task.sampler.sample(logits) else {
            self.fail(Failure::Model(crate::runtime::Error::NoNumber.to_string()));
            return true;
        };
        let token = Token(drawn as i32);
        if model.is_end(token) {
            let text = self.characters.rest();
            if !text.is_empty() {
                let (pieces, _) = self.text.push(Piece { text, ..Piece::default() });
                self.send_all(pieces);
            }
            self.end(Finish::Stop);
            return true;
        }
        self.n_tokens += 1;
        let last = self.n_tokens >= self.task.max_tokens;
        let mut text = self.characters.push(&model.piece(token));
        if last {
            text += &self.characters.rest();
        }
        let logprobs = self.task.logprobs.map(|n| Logprobs::new(logits, drawn, n));
        let readings = self.readings.clone();
        let (pieces, stopped) = self.text.push(Piece { token: Some(token), text, logprobs, readings });
        self.send_all(pieces);
        if stopped || last {
            self.end(if stopped { Finish::Stop } else { Finish::Length });
            return true;
        }
        self.next = Some(token);
        false
    }

    /// Lets go of what is held, and says why nothing more comes.
    fn end(&mut self, finish: Finish) {
        let rest = self.text.rest();
        self.send_all(rest);
        self.send(Event::End { choice: self.task.choice, finish, n_tokens: self.n_tokens });
    }

    /// Says that no answer comes.
    pub(super) fn fail(&self, failure: Failure) {
        self.send(Event::Failed(failure));
    }

    fn send_all(&self, pieces: Vec<Piece>) {
        for piece in pieces {
            self.send(Event::Piece(self.task.choice, piece));
        }
    }

    fn send(&self, event: Event) {
        // There is room for all; an error means that nobody listens any more, which the engine sees for itself.
        let _ = self.task.events.try_send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_are_those_of_the_softmax() {
        let logits: Vec<f32> = [0.2f32, 0.5, 0.0, 0.3].iter().map(|p| p.ln() + 7.0).collect();
        let Logprobs { drawn, top } = Logprobs::new(&logits, 3, 2);
        assert!((drawn.exp() - 0.3).abs() < 1e-6);
        assert_eq!(top.iter().map(|(token, _)| token.0).collect::<Vec<_>>(), [1, 3]);
        assert!((top[0].1.exp() - 0.5).abs() < 1e-6 && top[1].1 == drawn);
        // More than there are, ties and what is no number.
        let Logprobs { top, .. } = Logprobs::new(&[1.0, f32::NAN, 1.0, f32::NEG_INFINITY], 0, 9);
        assert_eq!(top.iter().map(|(token, _)| token.0).collect::<Vec<_>>(), [0, 2, 3]);
        assert_eq!((top[0].1, top[2].1), (top[1].1, f32::NEG_INFINITY));
        assert!(Logprobs::new(&[1.0], 0, 0).top.is_empty());
    }
}
