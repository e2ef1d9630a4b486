//! A file's tensors, each in its place or out of it.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};

use super::table::{
    OUTSIDE, PLACES, Part, Place, Positions, Post, READER_FAMILIES, READERS, STANDARD, Spec, TABLE, UNSERVED,
};
use super::{ArchError, Axis, Coverage, Gap, Standing, Writer, WriterKind};
use crate::gguf::{Gguf, TensorInfo, Value};

/// The table's line for this architecture.
pub(super) fn spec(name: &str) -> Option<&'static Spec> {
    TABLE.iter().find(|spec| spec.name == name)
}

/// How this file's architecture stands to the table.
fn standing(gguf: &Gguf, name: &str) -> Standing {
    let key = |key: &str| gguf.get(&format!("{name}.{key}"));
    if let Some((_, reason)) = UNSERVED.iter().find(|(other, _)| *other == name) {
        return Standing::Unserved { reason: (*reason).into() };
    }
    if spec(name).is_none() {
        return Standing::Unknown;
    }
    let loops = key("num_loops").and_then(Value::as_u64).unwrap_or(1);
    if loops > 1 && !matches!(key("skip_loop_final_norm"), Some(Value::Bool(true))) {
        let reason = "between its loops the stream itself passes through the weights of output_norm";
        return Standing::Unserved { reason: reason.into() };
    }
    Standing::Known
}

/// Everything that can be told of the writers of this file.
pub(super) fn coverage(gguf: &Gguf) -> Result<Coverage, ArchError> {
    let name = gguf.arch()?;
    let standing = standing(gguf, name);
    let spec = match standing {
        Standing::Known => spec(name).unwrap_or(&STANDARD),
        _ => &STANDARD,
    };
    let n_embd = gguf.get_u64(&format!("{name}.embedding_length"))?;
    let n_block_all = gguf.get_u64(&format!("{name}.block_count"))?;
    // Blocks that predict further tokens ahead have a stream of their own.
    let n_nextn = gguf.get_u64(&format!("{name}.nextn_predict_layers")).unwrap_or(0);
    let n_block = n_block_all.saturating_sub(n_nextn);
    // Each block has tensors, so a block count above theirs is a broken file: found before it becomes a long
    // loop.
    if n_block > gguf.tensors().len() as u64 {
        return Err(ArchError::Blocks { arch: name.into(), n_block, tensors: gguf.tensors().len() });
    }
    let mut found = Found {
        gguf,
        spec,
        n_embd,
        by_name: gguf.tensors().iter().map(|t| (t.name.as_str(), t)).collect(),
        norms: HashSet::new(),
        coverage: Coverage {
            architecture: name.into(),
            standing,
            n_block: n_block as usize,
            writers: Vec::new(),
            missing: Vec::new(),
            misshapen: Vec::new(),
            unplaced: Vec::new(),
        },
    };
    found.embeddings();
    for il in 0..n_block as usize {
        found.block(il);
    }
    found.unplaced(n_block, n_block_all);
    Ok(found.coverage)
}

/// The norms behind a writer, the one next to it first.
fn norms(post: Post, place: &Place, has: &dyn Fn(&str) -> bool) -> &'static [&'static str] {
    match (place.part, post) {
        (Part::Mixer, Post::Usual | Post::Gemma4) => &["post_attention_norm.weight"],
        (Part::Mixer, Post::Bare) => &["post_attention_norm"],
        (Part::Mixer, Post::Grok) => &["attn_output_norm.weight"],
        (Part::Mixer, Post::Swin) => &["attn_norm.weight"],
        (Part::Ffn, Post::Bare) => &["post_ffw_norm"],
        (Part::Ffn, Post::Swin) => &["ffn_norm.weight"],
        (Part::Ffn, Post::Grok) if has("layer_output_norm.weight") => &["layer_output_norm.weight"],
        (Part::Ffn, Post::Gemma4) if has("ffn_gate_inp.weight") => match place.of {
            "ffn_down" => &["post_ffw_norm_1.weight", "post_ffw_norm.weight"],
            _ => &["post_ffw_norm_2.weight", "post_ffw_norm.weight"],
        },
        (Part::Ffn, Post::Usual | Post::Grok | Post::Gemma4) => &["post_ffw_norm.weight"],
        (Part::PerLayer, Post::Gemma4) => &["post_norm.weight"],
        (_, Post::No) | (Part::PerLayer, _) => &[],
    }
}

fn axis(kind: WriterKind) -> Axis {
    match kind {
        WriterKind::TokenEmbedding | WriterKind::PositionEmbedding | WriterKind::FfnDownExpertsBias => {
            Axis::Row
        }
        WriterKind::EmbeddingNormBias | WriterKind::AttentionOutputBias | WriterKind::FfnDownBias => {
            Axis::Bias
        }
        _ => Axis::Output,
    }
}

struct Found<'a> {
    gguf: &'a Gguf,
    spec: &'static Spec,
    n_embd: u64,
    by_name: HashMap<&'a str, &'a TensorInfo>,
    /// Norms in their place, behind a writer.
    norms: HashSet<String>,
    coverage: Coverage,
}

impl Found<'_> {
    fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    fn missing(&mut self, tensor: String, block: Option<usize>) {
        // Several writers may share a norm.
        if self.coverage.missing.iter().any(|gap| gap.tensor == tensor) {
            return;
        }
        self.coverage.missing.push(Gap { tensor, block, shape: None, expected: None });
    }

    fn embeddings(&mut self) {
        let spec = self.spec;
        let norm = spec.embedding_norm.then(|| "token_embd_norm.weight".to_string());
        self.push("token_embd.weight".into(), None, WriterKind::TokenEmbedding, norm.into_iter().collect());
        if spec.embedding_norm {
            self.push("token_embd_norm.bias".into(), None, WriterKind::EmbeddingNormBias, vec![]);
        }
        let positions = "position_embd.weight";
        if spec.positions == Positions::Learned || spec.positions == Positions::IfThere && self.has(positions)
        {
            self.push(positions.into(), None, WriterKind::PositionEmbedding, vec![]);
        }
    }

    fn block(&mut self, il: usize) {
        let spec = self.spec;
        let blk = |name: &str| format!("blk.{il}.{name}");
        for group in spec.needs {
            let there = group.iter().any(|of| self.has(&blk(&format!("{of}.weight"))));
            // A half that is not there has no norm in front of it either.
            let norm = if group.contains(&"attn_output") { "attn_norm.weight" } else { "ffn_norm.weight" };
            if !there && (!spec.sparse || self.has(&blk(norm))) {
                let names: Vec<String> = group.iter().map(|of| blk(&format!("{of}.weight"))).collect();
                self.missing(names.join(" or "), Some(il));
            }
        }
        let swin = matches!(self.gguf.get(&format!("{}.swin_norm", spec.name)), Some(Value::Bool(true)));
        let post = if spec.post == Post::Swin && !swin { Post::No } else { spec.post };
        for place in PLACES {
            let name = blk(place.name);
            if spec.has(place.of) && self.has(&name) && !self.is_latent(il, place.of) {
                let has = |name: &str| self.has(&blk(name));
                let norms = norms(post, place, &has).iter().map(|norm| blk(norm)).collect();
                self.push(name, Some(il), place.kind, norms);
            }
        }
    }

    /// Whether these experts write a narrower space, from which another matrix leads to the stream.
    fn is_latent(&self, il: usize, of: &str) -> bool {
        let up = |of: &str| self.spec.has(of) && self.has(&format!("blk.{il}.{of}.weight"));
        of == "ffn_down_exps" && (up("ffn_latent_up") || up("ffn_routed_up"))
    }

    fn push(&mut self, name: String, block: Option<usize>, kind: WriterKind, norms: Vec<String>) {
        let Some(tensor) = self.by_name.get(name.as_str()).copied() else {
            return self.missing(name, block);
        };
        let (n, axis) = (self.n_embd, axis(kind));
        let slices = kind == WriterKind::FfnDownExperts || name.ends_with(".lora_b");
        let (fits, expected) = match axis {
            Axis::Output if slices => (tensor.ne[1] == n && tensor.ne[3] == 1, format!("[n_in, {n}, n]")),
            Axis::Output => (tensor.ne[1] == n && tensor.ne[2..] == [1, 1], format!("[n_in, {n}]")),
            Axis::Row => (tensor.ne[0] == n && tensor.ne[2..] == [1, 1], format!("[{n}, n]")),
            Axis::Bias => (tensor.ne == [n, 1, 1, 1], format!("[{n}]")),
        };
        if !fits {
            return self.misshapen(tensor.name.clone(), block, tensor.shape().to_vec(), expected);
        }
        for norm in &norms {
            let Some(gamma) = self.by_name.get(norm.as_str()).copied() else {
                return self.missing(norm.clone(), block);
            };
            if gamma.ne != [n, 1, 1, 1] {
                return self.misshapen(norm.clone(), block, gamma.shape().to_vec(), format!("[{n}]"));
            }
        }
        self.norms.extend(norms.iter().cloned());
        let norm_centred = kind == WriterKind::TokenEmbedding && !norms.is_empty();
        let mut norms = norms.into_iter();
        let (norm_after, norm_outer) = (norms.next(), norms.next());
        let writer = Writer { tensor: name, block, kind, axis, norm_after, norm_outer, norm_centred };
        self.coverage.writers.push(writer);
    }

    fn misshapen(&mut self, tensor: String, block: Option<usize>, shape: Vec<u64>, expected: String) {
        if self.coverage.misshapen.iter().all(|gap| gap.tensor != tensor) {
            self.coverage.misshapen.push(Gap { tensor, block, shape: Some(shape), expected: Some(expected) });
        }
    }

    fn unplaced(&mut self, n_block: u64, n_block_all: u64) {
        let mut named: HashSet<&str> = self.coverage.writers.iter().map(|w| w.tensor.as_str()).collect();
        named.extend(self.coverage.misshapen.iter().map(|gap| gap.tensor.as_str()));
        let unplaced = self.gguf.tensors().iter().filter(|tensor| !named.contains(tensor.name.as_str()));
        let unplaced =
            unplaced.filter(|tensor| self.may_write(tensor, n_block, n_block_all)).map(|tensor| Gap {
                tensor: tensor.name.clone(),
                block: Name::of(&tensor.name).block.map(|il| il as usize),
                shape: Some(tensor.shape().to_vec()),
                expected: None,
            });
        self.coverage.unplaced = unplaced.collect();
    }

    /// Whether a tensor that is in no place could write the stream, by its shape, and is not known to be
    /// something else.
    fn may_write(&self, tensor: &TensorInfo, n_block: u64, n_block_all: u64) -> bool {
        let name = Name::of(&tensor.name);
        let wide = tensor.ne[0] == self.n_embd || tensor.ne[1] == self.n_embd;
        if self.spec.reads.contains(&name.base) || self.norms.contains(&tensor.name) {
            return false;
        }
        let Some(il) = name.block else {
            let norm = self.spec.embedding_norm && tensor.name == "token_embd_norm.weight";
            return wide && !norm && !OUTSIDE.contains(&name.base);
        };
        if (n_block..n_block_all).contains(&il) {
            return false;
        }
        if self.is_latent(il as usize, name.base) || matches!(name.suffix, "scale" | "input_scale" | "lora_a")
        {
            return false;
        }
        if PLACES.iter().any(|place| place.of == name.base) {
            return wide;
        }
        let reader = READERS.contains(&name.base)
            || READER_FAMILIES.iter().any(|family| name.base.starts_with(family));
        wide && !reader
    }
}

/// `blk.{block}.{base}.{suffix}`, or what of it there is.
struct Name<'a> {
    block: Option<u64>,
    base: &'a str,
    suffix: &'a str,
}

impl<'a> Name<'a> {
    fn of(name: &'a str) -> Self {
        let in_block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let (block, rest) = match in_block.map(|(il, rest)| (il.parse().ok(), rest)) {
            Some((Some(il), rest)) => (Some(il), rest),
            _ => (None, name),
        };
        let suffixes = ["weight", "bias", "scale", "scales", "input_scale", "lora_a", "lora_b"];
        match rest.rsplit_once('.') {
            Some((base, suffix)) if suffixes.contains(&suffix) => Self { block, base, suffix },
            _ => Self { block, base: rest, suffix: "" },
        }
    }
}
