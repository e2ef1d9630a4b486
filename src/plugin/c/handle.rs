//! A steering of the C interface: a slot, and the directions with what is done with each.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_void};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::super::Phase;
use super::super::slot::Slot;
use super::super::state::Plan;
use super::Error;
use super::host::Host;
use super::names::{Named, Naming};
use crate::direction::Direction;
use crate::intervention::{Basis, Intervention, Positions, Projection, Side};
use crate::runtime::Probe;

/// What is done with a direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Off,
    Ablate,
    Add,
}

/// A direction and what is done with it.
pub(super) struct Setting {
    direction: Direction,
    pub mode: Use,
    pub strength: f32,
    pub center: f32,
    pub side: Side,
    pub positions: Positions,
    pub blocks: Range<usize>,
    /// The block at whose output it is read.
    pub read: Option<usize>,
}

impl Setting {
    /// Whether it is ablated as published, and so together with others like it.
    fn is_whole(&self) -> bool {
        let everywhere = self.blocks == ALL && self.positions == Positions::All;
        self.mode == Use::Ablate
            && everywhere
            && self.strength == 1.0
            && self.center == 0.0
            && self.side == Side::Both
    }
}

const ALL: Range<usize> = 0..usize::MAX;

/// A steering, to be put into `llama_context_params` as the user data of `ggsteer_eval_callback`.
pub struct Handle {
    pub(super) slot: Slot<Named>,
    architecture: String,
    /// None once it was freed.
    settings: Mutex<Option<Vec<Setting>>>,
}

impl Handle {
    /// # Safety
    /// `model` is a live model of that llama.cpp.
    pub(super) unsafe fn open(library: Option<&CStr>, model: *const c_void) -> Result<Self, Error> {
        let host = Host::open(library)?;
        // SAFETY: passed on from the caller.
        let (architecture, n_block, n_embd) = unsafe { host.shape(model) }?;
        let naming = Naming::of(&architecture)?;
        let slot = Slot::new(Named { host, naming, n_embd }, n_block, n_embd);
        Ok(Self { slot, architecture, settings: Mutex::new(Some(Vec::new())) })
    }

    /// For a model of 2 blocks, 4 wide, of this program's own llama.cpp.
    #[cfg(test)]
    pub(super) fn linked() -> Self {
        let (host, naming) = (Host::linked(), Naming::of("llama").expect("it is known"));
        let slot = Slot::new(Named { host, naming, n_embd: 4 }, 2, 4);
        Self { slot, architecture: "llama".into(), settings: Mutex::new(Some(Vec::new())) }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<Setting>) -> Result<T, Error>) -> Result<T, Error> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        work(settings.as_mut().ok_or(Error::Freed)?)
    }

    /// The number of a direction that does nothing yet.
    pub(super) fn load(&self, path: &str, block: Option<usize>) -> Result<i32, Error> {
        let direction = Direction::load(Path::new(path), block)?;
        let (n_block, n_embd) = self.shape();
        direction.check_model(&self.architecture, n_embd)?;
        if direction.block >= n_block {
            let block = direction.block as i32;
            return Err(Error::Blocks { first: block, last: block, n_block });
        }
        self.with(|settings| {
            settings.push(Setting {
                direction,
                mode: Use::Off,
                strength: 1.0,
                center: 0.0,
                side: Side::Both,
                positions: Positions::All,
                blocks: ALL,
                read: None,
            });
            Ok(settings.len() as i32 - 1)
        })
    }

    fn shape(&self) -> (usize, usize) {
        let state = self.slot.state();
        (state.n_block, state.n_embd)
    }

    /// Blocks as a caller counts them, both ends included; a last of −1 is the model's.
    pub(super) fn blocks(&self, first: i32, last: i32) -> Result<Range<usize>, Error> {
        let (n_block, _) = self.shape();
        let end = if last == -1 { Some(n_block) } else { usize::try_from(last).ok().map(|last| last + 1) };
        match (usize::try_from(first), end) {
            (Ok(0), Some(end)) if end == n_block => Ok(ALL),
            (Ok(first), Some(end)) if first < end && end <= n_block => Ok(first..end),
            _ => Err(Error::Blocks { first, last, n_block }),
        }
    }

    /// Changes what is done with a direction, from the next graph on; an error leaves everything as it was.
    pub(super) fn set(&self, direction: i32, change: impl FnOnce(&mut Setting)) -> Result<(), Error> {
        self.with(|settings| {
            let loaded = settings.len();
            let at = usize::try_from(direction).ok().filter(|&at| at < loaded);
            let at = at.ok_or(Error::NoDirection { found: direction, loaded })?;
            let Setting { mode, strength, center, side, positions, ref blocks, read, .. } = settings[at];
            let before = (mode, strength, center, side, positions, blocks.clone(), read);
            change(&mut settings[at]);
            let planned = self.plan(settings);
            if planned.is_err() {
                let s = &mut settings[at];
                (s.mode, s.strength, s.center, s.side, s.positions, s.blocks, s.read) = before;
            }
            self.slot.state().plan = Arc::new(planned?);
            Ok(())
        })
    }

    fn plan(&self, settings: &[Setting]) -> Result<Plan, Error> {
        let mut intervention = Intervention::default();
        let whole: Vec<&[f32]> =
            settings.iter().filter(|s| s.is_whole()).map(|s| s.direction.vector.as_slice()).collect();
        intervention.ablate = Basis::new(&whole)?;
        for s in settings {
            let vector = &s.direction.vector;
            match s.mode {
                Use::Ablate if !s.is_whole() => intervention.project.push(
                    Projection::new(vector)?
                        .strength(s.strength)
                        .center(s.center)
                        .side(s.side)
                        .positions(s.positions)
                        .blocks(s.blocks.clone()),
                ),
                Use::Add => {
                    let added = Intervention::add(s.direction.block, vector, s.strength, s.positions)?;
                    intervention.add.extend(added.add);
                }
                Use::Ablate | Use::Off => (),
            }
        }
        let probes = settings
            .iter()
            .enumerate()
            .filter_map(|(id, s)| s.read.map(|block| (id, Probe { block, vector: s.direction.unit() })));
        let plan = Plan { intervention, probes: probes.collect() };
        let (n_block, n_embd) = self.shape();
        plan.check(n_block, n_embd)?;
        Ok(plan)
    }

    /// A call that no direction is named in, on a steering that was not freed.
    pub(super) fn alive<T>(&self, work: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.with(|_| Ok(()))?;
        work()
    }

    pub(super) fn phase(&self, phase: Phase) -> Result<(), Error> {
        self.alive(|| {
            self.slot.state().phase = Some(phase);
            Ok(())
        })
    }

    pub(super) fn attach(&self, attached: bool) -> Result<(), Error> {
        self.alive(|| {
            self.slot.state().attached = attached;
            Ok(())
        })
    }

    /// Takes a direction's readings where they fit into `values`; gives their number in either case.
    pub(super) fn readings(&self, direction: i32, values: &mut [f32]) -> Result<usize, Error> {
        self.with(|settings| {
            let loaded = settings.len();
            let id = usize::try_from(direction).ok().filter(|&id| id < loaded);
            let id = id.ok_or(Error::NoDirection { found: direction, loaded })?;
            let mut state = self.slot.state();
            let n: usize = state.readings().iter().filter(|r| r.probe == id).map(|r| r.values.len()).sum();
            if n > 0 && n <= values.len() {
                let taken = state.take_readings_of(|r| r.probe == id);
                for (place, value) in values.iter_mut().zip(taken.iter().flat_map(|r| &r.values)) {
                    *place = *value;
                }
            }
            Ok(n)
        })
    }

    pub(super) fn free(&self) -> Result<(), Error> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        settings.take().ok_or(Error::Freed)?;
        let mut state = self.slot.state();
        state.attached = false;
        state.plan = Arc::default();
        state.take_readings();
        Ok(())
    }
}
