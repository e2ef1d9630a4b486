//! llama.cpp's eval callback as a safe hook: capture the residual stream, and change it, while a batch is computed.
//!
//! The scheduler asks about each node before computing it (`ask`), and shows it again once it is computed; what is
//! written into it then is what later nodes read. The callback never unwinds into C and never stops the graph (returning
//! false would silently skip the rest of a split): it stores the first error, lets the graph run, and the session
//! reports the error after the decode.
#![allow(unsafe_code)]

mod error;

use std::collections::HashSet;
use std::ffi::c_void;
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

pub use error::HookError;

use super::rows::{self, RowsMut, text};
use super::stream::{Place, Tracker, name};
use crate::intervention::{Intervention, Left, dot};
use crate::unwind::caught;

/// Where a captured row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site<'a> {
    /// The residual stream at the output of this 0-based block; `n_embd` elements.
    Block(usize),
    /// The input of the matrix of this name (`src[1]` of its MUL_MAT); `n_in` elements.
    WriterInput(&'a str),
    /// The input of one expert, a slice of the matrix of this name (`src[1]` of its MUL_MAT_ID); `n_in` elements.
    ExpertInput(&'a str, usize),
    /// What the probe of this index in [`CapturePlan::probes`] reads: one element.
    Probe(usize),
}

/// A direction to be read off the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// 0-based block at whose output it is read.
    pub block: usize,
    /// r of the reading r·x; `n_embd`. A unit vector gives the stream's component along it.
    pub vector: Vec<f32>,
}

/// One captured row.
#[derive(Debug, Clone, Copy)]
pub struct Captured<'a> {
    /// Which tensor.
    pub site: Site<'a>,
    /// Index of the token in the batch.
    pub token: usize,
    /// Its activations.
    pub row: &'a [f32],
}

/// Receives rows during a decode, block by block.
pub type Sink<'a> = dyn FnMut(Captured<'_>) + 'a;

/// What to capture.
#[derive(Debug, Clone, Default)]
pub struct CapturePlan {
    /// The stream at every block output, at the batch's output tokens.
    pub stream: bool,
    /// The inputs of these matrices, by tensor name, at every token that the graph computes them for: all of them,
    /// but the output tokens alone where the last block has cut the rest.
    pub writer_inputs: HashSet<String>,
    /// What these read at the batch's output tokens, *before* the intervention at their block. Where a direction is
    /// erased the stream comes to the block's last write without it, so a probe of it reads what that write brings.
    pub probes: Arc<[Probe]>,
}

/// One token of a batch, as the hook needs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// Index into [`Batch::interventions`].
    pub intervention: Option<usize>,
    /// A token of the prompt, not a generated one.
    pub prompt: bool,
    /// Its logits are wanted, so its stream is captured and it survives the last block's cut.
    pub output: bool,
}

/// A batch about to be decoded.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub rows: Vec<Row>,
    pub interventions: Vec<Arc<Intervention>>,
}

/// Owned by the session, reached by the callback through a raw pointer: only one of the two touches it at a time.
#[derive(Default)]
pub(super) struct Hook {
    n_block: usize,
    batch: Batch,
    outputs: Vec<usize>,
    plan: CapturePlan,
    /// Set only while `llama_decode` runs inside [`Hook::during`].
    sink: Option<*mut Sink<'static>>,
    tracker: Tracker,
    /// The first node intervened on, and its rows before.
    first: Option<(*mut sys::ggml_tensor, Vec<f32>)>,
    pending: Option<Place>,
    seen: Vec<bool>,
    seen_writers: HashSet<String>,
    buffer: Vec<f32>,
    error: Option<HookError>,
}

impl Hook {
    pub(super) fn new(n_block: usize) -> Self {
        Self { n_block, ..Self::default() }
    }

    /// Arms the hook for one batch.
    pub(super) fn arm(&mut self, batch: Batch, plan: Option<&CapturePlan>) {
        self.outputs = (0..batch.rows.len()).filter(|&i| batch.rows[i].output).collect();
        let last = self.n_block.saturating_sub(1);
        self.batch = batch;
        self.plan = plan.cloned().unwrap_or_default();
        let named = self.batch.interventions.iter().flat_map(|i| i.blocks());
        self.error = (named.chain(self.plan.probes.iter().map(|p| ("probe", p.block))))
            .find(|(_, block)| *block > last)
            .map(|(what, block)| HookError::NoSuchBlock { what, block, last });
        self.tracker.reset();
        self.first = None;
        self.pending = None;
        self.seen = vec![false; self.n_block];
        self.seen_writers.clear();
    }

    /// The error that keeps the batch from being decoded at all.
    pub(super) fn refused(&mut self) -> Option<HookError> {
        self.error.take()
    }

    pub(super) fn set_sink(&mut self, sink: Option<*mut Sink<'static>>) {
        self.sink = sink;
    }

    /// The first thing that went wrong in the batch, or a block that never came by.
    pub(super) fn verdict(&mut self) -> Result<(), HookError> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if let Some(name) = self.plan.writer_inputs.iter().find(|&name| !self.seen_writers.contains(name)) {
            return Err(HookError::WriterNotSeen { name: name.clone() });
        }
        if !self.follows() {
            return Ok(());
        }
        if !self.tracker.has_begun() {
            return Err(HookError::NoEmbedding);
        }
        match self.seen.iter().position(|seen| !seen) {
            Some(block) => Err(HookError::BlockNotSeen { block }),
            None => Ok(()),
        }
    }

    fn intervenes(&self) -> bool {
        !self.batch.interventions.is_empty()
    }

    /// Whether the stream matters at all, so that every block's output must come by.
    fn follows(&self) -> bool {
        self.intervenes() || self.plan.stream || !self.plan.probes.is_empty()
    }

    fn probes(&self, block: usize) -> bool {
        self.plan.probes.iter().any(|p| p.block == block)
    }

    /// Whether the node is needed once computed.
    ///
    /// # Safety
    /// `t` is the live node that the scheduler asks about.
    unsafe fn ask(&mut self, t: *const sys::ggml_tensor) -> bool {
        if !self.follows() && self.plan.writer_inputs.is_empty() {
            return false;
        }
        // SAFETY: passed on from the caller.
        let place = unsafe { self.tracker.place(t) };
        self.pending = Some(place);
        if let Some(normed) = place.begins_behind
            // SAFETY: as above.
            && let Err(error) = unsafe { self.restore(&*t, normed) }
        {
            self.error.get_or_insert(error);
        }
        if let Some(block) = place.block_output.filter(|&b| b < self.n_block) {
            if !place.on_stream && self.follows() {
                // SAFETY: as above.
                let node = text(unsafe { &*t });
                self.error.get_or_insert(HookError::NotTheStream { block, node });
            }
            self.seen[block] = true;
            return self.intervenes() || self.plan.stream || self.probes(block);
        }
        // SAFETY: as above.
        (place.writes && self.intervenes()) || unsafe { self.wanted_writer(t) }.is_some()
    }

    /// Undoes what was done to the embedding when the stream turns out to begin at `node` only, behind a norm of the
    /// embedding. That norm is asked about and not yet computed, as it is wanted by nobody before `node`.
    ///
    /// # Safety
    /// As [`Hook::ask`]; `normed` is the address of what the norm reads.
    unsafe fn restore(&mut self, node: &sys::ggml_tensor, normed: usize) -> Result<(), HookError> {
        let Some((first, rows)) = self.first.take() else { return Ok(()) };
        if first.addr() != normed {
            return Err(HookError::NotTheStream { block: 0, node: text(node) });
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        // SAFETY: computed, since it was intervened on, and still the input of a norm to come.
        let mut data = unsafe { RowsMut::of(first, &mut buffer) }?;
        data.rows().copy_from_slice(&rows);
        data.write_back();
        self.buffer = buffer;
        Ok(())
    }

    /// # Safety
    /// As [`Hook::ask`].
    unsafe fn wanted_writer(&self, t: *const sys::ggml_tensor) -> Option<String> {
        if self.plan.writer_inputs.is_empty() {
            return None;
        }
        // SAFETY: passed on from the caller.
        let op = unsafe { (*t).op };
        let product = op == sys::GGML_OP_MUL_MAT || op == sys::GGML_OP_MUL_MAT_ID;
        // SAFETY: a matrix product has all its sources.
        let weight = product.then(|| unsafe { &*(*t).src[0] })?;
        let name = std::str::from_utf8(name(weight)).ok()?;
        self.plan.writer_inputs.get(name).cloned()
    }

    /// Works on a computed node.
    ///
    /// # Safety
    /// `t` is live, computed and synchronised, and nothing else reads or writes it now.
    unsafe fn computed(&mut self, t: *mut sys::ggml_tensor) -> Result<(), HookError> {
        let place = self.pending.take().unwrap_or_default();
        // SAFETY: passed on from the caller.
        if let Some(weight) = unsafe { self.wanted_writer(t) } {
            // SAFETY: the inputs of a node just computed are still allocated and unchanged.
            unsafe {
                if (*t).op == sys::GGML_OP_MUL_MAT_ID {
                    self.capture_experts(t, &weight)
                } else {
                    self.capture((*t).src[1], Site::WriterInput(&weight))
                }
            }?;
            self.seen_writers.insert(weight);
        }
        if let Some(block) = place.block_output
            && self.probes(block)
        {
            // SAFETY: passed on from the caller.
            unsafe { self.probe(t, block) }?;
        }
        if self.intervenes() && (place.writes || place.block_output.is_some()) {
            // SAFETY: passed on from the caller.
            unsafe { self.intervene(t, &place) }?;
        }
        if let Some(block) = place.block_output
            && self.plan.stream
        {
            // SAFETY: passed on from the caller.
            unsafe { self.capture(t, Site::Block(block)) }?;
        }
        Ok(())
    }

    fn rows_of(&self, t: &sys::ggml_tensor) -> Result<RowIndex, HookError> {
        self.index(t, t.ne[1] * t.ne[2] * t.ne[3])
    }

    /// Batch indices of a node's rows: all tokens, or the outputs alone once the last block has cut the rest.
    fn index(&self, t: &sys::ggml_tensor, found: i64) -> Result<RowIndex, HookError> {
        let (tokens, outputs) = (self.batch.rows.len(), self.outputs.len());
        match usize::try_from(found) {
            Ok(n) if n == tokens => Ok(RowIndex::All),
            Ok(n) if n == outputs => Ok(RowIndex::Outputs),
            _ => Err(HookError::Rows { node: text(t), tokens, outputs, found }),
        }
    }

    /// # Safety
    /// As [`Hook::computed`].
    unsafe fn intervene(&mut self, t: *mut sys::ggml_tensor, place: &Place) -> Result<(), HookError> {
        // SAFETY: passed on from the caller.
        let node = unsafe { &*t };
        let rows = self.rows_of(node)?;
        let n_embd = node.ne[0] as usize;
        for width in self.batch.interventions.iter().flat_map(|i| i.widths()) {
            if width != n_embd {
                return Err(HookError::Width { node: text(node), direction: width, stream: n_embd });
            }
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        // SAFETY: passed on from the caller; no other reference to the data exists.
        let mut data = unsafe { RowsMut::of(t, &mut buffer) }?;
        // In case it lies before the beginning: see `restore`.
        self.first.get_or_insert_with(|| (t, data.rows().to_vec()));
        // One thread: the work is a thousandth of the matrix products', and those keep their threads spinning.
        let result = (data.rows().chunks_exact_mut(n_embd).enumerate())
            .try_for_each(|(i, row)| self.intervene_row(self.token(&rows, i), row, place));
        data.write_back();
        self.buffer = buffer;
        result
    }

    fn token(&self, rows: &RowIndex, i: usize) -> usize {
        match rows {
            RowIndex::All => i,
            RowIndex::Outputs => self.outputs[i],
        }
    }

    fn intervene_row(&self, token: usize, x: &mut [f32], place: &Place) -> Result<(), HookError> {
        let Row { intervention: Some(i), prompt, .. } = self.batch.rows[token] else { return Ok(()) };
        let at = place.write(prompt);
        let (block, left) = (at.block, self.batch.interventions[i].apply(x, at));
        left.map_err(|Left { component, norm }| HookError::NotAblated { block, token, component, norm })
    }

    /// # Safety
    /// As [`Hook::computed`], for `t` or for a source of it.
    unsafe fn capture(&mut self, t: *mut sys::ggml_tensor, site: Site<'_>) -> Result<(), HookError> {
        let Some(sink) = self.sink else { return Ok(()) };
        // SAFETY: passed on from the caller.
        let node = unsafe { &*t };
        let rows = self.rows_of(node)?;
        let width = node.ne[0] as usize;
        let mut buffer = std::mem::take(&mut self.buffer);
        // SAFETY: passed on from the caller.
        let mut data = unsafe { RowsMut::of(t, &mut buffer) }?;
        for (i, row) in data.rows().chunks_exact(width).enumerate() {
            let token = self.token(&rows, i);
            if self.batch.rows[token].output || matches!(site, Site::WriterInput(_)) {
                // SAFETY: `Session::decode` keeps the sink alive and untouched until llama_decode returns.
                unsafe { (*sink)(Captured { site, token, row }) };
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Reads the probes of `block` off its output.
    ///
    /// # Safety
    /// As [`Hook::computed`].
    unsafe fn probe(&mut self, t: *mut sys::ggml_tensor, block: usize) -> Result<(), HookError> {
        let Some(sink) = self.sink else { return Ok(()) };
        // SAFETY: passed on from the caller.
        let node = unsafe { &*t };
        let rows = self.rows_of(node)?;
        let n_embd = node.ne[0] as usize;
        let mut buffer = std::mem::take(&mut self.buffer);
        // SAFETY: passed on from the caller.
        let mut data = unsafe { RowsMut::of(t, &mut buffer) }?;
        for (probe, Probe { vector, .. }) in
            self.plan.probes.iter().enumerate().filter(|(_, p)| p.block == block)
        {
            if vector.len() != n_embd {
                let direction = vector.len();
                return Err(HookError::Width { node: text(node), direction, stream: n_embd });
            }
            for (i, x) in data.rows().chunks_exact(n_embd).enumerate() {
                let token = self.token(&rows, i);
                if self.batch.rows[token].output {
                    let row = &[dot(vector, x) as f32];
                    // SAFETY: `Session::decode` keeps the sink alive and untouched until llama_decode returns.
                    unsafe { (*sink)(Captured { site: Site::Probe(probe), token, row }) };
                }
            }
        }
        self.buffer = buffer;
        Ok(())
    }

    /// The rows of a MUL_MAT_ID's input, each with the expert it goes to.
    ///
    /// # Safety
    /// As [`Hook::computed`], for a MUL_MAT_ID.
    unsafe fn capture_experts(&mut self, t: *mut sys::ggml_tensor, name: &str) -> Result<(), HookError> {
        let Some(sink) = self.sink else { return Ok(()) };
        // SAFETY: a MUL_MAT_ID has three sources, live like itself.
        let (weight, input, ids) = unsafe { (&*(*t).src[0], &*(*t).src[1], &*(*t).src[2]) };
        // ne: weight [n_in, n_out, n_expert], input [n_in, n_used or 1, n_tokens], ids [n_used, n_tokens].
        let (n_in, n_slots, n_used) = (input.ne[0] as usize, input.ne[1] as usize, ids.ne[0] as usize);
        let experts = weight.ne[2] as usize;
        let rows = self.index(input, input.ne[2])?;
        // SAFETY: passed on from the caller.
        let chosen = unsafe { rows::ids(ids) }?;
        let mut buffer = std::mem::take(&mut self.buffer);
        // SAFETY: passed on from the caller.
        let mut data = unsafe { RowsMut::of(std::ptr::from_ref(input).cast_mut(), &mut buffer) }?;
        for (i, (slots, ids)) in
            data.rows().chunks_exact(n_in * n_slots).zip(chosen.chunks_exact(n_used)).enumerate()
        {
            let token = self.token(&rows, i);
            for (used, &found) in ids.iter().enumerate() {
                let expert = usize::try_from(found).ok().filter(|&expert| expert < experts);
                let expert =
                    expert.ok_or_else(|| HookError::Expert { node: text(input), token, found, experts })?;
                // One row for all experts where they share their input.
                let row = &slots[used % n_slots * n_in..][..n_in];
                // SAFETY: `Session::decode` keeps the sink alive and untouched until llama_decode returns.
                unsafe { (*sink)(Captured { site: Site::ExpertInput(name, expert), token, row }) };
            }
        }
        self.buffer = buffer;
        Ok(())
    }
}

enum RowIndex {
    All,
    Outputs,
}

/// The callback that llama.cpp calls; `user_data` is the session's [`Hook`].
pub(super) unsafe extern "C" fn trampoline(
    t: *mut sys::ggml_tensor,
    ask: bool,
    user_data: *mut c_void,
) -> bool {
    // SAFETY: the session put its hook there, which outlives the context, and does not touch it during a decode.
    let hook = unsafe { &mut *user_data.cast::<Hook>() };
    if hook.error.is_some() {
        return !ask;
    }
    let outcome = caught(|| {
        // SAFETY: the scheduler passes live nodes, computed and synchronised where `ask` is false.
        if ask { Ok(unsafe { hook.ask(t) }) } else { unsafe { hook.computed(t) }.map(|()| true) }
    });
    outcome.unwrap_or_else(|words| Err(HookError::Panic(words))).unwrap_or_else(|error| {
        hook.error = Some(error);
        !ask
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::tests::{WORDS, armed};

    #[test]
    fn a_panic_is_the_batches_error_and_stops_no_graph() {
        for ask in [true, false] {
            let mut hook = Hook::new(1);
            let data = (&raw mut hook).cast();
            // SAFETY: the hook lives, and the node is not looked at.
            let answer = armed(|| unsafe { trampoline(std::ptr::null_mut(), ask, data) });
            assert_eq!(answer, !ask, "false for a computed node would skip the rest");
            let error = hook.verdict().unwrap_err();
            assert!(matches!(&error, HookError::Panic(words) if words == WORDS), "{error}");
        }
    }
}
