//! How near each way of rounding comes to the exact edit, type by type, on the sample model's own matrices.
//!
//! `cargo bench --bench rounding [TYPE…]`. Every matrix that writes the residual stream is encoded in the type by ggml (the
//! importance of its inputs given where the type needs one), then the direction is written out of it in each of these
//! ways, and the figures are taken from the file by `verify`, on inputs that no way has seen:
//!
//! - nearest code: on the grid that is there, by the weights alone;
//! - re-encoding: decode, edit, encode by ggml, once;
//! - 16 damped passes: the same, then 15 times again with half of what is off taken out of the target;
//! - descent, first settings: μ 10, δ 0.1, 4 sweeps of single steps, scales kept;
//! - descent: the default settings;
//! - descent, F16 source: the same, started from the weights before they were quantized. What it is measured against is
//!   the edit of those, so its edit error has the quantization's own error in it.
//!
//! Figures are means over the sixteen matrices, edit error also as of all matrices together (√ of the sums of squares).

mod sample;

use std::path::Path;
use std::time::Instant;

use ggsteer::arch::{self, Axis};
use ggsteer::calibration::Calibration;
use ggsteer::direction::Direction;
use ggsteer::gguf::{GgufFile, Writer};
use ggsteer::output::OutputFile;
use ggsteer::quant::{self, GgmlType, Grid};
use ggsteer::rewrite::{Figures, How, Meter, Options, Plan, Rounding, Settings, execute};

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    let model = sample::load(&sample::f16());
    let direction = sample::direction(&model, None);
    let calibration = sample::calibration(&model, &direction, 1);
    let folder = tempfile::tempdir().unwrap();
    println!("direction of block {}; 16 matrices, 256 wide; inputs under ablation", direction.block);
    println!(
        "{:<8} {:<24} {:>8} {:>10} {:>11} {:>9} {:>9} {:>8}",
        "type", "way", "leak", "data leak", "edit error", "(all)", "distance", "seconds"
    );
    let types = GgmlType::all().filter(|ty| ty.can_encode() && ty.block_size() > 1);
    for ty in types.filter(|ty| wanted.is_empty() || wanted.iter().any(|w| w.eq_ignore_ascii_case(ty.name())))
    {
        of_type(ty, folder.path(), &direction, &calibration);
    }
}

/// A file whose residual matrices are of a type, and the ways of editing it.
fn of_type(ty: GgmlType, folder: &Path, direction: &Direction, calibration: &Calibration) {
    let source = GgufFile::open(sample::f16()).unwrap();
    let path = folder.join(format!("{ty}.gguf"));
    quantized(&source, ty, calibration, &path);
    let file = GgufFile::open(&path).unwrap();
    let first = Settings {
        mu: 10.0,
        mu_rows: 10.0,
        damping: 0.1,
        sweeps: 4,
        pairs_from: usize::MAX,
        refit_every: 0,
        tolerance: 0.0,
    };
    let how = |rounding, source| How { rounding, calibration: Some(calibration), source, seed: 1 };
    let descent = Rounding::Descent(Settings::default());
    let mut ways = vec![("re-encoding", how(Rounding::Reencode, None))];
    if Grid::of(ty).is_some() {
        ways = vec![
            ("nearest code", how(Rounding::Nearest, None)),
            ("re-encoding", how(Rounding::Reencode, None)),
            ("descent, first settings", how(Rounding::Descent(first), None)),
            ("descent", how(descent, None)),
            ("descent, F16 source", how(descent, Some(&source))),
        ];
    }
    for (name, how) in ways {
        let plan = Plan::new(&file, std::slice::from_ref(&direction.vector), Options::default()).unwrap();
        let out = OutputFile::create(&folder.join("out.gguf"), true, &[]).unwrap();
        let start = Instant::now();
        let written = execute(&file, &plan, &how, out, &[], &mut |_| ()).unwrap();
        let seconds = start.elapsed().as_secs_f64();
        let original = how.source.unwrap_or(&file);
        let figures = measure(original, written.file(), direction, calibration);
        line(ty, name, &figures, seconds);
    }
    let start = Instant::now();
    let damped = folder.join("damped.gguf");
    damped_passes(&file, direction, calibration, &damped);
    let seconds = start.elapsed().as_secs_f64();
    let figures = measure(&file, &GgufFile::open(&damped).unwrap(), direction, calibration);
    line(ty, "16 damped passes", &figures, seconds);
}

/// Each matrix's figures, and ‖(Ŵ − W')X‖², ‖(W − W')X‖².
type Measured = Vec<(Figures, [f64; 2])>;

fn line(ty: GgmlType, name: &str, measured: &Measured, seconds: f64) {
    let n = measured.len() as f64;
    let mean = |f: &dyn Fn(&Figures) -> f64| measured.iter().map(|(figures, _)| f(figures)).sum::<f64>() / n;
    let sum = |i: usize| measured.iter().map(|(_, squares)| squares[i]).sum::<f64>();
    println!(
        "{:<8} {name:<24} {:>8.4} {:>10.4} {:>11.4} {:>9.4} {:>9.3} {seconds:>8.2}",
        ty.name(),
        mean(&|f| f.leak),
        mean(&|f| f.data_leak.unwrap()),
        mean(&|f| f.edit_error.unwrap()),
        (sum(0) / sum(1)).sqrt(),
        mean(&|f| f.distance),
    );
}

fn matrices(file: &GgufFile) -> Vec<String> {
    let writers = arch::writers(file).unwrap();
    writers.into_iter().filter(|w| w.axis == Axis::Output).map(|w| w.tensor).collect()
}

fn decode(file: &GgufFile, name: &str) -> (Vec<f32>, usize) {
    let info = file.tensor(name).unwrap();
    let mut values = vec![0.0; info.elements() as usize];
    quant::decode(info.ty, file.tensor_data(info), &mut values).unwrap();
    (values, info.ne[0] as usize)
}

fn unit(direction: &Direction) -> Vec<Vec<f64>> {
    let norm = direction.norm();
    vec![direction.vector.iter().map(|x| f64::from(*x) / norm).collect()]
}

/// RᵀW, 1 × n.
fn along(w: &[f32], n: usize, r: &[f64]) -> Vec<Vec<f64>> {
    let mut sum = vec![0.0; n];
    for (row, r) in w.chunks_exact(n).zip(r) {
        sum.iter_mut().zip(row).for_each(|(s, x)| *s += r * f64::from(*x));
    }
    vec![sum]
}

/// The figures of every matrix of `out` as an edit of `original`, from what both decode to.
fn measure(
    original: &GgufFile,
    out: &GgufFile,
    direction: &Direction,
    calibration: &Calibration,
) -> Measured {
    let basis = unit(direction);
    let one = |name: String| {
        let (w, n) = decode(original, &name);
        let (written, _) = decode(out, &name);
        let held_out = calibration.inputs(&name).unwrap().held_out(0).unwrap();
        let meter = Meter::new(&basis, Axis::Output, n, 1.0, along(&w, n, &basis[0]), &held_out);
        let totals = meter.totals(&meter.measure(0, &w, &written));
        (totals.figures(), [totals.off_x, totals.edit_x])
    };
    matrices(original).into_iter().map(one).collect()
}

/// The sample with its residual matrices in a type.
fn quantized(source: &GgufFile, ty: GgmlType, calibration: &Calibration, path: &Path) {
    let names = matrices(source);
    let mut writer = Writer::new();
    for (key, value) in source.metadata() {
        writer = writer.key(key.clone(), value.clone());
    }
    for info in source.tensors() {
        let ty = if names.contains(&info.name) { ty } else { info.ty };
        writer = writer.tensor(info.name.clone(), info.shape(), ty);
    }
    let mut stream = writer.start(Vec::new()).unwrap();
    for info in source.tensors() {
        if names.contains(&info.name) {
            let (values, n) = decode(source, &info.name);
            let importance = calibration.inputs(&info.name).unwrap().mean_square(0);
            let importance = ty.needs_importance().then_some(importance);
            stream.data(&quant::encode(ty, &values, n, importance).unwrap()).unwrap();
        } else {
            stream.data(source.tensor_data(info)).unwrap();
        }
    }
    std::fs::write(path, stream.finish().unwrap()).unwrap();
}

/// Re-encoding 16 times, each time with half of what is off taken out of the target.
fn damped_passes(file: &GgufFile, direction: &Direction, calibration: &Calibration, path: &Path) {
    let basis = unit(direction);
    let mut bytes = file.bytes().to_vec();
    for name in matrices(file) {
        let info = file.tensor(&name).unwrap();
        let (w, n) = decode(file, &name);
        let meter = Meter::new(&basis, Axis::Output, n, 1.0, along(&w, n, &basis[0]), &[]);
        let ideal = meter.ideal(0, &w);
        let importance = calibration.inputs(&name).unwrap().mean_square(0);
        let importance = Grid::of(info.ty).is_none().then_some(importance);
        let mut target: Vec<f32> = ideal.iter().map(|x| *x as f32).collect();
        let mut encoded = Vec::new();
        for _ in 0..16 {
            encoded = quant::encode(info.ty, &target, n, importance).unwrap();
            let mut written = vec![0.0; w.len()];
            quant::decode(info.ty, &encoded, &mut written).unwrap();
            for ((t, x), written) in target.iter_mut().zip(&ideal).zip(&written) {
                *t += 0.5 * (*x as f32 - written);
            }
        }
        bytes[file.data_range(info)].copy_from_slice(&encoded);
    }
    std::fs::write(path, bytes).unwrap();
}
