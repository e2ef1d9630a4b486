//! The tests' own forward pass agrees with llama.cpp, plain and with each edit of the residual stream.
//!
//! llama.cpp is driven here without ggsteer, and an edit is given to it as edited weights: ablation as a model whose
//! writes are orthogonal to the direction, addition as a bias of the block's last matrix.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::OnceLock;

use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED;

mod support;

use support::forward::{Edit, Rows, forward};
use support::tiny::{Arch, IM_END, IM_START, Model, N_VOCAB, Spec, Tensor, big, unit};
use support::writer::Type;

/// llama.cpp and the oracle may differ by this part of the largest logit. gpt2's GELU is rounded to f16, so a hidden
/// value on the edge between two of them may fall to either side.
fn tolerance(arch: Arch) -> f64 {
    if arch == Arch::Gpt2 { 1e-4 } else { 2e-6 }
}

/// 24 tokens, a few of them special.
const TOKENS: [i32; 24] = [
    IM_START, 117, 115, 259, 10, 71, 256, 257, 111, 32, 119, 261, 108, 100, 263, 46, IM_END, 10, IM_START,
    97, 258, 0, 255, 10,
];

#[test]
fn llama_is_the_same_in_both() {
    for tied in [false, true] {
        assert_same(&Model::random(Spec { tied, ..Spec::new(Arch::Llama) }), Edit::default());
    }
}

#[test]
fn qwen2_is_the_same_in_both() {
    for tied in [false, true] {
        assert_same(&Model::random(Spec { tied, ..Spec::new(Arch::Qwen2) }), Edit::default());
    }
}

#[test]
fn gpt2_is_the_same_in_both() {
    for tied in [false, true] {
        assert_same(&Model::random(Spec { tied, ..Spec::new(Arch::Gpt2) }), Edit::default());
    }
}

#[test]
fn other_sizes_are_the_same_in_both() {
    let spec = Spec {
        n_embd: 96,
        n_head: 3,
        n_head_kv: 1,
        n_ff: 160,
        n_layer: 4,
        seed: 7,
        ..Spec::new(Arch::Llama)
    };
    assert_same(&Model::random(spec), Edit::default());
}

#[test]
fn ablating_the_stream_equals_orthogonal_weights() {
    for arch in Arch::ALL {
        let model = Model::random(Spec::new(arch)).untied();
        let r = unit(model.spec.n_embd, 11);
        let ablated = forward(&model, &TOKENS, Edit { ablate: Some(&r), ..Edit::default() });
        let written = llama_cpp_logits(&model.clone().orthogonalized(&r), &TOKENS);
        assert_close(&written, &ablated.logits, arch);
        let untouched = forward(&model, &TOKENS, Edit::default());
        assert!(difference(&untouched.logits, &ablated.logits) > 0.01, "{arch:?}: the ablation does nothing");
        for rows in std::iter::once(&ablated.embedding).chain(&ablated.ffn_inp).chain(&ablated.l_out) {
            for x in rows {
                let along: f32 = x.iter().zip(&r).map(|(x, r)| x * r).sum();
                assert!(along.abs() < 1e-5, "{arch:?}: {along} is left along the direction");
            }
        }
    }
}

#[test]
fn adding_to_the_stream_equals_a_bias() {
    for arch in [Arch::Llama, Arch::Gpt2] {
        let mut model = Model::random(Spec::new(arch));
        let (il, coefficient) = (1, 3.5);
        let v = unit(model.spec.n_embd, 12);
        let added = forward(&model, &TOKENS, Edit { add: Some((il, &v, coefficient)), ..Edit::default() });
        let untouched = forward(&model, &TOKENS, Edit::default());
        assert!(difference(&untouched.logits, &added.logits) > 0.01, "{arch:?}: the addition does nothing");

        let name = format!("blk.{il}.ffn_down.bias");
        if model.find(&name).is_none() {
            let data = vec![0.0; v.len()];
            model.tensors.push(Tensor { name: name.clone(), ne: vec![v.len()], data });
        }
        let bias = model.tensors.iter_mut().find(|t| t.name == name).expect("it was there or pushed");
        bias.data.iter_mut().zip(&v).for_each(|(b, v)| *b += coefficient * v);
        assert_close(&llama_cpp_logits(&model, &TOKENS), &added.logits, arch);
    }
}

#[test]
fn the_tokenizer_merges_and_knows_its_special_tokens() {
    let model = with_file(&Model::random(Spec::new(Arch::Llama)), load);
    let vocab = model.vocab();
    let ids = |text: &str| -> Vec<i32> {
        vocab.tokenize(text.as_bytes(), false, true).into_iter().map(|t| t.0).collect()
    };
    // "hell" and "Ġthe" are merged; "o" and "r" merge only beside each other.
    assert_eq!(ids("hello the or"), [262, i32::from(b'o'), 260, i32::from(b' '), 261]);
    assert_eq!(ids("é"), [0xc3, 0xa9]);
    assert_eq!(ids("<|im_start|>x<|im_end|>"), [IM_START, i32::from(b'x'), IM_END]);
    assert_eq!(vocab.n_tokens() as usize, N_VOCAB);
    assert!(vocab.is_eog(LlamaToken(IM_END)));
    assert_eq!(model.meta_val_str("tokenizer.chat_template").as_deref(), Ok(support::tiny::CHATML));
}

#[test]
fn streamed_files_of_every_type_load_and_run() {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    for ty in [Type::F32, Type::F16, Type::Q8_0, Type::Q4K, Type::Q6K] {
        let path = folder.path().join("streamed.gguf");
        let spec = Spec { n_embd: 256, n_ff: 512, n_vocab: N_VOCAB + 5, ..Spec::new(Arch::Llama) };
        big(&path, &spec, ty).expect("the temporary folder has room");
        let logits = llama_cpp_file_logits(&path, &TOKENS);
        let largest = logits.iter().flatten().fold(0.0, |m: f32, v| m.max(v.abs()));
        assert!(logits.iter().flatten().all(|v| v.is_finite()) && largest > 0.1, "{ty:?}: {largest}");
    }
}

fn assert_same(model: &Model, edit: Edit) {
    let expected = forward(model, &TOKENS, edit).logits;
    assert_close(&llama_cpp_logits(model, &TOKENS), &expected, model.spec.arch);
}

fn assert_close(found: &Rows, expected: &Rows, arch: Arch) {
    let difference = difference(found, expected);
    println!("{arch:?}: {difference:.1e}");
    assert!(difference <= tolerance(arch), "{arch:?}: logits differ by {difference:.1e} of the largest");
}

/// max |a − b| / max |b|.
fn difference(a: &Rows, b: &Rows) -> f64 {
    assert_eq!(a.len(), b.len());
    let max = |values: &mut dyn Iterator<Item = f32>| values.fold(0.0, |m: f32, v| m.max(v.abs()));
    let apart = max(&mut a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| a - b));
    f64::from(apart / max(&mut b.iter().flatten().copied()))
}

fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        let mut backend = LlamaBackend::init().expect("nothing else in this process starts it");
        backend.void_logs();
        backend
    })
}

/// Calls `run` with the path of a file that holds `model`.
fn with_file<T>(model: &Model, run: impl FnOnce(&Path) -> T) -> T {
    let folder = tempfile::tempdir().expect("the temporary folder is writable");
    let path = folder.path().join("tiny.gguf");
    model.write(&path).expect("the temporary folder has room");
    run(&path)
}

fn load(path: &Path) -> LlamaModel {
    LlamaModel::load_from_file(backend(), path, &LlamaModelParams::default())
        .expect("llama.cpp loads the file")
}

/// The logits of every token, computed by llama.cpp with nothing stored in f16.
fn llama_cpp_logits(model: &Model, tokens: &[i32]) -> Rows {
    with_file(model, |path| llama_cpp_file_logits(path, tokens))
}

fn llama_cpp_file_logits(path: &Path, tokens: &[i32]) -> Rows {
    let model = load(path);
    let params = LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(model.n_ctx_train()))
        .with_type_k(KvCacheType::F32)
        .with_type_v(KvCacheType::F32)
        .with_flash_attention_policy(LLAMA_FLASH_ATTN_TYPE_DISABLED)
        .with_n_threads(1)
        .with_n_threads_batch(1);
    let mut context = model.new_context(backend(), params).expect("a tiny context fits");
    let mut batch = LlamaBatch::new(tokens.len(), 1);
    let tokens: Vec<_> = tokens.iter().map(|&id| LlamaToken(id)).collect();
    batch.add_sequence(&tokens, 0, true).expect("the batch was made for these tokens");
    context.decode(&mut batch).expect("the tokens are in the vocabulary");
    (0..tokens.len() as i32).map(|i| context.get_logits_ith(i).to_vec()).collect()
}
