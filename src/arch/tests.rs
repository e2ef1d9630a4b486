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
    let strangers: [(&str, &[u64]); 7] = [
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

/// The names of `LLM_ARCH_NAMES` in the pinned llama.cpp, `(unknown)` left out. To take them anew, in its folder:
/// `sed -n '/LLM_ARCH_NAMES/,/^};/p' src/llama-arch.cpp | grep -o '"[^"]*" *}' | tr -d '"} '`
const LLAMA_CPP: &str = "
    clip llama llama4 deci falcon grok gpt2 gptj gptneox mpt baichuan starcoder refact bert modern-bert nomic-bert
    nomic-bert-moe neo-bert jina-bert-v2 jina-bert-v3 eurobert bloom stablelm qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe
    qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe clef qwen4exp phi2 phi3 phimoe plamo plamo2 plamo3 codeshell orion
    internlm2 minicpm minicpm3 gemma gemma2 gemma3 gemma3n gemma4 gemma4-assistant gemma-embedding starcoder2 mamba
    mamba2 maple jamba falcon-h1 xverse command-r cohere2 cohere2moe dbrx olmo olmo2 olmoe muse-glimmer openelm arctic
    deepseek deepseek2 deepseek2-ocr deepseek32 deepseek4 chatglm glm4 glm4moe glm-dsa bitnet t5 t5encoder jais jais2
    nemotron nemotron_h nemotron_h_moe exaone exaone4 exaone-moe rwkv6 rwkv6qwen2 rwkv7 arwkv7 granite granitemoe
    granitehybrid graniteswitch granite_swa chameleon wavtokenizer-dec plm bailingmoe bailingmoe2 bailingmoe3 dots1
    dots3note arcee afmoe laguna ernie4_5 ernie4_5-moe hunyuan-moe hunyuan-dense hunyuan_vl hy_v3 hy_v4 smollm3 gpt-oss
    lfm2 lfm2moe dream smallthinker llada llada-moe seed_oss grovemoe apertus minimax-01 hrm_text minimax-m2 minimax-m3
    cogvlm rnd1 pangu-embedded mistral3 eagle3 dflash mistral4 paddleocr mimo2 step35 spark2_5 llama-embed maincoder
    kimi-linear kimi-k3 glm5-next talkie mellum nanbeige qwen3tts pockettts";

#[test]
fn every_architecture_of_llama_cpp_is_placed_once() {
    let mut theirs: Vec<&str> = LLAMA_CPP.split_whitespace().collect();
    let mut ours: Vec<&str> = known().chain(table::UNSERVED.iter().map(|(name, _)| *name)).collect();
    theirs.sort_unstable();
    ours.sort_unstable();
    assert_eq!(ours, theirs);
}
