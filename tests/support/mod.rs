//! Tiny random models, and an independent forward pass over them: the oracle of the integration tests.
//!
//! Nothing here uses ggsteer or llama.cpp. A test writes a [`tiny::Model`] to a file, runs that file through the code
//! under test, and compares with [`forward::forward`], which computes the same numbers from the weights in memory.

// Each test binary includes this module whole and uses its own part of it.
#![allow(dead_code)]
#![forbid(unsafe_code)]

pub mod architectures;
pub mod forward;
pub mod split;
pub mod tiny;
pub mod writer;
