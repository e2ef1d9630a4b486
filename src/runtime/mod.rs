//! llama.cpp with a hook in its graph.

pub mod sampling;
pub mod template;
