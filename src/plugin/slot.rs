//! What llama.cpp is given: a callback, and a slot as its user data.
//!
//! A slot is never freed once a context may know it, since nobody tells a plugin when the last context that was made with
//! some parameters, or with a copy of them, is gone. An empty one is a few hundred bytes, and leaves the model as it is.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use super::Error;
use super::state::{Glance, State};
use crate::runtime::HookError;
use crate::runtime::stream::Place;
use crate::unwind::caught;

/// A node of the graph, of which only [`Reach`] knows more than the address.
pub(super) type Node = *mut c_void;

/// Works on the rows of a node, given their width; true where they are to be written back.
pub(super) type Work<'a> = dyn FnMut(usize, &mut [f32]) -> Result<bool, Error> + 'a;

/// A way to the tensors of a llama.cpp.
///
/// # Safety
/// Of all its functions: the node is the one that the scheduler calls back for, now.
pub(super) trait Reach {
    /// What is kept to follow the stream through one graph.
    type Follow: Default;

    /// What a node is, as far as it can be told without those before it.
    unsafe fn glance(&self, t: Node) -> Glance;

    /// What the next node of a graph is to the stream.
    unsafe fn place(&self, follow: &mut Self::Follow, t: Node) -> Result<Place, Error>;

    /// The node's name.
    unsafe fn name(&self, t: Node) -> String;

    /// Lends the rows of a computed node.
    unsafe fn edit(&self, t: Node, buffer: &mut Vec<f32>, work: &mut Work<'_>) -> Result<(), Error>;
}

/// See the module's page.
pub(super) struct Slot<R: Reach> {
    reach: R,
    state: Mutex<(State<R::Follow>, Vec<f32>)>,
}

/// The state of a slot, for whoever asks between the nodes.
pub(super) struct Guard<'a, F>(MutexGuard<'a, (State<F>, Vec<f32>)>);

impl<F> std::ops::Deref for Guard<'_, F> {
    type Target = State<F>;

    fn deref(&self) -> &State<F> {
        &self.0.0
    }
}

impl<F> std::ops::DerefMut for Guard<'_, F> {
    fn deref_mut(&mut self) -> &mut State<F> {
        &mut self.0.0
    }
}

impl<R: Reach> Slot<R> {
    pub(super) fn new(reach: R, n_block: usize, n_embd: usize) -> Self {
        Self { reach, state: Mutex::new((State::new(n_block, n_embd), Vec::new())) }
    }

    pub(super) fn state(&self) -> Guard<'_, R::Follow> {
        Guard(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the callback does.
    ///
    /// # Safety
    /// As [`Reach`]; where `ask` is false the node is computed, synchronised, and nobody else's now.
    pub(super) unsafe fn call(&self, t: Node, ask: bool) -> bool {
        let thread = std::thread::current().id();
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, buffer) = &mut *guard;
        let outcome = caught(|| {
            // SAFETY: passed on from the caller.
            unsafe {
                if ask { self.ask(state, buffer, thread, t) } else { self.computed(state, buffer, thread, t) }
            }
        });
        match outcome.unwrap_or_else(|words| Err(HookError::Panic(words).into())) {
            Ok(answer) => answer,
            Err(error) => {
                state.fail(thread, error);
                // Never false for a computed node: that would silently skip the rest of the graph.
                !ask
            }
        }
    }

    unsafe fn ask(
        &self,
        state: &mut State<R::Follow>,
        buffer: &mut Vec<f32>,
        thread: ThreadId,
        t: Node,
    ) -> Result<bool, Error> {
        // SAFETY: passed on from the caller.
        let glance = unsafe { self.reach.glance(t) };
        // SAFETY: as above.
        let answer = state.ask(thread, glance, |follow| unsafe { self.reach.place(follow, t) })?;
        if let Some((node, before)) = answer.restore {
            let node = std::ptr::with_exposed_provenance_mut(node);
            let mut put_back = |_: usize, rows: &mut [f32]| {
                rows.copy_from_slice(&before);
                Ok(true)
            };
            // SAFETY: it was intervened on in this graph, and is the input of a norm to come.
            unsafe { self.reach.edit(node, buffer, &mut put_back) }?;
        }
        Ok(answer.wanted)
    }

    unsafe fn computed(
        &self,
        state: &mut State<R::Follow>,
        buffer: &mut Vec<f32>,
        thread: ThreadId,
        t: Node,
    ) -> Result<bool, Error> {
        if state.runs(thread) {
            // SAFETY: passed on from the caller.
            let name = unsafe { self.reach.name(t) };
            let mut work = |width: usize, rows: &mut [f32]| {
                state.computed(thread, (&name, t.expose_provenance()), (width, rows))
            };
            // SAFETY: as above.
            unsafe { self.reach.edit(t, buffer, &mut work) }?;
        }
        Ok(true)
    }
}
