//! A context with its hook: decode batches of many sequences, each with its own intervention.
//!
//! What a batch gives for a sequence depends, in its last digits, on the batch's shape: how many tokens it has, and where
//! among them the sequence stands. It depends neither on what the other sequences hold nor on the number of threads. So
//! the same call with the same jobs gives the same bits, and a call with other jobs may not.
#![allow(unsafe_code)]

use std::num::NonZeroU32;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use super::hook::{Batch, CapturePlan, Hook, Row, Sink, Site, trampoline};
use super::model::{Adapter, backend, why};
use super::{Error, Model, Prompt, log, params};
use crate::intervention::Intervention;

/// llama.cpp's limit on sequences in one context (`LLAMA_MAX_SEQ` of llama-cparams.h).
const MAX_SEQ: usize = 256;

/// The size and the exactness of a context.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// Cells of the KV cache, shared by all sequences.
    pub n_ctx: usize,
    /// Tokens computed at once, and so the most that one [`Session::decode`] takes.
    pub n_batch: usize,
    /// Sequences held at once, 1 to 256, and no more than `n_batch`.
    pub n_seq: usize,
    /// Threads; 0 for all the machine has.
    pub n_threads: usize,
    /// Keys and values in f32 and no flash attention: slower, for comparisons to the last digit.
    pub exact: bool,
    /// Whether attention is computed without ever holding its whole matrix; never where `exact`.
    pub flash_attention: FlashAttention,
}

/// When flash attention is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FlashAttention {
    /// Where llama.cpp can.
    #[default]
    Auto,
    /// Always; a model that cannot is an error.
    On,
    /// Never.
    Off,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            n_ctx: 2048,
            n_batch: 512,
            n_seq: 32,
            n_threads: 0,
            exact: false,
            flash_attention: FlashAttention::Auto,
        }
    }
}

/// Which tokens of an item give logits, and have their stream captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outputs {
    /// None.
    None,
    /// The last n.
    Last(usize),
    /// All.
    All,
}

/// Consecutive tokens of one sequence in a batch.
#[derive(Debug, Clone)]
pub struct Item<'a> {
    /// Sequence, below [`SessionOptions::n_seq`].
    pub seq: usize,
    /// Position of the first token in its sequence.
    pub start: usize,
    /// The tokens.
    pub tokens: &'a [LlamaToken],
    /// They are of the prompt, not generated: see [`crate::intervention::Positions`].
    pub prompt: bool,
    /// Which of them give logits.
    pub outputs: Outputs,
    /// What is done to this sequence's stream.
    pub intervention: Option<Arc<Intervention>>,
}

/// A prompt to be computed, with what is done to it meanwhile.
#[derive(Debug, Clone)]
pub struct Job<'a> {
    /// The templated prompt.
    pub tokens: &'a [LlamaToken],
    /// How many tokens at its end are outputs (see [`CapturePlan`]), at least 1.
    pub n_out: usize,
    /// What is done to its stream.
    pub intervention: Option<Arc<Intervention>>,
}

/// The jobs that compute each prompt once, for the logits after its last token.
pub fn jobs<'a>(
    prompts: impl IntoIterator<Item = &'a Prompt>,
    intervention: Option<&Arc<Intervention>>,
) -> Vec<Job<'a>> {
    let job = |p: &'a Prompt| Job { tokens: &p.tokens, n_out: 1, intervention: intervention.cloned() };
    prompts.into_iter().map(job).collect()
}

/// Receives a captured row: index of the job, position (−1 is its last token), where, and the activations.
pub type JobSink<'a> = dyn FnMut(usize, i32, Site<'_>, &[f32]) + 'a;

/// The same for one job whose index is known.
type HeadSink<'a> = dyn FnMut(i32, super::Captured<'_>) + 'a;

/// A llama.cpp context whose graph is hooked.
pub struct Session<'m> {
    // Declared, and so dropped, before the hook that its callback points to.
    ctx: LlamaContext<'m>,
    hook: SharedHook,
    batch: LlamaBatch<'static>,
    model: &'m Model,
    options: SessionOptions,
    evaluated: u64,
}

/// Consecutive jobs with one intervention, whose prompts begin alike.
struct Group {
    jobs: Range<usize>,
    /// Tokens that are computed once for all of them; 0 where that does not pay.
    prefix: usize,
}

/// A job of a batch: its index, its group, and where in its prompt the batch begins.
struct Place {
    job: usize,
    group: usize,
    start: usize,
}

/// Shorter common beginnings are computed again for every prompt: a decode of their own would cost more.
const MIN_PREFIX: usize = 16;

/// The hook, owned here and reached by the callback: one of the two at a time, since a decode borrows the session.
struct SharedHook(NonNull<Hook>);

impl SharedHook {
    fn new(hook: Hook) -> Self {
        Self(NonNull::from(Box::leak(Box::new(hook))))
    }

    fn get(&mut self) -> &mut Hook {
        // SAFETY: the pointer is ours until drop, and the callback runs only inside llama_decode, never during this
        // borrow.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for SharedHook {
    fn drop(&mut self) {
        // SAFETY: made by a box in `new`; the context, whose callback knows the pointer, is dropped before.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl<'m> Session<'m> {
    /// Makes a context for `model`.
    ///
    /// # Errors
    /// llama.cpp cannot make it (memory, an unsupported model).
    pub fn new(model: &'m Model, mut options: SessionOptions) -> Result<Self, Error> {
        options.n_batch = options.n_batch.max(1);
        // Of more sequences than tokens of a batch, each may want an output: llama.cpp then ends the process.
        let most = if model.is_recurrent() { 1 } else { MAX_SEQ.min(options.n_batch) };
        options.n_seq = options.n_seq.clamp(1, most);
        options.n_ctx = options.n_ctx.max(options.n_batch);
        let threads = super::threads(options.n_threads);
        // One stream of cells and pieces no smaller than a batch keep the graph's rows in the order of the batch.
        let mut raw = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(options.n_ctx as u32))
            .with_n_batch(options.n_batch as u32)
            .with_n_ubatch(options.n_batch as u32)
            .with_n_seq_max(options.n_seq as u32)
            .with_n_threads(threads as i32)
            .with_n_threads_batch(threads as i32)
            .with_op_offload(false)
            .with_kv_unified(true);
        if options.exact {
            raw = raw.with_type_k(KvCacheType::F32).with_type_v(KvCacheType::F32);
        }
        raw = raw.with_flash_attention_policy(match options.flash_attention {
            FlashAttention::Off => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            _ if options.exact => sys::LLAMA_FLASH_ATTN_TYPE_DISABLED,
            FlashAttention::On => sys::LLAMA_FLASH_ATTN_TYPE_ENABLED,
            FlashAttention::Auto => sys::LLAMA_FLASH_ATTN_TYPE_AUTO,
        });
        let hook = SharedHook::new(Hook::new(model.n_block()));
        params::set_eval_callback(&mut raw, Some(trampoline), hook.0.as_ptr().cast())?;
        log::take_complaints();
        let ctx =
            model.inner.new_context(backend()?, raw).map_err(|e| Error::Context(why(&e.to_string())))?;
        let batch = LlamaBatch::new(options.n_batch, 1);
        Ok(Self { ctx, hook, batch, model, options, evaluated: 0 })
    }

    /// Tokens that went through the model since the session was made.
    #[must_use]
    pub fn n_evaluated(&self) -> u64 {
        self.evaluated
    }

    /// The model it runs.
    #[must_use]
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Its options, as adjusted to the model.
    #[must_use]
    pub fn options(&self) -> &SessionOptions {
        &self.options
    }

    /// Computes with `adapter`, of this session's model, from now on.
    pub(crate) fn set_adapter(&mut self, adapter: &mut Adapter) -> Result<(), Error> {
        let set = self.ctx.lora_adapter_set(&mut adapter.inner, 1.0);
        set.map_err(|e| Error::Adapter { path: adapter.path.clone(), why: why(&e.to_string()) })
    }

    /// Forgets every sequence.
    pub fn clear(&mut self) {
        self.ctx.clear_kv_cache();
    }

    /// Forgets one sequence.
    ///
    /// # Errors
    /// None in practice: whole sequences can always be removed.
    pub fn forget(&mut self, seq: usize) -> Result<(), Error> {
        let gone = self.ctx.clear_kv_cache_seq(Some(seq as u32), None, None);
        gone.map(|_| ()).map_err(|e| Error::Decode(e.to_string()))
    }

    /// Keeps the first `length` tokens of a sequence and forgets the rest. False where the model cannot, and then nothing
    /// is forgotten: a recurrent state does not go back.
    ///
    /// # Errors
    /// A position beyond what llama.cpp counts to.
    pub fn truncate(&mut self, seq: usize, length: usize) -> Result<bool, Error> {
        let gone = self.ctx.clear_kv_cache_seq(Some(seq as u32), Some(length as u32), None);
        gone.map_err(|e| Error::Decode(e.to_string()))
    }

    /// Makes the sequence `to`, an empty one, begin as `from`; no value is moved.
    fn copy(&mut self, from: usize, to: usize) -> Result<(), Error> {
        let copied = self.ctx.copy_kv_cache_seq(from as i32, to as i32, None, None);
        copied.map_err(|e| Error::Decode(e.to_string()))
    }

    /// Decodes one batch. The `i`-th token of the batch counts through the items in order, as for [`Session::logits`]
    /// and [`super::Captured::token`].
    ///
    /// # Errors
    /// A batch over [`SessionOptions::n_batch`], a failed decode, anything the hook found wrong.
    pub fn decode(
        &mut self,
        items: &[Item<'_>],
        capture: Option<(&CapturePlan, &mut Sink<'_>)>,
    ) -> Result<(), Error> {
        let found: usize = items.iter().map(|i| i.tokens.len()).sum();
        let room = self.options.n_batch;
        if found > room {
            return Err(Error::TooLong { what: "batch".into(), found, room });
        }
        if found == 0 {
            return Ok(());
        }
        let mut batch = Batch::default();
        self.batch.clear();
        for item in items {
            let intervention = item.intervention.as_ref().map(|wanted| {
                let known = batch.interventions.iter().position(|i| Arc::ptr_eq(i, wanted));
                known.unwrap_or_else(|| {
                    batch.interventions.push(Arc::clone(wanted));
                    batch.interventions.len() - 1
                })
            });
            let first_output = match item.outputs {
                Outputs::None => item.tokens.len(),
                Outputs::Last(n) => item.tokens.len().saturating_sub(n),
                Outputs::All => 0,
            };
            for (i, &token) in item.tokens.iter().enumerate() {
                let output = i >= first_output;
                let position = (item.start + i) as i32;
                let added = self.batch.add(token, position, &[item.seq as i32], output);
                added.map_err(|e| Error::Decode(e.to_string()))?;
                batch.rows.push(Row { intervention, prompt: item.prompt, output });
            }
        }
        let (plan, sink) = capture.unzip();
        let hook = self.hook.get();
        hook.arm(batch, plan);
        if let Some(error) = hook.refused() {
            return Err(error.into());
        }
        hook.set_sink(sink.map(|s| {
            // SAFETY: only the lifetime is erased; the pointer is taken back right after the decode that may use it.
            let s: &mut Sink<'static> = unsafe { std::mem::transmute(s) };
            std::ptr::from_mut(s)
        }));
        log::take_complaints();
        self.evaluated += found as u64;
        let decoded = self.ctx.decode(&mut self.batch);
        let hook = self.hook.get();
        hook.set_sink(None);
        let verdict = hook.verdict();
        decoded.map_err(|e| Error::Decode(why(&e.to_string())))?;
        Ok(verdict?)
    }

    /// Logits (`n_vocab`) after the `i`-th token of the last batch, which must have been an output.
    #[must_use]
    pub fn logits(&self, i: usize) -> &[f32] {
        self.ctx.get_logits_ith(i as i32)
    }

    /// Computes every job once, many to a batch, each in a fresh sequence, and hands out the logits after its last
    /// token; with `capture` also the activations, see [`CapturePlan`].
    ///
    /// What consecutive jobs with the same intervention have in common at their beginning (a system prompt, the head of
    /// the template) is computed once for all of them, unless the inputs of writers are captured, which are wanted at
    /// every token.
    ///
    /// # Errors
    /// A job longer than the context, or as [`Session::decode`].
    pub fn prefill(
        &mut self,
        jobs: &[Job<'_>],
        mut capture: Option<(&CapturePlan, &mut JobSink<'_>)>,
        on_logits: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        for job in jobs {
            self.check_length(job.tokens.len())?;
        }
        let every_token = capture.as_ref().is_some_and(|(plan, _)| !plan.writer_inputs.is_empty());
        let groups = self.groups(jobs, !every_token);
        self.clear();
        // The sequence that holds the beginning of a group whose jobs go on in the next batch.
        let mut kept: Option<(usize, usize)> = None;
        let mut next = 0;
        while next < jobs.len() {
            let places = self.fill(jobs, &groups, next);
            let held = self.begin(jobs, &groups, &places, kept)?;
            let mut items = Vec::with_capacity(places.len());
            for (seq, place) in places.iter().enumerate() {
                let job = &jobs[place.job];
                if let Some(&(_, from)) = held.iter().find(|(group, _)| *group == place.group) {
                    self.copy(from, seq)?;
                }
                let prefix = groups[place.group].prefix;
                match &mut capture {
                    None => self.enter(seq, job, prefix..place.start, None)?,
                    Some((plan, sink)) => {
                        let mut by_job = |position: i32, row: super::Captured<'_>| {
                            sink(place.job, position, row.site, row.row);
                        };
                        self.enter(seq, job, prefix..place.start, Some((plan, &mut by_job)))?;
                    }
                }
                items.push(Item {
                    seq,
                    start: place.start,
                    tokens: &job.tokens[place.start..],
                    prompt: true,
                    outputs: Outputs::Last(job.n_out.max(1)),
                    intervention: job.intervention.clone(),
                });
            }
            let ends: Vec<usize> = (items.iter())
                .scan(0, |end, item| {
                    *end += item.tokens.len();
                    Some(*end)
                })
                .collect();
            if let Some((plan, sink)) = &mut capture {
                let mut by_job = |row: super::Captured<'_>| {
                    let item = ends.partition_point(|&end| end <= row.token);
                    sink(next + item, row.token as i32 - ends[item] as i32, row.site, row.row);
                };
                self.decode(&items, Some((plan, &mut by_job)))?;
            } else {
                self.decode(&items, None)?;
            }
            for (i, end) in ends.iter().enumerate() {
                on_logits(next + i, self.logits(end - 1));
            }
            next += items.len();
            kept = None;
            let on = held.into_iter().find(|(group, _)| groups[*group].jobs.contains(&next));
            let Some((group, from)) = on else {
                self.clear();
                continue;
            };
            let last = self.options.n_seq - 1;
            if from != last {
                self.forget(last)?;
                self.copy(from, last)?;
            }
            (0..last).try_for_each(|seq| self.forget(seq))?;
            kept = Some((group, last));
        }
        Ok(())
    }

    /// Tokens that [`Session::prefill`] will put through the model for these jobs, nothing being captured.
    #[must_use]
    pub fn cost(&self, jobs: &[Job<'_>]) -> u64 {
        let tokens: usize = jobs.iter().map(|job| job.tokens.len()).sum();
        let saved: usize = self.groups(jobs, true).iter().map(|g| g.prefix * (g.jobs.len() - 1)).sum();
        (tokens - saved) as u64
    }

    /// The jobs in groups of one intervention each. A beginning is shared where the model has a cache of keys and values
    /// (a recurrent state cannot be cut), and as far as no output lies in it.
    fn groups(&self, jobs: &[Job<'_>], share: bool) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (i, job) in jobs.iter().enumerate() {
            let end = job.tokens.len().saturating_sub(job.n_out.max(1)).min(self.options.n_batch);
            let same = groups.last_mut().filter(|group| {
                match (&jobs[group.jobs.start].intervention, &job.intervention) {
                    (None, None) => true,
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    _ => false,
                }
            });
            match same {
                None => groups.push(Group { jobs: i..i + 1, prefix: end }),
                Some(group) => {
                    let first = jobs[group.jobs.start].tokens;
                    let alike = first.iter().zip(job.tokens).take_while(|(a, b)| a == b).count();
                    group.prefix = group.prefix.min(alike).min(end);
                    group.jobs.end = i + 1;
                }
            }
        }
        for group in &mut groups {
            if !share || self.options.n_seq < 2 || group.jobs.len() < 2 || group.prefix < MIN_PREFIX {
                group.prefix = 0;
            }
        }
        groups
    }

    /// As many jobs from `next` on as a batch holds, at least one.
    fn fill(&self, jobs: &[Job<'_>], groups: &[Group], next: usize) -> Vec<Place> {
        let mut group = groups.partition_point(|group| group.jobs.end <= next);
        let (mut places, mut size, mut cells, mut seqs) = (Vec::new(), 0, 0, 0);
        let mut held = None;
        for (job, index) in jobs[next..].iter().zip(next..) {
            if index >= groups[group].jobs.end {
                group += 1;
            }
            let prefix = groups[group].prefix;
            let tail = self.tail(job, prefix);
            let (more_cells, more_seqs) = if prefix > 0 && held != Some(group) {
                (job.tokens.len(), 2)
            } else {
                (job.tokens.len() - prefix, 1)
            };
            let full = size + tail > self.options.n_batch || cells + more_cells > self.options.n_ctx;
            if (seqs + more_seqs > self.options.n_seq || full) && !places.is_empty() {
                break;
            }
            places.push(Place { job: index, group, start: job.tokens.len() - tail });
            (size, cells, seqs) = (size + tail, cells + more_cells, seqs + more_seqs);
            held = Some(group);
        }
        places
    }

    /// Computes the shared beginnings of a batch's groups, but for the one `kept` from the batch before; returns each
    /// group with the sequence that holds its beginning. They count down from the last, the batch's own up from 0.
    fn begin(
        &mut self,
        jobs: &[Job<'_>],
        groups: &[Group],
        places: &[Place],
        kept: Option<(usize, usize)>,
    ) -> Result<Vec<(usize, usize)>, Error> {
        let mut held: Vec<(usize, usize)> = kept.into_iter().collect();
        let mut free =
            (0..self.options.n_seq).rev().filter(|seq| kept.is_none_or(|(_, taken)| *seq != taken));
        let mut items: Vec<Item<'_>> = Vec::new();
        for group in places.chunk_by(|a, b| a.group == b.group).map(|places| places[0].group) {
            let Group { jobs: of, prefix } = &groups[group];
            if *prefix == 0 || held.iter().any(|(known, _)| *known == group) {
                continue;
            }
            let seq = free.next().expect("a batch is filled for its sequences and those of its groups");
            held.push((group, seq));
            if items.iter().map(|item| item.tokens.len()).sum::<usize>() + prefix > self.options.n_batch {
                self.decode(&std::mem::take(&mut items), None)?;
            }
            let job = &jobs[of.start];
            items.push(Item {
                seq,
                start: 0,
                tokens: &job.tokens[..*prefix],
                prompt: true,
                outputs: Outputs::None,
                intervention: job.intervention.clone(),
            });
        }
        self.decode(&items, None)?;
        Ok(held)
    }

    /// Tokens of a job that its last decode takes: all after `start`, or as many of the outputs as fit where those outgrow
    /// a batch.
    pub(super) fn tail(&self, job: &Job<'_>, start: usize) -> usize {
        let (n_batch, left) = (self.options.n_batch, job.tokens.len() - start);
        if left <= n_batch { left } else { job.n_out.clamp(1, n_batch) }
    }

    /// Decodes the `range` of a job that stands before its tail, in batches of its own.
    pub(super) fn enter(
        &mut self,
        seq: usize,
        job: &Job<'_>,
        range: Range<usize>,
        mut capture: Option<(&CapturePlan, &mut HeadSink<'_>)>,
    ) -> Result<(), Error> {
        let n_tokens = job.tokens.len();
        for start in range.clone().step_by(self.options.n_batch) {
            let end = range.end.min(start + self.options.n_batch);
            let tokens = &job.tokens[start..end];
            let outputs = Outputs::Last((end + job.n_out).saturating_sub(n_tokens));
            let intervention = job.intervention.clone();
            let item = Item { seq, start, tokens, prompt: true, outputs, intervention };
            match &mut capture {
                None => self.decode(&[item], None)?,
                Some((plan, sink)) => {
                    let first = start as i32 - n_tokens as i32;
                    let mut at = |row: super::Captured<'_>| sink(first + row.token as i32, row);
                    self.decode(&[item], Some((plan, &mut at)))?;
                }
            }
        }
        Ok(())
    }

    /// Whether so many tokens of one sequence fit both the context and what the model was trained for.
    pub(super) fn check_length(&self, found: usize) -> Result<(), Error> {
        let room = self.options.n_ctx.min(self.model.n_ctx_train());
        if found == 0 {
            return Err(Error::EmptyPrompt);
        }
        if found > room {
            return Err(Error::TooLong { what: "prompt".into(), found, room });
        }
        Ok(())
    }
}
