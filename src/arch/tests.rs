//! Small headers, placed and refused.

use super::*;
use crate::gguf::Writer as File;
use crate::quant::GgmlType;

const N: u64 = 64;

fn base(arch: &str) -> File {
    File::new()
        .key("general.architecture", arch)
        .key(format!("{arch}.embedding_length"), N as u32)
        .key(format!("{arch}.block_count"), 1u32)
        .tensor("token_embd.weight", &[N, 96], GgmlType::F32)
}

fn block(file: File) -> File {
    file.tensor("blk.0.attn_q.weight", &[N, N], GgmlType::F32)
        .tensor("blk.0.attn_k.weight", &[N, N], GgmlType::F32)
        .tensor("blk.0.attn_v.weight", &[N, N], GgmlType::F32)
        .tensor("blk.0.attn_output.weight", &[N, N], GgmlType::F32)
        .tensor("blk.0.ffn_up.weight", &[N, N], GgmlType::F32)
}

fn dense_block(file: File) -> File {
    block(file).tensor("blk.0.ffn_down.weight", &[N, N], GgmlType::F32)
}

#[allow(clippy::needless_pass_by_value)]
fn parse(file: File) -> Gguf {
    let mut bytes = file.header().unwrap();
    bytes.resize(bytes.len() + (1 << 20), 0);
    Gguf::parse(&bytes).unwrap()
}

fn names(file: File) -> Result<Vec<String>, ArchError> {
    writers(&parse(file)).map(|all| all.into_iter().map(|w| w.tensor).collect())
}

#[test]
fn square_readers_are_not_writers() {
    let found = names(dense_block(base("llama"))).unwrap();
    assert_eq!(found, ["token_embd.weight", "blk.0.attn_output.weight", "blk.0.ffn_down.weight"]);
}

#[test]
fn biases_follow_their_matrices() {
    let file = dense_block(base("llama"))
        .tensor("blk.0.attn_output.bias", &[N], GgmlType::F32)
        .tensor("blk.0.ffn_down.bias", &[N], GgmlType::F32)
        .tensor("blk.0.attn_q.bias", &[N], GgmlType::F32);
    let all = writers(&parse(file)).unwrap();
    assert_eq!(all.iter().filter(|w| w.axis == Axis::Bias).count(), 2);
    assert_eq!(all.len(), 5);
}

#[test]
fn experts_are_placed_and_only_where_they_belong() {
    let experts = |file: File| block(file).tensor("blk.0.ffn_down_exps.weight", &[N, N, 4], GgmlType::F32);
    for arch in ["llama", "qwen3moe", "granite", "deepseek2"] {
        assert!(names(experts(base(arch))).unwrap().contains(&"blk.0.ffn_down_exps.weight".into()), "{arch}");
    }
    let shared = experts(base("qwen2moe")).tensor("blk.0.ffn_down_shexp.weight", &[32, N], GgmlType::F32);
    assert_eq!(names(shared).unwrap().len(), 4);
    assert!(matches!(names(experts(base("qwen2"))), Err(ArchError::Missing { .. })));
    assert!(matches!(names(dense_block(base("qwen3moe"))), Err(ArchError::Missing { .. })));
    let both = dense_block(base("qwen2")).tensor("blk.0.ffn_down_exps.weight", &[N, N, 4], GgmlType::F32);
    assert!(matches!(names(both), Err(ArchError::Unplaced { .. })));
}

#[test]
fn post_norms_are_named() {
    let file = |norms: bool| {
        let file = dense_block(base("gemma2"));
        if !norms {
            return file;
        }
        file.tensor("blk.0.post_attention_norm.weight", &[N], GgmlType::F32).tensor(
            "blk.0.post_ffw_norm.weight",
            &[N],
            GgmlType::F32,
        )
    };
    let all = writers(&parse(file(true))).unwrap();
    assert_eq!(all[1].norm_after.as_deref(), Some("blk.0.post_attention_norm.weight"));
    assert_eq!(all[2].norm_after.as_deref(), Some("blk.0.post_ffw_norm.weight"));
    assert!(all.iter().all(|w| !w.norm_centred));
    assert!(matches!(writers(&parse(file(false))), Err(ArchError::Missing { .. })));
    let stray = dense_block(base("llama")).tensor("blk.0.post_ffw_norm.weight", &[N], GgmlType::F32);
    assert!(matches!(names(stray), Err(ArchError::Unplaced { .. })));
}

#[test]
fn bloom_has_a_centred_norm_behind_its_embedding() {
    let file = dense_block(base("bloom")).tensor("token_embd_norm.weight", &[N], GgmlType::F32).tensor(
        "token_embd_norm.bias",
        &[N],
        GgmlType::F32,
    );
    let all = writers(&parse(file)).unwrap();
    assert!(all[0].norm_centred && all[0].norm_after.is_some());
    assert_eq!((all[1].kind, all[1].norm_after.as_ref()), (WriterKind::EmbeddingNormBias, None));
}

#[test]
fn positions_are_written_by_gpt2() {
    let file = || dense_block(base("gpt2"));
    assert!(matches!(names(file()), Err(ArchError::Missing { .. })));
    let found = names(file().tensor("position_embd.weight", &[N, 32], GgmlType::F32)).unwrap();
    assert_eq!(found[1], "position_embd.weight");
}

#[test]
fn strangers_are_listed() {
    let strangers: [Tensor<'_>; 7] = [
        ("blk.0.ffn_down.0.weight", &[32, N]),
        ("blk.0.cross_output.weight", &[32, N]),
        ("blk.0.mystery_exps.weight", &[32, N, 4]),
        ("blk.0.mystery.bias", &[N]),
        ("blk.7.ffn_down.weight", &[32, N]),
        ("per_layer_model_proj.weight", &[N, 32]),
        ("token_types.weight", &[N, 2]),
    ];
    for (name, ne) in strangers {
        let error = names(dense_block(base("llama")).tensor(name, ne, GgmlType::F32)).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
        assert!(matches!(error, ArchError::Unplaced { .. }));
    }
}

#[test]
fn blocks_for_further_tokens_are_left_alone() {
    let file = dense_block(base("deepseek2")).key("deepseek2.nextn_predict_layers", 1u32).tensor(
        "blk.1.nextn.eh_proj.weight",
        &[2 * N, N],
        GgmlType::F32,
    );
    // One block in all, and that one is for further tokens: only the embedding is left.
    assert_eq!(names(file).unwrap_err().to_string().matches("blk.1.nextn").count(), 1);
    let file = File::new()
        .key("general.architecture", "deepseek2")
        .key("deepseek2.embedding_length", N as u32)
        .key("deepseek2.block_count", 2u32)
        .key("deepseek2.nextn_predict_layers", 1u32)
        .tensor("token_embd.weight", &[N, 96], GgmlType::F32);
    let file = dense_block(file).tensor("blk.1.nextn.eh_proj.weight", &[2 * N, N], GgmlType::F32);
    assert_eq!(names(file).unwrap().len(), 3);
}

#[test]
fn refusals_name_what_is_wrong() {
    let unknown = names(base("martian")).unwrap_err().to_string();
    assert!(unknown.contains("\"martian\"") && unknown.contains("--partial"), "{unknown}");
    let unserved = names(base("gemma3n")).unwrap_err().to_string();
    assert!(unserved.contains("several streams") && unserved.contains("--partial"), "{unserved}");
    let split = names(dense_block(base("llama")).key("split.count", 3u32));
    assert!(matches!(split, Err(ArchError::Split { count: 3 })));
    let gone = names(base("llama").tensor("blk.0.attn_output.weight", &[N, N], GgmlType::F32));
    assert!(gone.unwrap_err().to_string().contains("blk.0.ffn_down.weight or blk.0.ffn_down_exps.weight"));
    let shape = names(block(base("llama")).tensor("blk.0.ffn_down.weight", &[N, 32], GgmlType::F32));
    assert!(matches!(shape, Err(ArchError::Shape { .. })));
    let endless = File::new()
        .key("general.architecture", "llama")
        .key("llama.embedding_length", N as u32)
        .key("llama.block_count", u32::MAX)
        .tensor("token_embd.weight", &[N, 96], GgmlType::F32);
    assert!(matches!(names(endless), Err(ArchError::Blocks { n_block: 4_294_967_295, .. })));
}

#[test]
fn heads_are_told_apart() {
    assert_eq!(head(&parse(base("gemma2"))).unwrap(), Head::Tied);
    assert_eq!(head(&parse(base("llama"))).unwrap(), Head::OwnOrTied);
    assert!(tied_embeddings(&parse(base("llama"))));
    assert!(!tied_embeddings(&parse(base("llama").tensor("output.weight", &[N, 96], GgmlType::F32))));
}

/// A tensor's name behind `blk.0.`, and its shape.
type Tensor<'a> = (&'a str, &'a [u64]);

fn with(file: File, tensors: &[Tensor<'_>]) -> File {
    tensors.iter().fold(file, |file, (name, ne)| file.tensor(format!("blk.0.{name}"), ne, GgmlType::F32))
}

fn writer(file: File, name: &str) -> Writer {
    let all = writers(&parse(file)).unwrap();
    all.into_iter().find(|w| w.tensor == name).unwrap_or_else(|| panic!("{name} is no writer"))
}

#[test]
fn the_bias_of_each_expert_is_a_row() {
    let file = with(
        block(base("gpt-oss")),
        &[
            ("attn_output.bias", &[N]),
            ("post_attention_norm.weight", &[N]),
            ("ffn_down_exps.weight", &[N, N, 4]),
            ("ffn_down_exps.bias", &[N, 4]),
        ],
    );
    let all = writers(&parse(file)).unwrap();
    let of = |kind| all.iter().find(|w| w.kind == kind).unwrap();
    assert_eq!(of(WriterKind::FfnDownExpertsBias).axis, Axis::Row);
    // Here the norm of this name stands in front of the FFN.
    assert!(all.iter().all(|w| w.norm_after.is_none()));
    assert_eq!(all.len(), 5);
}

#[test]
fn what_stands_in_the_place_of_attention_is_placed() {
    let down: Tensor<'_> = ("ffn_down.weight", &[N, N]);
    let cases: [(&str, &str, &[Tensor<'_>]); 7] = [
        ("qwen35", "ssm_out", &[down, ("post_attention_norm.weight", &[N]), ("ssm_dt.bias", &[N])]),
        ("jamba", "ssm_out", &[down, ("ssm_a", &[N, N]), ("ssm_d", &[N])]),
        ("mamba", "ssm_out", &[("ssm_in.weight", &[N, 2 * N]), ("ssm_x.weight", &[2 * N, N])]),
        ("nemotron_h", "ssm_out", &[("ssm_norm.weight", &[N, 2])]),
        ("lfm2", "shortconv.out_proj", &[down, ("shortconv.conv.weight", &[3, N])]),
        ("arwkv7", "time_mix_output", &[down, ("time_mix_w2.weight", &[8, N])]),
        ("rwkv6qwen2", "time_mix_output", &[down, ("time_mix_value.weight", &[N, N])]),
    ];
    for (arch, of, more) in cases {
        let name = format!("{of}.weight");
        let file = with(with(base(arch), &[(&name, &[2 * N, N])]), more);
        assert_eq!(writer(file, &format!("blk.0.{name}")).kind.group(), "ssm", "{arch}");
        // Where the architecture knows it, and nowhere else.
        let stray = with(dense_block(base("llama")), &[(&name, &[2 * N, N])]);
        assert!(matches!(names(stray), Err(ArchError::Unplaced { .. })), "{of}");
        let gone = with(base(arch), more);
        assert!(names(gone).unwrap_err().to_string().contains(&format!("blk.0.{name}")), "{arch}");
    }
    let both = with(dense_block(base("falcon-h1")), &[("ssm_out.weight", &[N, N])]);
    assert_eq!(names(both).unwrap().len(), 4);
    assert!(matches!(names(dense_block(base("falcon-h1"))), Err(ArchError::Missing { .. })));
}

#[test]
fn rwkv7_writes_through_its_mixes() {
    let file = base("rwkv7").tensor("token_embd_norm.weight", &[N], GgmlType::F32).tensor(
        "token_embd_norm.bias",
        &[N],
        GgmlType::F32,
    );
    let file = with(
        file,
        &[
            ("time_mix_output.weight", &[N, N]),
            ("time_mix_lerp_fused.weight", &[N, 1, 1, 6]),
            ("channel_mix_key.weight", &[N, N]),
            ("channel_mix_value.weight", &[N, N]),
            ("attn_norm_2.bias", &[N]),
        ],
    );
    let all = writers(&parse(file)).unwrap();
    assert_eq!(all.len(), 4);
    assert!(all[0].norm_centred && all[3].kind == WriterKind::ChannelMixValue);
}

#[test]
fn narrow_experts_write_through_the_matrix_behind_them() {
    for (arch, up) in [("nemotron_h_moe", "ffn_latent_up.weight"), ("kimi-k3", "ffn_routed_up.weight")] {
        // As wide as the stream, to show that the shape does not decide.
        let experts: Tensor<'_> = ("ffn_down_exps.weight", &[N, N, 4]);
        let found = names(with(block(base(arch)), &[experts, (up, &[32, N])])).unwrap();
        assert!(found.contains(&format!("blk.0.{up}")) && !found.contains(&format!("blk.0.{}", experts.0)));
        let found = names(with(block(base(arch)), &[experts])).unwrap();
        assert!(found.contains(&format!("blk.0.{}", experts.0)));
    }
}

#[test]
fn norms_have_the_names_their_architecture_gives_them() {
    let attention = |file| writer(file, "blk.0.attn_output.weight").norm_after;
    let bare: [Tensor<'_>; 2] = [("post_attention_norm", &[N]), ("post_ffw_norm", &[N])];
    assert_eq!(attention(with(dense_block(base("plamo3")), &bare)).unwrap(), "blk.0.post_attention_norm");

    let norms: [Tensor<'_>; 2] = [("attn_norm.weight", &[N]), ("ffn_norm.weight", &[N])];
    let chameleon = || with(dense_block(base("chameleon")), &norms);
    assert_eq!(attention(chameleon()), None);
    assert_eq!(attention(chameleon().key("chameleon.swin_norm", true)).unwrap(), "blk.0.attn_norm.weight");

    let experts: Tensor<'_> = ("ffn_down_exps.weight", &[N, N, 4]);
    let norm: Tensor<'_> = ("attn_output_norm.weight", &[N]);
    assert_eq!(attention(with(block(base("dbrx")), &[experts, norm])), None);
    for last in ["layer_output_norm.weight", "post_ffw_norm.weight"] {
        let grok = with(block(base("grok")), &[experts, norm, (last, &[N])]);
        let norm = writer(grok, "blk.0.ffn_down_exps.weight").norm_after;
        assert_eq!(norm.unwrap(), format!("blk.0.{last}"));
    }
    let stray = with(dense_block(base("llama")), &[norm]);
    assert!(matches!(names(stray), Err(ArchError::Unplaced { .. })));
}

#[test]
fn gemma4_norms_its_halves_twice_where_it_has_experts() {
    let dense: [Tensor<'_>; 5] = [
        ("post_attention_norm.weight", &[N]),
        ("post_ffw_norm.weight", &[N]),
        ("post_norm.weight", &[N]),
        ("inp_gate.weight", &[N, 8]),
        ("proj.weight", &[8, N]),
    ];
    let file = || with(dense_block(base("gemma4")), &dense);
    let down = writer(file(), "blk.0.ffn_down.weight");
    assert_eq!(down.norms().collect::<Vec<_>>(), ["blk.0.post_ffw_norm.weight"]);
    let proj = writer(file(), "blk.0.proj.weight");
    assert_eq!(proj.norms().collect::<Vec<_>>(), ["blk.0.post_norm.weight"]);

    let experts: [Tensor<'_>; 6] = [
        ("ffn_gate_inp.weight", &[N, 4]),
        ("ffn_gate_inp.scale", &[N]),
        ("ffn_down_exps.weight", &[N, N, 4]),
        ("pre_ffw_norm_2.weight", &[N]),
        ("post_ffw_norm_1.weight", &[N]),
        ("post_ffw_norm_2.weight", &[N]),
    ];
    for (of, inner) in [("ffn_down", "post_ffw_norm_1"), ("ffn_down_exps", "post_ffw_norm_2")] {
        let writer = writer(with(file(), &experts), &format!("blk.0.{of}.weight"));
        let expected = ["blk.0.post_ffw_norm.weight".to_string(), format!("blk.0.{inner}.weight")];
        assert_eq!(writer.norms().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn second_sets_of_matrices_are_placed() {
    let images: [Tensor<'_>; 2] = [("vis_attn_output.weight", &[N, N]), ("vis_down.weight", &[N, N])];
    assert_eq!(names(with(dense_block(base("cogvlm")), &images)).unwrap().len(), 5);
    let adapters: [Tensor<'_>; 4] = [
        ("attn_output.lora_a", &[N, 8, 3]),
        ("attn_output.lora_b", &[8, N, 3]),
        ("ffn_up.lora_b", &[8, N, 3]),
        ("ffn_down.lora_b", &[8, N, 3]),
    ];
    let found = names(with(dense_block(base("graniteswitch")), &adapters)).unwrap();
    assert!(
        found.contains(&"blk.0.attn_output.lora_b".into()) && found.contains(&"blk.0.ffn_down.lora_b".into())
    );
    assert_eq!(found.len(), 5);
    let both: Tensor<'_> = ("ffn_down_exps.weight", &[N, N, 4]);
    assert_eq!(names(with(dense_block(base("arctic")), &[both])).unwrap().len(), 4);
    assert!(matches!(names(dense_block(base("arctic"))), Err(ArchError::Missing { .. })));
    let groups: Tensor<'_> = ("ffn_down_chexps.weight", &[N, N, 2]);
    assert_eq!(names(with(block(base("grovemoe")), &[both, groups])).unwrap().len(), 4);
    assert!(matches!(names(with(block(base("grovemoe")), &[both])), Err(ArchError::Missing { .. })));
}

#[test]
fn halves_may_be_missing_with_their_norms() {
    let attention_only = || with(block(base("deci")), &[("attn_norm.weight", &[N])]);
    assert_eq!(names(attention_only()).unwrap().len(), 2);
    let broken = with(attention_only(), &[("ffn_norm.weight", &[N])]);
    assert!(matches!(names(broken), Err(ArchError::Missing { .. })));
}

#[test]
fn names_may_mean_something_else() {
    let lfm2 = with(
        base("lfm2").tensor("token_embd_norm.weight", &[N], GgmlType::F32),
        &[("shortconv.out_proj.weight", &[N, N]), ("ffn_down.weight", &[N, N])],
    );
    // The norm in front of the head.
    assert!(writers(&parse(lfm2)).unwrap().iter().all(|w| w.norm_after.is_none()));
    // A scale is one number; a norm inside the attention stands in front of the output matrix.
    let bitnet = with(
        dense_block(base("bitnet")),
        &[("attn_output.scale", &[1]), ("attn_sub_norm.weight", &[N]), ("ffn_sub_norm.weight", &[N])],
    );
    assert!(writers(&parse(bitnet)).unwrap().iter().all(|w| w.norm_after.is_none()));
}

#[test]
fn loops_through_a_norm_are_refused() {
    let file = |loops: u32| dense_block(base("nanbeige")).key("nanbeige.num_loops", loops);
    assert_eq!(names(file(1)).unwrap().len(), 3);
    assert!(names(file(2)).unwrap_err().to_string().contains("output_norm"));
    assert_eq!(names(file(2).key("nanbeige.skip_loop_final_norm", true)).unwrap().len(), 3);
}

#[test]
fn a_split_model_read_as_one_is_whole() {
    let file = |n: u16| {
        dense_block(base("llama")).key("split.count", Value::U16(3)).key("split.tensors.count", i32::from(n))
    };
    assert_eq!(names(file(7)).unwrap().len(), 3);
    assert!(matches!(names(file(21)), Err(ArchError::Split { count: 3 })));
}

#[test]
fn coverage_tells_everything_at_once() {
    let file = with(
        base("gemma2"),
        &[
            ("attn_output.weight", &[N, 32]),
            ("ffn_down.weight", &[32, N]),
            ("post_attention_norm.weight", &[N]),
            ("mystery.weight", &[32, N]),
        ],
    );
    let found = coverage(&parse(file)).unwrap();
    assert!(!found.is_complete() && found.standing == Standing::Known);
    assert_eq!(found.writers.iter().map(|w| w.tensor.as_str()).collect::<Vec<_>>(), ["token_embd.weight"]);
    let gap = |gaps: &[Gap]| gaps.iter().map(|gap| gap.tensor.clone()).collect::<Vec<_>>();
    assert_eq!(gap(&found.missing), ["blk.0.post_ffw_norm.weight"]);
    assert_eq!(gap(&found.misshapen), ["blk.0.attn_output.weight"]);
    assert_eq!(found.misshapen[0].expected.as_deref(), Some("[n_in, 64]"));
    // Without its norm a writer has no place, nor has a norm without its writer.
    let unplaced = ["blk.0.ffn_down.weight", "blk.0.post_attention_norm.weight", "blk.0.mystery.weight"];
    assert_eq!(gap(&found.unplaced), unplaced);
    assert_eq!((found.unplaced[2].block, found.unplaced[2].shape.as_deref()), (Some(0), Some(&[32, N][..])));
    assert!(coverage(&parse(dense_block(base("llama")))).unwrap().is_complete());
}

#[test]
fn what_can_be_placed_is_given_in_part() {
    for (arch, standing) in [("martian", Standing::Unknown), ("llama", Standing::Known)] {
        let file = with(
            dense_block(base(arch)),
            &[
                ("attn_output.bias", &[N]),
                ("ffn_down_shexp.weight", &[32, N]),
                ("ffn_down_exps.weight", &[32, N, 4]),
                ("wormhole.weight", &[N, N]),
            ],
        );
        let gguf = parse(file);
        assert_eq!(coverage(&gguf).unwrap().standing, standing);
        let part = partial_writers(&gguf).unwrap();
        assert_eq!(part.len(), 6);
        assert!(part.iter().all(|w| w.norms().next().is_none()));
        let error = writers(&gguf).unwrap_err().to_string();
        assert!(error.contains("--partial"), "{error}");
    }
    // What has another shape is left out.
    let odd = with(block(base("martian")), &[("ffn_down.weight", &[N, 32])]);
    assert_eq!(partial_writers(&parse(odd)).unwrap().len(), 2);
}

#[test]
fn long_lists_are_cut() {
    let file = File::new()
        .key("general.architecture", "llama")
        .key("llama.embedding_length", N as u32)
        .key("llama.block_count", 20u32);
    let file = (0..20).fold(file.tensor("token_embd.weight", &[N, 96], GgmlType::F32), |file, il| {
        file.tensor(format!("blk.{il}.attn_output.weight"), &[N, N], GgmlType::F32)
    });
    let error = names(file).unwrap_err().to_string();
    assert!(error.contains("blk.9.ffn_down.weight") && error.contains("and 10 more"), "{error}");
    assert!(!error.contains("blk.10.ffn_down.weight"), "{error}");
}

#[test]
fn biases_are_offered_where_llama_cpp_adds_them() {
    let slot = |file: File| bias_slot(&parse(file), 0).unwrap();
    let down = || Some("blk.0.ffn_down.bias".to_string());
    let attention = || Some("blk.0.attn_output.bias".to_string());
    let experts: Tensor<'_> = ("ffn_down_exps.weight", &[N, N, 4]);
    assert_eq!(slot(dense_block(base("llama"))), down());
    assert_eq!(slot(with(block(base("llama")), &[experts])), attention());
    assert_eq!(slot(with(dense_block(base("llama")), &[("ffn_down.scale", &[1])])), attention());
    assert_eq!(slot(with(block(base("gpt-oss")), &[experts])), attention());
    assert_eq!(slot(dense_block(base("apertus"))), attention());
    assert_eq!(slot(dense_block(base("falcon-h1"))), down());
    // No slot; one that the graph does not use; a scale or a norm behind it.
    for arch in ["qwen2", "llada", "ernie4_5", "granite", "gemma2"] {
        assert_eq!(slot(dense_block(base(arch))), None, "{arch}");
    }
    assert_eq!(bias_slot(&parse(dense_block(base("llama"))), 1).unwrap(), None);
    assert!(matches!(bias_slot(&parse(base("t5")), 0), Err(ArchError::Unserved { .. })));
}

#[test]
fn biases_belong_to_matrices_that_write() {
    for spec in TABLE {
        for of in spec.biases {
            let name = format!("{of}.bias");
            let place = table::PLACES.iter().find(|place| place.name == name).unwrap();
            assert!(spec.has(of) && place.kind.group() == "bias", "{}: {of}", spec.name);
            assert!(spec.post == table::Post::No, "{}: a norm stands behind the bias", spec.name);
        }
        for of in spec.needs.iter().flat_map(|group| *group).chain(spec.also) {
            assert!(table::PLACES.iter().any(|place| place.of == *of), "{}: {of}", spec.name);
        }
    }
    assert!(table::PLACES.iter().all(|place| WriterKind::GROUPS.contains(&place.kind.group())));
}
