//! What a steering knows and does, node by node, whoever reaches the tensors.
//!
//! A decode is one graph a piece of the batch (`n_ubatch` tokens at most), and each runs whole in the thread that
//! decodes. So the state of a graph belongs to its thread: contexts of one slot on several threads do not meet. What is
//! to be done is taken over when a graph begins; a change meanwhile is for the next.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::thread::ThreadId;

use super::{Error, Phase, Reading};
use crate::intervention::{Intervention, Left, dot};
use crate::runtime::stream::Place;
use crate::runtime::{HookError, Probe};

/// So many values are kept until somebody takes them.
const KEPT: usize = 1 << 22;

/// So many threads are known before the old ones among them are forgotten.
const THREADS: usize = 64;

/// What is done and read.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Plan {
    pub intervention: Intervention,
    /// Each with the number that its readings get.
    pub probes: Vec<(usize, Probe)>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.intervention.is_empty() && self.probes.is_empty()
    }

    /// Whether it can be done in a model of this shape.
    pub(super) fn check(&self, n_block: usize, n_embd: usize) -> Result<(), Error> {
        let last = n_block.saturating_sub(1);
        let probed = self.probes.iter().map(|(_, p)| ("probe", p.block));
        if let Some((what, block)) = self.intervention.blocks().chain(probed).find(|(_, block)| *block > last)
        {
            return Err(HookError::NoSuchBlock { what, block, last }.into());
        }
        let mut widths = self.intervention.widths().chain(self.probes.iter().map(|(_, p)| p.vector.len()));
        match widths.find(|&width| width != n_embd) {
            Some(found) => Err(Error::Width { expected: n_embd, found }),
            None => Ok(()),
        }
    }
}

/// Whether a graph begins at a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Start {
    #[default]
    No,
    Yes,
    /// Where none has just begun.
    Perhaps,
}

/// What can be seen of a node at a glance.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Glance {
    /// A graph's stream begins here.
    pub start: Start,
    /// It is the output of this 0-based block.
    pub block_output: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Runs,
    /// Nothing more to be done: all is, or nothing was to be.
    Done,
    Failed,
}

/// One graph, as far as it went.
struct Graph<F> {
    /// Its number.
    begun: u64,
    /// A node came at which it would have begun, had it not.
    perhaps: bool,
    follow: F,
    plan: Arc<Plan>,
    phase: Option<Phase>,
    progress: Progress,
    /// Rows of the stream, and after the last block has cut those without logits.
    tokens: Option<usize>,
    outputs: Option<usize>,
    /// The block whose output is to come.
    next: usize,
    pending: Option<Place>,
    /// The address of the first node intervened on, and its rows before.
    first: Option<(usize, Vec<f32>)>,
}

/// What the scheduler is to do with a node, and what before.
#[derive(Default)]
pub(super) struct Answer {
    /// It is to be shown once it is computed.
    pub wanted: bool,
    /// Rows to be put back into the node at this address: the stream did not begin there.
    pub restore: Option<(usize, Vec<f32>)>,
}

/// The mutable half of a slot.
pub(super) struct State<F> {
    pub n_block: usize,
    pub n_embd: usize,
    pub plan: Arc<Plan>,
    pub attached: bool,
    pub phase: Option<Phase>,
    pub steered: u64,
    /// The last graph of each thread.
    graphs: HashMap<ThreadId, Graph<F>>,
    begun: u64,
    error: Option<Error>,
    readings: Vec<Reading>,
    kept: usize,
}

impl<F: Default> State<F> {
    pub(super) fn new(n_block: usize, n_embd: usize) -> Self {
        Self {
            n_block,
            n_embd,
            plan: Arc::default(),
            attached: true,
            phase: None,
            steered: 0,
            graphs: HashMap::new(),
            begun: 0,
            error: None,
            readings: Vec::new(),
            kept: 0,
        }
    }

    /// The first error since the last call.
    pub(super) fn verdict(&mut self) -> Result<(), Error> {
        let mut unfinished = None;
        for graph in self.graphs.values_mut().filter(|g| g.progress == Progress::Runs) {
            graph.progress = Progress::Failed;
            unfinished = unfinished.or(Some(graph.next));
        }
        match (self.error.take(), unfinished) {
            (Some(error), _) => Err(error),
            (None, Some(block)) => Err(Error::Unfinished { block }),
            (None, None) => Ok(()),
        }
    }

    pub(super) fn take_readings(&mut self) -> Vec<Reading> {
        self.kept = 0;
        std::mem::take(&mut self.readings)
    }

    /// Takes the readings that `wanted` picks.
    pub(super) fn take_readings_of(&mut self, wanted: impl Fn(&Reading) -> bool) -> Vec<Reading> {
        let (taken, left) = std::mem::take(&mut self.readings).into_iter().partition(wanted);
        self.readings = left;
        self.kept = self.readings.iter().map(|r| r.values.len()).sum();
        taken
    }

    pub(super) fn readings(&self) -> &[Reading] {
        &self.readings
    }

    /// Keeps an error that is nobody's fault in the graph, and goes on to the next graph.
    pub(super) fn fail(&mut self, thread: ThreadId, error: Error) {
        if let Some(graph) = self.graphs.get_mut(&thread) {
            graph.progress = Progress::Failed;
            graph.first = None;
        }
        self.error.get_or_insert(error);
    }

    fn begin(&mut self, thread: ThreadId, perhaps: bool) {
        if let Some(Graph { progress: Progress::Runs, next, .. }) = self.graphs.get(&thread) {
            let block = *next;
            self.error.get_or_insert(Error::Unfinished { block });
        }
        self.begun += 1;
        if self.graphs.len() > THREADS {
            // Threads come and go.
            let old = self.begun.saturating_sub(THREADS as u64);
            self.graphs.retain(|_, graph| graph.progress == Progress::Runs || graph.begun > old);
        }
        let plan = if self.attached { Arc::clone(&self.plan) } else { Arc::default() };
        let progress = if plan.is_empty() { Progress::Done } else { Progress::Runs };
        let graph = Graph {
            begun: self.begun,
            perhaps,
            follow: F::default(),
            plan,
            phase: self.phase,
            progress,
            tokens: None,
            outputs: None,
            next: 0,
            pending: None,
            first: None,
        };
        self.graphs.insert(thread, graph);
    }

    /// The scheduler asks about a node; `place` finds its place in the stream, and is called in order for every node of
    /// a graph that matters.
    pub(super) fn ask(
        &mut self,
        thread: ThreadId,
        glance: Glance,
        place: impl FnOnce(&mut F) -> Result<Place, Error>,
    ) -> Result<Answer, Error> {
        if glance.start != Start::No {
            let perhaps = glance.start == Start::Perhaps;
            let begun =
                |g: &&mut Graph<F>| perhaps && !g.perhaps && g.progress != Progress::Failed && g.next == 0;
            match self.graphs.get_mut(&thread).filter(begun) {
                Some(graph) => graph.perhaps = true,
                None => self.begin(thread, perhaps),
            }
        }
        let block_output = glance.block_output.filter(|&block| block < self.n_block);
        let matters = self.attached && !self.plan.is_empty();
        let Some(graph) = self.graphs.get_mut(&thread).filter(|g| g.progress == Progress::Runs) else {
            let next = self.graphs.get_mut(&thread).map(|graph| &mut graph.next);
            if let Some(block) = block_output {
                // A block that comes again, or comes first, is of a graph that did not begin with token embeddings.
                let known = next.is_some_and(|next| {
                    let later = block >= *next;
                    *next = block + 1;
                    later
                });
                if !known && matters {
                    return Err(HookError::NoEmbedding.into());
                }
            }
            return Ok(Answer::default());
        };
        let place = place(&mut graph.follow)?;
        graph.pending = Some(place);
        let restore = match (place.begins_behind, graph.first.take_if(|_| place.begins_behind.is_some())) {
            (Some(normed), Some((first, _))) if normed != first => {
                return Err(HookError::NoEmbedding.into());
            }
            (_, restore) => restore,
        };
        let intervenes = !graph.plan.intervention.is_empty();
        let Some(block) = block_output else {
            return Ok(Answer { wanted: place.writes && intervenes, restore });
        };
        if block != graph.next {
            return Err(HookError::BlockNotSeen { block: graph.next }.into());
        }
        graph.next += 1;
        if !place.on_stream {
            let node = format!("l_out-{block}");
            return Err(HookError::NotTheStream { block, node }.into());
        }
        let wanted = intervenes || graph.plan.probes.iter().any(|(_, p)| p.block == block);
        if !wanted && graph.next == self.n_block {
            graph.progress = Progress::Done;
            self.steered += 1;
        }
        Ok(Answer { wanted, restore })
    }

    /// Whether a node that was wanted is still to be worked on.
    pub(super) fn runs(&self, thread: ThreadId) -> bool {
        self.graphs.get(&thread).is_some_and(|g| g.progress == Progress::Runs && g.pending.is_some())
    }

    /// Works on the rows of a node that was wanted; `node` is its name, `address` where it is. True where the rows are to
    /// be written back.
    pub(super) fn computed(
        &mut self,
        thread: ThreadId,
        (node, address): (&str, usize),
        (n_embd, rows): (usize, &mut [f32]),
    ) -> Result<bool, Error> {
        let Some(graph) = self.graphs.get_mut(&thread) else { return Ok(false) };
        let Some(place) = graph.pending.take() else { return Ok(false) };
        if n_embd != self.n_embd {
            return Err(Error::Width { expected: self.n_embd, found: n_embd });
        }
        let found = rows.len() / n_embd;
        let tokens = *graph.tokens.get_or_insert(found);
        if found != tokens && found != *graph.outputs.get_or_insert(found) || found > tokens {
            let (node, outputs) = (node.to_owned(), graph.outputs.unwrap_or(tokens));
            return Err(HookError::Rows { node, tokens, outputs, found: found as i64 }.into());
        }
        let Plan { intervention, probes } = &*graph.plan;
        for (probe, Probe { block, vector }) in probes {
            if Some(*block) == place.block_output {
                let values: Vec<f32> = rows.chunks_exact(n_embd).map(|x| dot(vector, x) as f32).collect();
                self.kept += values.len();
                if self.kept > KEPT {
                    return Err(Error::Unread { limit: KEPT });
                }
                self.readings.push(Reading { probe: *probe, block: *block, values });
            }
        }
        let changes = !intervention.is_empty();
        if changes {
            let prompt = match graph.phase {
                Some(phase) => phase == Phase::Prompt,
                None if intervention.tells_positions() => return Err(Error::PhaseUnknown),
                None => true,
            };
            // In case it lies before the beginning.
            if graph.first.is_none() && place.block == 0 && place.block_output.is_none() {
                graph.first = Some((address, rows.to_vec()));
            }
            let at = place.write(prompt);
            for (token, x) in rows.chunks_exact_mut(n_embd).enumerate() {
                intervention.apply(x, at).map_err(|Left { component, norm }| HookError::NotAblated {
                    block: at.block,
                    token,
                    component,
                    norm,
                })?;
            }
        }
        if graph.next == self.n_block {
            graph.progress = Progress::Done;
            self.steered += 1;
        }
        Ok(changes)
    }
}
