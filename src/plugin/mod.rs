//! Steering in a llama.cpp that is not ours: contexts of llama-cpp-2 that the caller's program makes, and, through a C
//! interface, any program with a llama.cpp in it.
//!
//! ```
//! use ggsteer::intervention::Intervention;
//! use ggsteer::plugin::Steering;
//! use llama_cpp_2::context::params::LlamaContextParams;
//! use llama_cpp_2::llama_batch::LlamaBatch;
//! use llama_cpp_2::model::{LlamaModel, params::LlamaModelParams};
//!
//! # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/gguf-samples/lorekeeper-7m-f16.gguf");
//! # let backend = ggsteer::runtime::backend()?;
//! # let direction: Vec<f32> = (0..256).map(|i| (i % 7) as f32 - 3.0).collect();
//! let model = LlamaModel::load_from_file(&backend, path, &LlamaModelParams::default())?;
//! let steering = Steering::new(&model);
//! steering.set(Intervention::ablate(&[direction])?)?;
//! let params = steering.attach(LlamaContextParams::default().with_n_threads(1).with_n_threads_batch(1))?;
//! let mut context = model.new_context(&backend, params)?;
//!
//! let tokens = model.vocab().tokenize(b"Who made the lantern?", true, false);
//! let mut batch = LlamaBatch::new(64, 1);
//! batch.add_sequence(&tokens, 0, false)?;
//! context.decode(&mut batch)?;
//! steering.check()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Shape: llama.cpp gets a callback and a *slot*, which lives as long as the program, so that no order of dropping, no
//! copy of the parameters and no thread can leave a context with a dangling pointer. [`Steering`] is a handle to the slot;
//! what it does is taken over by each graph as it begins. The state machine (`state`) knows no tensors; two
//! implementations of one trait reach them: `linked` through the declarations that this crate is built with, following
//! the stream by the data, and `c::host` through nothing but functions that the host exports, following it by the names
//! of the nodes, for architectures whose names are known to tell it.
//!
//! Rejected: freeing the slot with the handle (a context may outlive it, and safe code could then read freed memory); a
//! wrapper around `LlamaContext` that owns both (the caller's program has its context in its own types already); guessing
//! from the number of tokens whether a batch is a prompt (the last piece of a long prompt may be a single token).
#![allow(unsafe_code)]

#[cfg(unix)]
pub mod c;
mod linked;
mod slot;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_sys_2 as sys;

use crate::intervention::Intervention;
use crate::runtime::{self, HookError, Probe, params};
use linked::Linked;
use slot::Slot;
use state::Plan;

/// What a batch is, for what is done at some positions alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Tokens of a prompt.
    Prompt,
    /// Generated tokens.
    Generated,
}

/// What a probe has read in one graph, that is of one batch, or of one piece of a batch larger than `n_ubatch`.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// Index of the probe, as given to [`Steering::read`].
    pub probe: usize,
    /// Its block.
    pub block: usize,
    /// r·x of each token before what is done at that block, in the order in which llama.cpp computes the tokens; of the
    /// model's last block only those whose logits were asked for.
    pub values: Vec<f32>,
}

/// Why a context cannot be steered, or was not.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Context parameters that cannot take the callback.
    #[error(transparent)]
    Params(runtime::Error),
    /// A vector of another width than the model's.
    #[error("a direction has {found} elements, the model's residual stream {expected}")]
    Width {
        /// The model's `n_embd`.
        expected: usize,
        /// The vector's.
        found: usize,
    },
    /// Something is done at the prompt or at the answer alone.
    #[error("something is done at some positions alone: say before each decode whether it is of the prompt")]
    PhaseUnknown,
    /// A graph that did not come to its end.
    #[error("a batch ended before block {block}: its decode failed, or the context is of another model")]
    Unfinished {
        /// The 0-based block that did not come.
        block: usize,
    },
    /// Readings that nobody takes.
    #[error("{limit} readings were not taken: take them after each decode")]
    Unread {
        /// How many are kept.
        limit: usize,
    },
    /// What is wrong in the graph.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// What only a host behind the C interface can have wrong.
    #[cfg(unix)]
    #[error(transparent)]
    Host(Box<c::Error>),
}

#[cfg(unix)]
impl From<c::Error> for Error {
    fn from(error: c::Error) -> Self {
        Self::Host(Box::new(error))
    }
}

/// A steering for contexts of llama-cpp-2; see the module's page.
///
/// It may be changed, read and detached from any thread while a context decodes. A change is for the graphs that begin
/// after it. Dropped, it leaves its contexts as they would be without it, and a few hundred bytes of memory that stay with
/// the program.
#[derive(Debug)]
pub struct Steering {
    slot: Arc<Slot<Linked>>,
    /// A context may know the slot.
    given: AtomicBool,
}

impl Steering {
    /// A steering that does nothing yet, for contexts of this model.
    #[must_use]
    pub fn new(model: &LlamaModel) -> Self {
        let (n_block, n_embd) = (model.n_layer() as usize, model.n_embd().max(0) as usize);
        Self { slot: Arc::new(Slot::new(Linked, n_block, n_embd)), given: AtomicBool::new(false) }
    }

    /// Puts the callback into the parameters of contexts that are made after this. Contexts of the same parameters share
    /// it, and what is read of them comes in one list.
    ///
    /// # Errors
    /// [`Error::Params`]: another callback is there already, or the parameters are not laid out as expected.
    pub fn attach(&self, mut params: LlamaContextParams) -> Result<LlamaContextParams, Error> {
        let slot = Arc::as_ptr(&self.slot);
        params::set_eval_callback(&mut params, Some(trampoline), slot.cast_mut().cast())
            .map_err(Error::Params)?;
        if !self.given.swap(true, Ordering::Relaxed) {
            // One count that is never given back.
            std::mem::forget(Arc::clone(&self.slot));
        }
        Ok(params)
    }

    /// What is done from the next graph on, in place of what was done before.
    ///
    /// # Errors
    /// [`Error::Width`], or a block that the model does not have; what was done before stays.
    pub fn set(&self, intervention: Intervention) -> Result<(), Error> {
        self.change(|plan| plan.intervention = intervention)
    }

    /// What is read from the next graph on, in place of what was read before.
    ///
    /// # Errors
    /// As [`Steering::set`].
    pub fn read(&self, probes: Vec<Probe>) -> Result<(), Error> {
        self.change(|plan| plan.probes = probes.into_iter().enumerate().collect())
    }

    fn change(&self, change: impl FnOnce(&mut Plan)) -> Result<(), Error> {
        let mut state = self.slot.state();
        let mut plan = Plan::clone(&state.plan);
        change(&mut plan);
        plan.check(state.n_block, state.n_embd)?;
        state.plan = Arc::new(plan);
        Ok(())
    }

    /// Says what the batches decoded from now on are. Needed only where something is done at some positions alone; a
    /// batch with tokens of both kinds is then to be decoded in two.
    pub fn phase(&self, phase: Phase) {
        self.slot.state().phase = Some(phase);
    }

    /// Leaves the contexts as they would be without it, until [`Steering::reattach`].
    pub fn detach(&self) {
        self.slot.state().attached = false;
    }

    /// Does again what it did before [`Steering::detach`].
    pub fn reattach(&self) {
        self.slot.state().attached = true;
    }

    /// Graphs that were steered or read to their end: at least one a decode.
    #[must_use]
    pub fn n_steered(&self) -> u64 {
        self.slot.state().steered
    }

    /// Takes what was read since the last call, graph by graph.
    ///
    /// # Errors
    /// As [`Steering::check`].
    pub fn readings(&self) -> Result<Vec<Reading>, Error> {
        let mut state = self.slot.state();
        state.verdict()?;
        Ok(state.take_readings())
    }

    /// The first thing that went wrong since the last call: to be asked after each decode, and not during one. What the
    /// context computed in a graph with an error is not to be used.
    ///
    /// # Errors
    /// Whatever the callback met with: a stream that cannot be followed or is not a number, rows that do not fit, a decode
    /// that did not come to its end.
    pub fn check(&self) -> Result<(), Error> {
        self.slot.state().verdict()
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        let mut state = self.slot.state();
        state.attached = false;
        state.plan = Arc::default();
        state.take_readings();
    }
}

impl std::fmt::Debug for Slot<Linked> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

/// The callback of contexts with a [`Steering`].
unsafe extern "C" fn trampoline(t: *mut sys::ggml_tensor, ask: bool, slot: *mut std::ffi::c_void) -> bool {
    // SAFETY: `Steering::attach` put a slot there whose count never comes to 0; only shared references to it exist.
    let slot = unsafe { &*slot.cast::<Slot<Linked>>() };
    // SAFETY: the scheduler passes live nodes, computed and synchronised where `ask` is false.
    unsafe { slot.call(t.cast(), ask) }
}
