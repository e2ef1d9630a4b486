//! The residual stream by the names of nodes, where their sources cannot be seen.
//!
//! llama.cpp gives names to what an architecture's graph computes. They tell the stream only where every point at which it
//! is read has one, so the architectures are listed here for which that was found by comparing, on a random model of each,
//! what comes out of it with what comes out where the stream is followed by its data (`tests/plugin.rs`). All others are
//! refused. What is not as the list says, a missing or a repeated name, a node that adds nothing, is an error of the run.
#![allow(unsafe_code)]

use super::super::slot::{Node, Reach, Work};
use super::super::state::{Glance, Start};
use super::super::{Error, c};
use super::host::Host;
use crate::runtime::HookError;
use crate::runtime::stream::{Place, numbered};

/// Between the attention's write and the FFN's reading, the stream is `ffn_inp-N`.
const SEQUENTIAL: &[&str] = &[
    "afmoe",
    "apertus",
    "arcee",
    "bitnet",
    "chatglm",
    "codeshell",
    "dbrx",
    "deepseek",
    "deepseek2",
    "dots1",
    "ernie4_5",
    "exaone",
    "exaone-moe",
    "exaone4",
    "glm4",
    "glm4moe",
    "gpt-oss",
    "granite",
    "granitehybrid",
    "grok",
    "hunyuan-dense",
    "hunyuan-moe",
    "internlm2",
    "jais",
    "llama",
    "llama4",
    "minicpm",
    "minicpm3",
    "minimax-m2",
    "nemotron",
    "olmo",
    "olmo2",
    "olmoe",
    "orion",
    "pangu-embedded",
    "plm",
    "qwen",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "refact",
    "seed_oss",
    "smallthinker",
    "smollm3",
    "stablelm",
    "starcoder2",
    "xverse",
];
/// The same, and positions are added to the embedding in `inpL`.
const LEARNED_POSITIONS: &[&str] = &["gpt2", "starcoder"];
/// The same, in some models.
const OPTIONAL_POSITIONS: &[&str] = &["mpt"];
/// It is `sa_out-N`.
const GEMMA: &[&str] = &["gemma", "gemma2", "gemma3"];
/// Nothing reads the stream within a block.
const PARALLEL: &[&str] = &["cohere2", "command-r", "falcon", "mamba", "mamba2", "phi2", "plamo"];

/// How the nodes of an architecture are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Naming {
    /// What stands before the block's number where the stream is read within a block.
    middle: Option<&'static str>,
    /// Whether positions are added to the embedding; none where that depends on the model.
    positions: Option<bool>,
}

impl Naming {
    /// The naming of an architecture, where it tells the stream.
    pub(super) fn of(architecture: &str) -> Result<Self, Error> {
        let listed = |list: &[&str]| list.contains(&architecture);
        let (middle, positions) = if listed(SEQUENTIAL) {
            (Some("ffn_inp-"), Some(false))
        } else if listed(LEARNED_POSITIONS) {
            (Some("ffn_inp-"), Some(true))
        } else if listed(OPTIONAL_POSITIONS) {
            (Some("ffn_inp-"), None)
        } else if listed(GEMMA) {
            (Some("sa_out-"), Some(false))
        } else if listed(PARALLEL) {
            (None, Some(false))
        } else {
            return Err(c::Error::Architecture { found: architecture.to_owned() }.into());
        };
        Ok(Self { middle, positions })
    }
}

/// What of a graph has come by.
#[derive(Debug, Default)]
pub(super) struct Seen {
    embedding: bool,
    blocks: usize,
    middle: bool,
    positions: bool,
}

/// The host's tensors, in graphs of one architecture.
pub(super) struct Named {
    pub host: Host,
    pub naming: Naming,
    pub n_embd: usize,
}

impl Naming {
    /// The next node's place; `adds` says that it is a sum.
    fn place(self, seen: &mut Seen, name: &[u8], adds: bool) -> Result<Place, Error> {
        let block = seen.blocks;
        let unexpected = || Error::from(HookError::NotTheStream { block, node: text(name) });
        let begins = start(name) != Start::No && !std::mem::replace(&mut seen.embedding, true);
        let mut place = Place { begins, writes: begins, block, ..Place::default() };
        if self.positions != Some(false) && name == b"inpL" && block == 0 {
            if !adds || std::mem::replace(&mut seen.positions, true) {
                return Err(unexpected());
            }
            place.writes = true;
        }
        if let Some(number) = self.middle.and_then(|prefix| numbered(name, prefix.as_bytes())) {
            if number != block || !adds || std::mem::replace(&mut seen.middle, true) {
                return Err(unexpected());
            }
            place.writes = true;
        }
        if let Some(number) = numbered(name, b"l_out-") {
            let missing = match self.middle {
                _ if block == 0 && self.positions == Some(true) && !seen.positions => Some("inpL".to_owned()),
                Some(prefix) if !seen.middle => Some(format!("{prefix}{number}")),
                _ => None,
            };
            if let Some(expected) = missing {
                return Err(c::Error::NoNode { block: number, expected }.into());
            }
            if !adds {
                return Err(unexpected());
            }
            seen.blocks += 1;
            seen.middle = false;
            (place.block_output, place.on_stream, place.writes) = (Some(number), true, true);
        }
        place.on_stream |= place.writes;
        Ok(place)
    }
}

/// `embd` is the embedding's name in today's graphs, `inp_embd` in older ones; `inp_scaled` is a scaled one, or comes
/// behind it.
fn start(name: &[u8]) -> Start {
    match name {
        b"embd" | b"inp_embd" => Start::Yes,
        b"inp_scaled" => Start::Perhaps,
        _ => Start::No,
    }
}

fn text(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

impl Reach for Named {
    type Follow = Seen;

    unsafe fn glance(&self, t: Node) -> Glance {
        // SAFETY: the caller's node is live.
        let name = unsafe { self.host.name(t) };
        Glance { start: start(name), block_output: numbered(name, b"l_out-") }
    }

    unsafe fn place(&self, seen: &mut Seen, t: Node) -> Result<Place, Error> {
        // SAFETY: as above.
        let (name, adds) = unsafe { (self.host.name(t), self.host.op(t) == b"ADD") };
        self.naming.place(seen, name, adds)
    }

    unsafe fn name(&self, t: Node) -> String {
        // SAFETY: as above.
        text(unsafe { self.host.name(t) })
    }

    unsafe fn edit(&self, t: Node, buffer: &mut Vec<f32>, work: &mut Work<'_>) -> Result<(), Error> {
        let f = &self.host.f;
        // SAFETY: as above.
        let (elements, rows, bytes, size, plain) = unsafe {
            let sizes = ((f.ggml_nelements)(t), (f.ggml_nrows)(t), (f.ggml_nbytes)(t));
            (sizes.0, sizes.1, sizes.2, (f.ggml_element_size)(t), (f.ggml_is_contiguous)(t))
        };
        let (Ok(elements), Ok(rows)) = (usize::try_from(elements), usize::try_from(rows)) else {
            // SAFETY: as above.
            let node = unsafe { self.name(t) };
            return Err(
                HookError::Layout { node, found: format!("{elements} elements in {rows} rows") }.into()
            );
        };
        if elements == 0 {
            // A block cut to no outputs at all; its data may be no pointer.
            return work(self.n_embd, &mut []).map(|_| ());
        }
        if rows == 0 || size != 4 || !plain || bytes != elements * 4 || elements % rows != 0 {
            // SAFETY: as above.
            let node = unsafe { self.name(t) };
            let found = format!("{rows} rows, {elements} elements of {size} bytes in {bytes} bytes");
            return Err(HookError::Layout { node, found }.into());
        }
        buffer.resize(elements, 0.0);
        // SAFETY: the node is computed and has that many bytes, and so has the buffer.
        unsafe { (f.ggml_backend_tensor_get)(t, buffer.as_mut_ptr().cast(), 0, bytes) };
        if work(elements / rows, &mut buffer[..elements])? {
            // SAFETY: as many bytes as were read.
            unsafe { (f.ggml_backend_tensor_set)(t, buffer.as_ptr().cast(), 0, bytes) };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places nodes in order, and says what is wrong with the first that is.
    fn walk(naming: Naming, names: &[&str]) -> Result<Vec<(bool, Option<usize>)>, String> {
        let mut seen = Seen::default();
        let place = |name: &&str| {
            let (name, adds) = (name.trim_end_matches('*'), !name.ends_with('*'));
            let place = naming.place(&mut seen, name.as_bytes(), adds).map_err(|e| e.to_string())?;
            Ok((place.writes, place.block_output))
        };
        names.iter().map(place).collect()
    }

    #[test]
    fn writes_are_known_by_name_and_what_is_not_as_listed_is_an_error() {
        let llama = Naming::of("llama").unwrap();
        let graph = ["embd", "norm-0", "ffn_inp-0", "ffn_out-0", "l_out-0", "ffn_inp-1", "l_out-1", "norm"];
        let writes: Vec<_> = walk(llama, &graph).unwrap().into_iter().map(|(writes, _)| writes).collect();
        assert_eq!(writes, [true, false, true, false, true, true, true, false]);

        let error = |naming: &str, graph: &[&str]| walk(Naming::of(naming).unwrap(), graph).unwrap_err();
        assert!(error("llama", &["embd", "l_out-0"]).contains("no node ffn_inp-0"));
        assert!(error("llama", &["embd", "ffn_inp-1"]).contains("ffn_inp-1"));
        assert!(error("llama", &["embd", "ffn_inp-0", "ffn_inp-0"]).contains("ffn_inp-0"));
        assert!(error("llama", &["embd", "ffn_inp-0*"]).contains("ffn_inp-0"));
        assert!(error("llama", &["embd", "ffn_inp-0", "l_out-0*"]).contains("l_out-0"));
        assert!(error("gpt2", &["embd", "ffn_inp-0", "l_out-0"]).contains("no node inpL"));
        assert!(error("gemma2", &["embd", "ffn_inp-0", "l_out-0"]).contains("no node sa_out-0"));
        assert!(walk(Naming::of("phi2").unwrap(), &["embd", "l_out-0", "l_out-1"]).is_ok());
        let refused = Naming::of("phi3").unwrap_err().to_string();
        assert!(refused.contains("phi3"), "{refused}");
    }
}
