//! The same edit in other clothes: files that change a model while it runs, for a llama.cpp without ggsteer.
//!
//! A [`lora`] adapter carries the ablation of every writer that llama.cpp multiplies with adapters; a
//! [`control_vector`] carries an addition, or the direction itself for hosts that can project.
#![forbid(unsafe_code)]

pub mod control_vector;
pub mod lora;

use std::io;

use crate::arch::ArchError;
use crate::direction::DirectionError;
use crate::gguf::GgufError;
use crate::output::OutputError;
use crate::rewrite::RewriteError;

/// Why a file cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The writers of the model cannot be told.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// The model's metadata, or the new file's header, is not as it should be.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model's weights, or the directions for it, are not as they should be.
    #[error(transparent)]
    Weights(#[from] RewriteError),
    /// Not one direction was given.
    #[error("no direction to export")]
    NoDirection,
    /// No writer of the model can be carried.
    #[error("nothing to export: no writer of the model can be carried by an adapter ({left_out} left out)")]
    Nothing {
        /// Writers that cannot.
        left_out: usize,
    },
    /// A tensor's name leaves no room for what an adapter adds to it.
    #[error("tensor {tensor:?}: with \".lora_a\" its name has {found} bytes, llama.cpp allows fewer than 64")]
    Name {
        /// The tensor.
        tensor: String,
        /// Bytes of the longer name.
        found: usize,
    },
    /// An addition where llama.cpp adds nothing.
    #[error(
        "direction of block 0: llama.cpp adds control vectors to the outputs of blocks 1 and up, never to block 0; \
         choose a direction of a later block, or steer with `ggsteer generate --add`"
    )]
    BlockZero,
    /// A scale that is not a number, or makes values that are none.
    #[error("scale {scale}: the scaled direction is zero or not finite")]
    Scale {
        /// The scale.
        scale: f32,
    },
    /// The direction cannot be written.
    #[error(transparent)]
    Direction(#[from] DirectionError),
    /// The output file could not be finished.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// The output file could not be written.
    #[error("{0}")]
    Write(#[from] io::Error),
}
