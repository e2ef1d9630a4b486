//! Continuous batching: sequences that come and go between the decodes of one session.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::engine::Counted;
use super::schedule::shares;
use super::slot::{Failure, Slot, Task};
use crate::chat::Named;
use crate::runtime::{CapturePlan, Captured, Error, Item, Probe, Session, Sink, Site};

/// A session and the tasks in its sequences.
pub(super) struct Batcher<'m> {
    session: Session<'m>,
    /// By sequence.
    slots: Vec<Option<Slot>>,
    /// What any of them reads, and the plan that reads it.
    read: Vec<Arc<Named>>,
    plan: CapturePlan,
}

/// A sequence's part of a decode.
#[derive(Clone, Copy)]
struct Part {
    seq: usize,
    n: usize,
}

impl<'m> Batcher<'m> {
    pub(super) fn new(session: Session<'m>) -> Self {
        let slots = (0..session.options().n_seq).map(|_| None).collect();
        Self { session, slots, read: Vec::new(), plan: CapturePlan::default() }
    }

    pub(super) fn n_busy(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Whether there is a sequence for it, and cells for it beside what runs.
    pub(super) fn has_room_for(&self, task: &Task) -> bool {
        let taken: usize = self.slots.iter().flatten().map(|slot| slot.task.cells()).sum();
        self.slots.iter().any(Option::is_none) && taken + task.cells() <= self.session.options().n_ctx
    }

    /// Takes it in a free sequence.
    pub(super) fn begin(&mut self, task: Task) {
        if let Some(free) = self.slots.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(Slot::new(task));
        }
    }

    /// Lets go of those that nobody waits for any more.
    pub(super) fn drop_abandoned(&mut self) {
        for seq in 0..self.slots.len() {
            if self.slots[seq].as_ref().is_some_and(|slot| slot.task.events.is_closed()) {
                self.free(seq);
            }
        }
    }

    /// Tells all that no answer comes.
    pub(super) fn fail_all(&mut self, failure: &Failure) {
        for slot in self.slots.iter_mut().filter_map(Option::take) {
            slot.fail(failure.clone());
        }
    }

    /// Decodes once for all of them. Where that fails, once for each of them, so that what one request asks for fails no
    /// other.
    pub(super) fn step(&mut self, counted: &Counted) {
        self.plan_reading();
        let parts = self.parts();
        let Err(error) = self.decode(&parts, counted) else { return };
        if let [part] = parts[..] {
            return self.fail(part.seq, &error);
        }
        for part in parts {
            let Some(slot) = &self.slots[part.seq] else { continue };
            // What the failed decode has left in the cache may be anything.
            if !self.session.truncate(part.seq, slot.held).unwrap_or(false) {
                self.fail(part.seq, &error);
                continue;
            }
            if let Err(error) = self.decode(&[part], counted) {
                self.fail(part.seq, &error);
            }
        }
    }

    /// With how many tokens each takes part in the next decode: with one at least, since a session has no more sequences than
    /// tokens of a batch.
    fn parts(&self) -> Vec<Part> {
        let busy =
            self.slots.iter().enumerate().filter_map(|(seq, slot)| Some((seq, slot.as_ref()?.needs())));
        let (seqs, needs): (Vec<usize>, Vec<usize>) = busy.unzip();
        let shares = shares(self.session.options().n_batch, &needs);
        seqs.into_iter().zip(shares).map(|(seq, n)| Part { seq, n }).collect()
    }

    /// Has the session read what the tasks of now want, each direction once.
    fn plan_reading(&mut self) {
        let mut read: Vec<Arc<Named>> = Vec::new();
        for named in self.slots.iter().flatten().flat_map(|slot| &slot.task.steering.read) {
            if !read.iter().any(|other| Arc::ptr_eq(other, named)) {
                read.push(Arc::clone(named));
            }
        }
        let same =
            read.len() == self.read.len() && read.iter().zip(&self.read).all(|(a, b)| Arc::ptr_eq(a, b));
        if !same {
            let probe = |n: &Arc<Named>| Probe { block: n.direction.block, vector: n.direction.unit() };
            self.plan.probes = read.iter().map(probe).collect();
            self.read = read;
        }
    }

    fn decode(&mut self, parts: &[Part], counted: &Counted) -> Result<(), Error> {
        let Self { session, slots, read, plan, .. } = self;
        let items: Vec<Item<'_>> = (parts.iter())
            .filter_map(|part| Some(slots[part.seq].as_ref()?.item(part.seq, part.n)))
            .collect();
        let mut values: Vec<(usize, usize, f32)> = Vec::new();
        let mut note = |c: Captured<'_>| {
            if let (Site::Probe(probe), [value]) = (c.site, c.row) {
                values.push((c.token, probe, *value));
            }
        };
        let capture = (!read.is_empty()).then_some((&*plan, &mut note as &mut Sink<'_>));
        session.decode(&items, capture)?;
        let mut done = Vec::new();
        let mut last = 0;
        for part in parts {
            last += part.n;
            let Some(slot) = &mut slots[part.seq] else { continue };
            let prompt = slot.is_in_prompt();
            let drawing = part.n == slot.needs();
            slot.held += part.n;
            if prompt {
                counted.prompt.fetch_add(part.n as u64, Ordering::Relaxed);
            }
            if !drawing {
                continue;
            }
            for (named, reading) in slot.task.steering.read.iter().zip(&mut slot.readings) {
                let probe = read.iter().position(|other| Arc::ptr_eq(other, named));
                let value = values.iter().find(|(token, p, _)| *token == last - 1 && Some(*p) == probe);
                *reading = value.map_or(f32::NAN, |(_, _, value)| *value);
            }
            let before = slot.n_tokens;
            if slot.advance(session.model(), session.logits(last - 1)) {
                done.push(part.seq);
            }
            counted.completion.fetch_add((slot.n_tokens - before) as u64, Ordering::Relaxed);
        }
        done.into_iter().for_each(|seq| self.free(seq));
        Ok(())
    }

    fn fail(&mut self, seq: usize, error: &Error) {
        if let Some(slot) = &self.slots[seq] {
            slot.fail(Failure::Model(error.to_string()));
        }
        self.free(seq);
    }

    fn free(&mut self, seq: usize) {
        self.slots[seq] = None;
        if self.session.forget(seq).is_err() {
            // Never so far; then everything goes, and is computed again from its prompt.
            self.session.clear();
            self.fail_all(&Failure::Model("the cache could not be cleared".into()));
        }
    }
}
