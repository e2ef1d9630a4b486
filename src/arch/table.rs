//! The closed table: which architecture writes the stream through what.
//!
//! Read from the graph and the loader of each (`src/models/*.cpp` of llama.cpp). What the table does not need
//! to say, because it changes no direction: whether attention and feed-forward run side by side, scales of
//! the embedding, the residual, a block or a matrix (`.scale`), norms without weights behind the embedding
//! (muse-glimmer, talkie), gates and norms in front of an output matrix (bitnet's `*_sub_norm`), routers.
#![forbid(unsafe_code)]

use super::WriterKind as Kind;
use Head::{Own, OwnOrTied, Tied};
use Part::{Ffn, Mixer, PerLayer};

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

/// The part of a block a writer belongs to: post-norms differ by it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What mixes tokens: attention, or what stands in its place.
    Mixer,
    /// What works on each token alone.
    Ffn,
    /// The per-layer embedding, behind both.
    PerLayer,
}

/// A tensor of a block that writes the stream where its architecture says so.
pub(super) struct Place {
    /// Its name behind `blk.{il}.`.
    pub name: &'static str,
    /// The name by which a [`Spec`] has it.
    pub of: &'static str,
    pub kind: Kind,
    pub part: Part,
}

const fn place(name: &'static str, of: &'static str, kind: Kind, part: Part) -> Place {
    Place { name, of, kind, part }
}

/// In the order they add to the stream.
pub(super) const PLACES: &[Place] = &[
    place("attn_output.weight", "attn_output", Kind::AttentionOutput, Mixer),
    place("attn_output.bias", "attn_output", Kind::AttentionOutputBias, Mixer),
    place("attn_output.lora_b", "attn_output.lora_b", Kind::AttentionOutput, Mixer),
    place("vis_attn_output.weight", "vis_attn_output", Kind::AttentionOutput, Mixer),
    place("ssm_out.weight", "ssm_out", Kind::SsmOutput, Mixer),
    place("shortconv.out_proj.weight", "shortconv.out_proj", Kind::ShortConvOutput, Mixer),
    place("time_mix_output.weight", "time_mix_output", Kind::TimeMixOutput, Mixer),
    place("ffn_down.weight", "ffn_down", Kind::FfnDown, Ffn),
    place("ffn_down.bias", "ffn_down", Kind::FfnDownBias, Ffn),
    place("ffn_down.lora_b", "ffn_down.lora_b", Kind::FfnDown, Ffn),
    place("vis_down.weight", "vis_down", Kind::FfnDown, Ffn),
    place("channel_mix_value.weight", "channel_mix_value", Kind::ChannelMixValue, Ffn),
    place("ffn_down_exps.weight", "ffn_down_exps", Kind::FfnDownExperts, Ffn),
    place("ffn_down_exps.bias", "ffn_down_exps", Kind::FfnDownExpertsBias, Ffn),
    place("ffn_down_chexps.weight", "ffn_down_chexps", Kind::FfnDownExperts, Ffn),
    place("ffn_latent_up.weight", "ffn_latent_up", Kind::ExpertsLatentUp, Ffn),
    place("ffn_routed_up.weight", "ffn_routed_up", Kind::ExpertsLatentUp, Ffn),
    place("ffn_down_shexp.weight", "ffn_down_shexp", Kind::FfnDownShared, Ffn),
    place("proj.weight", "proj", Kind::PerLayerProjection, PerLayer),
];

/// Norms between a block's writers and the stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Post {
    /// None. A `post_attention_norm` is then the norm in front of the FFN, and among [`Spec::reads`].
    No,
    /// `post_attention_norm.weight` and `post_ffw_norm.weight`.
    Usual,
    /// The same, their names without `.weight`.
    Bare,
    /// `attn_output_norm.weight`, and `layer_output_norm.weight` or `post_ffw_norm.weight`.
    Grok,
    /// `attn_norm.weight` and `ffn_norm.weight` stand behind the writers if `swin_norm` is set, in front
    /// otherwise.
    Swin,
    /// As `Usual`; in blocks with experts, these and the dense part have a norm each before they are summed
    /// and normed again. The per-layer embedding has a norm of its own.
    Gemma4,
}

/// Learned positions, added to the token embedding.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Positions {
    No,
    Learned,
    IfThere,
}

/// Groups of names; of each, a block has at least one.
type Needs = &'static [&'static [&'static str]];

/// What the graph of one architecture says about its writers.
pub(super) struct Spec {
    pub name: &'static str,
    pub head: Head,
    pub needs: Needs,
    /// Writers a block may have besides.
    pub also: &'static [&'static str],
    pub post: Post,
    pub positions: Positions,
    /// A LayerNorm (`token_embd_norm`) stands between the token embedding and the stream.
    pub embedding_norm: bool,
    /// Blocks may lack a half, its norm with it.
    pub sparse: bool,
    /// Names that write nothing here, and may elsewhere.
    pub reads: &'static [&'static str],
    /// Output matrices whose bias the loader takes when it is there, and the graph adds to the stream
    /// unscaled.
    pub biases: &'static [&'static str],
}

impl Spec {
    pub fn has(&self, of: &str) -> bool {
        // A shared expert stands beside experts, never alone.
        let of = if of == "ffn_down_shexp" { "ffn_down_exps" } else { of };
        self.also.contains(&of) || self.needs.iter().any(|group| group.contains(&of))
    }

    const fn also(mut self, names: &'static [&'static str]) -> Self {
        self.also = names;
        self
    }

    const fn post(mut self, post: Post) -> Self {
        self.post = post;
        self
    }

    const fn positions(mut self, positions: Positions) -> Self {
        self.positions = positions;
        self
    }

    const fn embedding_norm(mut self) -> Self {
        self.embedding_norm = true;
        self
    }

    const fn sparse(mut self) -> Self {
        self.sparse = true;
        self
    }

    const fn reads(mut self, names: &'static [&'static str]) -> Self {
        self.reads = names;
        self
    }

    const fn biases(mut self, of: &'static [&'static str]) -> Self {
        self.biases = of;
        self
    }
}

const fn arch(name: &'static str, head: Head, needs: Needs) -> Spec {
    Spec {
        name,
        head,
        needs,
        also: &[],
        post: Post::No,
        positions: Positions::No,
        embedding_norm: false,
        sparse: false,
        reads: &[],
        biases: &[],
    }
}

const ATTENTION: &[&str] = &["attn_output"];
const ATTENTION_OR_SSM: &[&str] = &["attn_output", "ssm_out"];
const ATTENTION_OR_CONV: &[&str] = &["attn_output", "shortconv.out_proj"];
const DOWN: &[&str] = &["ffn_down"];
const EXPERT: &[&str] = &["ffn_down_exps"];
const DOWN_OR_EXPERT: &[&str] = &["ffn_down", "ffn_down_exps"];

const DENSE: Needs = &[ATTENTION, DOWN];
const EXPERTS: Needs = &[ATTENTION, EXPERT];
/// Dense or with experts, block by block.
const EITHER: Needs = &[ATTENTION, DOWN_OR_EXPERT];

const BOTH: &[&str] = &["ffn_down", "attn_output"];
const DOWN_BIAS: &[&str] = &["ffn_down"];
const ATTENTION_BIAS: &[&str] = &["attn_output"];
/// The norm in front of the FFN has the name of a post-norm.
const POST_IS_PRE: &[&str] = &["post_attention_norm"];

/// What a file of an unknown architecture probably writes through.
pub(super) const STANDARD: Spec =
    arch("", OwnOrTied, &[]).also(&["attn_output", "ffn_down", "ffn_down_exps"]);

/// The architectures whose graphs were read.
pub(super) const TABLE: &[Spec] = &[
    // Attention and a dense FFN, nothing behind.
    arch("apertus", Own, DENSE).biases(ATTENTION_BIAS),
    arch("arcee", OwnOrTied, DENSE),
    arch("baichuan", Own, DENSE),
    arch("bitnet", Tied, DENSE),
    arch("chatglm", OwnOrTied, DENSE),
    arch("codeshell", Own, DENSE).biases(BOTH),
    arch("cohere2", Tied, DENSE),
    arch("command-r", Tied, DENSE),
    arch("dream", OwnOrTied, DENSE),
    arch("ernie4_5", OwnOrTied, DENSE),
    arch("exaone", OwnOrTied, DENSE),
    arch("falcon", OwnOrTied, DENSE),
    arch("gemma", Tied, DENSE),
    arch("gptneox", Own, DENSE).biases(BOTH),
    arch("hunyuan-dense", OwnOrTied, DENSE),
    arch("hunyuan_vl", OwnOrTied, DENSE),
    arch("internlm2", Own, DENSE),
    arch("jais", Own, DENSE).biases(BOTH),
    arch("jais2", OwnOrTied, DENSE).biases(BOTH),
    arch("llada", OwnOrTied, DENSE),
    arch("maincoder", OwnOrTied, DENSE),
    arch("minicpm3", OwnOrTied, DENSE),
    arch("nanbeige", OwnOrTied, DENSE),
    arch("nemotron", Own, DENSE).biases(BOTH),
    arch("olmo", OwnOrTied, DENSE),
    arch("openelm", Tied, DENSE),
    arch("orion", Own, DENSE),
    arch("paddleocr", OwnOrTied, DENSE).biases(ATTENTION_BIAS),
    arch("pangu-embedded", OwnOrTied, DENSE).biases(ATTENTION_BIAS),
    arch("phi2", Own, DENSE).biases(BOTH),
    arch("phi3", OwnOrTied, DENSE),
    arch("plamo", Own, DENSE),
    arch("plm", Tied, DENSE),
    arch("qwen", Own, DENSE),
    arch("qwen2", OwnOrTied, DENSE),
    arch("qwen2vl", OwnOrTied, DENSE),
    arch("qwen3", OwnOrTied, DENSE),
    arch("qwen3vl", OwnOrTied, DENSE),
    arch("refact", OwnOrTied, DENSE),
    arch("seed_oss", OwnOrTied, DENSE).reads(POST_IS_PRE),
    arch("smollm3", OwnOrTied, DENSE),
    arch("spark2_5", OwnOrTied, DENSE),
    arch("stablelm", Own, DENSE),
    arch("starcoder2", OwnOrTied, DENSE).biases(BOTH),
    arch("talkie", Own, DENSE),
    arch("xverse", Own, DENSE),
    // Either half may be missing; attention may be one matrix, and then has no bias.
    arch("deci", OwnOrTied, DENSE).sparse().biases(DOWN_BIAS),
    // A second set of matrices for the tokens of images.
    arch("cogvlm", OwnOrTied, DENSE).also(&["vis_attn_output", "vis_down"]),
    // Adapters of its own, chosen by control tokens.
    arch("graniteswitch", OwnOrTied, DENSE).also(&["attn_output.lora_b", "ffn_down.lora_b"]),
    // Learned positions; a norm behind the embedding.
    arch("gpt2", OwnOrTied, DENSE).positions(Positions::Learned).biases(BOTH),
    arch("starcoder", OwnOrTied, DENSE).positions(Positions::Learned).biases(BOTH),
    arch("mpt", OwnOrTied, DENSE).positions(Positions::IfThere).biases(BOTH),
    arch("bloom", OwnOrTied, DENSE).embedding_norm().biases(BOTH),
    // Norms behind the writers.
    arch("chameleon", OwnOrTied, DENSE).post(Post::Swin),
    arch("exaone4", OwnOrTied, DENSE).post(Post::Usual),
    arch("gemma2", Tied, DENSE).post(Post::Usual),
    arch("gemma3", OwnOrTied, DENSE).post(Post::Usual),
    arch("glm4", OwnOrTied, DENSE).post(Post::Usual),
    arch("muse-glimmer", Own, DENSE).post(Post::Usual),
    arch("olmo2", Own, DENSE).post(Post::Usual),
    arch("plamo3", OwnOrTied, DENSE).post(Post::Bare),
    arch("afmoe", OwnOrTied, EITHER).post(Post::Usual),
    arch("grok", OwnOrTied, EXPERTS).also(DOWN).post(Post::Grok),
    arch("gemma4", OwnOrTied, DENSE).also(&["ffn_down_exps", "proj"]).post(Post::Gemma4).reads(&[
        "per_layer_token_embd",
        "per_layer_model_proj",
        "per_layer_proj_norm",
    ]),
    // Experts in every block.
    arch("bailingmoe", Own, EXPERTS),
    arch("dbrx", Own, EXPERTS).reads(&["attn_output_norm"]),
    arch("gpt-oss", Own, EXPERTS).reads(POST_IS_PRE).biases(ATTENTION_BIAS),
    arch("hunyuan-moe", OwnOrTied, EXPERTS),
    arch("llada-moe", Own, EXPERTS),
    arch("maple", Own, EXPERTS),
    arch("mellum", Own, EXPERTS),
    arch("minimax-m2", Own, EXPERTS),
    arch("olmoe", Own, EXPERTS),
    arch("phimoe", Own, EXPERTS).biases(ATTENTION_BIAS),
    arch("qwen2moe", Own, EXPERTS),
    arch("qwen3moe", OwnOrTied, EXPERTS),
    arch("qwen3vlmoe", OwnOrTied, EXPERTS),
    arch("rnd1", OwnOrTied, EXPERTS),
    arch("smallthinker", OwnOrTied, EXPERTS),
    // Two sets of experts; experts beside a dense FFN.
    arch("grovemoe", OwnOrTied, &[ATTENTION, EXPERT, &["ffn_down_chexps"]]),
    arch("arctic", OwnOrTied, &[ATTENTION, DOWN, EXPERT]),
    // Dense or with experts.
    arch("bailingmoe2", Own, EITHER),
    arch("bailingmoe3", OwnOrTied, EITHER),
    arch("cohere2moe", OwnOrTied, EITHER),
    arch("deepseek", OwnOrTied, EITHER),
    arch("deepseek2", OwnOrTied, EITHER),
    arch("deepseek2-ocr", OwnOrTied, EITHER),
    arch("deepseek32", OwnOrTied, EITHER),
    arch("dots1", Own, EITHER),
    arch("dots3note", OwnOrTied, EITHER),
    arch("ernie4_5-moe", OwnOrTied, EITHER),
    arch("exaone-moe", Own, EITHER),
    arch("glm-dsa", OwnOrTied, EITHER),
    arch("glm4moe", OwnOrTied, EITHER).reads(POST_IS_PRE),
    arch("hy_v3", OwnOrTied, EITHER),
    arch("kimi-linear", Own, EITHER),
    arch("laguna", OwnOrTied, EITHER),
    arch("llama", OwnOrTied, EITHER).biases(BOTH),
    arch("llama4", OwnOrTied, EITHER),
    arch("mimo2", Own, EITHER),
    arch("minimax-m3", Own, EITHER),
    arch("mistral3", OwnOrTied, EITHER).biases(BOTH),
    arch("mistral4", OwnOrTied, EITHER),
    arch("step35", Own, EITHER),
    // What the blocks add is scaled first, a bias with it.
    arch("granite", OwnOrTied, EITHER),
    arch("granite_swa", OwnOrTied, EITHER),
    arch("granitemoe", OwnOrTied, EITHER),
    arch("minicpm", OwnOrTied, EITHER),
    // The stream is mixed from its own earlier states, by a number each; experts may work in a narrower
    // space.
    arch("kimi-k3", Own, EITHER).also(&["ffn_routed_up"]).reads(&["output_res_score"]),
    // State-space and convolution blocks, alone or between attention.
    arch("mamba", OwnOrTied, &[&["ssm_out"]]),
    arch("mamba2", OwnOrTied, &[&["ssm_out"]]),
    arch("falcon-h1", OwnOrTied, &[ATTENTION, &["ssm_out"], DOWN]).biases(DOWN_BIAS),
    arch("granitehybrid", OwnOrTied, &[ATTENTION_OR_SSM, DOWN_OR_EXPERT]),
    arch("jamba", OwnOrTied, &[ATTENTION_OR_SSM, DOWN_OR_EXPERT]),
    arch("plamo2", OwnOrTied, &[ATTENTION_OR_SSM, DOWN]).post(Post::Bare),
    arch("qwen35", OwnOrTied, &[ATTENTION_OR_SSM, DOWN]).reads(POST_IS_PRE),
    arch("qwen35moe", OwnOrTied, &[ATTENTION_OR_SSM, EXPERT]).reads(POST_IS_PRE),
    arch("qwen3next", OwnOrTied, &[ATTENTION_OR_SSM, EXPERT]).reads(POST_IS_PRE),
    arch("lfm2", OwnOrTied, &[ATTENTION_OR_CONV, DOWN_OR_EXPERT]).reads(&["token_embd_norm"]),
    arch("lfm2moe", OwnOrTied, &[ATTENTION_OR_CONV, DOWN_OR_EXPERT]).reads(&["token_embd_norm"]),
    // One writer a block, of any kind; experts may work in a narrower space.
    arch("nemotron_h", OwnOrTied, NEMOTRON).also(&["ffn_latent_up"]).biases(BOTH),
    arch("nemotron_h_moe", OwnOrTied, NEMOTRON).also(&["ffn_latent_up"]).biases(BOTH),
    // Linear attention with a shift between tokens: of what the stream is read through, not of the stream.
    arch("rwkv6qwen2", Own, &[&["time_mix_output"], DOWN]),
    arch("arwkv7", Own, &[&["time_mix_output"], DOWN]),
    arch("rwkv7", Own, &[&["time_mix_output"], &["channel_mix_value"]]).embedding_norm(),
];

const NEMOTRON: Needs = &[&["attn_output", "ssm_out", "ffn_down", "ffn_down_exps"]];

const EMBEDS: &str = "it makes embeddings, not answers";
const POST_NORM_STREAM: &str =
    "it makes embeddings, and its stream itself passes through the weights of a norm twice a block";
const DRAFTS: &str = "it drafts tokens for another model, from that model's stream";
const MANY_STREAMS: &str = "it has several streams, mixed by learned weights in each block";
const SPEAKS: &str = "it makes sound, not text";

/// Architectures llama.cpp knows and orthogonal writers do not serve, and why.
pub(super) const UNSERVED: &[(&str, &str)] = &[
    ("bert", POST_NORM_STREAM),
    ("clef", "it chooses among options with a head of its own and writes no text"),
    ("clip", "it encodes images and holds no language model"),
    ("deepseek4", MANY_STREAMS),
    ("dflash", DRAFTS),
    ("eagle3", DRAFTS),
    ("eurobert", EMBEDS),
    ("gemma-embedding", EMBEDS),
    ("gemma3n", MANY_STREAMS),
    ("gemma4-assistant", DRAFTS),
    ("glm5-next", MANY_STREAMS),
    ("gptj", "llama.cpp knows its name and has no graph for it"),
    (
        "hrm_text",
        "two streams pass through the same blocks again and again, so that no block has a stream of its own",
    ),
    ("hy_v4", MANY_STREAMS),
    ("jina-bert-v2", POST_NORM_STREAM),
    ("jina-bert-v3", POST_NORM_STREAM),
    ("llama-embed", EMBEDS),
    ("minimax-01", "its stream itself passes through the weights of a norm twice a block"),
    ("modern-bert", EMBEDS),
    ("neo-bert", EMBEDS),
    ("nomic-bert", POST_NORM_STREAM),
    ("nomic-bert-moe", POST_NORM_STREAM),
    ("pockettts", SPEAKS),
    ("qwen3tts", SPEAKS),
    ("qwen4exp", MANY_STREAMS),
    ("rwkv6", "a gate multiplies each element between channel_mix_value and the stream"),
    ("t5", "its decoder's stream is fed from the encoder's, each with writers under names of its own"),
    ("t5encoder", EMBEDS),
    ("wavtokenizer-dec", SPEAKS),
];

/// Beginnings of the names, behind `blk.{il}.`, of tensors that read the stream or work inside a part of a
/// block: their output never is the stream, whatever their shape. [`PLACES`] come before it.
pub(super) const READER_FAMILIES: &[&str] =
    &["attn_q", "attn_k", "attn_v", "indexer", "ssm_", "shortconv.", "time_mix_", "channel_mix_"];

/// The same, by their whole names.
pub(super) const READERS: &[&str] = &[
    "attn_norm",
    "attn_norm_2",
    "attn_gate",
    "attn_sinks",
    "attn_rot_embd",
    "attn_sub_norm",
    "attn_res_score",
    "ffn_norm",
    "ffn_norm_exps",
    "ffn_sub_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_gate_inp",
    "ffn_gate_inp_shexp",
    "ffn_gate_exps",
    "ffn_up_exps",
    "ffn_gate_up_exps",
    "ffn_gate_shexp",
    "ffn_up_shexp",
    "ffn_gate_chexps",
    "ffn_up_chexps",
    "ffn_latent_down",
    "ffn_routed_down",
    "ffn_routed_norm",
    "ffn_res_score",
    "ffn.act",
    "exp_probs_b",
    "exp_probs_b_vl",
    "vis_attn_qkv",
    "vis_gate",
    "vis_up",
    "inp_gate",
    "pre_ffw_norm_2",
    "layer_output_scale",
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
    "cls.norm",
    "dense_2",
    "dense_3",
];

#[cfg(test)]
mod tests {
    use super::{TABLE, UNSERVED};

    /// The names of `LLM_ARCH_NAMES` in the pinned llama.cpp, `(unknown)` left out. To take them anew, in its
    /// folder: `sed -n '/LLM_ARCH_NAMES/,/^};/p' src/llama-arch.cpp | grep -o '"[^"]*" *}' | tr -d '"} '`
    const LLAMA_CPP: &str = "
    clip llama llama4 deci falcon grok gpt2 gptj gptneox mpt baichuan starcoder refact bert modern-bert
    nomic-bert nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert bloom stablelm qwen qwen2
    qwen2moe qwen2vl qwen3 qwen3moe qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe clef qwen4exp phi2 phi3
    phimoe plamo plamo2 plamo3 codeshell orion internlm2 minicpm minicpm3 gemma gemma2 gemma3 gemma3n
    gemma4 gemma4-assistant gemma-embedding starcoder2 mamba mamba2 maple jamba falcon-h1 xverse command-r
    cohere2 cohere2moe dbrx olmo olmo2 olmoe muse-glimmer openelm arctic deepseek deepseek2 deepseek2-ocr
    deepseek32 deepseek4 chatglm glm4 glm4moe glm-dsa bitnet t5 t5encoder jais jais2 nemotron nemotron_h
    nemotron_h_moe exaone exaone4 exaone-moe rwkv6 rwkv6qwen2 rwkv7 arwkv7 granite granitemoe
    granitehybrid graniteswitch granite_swa chameleon wavtokenizer-dec plm bailingmoe bailingmoe2
    bailingmoe3 dots1 dots3note arcee afmoe laguna ernie4_5 ernie4_5-moe hunyuan-moe hunyuan-dense
    hunyuan_vl hy_v3 hy_v4 smollm3 gpt-oss lfm2 lfm2moe dream smallthinker llada llada-moe seed_oss
    grovemoe apertus minimax-01 hrm_text minimax-m2 minimax-m3 cogvlm rnd1 pangu-embedded mistral3 eagle3
    dflash mistral4 paddleocr mimo2 step35 spark2_5 llama-embed maincoder kimi-linear kimi-k3 glm5-next
    talkie mellum nanbeige qwen3tts pockettts";

    #[test]
    fn every_architecture_of_llama_cpp_is_placed_once() {
        let mut theirs: Vec<&str> = LLAMA_CPP.split_whitespace().collect();
        let mut ours: Vec<&str> =
            TABLE.iter().map(|spec| spec.name).chain(UNSERVED.iter().map(|(name, _)| *name)).collect();
        theirs.sort_unstable();
        ours.sort_unstable();
        assert_eq!(ours, theirs);
    }
}
