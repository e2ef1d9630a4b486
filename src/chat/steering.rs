//! What a conversation can be steered by, and how it is steered.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::direction::Direction;
use crate::intervention::{Basis, Error, Intervention, Positions};
use crate::runtime::Probe;

/// A direction and what people call it.
#[derive(Debug, Clone, PartialEq)]
pub struct Named {
    /// Its name, such as the file's.
    pub name: String,
    /// Itself.
    pub direction: Direction,
}

/// The directions at hand. Where they are given for one use only, they serve the other as well.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Directions {
    erased: Vec<Named>,
    added: Option<Named>,
    positions: Positions,
}

impl Directions {
    /// Directions to be erased (their span), and one to be added at `positions`. With none to add that is the first of
    /// those to be erased; with none to erase, the one to be added.
    #[must_use]
    pub fn new(erased: Vec<Named>, added: Option<Named>, positions: Positions) -> Self {
        let first = erased.first().cloned();
        let erased = if erased.is_empty() { added.iter().cloned().collect() } else { erased };
        Self { erased, added: added.or(first), positions }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.erased.is_empty()
    }

    /// Those that are read while the model answers, each once.
    #[must_use]
    pub fn read(&self) -> Vec<&Named> {
        let mut all: Vec<&Named> = self.erased.iter().collect();
        all.extend(
            self.added.iter().filter(|added| self.erased.iter().all(|e| e.direction != added.direction)),
        );
        all
    }

    /// Their probes, in that order: the unit vector of each at its own block.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        let probe = |named: &Named| Probe { block: named.direction.block, vector: named.direction.unit() };
        self.read().into_iter().map(probe).collect()
    }

    /// What a steering does to the stream; `None` where it does nothing.
    ///
    /// # Errors
    /// Directions that depend on each other, an addition that is not finite.
    pub fn intervention(&self, steering: Steering) -> Result<Option<Arc<Intervention>>, Error> {
        let mut intervention = Intervention::default();
        if steering.ablate {
            let vectors: Vec<&[f32]> = self.erased.iter().map(|n| n.direction.vector.as_slice()).collect();
            intervention.ablate = Basis::new(&vectors)?;
        }
        if let Some(Named { direction, .. }) = self.added.as_ref().filter(|_| steering.scale != 0.0) {
            let Direction { block, vector, .. } = direction;
            intervention.add = Intervention::add(*block, vector, steering.scale, self.positions)?.add;
        }
        Ok((intervention != Intervention::default()).then(|| Arc::new(intervention)))
    }
}

/// What is switched on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Steering {
    /// The directions are erased after every write to the stream.
    pub ablate: bool,
    /// This much of the raw direction is added at its block's output; 0 for none. Where a direction is erased too, what of
    /// the addition lies along it lasts until the next write to the stream, after which it is erased again.
    pub scale: f32,
}

impl Steering {
    /// Whether nothing is.
    #[must_use]
    pub fn is_plain(self) -> bool {
        !self.ablate && self.scale == 0.0
    }
}

impl fmt::Display for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ablate, self.scale != 0.0) {
            (false, false) => f.write_str("plain"),
            (true, false) => f.write_str("erased"),
            (false, true) => write!(f, "added × {}", self.scale),
            (true, true) => write!(f, "erased, then added × {}", self.scale),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::direction::Provenance;

    fn named(name: &str, block: usize, vector: &[f32]) -> Named {
        let direction = Direction::new(vector.to_vec(), block, Provenance::default()).unwrap();
        Named { name: name.into(), direction }
    }

    #[test]
    fn one_direction_serves_both_uses() {
        let one = named("a", 1, &[3.0, 4.0]);
        for directions in [
            Directions::new(vec![one.clone()], None, Positions::All),
            Directions::new(vec![], Some(one.clone()), Positions::All),
        ] {
            assert_eq!(directions.read(), [&one]);
            assert_eq!(directions.probes(), [Probe { block: 1, vector: vec![0.6, 0.8] }]);
            let of = |ablate, scale| directions.intervention(Steering { ablate, scale }).unwrap();
            assert_eq!(of(false, 0.0), None);
            let both = of(true, -0.5).unwrap();
            assert_eq!(both.ablate.vectors(), [[0.6, 0.8]]);
            assert_eq!((both.add[0].block, both.add[0].vector.as_slice()), (1, &[-1.5, -2.0][..]));
            assert!(of(true, 0.0).unwrap().add.is_empty());
            assert!(of(false, 2.0).unwrap().ablate.is_empty());
            assert!(directions.intervention(Steering { ablate: false, scale: f32::INFINITY }).is_err());
        }
        assert!(Directions::default().is_empty());
        assert_eq!(Directions::default().intervention(Steering { ablate: true, scale: 1.0 }), Ok(None));
    }

    #[test]
    fn each_direction_is_read_once() {
        let (a, b) = (named("a", 0, &[1.0, 0.0]), named("b", 2, &[0.0, 2.0]));
        let directions = Directions::new(vec![a.clone()], Some(b.clone()), Positions::Prompt);
        assert_eq!(directions.read(), [&a, &b]);
        let steering = Steering { ablate: true, scale: 1.0 };
        let both = directions.intervention(steering).unwrap().unwrap();
        assert_eq!((both.ablate.vectors(), both.add[0].block), (&[vec![1.0, 0.0]][..], 2));
        assert_eq!(steering.to_string(), "erased, then added × 1");
    }
}
