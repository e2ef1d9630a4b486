//! The closed table: which architecture writes the stream through what.
#![forbid(unsafe_code)]

/// Where an architecture's output matrix may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// `output.weight` must be there.
    Own,
    /// `output.weight` if it is there, `token_embd.weight` otherwise.
    OwnOrTied,
    /// Always `token_embd.weight`; llama.cpp refuses a file with an `output.weight`.
    Tied,
}

/// What stands between the stream and itself in the second half of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ffn {
    /// `ffn_down`.
    Dense,
    /// `ffn_down_exps`, and `ffn_down_shexp` if there.
    Experts,
    /// Either, block by block.
    Either,
}

/// What the graph of one architecture says about its writers.
pub(super) struct Spec {
    pub name: &'static str,
    pub head: Head,
    pub ffn: Ffn,
    /// True post-norm blocks: `post_attention_norm` and `post_ffw_norm` stand between the writers and the stream.
    pub post_norm: bool,
    /// Learned position embeddings are added to the token embeddings.
    pub position: bool,
    /// A LayerNorm (`token_embd_norm`) stands between the token embedding and the stream.
    pub embedding_norm: bool,
}

const fn dense(name: &'static str, head: Head) -> Spec {
    Spec { name, head, ffn: Ffn::Dense, post_norm: false, position: false, embedding_norm: false }
}

/// The architectures whose graphs were read. Where attention and feed-forward run side by side (gptneox, phi2, falcon,
/// command-r, stablelm 12B) both still add to the stream; scales on the way (gemma's embedding, granite's residual)
/// change no direction.
pub(super) const TABLE: &[Spec] = &[
    Spec { ffn: Ffn::Either, ..dense("llama", Head::OwnOrTied) },
    dense("qwen2", Head::OwnOrTied),
    dense("qwen3", Head::OwnOrTied),
    Spec { ffn: Ffn::Experts, ..dense("qwen2moe", Head::Own) },
    Spec { ffn: Ffn::Experts, ..dense("qwen3moe", Head::OwnOrTied) },
    Spec { position: true, ..dense("gpt2", Head::OwnOrTied) },
    dense("gptneox", Head::Own),
    dense("phi2", Head::Own),
    dense("phi3", Head::OwnOrTied),
    dense("falcon", Head::OwnOrTied),
    dense("stablelm", Head::Own),
    dense("gemma", Head::Tied),
    Spec { post_norm: true, ..dense("gemma2", Head::Tied) },
    Spec { post_norm: true, ..dense("gemma3", Head::OwnOrTied) },
    dense("starcoder2", Head::OwnOrTied),
    dense("command-r", Head::Tied),
    dense("olmo", Head::OwnOrTied),
    Spec { post_norm: true, ..dense("olmo2", Head::Own) },
    Spec { ffn: Ffn::Either, ..dense("granite", Head::OwnOrTied) },
    Spec { embedding_norm: true, ..dense("bloom", Head::OwnOrTied) },
    dense("internlm2", Head::Own),
    Spec { ffn: Ffn::Either, ..dense("deepseek2", Head::OwnOrTied) },
];

/// Tensors of a block that read the stream, or work inside an attention or feed-forward network: their output never is
/// the stream, whatever their shape.
pub(super) const READERS: &[&str] = &[
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_qkv",
    "attn_q_a",
    "attn_q_b",
    "attn_kv_a_mqa",
    "attn_kv_b",
    "attn_k_b",
    "attn_v_b",
    "attn_q_norm",
    "attn_k_norm",
    "attn_q_a_norm",
    "attn_kv_a_norm",
    "attn_norm",
    "attn_norm_2",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_gate_up_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "exp_probs_b",
];

/// Tensors outside the blocks that do not write the stream.
pub(super) const OUTSIDE: &[&str] = &[
    "output",
    "output_norm",
    "rope_freqs",
    "rope_factors_long",
    "rope_factors_short",
    "cls",
    "cls.output",
    "dense_2",
    "dense_3",
];
