//! Generation: many sequences side by side, each with its own intervention and its own seeded sampler.

use llama_cpp_2::token::LlamaToken;

use super::sampling::Sampler;
use super::session::Job;
use super::{Error, Item, Outputs, Session};

/// How to generate.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// Cloned for each job.
    pub sampler: Sampler,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// The model ended its turn.
    Stop,
    /// [`GenerateOptions::max_tokens`] were made.
    Length,
    /// It was told to stop, as [`crate::chat`] can be.
    #[default]
    Stopped,
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// Its text, without control tokens.
    pub text: String,
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<LlamaToken>,
    /// Why it ended.
    pub finish: Finish,
}

/// A sequence under way.
struct Slot {
    job: usize,
    sampler: Sampler,
    /// Tokens in the cache, and those that go in next.
    length: usize,
    pending: Vec<LlamaToken>,
    tokens: Vec<LlamaToken>,
    text: Characters,
}

/// The bytes of tokens as text that comes in whole characters: a character may be spread over several tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Characters {
    bytes: Vec<u8>,
    shown: usize,
}

impl Characters {
    /// Takes a token's bytes; returns the characters that are whole now and were not before, maybe none.
    pub(crate) fn push(&mut self, piece: &[u8]) -> String {
        self.bytes.extend(piece);
        let new = &self.bytes[self.shown..];
        let new = &new[..whole_characters(new)];
        self.shown += new.len();
        String::from_utf8_lossy(new).into_owned()
    }

    /// What has not been returned yet: the beginning of a character that never ended.
    pub(crate) fn rest(&self) -> String {
        String::from_utf8_lossy(&self.bytes[self.shown..]).into_owned()
    }

    /// All of it.
    fn all(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

impl Session<'_> {
    /// Continues every job's prompt until the model ends it or `max_tokens` are made. `on_text` receives pieces of text
    /// as they come (whole characters), `on_done` each finished completion.
    ///
    /// # Errors
    /// A prompt that leaves no room for `max_tokens`, or as [`Session::decode`].
    pub fn generate(
        &mut self,
        jobs: &[Job<'_>],
        options: &GenerateOptions,
        on_text: &mut dyn FnMut(usize, &str),
        on_done: &mut dyn FnMut(usize, &Completion),
    ) -> Result<Vec<Completion>, Error> {
        for job in jobs {
            self.check_length(job.tokens.len())?;
            self.check_length(job.tokens.len().saturating_add(options.max_tokens))?;
        }
        let longest =
            jobs.iter().map(|j| j.tokens.len().saturating_add(options.max_tokens)).max().unwrap_or(1);
        let n_batch = self.options().n_batch;
        let n_slots = self.options().n_seq.min(self.options().n_ctx / longest).min(n_batch);
        let mut slots: Vec<Option<Slot>> = (0..n_slots).map(|_| None).collect();
        let mut done: Vec<Option<Completion>> = vec![None; jobs.len()];
        let mut waiting = (0..jobs.len()).peekable();
        self.clear();
        while done.iter().any(Option::is_none) {
            // The running sequences take a token each; new prompts share the rest of the batch.
            let mut room = n_batch - slots.iter().flatten().count();
            for (seq, slot) in slots.iter_mut().enumerate().filter(|(_, slot)| slot.is_none()) {
                let Some(job) = waiting.next_if(|&job| self.tail(&jobs[job], 0) <= room) else { break };
                let length = jobs[job].tokens.len() - self.tail(&jobs[job], 0);
                self.enter(seq, &jobs[job], 0..length, None)?;
                let pending = jobs[job].tokens[length..].to_vec();
                room -= pending.len();
                let sampler = options.sampler.for_sequence(job as u64);
                let text = Characters::default();
                *slot = Some(Slot { job, sampler, length, pending, tokens: vec![], text });
            }
            let items: Vec<Item<'_>> = (slots.iter().enumerate())
                .filter_map(|(seq, slot)| Some((seq, slot.as_ref()?)))
                .map(|(seq, slot)| Item {
                    seq,
                    start: slot.length,
                    tokens: &slot.pending,
                    prompt: slot.tokens.is_empty(),
                    outputs: Outputs::Last(1),
                    intervention: jobs[slot.job].intervention.clone(),
                })
                .collect();
            self.decode(&items, None)?;
            let mut end = 0;
            for (seq, entry) in slots.iter_mut().enumerate() {
                let Some(slot) = entry else { continue };
                end += slot.pending.len();
                slot.length += slot.pending.len();
                let drawn = slot.sampler.sample(self.logits(end - 1)).ok_or(Error::NoNumber)?;
                let token = LlamaToken(drawn as i32);
                let ended = self.model().is_end(token);
                if !ended {
                    slot.pending = vec![token];
                    slot.tokens.push(token);
                    let text = slot.text.push(&self.model().piece(token));
                    if !text.is_empty() {
                        on_text(slot.job, &text);
                    }
                }
                if (ended || slot.tokens.len() >= options.max_tokens)
                    && let Some(slot) = entry.take()
                {
                    let finish = if ended { Finish::Stop } else { Finish::Length };
                    let completion = Completion { text: slot.text.all(), tokens: slot.tokens, finish };
                    on_done(slot.job, &completion);
                    done[slot.job] = Some(completion);
                    self.forget(seq)?;
                }
            }
        }
        Ok(done.into_iter().flatten().collect())
    }
}

/// Length of the longest prefix that does not end inside a character.
fn whole_characters(bytes: &[u8]) -> usize {
    let end = bytes.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
    // `error_len` is None where the rest is merely missing.
    let missing = std::str::from_utf8(end).is_err_and(|e| e.error_len().is_none());
    if missing { bytes.len() - end.len() } else { bytes.len() }
}

#[cfg(test)]
mod tests {
    use super::{Characters, whole_characters};

    #[test]
    fn text_streams_in_whole_characters() {
        let euro = "a€".as_bytes();
        assert_eq!((1..=4).map(|n| whole_characters(&euro[..n])).collect::<Vec<_>>(), [1, 1, 1, 4]);
        assert_eq!(whole_characters(&[]), 0);
        assert_eq!(
            whole_characters(&[b'a', 0xff, b'b']),
            3,
            "bytes that are no text at all do not stall the stream"
        );
        assert_eq!(
            whole_characters(&[0xff, 0xe2, 0x82]),
            1,
            "nor take the beginning of a character with them"
        );
    }

    #[test]
    fn the_pieces_are_the_text() {
        let mut text = Characters::default();
        let pieces = [&b"a\xe2"[..], b"\x82", b"\xac\xff\xc3", b"\xa9", b"\xf0\x9f"].map(|p| text.push(p));
        assert_eq!(pieces, ["a", "", "€\u{fffd}", "é", ""]);
        assert_eq!(text.rest(), "\u{fffd}");
        assert_eq!(text.all(), pieces.concat() + &text.rest());
    }
}
