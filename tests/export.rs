//! Exported files do in stock llama.cpp what ggsteer does: adapters equal the hook, control vectors equal our addition.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ggsteer::direction::{Direction, Provenance};
use ggsteer::export::control_vector::{self, Mode};
use ggsteer::export::lora::{LeftOut, Lora, Reason};
use ggsteer::gguf::{GgufFile, Value};
use ggsteer::intervention::{Basis, Intervention, Positions};
use ggsteer::output::OutputFile;
use ggsteer::runtime::{Error, FileType, QuantizeOptions, Stock, Token, quantize};

mod exact;
mod support;

use exact::{difference, logits, tokens};
use support::tiny::{self, Arch, Spec, Tensor, project_out, unit};
use support::writer;

struct Bench {
    _folder: tempfile::TempDir,
    model: PathBuf,
    export: PathBuf,
    edited: PathBuf,
}

impl Bench {
    fn new(model: &tiny::Model) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (m, export, edited) = (path("model.gguf"), path("export.gguf"), path("edited.gguf"));
        model.write(&m).unwrap();
        Self { _folder: folder, model: m, export, edited }
    }

    fn lora(&self, directions: &[Vec<f32>]) -> Lora {
        let file = GgufFile::open(&self.model).unwrap();
        let lora = Lora::new(&file, directions).unwrap();
        let out = OutputFile::create(&self.export, true, &[&self.model]).unwrap();
        let mut steps = 0;
        lora.write(&file, out, &[], &mut || steps += 1).unwrap();
        assert_eq!(steps, lora.tensors.len());
        lora
    }

    fn with_lora(&self, scale: f32) -> Vec<Vec<f32>> {
        let mut stock = Stock::load(&self.model, 64, 1).unwrap();
        stock.set_lora(&self.export, scale).unwrap();
        stock.logits(&tokens(40)).unwrap()
    }
}

fn hooked(path: &Path, intervention: Intervention) -> Vec<Vec<f32>> {
    logits(path, Some(Arc::new(intervention)))
}

fn plain(path: &Path) -> Vec<Vec<f32>> {
    Stock::load(path, 64, 1).unwrap().logits(&tokens(40)).unwrap()
}

/// A llama whose blocks have 4 experts, 2 for each token, in place of one FFN.
fn experts() -> tiny::Model {
    let (n_expert, spec) = (4, Spec::new(Arch::Llama));
    let extra = [("llama.expert_count", 4), ("llama.expert_used_count", 2)];
    let extra = extra.map(|(key, n)| (key.to_string(), writer::Value::U32(n))).to_vec();
    let mut model = tiny::Model::random(Spec { extra, ..spec });
    let mut random = tiny::Random(77);
    let others: Vec<Tensor> = model.tensors.drain(..).collect();
    for mut tensor in others {
        let Some((base, name)) = tensor.name.split_once(".ffn_").map(|(a, b)| (a.to_string(), b.to_string()))
        else {
            model.tensors.push(tensor);
            continue;
        };
        let Some(name) = name.strip_suffix(".weight").filter(|n| *n != "norm") else {
            model.tensors.push(tensor);
            continue;
        };
        if name == "gate" {
            let data = (0..64 * n_expert).map(|_| 0.5 * random.spread()).collect();
            let router = format!("{base}.ffn_gate_inp.weight");
            model.tensors.push(Tensor { name: router, ne: vec![64, n_expert], data });
        }
        let deviation = 1.0 / (tensor.ne[0] as f32 * 2.0).sqrt();
        tensor.data = (0..tensor.data.len() * n_expert).map(|_| deviation * random.spread()).collect();
        tensor.ne.push(n_expert);
        tensor.name = format!("{base}.ffn_{name}_exps.weight");
        model.tensors.push(tensor);
    }
    model
}

/// Takes the directions out of the tensors that an adapter cannot carry, so that nothing is left for it to miss.
fn without(mut model: tiny::Model, directions: &[Vec<f32>]) -> tiny::Model {
    let basis = Basis::new(directions).unwrap();
    let n = model.spec.n_embd;
    for t in &mut model.tensors {
        let written = t.name == "position_embd.weight"
            || (t.name == "token_embd.weight" && model.spec.tied)
            || t.name.ends_with("attn_output.bias")
            || t.name.ends_with("ffn_down.bias");
        if written {
            for row in t.data.chunks_exact_mut(n) {
                basis.vectors().iter().for_each(|r| project_out(row, r));
            }
        }
    }
    model
}

fn directions(k: u64) -> Vec<Vec<f32>> {
    (0..k).map(|i| unit(64, 20 + i)).collect()
}

#[test]
fn an_adapter_in_stock_llama_cpp_has_the_logits_of_the_hook() {
    let dense = Arch::ALL.into_iter().flat_map(|arch| [true, false].map(|tied| (arch, tied)));
    let dense = dense.map(|(arch, tied)| {
        let name = format!("{}, {}", arch.name(), if tied { "tied" } else { "untied" });
        (name, tiny::Model::random(Spec { tied, ..Spec::new(arch) }))
    });
    for (name, model) in dense.chain([("llama of experts".to_string(), experts())]) {
        for k in 1..=2 {
            let directions = directions(k);
            let bench = Bench::new(&without(model.clone(), &directions));
            let lora = bench.lora(&directions);
            let plain = plain(&bench.model);
            let hook = hooked(&bench.model, Intervention::ablate(&directions).unwrap());
            let adapted = bench.with_lora(1.0);
            let (moved, apart) = (difference(&plain, &hook), difference(&adapted, &hook));
            println!("{name}, k {k}: plain to hook {moved:.3}, adapter to hook {apart:.2e}");
            assert!(moved > 0.01, "{name}: the ablation does nothing");
            assert!(apart <= 1e-3, "{name}, k {k}: {apart:e}");
            assert_eq!(lora.rank, k as usize);
            // Reversible: at scale 0 the model is what it was.
            assert!(difference(&bench.with_lora(0.0), &plain) < 1e-6);
        }
    }
}

#[test]
fn what_an_adapter_cannot_carry_is_named_and_stays() {
    for arch in Arch::ALL {
        let model = tiny::Model::random(Spec { tied: true, ..Spec::new(arch) });
        let bench = Bench::new(&model);
        let lora = bench.lora(&directions(1));
        let left = |tensor: &str, reason| LeftOut { tensor: tensor.into(), reason };
        let mut expected = vec![left("token_embd.weight", Reason::Tied)];
        if arch == Arch::Gpt2 {
            expected.push(left("position_embd.weight", Reason::LookedUp));
            for il in 0..3 {
                expected.push(left(&format!("blk.{il}.attn_output.bias"), Reason::Bias));
                expected.push(left(&format!("blk.{il}.ffn_down.bias"), Reason::Bias));
            }
        }
        assert_eq!(lora.left_out, expected);
        let mut edited = model.clone().orthogonalized(&unit(64, 20));
        for t in &mut edited.tensors {
            if expected.iter().any(|l| l.tensor == t.name) {
                t.data.copy_from_slice(model.get(&t.name));
            }
        }
        edited.write(&bench.edited).unwrap();
        let (adapted, edited) = (bench.with_lora(1.0), plain(&bench.edited));
        let hook = hooked(&bench.model, Intervention::ablate(&directions(1)).unwrap());
        assert!(difference(&adapted, &edited) <= 1e-3, "{arch:?}");
        assert!(
            difference(&adapted, &hook) > 0.01,
            "{arch:?}: the embedding writes nothing along the direction"
        );
    }
}

#[test]
fn an_adapter_for_a_quantized_model_is_exact_for_its_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (f32_path, model) = (folder.path().join("f32.gguf"), folder.path().join("q8_0.gguf"));
    tiny::Model::random(Spec::new(Arch::Llama)).write(&f32_path).unwrap();
    let q8_0 = FileType::from_name("Q8_0").unwrap();
    quantize(&f32_path, &model, q8_0, &QuantizeOptions::default()).unwrap();
    let bench = Bench { model, export: folder.path().join("lora"), edited: PathBuf::new(), _folder: folder };
    bench.lora(&directions(1));
    let hook = hooked(&bench.model, Intervention::ablate(&directions(1)).unwrap());
    // llama.cpp rounds the inputs of a quantized matrix to 8 bits, those of the adapter not.
    assert!(difference(&bench.with_lora(1.0), &hook) < 0.03);
    assert!(difference(&plain(&bench.model), &hook) > 0.1);
}

#[test]
fn another_reader_finds_the_tensors_as_llama_cpp_wants_them() {
    let bench = Bench::new(&experts());
    bench.lora(&directions(2));
    let mut reader = gguf_rs::get_gguf_container(bench.export.to_str().unwrap()).unwrap();
    let file = reader.decode().unwrap();
    let text = |key: &str| file.metadata()[key].as_str().unwrap().to_string();
    assert_eq!(text("general.type"), "adapter");
    assert_eq!(text("general.architecture"), "llama");
    assert_eq!(text("adapter.type"), "lora");
    assert_eq!(file.metadata()["adapter.lora.alpha"].as_f64(), Some(2.0));
    let shape = |name: &str| {
        let tensor = file.tensors().iter().find(|t| t.name == name).unwrap();
        assert_eq!(tensor.kind, 0, "{name} is not f32");
        tensor.shape.clone()
    };
    assert_eq!(file.tensors().len(), 2 * (1 + 2 * 3));
    // (n_in, rank) and (rank, n_out); the embedding the other way round.
    assert_eq!(shape("blk.1.attn_output.weight.lora_a")[..2], [64, 2]);
    assert_eq!(shape("blk.1.attn_output.weight.lora_b")[..2], [2, 64]);
    assert_eq!(shape("blk.1.ffn_down_exps.weight.lora_a")[..3], [128, 2, 4]);
    assert_eq!(shape("blk.1.ffn_down_exps.weight.lora_b")[..3], [2, 64, 4]);
    assert_eq!(shape("token_embd.weight.lora_a")[..2], [2, tiny::N_VOCAB as u64]);
    assert_eq!(shape("token_embd.weight.lora_b")[..2], [2, 64]);
}

#[test]
fn the_adapter_does_not_depend_on_the_number_of_threads() {
    let bench = Bench::new(&experts());
    let mut written = Vec::new();
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bench.lora(&directions(2)));
        written.push(std::fs::read(&bench.export).unwrap());
    }
    assert!(written[0] == written[1]);
}

#[test]
fn a_control_vector_in_stock_llama_cpp_is_our_addition() {
    for arch in Arch::ALL {
        let bench = Bench::new(&tiny::Model::random(Spec::new(arch)));
        let plain = plain(&bench.model);
        for (block, scale) in [(1, 1.0), (2, -0.7)] {
            let vector: Vec<f32> = unit(64, 5).iter().map(|x| 6.0 * x).collect();
            let meta = Provenance { architecture: Some(arch.name().into()), ..Provenance::default() };
            let direction = Direction::new(vector.clone(), block, meta).unwrap();
            let exported = control_vector::convert(&direction, Mode::Add, scale).unwrap();
            exported.save(&bench.export, true).unwrap();
            let mut stock = Stock::load(&bench.model, 64, 1).unwrap();
            stock.set_control_vector(&bench.export, 1.0).unwrap();
            let theirs = stock.logits(&tokens(40)).unwrap();
            let ours = Intervention::add(block, &vector, scale, Positions::All).unwrap();
            let ours = hooked(&bench.model, ours);
            let (moved, apart) = (difference(&plain, &ours), difference(&theirs, &ours));
            println!("{arch:?}, block {block}: plain to ours {moved:.3}, llama.cpp to ours {apart:.2e}");
            assert!(moved > 0.01, "{arch:?}: the addition does nothing");
            assert!(apart <= 1e-4, "{arch:?}, block {block}: {apart:e}");
            // The very file loads here too, and says that it is to be added.
            let file = GgufFile::open(&bench.export).unwrap();
            assert_eq!(file.get("glp.mode"), Some(&Value::from("add")));
            assert_eq!(Direction::load(&bench.export, None).unwrap().vector, exported.vector);
        }
    }
}

#[test]
fn llama_cpp_is_kept_from_stopping_the_process() {
    let untied = Bench::new(&tiny::Model::random(Spec { tied: false, ..Spec::new(Arch::Llama) }));
    untied.lora(&directions(1));
    let tied = Bench::new(&tiny::Model::random(Spec { tied: true, ..Spec::new(Arch::Llama) }));
    let mut stock = Stock::load(&tied.model, 64, 1).unwrap();
    let error = stock.set_lora(&untied.export, 1.0).unwrap_err().to_string();
    assert!(error.contains("output matrix too"), "{error}");
    // Its own refusals come back as errors: another architecture, a file that is no adapter, a block it never adds to.
    let qwen2 = Bench::new(&tiny::Model::random(Spec { tied: false, ..Spec::new(Arch::Qwen2) }));
    let mut other = Stock::load(&qwen2.model, 64, 1).unwrap();
    // llama.cpp's words are kept for the whole process, where other tests may take them: not looked at here.
    assert!(matches!(other.set_lora(&untied.export, 1.0), Err(Error::Adapter { .. })));
    assert!(stock.set_lora(&tied.model, 1.0).is_err());
    let meta = Provenance { mode: Some("add".into()), ..Provenance::default() };
    let first = Direction::new(unit(64, 5), 0, meta.clone()).unwrap();
    first.save(&tied.export, true).unwrap();
    let error = stock.set_control_vector(&tied.export, 1.0).unwrap_err().to_string();
    assert!(error.contains("direction.0") && error.contains("1 to 2"), "{error}");
    let narrow = Direction::new(unit(32, 5), 1, meta).unwrap();
    narrow.save(&tied.export, true).unwrap();
    let error = stock.set_control_vector(&tied.export, 1.0).unwrap_err().to_string();
    assert!(error.contains("n_embd 32"), "{error}");
    assert!(stock.logits(&[Token(-1)]).is_err() && stock.logits(&[]).is_err());
    assert!(stock.logits(&vec![Token(0); 65]).is_err());
}

#[test]
fn every_file_type_is_made_or_refused_for_want_of_importance() {
    let spec =
        Spec { n_embd: 256, n_head_kv: 4, n_ff: 256, n_layer: 1, tied: false, ..Spec::new(Arch::Llama) };
    let bench = Bench::new(&tiny::Model::random(spec));
    let ones = vec![1.0; 256];
    let names = GgufFile::open(&bench.model).unwrap();
    let blocks = names.tensors().iter().filter(|t| t.name.starts_with("blk.") && t.rows() > 1);
    let importance: Vec<(&str, &[f32])> = blocks.map(|t| (t.name.as_str(), &ones[..])).collect();
    let options = |importance, pure| QuantizeOptions { importance, pure, ..QuantizeOptions::default() };
    let make = |ty, importance, pure| {
        let made = quantize(&bench.model, &bench.export, ty, &options(importance, pure));
        // What llama.cpp has written, our reader takes whole.
        made.map(|()| drop(GgufFile::open(&bench.export).unwrap()))
    };
    for ty in FileType::all() {
        make(ty, Some(&importance), false).unwrap();
        let bare = make(ty, None, false);
        assert_eq!(bare.is_err(), ty.needs_importance, "{}: {bare:?}", ty.name);
        // ggml stops the process where it would have to encode these without: the matrix has no embedding.
        let stops = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S"].contains(&ty.name);
        let pure = make(ty, Some(&importance), true);
        assert_eq!(pure.is_err(), stops, "{}: {pure:?}", ty.name);
    }
}
