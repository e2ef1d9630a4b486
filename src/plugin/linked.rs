//! The llama.cpp that this crate is built with: tensors are read as they are declared, and the stream is followed through
//! their sources, as in [`crate::runtime`].
#![allow(unsafe_code)]

use super::Error;
use super::slot::{Node, Reach, Work};
use super::state::{Glance, Start};
use crate::runtime::rows::{RowsMut, text};
use crate::runtime::stream::{Place, Tracker, begins, block_output};

use llama_cpp_sys_2 as sys;

pub(super) struct Linked;

impl Reach for Linked {
    type Follow = Tracker;

    unsafe fn glance(&self, t: Node) -> Glance {
        // SAFETY: the caller's node is live.
        let node = unsafe { &*t.cast::<sys::ggml_tensor>() };
        // SAFETY: and so are its sources.
        let start = if unsafe { begins(node) } { Start::Yes } else { Start::No };
        Glance { start, block_output: block_output(node) }
    }

    unsafe fn place(&self, follow: &mut Tracker, t: Node) -> Result<Place, Error> {
        // SAFETY: the caller's node is live, and so is what it is made of.
        Ok(unsafe { follow.place(t.cast()) })
    }

    unsafe fn name(&self, t: Node) -> String {
        // SAFETY: the caller's node is live.
        text(unsafe { &*t.cast() })
    }

    unsafe fn edit(&self, t: Node, buffer: &mut Vec<f32>, work: &mut Work<'_>) -> Result<(), Error> {
        let t = t.cast::<sys::ggml_tensor>();
        // SAFETY: the caller's node is live.
        let width = unsafe { (*t).ne[0] } as usize;
        // SAFETY: it is computed, synchronised, and nobody else's now.
        let mut data = unsafe { RowsMut::of(t, buffer) }?;
        if work(width, data.rows())? {
            data.write_back();
        }
        Ok(())
    }
}
