//! Against a plain dense H in f64: the metric, the objective, the gains, the codes.

use proptest::prelude::*;

use super::*;
use crate::intervention::extend;
use crate::quant::{self, GgmlType};

fn types() -> Vec<GgmlType> {
    GgmlType::all().filter(|ty| Grid::of(*ty).is_some()).collect()
}

/// Uniform in ±1.
fn noise(random: &mut SplitMix64) -> f64 {
    2.0 * random.unit() - 1.0
}

/// Samples of correlated inputs (rows of n), and the mean squares of these and as many others.
fn inputs(n: usize, n_samples: usize, random: &mut SplitMix64) -> (Vec<f32>, Vec<f32>) {
    let all = 2 * n_samples + 3;
    let mut rows = Vec::with_capacity(all * n);
    for _ in 0..all {
        let common = noise(random);
        // Some inputs are far larger than others, and every ninth is never there.
        rows.extend((0..n).map(|j| match j % 9 {
            8 => 0.0,
            _ => ((common + noise(random)) * (1.0 + 6.0 * f64::from(j % 5 == 0))) as f32,
        }));
    }
    let square = |j: usize| rows[j..].iter().step_by(n).map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let mean_square = (0..n).map(|j| (square(j) / all as f64) as f32).collect();
    rows.truncate(n_samples * n);
    (rows, mean_square)
}

/// H by its definition, n × n: the samples' second moment, shrunk beside the diagonal by the share of noise in it; the
/// diagonal at least that of all inputs; in units of its mean; damping added.
fn second_moment(samples: &[f32], mean_square: &[f32], damping: f32) -> Vec<f64> {
    let n = mean_square.len();
    let unit = n as f64 / mean_square.iter().map(|x| f64::from(*x)).sum::<f64>();
    let mut h = vec![0.0; n * n];
    for x in samples.chunks(n) {
        for (h, xi) in h.chunks_mut(n).zip(x) {
            h.iter_mut().zip(x).for_each(|(h, xj)| *h += f64::from(*xi) * f64::from(*xj));
        }
    }
    let n_samples = (samples.len() / n).max(1) as f64;
    h.iter_mut().for_each(|h| *h *= unit / n_samples);
    let (mut noise, mut all) = (0.0, 0.0);
    for (i, j) in (0..n * n).map(|at| (at / n, at % n)).filter(|(i, j)| i != j) {
        // The squared error of an entry that is a mean over samples.
        let mean = h[i * n + j] / unit;
        let products = samples.chunks(n).map(|x| f64::from(x[i]) * f64::from(x[j]) - mean);
        noise += products.map(|x| x * x).sum::<f64>() / n_samples / (n_samples - 1.0);
        all += mean * mean;
    }
    // One sample tells nothing of its own error, and is all noise.
    let kept = if n_samples > 1.0 && all > 0.0 { 1.0 - (noise / all).min(1.0) } else { 0.0 };
    h.iter_mut().enumerate().filter(|(at, _)| at / n != at % n).for_each(|(_, h)| *h *= kept);
    for j in 0..n {
        let own = &mut h[j * n + j];
        *own = own.max(unit * f64::from(mean_square[j])) + f64::from(damping);
    }
    h
}

/// x H, for rows x.
fn times(x: &[f64], h: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; x.len()];
    for (x, out) in x.chunks(n).zip(out.chunks_mut(n)) {
        for (x, h) in x.iter().zip(h.chunks(n)).filter(|(x, _)| **x != 0.0) {
            out.iter_mut().zip(h).for_each(|(o, h)| *o += x * h);
        }
    }
    out
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

/// k orthonormal directions of n elements, of which a few are large.
fn directions(k: usize, n: usize, random: &mut SplitMix64) -> Vec<Vec<f32>> {
    let mut basis = Vec::new();
    for _ in 0..k {
        let vector = (0..n).map(|_| noise(random) * (1.0 + 8.0 * f64::from(random.unit() > 0.9))).collect();
        extend(&mut basis, vector).unwrap();
    }
    basis.iter().map(|r| r.iter().map(|x| *x as f32).collect()).collect()
}

#[derive(Debug, Clone, Copy)]
struct Shape {
    rows: usize,
    n: usize,
    n_samples: usize,
    k: usize,
    mu: f32,
    damping: f32,
}

/// A matrix that is to lose its part along R, in blocks of which some are zero and some stand at the ends of the grid.
struct Case {
    ty: GgmlType,
    shape: Shape,
    metric: Metric,
    h: Vec<f64>,
    along: Vec<Vec<f32>>,
    blocks: Vec<u8>,
    codes: Vec<u8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
    ideal: Vec<f64>,
    error: Vec<f32>,
    /// The largest weight, offset or ideal at the start.
    largest: f32,
}

impl Case {
    fn new(ty: GgmlType, shape: Shape, random: &mut SplitMix64) -> Self {
        let Shape { rows, n, n_samples, k, damping, .. } = shape;
        let grid = Grid::of(ty).unwrap();
        let (samples, mean_square) = inputs(n, n_samples, random);
        let mut w: Vec<f32> = (0..rows * n).map(|_| (0.05 * noise(random)) as f32).collect();
        let fate: Vec<f64> = w.chunks(grid.block()).map(|_| random.unit()).collect();
        for (w, _) in w.chunks_mut(grid.block()).zip(&fate).filter(|(_, fate)| **fate < 0.15) {
            w.fill(0.0);
        }
        let mut blocks = quant::encode(ty, &w, n, None).unwrap();
        let mut codes = vec![0; rows * n];
        grid.codes(&blocks, &mut codes);
        let last = (grid.levels().len() - 1) as u8;
        for (codes, _) in codes.chunks_mut(grid.block()).zip(&fate).filter(|(_, fate)| **fate > 0.85) {
            codes.iter_mut().for_each(|code| *code = if random.unit() < 0.5 { 0 } else { last });
        }
        grid.pack(&codes, &mut blocks);
        let (mut scales, mut offsets) =
            (vec![0.0; w.len() / grid.group()], vec![0.0; w.len() / grid.group()]);
        grid.scales(&blocks, &mut scales, &mut offsets);
        quant::decode(ty, &blocks, &mut w).unwrap();
        let along = directions(k, rows, random);
        let mut ideal = widen(&w);
        for r in &along {
            let leak = weighted_rows(r, &w, n);
            for (ideal, r) in ideal.chunks_mut(n).zip(r) {
                ideal.iter_mut().zip(&leak).for_each(|(x, l)| *x -= f64::from(*r) * f64::from(*l));
            }
        }
        if k == 0 {
            // Something to do: weights of a higher precision.
            ideal.iter_mut().for_each(|x| *x += 0.01 * noise(random));
        }
        let error = w.iter().zip(&ideal).map(|(w, x)| (f64::from(*w) - x) as f32).collect();
        let metric = Metric::new(&samples, &mean_square, damping);
        let h = second_moment(&samples, &mean_square, damping);
        let largest = ideal.iter().map(|x| *x as f32).chain(w).chain(offsets.iter().copied());
        let largest = largest.fold(0f32, |most, x| most.max(x.abs()));
        Self { ty, shape, metric, h, along, blocks, codes, scales, offsets, ideal, error, largest }
    }

    fn grid(&self) -> &'static Grid {
        Grid::of(self.ty).unwrap()
    }

    fn descent(&mut self) -> Descent<'_> {
        Descent {
            grid: Grid::of(self.ty).unwrap(),
            metric: &self.metric,
            along: &self.along,
            mu: self.shape.mu,
            blocks: &mut self.blocks,
            codes: &mut self.codes,
            scales: &mut self.scales,
            offsets: &mut self.offsets,
            image: self.metric.image(&self.error),
            error: &mut self.error,
        }
    }

    /// What ggml decodes, once the codes are in the blocks.
    fn decoded(&self) -> Vec<f32> {
        let mut bytes = self.blocks.clone();
        self.grid().pack(&self.codes, &mut bytes);
        assert!(quant::validate(self.ty, &bytes), "{}: ggml refuses the blocks", self.ty);
        let mut values = vec![0.0; self.codes.len()];
        quant::decode(self.ty, &bytes, &mut values).unwrap();
        values
    }

    /// E from what ggml decodes.
    fn true_error(&self) -> Vec<f64> {
        self.decoded().iter().zip(&self.ideal).map(|(w, x)| f64::from(*w) - x).collect()
    }

    /// E with what μ adds of the other rows: the rows of (I + μ RᵀR) E.
    fn weighted(&self, e: &[f64]) -> Vec<f64> {
        let n = self.shape.n;
        let mut out = e.to_vec();
        for r in &self.along {
            let mut leak = vec![0.0; n];
            for (r, e) in r.iter().zip(e.chunks(n)) {
                leak.iter_mut().zip(e).for_each(|(l, e)| *l += f64::from(*r) * e);
            }
            for (out, r) in out.chunks_mut(n).zip(r) {
                let c = f64::from(self.shape.mu) * f64::from(*r);
                out.iter_mut().zip(&leak).for_each(|(o, l)| *o += c * l);
            }
        }
        out
    }

    /// J.
    fn objective(&self, e: &[f64]) -> f64 {
        inner(&self.weighted(e), &times(e, &self.h, self.shape.n))
    }

    /// That codes, scales and E say what the bytes say.
    fn check(&self) {
        let (grid, ty, group) = (self.grid(), self.ty, self.grid().group());
        assert!(self.codes.iter().all(|code| usize::from(*code) < grid.levels().len()), "{ty}: codes");
        let decoded = self.decoded();
        let mut largest = self.largest;
        for (i, w) in decoded.iter().enumerate() {
            let value = grid.value(self.scales[i / group], self.offsets[i / group], self.codes[i]);
            assert_eq!(w.to_bits(), value.to_bits(), "{ty}: element {i}");
            largest = largest.max(w.abs()).max(self.offsets[i / group].abs());
        }
        for (i, (e, off)) in self.error.iter().zip(self.true_error()).enumerate() {
            // A rounding for each of the few changes an element sees, of what its value then was.
            let tolerance = 4e-6 * f64::from(largest);
            assert!((f64::from(*e) - off).abs() <= tolerance, "{ty}: E at {i} is {e}, should be {off}");
        }
    }
}

/// Samples: none, as of an imatrix; few, so that H is of low rank; more than columns.
fn samples_for(n: usize, kind: usize) -> usize {
    [0, 1, 24, n + 9][kind]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 6 }))]

    #[test]
    fn nothing_raises_the_objective_and_bytes_codes_and_error_agree(
        seed in any::<u64>(),
        (rows, blocks, kind) in (1usize..10, 1usize..5, 0usize..4),
        (k, mu, damping) in (0usize..5, 0f32..12.0, 0.02f32..0.5),
    ) {
        let mut random = SplitMix64(seed);
        for ty in types() {
            let block = Grid::of(ty).unwrap().block();
            let n = block * blocks.min(256 / block);
            let shape = Shape { rows, n, n_samples: samples_for(n, kind), k: k.min(rows), mu, damping };
            let mut case = Case::new(ty, shape, &mut random);
            case.check();
            let start = case.objective(&case.true_error());
            let mut before = start;
            for turn in 0..6 {
                let did = match turn {
                    0 | 3 => case.descent().refit(),
                    _ => case.descent().sweep(&mut random, turn > 2),
                };
                case.check();
                let after = case.objective(&case.true_error());
                // E is f32 and an element's rounding is of its weight, up to some hundred times what is left of E.
                let noise = 2e-5 * before + 1e-9 * start;
                prop_assert!(after <= before + noise, "{ty} {shape:?}: {before} to {after} at {turn}");
                prop_assert!(did.gain >= 0.0 && (did.moved > 0) == (did.gain > 0.0), "{ty}: {did:?}");
                prop_assert!(
                    (did.gain - (before - after)).abs() <= 1e-3 * did.gain + noise,
                    "{ty} {shape:?}: {did:?} at {turn}, was {before}, is {after}"
                );
                let own = case.descent().objective();
                prop_assert!((own - after).abs() <= 1e-4 * after + noise, "{ty} {shape:?}: {own}, is {after}");
                before = after;
            }
        }
    }

    #[test]
    fn a_run_returns_what_it_found_and_what_it_left(seed in any::<u64>(), kind in 0usize..4, k in 0usize..3) {
        let mut random = SplitMix64(seed);
        for ty in types() {
            let n = Grid::of(ty).unwrap().block();
            let shape = Shape { rows: 6, n, n_samples: samples_for(n, kind), k, mu: 1.0, damping: 0.1 };
            let mut case = Case::new(ty, shape, &mut random);
            let start = case.objective(&case.true_error());
            let [before, left] = case.descent().run(&Settings::default(), &mut random);
            case.check();
            let end = case.objective(&case.true_error());
            prop_assert!((before - start).abs() <= 1e-4 * start, "{ty}: {before}, was {start}");
            prop_assert!((left - end).abs() <= 1e-3 * start, "{ty}: {left}, is {end}");
            prop_assert!(end <= start);
        }
    }

    #[test]
    fn the_metric_is_that_of_a_dense_second_moment(
        seed in any::<u64>(),
        (n, rows, kind) in (8usize..70, 1usize..6, 0usize..5),
        damping in 0f32..1.0,
    ) {
        let mut random = SplitMix64(seed);
        let (metric, h) = if kind == 4 {
            // Rows that are vectors of the stream: I + μ RᵀR.
            let along = directions(3, n, &mut random);
            let mut h = vec![0.0; n * n];
            for i in 0..n {
                h[i * n + i] = 1.0;
                for j in 0..n {
                    h[i * n + j] += along.iter().map(|r| 2.5 * f64::from(r[i]) * f64::from(r[j])).sum::<f64>();
                }
            }
            (Metric::of_rows(&along, n, 2.5), h)
        } else {
            let (samples, mean_square) = inputs(n, samples_for(n, kind), &mut random);
            (Metric::new(&samples, &mean_square, damping), second_moment(&samples, &mean_square, damping))
        };
        let largest = h.iter().fold(0f64, |m, x| m.max(x.abs()));
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * largest * n as f64;
        prop_assert_eq!(metric.n(), n);

        let e: Vec<f32> = (0..rows * n).map(|_| noise(&mut random) as f32).collect();
        let image = metric.image(&e);
        let eh = times(&widen(&e), &h, n);
        prop_assert_eq!(image.len(), rows * metric.rank());
        let mut columns: Vec<usize> = (0..n).collect();
        random.shuffle(&mut columns);
        columns.truncate(1 + n / 2);
        let b = columns.len();
        let at: Vec<f32> = e.chunks(n).flat_map(|e| columns.iter().map(|&j| e[j])).collect();
        let mut gradient = vec![0.0; rows * b];
        metric.gradient(&image, &columns, &at, &mut gradient);
        for (i, g) in gradient.chunks(b).enumerate() {
            prop_assert!(g.iter().zip(&columns).all(|(g, j)| close(f64::from(*g), eh[i * n + j])));
        }
        let block = metric.block(&columns);
        for (i, row) in columns.iter().zip(block.chunks(b)) {
            prop_assert!(row.iter().zip(&columns).all(|(x, j)| close(f64::from(*x), h[i * n + j])));
        }

        let (first, width) = (n / 4, n / 2);
        let part: Vec<f32> = (0..rows * width).map(|_| noise(&mut random) as f32).collect();
        let product = metric.product(&part, first, width);
        for i in 0..rows {
            let own = &image[i * metric.rank()..][..metric.rank()];
            let (e, eh, v) = (&e[i * n..][..n], &eh[i * n..][..n], &part[i * width..][..width]);
            let product = &product[i * metric.rank()..][..metric.rank()];
            let mut whole = vec![0f32; n];
            whole[first..first + width].copy_from_slice(v);
            let whole64 = widen(&whole);
            prop_assert!(close(metric.norm(own, e), inner(&widen(e), eh)));
            prop_assert!(close(metric.inner(product, first, v, own, &e[first..][..width]), inner(&whole64, eh)));
            let vh = times(&whole64, &h, n);
            prop_assert!(close(metric.square(product, first, v), inner(&whole64, &vh)));

            let mut stretched = own.to_vec();
            metric.stretch(&mut stretched, product, first, v, 0.7);
            metric.step(&mut stretched, n - 1, -0.4);
            let mut moved: Vec<f32> = e.iter().zip(&whole).map(|(e, v)| e + 0.7 * v).collect();
            moved[n - 1] -= 0.4;
            for (a, b) in stretched.iter().zip(metric.image(&moved)) {
                prop_assert!(close(f64::from(*a), f64::from(b)));
            }
        }
    }
}

/// A step, two, or none.
struct Choice {
    /// What it adds to J, a little more than it does.
    cost: f64,
    /// How large the terms of that are.
    size: f64,
    moves: Vec<(usize, bool)>,
}

/// The descent again, plainly: H dense and in f64, E H anew before every decision.
struct Plain<'a> {
    case: &'a Case,
    codes: Vec<u8>,
    e: Vec<f64>,
    /// The least share of their own size by which two choices differed: f32 may choose otherwise where that is little.
    margin: f64,
}

impl Plain<'_> {
    fn sweep(&mut self, random: &mut SplitMix64, pairs: bool) {
        let Shape { rows, n, .. } = self.case.shape;
        let mut runs: Vec<usize> = (0..n).step_by(RUN).collect();
        random.shuffle(&mut runs);
        for runs in runs.chunks(BATCH / RUN) {
            let columns: Vec<usize> = runs.iter().flat_map(|&j| j..(j + RUN).min(n)).collect();
            for i in 0..rows {
                for _ in 0..4 * BATCH {
                    let moves = self.choose(i, &columns, pairs);
                    if moves.is_empty() {
                        break;
                    }
                    for (j, upward) in moves {
                        self.e[i * n + j] += self.step(i, j, upward).unwrap();
                        let code = &mut self.codes[i * n + j];
                        *code = if upward { *code + 1 } else { *code - 1 };
                    }
                }
            }
        }
    }

    fn step(&self, i: usize, j: usize, upward: bool) -> Option<f64> {
        let (at, grid) = (i * self.case.shape.n + j, self.case.grid());
        let (levels, code) = (grid.levels(), usize::from(self.codes[at]));
        let to = if upward { code + 1 } else { code.checked_sub(1)? };
        let s = self.case.scales[at / grid.group()] * (levels.get(to)? - levels[code]);
        (s != 0.0).then_some(f64::from(s))
    }

    /// The best step of row i at these columns; else, with `pairs`, the best two; else none.
    fn choose(&mut self, i: usize, columns: &[usize], pairs: bool) -> Vec<(usize, bool)> {
        let case = self.case;
        let (n, h) = (case.shape.n, &case.h);
        let row = &case.weighted(&self.e)[i * n..][..n];
        let along = case.along.iter().map(|r| f64::from(r[i]).powi(2)).sum::<f64>();
        let weight = 1.0 + f64::from(case.shape.mu) * along;
        // Each step with what it adds to J and the size of the terms in that.
        let mut steps = Vec::new();
        for upward in [true, false] {
            for &j in columns {
                let Some(s) = self.step(i, j, upward) else { continue };
                let g: f64 = (0..n).map(|l| row[l] * h[l * n + j]).sum();
                let own = s * s * weight * h[j * n + j];
                steps.push((2.0 * s * g + 1.0001 * own, (2.0 * s * g).abs() + own, s, j, upward));
            }
        }
        let none = || Choice { cost: 0.0, size: 0.0, moves: Vec::new() };
        let mut choices = vec![none()];
        choices.extend(steps.iter().map(|&(cost, size, _, j, upward)| Choice {
            cost,
            size,
            moves: vec![(j, upward)],
        }));
        let best = self.best(&choices);
        if !best.is_empty() || !pairs {
            return best;
        }
        let mut choices = vec![none()];
        for (a, first) in steps.iter().enumerate() {
            for second in steps[..a].iter().filter(|second| second.3 != first.3) {
                let cross = 2.0 * first.2 * second.2 * weight * h[first.3 * n + second.3];
                choices.push(Choice {
                    cost: first.0 + second.0 + cross,
                    size: first.1 + second.1 + cross.abs(),
                    moves: vec![(first.3, first.4), (second.3, second.4)],
                });
            }
        }
        self.best(&choices)
    }

    fn best(&mut self, choices: &[Choice]) -> Vec<(usize, bool)> {
        let costs = choices.iter().map(|choice| choice.cost).enumerate();
        let (at, least) = costs.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        for (_, other) in choices.iter().enumerate().filter(|(i, _)| *i != at) {
            let size = choices[at].size + other.size;
            if size > 0.0 {
                self.margin = self.margin.min((other.cost - least) / size);
            }
        }
        choices[at].moves.clone()
    }
}

#[test]
fn what_few_samples_have_in_common_by_chance_counts_little() {
    let mut random = SplitMix64(5);
    let n = 256;
    let beside = |samples: &[f32]| {
        let h = Metric::new(samples, &vec![1.0; n], 0.1).block(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let all: f64 = (0..64).filter(|at| at % 9 != 0).map(|at| f64::from(h[at]).abs()).sum();
        all / 56.0
    };
    // Inputs without anything in common, and inputs that are all the same but for their size.
    let alone: Vec<f32> = (0..24 * n).map(|_| noise(&mut random) as f32).collect();
    let sizes: Vec<f32> = (0..24).map(|_| noise(&mut random) as f32).collect();
    let same: Vec<f32> = sizes.iter().flat_map(|s| vec![*s; n]).collect();
    assert!(beside(&alone) < 0.02, "{}", beside(&alone));
    let square = sizes.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / 24.0;
    assert!(beside(&same) > 0.9 * square, "{}, of {square}", beside(&same));
}

#[test]
fn the_codes_are_those_of_a_plain_descent_with_a_dense_metric() {
    for ty in types() {
        let block = Grid::of(ty).unwrap().block();
        let (mut decided, mut moved) = (0, 0);
        for seed in 0..8u64 {
            let mut random = SplitMix64(seed);
            let n = block.max(96 / block * block);
            let (kind, k) = ((seed % 4) as usize, (seed % 3) as usize);
            let n_samples = samples_for(n, kind);
            let shape = Shape { rows: 4, n, n_samples, k, mu: 3.0, damping: 0.1 };
            let mut case = Case::new(ty, shape, &mut random);
            for pairs in [false, true] {
                let (start, e) = (case.codes.clone(), widen(&case.error));
                let mut plain = Plain { case: &case, codes: start.clone(), e, margin: f64::INFINITY };
                plain.sweep(&mut random.clone(), pairs);
                let Plain { codes, e, margin, .. } = plain;
                case.descent().sweep(&mut random, pairs);
                moved += codes.iter().zip(&start).filter(|(a, b)| a != b).count();
                // Sums of some hundred terms in f32.
                if margin > 3e-6 {
                    assert_eq!(case.codes, codes, "{ty}, seed {seed}, pairs {pairs}: margin {margin:e}");
                    decided += 1;
                }
                let (ours, theirs) = (case.objective(&case.true_error()), case.objective(&e));
                assert!(
                    (ours - theirs).abs() <= 1e-3 * theirs + 1e-12,
                    "{ty}, seed {seed}: {ours}, {theirs}"
                );
            }
        }
        assert!(moved > 0 && decided >= 4, "{ty}: {moved} moved, {decided} of 16 without a near tie");
    }
}
