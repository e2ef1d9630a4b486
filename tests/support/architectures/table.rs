//! What the loader of each architecture asks for.

use super::{Head, N_HEAD, Spec, classic, of, wide};

pub(super) const OUTPUT_NORM: &str = "output_norm.weight d";
pub(super) const OUTPUT_NORM_B: &str = "output_norm.weight d, output_norm.bias d";
const OUTPUT_B: &str = "output.bias v";
const POSITIONS: &str = "position_embd.weight d 64";
const EMBEDDING_NORM: &str = "token_embd_norm.weight d, token_embd_norm.bias d";

const NORM: &str = "attn_norm.weight d";
const NORM_B: &str = "attn_norm.weight d, attn_norm.bias d";
const NORMS: &str = "attn_norm.weight d, ffn_norm.weight d";
const NORMS_B: &str = "attn_norm.weight d, attn_norm.bias d, ffn_norm.weight d, ffn_norm.bias d";
const NORMS_AFTER: &str = "post_attention_norm.weight d, post_ffw_norm.weight d";
/// Not what its name says: the norm before the FFN.
const NORM_BETWEEN: &str = "attn_norm.weight d, post_attention_norm.weight d";

const QKV: &str = "attn_q.weight d q, attn_k.weight d k, attn_v.weight d k, attn_output.weight q d";
const QKV_B: &str = "attn_q.bias q, attn_k.bias k, attn_v.bias k";
const FUSED: &str = "attn_qkv.weight d w, attn_output.weight q d";
const FUSED_B: &str = "attn_qkv.bias w";
const OUT_B: &str = "attn_output.bias d";
const QK_NORM: &str = "attn_q_norm.weight h, attn_k_norm.weight h";
const QK_NORM_WHOLE: &str = "attn_q_norm.weight q, attn_k_norm.weight k";
const QK_NORM_EACH: &str = "attn_q_norm.weight h n, attn_k_norm.weight h m";
const SINKS: &str = "attn_sinks.weight n";
/// Attention that keeps keys and values in a low rank, and the two layouts of what unfolds them.
const LATENT: &str = "attn_q_a.weight d 32, attn_q_a_norm.weight 32, attn_q_b.weight 32 128, \
     attn_kv_a_mqa.weight d 48, attn_kv_a_norm.weight 32, attn_output.weight 64 d";
const LATENT_KV: &str = "attn_kv_a_mqa.weight d 48, attn_kv_a_norm.weight 32, attn_output.weight 64 d";
const UNFOLD: &str = "attn_kv_b.weight 32 128";
const UNFOLD_SPLIT: &str = "attn_k_b.weight 16 32 4, attn_v_b.weight 32 16 4";

const GATED: &str = "ffn_gate.weight d f, ffn_up.weight d f, ffn_down.weight f d";
const GATE_B: &str = "ffn_gate.bias f";
const PAIRED: &str = "ffn_up.weight d g, ffn_down.weight f d";
const FLAT: &str = "ffn_up.weight d f, ffn_down.weight f d";
const FLAT_B: &str = "ffn_up.bias f, ffn_down.bias d";
const EXPERTS: &str = "ffn_gate_inp.weight d e, ffn_gate_exps.weight d f e, ffn_up_exps.weight d f e, \
     ffn_down_exps.weight f d e";
const EXPERTS_B: &str =
    "ffn_gate_inp.bias e, ffn_gate_exps.bias f e, ffn_up_exps.bias f e, ffn_down_exps.bias d e";
const SHARED: &str = "ffn_gate_shexp.weight d f, ffn_up_shexp.weight d f, ffn_down_shexp.weight f d";

const HALF_GATED: &str = "ffn_gate.weight d 96, ffn_up.weight d 96, ffn_down.weight 96 d";
const SQUARE_GATED: &str = "ffn_gate.weight d d, ffn_up.weight d d, ffn_down.weight d d";
const ROUTER_B: &str = "exp_probs_b.bias e";

const SSM_KEYS: &str = "ssm.conv_kernel 4, ssm.inner_size 128, ssm.state_size 16, ssm.time_step_rank 4";
/// State space of one step size a channel, and of one a head.
const SSM: &str = "ssm_in.weight d 256, ssm_conv1d.weight 4 128, ssm_conv1d.bias 128, ssm_x.weight 128 36, \
     ssm_dt.weight 4 128, ssm_dt.bias 128, ssm_a 16 128, ssm_d 128, ssm_out.weight 128 d";
const SSM_HEADS: &str = "ssm_in.weight d 292, ssm_conv1d.weight 4 160, ssm_conv1d.bias 160, ssm_dt.bias 4, \
     ssm_a 1 4, ssm_d 1 4, ssm_norm.weight 128 1, ssm_out.weight 128 d";
const SSM_NORMS: &str = "ssm_dt_norm.weight 4, ssm_b_norm.weight 16, ssm_c_norm.weight 16";
const CONV: &str = "shortconv.conv.weight 3 d, shortconv.in_proj.weight d 192, shortconv.out_proj.weight d d";
/// Linear attention with a delta rule.
const DELTA: &str = "attn_qkv.weight d 128, attn_gate.weight d 64, ssm_conv1d.weight 4 128, ssm_dt.bias 4, \
     ssm_a 4, ssm_ba.weight d 8, ssm_norm.weight 16, ssm_out.weight 64 d";
const DELTA_KEYS: &str = "ssm.conv_kernel 4, ssm.inner_size 64, ssm.state_size 16, ssm.time_step_rank 4, \
     ssm.group_count 2, full_attention_interval 4";
const QKV_GATED: &str = "attn_q.weight d 256, attn_k.weight d k, attn_v.weight d k, attn_output.weight q d";
const TIME_MIX: &str = "time_mix_w0.weight d, time_mix_w1.weight d 32, time_mix_w2.weight 32 d, \
     time_mix_a0.weight d, time_mix_a1.weight d 32, time_mix_a2.weight 32 d, \
     time_mix_v0.weight d, time_mix_v1.weight d 32, time_mix_v2.weight 32 d, \
     time_mix_g1.weight d 32, time_mix_g2.weight 32 d, time_mix_lerp_fused.weight d 1 1 6, \
     time_mix_k_k.weight d, time_mix_k_a.weight d, time_mix_r_k.weight d, time_mix_key.weight d d, \
     time_mix_value.weight d d, time_mix_receptance.weight d d, time_mix_ln.weight d, time_mix_ln.bias d, \
     time_mix_output.weight d d";
const CHANNEL_MIX: &str =
    "channel_mix_lerp_k.weight d 1 1, channel_mix_key.weight d f, channel_mix_value.weight f d";

const DENSE_LEAD: &str = "leading_dense_block_count 1";
const SHARED_GATE: &str = "ffn_gate_inp_shexp.weight d";
const MOE: &str = "expert_count 4, expert_used_count 2, expert_feed_forward_length 192";
const MOE_SHARED: &str = "expert_shared_count 1, expert_shared_feed_forward_length 192";
const LATENT_KEYS: &str = "attention.q_lora_rank 32, attention.kv_lora_rank 32, rope.dimension_count 16";

/// Architectures whose writers add to the stream as they are: the rewritten file equals the ablation.
pub const ADDED: &[Spec] = &[
    wide("llama", &[NORMS, QKV, GATED]),
    Spec { variant: "biases", ..wide("llama", &[NORMS, QKV, QKV_B, OUT_B, GATED, GATE_B, FLAT_B]) },
    Spec { variant: "experts", keys: &[MOE], ..wide("llama", &[NORMS, QKV, OUT_B, EXPERTS]) },
    of("qwen2", &[NORMS, QKV, QKV_B, GATED]),
    Spec { keys: &[MOE, MOE_SHARED], ..of("qwen2moe", &[NORMS, QKV, QKV_B, EXPERTS, SHARED, SHARED_GATE]) },
    wide("qwen3", &[NORMS, QKV, QK_NORM, GATED]),
    Spec { keys: &[MOE], ..wide("qwen3moe", &[NORMS, QKV, QK_NORM, EXPERTS]) },
    Spec { outside: &[OUTPUT_NORM_B, OUTPUT_B], ..of("phi2", &[NORM_B, QKV, QKV_B, OUT_B, FLAT, FLAT_B]) },
    of("phi3", &[NORMS, FUSED, PAIRED]),
    Spec { head: Head::Tied, ..wide("gemma", &[NORMS, QKV, GATED]) },
    Spec {
        outside: &[OUTPUT_NORM_B, POSITIONS],
        ..classic("gpt2", &[NORMS_B, FUSED, FUSED_B, OUT_B, FLAT, FLAT_B])
    },
    Spec {
        variant: "parallel",
        keys: &["use_parallel_residual true"],
        ..classic("gptneox", &[NORMS_B, FUSED, FUSED_B, OUT_B, FLAT, FLAT_B])
    },
    Spec {
        variant: "sequential",
        keys: &["use_parallel_residual false"],
        ..classic("gptneox", &[NORMS_B, FUSED, FUSED_B, OUT_B, FLAT, FLAT_B])
    },
    Spec { variant: "one norm", n_head_kv: 1, ..classic("falcon", &[NORM_B, FUSED, FLAT]) },
    Spec {
        variant: "two norms",
        ..classic("falcon", &[NORM_B, "attn_norm_2.weight d, attn_norm_2.bias d", FUSED, FLAT])
    },
    Spec { n_head_kv: 2, ..classic("starcoder2", &[NORMS_B, QKV, QKV_B, OUT_B, FLAT, FLAT_B]) },
    Spec { variant: "sequential", ..classic("stablelm", &[NORMS_B, QKV, QKV_B, GATED]) },
    Spec { variant: "parallel", n_head_kv: 2, ..classic("stablelm", &[NORM_B, QKV, QK_NORM_EACH, GATED]) },
    Spec { head: Head::Tied, keys: &["logit_scale 0.5"], ..of("command-r", &[NORM, QKV, GATED]) },
    Spec { outside: &[], ..of("olmo", &[QKV, GATED]) },
    Spec {
        keys: &["logit_scale 2.0, residual_scale 0.7, embedding_scale 1.5, attention.scale 0.3"],
        ..wide("granite", &[NORMS, QKV, OUT_B, GATED, GATE_B, FLAT_B])
    },
    Spec {
        variant: "experts",
        keys: &["logit_scale 2.0, residual_scale 0.7", MOE, MOE_SHARED],
        ..wide("granite", &[NORMS, QKV, EXPERTS, SHARED])
    },
    of("internlm2", &[NORMS, QKV, GATED]),
    Spec {
        variant: "whole",
        n_head_kv: N_HEAD,
        keys: &[
            LATENT_KEYS,
            DENSE_LEAD,
            MOE,
            MOE_SHARED,
            "attention.key_length 32, attention.value_length 16",
        ],
        except: &[(0, &[NORMS, LATENT, UNFOLD, GATED])],
        ..of("deepseek2", &[NORMS, LATENT, UNFOLD, EXPERTS, SHARED])
    },
    Spec {
        variant: "split",
        n_head_kv: 1,
        keys: &[
            LATENT_KEYS,
            DENSE_LEAD,
            MOE,
            MOE_SHARED,
            "attention.key_length 48, attention.value_length 32",
            "attention.key_length_mla 32, attention.value_length_mla 16, expert_gating_func 2",
        ],
        except: &[(0, &[NORMS, LATENT, UNFOLD_SPLIT, GATED])],
        ..of("deepseek2", &[NORMS, LATENT, UNFOLD_SPLIT, EXPERTS, SHARED, ROUTER_B])
    },
    Spec {
        keys: &[MOE, "attention.sliding_window 16"],
        ..wide("gpt-oss", &[NORM_BETWEEN, QKV, QKV_B, OUT_B, SINKS, EXPERTS, EXPERTS_B])
    },
    wide("minicpm", &[NORMS, QKV, OUT_B, GATED, GATE_B, FLAT_B]),
    Spec {
        n_head_kv: N_HEAD,
        keys: &[LATENT_KEYS, "attention.key_length 32, attention.value_length 16"],
        ..of("minicpm3", &[NORMS, LATENT, UNFOLD, GATED])
    },
    Spec {
        head: Head::Tied,
        n_head_kv: N_HEAD,
        keys: &[
            "attention.kv_lora_rank 32, rope.dimension_count 16",
            "attention.key_length 32, attention.value_length 16",
        ],
        ..of("plm", &[NORMS, "attn_q.weight d 128", LATENT_KV, UNFOLD, FLAT])
    },
    wide("exaone", &[NORMS, QKV, GATED]),
    of("chatglm", &[NORMS, FUSED, FUSED_B, PAIRED]),
    of("xverse", &[NORMS, QKV, GATED]),
    wide("smollm3", &[NORMS, QKV, GATED]),
    wide("arcee", &[NORMS, QKV, FLAT]),
    wide("refact", &[NORMS, QKV, OUT_B, GATED, GATE_B, FLAT_B]),
    wide("ernie4_5", &[NORMS, QKV, OUT_B, GATED]),
    wide("pangu-embedded", &[NORMS, QKV, QKV_B, OUT_B, GATED]),
    wide("hunyuan-dense", &[NORMS, QKV, QK_NORM, GATED]),
    wide("seed_oss", &[NORM_BETWEEN, QKV, QKV_B, GATED]),
    Spec {
        keys: &["/xielu.alpha_n 0.8, /xielu.alpha_p 0.8, /xielu.beta 0.5, /xielu.eps 0.000001"],
        ..wide("apertus", &[NORMS, QKV, OUT_B, QK_NORM, FLAT])
    },
    Spec { n_head_kv: N_HEAD, ..of("qwen", &[NORMS, FUSED, FUSED_B, HALF_GATED]) },
    of("plamo", &[NORM, QKV, GATED]),
    Spec {
        head: Head::Tied,
        ..of("bitnet", &[NORMS, QKV, GATED, "attn_sub_norm.weight d, ffn_sub_norm.weight f"])
    },
    Spec { n_head_kv: 2, ..classic("nemotron", &[NORMS_B, QKV, OUT_B, FLAT, FLAT_B]) },
    Spec { n_head_kv: 2, ..classic("codeshell", &[NORMS_B, QKV, OUT_B, FLAT, FLAT_B]) },
    Spec { n_head_kv: 2, ..classic("orion", &[NORMS_B, QKV, GATED]) },
    Spec {
        outside: &[OUTPUT_NORM_B, POSITIONS],
        ..classic("starcoder", &[NORMS_B, FUSED, FUSED_B, OUT_B, FLAT, FLAT_B])
    },
    Spec {
        outside: &[OUTPUT_NORM_B, POSITIONS],
        keys: &["attention.max_alibi_bias 8.0, attention.clamp_kqv 4.0"],
        ..classic("mpt", &[NORMS_B, FUSED, FUSED_B, OUT_B, FLAT, FLAT_B])
    },
    Spec {
        keys: &["attention.max_alibi_bias 8.0"],
        ..classic("jais", &[NORMS_B, FUSED, FUSED_B, OUT_B, GATED, GATE_B, FLAT_B])
    },
    Spec {
        head: Head::Tied,
        keys: &["attention.sliding_window 16, logit_scale 0.5"],
        ..of("cohere2", &[NORM, QKV, GATED])
    },
    Spec { n_head_kv: N_HEAD, keys: &[MOE], ..of("olmoe", &[NORMS, QKV, QK_NORM_WHOLE, EXPERTS]) },
    Spec {
        outside: &[OUTPUT_NORM_B, OUTPUT_B],
        keys: &[MOE],
        ..of("phimoe", &[NORMS_B, QKV, OUT_B, EXPERTS])
    },
    Spec {
        keys: &[MOE, "attention.clamp_kqv 4.0"],
        ..of("dbrx", &["attn_norm.weight d, attn_output_norm.weight d", FUSED, EXPERTS])
    },
    Spec { keys: &[MOE], ..of("arctic", &[NORMS, QKV, SQUARE_GATED, "ffn_norm_exps.weight d", EXPERTS]) },
    Spec { keys: &[MOE, MOE_SHARED], ..wide("hunyuan-moe", &[NORMS, QKV, QK_NORM, EXPERTS, SHARED]) },
    Spec { keys: &[MOE, "expert_gating_func 1"], ..wide("smallthinker", &[NORMS, QKV, EXPERTS]) },
    Spec {
        keys: &[MOE, "expert_gating_func 2"],
        ..wide("minimax-m2", &[NORMS, QKV, QK_NORM_WHOLE, EXPERTS, ROUTER_B])
    },
    Spec {
        keys: &[MOE, MOE_SHARED, DENSE_LEAD],
        except: &[(0, &[NORMS, QKV, GATED])],
        ..of("deepseek", &[NORMS, QKV, EXPERTS, SHARED])
    },
    Spec {
        keys: &[MOE, MOE_SHARED, DENSE_LEAD],
        except: &[(0, &[NORM_BETWEEN, QKV, QKV_B, QK_NORM, GATED])],
        ..wide("glm4moe", &[NORM_BETWEEN, QKV, QKV_B, QK_NORM, EXPERTS, SHARED, ROUTER_B])
    },
    Spec {
        n_head_kv: N_HEAD,
        keys: &[MOE, MOE_SHARED, DENSE_LEAD, "expert_gating_func 2"],
        except: &[(0, &[NORMS, QKV, QK_NORM, GATED])],
        ..wide("dots1", &[NORMS, QKV, QK_NORM, EXPERTS, SHARED, ROUTER_B])
    },
    Spec {
        keys: &[MOE, MOE_SHARED, DENSE_LEAD, "expert_gating_func 2, attention.sliding_window 16"],
        except: &[(0, &[NORMS, QKV, QK_NORM, GATED])],
        ..wide("exaone-moe", &[NORMS, QKV, QK_NORM, EXPERTS, SHARED, ROUTER_B])
    },
    Spec { keys: &[MOE, "interleave_moe_layer_step 1"], ..wide("llama4", &[NORMS, QKV, EXPERTS, SHARED]) },
    Spec { keys: &[SSM_KEYS], ..of("mamba", &[NORM, SSM]) },
    Spec { keys: &[SSM_KEYS, "ssm.group_count 1"], ..of("mamba2", &[NORM, SSM_HEADS]) },
    Spec {
        keys: &[SSM_KEYS, "ssm.group_count 1"],
        ..wide("falcon-h1", &["attn_norm.weight d, ffn_norm d", SSM_HEADS, QKV, GATED, GATE_B, FLAT_B])
    },
    Spec {
        keys: &[SSM_KEYS, "attention.head_count_kv 0/2/0/2"],
        except: &[(0, &[NORMS, SSM, SSM_NORMS, GATED]), (2, &[NORMS, SSM, SSM_NORMS, GATED])],
        ..of("jamba", &[NORMS, QKV, GATED])
    },
    Spec {
        keys: &[
            SSM_KEYS,
            "ssm.group_count 1, attention.head_count_kv 0/2/0/2, residual_scale 0.7, logit_scale 2.0",
        ],
        except: &[(0, &[NORMS, SSM_HEADS, GATED]), (2, &[NORMS, SSM_HEADS, GATED])],
        ..of("granitehybrid", &[NORMS, QKV, GATED])
    },
    Spec {
        outside: &["token_embd_norm.weight d"],
        keys: &["shortconv.l_cache 3, attention.head_count_kv 0/2/0/2, leading_dense_block_count 4"],
        except: &[(0, &[NORMS, CONV, GATED]), (2, &[NORMS, CONV, GATED])],
        ..of("lfm2", &[NORMS, QKV, QK_NORM, GATED])
    },
    Spec {
        keys: &[DELTA_KEYS, MOE, MOE_SHARED],
        except: &[(3, &[NORM_BETWEEN, QKV_GATED, QK_NORM, EXPERTS, SHARED, SHARED_GATE])],
        ..wide("qwen3next", &[NORM_BETWEEN, DELTA, EXPERTS, SHARED, SHARED_GATE])
    },
];

/// Architectures with a norm between a writer and the stream: the rewritten file keeps the direction out of the stream,
/// and the length of what it adds differs from the ablation's.
pub const NORMED: &[Spec] = &[
    Spec {
        outside: &[OUTPUT_NORM_B, EMBEDDING_NORM],
        ..classic("bloom", &[NORMS_B, FUSED, FUSED_B, OUT_B, FLAT, FLAT_B])
    },
    Spec { head: Head::Tied, ..wide("gemma2", &[NORMS, QKV, NORMS_AFTER, GATED]) },
    Spec {
        keys: &["attention.sliding_window 16"],
        ..wide("gemma3", &[NORMS, QKV, QK_NORM, NORMS_AFTER, GATED])
    },
    of("olmo2", &[QKV, QK_NORM_WHOLE, NORMS_AFTER, GATED]),
    wide("glm4", &[NORMS, QKV, QKV_B, NORMS_AFTER, PAIRED]),
    of("exaone4", &[QKV, QK_NORM, NORMS_AFTER, GATED]),
    Spec {
        variant: "experts",
        keys: &[MOE],
        ..of("grok", &[NORMS, QKV, "attn_output_norm.weight d, layer_output_norm.weight d", EXPERTS])
    },
    Spec {
        variant: "both",
        keys: &[MOE],
        ..of("grok", &[NORMS, QKV, "attn_output_norm.weight d, post_ffw_norm.weight d", GATED, EXPERTS])
    },
    Spec {
        keys: &[MOE, MOE_SHARED, DENSE_LEAD, "expert_gating_func 2, attention.sliding_window 16"],
        except: &[(0, &[NORMS, NORMS_AFTER, QKV, QK_NORM, "attn_gate.weight d q", GATED])],
        ..wide(
            "afmoe",
            &[NORMS, NORMS_AFTER, QKV, QK_NORM, "attn_gate.weight d q", EXPERTS, SHARED, ROUTER_B],
        )
    },
    Spec {
        outside: &[OUTPUT_NORM_B, EMBEDDING_NORM],
        // Smaller heads leave ggml's kernel with values it never wrote.
        keys: &[
            "wkv.head_size 64, attention.decay_lora_rank 32, attention.iclr_lora_rank 32",
            "attention.value_residual_mix_lora_rank 32, attention.gate_lora_rank 32",
        ],
        ..classic("rwkv7", &[NORM_B, "attn_norm_2.weight d, attn_norm_2.bias d", TIME_MIX, CHANNEL_MIX])
    },
];
