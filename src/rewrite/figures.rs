//! One way to measure an edit, on decoded bytes: for the rewriter as it writes, for the proof afterwards.
//!
//! W is the input tensor, Ŵ what the written bytes decode to, R (k × n_embd, orthonormal) the directions as this tensor
//! sees them, s the strength of the edit (1 for all of it), W' = W − s·R(RᵀW) the exact edit. X holds inputs of the
//! writer that were not used in choosing Ŵ, a column a token. Norms are Frobenius.
#![forbid(unsafe_code)]

use serde::Serialize;

use super::rows::{mixed_dot, project};
use crate::arch::Axis;

/// How much of an edit is in a written tensor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Figures {
    /// ‖RᵀŴ‖ / ‖RᵀW‖: 0 is a perfect ablation, 1 none.
    pub leak: f64,
    /// ‖RᵀŴX‖ / ‖RᵀWX‖: what still reaches the stream along the directions, on inputs that occur.
    pub data_leak: Option<f64>,
    /// ‖(Ŵ − W')X‖ / ‖(W − W')X‖: 0 where the edit is exactly there, 1 where it is no better than not editing.
    pub edit_error: Option<f64>,
    /// ‖Ŵ − W'‖ / ‖W − W'‖: how far the written matrix is from the exact edit, in units of the edit.
    pub distance: f64,
    /// ‖RᵀW‖ / ‖W‖: the share of the matrix that lies along the directions.
    pub share: f64,
}

/// The sums of squares that [`Figures`] are made of; those of the slices of a tensor add up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// ‖W‖².
    pub weight: f64,
    /// ‖RᵀW‖².
    pub before: f64,
    /// ‖RᵀŴ‖².
    pub after: f64,
    /// ‖W − W'‖².
    pub edit: f64,
    /// ‖Ŵ − W'‖².
    pub off: f64,
    /// ‖RᵀWX‖².
    pub before_x: f64,
    /// ‖RᵀŴX‖².
    pub after_x: f64,
    /// ‖(W − W')X‖².
    pub edit_x: f64,
    /// ‖(Ŵ − W')X‖².
    pub off_x: f64,
    /// Tokens in X.
    pub n_inputs: u64,
}

impl Totals {
    /// Adds those of another slice.
    pub fn add(&mut self, other: &Self) {
        self.weight += other.weight;
        self.before += other.before;
        self.after += other.after;
        self.edit += other.edit;
        self.off += other.off;
        self.before_x += other.before_x;
        self.after_x += other.after_x;
        self.edit_x += other.edit_x;
        self.off_x += other.off_x;
        self.n_inputs += other.n_inputs;
    }

    /// The ratios; 0 where there was nothing to begin with.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let ratio = |a: f64, b: f64| if b > 0.0 { (a / b).sqrt() } else { 0.0 };
        let with_inputs = |a: f64, b: f64| (self.n_inputs > 0).then(|| ratio(a, b));
        Figures {
            leak: ratio(self.after, self.before),
            data_leak: with_inputs(self.after_x, self.before_x),
            edit_error: with_inputs(self.off_x, self.edit_x),
            distance: ratio(self.off, self.edit),
            share: ratio(self.before, self.weight),
        }
    }
}

/// What [`Meter::measure`] saw in one chunk of rows. Parts are added in a fixed order, so that the figures do not depend
/// on the number of threads.
#[derive(Debug, Clone)]
pub struct Part {
    totals: Totals,
    /// RᵀŴ of these rows alone: k × n.
    left: Vec<Vec<f64>>,
}

impl Part {
    /// Adds the part of another chunk of the same slice.
    pub fn add(&mut self, other: &Self) {
        self.totals.add(&other.totals);
        for (to, from) in self.left.iter_mut().zip(&other.left) {
            to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        }
    }
}

/// Measures one slice of a tensor, fed with chunks of its rows. Memory: 2k + n_held_out rows.
#[derive(Debug)]
pub struct Meter<'a> {
    basis: &'a [Vec<f64>],
    axis: Axis,
    n: usize,
    strength: f64,
    /// RᵀW, k × n; empty along rows, where each row has its own.
    along: Vec<Vec<f64>>,
    inputs: Samples,
    /// RᵀWX: k × n_inputs.
    along_x: Vec<Vec<f64>>,
}

impl<'a> Meter<'a> {
    /// A meter for rows of `n` elements.
    ///
    /// `basis` is R as this tensor sees it, k × n_embd; `strength` the s of W' = W − s·R(RᵀW). For [`Axis::Output`],
    /// `along` is RᵀW of the slice (k × n) and `inputs` the held-out rows, n_inputs × `n`, flat, or nothing. For the
    /// other axes both are without meaning and left empty.
    #[must_use]
    pub fn new(
        basis: &'a [Vec<f64>],
        axis: Axis,
        n: usize,
        strength: f64,
        along: Vec<Vec<f64>>,
        inputs: &[f32],
    ) -> Self {
        let inputs = if axis == Axis::Output { inputs } else { &[] };
        let along_x = apply(&along, inputs, n);
        Self { basis, axis, n, strength, along, inputs: Samples::new(inputs, n), along_x }
    }

    /// RᵀW of the slice, k × n; empty along rows.
    #[must_use]
    pub fn along(&self) -> &[Vec<f64>] {
        &self.along
    }

    /// W' for the rows of `w` from row `first` of the slice on.
    #[must_use]
    pub fn ideal(&self, first: usize, w: &[f32]) -> Vec<f64> {
        let mut ideal: Vec<f64> = w.iter().map(|x| f64::from(*x)).collect();
        let rows = w.chunks_exact(self.n).zip(ideal.chunks_exact_mut(self.n));
        for (j, (w, ideal)) in rows.enumerate() {
            for (i, r) in self.basis.iter().enumerate() {
                let (factor, vector) = match self.axis {
                    Axis::Output => (r[first + j], &self.along[i]),
                    Axis::Row | Axis::Bias => (mixed_dot(w, r), r),
                };
                let factor = factor * self.strength;
                ideal.iter_mut().zip(vector).for_each(|(x, v)| *x -= factor * v);
            }
        }
        ideal
    }

    /// Measures rows of W and Ŵ, from row `first` of the slice on, against W − s·R(RᵀW).
    #[must_use]
    pub fn measure(&self, first: usize, w: &[f32], written: &[f32]) -> Part {
        let mut part = self.compare(first, w, &self.ideal(first, w), written);
        // (W − W')X = s·R(RᵀWX): of rank k, so no second product is needed.
        if self.inputs.len() > 0 {
            for j in first..first + w.len() / self.n {
                part.totals.edit_x += self.column(|i| self.strength * self.basis[i][j]);
            }
        }
        part
    }

    /// As [`Meter::measure`] against another target: `ideal` holds its rows. Takes twice as long.
    #[must_use]
    pub fn measure_against(&self, first: usize, w: &[f32], ideal: &[f64], written: &[f32]) -> Part {
        let mut part = self.compare(first, w, ideal, written);
        if self.inputs.len() > 0 {
            let edit: Vec<f32> = w.iter().zip(ideal).map(|(w, x)| (f64::from(*w) - x) as f32).collect();
            part.totals.edit_x = self.inputs.square(&edit);
        }
        part
    }

    /// The totals of the slice from the sum of its parts.
    #[must_use]
    pub fn totals(&self, parts: &Part) -> Totals {
        let square = |rows: &[Vec<f64>]| rows.iter().flatten().map(|x| x * x).sum::<f64>();
        let mut totals = parts.totals;
        if self.axis == Axis::Output {
            totals.before = square(&self.along);
            totals.after = square(&parts.left);
            totals.before_x = square(&self.along_x);
            totals.after_x = square(&self.inputs.apply(&parts.left));
            totals.n_inputs = self.inputs.len() as u64;
        }
        totals
    }

    /// Σ over inputs of (Σ_i factor(i)·(RᵀWX)[i])².
    fn column(&self, factor: impl Fn(usize) -> f64) -> f64 {
        (0..self.inputs.len())
            .map(|x| self.along_x.iter().enumerate().map(|(i, a)| factor(i) * a[x]).sum::<f64>().powi(2))
            .sum()
    }

    /// Everything but ‖(W − W')X‖.
    fn compare(&self, first: usize, w: &[f32], ideal: &[f64], written: &[f32]) -> Part {
        let mut totals = Totals::default();
        let mut off = vec![0.0; w.len()];
        for (((w, ideal), written), off) in w.iter().zip(ideal).zip(written).zip(&mut off) {
            let (w, e) = (f64::from(*w), f64::from(*written) - ideal);
            totals.weight += w * w;
            totals.edit += (w - ideal).powi(2);
            totals.off += e * e;
            *off = e as f32;
        }
        let mut left = Vec::new();
        if self.axis == Axis::Output {
            left = project(written, self.n, first, self.basis);
            totals.off_x = self.inputs.square(&off);
        } else {
            let square = |x: &[f32]| {
                x.chunks_exact(self.n)
                    .flat_map(|row| self.basis.iter().map(|r| mixed_dot(row, r).powi(2)))
                    .sum()
            };
            (totals.before, totals.after) = (square(w), square(written));
        }
        Part { totals, left }
    }
}

/// rows · X, rows of `n`, in f64: rows × n_inputs.
fn apply(rows: &[Vec<f64>], inputs: &[f32], n: usize) -> Vec<Vec<f64>> {
    let of = |row: &Vec<f64>| inputs.chunks_exact(n.max(1)).map(|x| mixed_dot(x, row)).collect();
    rows.iter().map(of).collect()
}

/// Inputs multiplied at once by one row, and rows at once by one group of inputs: the products then stay in registers.
const LANES: usize = 8;
const ROWS: usize = 4;
/// Columns summed in f32 before they go into an f64.
const SPAN: usize = 256;

/// Inputs in groups of [`LANES`], column by column within a group; the last group filled with zeros.
#[derive(Debug)]
struct Samples {
    n: usize,
    groups: Vec<Vec<[f32; LANES]>>,
    rows: Vec<f32>,
}

impl Samples {
    fn new(inputs: &[f32], n: usize) -> Self {
        let group = |rows: &[f32]| {
            let mut columns = vec![[0.0; LANES]; n];
            for (lane, row) in rows.chunks_exact(n).enumerate() {
                columns.iter_mut().zip(row).for_each(|(column, x)| column[lane] = *x);
            }
            columns
        };
        let groups = inputs.chunks((LANES * n).max(1)).map(group).collect();
        Self { n, groups, rows: inputs.to_vec() }
    }

    fn len(&self) -> usize {
        self.rows.len() / self.n.max(1)
    }

    fn apply(&self, rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
        apply(rows, &self.rows, self.n)
    }

    /// Σ (row·x)² over all rows of `matrix` and all inputs x; products in f32, long sums and squares in f64.
    fn square(&self, matrix: &[f32]) -> f64 {
        let n_rows = matrix.len() / self.n.max(1);
        let mut total = 0.0;
        let mut sums = vec![[0f64; LANES]; n_rows];
        for group in &self.groups {
            sums.fill([0.0; LANES]);
            for (span, columns) in group.chunks(SPAN).enumerate() {
                let at = |row: usize| &matrix[row * self.n + span * SPAN..][..columns.len()];
                let mut row = 0;
                while row + ROWS <= n_rows {
                    let products = dots(columns, [at(row), at(row + 1), at(row + 2), at(row + 3)]);
                    add(&mut sums[row..], &products);
                    row += ROWS;
                }
                for row in row..n_rows {
                    add(&mut sums[row..], &dots(columns, [at(row)]));
                }
            }
            total += sums.iter().flatten().map(|x| x * x).sum::<f64>();
        }
        total
    }
}

/// Each row with each of [`LANES`] inputs: columns from first to last.
fn dots<const R: usize>(columns: &[[f32; LANES]], rows: [&[f32]; R]) -> [[f32; LANES]; R] {
    let mut sums = [[0f32; LANES]; R];
    // Cut to one length, which spares the bounds checks in the loop.
    let rows = rows.map(|row| &row[..columns.len()]);
    for (c, x) in columns.iter().enumerate() {
        for (sum, row) in sums.iter_mut().zip(&rows) {
            for (sum, x) in sum.iter_mut().zip(x) {
                *sum += row[c] * x;
            }
        }
    }
    sums
}

fn add(sums: &mut [[f64; LANES]], products: &[[f32; LANES]]) {
    for (sum, product) in sums.iter_mut().flatten().zip(products.iter().flatten()) {
        *sum += f64::from(*product);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intervention::extend;

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut random = crate::random::SplitMix64(seed);
        (0..n).map(|_| (random.bits() >> 40) as f32 / (1u64 << 24) as f32 - 0.5).collect()
    }

    fn basis(k: usize, n: usize, seed: u64) -> Vec<Vec<f64>> {
        let mut basis = Vec::new();
        for i in 0..k {
            let vector = noise(n, seed + i as u64).iter().map(|x| f64::from(*x)).collect();
            extend(&mut basis, vector).unwrap();
        }
        basis
    }

    /// rows × columns, f64.
    type Dense = Vec<Vec<f64>>;

    fn dense(values: &[f32], n: usize) -> Dense {
        values.chunks(n).map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect()
    }

    fn transposed(a: &Dense) -> Dense {
        (0..a[0].len()).map(|c| a.iter().map(|row| row[c]).collect()).collect()
    }

    fn product(a: &Dense, b: &Dense) -> Dense {
        let b = transposed(b);
        a.iter()
            .map(|row| b.iter().map(|col| row.iter().zip(col).map(|(x, y)| x * y).sum()).collect())
            .collect()
    }

    fn minus(a: &Dense, b: &Dense, scale: f64) -> Dense {
        a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(x, y)| x - scale * y).collect()).collect()
    }

    fn norm(a: &Dense) -> f64 {
        a.iter().flatten().map(|x| x * x).sum::<f64>().sqrt()
    }

    /// The definitions, word for word.
    fn oracle(w: &Dense, written: &Dense, ideal: &Dense, basis: &Dense, x: Option<&Dense>) -> Figures {
        let ratio = |a: &Dense, b: &Dense| norm(a) / norm(b);
        let (rw, rv) = (product(basis, w), product(basis, written));
        let (off, edit) = (minus(written, ideal, 1.0), minus(w, ideal, 1.0));
        let x = x.map(transposed);
        Figures {
            leak: ratio(&rv, &rw),
            data_leak: x.as_ref().map(|x| ratio(&product(&rv, x), &product(&rw, x))),
            edit_error: x.as_ref().map(|x| ratio(&product(&off, x), &product(&edit, x))),
            distance: ratio(&off, &edit),
            share: norm(&rw) / norm(w),
        }
    }

    fn close(a: Figures, b: Figures) {
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * (1.0 + b.abs());
        assert!(
            near(a.leak, b.leak) && near(a.distance, b.distance) && near(a.share, b.share),
            "{a:?} {b:?}"
        );
        for (a, b) in [(a.data_leak, b.data_leak), (a.edit_error, b.edit_error)] {
            assert_eq!(a.is_some(), b.is_some());
            assert!(a.zip(b).is_none_or(|(a, b)| near(a, b)), "{a:?} {b:?}");
        }
    }

    fn meter(
        (w, written): (&[f32], &[f32]),
        meter: &Meter<'_>,
        chunk: usize,
        ideal: Option<&[f64]>,
    ) -> Figures {
        let n = meter.n;
        let mut sum: Option<Part> = None;
        for (i, (w, v)) in w.chunks(chunk * n).zip(written.chunks(chunk * n)).enumerate() {
            let first = i * chunk;
            let part = match ideal {
                None => meter.measure(first, w, v),
                Some(ideal) => meter.measure_against(first, w, &ideal[first * n..][..w.len()], v),
            };
            match &mut sum {
                None => sum = Some(part),
                Some(sum) => sum.add(&part),
            }
        }
        meter.totals(&sum.unwrap()).figures()
    }

    #[test]
    fn equals_the_definitions_on_matrices() {
        for (n_out, n_in, k, n_x, strength) in [(13, 300, 1, 5, 1.0), (8, 17, 2, 9, 0.4), (5, 7, 3, 1, -1.0)]
        {
            let w = noise(n_out * n_in, 1);
            let written: Vec<f32> =
                w.iter().zip(noise(w.len(), 2)).map(|(w, e)| 0.9 * w + 0.05 * e).collect();
            let basis = basis(k, n_out, 3);
            let x = noise(n_x * n_in, 9);
            let along = project(&w, n_in, 0, &basis);
            let dense_w = dense(&w, n_in);
            let removed = product(&transposed(&basis), &product(&basis, &dense_w));
            let ideal = minus(&dense_w, &removed, strength);
            let expected = |x: Option<&Dense>| oracle(&dense_w, &dense(&written, n_in), &ideal, &basis, x);
            let meter_with = |x: &[f32]| Meter::new(&basis, Axis::Output, n_in, strength, along.clone(), x);
            for chunk in [1, 4, 100] {
                let found = meter((&w, &written), &meter_with(&x), chunk, None);
                close(found, expected(Some(&dense(&x, n_in))));
                close(meter((&w, &written), &meter_with(&[]), chunk, None), expected(None));
            }
            let other: Dense = minus(&ideal, &dense_w, 0.3);
            let flat = other.concat();
            let found = meter((&w, &written), &meter_with(&x), 3, Some(&flat));
            close(found, oracle(&dense_w, &dense(&written, n_in), &other, &basis, Some(&dense(&x, n_in))));
        }
    }

    #[test]
    fn equals_the_definitions_along_rows() {
        let (rows, n) = (9, 40);
        let w = noise(rows * n, 1);
        let written: Vec<f32> = w.iter().zip(noise(w.len(), 2)).map(|(w, e)| 0.9 * w + 0.05 * e).collect();
        let basis = basis(2, n, 5);
        // The stream runs along the rows: the same definitions on the transpose.
        let (tw, tv) = (transposed(&dense(&w, n)), transposed(&dense(&written, n)));
        let ideal = minus(&tw, &product(&transposed(&basis), &product(&basis, &tw)), 1.0);
        let expected = oracle(&tw, &tv, &ideal, &basis, None);
        let by_row = Meter::new(&basis, Axis::Row, n, 1.0, Vec::new(), &w);
        close(meter((&w, &written), &by_row, 4, None), expected);
    }

    #[test]
    fn nothing_and_everything_are_zero_and_one() {
        let (n_out, n_in) = (6, 33);
        let (w, x) = (noise(n_out * n_in, 4), noise(8 * n_in, 6));
        let basis = basis(1, n_out, 7);
        let of = Meter::new(&basis, Axis::Output, n_in, 1.0, project(&w, n_in, 0, &basis), &x);
        let kept = meter((&w, &w), &of, 2, None);
        close(
            kept,
            Figures {
                leak: 1.0,
                data_leak: Some(1.0),
                edit_error: Some(1.0),
                distance: 1.0,
                share: kept.share,
            },
        );
        let exact: Vec<f32> = of.ideal(0, &w).iter().map(|x| *x as f32).collect();
        let done = meter((&w, &exact), &of, 2, None);
        close(
            done,
            Figures {
                leak: 0.0,
                data_leak: Some(0.0),
                edit_error: Some(0.0),
                distance: 0.0,
                share: kept.share,
            },
        );
        let zero = Meter::new(&basis, Axis::Output, n_in, 1.0, vec![vec![0.0; n_in]], &x);
        assert_eq!(
            meter((&[0.0; 66], &[0.0; 66]), &zero, 2, None),
            Figures { data_leak: Some(0.0), edit_error: Some(0.0), ..Figures::default() }
        );
    }
}
