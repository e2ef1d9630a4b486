//! llama-cpp-2's eval callback: it sees the graph, may change it, is kept alive, and may panic. Run by `scripts/patched.sh test`.
#![allow(unsafe_code)]

use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::eval_callback::EvalNode;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

mod support;

use support::tiny::{self, Arch, Spec};

fn model() -> LlamaModel {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    tiny::Model::random(Spec::new(Arch::Llama)).write(&path).unwrap();
    let backend = ggsteer::runtime::backend().unwrap();
    LlamaModel::load_from_file(backend, &path, &LlamaModelParams::default()).unwrap()
}

fn params() -> LlamaContextParams {
    LlamaContextParams::default().with_n_ctx(NonZeroU32::new(64)).with_n_threads(1).with_n_threads_batch(1)
}

fn context(model: &LlamaModel, params: LlamaContextParams) -> LlamaContext<'_> {
    model.new_context(ggsteer::runtime::backend().unwrap(), params).unwrap()
}

fn logits(ctx: &mut LlamaContext<'_>) -> Vec<f32> {
    ctx.clear_kv_cache();
    let mut batch = LlamaBatch::new(8, 1);
    (0..8).for_each(|i| batch.add(LlamaToken(i * 7), i, &[0], i == 7).unwrap());
    ctx.decode(&mut batch).unwrap();
    ctx.get_logits_ith(7).to_vec()
}

fn is_output(node: &EvalNode<'_>, block: usize) -> bool {
    node.name().to_bytes() == format!("l_out-{block}").as_bytes()
}

#[test]
fn a_callback_sees_the_nodes_and_changes_what_later_nodes_read() {
    let model = model();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let params = params().with_eval_callback(move |node| {
        if node.is_computed() {
            log.lock().unwrap().push(node.name().to_str().unwrap().to_owned());
            // SAFETY: a computed node of f32 in host memory, with its rows one behind the other.
            unsafe {
                let t = &*node.as_ptr();
                let n = t.ne.iter().product::<i64>() as usize;
                std::slice::from_raw_parts_mut(t.data.cast::<f32>(), n).fill(0.0);
            }
            return true;
        }
        is_output(&node, 1)
    });
    assert!(params.has_eval_callback());
    let mut plain = context(&model, self::params());
    let mut changed = context(&model, params);
    let (plain, changed) = (logits(&mut plain), logits(&mut changed));
    assert_eq!(*seen.lock().unwrap(), ["l_out-1"]);
    assert_ne!(plain, changed);
}

#[test]
fn contexts_of_cloned_parameters_share_a_callback_that_lives_as_long_as_they_do() {
    let model = model();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let params = params().with_eval_callback(move |node| {
        counter.fetch_add(usize::from(node.is_computed()), Ordering::Relaxed);
        node.is_computed() || is_output(&node, 0)
    });
    let mut first = context(&model, params.clone());
    let mut second = context(&model, params);
    assert_eq!(logits(&mut first), logits(&mut second));
    assert_eq!(calls.load(Ordering::Relaxed), 2);
    drop(first);
    logits(&mut second);
    assert_eq!(calls.load(Ordering::Relaxed), 3);
    assert_eq!(Arc::strong_count(&calls), 2);
    drop(second);
    assert_eq!(Arc::strong_count(&calls), 1);
}

#[test]
fn a_panic_goes_on_after_the_decode_and_the_context_stays_usable() {
    let model = model();
    let armed = Arc::new(AtomicUsize::new(1));
    let fuse = Arc::clone(&armed);
    let mut ctx = context(
        &model,
        params().with_eval_callback(move |node| {
            assert!(!node.is_computed() || fuse.swap(0, Ordering::Relaxed) == 0, "out of the callback");
            node.is_computed() || is_output(&node, 1)
        }),
    );
    let panic = catch_unwind(AssertUnwindSafe(|| logits(&mut ctx))).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"out of the callback"));
    assert_eq!(logits(&mut ctx), logits(&mut context(&model, params())));
}
