//! Orthonormal bases in f64.
#![forbid(unsafe_code)]

/// Vectors as they are: k × n, row by row.
pub(super) type Basis = Vec<Vec<f64>>;

/// Below this share of its length left, a vector counts as lying in the span of the others: far above f32's rounding,
/// far below anything two measured directions share.
pub(super) const DEPENDENT: f64 = 1e-5;

/// Σ aᵢbᵢ, from first to last.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Adds `vector`, orthonormalised, to `basis` (Gram-Schmidt, twice). With less than [`DEPENDENT`] of its length left,
/// adds nothing and returns that share.
pub(super) fn extend(basis: &mut Basis, mut vector: Vec<f64>) -> Result<(), f64> {
    let length = dot(&vector, &vector).sqrt();
    if length == 0.0 {
        return Err(0.0);
    }
    for x in &mut vector {
        *x /= length;
    }
    for _ in 0..2 {
        for other in basis.iter() {
            let along = dot(&vector, other);
            for (x, y) in vector.iter_mut().zip(other) {
                *x -= along * y;
            }
        }
        let left = dot(&vector, &vector).sqrt();
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

/// The basis of span{γ⊙r}, each γ⊙r less its mean when `centred`. Vectors that vanish or become dependent on others
/// fall out: nothing of them passes the norm.
pub(super) fn through_norm(basis: &Basis, gamma: &[f32], centred: bool) -> Basis {
    let mut out = Basis::new();
    for r in basis {
        let mut u: Vec<f64> = r.iter().zip(gamma).map(|(x, g)| x * f64::from(*g)).collect();
        if centred {
            let mean = u.iter().sum::<f64>() / u.len() as f64;
            for x in &mut u {
                *x -= mean;
            }
        }
        // A share that is left over is the answer here, not an error.
        let _ = extend(&mut out, u);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_the_same_and_is_orthonormal() {
        let given = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.1], [0.0, 0.0, 1.0, 0.0]];
        let mut basis = Basis::new();
        for v in given {
            extend(&mut basis, v.to_vec()).unwrap();
        }
        for (i, a) in basis.iter().enumerate() {
            for (j, b) in basis.iter().enumerate() {
                assert!((dot(a, b) - f64::from(u8::from(i == j))).abs() < 1e-14);
            }
        }
        for v in given {
            let mut rest = v.to_vec();
            for b in &basis {
                let along = dot(&v, b);
                rest.iter_mut().zip(b).for_each(|(x, y)| *x -= along * y);
            }
            assert!(dot(&rest, &rest).sqrt() < 1e-12);
        }
    }

    #[test]
    fn zero_and_dependent_are_refused() {
        let mut basis = Basis::new();
        assert_eq!(extend(&mut basis, vec![0.0; 3]), Err(0.0));
        extend(&mut basis, vec![1.0, 1.0, 0.0]).unwrap();
        assert!(extend(&mut basis, vec![-2.0, -2.0, 1e-9]).is_err());
        assert_eq!(basis.len(), 1);
    }

    #[test]
    fn norms_scale_and_centre() {
        let basis = vec![vec![0.6, 0.8, 0.0]];
        let u = &through_norm(&basis, &[2.0, 1.0, 5.0], false)[0];
        assert!((u[0] / u[1] - 1.2 / 0.8).abs() < 1e-12);
        let u = &through_norm(&basis, &[2.0, 1.0, 5.0], true)[0];
        assert!(u.iter().sum::<f64>().abs() < 1e-12);
        assert!(through_norm(&basis, &[0.0; 3], false).is_empty());
    }
}
