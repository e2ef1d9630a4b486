//! Rewriting files, seen from outside: what is written, what stays, what is refused.

use std::fs;
use std::path::{Path, PathBuf};

use ggsteer::arch::{Axis, WriterKind};
use ggsteer::gguf::{Array, GgufError, GgufFile, PADDING_KEY, TensorInfo, Value, Writer};
use ggsteer::output::OutputFile;
use ggsteer::quant::{self, GgmlType};
use ggsteer::rewrite::{
    How, Options, Plan, Report, RewriteError, Rounding, Tied, VerifyError, execute, verify_untouched,
};

const N_EMBD: u64 = 256;
const N_FF: u64 = 512;
const N_VOCAB: u64 = 80;

/// A repeatable source of numbers, uniform in ±0.5.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }

    /// Bell-shaped values of about ±`scale`.
    fn values(&mut self, n: u64, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * (self.next() + self.next() + self.next())).collect()
    }
}

/// A model file in the making: tensors with their values.
struct Model {
    arch: &'static str,
    n_block: u32,
    tensors: Vec<(String, Vec<u64>, GgmlType, Vec<f32>)>,
    noise: Noise,
}

impl Model {
    fn new(arch: &'static str, n_block: u32) -> Self {
        Self { arch, n_block, tensors: Vec::new(), noise: Noise(42) }
    }

    fn add(&mut self, name: &str, ne: &[u64], ty: GgmlType) -> &mut Self {
        let values = self.noise.values(ne.iter().product(), 0.1);
        self.tensors.push((name.into(), ne.to_vec(), ty, values));
        self
    }

    fn blocks(mut self, ty: GgmlType, more: impl Fn(&mut Self, &str)) -> Self {
        self.add("token_embd.weight", &[N_EMBD, N_VOCAB], ty);
        for il in 0..self.n_block {
            let blk = format!("blk.{il}.");
            let name = |s: &str| format!("{blk}{s}");
            self.add(&name("attn_norm.weight"), &[N_EMBD], GgmlType::F32)
                .add(&name("attn_q.weight"), &[N_EMBD, N_EMBD], ty)
                .add(&name("attn_k.weight"), &[N_EMBD, N_EMBD], ty)
                .add(&name("attn_v.weight"), &[N_EMBD, N_EMBD], ty)
                .add(&name("attn_output.weight"), &[N_EMBD, N_EMBD], ty)
                .add(&name("ffn_norm.weight"), &[N_EMBD], GgmlType::F32);
            more(&mut self, &blk);
        }
        self.add("output_norm.weight", &[N_EMBD], GgmlType::F32);
        self
    }

    fn dense(arch: &'static str, ty: GgmlType) -> Self {
        Self::new(arch, 2).blocks(ty, |model, blk| {
            model
                .add(&format!("{blk}ffn_gate.weight"), &[N_EMBD, N_FF], ty)
                .add(&format!("{blk}ffn_up.weight"), &[N_EMBD, N_FF], ty)
                .add(&format!("{blk}ffn_down.weight"), &[N_FF, N_EMBD], ty);
        })
    }

    fn with_head(mut self, ty: GgmlType) -> Self {
        self.add("output.weight", &[N_EMBD, N_VOCAB], ty);
        self
    }

    fn values(&mut self, name: &str) -> &mut Vec<f32> {
        &mut self.tensors.iter_mut().find(|t| t.0 == name).unwrap().3
    }

    fn bytes(&self) -> Vec<u8> {
        let arch = self.arch;
        let mut writer = Writer::new()
            .key("general.architecture", arch)
            .key("general.name", "make-believe")
            .key(format!("{arch}.block_count"), self.n_block)
            .key(format!("{arch}.embedding_length"), N_EMBD as u32)
            .key("tokenizer.ggml.tokens", Array::String((0..N_VOCAB).map(|i| format!("t{i}")).collect()));
        for (name, ne, ty, _) in &self.tensors {
            writer = writer.tensor(name.clone(), ne, *ty);
        }
        let mut stream = writer.start(Vec::new()).unwrap();
        for (_, ne, ty, values) in &self.tensors {
            let data = if values.iter().all(|x| x.is_finite()) {
                quant::encode(*ty, values, ne[0] as usize, None).unwrap()
            } else {
                assert_eq!(*ty, GgmlType::F32);
                values.iter().flat_map(|x| x.to_le_bytes()).collect()
            };
            stream.data(&data).unwrap();
        }
        stream.finish().unwrap()
    }
}

struct Bench {
    dir: tempfile::TempDir,
    input: PathBuf,
    output: PathBuf,
}

impl Bench {
    fn new(bytes: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (input, output) = (dir.path().join("in.gguf"), dir.path().join("out.gguf"));
        fs::write(&input, bytes).unwrap();
        Self { dir, input, output }
    }

    fn open(&self) -> GgufFile {
        GgufFile::open(&self.input).unwrap()
    }

    fn run(&self, directions: &[Vec<f32>], options: Options) -> Result<(Plan, Report), RewriteError> {
        let file = self.open();
        let plan = Plan::new(&file, directions, options)?;
        let report = self.execute(&plan, &[])?;
        Ok((plan, report))
    }

    fn execute(&self, plan: &Plan, keys: &[(String, Value)]) -> Result<Report, RewriteError> {
        let file = self.open();
        let out = OutputFile::create(&self.output, true, &[&self.input]).unwrap();
        let report = execute(&file, plan, &reencode(), out, keys, &mut |_| {})?.commit()?;
        assert_eq!(fs::metadata(&self.output).unwrap().len(), report.file_size);
        Ok(report)
    }

    fn result(&self) -> GgufFile {
        GgufFile::open(&self.output).unwrap()
    }

    fn names(&self) -> Vec<String> {
        let mut all: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        all.sort();
        all
    }
}

fn direction(seed: u64) -> Vec<f32> {
    Noise(seed).values(N_EMBD, 3.0)
}

fn decode(file: &GgufFile, info: &TensorInfo) -> Vec<f32> {
    let mut out = vec![0.0; info.elements() as usize];
    quant::decode(info.ty, file.tensor_data(info), &mut out).unwrap();
    out
}

/// The oracle: W ← W − Σ r(rᵀW), element by element in f64, for r orthonormal. `n` is ne[0]; along columns of each
/// n × n_embd slice, or along rows.
fn naive(w: &[f32], n: usize, axis: Axis, directions: &[Vec<f64>]) -> Vec<f64> {
    let mut out: Vec<f64> = w.iter().map(|x| f64::from(*x)).collect();
    let n_embd = N_EMBD as usize;
    for r in directions {
        match axis {
            Axis::Output => {
                for slice in out.chunks_mut(n * n_embd) {
                    for i in 0..n {
                        let along: f64 = (0..n_embd).map(|j| r[j] * slice[j * n + i]).sum();
                        for j in 0..n_embd {
                            slice[j * n + i] -= r[j] * along;
                        }
                    }
                }
            }
            Axis::Row | Axis::Bias => {
                for row in out.chunks_mut(n) {
                    let along: f64 = row.iter().zip(r).map(|(x, y)| x * y).sum();
                    row.iter_mut().zip(r).for_each(|(x, y)| *x -= along * y);
                }
            }
        }
    }
    out
}

fn unit(v: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let v: Vec<f64> = v.into_iter().collect();
    let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
    v.into_iter().map(|x| x / norm).collect()
}

fn unit_of(v: &[f32]) -> Vec<f64> {
    unit(v.iter().map(|x| f64::from(*x)))
}

#[test]
fn leaks_are_measured_and_the_rest_is_untouched() {
    // One pass of ggml's encoder: fine types take the edit, coarse ones snap back. The bounds are what may be claimed
    // of each, not what is wished for.
    let bounds = [
        ("f32", 1e-5),
        ("f16", 1e-3),
        ("bf16", 1e-2),
        ("q8_0", 0.02),
        ("q6_K", 0.15),
        ("q5_K", 0.3),
        ("q4_K", 0.6),
        ("q4_0", 0.6),
        ("iq4_nl", 0.6),
        ("q3_K", 0.9),
        ("q2_K", 1.0),
    ];
    for (name, bound) in bounds {
        let ty = GgmlType::all().find(|t| t.name() == name).unwrap();
        let bench = Bench::new(&Model::dense("llama", ty).with_head(ty).bytes());
        let (plan, report) = bench.run(&[direction(1)], Options::default()).unwrap();
        let mean = report.tensors.iter().map(|t| t.figures.leak).sum::<f64>() / report.tensors.len() as f64;
        let far = report.tensors.iter().map(|t| t.figures.distance).fold(0.0, f64::max);
        println!("{name:<7} leak: mean {mean:.2e}, max {:.2e}; distance max {far:.2e}", report.max_leak);
        assert!(report.max_leak < bound, "{name}");
        assert_eq!((report.n_edited, report.tensors.len()), (5, 5));

        let (before, after) = (bench.open(), bench.result());
        assert_eq!(verify_untouched(&before, &after, &plan), Ok(before.tensors().len() - 5));
        assert_eq!(before.bytes()[before.header_bytes()], after.bytes()[after.header_bytes()]);
        assert_eq!(before.file_len(), after.file_len());
        // The leaks of the report are those of the file, by the shortest way there is.
        let r = unit_of(&direction(1));
        for t in &report.tensors {
            let axis = plan.tensors.iter().find(|p| p.writer.tensor == t.name).unwrap().writer.axis;
            let info = after.tensor(&t.name).unwrap();
            let along = |file: &GgufFile| {
                let w = decode(file, info);
                let edited = naive(&w, info.ne[0] as usize, axis, std::slice::from_ref(&r));
                w.iter().zip(edited).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>().sqrt()
            };
            let leak = along(&after) / along(&before);
            assert!(
                (leak - t.figures.leak).abs() < 1e-6 + 1e-3 * leak,
                "{}: {leak} and {}",
                t.name,
                t.figures.leak
            );
        }
    }
}

#[test]
fn f32_edits_equal_the_oracle() {
    let mut model = Model::dense("llama", GgmlType::F32);
    model.add("blk.0.attn_output.bias", &[N_EMBD], GgmlType::F32);
    model.add("blk.1.ffn_down.bias", &[N_EMBD], GgmlType::F32);
    let bench = Bench::new(&model.bytes());
    // Two directions that are not orthogonal: the oracle takes them orthonormalised by hand.
    let (a, b) = (direction(5), direction(6));
    let ua = unit_of(&a);
    let along: f64 = b.iter().zip(&ua).map(|(x, y)| f64::from(*x) * y).sum();
    let ub = unit(b.iter().zip(&ua).map(|(x, y)| f64::from(*x) - along * y));
    let (plan, report) = bench.run(&[a, b], Options::default()).unwrap();
    assert_eq!(report.tensors.len(), 7);
    let (before, after) = (bench.open(), bench.result());
    for planned in &plan.tensors {
        let info = before.tensor(&planned.writer.tensor).unwrap();
        let expected = naive(
            &decode(&before, info),
            info.ne[0] as usize,
            planned.writer.axis,
            &[ua.clone(), ub.clone()],
        );
        for (x, y) in decode(&after, info).iter().zip(expected) {
            assert!((f64::from(*x) - y).abs() < 1e-7, "{}: {x} and {y}", info.name);
        }
    }
    assert!(report.max_leak < 1e-5);
    verify_untouched(&before, &after, &plan).unwrap();
}

#[test]
fn experts_are_edited_slice_by_slice() {
    let model = Model::new("qwen2moe", 1).blocks(GgmlType::F32, |model, blk| {
        model
            .add(&format!("{blk}ffn_gate_inp.weight"), &[N_EMBD, 3], GgmlType::F32)
            .add(&format!("{blk}ffn_up_exps.weight"), &[N_EMBD, 64, 3], GgmlType::F32)
            .add(&format!("{blk}ffn_down_exps.weight"), &[64, N_EMBD, 3], GgmlType::F32)
            .add(&format!("{blk}ffn_down_shexp.weight"), &[32, N_EMBD], GgmlType::F32);
    });
    let bench = Bench::new(&model.with_head(GgmlType::F32).bytes());
    let (plan, report) = bench.run(&[direction(1)], Options::default()).unwrap();
    assert!(report.tensors.iter().any(|t| t.kind == WriterKind::FfnDownShared));
    let (before, after) = (bench.open(), bench.result());
    let info = before.tensor("blk.0.ffn_down_exps.weight").unwrap();
    let expected = naive(&decode(&before, info), 64, Axis::Output, &[unit_of(&direction(1))]);
    for (x, y) in decode(&after, info).iter().zip(expected) {
        assert!((f64::from(*x) - y).abs() < 1e-7);
    }
    verify_untouched(&before, &after, &plan).unwrap();
}

#[test]
fn behind_norms_the_output_through_them_loses_the_direction() {
    let mut sandwich = Model::dense("gemma2", GgmlType::F32);
    // Its experts and their dense companion pass a norm each, and another together.
    let mut experts = Model::dense("gemma4", GgmlType::F32);
    for blk in ["blk.0.", "blk.1."] {
        for norm in ["post_attention_norm", "post_ffw_norm"] {
            sandwich.add(&format!("{blk}{norm}.weight"), &[N_EMBD], GgmlType::F32);
            experts.add(&format!("{blk}{norm}.weight"), &[N_EMBD], GgmlType::F32);
        }
        for norm in ["post_ffw_norm_1", "post_ffw_norm_2"] {
            experts.add(&format!("{blk}{norm}.weight"), &[N_EMBD], GgmlType::F32);
        }
        experts.add(&format!("{blk}ffn_gate_inp.weight"), &[N_EMBD, 3], GgmlType::F32);
        experts.add(&format!("{blk}ffn_down_exps.weight"), &[32, N_EMBD, 3], GgmlType::F32);
    }
    let r = unit_of(&direction(1));
    for (model, most) in [(sandwich, 1), (experts, 2)] {
        let bench = Bench::new(&model.bytes());
        let (plan, report) = bench.run(&[direction(1)], Options::default()).unwrap();
        assert!(report.max_leak < 1e-5);
        let after = bench.result();
        let writers = plan.tensors.iter().map(|p| &p.writer).filter(|w| w.block.is_some());
        assert_eq!(writers.clone().map(|w| w.norms().count()).max(), Some(most));
        for writer in writers {
            // What is left of r by the norms. γ⊙(Wx) for x a unit vector is γ⊙(a column): no norm changes its
            // direction.
            let mut u = r.clone();
            for norm in writer.norms() {
                for (u, gamma) in u.iter_mut().zip(decode(&after, after.tensor(norm).unwrap())) {
                    *u *= f64::from(gamma);
                }
            }
            let info = after.tensor(&writer.tensor).unwrap();
            let (n, size) = (info.ne[0] as usize, u.iter().map(|x| x * x).sum::<f64>().sqrt());
            for slice in decode(&after, info).chunks(n * N_EMBD as usize) {
                for i in 0..n {
                    let along: f64 = u.iter().enumerate().map(|(j, u)| u * f64::from(slice[j * n + i])).sum();
                    assert!(along.abs() < 1e-6 * size, "{}: {along:e}", info.name);
                }
            }
        }
    }
}

#[test]
fn behind_a_layer_norm_the_embedding_loses_the_direction() {
    let mut model = Model::dense("bloom", GgmlType::F32);
    model.add("token_embd_norm.weight", &[N_EMBD], GgmlType::F32);
    model.add("token_embd_norm.bias", &[N_EMBD], GgmlType::F32);
    let bench = Bench::new(&model.bytes());
    bench.run(&[direction(1)], Options::default()).unwrap();
    let after = bench.result();
    let get = |name: &str| decode(&after, after.tensor(name).unwrap());
    let (gamma, beta) = (get("token_embd_norm.weight"), get("token_embd_norm.bias"));
    let r = unit_of(&direction(1));
    for row in get("token_embd.weight").chunks(N_EMBD as usize) {
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / row.len() as f64;
        let var = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / row.len() as f64;
        let along: f64 = (0..row.len())
            .map(|j| {
                r[j] * (f64::from(gamma[j]) * (f64::from(row[j]) - mean) / var.sqrt() + f64::from(beta[j]))
            })
            .sum();
        assert!(along.abs() < 1e-5, "{along}");
    }
}

#[test]
fn nothing_to_do_is_the_same_file() {
    let mut bytes = Model::dense("llama", GgmlType::Q4_K).bytes();
    bytes.extend(b"bytes that belong to nobody");
    let bench = Bench::new(&bytes);
    let (plan, report) = bench.run(&[], Options::default()).unwrap();
    assert_eq!(fs::read(&bench.output).unwrap(), bytes);
    assert_eq!((report.n_edited, report.max_leak), (0, 0.0));
    assert_eq!(verify_untouched(&bench.open(), &bench.result(), &plan), Ok(bench.open().tensors().len()));
    // Nor is an architecture needed for that, nor any tensor.
    let bytes = Writer::new().key("k", 1u32).header().unwrap();
    let bench = Bench::new(&bytes);
    bench.run(&[], Options::default()).unwrap();
    assert_eq!(fs::read(&bench.output).unwrap(), bytes);
}

#[test]
fn what_has_no_component_keeps_its_bytes() {
    let mut model = Model::dense("llama", GgmlType::Q8_0);
    // The direction has four components; the weights there are zero in one tensor, and in some rows of another.
    let mut r = vec![0.0; N_EMBD as usize];
    for j in [3, 70, 131, 255] {
        r[j] = 1.0 + j as f32;
        model.values("blk.0.ffn_down.weight")[j * N_FF as usize..(j + 1) * N_FF as usize].fill(0.0);
    }
    model.values("token_embd.weight")[..4 * N_EMBD as usize].fill(0.0);
    let bench = Bench::new(&model.bytes());
    let (_, report) = bench.run(&[r.clone()], Options::default()).unwrap();
    let (before, after) = (bench.open(), bench.result());
    let data = |file: &GgufFile, name: &str| file.tensor_data(file.tensor(name).unwrap()).to_vec();
    let down = report.tensors.iter().find(|t| t.name == "blk.0.ffn_down.weight").unwrap();
    assert!(!down.edited && down.figures.leak == 0.0);
    assert_eq!(data(&before, &down.name), data(&after, &down.name));
    assert_eq!((report.n_edited, report.tensors.len()), (4, 5));
    // Rows where r is zero do not change by being encoded again.
    let (a, b) = (data(&before, "blk.1.ffn_down.weight"), data(&after, "blk.1.ffn_down.weight"));
    let row = a.len() / N_EMBD as usize;
    for (j, (a, b)) in a.chunks(row).zip(b.chunks(row)).enumerate() {
        assert_eq!(a == b, r[j] == 0.0, "row {j}");
    }
    let (a, b) = (data(&before, "token_embd.weight"), data(&after, "token_embd.weight"));
    assert_eq!(a[..4 * 272], b[..4 * 272]);
}

#[test]
fn provenance_is_added_behind_the_other_keys() {
    let bench = Bench::new(&Model::dense("llama", GgmlType::F16).bytes());
    let plan = Plan::new(&bench.open(), &[direction(1)], Options::default()).unwrap();
    let keys = [
        ("ggsteer.version".to_string(), Value::from("0.1.0")),
        ("ggsteer.block".to_string(), Value::from(1u32)),
    ];
    bench.execute(&plan, &keys).unwrap();
    let (before, after) = (bench.open(), bench.result());
    assert_eq!(after.metadata()[..before.metadata().len()], *before.metadata());
    let mut added = after.metadata()[before.metadata().len()..].to_vec();
    assert_eq!(added.pop_if(|(key, _)| key == PADDING_KEY).map(|(key, _)| key), Some(PADDING_KEY.into()));
    assert_eq!(added, keys);
    // The data has moved by whole blocks of a file system, so that it may be shared.
    assert!((after.header_bytes().end - before.header_bytes().end).is_multiple_of(4096));
    verify_untouched(&before, &after, &plan).unwrap();

    // A second rewrite sets its own keys and keeps what the first one said of itself in one line.
    let second = Bench::new(after.bytes());
    let key = |key: &str, value: &str| (key.to_string(), Value::from(value));
    let keys = [key("ggsteer.edit", "orthogonalize"), key("ggsteer.direction.0.sha256", "ff")];
    let plan = Plan::new(&second.open(), &[direction(2)], Options::default()).unwrap();
    second.execute(&plan, &keys).unwrap();
    let twice = second.result();
    let ours = |file: &GgufFile| {
        let keys = file.metadata().iter().map(|(key, _)| key.clone());
        keys.filter(|key| key.starts_with("ggsteer.") && key != PADDING_KEY).collect::<Vec<_>>()
    };
    // It had no `ggsteer.edit`, which stands for an edit.
    assert_eq!(ours(&twice), ["ggsteer.edit", "ggsteer.direction.0.sha256"]);
    verify_untouched(&second.open(), &twice, &plan).unwrap();
    let third = Bench::new(twice.bytes());
    let plan = Plan::new(&third.open(), &[direction(3)], Options::default()).unwrap();
    third.execute(&plan, &keys[..1]).unwrap();
    assert_eq!(ours(&third.result()), ["ggsteer.edit", "ggsteer.history"]);
    let line = "edit=orthogonalize direction.0.sha256=ff".to_string();
    assert_eq!(third.result().get("ggsteer.history"), Some(&Array::String(vec![line]).into()));
    assert_eq!(third.result().file_len(), twice.file_len(), "the zeros make way: nothing moves");
    verify_untouched(&third.open(), &third.result(), &plan).unwrap();

    let out = OutputFile::create(&second.output, true, &[]).unwrap();
    let keys = [("general.alignment".to_string(), Value::from(64u32))];
    let error = execute(&second.open(), &plan, &reencode(), out, &keys, &mut |_| {}).unwrap_err();
    assert!(matches!(error, RewriteError::Gguf(GgufError::FixedKey { .. })));
}

#[test]
fn tied_embeddings_are_edited_untied_or_skipped() {
    let bench = Bench::new(&Model::dense("llama", GgmlType::Q8_0).bytes());
    let data = |file: &GgufFile, name: &str| file.tensor(name).map(|t| file.tensor_data(t).to_vec());
    let original = data(&bench.open(), "token_embd.weight");
    let with = |tied| Options { tied, ..Options::default() };

    let (plan, report) = bench.run(&[direction(1)], with(Tied::Edit)).unwrap();
    assert!(plan.tied_embeddings && !report.untied);
    assert!(plan.to_string().contains("token_embd.weight is also the output matrix: edited as both"));
    assert_ne!(data(&bench.result(), "token_embd.weight"), original);

    let (plan, report) = bench.run(&[direction(1)], with(Tied::Untie)).unwrap();
    let after = bench.result();
    assert!(report.untied);
    assert_ne!(data(&after, "token_embd.weight"), original);
    assert_eq!(data(&after, "output.weight"), original);
    assert_eq!(after.tensors().last().unwrap().name, "output.weight");
    verify_untouched(&bench.open(), &after, &plan).unwrap();

    let (plan, report) = bench.run(&[direction(1)], with(Tied::Skip)).unwrap();
    assert_eq!(data(&bench.result(), "token_embd.weight"), original);
    assert_eq!(report.tensors.len(), 4);
    verify_untouched(&bench.open(), &bench.result(), &plan).unwrap();

    // With an output matrix of its own there is nothing to choose.
    let bench = Bench::new(&Model::dense("llama", GgmlType::Q8_0).with_head(GgmlType::Q8_0).bytes());
    for tied in [Tied::Edit, Tied::Untie, Tied::Skip] {
        let (_, report) = bench.run(&[direction(1)], with(tied)).unwrap();
        assert_eq!((report.tensors.len(), report.untied), (5, false));
    }
    // Where llama.cpp would refuse the file, so do we.
    let bench = Bench::new(&Model::dense("gemma", GgmlType::Q8_0).bytes());
    assert!(matches!(bench.run(&[direction(1)], with(Tied::Untie)), Err(RewriteError::CannotUntie { .. })));
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let bench = Bench::new(&Model::dense("llama", GgmlType::Q4_K).bytes());
    let mut seen = Vec::new();
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (_, report) =
            pool.install(|| bench.run(&[direction(1), direction(2)], Options::default())).unwrap();
        seen.push((fs::read(&bench.output).unwrap(), report));
    }
    assert!(seen.iter().all(|x| *x == seen[0]));
}

#[test]
fn refusals_come_before_anything_is_written() {
    let bench = Bench::new(&Model::dense("llama", GgmlType::F32).bytes());
    let run = |directions: &[Vec<f32>]| bench.run(directions, Options::default()).unwrap_err().to_string();
    assert_eq!(run(&[vec![1.0; 512]]), "direction 0 has n_embd 512, model has 256");
    let mut nan = direction(1);
    nan[7] = f32::NAN;
    assert_eq!(run(&[direction(2), nan]), "direction 1 has a value that is not finite");
    let double = direction(1).iter().map(|x| 2.0 * x).collect();
    assert!(run(&[direction(1), double]).starts_with("direction 1 is zero or lies in the span"));
    assert!(run(&[vec![0.0; 256]]).starts_with("direction 0 is zero"));
    assert_eq!(bench.names(), ["in.gguf"]);

    let iq2 = GgmlType::all().find(|t| t.name() == "iq2_xxs").unwrap();
    for (ty, words) in [(iq2, "they must be known"), (GgmlType::I8, "not a float weight type")] {
        let mut model = Model::dense("llama", GgmlType::F32);
        let down = model.tensors.iter_mut().find(|t| t.0 == "blk.1.ffn_down.weight").unwrap();
        *down = ("blk.1.ffn_gate.2.weight".into(), vec![], GgmlType::F32, vec![0.0]);
        let mut writer = Writer::new()
            .key("general.architecture", "llama")
            .key("llama.block_count", 2u32)
            .key("llama.embedding_length", N_EMBD as u32);
        for (name, ne, ty, _) in &model.tensors {
            writer = writer.tensor(name.clone(), ne, *ty);
        }
        let header = writer.tensor("blk.1.ffn_down.weight", &[N_FF, N_EMBD], ty).header().unwrap();
        let mut bytes = header;
        bytes.resize(bytes.len() + (16 << 20), 0);
        let bench = Bench::new(&bytes);
        let error = bench.run(&[direction(1)], Options::default()).unwrap_err().to_string();
        assert!(error.contains("blk.1.ffn_down.weight") && error.contains(words), "{error}");
        assert_eq!(bench.names(), ["in.gguf"]);
    }
}

#[test]
fn weights_that_are_not_finite_are_named_and_nothing_is_left() {
    let mut model = Model::dense("llama", GgmlType::F32);
    model.values("blk.1.ffn_down.weight")[200 * N_FF as usize + 9] = f32::INFINITY;
    let bench = Bench::new(&model.bytes());
    let error = bench.run(&[direction(1)], Options::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor \"blk.1.ffn_down.weight\": value inf at row 200, column 9 is not finite"
    );
    assert_eq!(bench.names(), ["in.gguf"]);
}

#[test]
fn a_plan_for_another_file_is_refused() {
    let one = Bench::new(&Model::dense("llama", GgmlType::F32).bytes());
    let other = Bench::new(&Model::dense("llama", GgmlType::F16).bytes());
    let plan = Plan::new(&one.open(), &[direction(1)], Options::default()).unwrap();
    assert!(matches!(other.execute(&plan, &[]), Err(RewriteError::OtherFile { .. })));
    assert_eq!(other.names(), ["in.gguf"]);
}

#[test]
fn verification_finds_what_changed() {
    let bench = Bench::new(&Model::dense("llama", GgmlType::F32).bytes());
    let (plan, _) = bench.run(&[direction(1)], Options::default()).unwrap();
    let before = bench.open();
    let good = fs::read(&bench.output).unwrap();
    let check = |bytes: &[u8]| {
        fs::write(&bench.output, bytes).unwrap();
        verify_untouched(&before, &bench.result(), &plan)
    };
    check(&good).unwrap();
    let mut bad = good.clone();
    let range = before.data_range(before.tensor("blk.1.attn_q.weight").unwrap());
    bad[range.start + 5] ^= 1;
    let name = "blk.1.attn_q.weight".to_string();
    assert_eq!(check(&bad), Err(VerifyError::Bytes { name, at: 5 }));
    let mut bad = good.clone();
    let at = bad.windows(12).position(|w| w == b"make-believe").unwrap();
    bad[at] = b'f';
    assert_eq!(check(&bad), Err(VerifyError::Key { key: "general.name".into() }));
    let mut bad = good;
    let at = bad.windows(12).position(|w| w == b"blk.0.attn_k").unwrap();
    bad[at + 11] = b'x';
    assert!(matches!(check(&bad), Err(VerifyError::Tensors { .. })));
}

#[test]
fn progress_runs_from_nothing_to_everything() {
    let bench = Bench::new(&Model::dense("llama", GgmlType::F32).bytes());
    let file = bench.open();
    let plan = Plan::new(&file, &[direction(1)], Options::default()).unwrap();
    let out = OutputFile::create(&bench.output, false, &[&bench.input]).unwrap();
    let (mut seen, mut edited, mut last) = (0, 0, 0);
    execute(&file, &plan, &reencode(), out, &[], &mut |p| {
        assert!(p.bytes_done >= last && p.bytes_done <= p.bytes_total);
        last = p.bytes_done;
        seen += usize::from(p.tensor.is_some());
        edited += usize::from(p.edited);
        assert_eq!(p.tensor.is_none(), p.bytes_done == p.bytes_total);
    })
    .unwrap();
    assert_eq!((seen, edited), (file.tensors().len(), plan.tensors.len()));
}

#[test]
fn a_second_reader_reads_the_output() {
    let bench = Bench::new(&Model::dense("llama", GgmlType::Q4_K).bytes());
    let plan = Plan::new(&bench.open(), &[direction(1)], Options { tied: Tied::Untie, ..Options::default() })
        .unwrap();
    bench.execute(&plan, &[("ggsteer.version".into(), Value::from("0.1.0"))]).unwrap();
    let ours = bench.result();
    let path: &Path = &bench.output;
    let theirs = gguf_rs::get_gguf_container(path.to_str().unwrap()).unwrap().decode().unwrap();
    assert_eq!(theirs.metadata()["ggsteer.version"], "0.1.0");
    assert_eq!(theirs.tensors().len(), ours.tensors().len());
    for (a, b) in ours.tensors().iter().zip(theirs.tensors()) {
        assert_eq!((&a.name, a.offset, a.bytes), (&b.name, b.offset, b.size));
    }
}

/// What llama.cpp wants to know beyond what a plan needs comes in the same way as provenance does.
fn hyperparameters(arch: &str) -> Vec<(String, Value)> {
    let of = |name: &str, value: Value| (format!("{arch}.{name}"), value);
    vec![
        of("context_length", 64u32.into()),
        of("feed_forward_length", (N_FF as u32).into()),
        of("attention.head_count", 4u32.into()),
        of("attention.layer_norm_rms_epsilon", 1e-5f32.into()),
        of("attention.layer_norm_epsilon", 1e-5f32.into()),
        of("logit_scale", 1f32.into()),
        of("vocab_size", (N_VOCAB as u32).into()),
        ("tokenizer.ggml.model".into(), "no_vocab".into()),
        ("ggsteer.version".into(), "0.1.0".into()),
    ]
}

#[test]
fn llama_cpp_loads_what_is_written() {
    use llama_cpp_2::llama_backend::LlamaBackend;
    use llama_cpp_2::model::{LlamaModel, params::LlamaModelParams};
    llama_cpp_2::send_logs_to_tracing(llama_cpp_2::LogOptions::default().with_logs_enabled(false));
    let backend = LlamaBackend::init().unwrap();
    let loads = |bench: &Bench| {
        LlamaModel::load_from_file(&backend, &bench.output, &LlamaModelParams::default()).is_ok()
    };

    let bench = Bench::new(&Model::dense("llama", GgmlType::Q8_0).bytes());
    for tied in [Tied::Edit, Tied::Untie, Tied::Skip] {
        let plan = Plan::new(&bench.open(), &[direction(1)], Options { tied, ..Options::default() }).unwrap();
        bench.execute(&plan, &hyperparameters("llama")).unwrap();
        assert!(loads(&bench), "{tied:?}");
    }

    // Whether an architecture takes an output matrix of its own is llama.cpp's to say: the table says the same.
    for (arch, own, tied) in [
        ("qwen2", true, true),
        ("granite", true, true),
        ("gemma", false, true),
        ("gemma2", false, true),
        ("gemma3", true, true),
        ("internlm2", true, false),
    ] {
        let mut model = Model::dense(arch, GgmlType::F16);
        for blk in ["blk.0", "blk.1"] {
            if matches!(arch, "gemma2" | "gemma3") {
                model.add(&format!("{blk}.post_attention_norm.weight"), &[N_EMBD], GgmlType::F32);
                model.add(&format!("{blk}.post_ffw_norm.weight"), &[N_EMBD], GgmlType::F32);
            }
            if arch == "gemma3" {
                model.add(&format!("{blk}.attn_q_norm.weight"), &[N_EMBD / 4], GgmlType::F32);
                model.add(&format!("{blk}.attn_k_norm.weight"), &[N_EMBD / 4], GgmlType::F32);
            }
        }
        let keys = hyperparameters(arch);
        let without = Bench::new(&model.bytes());
        let with = Bench::new(&model.with_head(GgmlType::F16).bytes());
        for (bench, expected) in [(&with, own), (&without, tied)] {
            let plan = Plan::new(&bench.open(), &[direction(1)], Options::default()).unwrap();
            bench.execute(&plan, &keys).unwrap();
            assert_eq!(loads(bench), expected, "{arch}");
        }
    }
}

/// By ggml's own quantizer.
fn reencode() -> How<'static> {
    How { rounding: Rounding::Reencode, ..How::default() }
}
