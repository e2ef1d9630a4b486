//! Ablation and addition as values, used by the runtime hook and by the rewriter alike.
//!
//! Shapes: a direction is a vector of `n_embd` elements; a [`Basis`] holds k orthonormal ones.
//!
//! ```
//! use ggsteer::intervention::Basis;
//!
//! let basis = Basis::new(&[vec![3.0, 4.0]])?;
//! let mut x = [1.0, 0.0];
//! basis.ablate(&mut x);
//! // x − r(r·x) with r = (0.6, 0.8)
//! assert!((x[0] - 0.64).abs() < 1e-6 && (x[1] + 0.48).abs() < 1e-6);
//! assert!(basis.component(&x) < 1e-6);
//! # Ok::<(), ggsteer::intervention::Error>(())
//! ```
#![forbid(unsafe_code)]

mod projection;

pub use projection::{Projection, Side};

/// After an erasure, what is left along a direction may be this part of ‖x‖ at most.
const ABLATED: f64 = 1e-4;

/// What makes a set of vectors unusable as an intervention.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// A vector with a NaN or an infinity.
    #[error("direction {index}: element {element} is not finite")]
    NotFinite {
        /// Which vector of the set.
        index: usize,
        /// Which element of it.
        element: usize,
    },
    /// A vector of norm zero, or one that is a combination of those before it.
    #[error("direction {index}: zero, or a linear combination of the directions before it")]
    Dependent {
        /// Which vector of the set.
        index: usize,
    },
    /// Vectors of different widths.
    #[error("direction {index}: expected {expected} elements, found {found}")]
    Width {
        /// Which vector of the set.
        index: usize,
        /// Elements of the first vector.
        expected: usize,
        /// Elements of this one.
        found: usize,
    },
}

/// k orthonormal vectors of `n_embd` elements that span the subspace to erase.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Basis {
    vectors: Vec<Vec<f32>>,
}

impl Basis {
    /// Orthonormalizes `directions` (each `n_embd`, any length) by Gram–Schmidt, twice over, in f64.
    ///
    /// # Errors
    /// Non-finite elements, differing widths, zero or linearly dependent vectors.
    pub fn new<V: AsRef<[f32]>>(directions: &[V]) -> Result<Self, Error> {
        let width = directions.first().map_or(0, |v| v.as_ref().len());
        let mut basis: Vec<Vec<f64>> = Vec::new();
        for (index, v) in directions.iter().enumerate() {
            let v = v.as_ref();
            if v.len() != width {
                return Err(Error::Width { index, expected: width, found: v.len() });
            }
            if let Some(element) = v.iter().position(|x| !x.is_finite()) {
                return Err(Error::NotFinite { index, element });
            }
            let v = v.iter().map(|&x| f64::from(x)).collect();
            extend(&mut basis, v).map_err(|_| Error::Dependent { index })?;
        }
        let vectors = basis.iter().map(|u| u.iter().map(|&x| x as f32).collect()).collect();
        Ok(Self { vectors })
    }

    /// The orthonormal vectors, each `n_embd`.
    #[must_use]
    pub fn vectors(&self) -> &[Vec<f32>] {
        &self.vectors
    }

    /// No vector at all: nothing is erased.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// x ← x − r(r·x) for every vector r of the basis; `x` is one row of the residual stream (`n_embd`).
    pub fn ablate(&self, x: &mut [f32]) {
        for r in &self.vectors {
            let c = dot(r, x) as f32;
            x.iter_mut().zip(r).for_each(|(x, r)| *x -= c * r);
        }
    }

    /// The largest |r·x| over the basis.
    #[must_use]
    pub fn component(&self, x: &[f32]) -> f64 {
        self.vectors.iter().map(|r| dot(r, x).abs()).fold(0.0, f64::max)
    }
}

/// Which tokens something is done at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Positions {
    /// All of them, as Arditi et al. 2024 do.
    #[default]
    All,
    /// Those of the prompt: what is generated goes on by itself, which keeps a large coefficient fluent.
    Prompt,
    /// Those that are generated: the prompt is read as it is.
    Generated,
}

impl Positions {
    /// Whether a token of the prompt, or a generated one, is among them.
    #[must_use]
    pub fn include(self, prompt: bool) -> bool {
        match self {
            Self::All => true,
            Self::Prompt => prompt,
            Self::Generated => !prompt,
        }
    }
}

/// c·v added to the output of one block.
#[derive(Debug, Clone, PartialEq)]
pub struct Addition {
    /// 0-based block whose output receives it.
    pub block: usize,
    /// The vector with its coefficient multiplied in; `n_embd`.
    pub vector: Vec<f32>,
    /// Where in the sequence.
    pub positions: Positions,
}

/// What is done to the residual stream of a sequence while the model runs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Intervention {
    /// Erased after every write to the stream.
    pub ablate: Basis,
    /// Taken out in part, one after the other, after the ablation at the same write. They are for a running model
    /// alone: no edit of weights does the same.
    pub project: Vec<Projection>,
    /// Added at their blocks' outputs, after what is taken out there.
    pub add: Vec<Addition>,
}

/// A write to the stream, as an intervention needs to know it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Write {
    /// The 0-based block that writes.
    pub block: usize,
    /// The last of the block: its output.
    pub output: bool,
    /// By a token of the prompt, not a generated one.
    pub prompt: bool,
}

/// An erasure that did not come out: the stream is not a number, or too large for f32.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    /// How far r·x is from where it should be.
    pub component: f64,
    /// ‖x‖ before.
    pub norm: f64,
}

impl Intervention {
    /// Erase the span of `directions` everywhere.
    ///
    /// # Errors
    /// As [`Basis::new`].
    pub fn ablate<V: AsRef<[f32]>>(directions: &[V]) -> Result<Self, Error> {
        Ok(Self { ablate: Basis::new(directions)?, ..Self::default() })
    }

    /// Add `scale · vector` at the output of `block`, at `positions`.
    ///
    /// # Errors
    /// A non-finite element of the scaled vector.
    pub fn add(block: usize, vector: &[f32], scale: f32, positions: Positions) -> Result<Self, Error> {
        let vector: Vec<f32> = vector.iter().map(|x| x * scale).collect();
        if let Some(element) = vector.iter().position(|x| !x.is_finite()) {
            return Err(Error::NotFinite { index: 0, element });
        }
        Ok(Self { add: vec![Addition { block, vector, positions }], ..Self::default() })
    }

    /// The width of every vector.
    pub fn widths(&self) -> impl Iterator<Item = usize> + '_ {
        let erased = self.ablate.vectors().iter().map(Vec::len);
        let projected = self.project.iter().map(|p| p.unit().len());
        erased.chain(projected).chain(self.add.iter().map(|a| a.vector.len()))
    }

    /// The blocks that it names, each with what is to be there.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (&'static str, usize)> + '_ {
        let projected = self.project.iter().map(|p| ("projection", p.first_block()));
        projected.chain(self.add.iter().map(|a| ("addition", a.block)))
    }

    /// Whether it does not do the same at the prompt and at what is generated.
    #[must_use]
    pub fn tells_positions(&self) -> bool {
        self.project.iter().any(Projection::tells_positions)
            || self.add.iter().any(|a| a.positions != Positions::All)
    }

    /// Nothing is done at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ablate.is_empty() && self.project.is_empty() && self.add.is_empty()
    }

    /// What is done to one row of the stream (`n_embd`) after a write. At a block's output it is checked.
    pub(crate) fn apply(&self, x: &mut [f32], at: Write) -> Result<(), Left> {
        let erases = !self.ablate.is_empty() || !self.project.is_empty();
        let norm = (erases && at.output).then(|| dot(x, x).sqrt());
        if !self.ablate.is_empty() {
            self.ablate.ablate(x);
            if let Some(norm) = norm {
                let component = self.ablate.component(x);
                // A NaN anywhere makes the norm NaN, and the comparison false.
                let erased = component <= ABLATED * norm;
                if !erased {
                    return Err(Left { component, norm });
                }
            }
        }
        for projection in &self.project {
            projection.apply(x, at, norm)?;
        }
        for addition in self.add.iter().filter(|a| at.output && a.block == at.block) {
            if addition.positions.include(at.prompt) {
                x.iter_mut().zip(&addition.vector).for_each(|(x, v)| *x += v);
            }
        }
        Ok(())
    }
}

/// a·b in f64, in eight interleaved partial sums: a fixed order that the compiler can vectorize.
#[must_use]
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    debug_assert_eq!(a.len(), b.len());
    let mut lanes = [0f64; 8];
    let (a8, a_rest) = a.as_chunks::<8>();
    let (b8, b_rest) = b.as_chunks::<8>();
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            lanes[i] += f64::from(a[i]) * f64::from(b[i]);
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    lanes.iter().sum::<f64>() + rest
}

/// cos(a, b); NaN where one has no length.
#[must_use]
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt())
}

/// Below this share of its length left, a vector counts as lying in the span of the others: far above f32's rounding,
/// far below anything two measured directions share.
pub(crate) const DEPENDENT: f64 = 1e-5;

/// Σ aᵢbᵢ, from first to last.
pub(crate) fn dot64(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Adds `vector`, orthonormalised, to `basis` (Gram-Schmidt, twice). With less than [`DEPENDENT`] of its length left,
/// adds nothing and returns that share.
pub(crate) fn extend(basis: &mut Vec<Vec<f64>>, mut vector: Vec<f64>) -> Result<(), f64> {
    let length = dot64(&vector, &vector).sqrt();
    if length == 0.0 {
        return Err(0.0);
    }
    for x in &mut vector {
        *x /= length;
    }
    for _ in 0..2 {
        for other in basis.iter() {
            let along = dot64(&vector, other);
            for (x, y) in vector.iter_mut().zip(other) {
                *x -= along * y;
            }
        }
        let left = dot64(&vector, &vector).sqrt();
        if left < DEPENDENT {
            return Err(left);
        }
        for x in &mut vector {
            *x /= left;
        }
    }
    basis.push(vector);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ablation_leaves_nothing_along_any_direction(
            a in prop::collection::vec(-3f32..3.0, 37),
            b in prop::collection::vec(-3f32..3.0, 37),
            x in prop::collection::vec(-9f32..9.0, 37),
        ) {
            prop_assume!(a.iter().any(|x| x.abs() > 0.1) && b.iter().any(|x| x.abs() > 0.1));
            let basis = Basis::new(&[&a, &b]).unwrap();
            let mut y = x.clone();
            basis.ablate(&mut y);
            for r in [&a, &b] {
                prop_assert!(dot(r, &y).abs() <= 1e-4 * dot(r, r).sqrt() * (1.0 + dot(&x, &x).sqrt()));
            }
            // Idempotent, and never longer than before.
            let mut z = y.clone();
            basis.ablate(&mut z);
            prop_assert!(y.iter().zip(&z).all(|(y, z)| (y - z).abs() < 1e-4));
            prop_assert!(dot(&y, &y) <= dot(&x, &x) * (1.0 + 1e-6));
        }

        #[test]
        fn dot_agrees_with_the_plain_sum(v in prop::collection::vec((-9f32..9.0, -9f32..9.0), 0..70)) {
            let (a, b): (Vec<f32>, Vec<f32>) = v.iter().copied().unzip();
            let plain: f64 = v.iter().map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            prop_assert!((dot(&a, &b) - plain).abs() < 1e-9);
        }
    }

    #[test]
    fn unusable_directions_are_named() {
        assert_eq!(Basis::new(&[[0f32; 4]]), Err(Error::Dependent { index: 0 }));
        assert_eq!(Basis::new(&[[1f32, 0., 0., 0.], [2., 0., 0., 0.]]), Err(Error::Dependent { index: 1 }));
        assert_eq!(Basis::new(&[[1f32, f32::NAN]]), Err(Error::NotFinite { index: 0, element: 1 }));
        let ragged: [&[f32]; 2] = [&[1., 0.], &[0., 1., 0.]];
        assert_eq!(Basis::new(&ragged), Err(Error::Width { index: 1, expected: 2, found: 3 }));
    }

    #[test]
    fn spans_the_same_and_is_orthonormal() {
        let given = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.1], [0.0, 0.0, 1.0, 0.0]];
        let mut basis = Vec::new();
        for v in given {
            extend(&mut basis, v.to_vec()).unwrap();
        }
        for (i, a) in basis.iter().enumerate() {
            for (j, b) in basis.iter().enumerate() {
                assert!((dot64(a, b) - f64::from(u8::from(i == j))).abs() < 1e-14);
            }
        }
        for v in given {
            let mut rest = v.to_vec();
            for b in &basis {
                let along = dot64(&v, b);
                rest.iter_mut().zip(b).for_each(|(x, y)| *x -= along * y);
            }
            assert!(dot64(&rest, &rest).sqrt() < 1e-12);
        }
    }

    #[test]
    fn zero_and_dependent_are_refused() {
        let mut basis = Vec::new();
        assert_eq!(extend(&mut basis, vec![0.0; 3]), Err(0.0));
        extend(&mut basis, vec![1.0, 1.0, 0.0]).unwrap();
        assert!(extend(&mut basis, vec![-2.0, -2.0, 1e-9]).is_err());
        assert_eq!(basis.len(), 1);
    }
}
