//! What the cache of keys and values holds, and what of it can be used again.

use std::sync::Arc;

use super::steering::Steering;
use crate::intervention::Intervention;
use crate::runtime::{CapturePlan, Error, Item, Outputs, Session, Sink, Token};

/// A token, and whether it counts as the prompt's (see [`crate::intervention::Positions`]) or was generated.
pub(super) type Entry = (Token, bool);

/// A sequence of the cache: all its keys and values were computed under one steering.
#[derive(Debug, Default)]
struct Lane {
    steering: Steering,
    entries: Vec<Entry>,
    /// When it was last used.
    used: u64,
}

/// As many sequences as the session has, each for one steering: to switch to and fro costs the new tokens alone.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    clock: u64,
}

/// A lane in use.
#[derive(Debug, Clone)]
pub(super) struct Use {
    seq: usize,
    intervention: Option<Arc<Intervention>>,
}

impl Lanes {
    pub(super) fn new(n: usize) -> Self {
        Self { lanes: (0..n.max(1)).map(|_| Lane::default()).collect(), clock: 0 }
    }

    /// Makes a lane for `steering` that holds a beginning of `entries`, short of the last, whose logits are wanted; returns
    /// it and the length of that beginning. The cache will have room for all of `entries` and `more` tokens.
    pub(super) fn choose(
        &mut self,
        session: &mut Session<'_>,
        (steering, intervention): (Steering, Option<Arc<Intervention>>),
        entries: &[Entry],
        more: usize,
    ) -> Result<(Use, usize), Error> {
        self.clock += 1;
        let known = self.lanes.iter().position(|lane| lane.steering == steering);
        let oldest = || (0..self.lanes.len()).min_by_key(|&i| self.lanes[i].used).unwrap_or(0);
        let seq = known.unwrap_or_else(oldest);
        if known.is_none() {
            self.forget(session, seq)?;
            self.lanes[seq].steering = steering;
        }
        self.lanes[seq].used = self.clock;
        let others: usize = (self.lanes.iter().enumerate().filter(|(i, _)| *i != seq))
            .map(|(_, lane)| lane.entries.len())
            .sum();
        if others + entries.len() + more > session.options().n_ctx {
            (0..self.lanes.len()).filter(|i| *i != seq).try_for_each(|i| self.forget(session, i))?;
        }
        let held = &self.lanes[seq].entries;
        let alike = held.iter().zip(entries).take_while(|(a, b)| a == b).count();
        let mut alike = alike.min(entries.len().saturating_sub(1));
        if session.truncate(seq, alike)? {
            self.lanes[seq].entries.truncate(alike);
        } else {
            self.forget(session, seq)?;
            alike = 0;
        }
        Ok((Use { seq, intervention }, alike))
    }

    /// Puts at most a batch of `entries` behind what the lane holds; the logits and readings after the last are wanted if
    /// `output` is. Returns its index in the batch.
    pub(super) fn push(
        &mut self,
        session: &mut Session<'_>,
        lane: &Use,
        entries: &[Entry],
        output: bool,
        capture: (&CapturePlan, &mut Sink<'_>),
    ) -> Result<usize, Error> {
        let tokens: Vec<Token> = entries.iter().map(|(token, _)| *token).collect();
        let Lane { entries: held, .. } = &mut self.lanes[lane.seq];
        let mut items = Vec::new();
        let mut from = 0;
        for run in entries.chunk_by(|a, b| a.1 == b.1) {
            let to = from + run.len();
            items.push(Item {
                seq: lane.seq,
                start: held.len() + from,
                tokens: &tokens[from..to],
                prompt: run[0].1,
                outputs: if output && to == entries.len() { Outputs::Last(1) } else { Outputs::None },
                intervention: lane.intervention.clone(),
            });
            from = to;
        }
        if let Err(error) = session.decode(&items, Some(capture)) {
            // How far it came is unknown.
            self.forget(session, lane.seq)?;
            return Err(error);
        }
        held.extend(entries);
        Ok(entries.len().saturating_sub(1))
    }

    /// What the lane holds.
    pub(super) fn held(&self, lane: &Use) -> &[Entry] {
        &self.lanes[lane.seq].entries
    }

    fn forget(&mut self, session: &mut Session<'_>, seq: usize) -> Result<(), Error> {
        self.lanes[seq].entries.clear();
        session.forget(seq)
    }
}
