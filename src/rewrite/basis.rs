//! The directions as a writer sees them: behind a norm, through its weights.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use super::RewriteError;
use super::execute::norm_weights;
use crate::arch::Writer;
use crate::gguf::GgufFile;

pub(super) use crate::intervention::{dot64 as dot, extend};

/// Vectors as they are: k × n, row by row.
pub(crate) type Basis = Vec<Vec<f64>>;

/// Orthonormalises `directions`, each `n_embd` long.
pub(crate) fn orthonormal<V: AsRef<[f32]>>(directions: &[V], n_embd: usize) -> Result<Basis, RewriteError> {
    let mut basis = Basis::new();
    for (index, direction) in directions.iter().enumerate() {
        let direction = direction.as_ref();
        if direction.len() != n_embd {
            return Err(RewriteError::Width { index, expected: n_embd, found: direction.len() });
        }
        if !direction.iter().all(|x| x.is_finite()) {
            return Err(RewriteError::NotFinite { index });
        }
        extend(&mut basis, direction.iter().map(|x| f64::from(*x)).collect())
            .map_err(|left| RewriteError::Dependent { index, left })?;
    }
    Ok(basis)
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

/// `basis` as a writer of `file` sees it: through the norms behind it, where there are any.
pub(crate) fn seen_by<'a>(
    file: &GgufFile,
    writer: &Writer,
    basis: &'a Basis,
) -> Result<Cow<'a, Basis>, RewriteError> {
    let mut seen = Cow::Borrowed(basis);
    for norm in writer.norms() {
        seen = Cow::Owned(through_norm(&seen, &norm_weights(file, norm)?, writer.norm_centred));
    }
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;

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
