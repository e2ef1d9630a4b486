//! What can go wrong behind the C interface, beside what goes wrong in a graph.
#![forbid(unsafe_code)]

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A null pointer where there must be something.
    #[error("{what} is NULL")]
    Null {
        /// The argument.
        what: &'static str,
    },
    /// A text that is not UTF-8.
    #[error("{what} is not UTF-8 text")]
    Text {
        /// The argument.
        what: &'static str,
    },
    /// A number without a meaning.
    #[error("{what} {found} is none of those in ggsteer.h")]
    Number {
        /// The argument.
        what: &'static str,
        /// The number.
        found: i32,
    },
    /// A number that is not finite.
    #[error("{what} is {found}, not a finite number")]
    NotFinite {
        /// The argument.
        what: &'static str,
        /// The number.
        found: f32,
    },
    /// A direction that was not loaded.
    #[error("no direction {found}: {loaded} are loaded, counted from 0")]
    NoDirection {
        /// The number.
        found: i32,
        /// How many there are.
        loaded: usize,
    },
    /// Blocks that the model does not have.
    #[error("blocks {first} to {last}: the model has blocks 0 to {}", n_block - 1)]
    Blocks {
        /// The first.
        first: i32,
        /// The last.
        last: i32,
        /// Blocks of the model.
        n_block: usize,
    },
    /// A steering that was given back.
    #[error("this steering was freed")]
    Freed,
    /// Not a machine that was thought of.
    #[error("only 64-bit little-endian machines are supported")]
    Machine,
    /// A library that the program has not loaded.
    #[error("{path}: not a library that this program has loaded; give the path that it was loaded from")]
    NotLoaded {
        /// The path given.
        path: String,
    },
    /// A llama.cpp without a function.
    #[error(
        "{place}: has no function {name}; a program must export llama.cpp's (link it with -rdynamic), a shared llama.cpp \
         must be named by its path"
    )]
    Symbol {
        /// The program or library.
        place: String,
        /// The function.
        name: &'static str,
    },
    /// A llama.cpp that behaves otherwise.
    #[error(
        "{place}: {function} does not answer as it should on a tensor of known shape: another ABI, not used"
    )]
    Untrusted {
        /// The program or library.
        place: String,
        /// The function.
        function: &'static str,
    },
    /// A model that does not say what it is.
    #[error("the model does not say its architecture, blocks and width")]
    Model,
    /// An architecture in whose graph the stream cannot be told by names.
    #[error(
        "architecture {found:?}: the names of its nodes do not tell the residual stream; steer it with ggsteer itself, or \
         with ggsteer::plugin from Rust"
    )]
    Architecture {
        /// The model's architecture.
        found: String,
    },
    /// A name that is not in the graph.
    #[error(
        "block {block}: no node {expected} in the graph, so a write to the residual stream would be missed"
    )]
    NoNode {
        /// The 0-based block.
        block: usize,
        /// The name.
        expected: String,
    },
    /// A panic.
    #[error("panic: {0}")]
    Panic(String),
    /// A file that is no direction of this model.
    #[error(transparent)]
    Direction(#[from] crate::direction::DirectionError),
    /// Directions that cannot be used together.
    #[error(transparent)]
    Intervention(#[from] crate::intervention::Error),
    /// What went wrong in the graph.
    #[error(transparent)]
    Steering(Box<super::super::Error>),
}

impl From<super::super::Error> for Error {
    fn from(error: super::super::Error) -> Self {
        Self::Steering(Box::new(error))
    }
}
