//! The directions at hand, by name; they come and go while the server runs.

use std::sync::{Arc, PoisonError, RwLock};

use crate::chat::Named;
use crate::direction::{Direction, DirectionError};

/// Directions kept at once.
pub const MAX_DIRECTIONS: usize = 256;
/// Bytes of a name.
const MAX_NAME: usize = 128;

/// Why a direction cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A name that no URL or log line should have.
    #[error(
        "direction {name:?}: a name has 1 to {MAX_NAME} bytes, no control characters and no slash, and is not . or .."
    )]
    Name {
        /// The name.
        name: String,
    },
    /// A file that is no direction, or one for another model.
    #[error("direction {name:?}: {source}")]
    Direction {
        /// The name.
        name: String,
        /// What is wrong.
        source: Box<DirectionError>,
    },
    /// A direction of a block that the model does not have.
    #[error("direction {name:?}: of block {block}, the model has blocks 0 to {last}")]
    Block {
        /// The name.
        name: String,
        /// Its block.
        block: usize,
        /// The model's last block.
        last: usize,
    },
    /// Two of one name at the start.
    #[error("two directions are called {name:?}; give one another name with --direction NAME=FILE")]
    Twice {
        /// The name.
        name: String,
    },
    /// Too many.
    #[error("{MAX_DIRECTIONS} directions are loaded already; delete one first")]
    Full,
}

/// Those there are at one moment, in the order they came.
pub(super) type Loaded = Vec<Arc<Named>>;

/// What a direction must fit.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub architecture: String,
    pub n_embd: usize,
    pub n_block: usize,
}

/// The directions of a server.
#[derive(Debug)]
pub(super) struct Registry {
    shape: Shape,
    loaded: RwLock<Arc<Loaded>>,
}

impl Registry {
    /// Those the server begins with.
    pub(super) fn new(shape: Shape, directions: Vec<Named>) -> Result<Self, RegistryError> {
        let registry = Self { shape, loaded: RwLock::default() };
        for Named { name, direction } in directions {
            if registry.put(name.clone(), direction)? {
                return Err(RegistryError::Twice { name });
            }
        }
        Ok(registry)
    }

    /// Those there are now; a request keeps what it began with.
    pub(super) fn loaded(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds one, or takes it in place of the one of its name: then true.
    pub(super) fn put(&self, name: String, direction: Direction) -> Result<bool, RegistryError> {
        let fits = (1..=MAX_NAME).contains(&name.len());
        if !fits || [".", ".."].contains(&&*name) || name.contains(|c: char| c.is_control() || c == '/') {
            return Err(RegistryError::Name { name: name.chars().take(MAX_NAME).collect() });
        }
        let Shape { architecture, n_embd, n_block } = &self.shape;
        if let Err(source) = direction.check_model(architecture, *n_embd) {
            return Err(RegistryError::Direction { name, source: source.into() });
        }
        if direction.block >= *n_block {
            return Err(RegistryError::Block { name, block: direction.block, last: n_block - 1 });
        }
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Loaded::clone(&loaded);
        let known = next.iter().position(|named| named.name == name);
        let named = Arc::new(Named { name, direction });
        match known {
            Some(i) => next[i] = named,
            None if next.len() >= MAX_DIRECTIONS => return Err(RegistryError::Full),
            None => next.push(named),
        }
        *loaded = Arc::new(next);
        Ok(known.is_some())
    }

    /// Forgets one; false where there is none of that name.
    pub(super) fn remove(&self, name: &str) -> bool {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        let next: Loaded = loaded.iter().filter(|named| named.name != name).cloned().collect();
        let found = next.len() < loaded.len();
        *loaded = Arc::new(next);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::direction::Provenance;

    fn named(name: &str, block: usize, vector: &[f32]) -> Named {
        Named {
            name: name.into(),
            direction: Direction::new(vector.to_vec(), block, Provenance::default()).unwrap(),
        }
    }

    fn registry(directions: Vec<Named>) -> Result<Registry, RegistryError> {
        Registry::new(Shape { architecture: "llama".into(), n_embd: 2, n_block: 2 }, directions)
    }

    #[test]
    fn who_began_with_a_direction_keeps_it() {
        let registry = registry(vec![named("a", 0, &[1.0, 0.0])]).unwrap();
        let before = registry.loaded();
        assert!(!registry.put("b".into(), named("b", 1, &[0.0, 1.0]).direction).unwrap());
        assert!(registry.put("a".into(), named("a", 1, &[0.0, 2.0]).direction).unwrap());
        assert_eq!((before.len(), before[0].direction.block), (1, 0));
        let names: Vec<String> = registry.loaded().iter().map(|named| named.name.clone()).collect();
        assert_eq!((names, registry.loaded()[0].direction.block), (vec!["a".into(), "b".into()], 1));
        assert!(registry.remove("a") && !registry.remove("a"));
        assert_eq!(registry.loaded().len(), 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |direction| registry(vec![direction]).unwrap_err().to_string();
        assert!(refused(named("a", 2, &[1.0, 0.0])).contains("block 2, the model has blocks 0 to 1"));
        assert!(refused(named("a", 0, &[1.0])).contains("n_embd 1, model has 2"));
        for name in ["", "a/b", "a\nb", &"x".repeat(129)] {
            assert!(refused(named(name, 0, &[1.0, 0.0])).contains("a name has 1 to 128 bytes"), "{name:?}");
        }
        let twice = registry(vec![named("a", 0, &[1.0, 0.0]), named("a", 0, &[0.0, 1.0])]);
        assert!(twice.unwrap_err().to_string().contains("two directions are called \"a\""));
        let many = (0..=MAX_DIRECTIONS).map(|i| named(&i.to_string(), 0, &[1.0, 0.0])).collect();
        assert!(matches!(registry(many), Err(RegistryError::Full)));
    }
}
