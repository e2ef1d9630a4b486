//! Loading contrast sets.
