//! [`Steering`] in contexts of llama-cpp-2 that the test makes as a program of its own would.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;

use ggsteer::intervention::{Addition, Basis, Intervention, Positions, Projection, Side, dot};
use ggsteer::plugin::{Error, Phase, Reading, Steering};
use ggsteer::runtime::{HookError, Item, Model, ModelOptions, Outputs, Probe, Token, backend};
use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams};
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use tempfile::TempDir;

use crate::exact::{difference, session, tokens};
use crate::support::architectures;
use crate::support::forward::{Edit, Shift, forward};
use crate::support::tiny::{self, Arch, Spec, unit};

const TOLERANCE: f64 = 1e-4;

/// A random model in a file, loaded by llama-cpp-2.
pub struct Host {
    pub tiny: tiny::Model,
    pub model: LlamaModel,
    folder: TempDir,
}

pub fn load(path: &Path) -> LlamaModel {
    LlamaModel::load_from_file(backend().unwrap(), path, &LlamaModelParams::default()).unwrap()
}

impl Host {
    pub fn new(arch: Arch) -> Self {
        Self::of(Spec::new(arch))
    }

    fn of(spec: Spec) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tiny = tiny::Model::random(spec);
        tiny.write(&folder.path().join("model.gguf")).unwrap();
        let model = load(&folder.path().join("model.gguf"));
        Self { tiny, model, folder }
    }

    pub fn context(&self, params: LlamaContextParams) -> LlamaContext<'_> {
        self.model.new_context(backend().unwrap(), params).unwrap()
    }

    /// A steering and a context that has it.
    pub fn steered(&self, n_ubatch: u32) -> (Steering, LlamaContext<'_>) {
        let steering = Steering::new(&self.model);
        let params = steering.attach(exact(n_ubatch)).unwrap();
        (steering, self.context(params))
    }
}

/// As in [`crate::exact`].
pub fn exact(n_ubatch: u32) -> LlamaContextParams {
    LlamaContextParams::default()
        .with_n_ctx(NonZeroU32::new(64))
        .with_n_batch(64)
        .with_n_ubatch(n_ubatch)
        .with_n_threads(1)
        .with_n_threads_batch(1)
        .with_type_k(KvCacheType::F32)
        .with_type_v(KvCacheType::F32)
        .with_flash_attention_policy(llama_cpp_sys_2::LLAMA_FLASH_ATTN_TYPE_DISABLED)
}

/// Decodes tokens from position `start` on, and gives the logits after each.
pub fn decode(context: &mut LlamaContext<'_>, tokens: &[Token], start: usize) -> Vec<Vec<f32>> {
    let mut batch = LlamaBatch::new(tokens.len(), 1);
    for (i, &token) in tokens.iter().enumerate() {
        batch.add(token, (start + i) as i32, &[0], true).unwrap();
    }
    context.decode(&mut batch).unwrap();
    (0..tokens.len()).map(|i| context.get_logits_ith(i as i32).to_vec()).collect()
}

/// The same of a fresh sequence.
pub fn logits(context: &mut LlamaContext<'_>) -> Vec<Vec<f32>> {
    context.clear_kv_cache();
    decode(context, &tokens(40), 0)
}

fn projected(p: Projection) -> Intervention {
    Intervention { project: vec![p], ..Intervention::default() }
}

/// Interventions, each with the same for the oracle.
fn cases(r: &[f32]) -> Vec<(Intervention, Edit<'_>)> {
    let along = || Projection::new(r).unwrap();
    let shift = Shift { r, center: 0.0, strength: 1.0, sign: 0, blocks: (0, 99) };
    let moved = |shift| Edit { shift: Some(shift), ..Edit::default() };
    let mut both = Intervention::ablate(&[r]).unwrap();
    both.add = Intervention::add(1, r, 3.5, Positions::All).unwrap().add;
    vec![
        (Intervention::default(), Edit::default()),
        (Intervention::ablate(&[r]).unwrap(), Edit { ablate: Some(r), ..Edit::default() }),
        (
            Intervention::add(1, r, 3.5, Positions::All).unwrap(),
            Edit { add: Some((1, r, 3.5)), ..Edit::default() },
        ),
        (both, Edit { ablate: Some(r), add: Some((1, r, 3.5)), ..Edit::default() }),
        (projected(along().center(0.7)), moved(Shift { center: 0.7, ..shift })),
        (projected(along().side(Side::Above)), moved(Shift { sign: 1, ..shift })),
        (projected(along().side(Side::Below).center(0.2)), moved(Shift { sign: -1, center: 0.2, ..shift })),
        (
            projected(along().strength(0.5).blocks(1..2)),
            moved(Shift { strength: 0.5, blocks: (1, 1), ..shift }),
        ),
        (projected(along().blocks(0..1)), moved(Shift { blocks: (0, 0), ..shift })),
    ]
}

#[test]
fn a_foreign_context_computes_what_the_session_and_a_plain_forward_pass_do() {
    for arch in Arch::ALL {
        let host = Host::new(arch);
        let r = unit(host.tiny.spec.n_embd, 11);
        let ours = Model::load(&host.folder.path().join("model.gguf"), &ModelOptions::default()).unwrap();
        let mut session = session(&ours);
        let tokens = tokens(40);
        let ids: Vec<i32> = tokens.iter().map(|t| t.0).collect();
        let mut plain = None;
        for (i, (intervention, edit)) in cases(&r).into_iter().enumerate() {
            let what = format!("{arch:?}, case {i}");
            session.clear();
            let item = Item {
                seq: 0,
                start: 0,
                tokens: &tokens,
                prompt: true,
                outputs: Outputs::All,
                intervention: Some(Arc::new(intervention.clone())),
            };
            session.decode(&[item], None).unwrap();
            let by_session: Vec<Vec<f32>> = (0..40).map(|i| session.logits(i).to_vec()).collect();
            let oracle = forward(&host.tiny, &ids, edit).logits;
            assert!(difference(&by_session, &oracle) < TOLERANCE, "{what}: session and oracle");

            // Whole batches, and pieces of 7 tokens.
            for n_ubatch in [64, 7] {
                let (steering, mut context) = host.steered(n_ubatch);
                steering.set(intervention.clone()).unwrap();
                let found = logits(&mut context);
                steering.check().unwrap();
                assert!(difference(&found, &oracle) < TOLERANCE, "{what}, pieces of {n_ubatch}");
                let graphs = if i == 0 { 0 } else { 40_u64.div_ceil(u64::from(n_ubatch)) };
                assert_eq!(steering.n_steered(), graphs, "{what}");
            }
            let plain = plain.get_or_insert_with(|| oracle.clone());
            assert!(i == 0 || difference(&oracle, plain) > 0.003, "{what} changes nothing");
        }
    }
}

#[test]
fn architectures_with_other_graphs_are_followed_as_by_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let r = unit(architectures::N_EMBD, 20);
    // A norm of the embedding, positions of their own, blocks of other kinds.
    for spec in architectures::table::ADDED
        .iter()
        .filter(|s| ["bloom", "gpt2", "lfm2", "phi3", "rwkv7"].contains(&s.name))
    {
        spec.random(5).write(&path).unwrap();
        let erased = Intervention::ablate(&[&r]).unwrap();
        let expected = crate::exact::logits(&path, Some(Arc::new(erased.clone())));
        let model = load(&path);
        let steering = Steering::new(&model);
        steering.set(erased).unwrap();
        let params = steering.attach(exact(64)).unwrap();
        let found = logits(&mut model.new_context(backend().unwrap(), params).unwrap());
        steering.check().unwrap();
        assert!(difference(&found, &expected) < 1e-6, "{}", spec.title());
    }
}

#[test]
fn it_can_be_changed_between_tokens_detached_and_attached_again() {
    let host = Host::new(Arch::Llama);
    let (a, b) = (unit(64, 1), unit(64, 2));
    let (steering, mut context) = host.steered(64);
    let plain = logits(&mut host.context(exact(64)));
    assert_eq!(logits(&mut context), plain, "nothing is done yet");

    let erase = |r: &[f32]| Intervention::ablate(&[r]).unwrap();
    steering.set(erase(&a)).unwrap();
    let first = logits(&mut context);
    assert!(difference(&first, &plain) > 0.01);
    steering.detach();
    assert_eq!(logits(&mut context), plain);
    steering.reattach();
    assert_eq!(logits(&mut context), first);

    // Ten tokens under one direction and the rest under another: as two contexts of which each has one.
    let tokens = tokens(40);
    context.clear_kv_cache();
    let mut changed = decode(&mut context, &tokens[..10], 0);
    steering.set(erase(&b)).unwrap();
    for (i, &token) in tokens.iter().enumerate().skip(10) {
        changed.extend(decode(&mut context, &[token], i));
    }
    assert!(difference(&changed[..10], &first[..10]) < TOLERANCE);
    steering.set(erase(&a)).unwrap();
    context.clear_kv_cache();
    decode(&mut context, &tokens[..10], 0);
    steering.set(erase(&b)).unwrap();
    let again = decode(&mut context, &tokens[10..], 10);
    assert!(difference(&changed[10..], &again) < TOLERANCE);
    steering.check().unwrap();

    drop(steering);
    assert_eq!(logits(&mut context), plain, "what outlives its steering is as it would be without");
}

#[test]
fn positions_are_as_the_caller_says() {
    let host = Host::new(Arch::Llama);
    let r = unit(64, 3);
    let tokens = tokens(40);
    let mut session_like = |positions: Positions| {
        let (steering, mut context) = host.steered(8);
        let erased = Projection::new(&r).unwrap().positions(positions);
        let added = Addition { block: 1, vector: r.clone(), positions };
        steering
            .set(Intervention { ablate: Basis::default(), project: vec![erased], add: vec![added] })
            .unwrap();
        steering.phase(Phase::Prompt);
        let mut all = decode(&mut context, &tokens[..17], 0);
        steering.phase(Phase::Generated);
        for (i, &token) in tokens.iter().enumerate().skip(17) {
            all.extend(decode(&mut context, &[token], i));
        }
        steering.check().unwrap();
        all
    };
    let [all, prompt, generated] =
        [Positions::All, Positions::Prompt, Positions::Generated].map(&mut session_like);
    let plain = logits(&mut host.context(exact(8)));
    // Pieces of 8, 8 and 1: the last of the prompt is a single token, and still the prompt's.
    assert!(
        difference(&prompt[..17], &all[..17]) < TOLERANCE
            && difference(&generated[..17], &plain[..17]) < TOLERANCE
    );
    for (what, other) in [("all", &all), ("plain", &plain)] {
        assert!(difference(&prompt[17..], &other[17..]) > 0.001, "{what}");
        assert!(difference(&generated[17..], &other[17..]) > 0.001, "{what}");
    }

    let (steering, mut context) = host.steered(64);
    steering.set(projected(Projection::new(&r).unwrap().positions(Positions::Prompt))).unwrap();
    logits(&mut context);
    assert!(matches!(steering.check(), Err(Error::PhaseUnknown)));
    assert!(steering.check().is_ok(), "an error is told once");
}

#[test]
fn projections_are_read_a_token_at_a_time() {
    let host = Host::new(Arch::Llama);
    let r = unit(64, 4);
    let ids: Vec<i32> = tokens(40).iter().map(|t| t.0).collect();
    let oracle = forward(&host.tiny, &ids, Edit::default());
    for n_ubatch in [64, 16] {
        let (steering, mut context) = host.steered(n_ubatch);
        let probe = |block| Probe { block, vector: r.clone() };
        steering.read(vec![probe(1), probe(2)]).unwrap();
        logits(&mut context);
        let readings = steering.readings().unwrap();
        assert!(steering.readings().unwrap().is_empty(), "taken");
        for (probe, block) in [(0, 1), (1, 2)] {
            let of: Vec<&Reading> = readings.iter().filter(|r| r.probe == probe).collect();
            assert!(of.iter().all(|r| r.block == block) && of.len() == 40_usize.div_ceil(n_ubatch as usize));
            let values: Vec<f32> = of.iter().flat_map(|r| &r.values).copied().collect();
            let expected: Vec<f32> = oracle.l_out[block].iter().map(|x| dot(&r, x) as f32).collect();
            assert!(difference(&[values], &[expected]) < TOLERANCE);
        }
        // Of the last block only what has logits.
        context.clear_kv_cache();
        let mut batch = LlamaBatch::new(64, 1);
        batch.add_sequence(&tokens(12), 0, false).unwrap();
        context.decode(&mut batch).unwrap();
        let readings = steering.readings().unwrap();
        assert_eq!(readings.iter().map(|r| r.values.len()).collect::<Vec<_>>(), [12, 1]);
    }
}

#[test]
fn misuse_is_an_error_and_never_more() {
    let host = Host::new(Arch::Llama);
    let (steering, mut context) = host.steered(64);
    let narrow = steering.set(Intervention::ablate(&[unit(32, 1)]).unwrap()).unwrap_err();
    assert_eq!(narrow.to_string(), "a direction has 32 elements, the model's residual stream 64");
    let beyond = steering.set(Intervention::add(9, &unit(64, 1), 1.0, Positions::All).unwrap()).unwrap_err();
    assert_eq!(beyond.to_string(), "addition at block 9: the model has blocks 0 to 2");
    let beyond = steering.read(vec![Probe { block: 3, vector: unit(64, 1) }]).unwrap_err();
    assert_eq!(beyond.to_string(), "probe at block 3: the model has blocks 0 to 2");

    // One context cannot have two.
    let taken = Steering::new(&host.model).attach(steering.attach(exact(64)).unwrap()).unwrap_err();
    assert!(taken.to_string().contains("have an eval callback already"), "{taken}");

    // A NaN in the weights.
    let erase = Intervention::ablate(&[unit(64, 1)]).unwrap();
    let mut broken = tiny::Model::random(Spec::new(Arch::Llama));
    broken.tensors.iter_mut().find(|t| t.name == "blk.1.ffn_down.weight").unwrap().data[5] = f32::NAN;
    let path = host.folder.path().join("broken.gguf");
    broken.write(&path).unwrap();
    let model = load(&path);
    let of_broken = Steering::new(&model);
    of_broken.set(erase.clone()).unwrap();
    let params = of_broken.attach(exact(64)).unwrap();
    logits(&mut model.new_context(backend().unwrap(), params).unwrap());
    let error = of_broken.check().unwrap_err();
    assert!(matches!(error, Error::Hook(HookError::NotAblated { block: 1, token: 0, .. })), "{error}");

    // A model of another width, and of more blocks, than the steering was made for.
    let wide = Host::of(Spec { n_embd: 96, n_head: 6, n_head_kv: 2, ..Spec::new(Arch::Llama) });
    steering.set(erase).unwrap();
    let params = steering.attach(exact(64)).unwrap();
    logits(&mut wide.context(params.clone()));
    assert_eq!(steering.check().unwrap_err().to_string(), narrow.to_string().replace("32", "96"));
    let short = Host::of(Spec { n_layer: 2, ..Spec::new(Arch::Llama) });
    logits(&mut short.context(params));
    let error = steering.check().unwrap_err();
    assert!(matches!(error, Error::Unfinished { block: 2 }), "{error}");

    // And after all that it works.
    logits(&mut context);
    steering.check().unwrap();
}
