//! Against a plain dense oracle: decode all, subtract all, try every code.

use proptest::prelude::*;
use proptest::test_runner::TestRng;

use super::*;
use crate::intervention::extend;
use crate::quant::{self, GgmlType};

fn types() -> Vec<GgmlType> {
    GgmlType::all().filter(|ty| Grid::of(*ty).is_some()).collect()
}

fn decoded(ty: GgmlType, bytes: &[u8], n: usize) -> Vec<f32> {
    let mut out = vec![0.0; n];
    quant::decode(ty, bytes, &mut out).unwrap();
    out
}

fn matrix(ty: GgmlType, data: &[u8], rows: usize, n: usize) -> Rows<'_> {
    Rows { name: "w", ty, data, n, rows, first_row: 7 }
}

fn run(m: Rows<'_>, basis: &Basis, axis: Axis) -> Result<(Vec<u8>, Totals, Saturation), RewriteError> {
    let mut out = Vec::new();
    let grid = Grid::of(m.ty).unwrap();
    let (sums, saturation) = nearest(m, grid, basis, axis, &mut out)?;
    Ok((out, sums, saturation))
}

fn basis(k: usize, n: usize, next: &mut impl FnMut() -> f64) -> Basis {
    let mut basis = Basis::new();
    for _ in 0..k {
        // A heavy tail, as directions have.
        let vector = (0..n).map(|_| next() * (1.0 + 8.0 * f64::from(next() > 0.48))).collect();
        extend(&mut basis, vector).unwrap();
    }
    basis
}

/// W' − W, dense, and how far two ways to add it up may differ: the sum of the sizes of what was added, in units of the
/// last place, one for each addition.
fn edit(w: &[f32], n: usize, basis: &Basis, axis: Axis) -> (Vec<f64>, Vec<f64>) {
    let (mut edit, mut sizes) = (vec![0.0; w.len()], vec![0.0; w.len()]);
    // Element i of the column or row that r runs along, for each of them.
    let (lines, length) = if axis == Axis::Output { (n, w.len() / n) } else { (w.len() / n, n) };
    let at = |line: usize, i: usize| if axis == Axis::Output { i * n + line } else { line * n + i };
    for r in basis {
        for line in 0..lines {
            let terms = || (0..length).map(|i| r[i] * f64::from(w[at(line, i)]));
            let (along, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
            for (i, r) in r.iter().enumerate() {
                edit[at(line, i)] -= r * along;
                sizes[at(line, i)] += r.abs() * size;
            }
        }
    }
    let additions = (length + basis.len()) as f64;
    (edit, sizes.iter().map(|size| size * additions * f64::EPSILON).collect())
}

/// ‖RᵀW‖².
fn projected(w: &[f32], n: usize, basis: &Basis, axis: Axis) -> f64 {
    let mut sum = 0.0;
    for r in basis {
        if axis == Axis::Output {
            for j in 0..n {
                let along: f64 = r.iter().enumerate().map(|(i, r)| r * f64::from(w[i * n + j])).sum();
                sum += along * along;
            }
        } else {
            for w in w.chunks(n) {
                sum += r.iter().zip(w).map(|(r, w)| r * f64::from(*w)).sum::<f64>().powi(2);
            }
        }
    }
    sum
}

/// What every figure should be, and that no code could lie nearer than the one written.
fn check(m: Rows<'_>, basis: &Basis, axis: Axis) {
    let (ty, n) = (m.ty, m.n);
    let grid = Grid::of(ty).unwrap();
    let (bytes, sums, saturation) = run(m, basis, axis).unwrap();
    assert!(quant::validate(ty, &bytes), "{ty}: ggml refuses what was written");
    let (w, written) = (decoded(ty, m.data, m.rows * n), decoded(ty, &bytes, m.rows * n));
    let (edit, doubt) = edit(&w, n, basis, axis);

    let square = |x: f64| x * x;
    let (mut off, mut expected, mut traces) = (0.0, Saturation::default(), 0);
    let groups = w.len() / grid.group();
    let (mut scales, mut offsets) = (vec![0.0; groups], vec![0.0; groups]);
    let (mut codes, mut new) = (vec![0; w.len()], vec![0; w.len()]);
    grid.unpack(m.data, &mut codes, &mut scales, &mut offsets);
    let fields = (scales.clone(), offsets.clone());
    grid.unpack(&bytes, &mut new, &mut scales, &mut offsets);
    assert_eq!((scales, offsets), fields, "{ty}: scales and offsets stay");
    for (i, ((w, e), doubt)) in w.iter().zip(&edit).zip(&doubt).enumerate() {
        let (scale, offset) = (fields.0[i / grid.group()], fields.1[i / grid.group()]);
        let target = f64::from(*w) + e;
        let left = square(f64::from(written[i]) - target);
        off += left;
        // In steps of the grid, on which rounding of the values has no part.
        let step = f64::from(scale);
        // The smallest scale of MXFP4 is 2^-128: far away, all codes would seem as far.
        let place = f64::from(grid.levels()[usize::from(codes[i])]) + (e / step).clamp(-1e4, 1e4);
        let far = |code: u8| {
            let finite = grid.value(scale, offset, code).is_finite();
            if finite { (f64::from(grid.levels()[usize::from(code)]) - place).abs() } else { f64::INFINITY }
        };
        let all = 0..grid.levels().len() as u16;
        if step == 0.0 {
            assert_eq!(new[i], codes[i], "{ty}: a scale of 0 has one value");
            // A sum that cancels may leave a trace or none.
            if e.abs() > *doubt {
                expected.add(Saturation { elements: 1, left });
            } else {
                traces += 1;
            }
            continue;
        }
        let best = all.clone().map(|code| far(code as u8)).fold(f64::INFINITY, f64::min);
        // Where all cancels, what is left may lie on either side of a level of a scale as small as 2^-128.
        let (doubt, far_out) = (doubt / step.abs(), (e.abs() - doubt) / step.abs() > 1e4);
        if doubt > 1e-9 && !far_out {
            assert!(far(new[i]) <= best + 2.0 * doubt, "{ty}: code {} of {i}", new[i]);
            traces += 1;
            continue;
        }
        assert!(far(new[i]) <= best + 1e-9 * (1.0 + (e / step).abs()), "{ty}: code {} of {i}", new[i]);
        if far(codes[i]) <= best * (1.0 + 1e-13) {
            assert_eq!(new[i], codes[i], "{ty}: the present code was as near");
        }
        // Beyond the outermost finite level by more than half the distance to the next inner one.
        let mut ends: Vec<f64> = all
            .filter(|code| grid.value(scale, offset, *code as u8).is_finite())
            .map(|code| f64::from(grid.levels()[usize::from(code)]))
            .collect();
        ends.sort_by(f64::total_cmp);
        let over = |end: f64, inner: f64| 2.0 * (place - end) * (end - inner).signum() > (end - inner).abs();
        if over(ends[0], ends[1]) || over(ends[ends.len() - 1], ends[ends.len() - 2]) {
            expected.add(Saturation { elements: 1, left });
        }
    }

    let near = |name: &str, got: f64, want: f64, scale: f64| {
        assert!((got - want).abs() <= 1e-9 * scale, "{ty} {axis:?}: {name} is {got}, should be {want}");
    };
    let weight = w.iter().map(|x| square(f64::from(*x))).sum();
    let moved = edit.iter().map(|x| square(*x)).sum();
    near("weight", sums.weight, weight, weight);
    let before = projected(&w, n, basis, axis);
    near("before", sums.before, before, before);
    near("after", sums.after, projected(&written, n, basis, axis), before);
    near("edit", sums.edit, moved, moved);
    near("off", sums.off, off, moved.max(off));
    near("left of the saturated", saturation.left, expected.left, moved.max(off));
    let possible = expected.elements..=expected.elements + traces;
    assert!(possible.contains(&saturation.elements), "{ty} {axis:?}: saturated {saturation:?} {possible:?}");
}

/// Bytes of a random matrix with a component along the basis, some rows and groups zero, some codes at their ends.
fn weights(ty: GgmlType, rows: usize, n: usize, flavour: u8, next: &mut impl FnMut() -> f64) -> Vec<u8> {
    let common: Vec<f64> = (0..n).map(|_| next()).collect();
    let mut w: Vec<f32> = Vec::new();
    for i in 0..rows {
        let shared = next();
        w.extend(common.iter().map(|c| (0.02 * (next() + next() + 0.5 * shared * c)) as f32));
        match (flavour, i % 4) {
            (1, 1) => w[i * n..].fill(0.0),
            (1, 2) => w[i * n..i * n + n / 2].fill(0.0),
            (2, _) => w[i * n..].iter_mut().for_each(|x| *x = 0.05f32.copysign(*x)),
            _ => {}
        }
    }
    quant::encode(ty, &w, n, None).unwrap()
}

fn uniform(rng: &mut TestRng) -> impl FnMut() -> f64 + '_ {
    move || f64::from(rng.next_u32()) / f64::from(u32::MAX) - 0.5
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 160 }))]

    #[test]
    fn no_code_lies_nearer_and_the_figures_are_those_of_the_bytes(
        ty in prop::sample::select(types()),
        axis in prop::sample::select(vec![Axis::Output, Axis::Row]),
        (k, rows, blocks) in (1usize..=4, 4usize..24, 1usize..5),
        flavour in 0u8..3,
        mut rng in any::<u64>().prop_perturb(|_, rng| rng),
    ) {
        let n = blocks * ty.block_size() as usize;
        let next = &mut uniform(&mut rng);
        let data = weights(ty, rows, n, flavour, next);
        let width = if axis == Axis::Output { rows } else { n };
        let basis = basis(k, width, next);
        check(matrix(ty, &data, rows, n), &basis, axis);
    }
}

#[test]
fn bytes_and_figures_do_not_depend_on_the_number_of_threads() {
    let mut rng = TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let next = &mut uniform(&mut rng);
    // Several chunks, slabs and stripes, none of them full.
    let (rows, n) = (330, 2560);
    for (ty, axis) in
        [(GgmlType::Q4_K, Axis::Output), (GgmlType::Q8_0, Axis::Output), (GgmlType::Q6_K, Axis::Row)]
    {
        let data = weights(ty, rows, n, 1, next);
        let basis = basis(3, if axis == Axis::Output { rows } else { n }, next);
        let of = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(matrix(ty, &data, rows, n), &basis, axis).unwrap())
        };
        let one = of(1);
        assert!(one.0 != data, "{ty}: something moved");
        assert!(chunks(&matrix(ty, &data, rows, n)).len() > 1);
        for threads in [2, 5] {
            assert!(of(threads) == one, "{ty}: {threads} threads");
        }
        check(matrix(ty, &data, rows, n), &basis, axis);
    }
}

#[test]
fn a_tie_keeps_the_present_code() {
    let row = |first: f32| {
        let mut row = [0.0f32; 32];
        (row[0], row[31]) = (first, -8.0);
        quant::encode(GgmlType::Q4_0, &row, 32, None).unwrap()
    };
    // W's first column is (1, 0) steps and r = (√½, −√½): each element should move by half a step.
    let data = [row(1.0), row(0.0)].concat();
    let half = 0.5f64.sqrt();
    let m = matrix(GgmlType::Q4_0, &data, 2, 32);
    let mut basis = vec![vec![half, -half]];
    let (bytes, ..) = run(m, &basis, Axis::Output).unwrap();
    assert_eq!(bytes, data);
    // A little more of it, and both move.
    (basis[0][0], basis[0][1]) = (half + 1e-6, -half + 1e-6);
    let (bytes, ..) = run(m, &basis, Axis::Output).unwrap();
    assert_eq!(decoded(GgmlType::Q4_0, &bytes, 64)[0], 0.0);
}

#[test]
fn without_a_component_the_bytes_are_kept() {
    let data = quant::encode(GgmlType::Q4_K, &[0.0; 1024], 256, None).unwrap();
    let m = matrix(GgmlType::Q4_K, &data, 4, 256);
    for (basis, axis) in [
        (vec![vec![0.5; 4]], Axis::Output),
        (Basis::new(), Axis::Output),
        (vec![vec![0.0625; 256]], Axis::Row),
        (Basis::new(), Axis::Row),
    ] {
        let (bytes, sums, saturation) = run(m, &basis, axis).unwrap();
        assert_eq!((bytes, sums, saturation), (data.clone(), Totals::default(), Saturation::default()));
    }
}

#[test]
fn outer_levels_that_would_be_infinite_are_not_taken() {
    // 2^126 · 3 is finite, 2^126 · 4 is not.
    let mut block = vec![254];
    block.extend([0x33; 16]);
    let data = [block.clone(), block].concat();
    let m = matrix(GgmlType::MXFP4, &data, 2, 32);
    assert!(decoded(GgmlType::MXFP4, &data, 64).iter().all(|x| x.is_finite()));
    check(m, &vec![vec![0.8, -0.6]], Axis::Output);
    check(m, &vec![vec![0.6, 0.8]], Axis::Output);
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    for (ty, axis) in [
        (GgmlType::Q4_0, Axis::Output),
        (GgmlType::Q4_0, Axis::Row),
        (GgmlType::MXFP4, Axis::Output),
        (GgmlType::MXFP4, Axis::Row),
    ] {
        let mut data = quant::encode(ty, &[0.5; 6 * 64], 64, None).unwrap();
        let third = 2 * data.len() / 6 + data.len() / 12;
        if ty == GgmlType::MXFP4 {
            // The largest power of two, times 4 or more.
            data[third] = 254;
        } else {
            data[third..third + 2].copy_from_slice(&[0x00, 0x7e]);
        }
        let n = if axis == Axis::Output { 6 } else { 64 };
        let basis = vec![vec![1.0 / (n as f64).sqrt(); n]];
        match run(matrix(ty, &data, 6, 64), &basis, axis) {
            Err(RewriteError::Weight { tensor, row, column, .. }) => {
                assert_eq!((tensor.as_str(), row, column), ("w", 9, 32), "{ty} {axis:?}");
            }
            other => panic!("{ty} {axis:?}: {other:?}"),
        }
    }
}

#[test]
fn a_full_disk_is_reported() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let data = quant::encode(GgmlType::Q8_0, &[0.5; 4 * 32], 32, None).unwrap();
    let grid = Grid::of(GgmlType::Q8_0).unwrap();
    let m = matrix(GgmlType::Q8_0, &data, 4, 32);
    let result = nearest(m, grid, &vec![vec![0.5; 4]], Axis::Output, &mut Full);
    assert!(matches!(result, Err(RewriteError::Write(_))));
}
