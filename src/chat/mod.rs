//! A conversation with a model that is steered meanwhile: its turns, what of them need not be computed again, and what
//! the directions read at every token.
//!
//! An answer depends on the conversation, the steering of now and the sampler, and not on what was switched on or off
//! before: keys and values computed under another steering are never used. So a changed steering computes the whole
//! conversation anew, once: the cache holds two steerings side by side, and goes on with each where it was left.
//! Rejected: to keep what earlier turns left in the cache. An erased direction then lives on in their keys and values,
//! and the same conversation gives another answer after `off` and `on`.
//!
//! ```
//! use ggsteer::chat::{Chat, Directions, Listener, Named, Options, Piece, Steering};
//! use ggsteer::direction::{Direction, Provenance};
//! use ggsteer::intervention::Positions;
//! use ggsteer::runtime::{Model, ModelOptions, Session, SessionOptions, sampling::Sampler};
//!
//! struct Print;
//! impl Listener for Print {
//!     fn piece(&mut self, piece: &Piece) {
//!         println!("{:?} read {:.2}", piece.text, piece.readings[0]);
//!     }
//! }
//!
//! let model = Model::load("gguf-samples/lorekeeper-7m-f16.gguf".as_ref(), &ModelOptions::default())?;
//! let session = Session::new(&model, SessionOptions { n_seq: 2, n_threads: 1, ..SessionOptions::default() })?;
//! // Any vector does; one that means something comes from `Direction::load`.
//! let direction = Direction::new(vec![1.0; model.n_embd()], 4, Provenance::default())?;
//! let directions =
//!     Directions::new(vec![Named { name: "ones".into(), direction }], None, Positions::All);
//! let options = Options { max_tokens: 32, sampler: Sampler::greedy() };
//! let mut chat = Chat::new(session, options, directions, Steering::default())?;
//! let plain = chat.say("How do I polish a lantern?", &mut Print)?.text();
//! let both = chat.compare(&mut Print)?;
//! assert_eq!(both.plain.text(), plain);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod lanes;
mod steering;
mod transcript;

use crate::intervention;
use crate::output::OutputError;
use crate::runtime::sampling::Sampler;
use crate::runtime::template::{Message, Role};
use crate::runtime::{CapturePlan, Captured, Characters, Error, Finish, Session, Token};

use lanes::{Entry, Lanes};
pub use steering::{Directions, Named, Steering};
pub use transcript::{Format, Record};

/// Why a turn could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model, its template or the hook failed.
    #[error(transparent)]
    Runtime(#[from] Error),
    /// Directions that cannot be used so.
    #[error(transparent)]
    Intervention(#[from] intervention::Error),
    /// Something was to be done with the last turn, and there is none.
    #[error("nothing was asked yet")]
    NoTurn,
    /// Steering without a direction.
    #[error("no direction to steer by")]
    NoDirection,
    /// A transcript of a kind that is not known.
    #[error("{path}: ends in neither .md (to be read) nor .jsonl (one JSON object a turn)")]
    Format {
        /// Where it was to be written.
        path: String,
    },
    /// A transcript that could not be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

/// How to answer.
#[derive(Debug, Clone)]
pub struct Options {
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// Each answer draws with a seed of its own, made from this one's.
    pub sampler: Sampler,
}

/// What one token brought.
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The characters that are whole with it; none where it ends inside one, or where it is a control token.
    pub text: String,
    /// r·x for each of [`Directions::read`] where the token was drawn: at the output of the direction's block, one token
    /// before, and before the intervention there (see [`CapturePlan::probes`]). Empty for what is left of a character that
    /// never ended.
    pub readings: Vec<f32>,
}

/// What the model said. The default says nothing, as one that was stopped at once.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Answer {
    /// Token by token.
    pub pieces: Vec<Piece>,
    /// Why it ended.
    pub finish: Finish,
    /// Under which steering.
    pub steering: Steering,
    /// Tokens of the conversation that it answers.
    pub n_prompt_tokens: usize,
    /// Those of them that went through the model for this answer; the rest was in the cache.
    pub n_evaluated: usize,
    /// Tokens of the answer.
    pub n_tokens: usize,
    /// What its seed was made from beside the sampler's own: answers of one number draw alike.
    pub draw: u64,
}

impl Answer {
    /// All it said.
    #[must_use]
    pub fn text(&self) -> String {
        self.pieces.iter().map(|piece| piece.text.as_str()).collect()
    }

    /// The readings of the `i`-th direction, a token each.
    pub fn readings(&self, i: usize) -> impl Iterator<Item = f32> + '_ {
        self.pieces.iter().filter_map(move |piece| piece.readings.get(i).copied())
    }
}

/// A question and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// What the user said.
    pub user: String,
    /// What the model said.
    pub answer: Answer,
}

/// One turn answered twice.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Without any steering.
    pub plain: Answer,
    /// With it.
    pub steered: Answer,
}

/// Hears an answer while it is made.
pub trait Listener {
    /// A token was made.
    fn piece(&mut self, piece: &Piece);

    /// So many tokens of the conversation, `done` of `all` that are not in the cache, are computed; told before each batch.
    fn reading(&mut self, done: usize, all: usize) {
        let _ = (done, all);
    }

    /// Whether the answer is to end here; asked before every token and every batch of the prompt.
    fn stop(&self) -> bool {
        false
    }
}

/// A conversation.
pub struct Chat<'m> {
    session: Session<'m>,
    options: Options,
    directions: Directions,
    plan: CapturePlan,
    steering: Steering,
    system: Option<String>,
    turns: Vec<Turn>,
    /// The first turn that the model is still told of.
    first: usize,
    /// The conversation as the model saw it last, the answer included: it says which tokens were generated.
    seen: Vec<Entry>,
    lanes: Lanes,
    draws: u64,
}

/// Steerings held side by side.
pub const LANES: usize = 2;

impl<'m> Chat<'m> {
    /// A conversation in which nothing was said. A session of [`LANES`] sequences keeps as many steerings side by side.
    ///
    /// # Errors
    /// [`ChatError::NoDirection`], [`ChatError::Intervention`] for a steering that the directions do not allow.
    pub fn new(
        session: Session<'m>,
        options: Options,
        directions: Directions,
        steering: Steering,
    ) -> Result<Self, ChatError> {
        let plan = CapturePlan { probes: directions.probes().into(), ..CapturePlan::default() };
        let lanes = Lanes::new(session.options().n_seq.min(LANES));
        let mut chat = Self {
            session,
            options,
            directions,
            plan,
            steering: Steering::default(),
            system: None,
            turns: Vec::new(),
            first: 0,
            seen: Vec::new(),
            lanes,
            draws: 0,
        };
        chat.set_steering(steering)?;
        Ok(chat)
    }

    /// The most tokens of a conversation and its answer.
    #[must_use]
    pub fn room(&self) -> usize {
        self.session.options().n_ctx.min(self.session.model().n_ctx_train())
    }

    /// Tokens that went through the model so far.
    #[must_use]
    pub fn n_evaluated(&self) -> u64 {
        self.session.n_evaluated()
    }

    /// The directions at hand.
    #[must_use]
    pub fn directions(&self) -> &Directions {
        &self.directions
    }

    /// What is switched on.
    #[must_use]
    pub fn steering(&self) -> Steering {
        self.steering
    }

    /// Steers the answers from here on.
    ///
    /// # Errors
    /// As [`Chat::new`]; the steering is then as it was.
    pub fn set_steering(&mut self, steering: Steering) -> Result<(), ChatError> {
        if !steering.is_plain() && self.directions.is_empty() {
            return Err(ChatError::NoDirection);
        }
        self.directions.intervention(steering)?;
        self.steering = steering;
        Ok(())
    }

    /// The system prompt.
    #[must_use]
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Gives another system prompt, or none, to the whole conversation.
    ///
    /// # Errors
    /// A chat template that refuses it; it is then as it was.
    pub fn set_system(&mut self, system: Option<String>) -> Result<(), ChatError> {
        let before = std::mem::replace(&mut self.system, system);
        if let Err(error) = self.session.model().chat(&self.messages("?")) {
            self.system = before;
            return Err(error.into());
        }
        Ok(())
    }

    /// What was said, the oldest turn first.
    #[must_use]
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// How many of the oldest turns the model is not told of any more, as its context is full.
    #[must_use]
    pub fn n_left_out(&self) -> usize {
        self.first
    }

    /// Forgets what was said; system prompt and steering stay.
    pub fn clear(&mut self) {
        self.turns.clear();
        self.first = 0;
        self.seen.clear();
    }

    /// Asks something and returns the answer, which is now part of the conversation, complete or stopped.
    ///
    /// Where the conversation leaves no room for an answer of [`Options::max_tokens`], the oldest turns are left out until
    /// half of the context is free, so that this happens seldom; see [`Chat::n_left_out`].
    ///
    /// # Errors
    /// A message that does not fit the context even alone, or what the model, its template or the hook say. The
    /// conversation is then as it was.
    pub fn say(&mut self, user: &str, listener: &mut dyn Listener) -> Result<&Answer, ChatError> {
        self.draws += 1;
        let (first, draw) = (self.first, self.draws);
        let answer = self.answer(user, self.steering, draw, true, listener);
        let answer = answer.inspect_err(|_| self.first = first)?;
        self.turns.push(Turn { user: user.to_owned(), answer });
        Ok(&self.turns[self.turns.len() - 1].answer)
    }

    /// Answers the last turn again, under the steering of now and with other draws, and returns the answer that takes the
    /// place of the one before.
    ///
    /// # Errors
    /// [`ChatError::NoTurn`]; as [`Chat::say`], and the answer before stays.
    pub fn regenerate(&mut self, listener: &mut dyn Listener) -> Result<&Answer, ChatError> {
        let turn = self.turns.pop().ok_or(ChatError::NoTurn)?;
        self.first = self.first.min(self.turns.len());
        if let Err(error) = self.say(&turn.user, listener) {
            self.turns.push(turn);
            return Err(error);
        }
        Ok(&self.turns[self.turns.len() - 1].answer)
    }

    /// Answers the last turn with and without steering, with the same draws: with the steering of now or, where nothing is
    /// switched on, with the directions erased. The answer under the steering of now becomes the turn's, if it was not.
    ///
    /// # Errors
    /// [`ChatError::NoTurn`], [`ChatError::NoDirection`]; as [`Chat::say`], and the conversation is as it was.
    pub fn compare(&mut self, listener: &mut dyn Listener) -> Result<Comparison, ChatError> {
        if self.directions.is_empty() {
            return Err(ChatError::NoDirection);
        }
        let turn = self.turns.pop().ok_or(ChatError::NoTurn)?;
        self.first = self.first.min(self.turns.len());
        match self.both(&turn, listener) {
            Ok((kept, other)) => {
                self.turns.push(Turn { user: turn.user, answer: kept.clone() });
                let (plain, steered) = if self.steering.is_plain() { (kept, other) } else { (other, kept) };
                Ok(Comparison { plain, steered })
            }
            Err(error) => {
                self.turns.push(turn);
                Err(error)
            }
        }
    }

    /// The answer of now, and the one to be compared with it.
    fn both(&mut self, turn: &Turn, listener: &mut dyn Listener) -> Result<(Answer, Answer), ChatError> {
        let now = self.steering;
        let other = Steering { ablate: now.is_plain(), scale: 0.0 };
        let kept = if turn.answer.steering == now && turn.answer.finish != Finish::Stopped {
            turn.answer.clone()
        } else {
            self.answer(&turn.user, now, turn.answer.draw, true, listener)?
        };
        let other = self.answer(&turn.user, other, turn.answer.draw, false, listener)?;
        Ok((kept, other))
    }

    fn messages(&self, user: &str) -> Vec<Message> {
        let mut messages: Vec<Message> =
            (self.system.iter()).map(|s| Message::new(Role::System, s)).collect();
        for turn in &self.turns[self.first..] {
            messages.push(Message::new(Role::User, &turn.user));
            messages.push(Message::new(Role::Assistant, turn.answer.text()));
        }
        messages.push(Message::new(Role::User, user));
        messages
    }

    /// The tokens to be answered, with the oldest turns left out as far as needed.
    fn fit(&mut self, user: &str) -> Result<Vec<Token>, ChatError> {
        let room = self.room();
        let answer = self.options.max_tokens.min(room / 2);
        let mut tokens = self.session.model().chat(&self.messages(user))?.tokens;
        if tokens.len() + answer > room {
            while self.first < self.turns.len() && tokens.len() > (room - answer) / 2 {
                self.first += 1;
                tokens = self.session.model().chat(&self.messages(user))?.tokens;
            }
        }
        // One token at least must fit behind it.
        if tokens.len() >= room {
            let (what, found) = ("message".into(), tokens.len());
            return Err(Error::TooLong { what, found, room }.into());
        }
        Ok(tokens)
    }

    /// Generates what follows `user`. `keep` says that it will be the conversation's answer.
    fn answer(
        &mut self,
        user: &str,
        steering: Steering,
        draw: u64,
        keep: bool,
        listener: &mut dyn Listener,
    ) -> Result<Answer, ChatError> {
        let tokens = self.fit(user)?;
        let n_prompt_tokens = tokens.len();
        let max_tokens = self.options.max_tokens.min(self.room() - n_prompt_tokens);
        // Where the conversation is still what was seen, generated tokens are known as such.
        let alike = self.seen.iter().zip(&tokens).take_while(|(seen, token)| seen.0 == **token).count();
        let known = self.seen[..alike].iter().copied();
        let prompt: Vec<Entry> = known.chain(tokens[alike..].iter().map(|&token| (token, true))).collect();

        let intervention = self.directions.intervention(steering)?;
        let (session, lanes) = (&mut self.session, &mut self.lanes);
        let (lane, held) = lanes.choose(session, (steering, intervention), &prompt, max_tokens)?;
        let mut answer = Answer { steering, n_prompt_tokens, draw, ..Answer::default() };
        let mut readings = vec![0.0; self.plan.probes.len()];
        let mut last = 0;
        for batch in prompt[held..].chunks(session.options().n_batch) {
            if listener.stop() {
                return Ok(answer);
            }
            listener.reading(answer.n_evaluated, n_prompt_tokens - held);
            answer.n_evaluated += batch.len();
            let output = held + answer.n_evaluated == n_prompt_tokens;
            let mut sink = |read: Captured<'_>| note(&mut readings, read);
            last = lanes.push(session, &lane, batch, output, (&self.plan, &mut sink))?;
        }
        let mut sampler = self.options.sampler.for_sequence(draw);
        let mut characters = Characters::default();
        let mut not_held = None;
        while !listener.stop() {
            let drawn = sampler.sample(session.logits(last)).ok_or(Error::NoNumber)?;
            let token = Token(drawn as i32);
            if session.model().is_end(token) {
                answer.finish = Finish::Stop;
                break;
            }
            answer.n_tokens += 1;
            let text = characters.push(&session.model().piece(token));
            answer.pieces.push(Piece { text, readings: readings.clone() });
            listener.piece(&answer.pieces[answer.pieces.len() - 1]);
            if answer.n_tokens >= max_tokens {
                answer.finish = Finish::Length;
                not_held = Some(token);
                break;
            }
            let mut sink = |read: Captured<'_>| note(&mut readings, read);
            last = lanes.push(session, &lane, &[(token, false)], true, (&self.plan, &mut sink))?;
        }
        let rest = characters.rest();
        if !rest.is_empty() {
            answer.pieces.push(Piece { text: rest, readings: Vec::new() });
            listener.piece(&answer.pieces[answer.pieces.len() - 1]);
        }
        if keep {
            self.seen = lanes.held(&lane).to_vec();
            self.seen.extend(not_held.map(|token| (token, false)));
        }
        Ok(answer)
    }
}

/// A text in which nothing commands a terminal: control characters but line feeds and tabs, and marks that change the
/// direction of writing, are shown as signs.
#[must_use]
pub fn harmless(text: &str) -> String {
    let sign = |c: char| match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
        '\x7f' => '␡',
        '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        _ => c,
    };
    text.chars().map(sign).collect()
}

/// Takes what a probe has read.
fn note(readings: &mut [f32], read: Captured<'_>) {
    if let (crate::runtime::Site::Probe(i), [value]) = (read.site, read.row) {
        readings[i] = *value;
    }
}

#[cfg(test)]
mod tests {
    use super::harmless;

    #[test]
    fn nothing_commands_a_terminal() {
        assert_eq!(harmless("a\x1b[31mb\x07\r\n\tc\x7f"), "a␛[31mb␇␍\n\tc␡");
        assert_eq!(harmless("x\u{9b}2J\u{202e}y é 漢"), "x\u{fffd}2J\u{fffd}y é 漢");
    }
}
