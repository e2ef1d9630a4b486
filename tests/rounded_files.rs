//! Rounding whole files: what the number of threads and the order of the tensors have no part in, what is refused before
//! anything is written, and what is said about weights that do not fit.

use std::fs;
use std::path::PathBuf;

use ggsteer::calibration::Calibration;
use ggsteer::gguf::{Array, GgufFile, Writer};
use ggsteer::output::OutputFile;
use ggsteer::quant::{self, GgmlType, Grid};
use ggsteer::random::SplitMix64;
use ggsteer::rewrite::{How, Method, Options, Plan, Report, RewriteError, Rounding, Settings, execute};

const N_EMBD: usize = 128;
const N_FF: usize = 256;
const DOWN: [&str; 2] = ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"];
const OUTPUT: [&str; 2] = ["blk.0.attn_output.weight", "blk.1.attn_output.weight"];

fn ty(name: &str) -> GgmlType {
    GgmlType::all().find(|ty| ty.name() == name).unwrap()
}

fn noise(random: &mut SplitMix64) -> f32 {
    (2.0 * random.unit() - 1.0) as f32
}

struct Tensor {
    name: String,
    ne: [u64; 2],
    ty: GgmlType,
    data: Vec<u8>,
}

/// A llama of two blocks, its matrices of several types.
fn model() -> Vec<Tensor> {
    let mut tensors = Vec::new();
    let mut add = |name: String, ne: [usize; 2], of: &str| {
        let mut random = SplitMix64(tensors.len() as u64);
        let values: Vec<f32> = (0..ne[0] * ne[1]).map(|_| 0.1 * noise(&mut random)).collect();
        let data = quant::encode(ty(of), &values, ne[0], None).unwrap();
        tensors.push(Tensor { name, ne: ne.map(|n| n as u64), ty: ty(of), data });
    };
    add("token_embd.weight".into(), [N_EMBD, 40], "q4_0");
    for (il, [output, down]) in [["q5_1", "q4_K"], ["iq4_nl", "q3_K"]].into_iter().enumerate() {
        add(format!("blk.{il}.attn_norm.weight"), [N_EMBD, 1], "f32");
        for name in ["attn_q", "attn_k", "attn_v"] {
            add(format!("blk.{il}.{name}.weight"), [N_EMBD, N_EMBD], "q8_0");
        }
        add(OUTPUT[il].into(), [N_EMBD, N_EMBD], output);
        add(format!("blk.{il}.ffn_norm.weight"), [N_EMBD, 1], "f32");
        for name in ["ffn_gate", "ffn_up"] {
            add(format!("blk.{il}.{name}.weight"), [N_EMBD, N_FF], "q8_0");
        }
        add(DOWN[il].into(), [N_FF, N_EMBD], down);
    }
    add("output_norm.weight".into(), [N_EMBD, 1], "f32");
    add("output.weight".into(), [N_EMBD, 40], "q8_0");
    tensors
}

struct Bench {
    dir: tempfile::TempDir,
    file: GgufFile,
}

impl Bench {
    fn new(tensors: &[Tensor]) -> Self {
        let mut writer = Writer::new()
            .key("general.architecture", "llama")
            .key("llama.block_count", 2u32)
            .key("llama.embedding_length", N_EMBD as u32)
            .key("tokenizer.ggml.tokens", Array::String((0..40).map(|i| format!("t{i}")).collect()));
        for Tensor { name, ne, ty, .. } in tensors {
            writer = writer.tensor(name.clone(), ne, *ty);
        }
        let mut stream = writer.start(Vec::new()).unwrap();
        tensors.iter().for_each(|t| stream.data(&t.data).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in.gguf");
        fs::write(&path, stream.finish().unwrap()).unwrap();
        Self { file: GgufFile::open(&path).unwrap(), dir }
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out.gguf")
    }

    /// Two directions.
    fn plan(&self) -> Plan {
        let mut random = SplitMix64(7);
        let directions: Vec<Vec<f32>> =
            (0..2).map(|_| (0..N_EMBD).map(|_| noise(&mut random).powi(3)).collect()).collect();
        Plan::new(&self.file, &directions, Options::default()).unwrap()
    }

    fn execute(&self, how: &How<'_>) -> Result<(Report, GgufFile), RewriteError> {
        let out = OutputFile::create(&self.output(), true, &[]).unwrap();
        let report = execute(&self.file, &self.plan(), how, out, &[], &mut |_| {})?.commit()?;
        Ok((report, GgufFile::open(self.output()).unwrap()))
    }

    /// On so many threads.
    fn on(&self, threads: usize, how: &How<'_>) -> (Report, Vec<u8>) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (report, file) = pool.install(|| self.execute(how).unwrap());
        (report, file.bytes().to_vec())
    }
}

/// A calibration of the model's quantized matrices, without `without`; `n_down` are the inputs of the `ffn_down`.
fn calibration(without: Option<&str>, n_down: usize) -> Calibration {
    let mut writer = Writer::new()
        .key("general.architecture", "ggsteer-calibration")
        .key("ggsteer.calibration.seed", 1u64)
        .key("ggsteer.calibration.generated", 0u64)
        .key("ggsteer.calibration.ablated", Array::String(Vec::new()));
    let writers = OUTPUT.map(|name| (name, N_EMBD)).into_iter().chain(DOWN.map(|name| (name, n_down)));
    let writers: Vec<(&str, usize)> = writers.filter(|(name, _)| Some(*name) != without).collect();
    let (n_fit, n_held_out) = (40usize, 12usize);
    for &(name, n) in &writers {
        writer = writer
            .tensor(format!("{name}.counts"), &[3, 1], ty("i64"))
            .tensor(format!("{name}.mean_square"), &[n as u64, 1], ty("f32"))
            .tensor(format!("{name}.fit"), &[n as u64, n_fit as u64, 1], ty("bf16"))
            .tensor(format!("{name}.held_out"), &[n as u64, n_held_out as u64, 1], ty("bf16"));
    }
    let mut stream = writer.start(Vec::new()).unwrap();
    for (seed, &(_, n)) in writers.iter().enumerate() {
        let mut random = SplitMix64(seed as u64);
        let counts = [n_fit, n_fit, n_held_out].map(|n| (n as u64).to_le_bytes());
        stream.data(&counts.concat()).unwrap();
        stream.data(&1f32.to_le_bytes().repeat(n)).unwrap();
        // Inputs that have a few things in common, on both sides.
        let common: Vec<f32> = (0..6 * n).map(|_| noise(&mut random)).collect();
        for rows in [n_fit, n_held_out] {
            let mut values: Vec<f32> = (0..rows * n).map(|_| 0.3 * noise(&mut random)).collect();
            for row in values.chunks_mut(n) {
                for common in common.chunks(n) {
                    let much = noise(&mut random);
                    row.iter_mut().zip(common).for_each(|(x, c)| *x += much * c);
                }
            }
            stream.data(&quant::encode(ty("bf16"), &values, n, None).unwrap()).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("calibration.gguf");
    fs::write(&path, stream.finish().unwrap()).unwrap();
    Calibration::load(&path).unwrap()
}

#[test]
fn the_number_of_threads_and_the_order_of_tensors_change_no_byte() {
    let calibration = calibration(None, N_FF);
    let mut tensors = model();
    let bench = Bench::new(&tensors);
    tensors.reverse();
    let turned = Bench::new(&tensors);
    for (rounding, method) in [
        (Rounding::default(), Method::Descent),
        (Rounding::Nearest, Method::Nearest),
        (Rounding::Reencode, Method::Reencoded),
    ] {
        let how = How { rounding, calibration: Some(&calibration), ..How::default() };
        let (report, bytes) = bench.on(1, &how);
        assert!(report.tensors.iter().all(|t| t.method == method), "{method}: {:?}", report.tensors);
        for threads in [2, 4] {
            assert!(
                bench.on(threads, &how) == (report.clone(), bytes.clone()),
                "{method}, {threads} threads"
            );
        }
        let (_, there) = bench.execute(&how).unwrap();
        let (_, other) = turned.execute(&how).unwrap();
        for info in there.tensors() {
            let same = other.tensor(&info.name).unwrap();
            assert_eq!(there.tensor_data(info), other.tensor_data(same), "{method}: {}", info.name);
            assert!(quant::validate(info.ty, there.tensor_data(info)), "{method}: {}", info.name);
        }
    }
    // Where columns are visited in another order, other codes are found: there is an order to be independent of.
    let seeded = |seed| How { calibration: Some(&calibration), seed, ..How::default() };
    assert_ne!(bench.on(1, &seeded(0)).1, bench.on(1, &seeded(1)).1);
}

#[test]
fn rounding_for_inputs_is_nearer_on_inputs_that_were_held_out() {
    let calibration = calibration(None, N_FF);
    let bench = Bench::new(&model());
    let errors = |rounding| -> Vec<f64> {
        let how = How { rounding, calibration: Some(&calibration), ..How::default() };
        let (report, _) = bench.execute(&how).unwrap();
        report.tensors.iter().filter_map(|t| t.figures.edit_error).collect()
    };
    let descent = errors(Rounding::default());
    let reencoded = errors(Rounding::Reencode);
    assert_eq!((descent.len(), reencoded.len()), (4, 4));
    for (descent, reencoded) in descent.iter().zip(&reencoded) {
        assert!(descent < reencoded, "{descent}, re-encoded {reencoded}");
    }
}

#[test]
fn inputs_that_are_missing_or_of_another_model_stop_it_before_anything_is_written() {
    let bench = Bench::new(&model());
    let refused = |how: &How<'_>| {
        let out = OutputFile::create(&bench.output(), true, &[]).unwrap();
        let error = execute(&bench.file, &bench.plan(), how, out, &[], &mut |_| panic!("under way"));
        let left: Vec<_> = fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["in.gguf"]);
        error.unwrap_err()
    };
    let error = refused(&How::default());
    let RewriteError::Uncalibrated { tensor, ty } = &error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), ty.name()), (OUTPUT[0], "q5_1"));
    let text = error.to_string();
    for word in [OUTPUT[0], "q5_1", "give prompts", "importance matrix"] {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }

    // The last one, with which the others would have been written before it.
    let partial = calibration(Some(DOWN[1]), N_FF);
    let error = refused(&How { calibration: Some(&partial), ..How::default() });
    let RewriteError::Uncalibrated { tensor, ty } = &error else { panic!("{error}") };
    assert_eq!((tensor.as_str(), ty.name()), (DOWN[1], "q3_K"));

    let other = calibration(None, N_EMBD);
    let text = refused(&How { calibration: Some(&other), ..How::default() }).to_string();
    for word in [DOWN[0], "inputs of 256 elements for 1 slices", "inputs of 128 elements"] {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}

#[test]
fn weights_that_do_not_fit_are_counted_with_their_share_of_the_edit() {
    let calibration = calibration(None, N_FF);
    let mut tensors = model();
    let mut random = SplitMix64(3);
    // Every code at an end of its grid, and now and then a block of scale 0 that cannot follow at all.
    for t in tensors.iter_mut().filter(|t| DOWN.contains(&t.name.as_str())) {
        let grid = Grid::of(t.ty).unwrap();
        let last = (grid.levels().len() - 1) as u8;
        let mut codes = vec![0; (t.ne[0] * t.ne[1]) as usize];
        codes.iter_mut().for_each(|code| *code = if random.unit() < 0.5 { 0 } else { last });
        grid.pack(&codes, &mut t.data);
        for block in t.data.chunks_mut(grid.block_bytes()).step_by(7) {
            for field in 0..grid.n_shared() {
                grid.stretch(block, field, 0.0);
            }
        }
    }
    let bench = Bench::new(&tensors);
    let basis = {
        // The plan's directions, orthonormal: two, by Gram and Schmidt.
        let mut random = SplitMix64(7);
        let mut next =
            || -> Vec<f64> { (0..N_EMBD).map(|_| f64::from(noise(&mut random).powi(3))).collect() };
        let unit = |v: &mut Vec<f64>| {
            let length = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            v.iter_mut().for_each(|x| *x /= length);
        };
        let (mut a, mut b) = (next(), next());
        unit(&mut a);
        let along: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
        b.iter_mut().zip(&a).for_each(|(b, a)| *b -= along * a);
        unit(&mut b);
        [a, b]
    };
    let fixed = Settings { refit_every: 0, ..Settings::default() };
    for rounding in [Rounding::Nearest, Rounding::Descent(fixed), Rounding::default()] {
        let how = How { rounding, calibration: Some(&calibration), ..How::default() };
        let (report, out) = bench.execute(&how).unwrap();
        for name in DOWN {
            let of = report.tensors.iter().find(|t| t.name == name).unwrap();
            let (expected, share) = saturated(&bench.file, &out, name, &basis);
            assert!(expected > 500, "{rounding:?} {name}: {expected}");
            // An element at half a step, to within rounding, is either.
            assert!(
                of.saturated.abs_diff(expected) <= 2,
                "{rounding:?} {name}: {}, {expected}",
                of.saturated
            );
            let found = of.saturated_share;
            assert!(
                share > 0.05 && (found / share - 1.0).abs() < 1e-3,
                "{rounding:?} {name}: {found}, {share}"
            );
        }
    }
}

/// Elements whose W' lies more than half a step beyond what the written scales reach, and their share of ‖W − W'‖.
fn saturated(old: &GgufFile, new: &GgufFile, name: &str, basis: &[Vec<f64>]) -> (u64, f64) {
    let decoded = |file: &GgufFile| {
        let info = file.tensor(name).unwrap();
        let mut values = vec![0f32; info.elements() as usize];
        quant::decode(info.ty, file.tensor_data(info), &mut values).unwrap();
        values
    };
    let (w, written) = (decoded(old), decoded(new));
    let mut ideal: Vec<f64> = w.iter().map(|x| f64::from(*x)).collect();
    for r in basis {
        for j in 0..N_FF {
            let along: f64 = r.iter().enumerate().map(|(i, r)| r * f64::from(w[i * N_FF + j])).sum();
            r.iter().enumerate().for_each(|(i, r)| ideal[i * N_FF + j] -= r * along);
        }
    }
    let info = new.tensor(name).unwrap();
    let grid = Grid::of(info.ty).unwrap();
    let (mut scales, mut offsets) = (vec![0.0; w.len() / grid.group()], vec![0.0; w.len() / grid.group()]);
    grid.scales(new.tensor_data(info), &mut scales, &mut offsets);
    let (levels, mut count, mut left, mut edit) = (grid.levels(), 0, 0.0, 0.0);
    for (i, x) in ideal.iter().enumerate() {
        let (scale, offset) = (f64::from(scales[i / grid.group()]), f64::from(offsets[i / grid.group()]));
        let ends = [levels[0], levels[levels.len() - 1]].map(|level| offset + scale * f64::from(level));
        let half = 0.5 * scale.abs();
        let (low, high) = (ends[0].min(ends[1]) - half, ends[0].max(ends[1]) + half);
        edit += (f64::from(w[i]) - x).powi(2);
        if *x < low - 1e-12 || *x > high + 1e-12 {
            count += 1;
            left += (f64::from(written[i]) - x).powi(2);
        }
    }
    (count, (left / edit).sqrt())
}
