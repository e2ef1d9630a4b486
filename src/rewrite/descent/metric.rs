//! What an error in a writer's weights costs: H, the second moment of the writer's inputs, n × n.
#![forbid(unsafe_code)]
// What `wide` is to compile for the processor's vectors must be inlined into it.
#![allow(clippy::inline_always)]

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

use crate::quant::wide;

/// H of one matrix, with columns j < n:
///
/// - dense, where there are more samples than columns: H itself;
/// - low rank, where there are fewer: H = F Fᵀ + diag(d), F holding the samples, n × rank.
///
/// Both are scaled so that the mean of the diagonal is 1 before the damping δ is added to it. What a row e of E has to
/// do with H is kept as its *image*: e F, or e itself where H is dense.
#[derive(Debug)]
pub(in crate::rewrite) struct Metric {
    n: usize,
    rank: usize,
    /// Row j is F_j, or H_j where dense; n × rank.
    factor: Vec<f32>,
    /// What the diagonal has beyond the factor's; empty where dense.
    diagonal: Vec<f32>,
}

impl Metric {
    /// From sampled inputs (rows of n) and the mean of x_j² over all inputs, of which the samples are a part: the means
    /// give the diagonal, the samples what lies beside it, less the [share](noise) of that which is noise.
    pub fn new(samples: &[f32], mean_square: &[f32], damping: f32) -> Self {
        let n = mean_square.len();
        let n_samples = samples.len() / n.max(1);
        let mean = mean_square.iter().map(|x| f64::from(*x)).sum::<f64>() / n.max(1) as f64;
        // Inputs that are zero everywhere leave the damping alone.
        let unit = if mean > 0.0 { 1.0 / mean } else { 0.0 };
        let kept = 1.0 - noise(samples, n) as f32;
        // What the diagonal lacks, when so much of the samples' own is in it.
        let beyond =
            |j: usize, own: f32, kept: f32| damping + (unit as f32 * mean_square[j]).max(own) - kept * own;
        if n_samples > n {
            let mut factor = vec![0.0; n * n];
            let x = view(samples, n_samples, n);
            let scale = (unit / n_samples as f64) as f32;
            general_mat_mul(scale, &x.t(), &x, 0.0, &mut view_mut(&mut factor, n, n));
            for j in 0..n {
                let row = &mut factor[j * n..][..n];
                let own = row[j];
                row.iter_mut().for_each(|h| *h *= kept);
                row[j] = own + beyond(j, own, 1.0);
            }
            return Self { n, rank: n, factor, diagonal: Vec::new() };
        }
        let scale = (unit / n_samples.max(1) as f64).sqrt() as f32;
        let mut factor = vec![0.0; n * n_samples];
        for (s, row) in samples.chunks_exact(n.max(1)).enumerate() {
            for (j, x) in row.iter().enumerate() {
                factor[j * n_samples + s] = scale * x;
            }
        }
        let square = |j: usize| factor[j * n_samples..][..n_samples].iter().map(|x| x * x).sum();
        let diagonal = (0..n).map(|j| beyond(j, square(j), kept)).collect();
        factor.iter_mut().for_each(|f| *f *= kept.sqrt());
        Self { n, rank: n_samples, factor, diagonal }
    }

    /// I + μ RᵀR, for rows that are vectors of the stream themselves: `along` is R, k × n.
    pub fn of_rows(along: &[Vec<f32>], n: usize, mu: f32) -> Self {
        let factor = (0..n).flat_map(|j| along.iter().map(move |r| mu.sqrt() * r[j])).collect();
        Self { n, rank: along.len(), factor, diagonal: vec![1.0; n] }
    }

    pub fn n(&self) -> usize {
        self.n
    }

    /// Elements of a row's image.
    pub fn rank(&self) -> usize {
        self.rank
    }

    fn is_dense(&self) -> bool {
        self.diagonal.is_empty()
    }

    /// The images of the rows of E, rows × rank.
    pub fn image(&self, error: &[f32]) -> Vec<f32> {
        if self.is_dense() {
            return error.to_vec();
        }
        self.product(error, 0, self.n)
    }

    /// The images of rows that are `part` (rows × width) from column `first` on and zero elsewhere: part F, rows × rank;
    /// where H is dense, part H.
    pub fn product(&self, part: &[f32], first: usize, width: usize) -> Vec<f32> {
        let rows = part.len() / width.max(1);
        let mut out = vec![0.0; rows * self.rank];
        let factor = view(&self.factor[first * self.rank..][..width * self.rank], width, self.rank);
        general_mat_mul(
            1.0,
            &view(part, rows, width),
            &factor,
            0.0,
            &mut view_mut(&mut out, rows, self.rank),
        );
        out
    }

    /// Adds to a row's image what a step s at column j changes.
    pub fn step(&self, image: &mut [f32], j: usize, s: f32) {
        if self.is_dense() {
            image[j] += s;
        } else {
            axpy(image, s, &self.factor[j * self.rank..][..self.rank]);
        }
    }

    /// E H at `columns` for every row of E, rows × b, from E's images and E at these columns (rows × b).
    pub fn gradient(&self, image: &[f32], columns: &[usize], at: &[f32], out: &mut [f32]) {
        let (b, rows) = (columns.len(), at.len() / columns.len().max(1));
        let factor = self.gather(columns);
        let factor = view(&factor, b, self.rank);
        general_mat_mul(1.0, &view(image, rows, self.rank), &factor.t(), 0.0, &mut view_mut(out, rows, b));
        if !self.is_dense() {
            let d: Vec<f32> = columns.iter().map(|&j| self.diagonal[j]).collect();
            for (g, e) in out.chunks_exact_mut(b).zip(at.chunks_exact(b)) {
                g.iter_mut().zip(e).zip(&d).for_each(|((g, e), d)| *g += e * d);
            }
        }
    }

    /// H at `columns` × `columns`, b × b.
    pub fn block(&self, columns: &[usize]) -> Vec<f32> {
        let b = columns.len();
        if self.is_dense() {
            let at = |i: &usize, j: &usize| self.factor[i * self.rank + j];
            return columns.iter().flat_map(|i| columns.iter().map(move |j| at(i, j))).collect();
        }
        let factor = self.gather(columns);
        let factor = view(&factor, b, self.rank);
        let mut block = vec![0.0; b * b];
        general_mat_mul(1.0, &factor, &factor.t(), 0.0, &mut view_mut(&mut block, b, b));
        for (i, &j) in columns.iter().enumerate() {
            block[i * b + i] += self.diagonal[j];
        }
        block
    }

    /// v H eᵀ for a v that is zero but from column `first` on: from its product, and e's image and part.
    pub fn inner(&self, product: &[f32], first: usize, v: &[f32], image: &[f32], e: &[f32]) -> f64 {
        let mut sum = dot(product, image);
        if !self.is_dense() {
            for ((v, e), d) in v.iter().zip(e).zip(&self.diagonal[first..]) {
                sum += f64::from(v * e * d);
            }
        }
        sum
    }

    /// e H eᵀ from e's image.
    pub fn norm(&self, image: &[f32], e: &[f32]) -> f64 {
        if self.is_dense() { dot(&self.product(e, 0, self.n), e) } else { self.inner(image, 0, e, image, e) }
    }

    /// v H vᵀ from v's product.
    pub fn square(&self, product: &[f32], first: usize, v: &[f32]) -> f64 {
        if self.is_dense() {
            dot(&product[first..][..v.len()], v)
        } else {
            self.inner(product, first, v, product, v)
        }
    }

    /// Adds t v to the row whose image this is.
    pub fn stretch(&self, image: &mut [f32], product: &[f32], first: usize, v: &[f32], t: f32) {
        if self.is_dense() { axpy(&mut image[first..], t, v) } else { axpy(image, t, product) }
    }

    fn gather(&self, columns: &[usize]) -> Vec<f32> {
        columns.iter().flat_map(|&j| &self.factor[j * self.rank..][..self.rank]).copied().collect()
    }
}

/// The share of noise in what lies beside the diagonal of a second moment of few samples (rows of n), from 0 to 1: its
/// expected squared error over its squared size (Ledoit & Wolf 2004, with the diagonal as the target).
fn noise(samples: &[f32], n: usize) -> f64 {
    let count = samples.len() / n.max(1);
    if count < 2 {
        return 1.0;
    }
    // All sums over i ≠ j, as those over all less those over i = j.
    let (mut products, mut own) = (0.0, vec![0f64; n]);
    for x in samples.chunks_exact(n) {
        let (mut square, mut fourth) = (0.0, 0.0);
        for (own, x) in own.iter_mut().zip(x) {
            let x = f64::from(*x).powi(2);
            *own += x;
            square += x;
            fourth += x * x;
        }
        products += square * square - fourth;
    }
    let x = view(samples, count, n);
    let mut gram = vec![0.0; count * count];
    general_mat_mul(1.0, &x, &x.t(), 0.0, &mut view_mut(&mut gram, count, count));
    let all: f64 = gram.iter().map(|g| f64::from(*g).powi(2)).sum();
    let m = count as f64;
    let size = (all - own.iter().map(|x| x * x).sum::<f64>()) / (m * m);
    let error = (products / m - size) / (m - 1.0);
    if size > 0.0 { (error / size).clamp(0.0, 1.0) } else { 1.0 }
}

fn view(data: &[f32], rows: usize, columns: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, columns), data).expect("the shape is that of the data")
}

fn view_mut(data: &mut [f32], rows: usize, columns: usize) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, columns), data).expect("the shape is that of the data")
}

/// x += t v.
fn axpy(x: &mut [f32], t: f32, v: &[f32]) {
    wide(
        #[inline(always)]
        || x.iter_mut().zip(v).for_each(|(x, v)| *x += t * v),
    );
}

/// Short sums in f32 lanes, the long one in f64.
#[inline]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    crate::intervention::dot(a, b)
}
