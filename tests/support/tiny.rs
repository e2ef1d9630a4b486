//! Small models with random weights, of three architectures, each with a complete byte-level BPE tokenizer.
//!
//! | architecture | norm | attention | FFN | positions | biases |
//! |---|---|---|---|---|---|
//! | llama | RMSNorm | GQA | SwiGLU | RoPE on neighbouring pairs | none |
//! | qwen2 | RMSNorm | GQA | SwiGLU | RoPE on halves (NEOX) | q, k, v |
//! | gpt2 | LayerNorm | MHA, fused qkv | GELU | learned | all |
//!
//! A matrix has `ne = [n_in, n_out]`, so row `o` of its data holds the weights of output `o`.

use std::io;
use std::path::Path;

use half::f16;

use super::writer::{self, Info, Type, Value};

/// The chat template of ChatML, as a model file carries it.
pub const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + \
     message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}\
     {{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Merges of the tokenizer, in rank order; the tokens they make follow the 256 bytes.
const MERGES: [(&str, &str); 8] =
    [("h", "e"), ("l", "l"), ("Ġ", "t"), ("i", "n"), ("Ġt", "he"), ("o", "r"), ("he", "ll"), ("e", "r")];

/// Control tokens, the last ids of the vocabulary.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// Tokens of every vocabulary here.
pub const N_VOCAB: usize = 256 + MERGES.len() + SPECIAL.len();

/// Id of `<|endoftext|>`.
pub const ENDOFTEXT: i32 = (N_VOCAB - 3) as i32;
/// Id of `<|im_start|>`.
pub const IM_START: i32 = (N_VOCAB - 2) as i32;
/// Id of `<|im_end|>`, the end-of-sequence token.
pub const IM_END: i32 = (N_VOCAB - 1) as i32;

/// RMSNorm and LayerNorm epsilon of every model here.
pub const NORM_EPS: f32 = 1e-5;
/// RoPE base frequency of every model here.
pub const ROPE_BASE: f32 = 10_000.0;

/// The architectures with a forward pass in [`super::forward`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    Llama,
    Qwen2,
    Gpt2,
}

impl Arch {
    /// All of them.
    pub const ALL: [Arch; 3] = [Arch::Llama, Arch::Qwen2, Arch::Gpt2];

    /// `general.architecture`.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Llama => "llama",
            Arch::Qwen2 => "qwen2",
            Arch::Gpt2 => "gpt2",
        }
    }
}

/// Everything a model is made from; the same spec gives the same bytes.
#[derive(Clone, Debug)]
pub struct Spec {
    pub arch: Arch,
    /// Width of the residual stream, a multiple of 32.
    pub n_embd: usize,
    pub n_head: usize,
    /// Key and value heads; equals `n_head` for gpt2.
    pub n_head_kv: usize,
    pub n_ff: usize,
    /// Experts in each block's FFN, and how many of them a token goes through; (0, 0) for a dense FFN. llama only.
    pub experts: (usize, usize),
    pub n_layer: usize,
    /// At least [`N_VOCAB`]; tokens beyond those are never used.
    pub n_vocab: usize,
    pub n_ctx: usize,
    /// No `output.weight`: the token embedding is the output head too.
    pub tied: bool,
    /// `tokenizer.chat_template`, absent with `None`.
    pub chat_template: Option<String>,
    /// Metadata besides, or in place of, what the architecture needs.
    pub extra: Vec<(String, Value)>,
    pub seed: u64,
}

impl Spec {
    /// 3 blocks, 64 wide, ChatML; output untied for llama, tied for the others, as they mostly are.
    pub fn new(arch: Arch) -> Self {
        Self {
            arch,
            n_embd: 64,
            n_head: 4,
            n_head_kv: if arch == Arch::Gpt2 { 4 } else { 2 },
            n_ff: 128,
            experts: (0, 0),
            n_layer: 3,
            n_vocab: N_VOCAB,
            n_ctx: 128,
            tied: arch != Arch::Llama,
            chat_template: Some(CHATML.to_owned()),
            extra: Vec::new(),
            seed: 1,
        }
    }

    /// Width of one attention head.
    pub fn n_embd_head(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// Width of all key (or value) heads.
    pub fn n_embd_kv(&self) -> usize {
        self.n_embd_head() * self.n_head_kv
    }

    /// The keys and values of its file.
    pub fn metadata(&self) -> Vec<(String, Value)> {
        let u32 = |v: usize| Value::U32(v as u32);
        let a = self.arch.name();
        let mut kv = vec![
            ("general.architecture".to_owned(), Value::Str(a.to_owned())),
            ("general.name".to_owned(), Value::Str(format!("tiny {a}"))),
            (format!("{a}.context_length"), u32(self.n_ctx)),
            (format!("{a}.embedding_length"), u32(self.n_embd)),
            (format!("{a}.block_count"), u32(self.n_layer)),
            (format!("{a}.feed_forward_length"), u32(self.n_ff)),
            (format!("{a}.attention.head_count"), u32(self.n_head)),
            (format!("{a}.attention.head_count_kv"), u32(self.n_head_kv)),
        ];
        if self.arch == Arch::Gpt2 {
            kv.push((format!("{a}.attention.layer_norm_epsilon"), Value::F32(NORM_EPS)));
        } else {
            kv.push((format!("{a}.attention.layer_norm_rms_epsilon"), Value::F32(NORM_EPS)));
            kv.push((format!("{a}.rope.freq_base"), Value::F32(ROPE_BASE)));
            kv.push((format!("{a}.rope.dimension_count"), u32(self.n_embd_head())));
        }
        if self.experts.0 > 0 {
            kv.push((format!("{a}.expert_count"), u32(self.experts.0)));
            kv.push((format!("{a}.expert_used_count"), u32(self.experts.1)));
        }
        kv.extend(tokenizer(self.n_vocab));
        if let Some(template) = &self.chat_template {
            kv.push(("tokenizer.chat_template".to_owned(), Value::Str(template.clone())));
        }
        kv.retain(|(key, _)| self.extra.iter().all(|(other, _)| other != key));
        kv.extend(self.extra.iter().cloned());
        kv
    }

    /// Name, shape and role of every tensor, in file order.
    fn layout(&self) -> Vec<(String, Vec<usize>, Role)> {
        let (d, f, kv) = (self.n_embd, self.n_ff, self.n_embd_kv());
        let matrix =
            |name: &str, n_in: usize, n_out: usize| (name.to_owned(), vec![n_in, n_out], Role::Matrix);
        // As GPT-2 was initialised: what writes the residual stream is smaller by the root of the number of writes.
        let n_writes = 2 * self.n_layer;
        let writer = |name: &str, n_in: usize, n_out: usize| {
            (name.to_owned(), vec![n_in, n_out], Role::Writer { n_writes })
        };
        let gain = |name: &str| (name.to_owned(), vec![d], Role::Gain);
        let bias = |name: &str, n: usize| (name.to_owned(), vec![n], Role::Bias);

        let mut all = vec![("token_embd.weight".to_owned(), vec![d, self.n_vocab], Role::Embedding)];
        if self.arch == Arch::Gpt2 {
            all.push(("position_embd.weight".to_owned(), vec![d, self.n_ctx], Role::Embedding));
        }
        for il in 0..self.n_layer {
            let mut block = match self.arch {
                Arch::Llama | Arch::Qwen2 => vec![
                    gain("attn_norm.weight"),
                    matrix("attn_q.weight", d, d),
                    matrix("attn_k.weight", d, kv),
                    matrix("attn_v.weight", d, kv),
                    writer("attn_output.weight", d, d),
                    gain("ffn_norm.weight"),
                    matrix("ffn_gate.weight", d, f),
                    matrix("ffn_up.weight", d, f),
                    writer("ffn_down.weight", f, d),
                ],
                Arch::Gpt2 => vec![
                    gain("attn_norm.weight"),
                    bias("attn_norm.bias", d),
                    matrix("attn_qkv.weight", d, 3 * d),
                    bias("attn_qkv.bias", 3 * d),
                    writer("attn_output.weight", d, d),
                    bias("attn_output.bias", d),
                    gain("ffn_norm.weight"),
                    bias("ffn_norm.bias", d),
                    matrix("ffn_up.weight", d, f),
                    bias("ffn_up.bias", f),
                    writer("ffn_down.weight", f, d),
                    bias("ffn_down.bias", d),
                ],
            };
            if self.experts.0 > 0 {
                block.retain(|(name, ..)| {
                    !["ffn_gate", "ffn_up", "ffn_down"].iter().any(|f| name.starts_with(f))
                });
                let slices = |name: &str, n_in: usize, n_out: usize, role: Role| {
                    (name.to_owned(), vec![n_in, n_out, self.experts.0], role)
                };
                block.extend([
                    matrix("ffn_gate_inp.weight", d, self.experts.0),
                    slices("ffn_gate_exps.weight", d, f, Role::Matrix),
                    slices("ffn_up_exps.weight", d, f, Role::Matrix),
                    slices("ffn_down_exps.weight", f, d, Role::Writer { n_writes }),
                ]);
            }
            if self.arch == Arch::Qwen2 {
                block.extend([bias("attn_q.bias", d), bias("attn_k.bias", kv), bias("attn_v.bias", kv)]);
            }
            all.extend(block.into_iter().map(|(name, ne, role)| (format!("blk.{il}.{name}"), ne, role)));
        }
        all.push(gain("output_norm.weight"));
        if self.arch == Arch::Gpt2 {
            all.push(bias("output_norm.bias", d));
        }
        if !self.tied {
            all.push(matrix("output.weight", d, self.n_vocab));
        }
        all
    }
}

/// How large a tensor's random values are.
#[derive(Clone, Copy)]
enum Role {
    /// Values of order 1.
    Embedding,
    /// Values of order 1/√n_in, so that outputs are as large as inputs.
    Matrix,
    /// A matrix that writes the residual stream: smaller by √n_writes.
    Writer { n_writes: usize },
    /// A norm's weight: near 1.
    Gain,
    /// Values of order 0.1.
    Bias,
}

/// A tensor in memory.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub name: String,
    /// `ne[0]` is contiguous.
    pub ne: Vec<usize>,
    pub data: Vec<f32>,
}

/// A model in memory, in f32.
#[derive(Clone, Debug)]
pub struct Model {
    pub spec: Spec,
    pub tensors: Vec<Tensor>,
}

impl Model {
    /// The random model of `spec`.
    pub fn random(spec: Spec) -> Self {
        assert!(spec.n_embd.is_multiple_of(32) && spec.n_embd.is_multiple_of(spec.n_head));
        assert!(spec.n_head.is_multiple_of(spec.n_head_kv));
        let mut random = Random(spec.seed);
        let tensors = spec.layout().into_iter().map(|(name, ne, role)| {
            let (mean, deviation) = match role {
                Role::Embedding => (0.0, 1.0),
                Role::Matrix => (0.0, 1.0 / (ne[0] as f32).sqrt()),
                Role::Writer { n_writes } => (0.0, 1.0 / ((ne[0] * n_writes) as f32).sqrt()),
                Role::Gain => (1.0, 0.1),
                Role::Bias => (0.0, 0.1),
            };
            let data = (0..ne.iter().product()).map(|_| mean + deviation * random.spread()).collect();
            Tensor { name, ne, data }
        });
        Self { tensors: tensors.collect(), spec }
    }

    /// The data of a tensor, if the model has it.
    pub fn find(&self, name: &str) -> Option<&[f32]> {
        self.tensors.iter().find(|t| t.name == name).map(|t| t.data.as_slice())
    }

    /// The data of a tensor that the architecture always has.
    pub fn get(&self, name: &str) -> &[f32] {
        self.find(name).unwrap_or_else(|| panic!("the model has no tensor {name}"))
    }

    /// The data of one slice of a tensor of experts.
    pub fn slice(&self, name: &str, expert: usize) -> &[f32] {
        let data = self.get(name);
        let n = data.len() / self.spec.experts.0;
        &data[expert * n..][..n]
    }

    /// Writes the model in F32.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let infos: Vec<_> = self
            .tensors
            .iter()
            .map(|t| Info {
                name: t.name.clone(),
                ne: t.ne.iter().map(|&n| n as u64).collect(),
                ty: Type::F32,
            })
            .collect();
        writer::write(path, &self.spec.metadata(), &infos, |i, out| {
            self.tensors[i].data.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
        })
    }

    /// The same model with its own `output.weight`, so that editing the embedding leaves the output head alone.
    #[must_use]
    pub fn untied(mut self) -> Self {
        if self.spec.tied {
            self.spec.tied = false;
            let mut output = self.tensors[0].clone();
            "output.weight".clone_into(&mut output.name);
            self.tensors.push(output);
        }
        self
    }

    /// The model whose every write to the residual stream is orthogonal to the unit vector `r`:
    /// W ← W − r(rᵀW) for matrices, x ← x − r(r·x) for embedding rows and biases. Untie first to keep the head.
    #[must_use]
    pub fn orthogonalized(mut self, r: &[f32]) -> Self {
        for t in &mut self.tensors {
            let name = t.name.as_str();
            let rows = ["token_embd.weight", "position_embd.weight"].contains(&name)
                || ["attn_output.bias", "ffn_down.bias"].iter().any(|s| name.ends_with(s));
            let columns = ["attn_output.weight", "ffn_down.weight"].iter().any(|s| name.ends_with(s));
            let n_in = t.ne[0];
            if rows {
                t.data.chunks_exact_mut(n_in).for_each(|row| project_out(row, r));
            } else if columns {
                for i in 0..n_in {
                    let mut column: Vec<f32> = t.data.iter().skip(i).step_by(n_in).copied().collect();
                    project_out(&mut column, r);
                    t.data.iter_mut().skip(i).step_by(n_in).zip(column).for_each(|(w, v)| *w = v);
                }
            }
        }
        self
    }
}

/// x ← x − r(r·x), with r of length 1.
pub fn project_out(x: &mut [f32], r: &[f32]) {
    assert_eq!(x.len(), r.len());
    let dot: f64 = x.iter().zip(r).map(|(&x, &r)| f64::from(x) * f64::from(r)).sum();
    x.iter_mut().zip(r).for_each(|(x, &r)| *x = (f64::from(*x) - dot * f64::from(r)) as f32);
}

/// A random unit vector.
pub fn unit(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let v: Vec<f32> = (0..n).map(|_| random.spread()).collect();
    let norm = v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    v.into_iter().map(|x| (f64::from(x) / norm) as f32).collect()
}

/// Writes a Q8_0 llama of 12 blocks, 1024 wide, about 140 MB, for benches.
pub fn big_q8_0(path: &Path, seed: u64) -> io::Result<()> {
    big(path, &big_spec(seed), Type::Q8_0)
}

/// Writes the same in F16, about 270 MB.
pub fn big_f16(path: &Path, seed: u64) -> io::Result<()> {
    big(path, &big_spec(seed), Type::F16)
}

fn big_spec(seed: u64) -> Spec {
    Spec {
        n_embd: 1024,
        n_head: 16,
        n_head_kv: 4,
        n_ff: 2816,
        n_layer: 12,
        n_ctx: 2048,
        seed,
        ..Spec::new(Arch::Llama)
    }
}

/// Writes a llama as wide as those of 8 billion parameters, of `n_layer` blocks (about 130 MB each), with the types of
/// Q4_K_M: Q4_K, and Q6_K where it matters most.
pub fn wide_q4_k_m(path: &Path, n_layer: usize, seed: u64) -> io::Result<()> {
    let spec = Spec {
        n_embd: 4096,
        n_head: 32,
        n_head_kv: 8,
        n_ff: 14336,
        n_layer,
        n_vocab: 32_000,
        n_ctx: 2048,
        seed,
        ..Spec::new(Arch::Llama)
    };
    let more_bits = |il: usize| il < n_layer / 8 || il >= 7 * n_layer / 8 || (il - n_layer / 8) % 3 == 2;
    big_mixed(path, &spec, |name| {
        let il = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        let matters = ["attn_v.weight", "ffn_down.weight"].iter().any(|end| name.ends_with(end));
        if name == "output.weight" || (matters && il.is_some_and(more_bits)) { Type::Q6K } else { Type::Q4K }
    })
}

/// Writes a model whose matrices are of type `ty`, value by value, whatever its size.
pub fn big(path: &Path, spec: &Spec, ty: Type) -> io::Result<()> {
    big_mixed(path, spec, |_| ty)
}

/// The same with a type for each name.
fn big_mixed(path: &Path, spec: &Spec, ty: impl Fn(&str) -> Type) -> io::Result<()> {
    let mut stream = Stream::new(spec, ty);
    let infos = stream.infos();
    writer::write(path, &spec.metadata(), &infos, |i, out| stream.write(i, out))
}

/// A model whose values are made while they are written, tensor by tensor.
pub struct Stream {
    tensors: Vec<(String, Vec<usize>, Type, f32)>,
    random: Random,
}

impl Stream {
    /// That of a spec, with a type for each matrix; vectors are F32.
    pub fn new(spec: &Spec, ty: impl Fn(&str) -> Type) -> Self {
        let tensors = spec.layout().into_iter().map(|(name, ne, role)| {
            let deviation = match role {
                Role::Embedding | Role::Gain => 1.0,
                Role::Matrix => 1.0 / (ne[0] as f32).sqrt(),
                Role::Writer { n_writes } => 1.0 / ((ne[0] * n_writes) as f32).sqrt(),
                Role::Bias => 0.1,
            };
            let ty = if ne.len() == 1 { Type::F32 } else { ty(&name) };
            (name, ne, ty, deviation)
        });
        Self { tensors: tensors.collect(), random: Random(spec.seed) }
    }

    /// Name, shape and type of every tensor, in order.
    pub fn infos(&self) -> Vec<Info> {
        let info = |(name, ne, ty, _): &(String, Vec<usize>, Type, f32)| Info {
            name: name.clone(),
            ne: ne.iter().map(|&n| n as u64).collect(),
            ty: *ty,
        };
        self.tensors.iter().map(info).collect()
    }

    /// Writes the data of a tensor; to be asked for in order.
    pub fn write(&mut self, i: usize, out: &mut dyn io::Write) -> io::Result<()> {
        let (_, ne, ty, deviation) = &self.tensors[i];
        let (n, deviation, random) = (ne.iter().product::<usize>(), *deviation, &mut self.random);
        match ty {
            Type::F32 => (0..n).try_for_each(|_| out.write_all(&deviation.to_le_bytes())),
            Type::F16 => (0..n)
                .try_for_each(|_| out.write_all(&f16::from_f32(deviation * random.spread()).to_le_bytes())),
            Type::Q8_0 => (0..n / 32).try_for_each(|_| out.write_all(&random.q8_0_block(deviation))),
            Type::Q4K => (0..n / 256).try_for_each(|_| out.write_all(&random.q4_k_block(deviation))),
            Type::Q6K => (0..n / 256).try_for_each(|_| out.write_all(&random.q6_k_block(deviation))),
        }
    }
}

/// The tokenizer's metadata: GPT-2's byte-level BPE with 256 bytes, [`MERGES`] and [`SPECIAL`].
pub fn tokenizer(n_vocab: usize) -> Vec<(String, Value)> {
    let mut tokens: Vec<String> = (0..=255).map(|b| byte_char(b).to_string()).collect();
    tokens.extend(MERGES.iter().map(|(a, b)| format!("{a}{b}")));
    tokens.extend(SPECIAL.map(str::to_owned));
    tokens.extend((N_VOCAB..n_vocab).map(|id| format!("<|unused{id}|>")));
    // 1 is NORMAL, 3 is CONTROL, 5 is UNUSED.
    let kind = |id| match id {
        N_VOCAB.. => 5,
        id if id < N_VOCAB - SPECIAL.len() => 1,
        _ => 3,
    };
    let types = (0..n_vocab).map(kind).collect();
    let key = |k: &str| format!("tokenizer.ggml.{k}");
    vec![
        (key("model"), Value::Str("gpt2".to_owned())),
        (key("pre"), Value::Str("gpt-2".to_owned())),
        (key("tokens"), Value::Strs(tokens)),
        (key("token_type"), Value::I32s(types)),
        (key("merges"), Value::Strs(MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect())),
        (key("bos_token_id"), Value::U32(ENDOFTEXT as u32)),
        (key("eos_token_id"), Value::U32(IM_END as u32)),
        (key("add_bos_token"), Value::Bool(false)),
    ]
}

/// The character GPT-2's byte-level BPE shows a byte as: printable Latin-1 is itself, the rest follows U+0100.
fn byte_char(byte: u8) -> char {
    let shown = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if shown(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&b| !shown(b)).count() as u32;
    char::from_u32(0x100 + before).expect("0x100 to 0x143 are letters")
}

/// SplitMix64: short, and good enough for weights.
pub struct Random(pub u64);

impl Random {
    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform with mean 0 and standard deviation 1.
    pub fn spread(&mut self) -> f32 {
        let unit = (self.bits() >> 40) as f32 / (1u64 << 24) as f32;
        (unit - 0.5) * 12f32.sqrt()
    }

    /// One Q8_0 block of 32 weights: an f16 scale and 32 signed bytes. A uniform byte deviates by 73.9.
    fn q8_0_block(&mut self, deviation: f32) -> [u8; 34] {
        let scale = f16::from_f32(deviation / 73.9 * (1.0 + 0.2 * self.spread()));
        let mut block = [0; 34];
        block[..2].copy_from_slice(&scale.to_le_bytes());
        for chunk in block[2..].chunks_exact_mut(8) {
            // -128 does not occur in files: the quantizer's codes are symmetric.
            chunk.copy_from_slice(&self.bits().to_le_bytes().map(|b| if b == 0x80 { 0x81 } else { b }));
        }
        block
    }
    /// One Q4_K block of 256 weights: two f16 scales, eight pairs of 6-bit multiples of them, 256 codes of 4 bits. A
    /// uniform code deviates by 4.6 from 7.5, which the second scale takes off; the multiples deviate from 0 by 48.
    fn q4_k_block(&mut self, deviation: f32) -> [u8; 144] {
        let scale = deviation / (4.6 * 48.0) * (1.0 + 0.2 * self.spread());
        let mut block = [0; 144];
        block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(7.5 * scale).to_le_bytes());
        let multiples = self.bits().to_le_bytes().map(|b| 32 | (b & 31));
        let (first, last) = multiples.split_at(4);
        for g in 0..4 {
            let both = first[g] | (last[g] >> 4 << 6);
            (block[4 + g], block[8 + g]) = (both, both);
            block[12 + g] = (last[g] & 15) | (last[g] << 4);
        }
        self.fill(&mut block[16..]);
        block
    }

    /// One Q6_K block of 256 weights: 256 codes of 6 bits, sixteen signed multiples of an f16 scale. A uniform code
    /// deviates by 18.5 from 32, the multiples by 96 from 0.
    fn q6_k_block(&mut self, deviation: f32) -> [u8; 210] {
        let scale = deviation / (18.5 * 96.0) * (1.0 + 0.2 * self.spread());
        let mut block = [0; 210];
        self.fill(&mut block);
        for multiple in &mut block[192..208] {
            // From 64 to 127 or from -128 to -65.
            *multiple =
                (*multiple & 0x80) | if *multiple & 0x80 == 0 { 0x40 } else { 0 } | (*multiple & 0x3f);
        }
        block[208..].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        block
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.bits().to_le_bytes()[..chunk.len()]);
        }
    }
}
