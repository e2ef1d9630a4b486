//! llama.cpp's eval callback as a safe hook: capture the residual stream, and change it, while a batch is computed.
//!
//! The scheduler asks about each node before computing it (`ask`), and shows it again once it is computed; what is
//! written into it then is what later nodes read. The callback never unwinds into C and never stops the graph (returning
//! false would silently skip the rest of a split): it stores the first error, lets the graph run, and the session
//! reports the error after the decode.

use std::collections::HashSet;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llama_cpp_sys_2 as sys;

use super::rows::{self, RowsMut, text};
use super::stream::{Place, Tracker, name};
use crate::intervention::{Intervention, Positions, dot};

/// After ablation, |r·x| may be this part of ‖x‖ at most.
const ABLATED: f64 = 1e-4;

/// What went wrong inside the graph.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum HookError {
    /// No node reads `token_embd.weight`.
    #[error("the residual stream has no beginning: no graph node reads token_embd.weight")]
    NoEmbedding,
    /// A block whose output never came by.
    #[error("block {block}: its output (a node named l_out-{block}) is not in this model's graph")]
    BlockNotSeen {
        /// 0-based block.
        block: usize,
    },
    /// A block output that is not the sum of the embedding and the blocks' writes.
    #[error(
        "block {block}: {node} is not reached from the token embedding by additions alone, so a write would be missed"
    )]
    NotTheStream {
        /// 0-based block.
        block: usize,
        /// The node's name.
        node: String,
    },
    /// A node with a number of rows that fits neither the batch nor its outputs.
    #[error("node {node}: expected {tokens} rows (the batch) or {outputs} (its outputs), found {found}")]
    Rows {
        /// The node's name.
        node: String,
        /// Tokens in the batch.
        tokens: usize,
        /// Tokens whose logits were asked for.
        outputs: usize,
        /// Rows of the node.
        found: i64,
    },
    /// A node whose memory is not plain rows of f32.
    #[error("node {node}: expected contiguous f32 rows, found {found}")]
    Layout {
        /// The node's name.
        node: String,
        /// Type and strides.
        found: String,
    },
    /// A direction of another width than the stream.
    #[error("node {node}: the direction has {direction} elements, the residual stream {stream}")]
    Width {
        /// The node's name.
        node: String,
        /// Elements of the direction.
        direction: usize,
        /// `n_embd`.
        stream: usize,
    },
    /// The stream is not a number, or so large that f32 cannot erase a direction from it.
    #[error("block {block}, token {token}: after ablation |r·x| is {component:e} of |x| {norm:e}")]
    NotAblated {
        /// 0-based block.
        block: usize,
        /// Index of the token in the batch.
        token: usize,
        /// |r·x|.
        component: f64,
        /// ‖x‖.
        norm: f64,
    },
    /// Expert numbers that are not what a MUL_MAT_ID has.
    #[error("node {node}: expert {found} of {experts} for token {token}")]
    Expert {
        /// The node's name.
        node: String,
        /// Index of the token in the batch.
        token: usize,
        /// The number found.
        found: i32,
        /// Slices of the matrix.
        experts: usize,
    },
    /// A matrix whose input was to be captured, and that no matrix product of the graph reads.
    #[error("the input of {name} was to be captured, but no matrix product of this model's graph reads it")]
    WriterNotSeen {
        /// The tensor's name.
        name: String,
    },
    /// An addition at a block that the model does not have.
    #[error("addition at block {block}: the model has blocks 0 to {last}")]
    NoSuchBlock {
        /// Where the addition was to be.
        block: usize,
        /// The model's last block.
        last: usize,
    },
    /// A panic in the callback or in the caller's sink.
    #[error("panic in the eval callback: {0}")]
    Panic(String),
}

/// Where a captured row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site<'a> {
    /// The residual stream at the output of this 0-based block; `n_embd` elements.
    Block(usize),
    /// The input of the matrix of this name (`src[1]` of its MUL_MAT); `n_in` elements.
    WriterInput(&'a str),
    /// The input of one expert, a slice of the matrix of this name (`src[1]` of its MUL_MAT_ID); `n_in` elements.
    ExpertInput(&'a str, usize),
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
        self.error = (batch.interventions.iter().flat_map(|i| &i.add))
            .find(|a| a.block > last)
            .map(|a| HookError::NoSuchBlock { block: a.block, last });
        self.batch = batch;
        self.plan = plan.cloned().unwrap_or_default();
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
        if !self.intervenes() && !self.plan.stream {
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

    /// Whether the node is needed once computed.
    ///
    /// # Safety
    /// `t` is the live node that the scheduler asks about.
    unsafe fn ask(&mut self, t: *const sys::ggml_tensor) -> bool {
        if !self.intervenes() && !self.plan.stream && self.plan.writer_inputs.is_empty() {
            return false;
        }
        // SAFETY: passed on from the caller.
        let place = unsafe { self.tracker.place(t) };
        self.pending = Some(place);
        if place.begins_anew
            // SAFETY: as above.
            && let Err(error) = unsafe { self.restore(t) }
        {
            self.error.get_or_insert(error);
        }
        if let Some(block) = place.block_output.filter(|&b| b < self.n_block) {
            if !place.on_stream && (self.intervenes() || self.plan.stream) {
                // SAFETY: as above.
                let node = text(unsafe { &*t });
                self.error.get_or_insert(HookError::NotTheStream { block, node });
            }
            self.seen[block] = true;
            return self.intervenes() || self.plan.stream;
        }
        // SAFETY: as above.
        (place.writes && self.intervenes()) || unsafe { self.wanted_writer(t) }.is_some()
    }

    /// Undoes what was done to the embedding when the stream turns out to begin at `t` only, behind a norm of the
    /// embedding. That norm is asked about and not yet computed, as it is wanted by nobody before `t`.
    ///
    /// # Safety
    /// As [`Hook::ask`], for a norm's product.
    unsafe fn restore(&mut self, t: *const sys::ggml_tensor) -> Result<(), HookError> {
        let Some((first, rows)) = self.first.take() else { return Ok(()) };
        // SAFETY: the caller vouches for `t`; its source is a norm, which has a source.
        let (node, normed) = unsafe { (&*t, (*(*t).src[0]).src[0]) };
        if first != normed {
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
        if self.intervenes() && (place.writes || place.block_output.is_some()) {
            // SAFETY: passed on from the caller.
            unsafe { self.intervene(t, place.block_output) }?;
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
    unsafe fn intervene(
        &mut self,
        t: *mut sys::ggml_tensor,
        output_of: Option<usize>,
    ) -> Result<(), HookError> {
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
            .try_for_each(|(i, row)| self.intervene_row(self.token(&rows, i), row, output_of));
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

    fn intervene_row(&self, token: usize, x: &mut [f32], output_of: Option<usize>) -> Result<(), HookError> {
        let Row { intervention: Some(i), prompt, .. } = self.batch.rows[token] else { return Ok(()) };
        let intervention = &self.batch.interventions[i];
        if !intervention.ablate.is_empty() {
            let norm = output_of.map(|block| (block, dot(x, x).sqrt()));
            intervention.ablate.ablate(x);
            if let Some((block, norm)) = norm {
                let component = intervention.ablate.component(x);
                // A NaN anywhere makes the norm NaN, and the comparison false.
                let erased = component <= ABLATED * norm;
                if !erased {
                    return Err(HookError::NotAblated { block, token, component, norm });
                }
            }
        }
        for addition in intervention.add.iter().filter(|a| Some(a.block) == output_of) {
            if addition.positions == Positions::Prompt && !prompt {
                continue;
            }
            x.iter_mut().zip(&addition.vector).for_each(|(x, v)| *x += v);
        }
        Ok(())
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
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: the scheduler passes live nodes, computed and synchronised where `ask` is false.
        if ask { Ok(unsafe { hook.ask(t) }) } else { unsafe { hook.computed(t) }.map(|()| true) }
    }));
    match outcome {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => {
            hook.error = Some(error);
            !ask
        }
        Err(panic) => {
            let words = panic.downcast_ref::<&str>().map(ToString::to_string);
            let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
            hook.error = Some(HookError::Panic(words.unwrap_or_else(|| "no message".into())));
            !ask
        }
    }
}
