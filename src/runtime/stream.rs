//! Finding the residual stream in llama.cpp's graph, node by node, as the scheduler walks it.
//!
//! Chosen: follow the data. The stream begins where rows are read from `token_embd.weight` and goes on through every
//! addition that has it as an operand; what passes through a matrix product or a norm has left it. So an addition on
//! the stream *is* a write, whatever the architecture calls it, and a block output that additions alone do not reach
//! is an error instead of a silent miss. Where the embedding has a norm of its own (`token_embd_norm.weight`), the
//! stream begins behind that: what was taken for it before only led there.
//! Where one part of the graph is computed on another device than the next, the scheduler puts a copy in between that
//! knows nothing of what it was made of but the name; it is followed by that.
//! Rejected: a table of node names per architecture (`ffn_inp-{il}`, …). Names differ and change between versions,
//! and a missing name would leave a write un-ablated without a word.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::ffi::{CStr, c_char};

use llama_cpp_sys_2 as sys;

use crate::intervention::Write;

/// What a node is to the residual stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// The node's data is the stream, all of it.
    pub on_stream: bool,
    /// Something was added to the stream here (or the stream began here).
    pub writes: bool,
    /// Rows of the token embedding are read here, with which a graph's stream begins.
    pub begins: bool,
    /// The stream begins here and nowhere before: what stood for it until now is not the stream. The address of the
    /// node before the norm that lies between.
    pub begins_behind: Option<usize>,
    /// The 0-based block that the node belongs to: as many block outputs came before it.
    pub block: usize,
    /// The node is `l_out-{il}`, the output of this 0-based block.
    pub block_output: Option<usize>,
}

impl Place {
    /// The write here, as an intervention knows it.
    pub(crate) fn write(&self, prompt: bool) -> Write {
        let (block, output) = (self.block_output.unwrap_or(self.block), self.block_output.is_some());
        Write { block, output, prompt }
    }
}

/// Bytes of a name, its NUL included (`GGML_MAX_NAME`).
const NAME: usize = 64;

/// Follows the stream through one graph; [`Tracker::reset`] before each.
///
/// Nothing that it keeps is read through: addresses are only compared, names are copies. So a graph that ends or begins
/// without its knowledge leads to a wrong answer at worst, which the checks of who uses it then find.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    stream: HashSet<usize>,
    /// The names of the nodes placed so far, of which copies may be made, and whether they are the stream.
    placed: Vec<([c_char; NAME], bool)>,
    /// Block outputs so far.
    blocks: usize,
    /// Something was added to the stream since it began.
    added: bool,
}

impl Tracker {
    pub(crate) fn reset(&mut self) {
        self.stream.clear();
        self.placed.clear();
        self.blocks = 0;
        self.added = false;
    }

    /// Whether the stream has begun: a row of the token embedding was read.
    pub(crate) fn has_begun(&self) -> bool {
        !self.stream.is_empty()
    }

    /// Places the next node of the graph. Nodes must be given in the order of computation.
    ///
    /// # Safety
    /// `t`, its sources and theirs must point to live tensors.
    pub(crate) unsafe fn place(&mut self, t: *const sys::ggml_tensor) -> Place {
        // SAFETY: the caller vouches for `t` and its sources.
        let (node, a, b) = unsafe { (&*t, (*t).src[0].as_ref(), (*t).src[1].as_ref()) };
        for source in [a, b].into_iter().flatten() {
            self.follow(source);
        }
        let has = |s: Option<&sys::ggml_tensor>| s.is_some_and(|s| self.stream.contains(&address(s)));
        let (from_a, from_b) = (has(a), has(b));
        let same_width = a.is_some_and(|a| a.ne[0] == node.ne[0]);
        // In some files the norm at the end has that name as well.
        let is_norm = |a: &&sys::ggml_tensor| matches!(a.op, sys::GGML_OP_NORM | sys::GGML_OP_RMS_NORM);
        let weighs_embedding = !self.added
            && node.op == sys::GGML_OP_MUL
            && b.is_some_and(|b| name(b) == b"token_embd_norm.weight");
        // SAFETY: the sources of a source are live as well.
        let normed =
            a.filter(|_| weighs_embedding).filter(is_norm).and_then(|a| unsafe { a.src[0].as_ref() });
        let begins_behind = normed.filter(|&normed| has(Some(normed))).map(address);
        if begins_behind.is_some() {
            self.stream.clear();
        }
        let computed = is_computed(node);
        // SAFETY: the sources are live.
        let begins = unsafe { begins(node) };

        let (on_stream, writes) = match node.op {
            _ if !computed => (false, false),
            _ if begins || begins_behind.is_some() => (true, true),
            sys::GGML_OP_ADD => (from_a || from_b, from_a || from_b),
            // Rows picked, scaled by a number or laid out anew: still the stream, nothing new in it.
            sys::GGML_OP_GET_ROWS
            | sys::GGML_OP_SCALE
            | sys::GGML_OP_CONT
            | sys::GGML_OP_DUP
            | sys::GGML_OP_CPY
            | sys::GGML_OP_VIEW
            | sys::GGML_OP_RESHAPE => (from_a && same_width, false),
            // One factor a row (a scaled embedding) keeps every direction; one a channel is a norm's weight.
            sys::GGML_OP_MUL if from_a && b.is_some_and(|b| b.ne[0] == 1) => (true, false),
            _ => (false, false),
        };
        if on_stream {
            self.stream.insert(address(node));
        }
        if computed {
            self.placed.push((node.name, on_stream));
        }
        self.added |= writes && node.op == sys::GGML_OP_ADD;
        let block_output = block_output(node);
        let place = Place { on_stream, writes, begins, begins_behind, block: self.blocks, block_output };
        self.blocks += usize::from(block_output.is_some());
        place
    }

    /// Puts `source` on the stream where it is the scheduler's copy of a node on the stream. Where nodes of one name are
    /// in part on the stream and in part not, it stays off, and the block's output is then found not to be the stream.
    fn follow(&mut self, source: &sys::ggml_tensor) {
        if source.op != sys::GGML_OP_NONE {
            return;
        }
        let Some(original) = copied_name(name(source)) else { return };
        let same = self.placed.iter().filter(|(name, _)| until_nul(name) == original);
        let (on, off): (Vec<_>, Vec<_>) = same.map(|(_, on_stream)| *on_stream).partition(|on| *on);
        if !on.is_empty() && off.is_empty() {
            self.stream.insert(address(source));
        }
    }
}

/// A node, to be told from others.
pub(crate) fn address(t: &sys::ggml_tensor) -> usize {
    std::ptr::from_ref(t).addr()
}

/// The node's name, without the final NUL.
pub(crate) fn name(t: &sys::ggml_tensor) -> &[u8] {
    until_nul(&t.name)
}

fn until_nul(name: &[c_char; NAME]) -> &[u8] {
    // SAFETY: ggml keeps `name` NUL-terminated within its 64 bytes (ggml_set_name, ggml_format_name).
    unsafe { CStr::from_ptr(name.as_ptr()) }.to_bytes()
}

/// What the scheduler made a copy of: it calls it `BACKEND#NAME#NUMBER` (ggml-backend.cpp). Weights and inputs, which have
/// no operation either, have no such names.
fn copied_name(name: &[u8]) -> Option<&[u8]> {
    let start = name.iter().position(|&b| b == b'#')? + 1;
    let end = name.iter().rposition(|&b| b == b'#').filter(|&end| end > start)?;
    let number = &name[end + 1..];
    (!number.is_empty() && number.iter().all(u8::is_ascii_digit)).then_some(&name[start..end])
}

/// Other nodes are in the graph for batches of another kind, and not computed for this one.
fn is_computed(t: &sys::ggml_tensor) -> bool {
    t.flags & sys::GGML_TENSOR_FLAG_COMPUTE as i32 != 0
}

/// Whether rows of the token embedding are read here, and so a graph's stream begins.
///
/// # Safety
/// The node's sources are live.
pub(crate) unsafe fn begins(t: &sys::ggml_tensor) -> bool {
    is_computed(t)
        && t.op == sys::GGML_OP_GET_ROWS
        // SAFETY: the caller vouches for the source.
        && unsafe { t.src[0].as_ref() }.is_some_and(|source| name(source) == b"token_embd.weight")
}

/// The 0-based block whose output the node is: it is named `l_out-{il}`.
pub(crate) fn block_output(t: &sys::ggml_tensor) -> Option<usize> {
    numbered(name(t), b"l_out-")
}

/// N of `{prefix}N`.
pub(crate) fn numbered(name: &[u8], prefix: &[u8]) -> Option<usize> {
    let digits = name.strip_prefix(prefix)?;
    let short = !digits.is_empty() && digits.len() <= 6 && digits.iter().all(u8::is_ascii_digit);
    short.then(|| digits.iter().fold(0, |n, d| n * 10 + usize::from(d - b'0')))
}

#[cfg(test)]
mod tests {
    use super::copied_name;

    #[test]
    fn a_copy_tells_what_it_was_made_of_and_others_tell_nothing() {
        assert_eq!(copied_name(b"RPC0[127.0.0.1:50052]#l_out-7#0"), Some(&b"l_out-7"[..]));
        assert_eq!(copied_name(b"CUDA0#ffn_inp-12#3"), Some(&b"ffn_inp-12"[..]));
        // Cut off at the length of a name, so that what is left may mean another.
        assert_eq!(copied_name(b"RPC0[a-name-of-many-letters]#l_out-1"), None);
        for other in ["l_out-7", "blk.0.ffn_up.weight", "", "#", "##", "a##0", "a#b#", "a#b#c"] {
            assert_eq!(copied_name(other.as_bytes()), None, "{other}");
        }
    }
}
