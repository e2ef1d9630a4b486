//! A direction as a control-vector file, for llama.cpp's `--control-vector` or for hosts that project.
//!
//! llama.cpp adds `direction.N` to the output of 0-based block N, N ≥ 1, at every token, and knows nothing else: a file
//! that is meant for projection is added there too, which pushes *toward* the behaviour. The `glp.*` keys tell the two
//! apart for programs that read them, ggsteer among them.
#![forbid(unsafe_code)]

use super::ExportError;
use crate::direction::Direction;

/// What a host is to do with the vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Add it at the output of its block: induces the behaviour, with a negative scale suppresses it.
    Add,
    /// Take the stream's component along it out: the ablation. Stock llama.cpp cannot.
    Project,
}

/// `direction` as such a file has it, for [`Direction::save`]. For [`Mode::Add`] the vector is multiplied by `scale`, since stock llama.cpp reads
/// no strength from the file; for [`Mode::Project`] the scale becomes `glp.alpha_default`, 1 being the whole ablation.
///
/// # Errors
/// A direction of block 0 that is to be added, which llama.cpp cannot; a scale that leaves nothing finite.
pub fn convert(direction: &Direction, mode: Mode, scale: f32) -> Result<Direction, ExportError> {
    let mut out = direction.clone();
    match mode {
        Mode::Add => {
            if direction.block == 0 {
                return Err(ExportError::BlockZero);
            }
            for x in &mut out.vector {
                *x *= scale;
            }
            out.meta.mode = Some("add".into());
            out.meta.alpha_default = Some(1.0);
        }
        Mode::Project => {
            out.meta.mode = Some("project".into());
            out.meta.alpha_default = Some(scale);
        }
    }
    let length = out.norm();
    if !scale.is_finite() || scale == 0.0 || !length.is_finite() || length == 0.0 {
        return Err(ExportError::Scale { scale });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::direction::Provenance;

    #[test]
    fn the_scale_goes_where_the_host_reads_it() {
        let direction = Direction::new(vec![3.0, -4.0], 2, Provenance::default()).unwrap();
        let added = convert(&direction, Mode::Add, -0.5).unwrap();
        assert_eq!((added.vector.as_slice(), added.block), (&[-1.5, 2.0][..], 2));
        assert_eq!((added.meta.mode.as_deref(), added.meta.alpha_default), (Some("add"), Some(1.0)));
        let projected = convert(&direction, Mode::Project, 0.5).unwrap();
        assert_eq!(projected.vector, direction.vector);
        assert_eq!(
            (projected.meta.mode.as_deref(), projected.meta.alpha_default),
            (Some("project"), Some(0.5))
        );
    }

    #[test]
    fn what_llama_cpp_cannot_reach_and_scales_that_leave_nothing_are_refused() {
        let at = |block| Direction::new(vec![3.0, -4.0], block, Provenance::default()).unwrap();
        assert!(matches!(convert(&at(0), Mode::Add, 1.0), Err(ExportError::BlockZero)));
        assert!(convert(&at(0), Mode::Project, 1.0).is_ok());
        for scale in [0.0, f32::NAN, f32::INFINITY, f32::MAX, 1e-46] {
            assert!(matches!(convert(&at(1), Mode::Add, scale), Err(ExportError::Scale { .. })), "{scale}");
        }
        for scale in [0.0, f32::NAN, f32::INFINITY] {
            assert!(
                matches!(convert(&at(1), Mode::Project, scale), Err(ExportError::Scale { .. })),
                "{scale}"
            );
        }
    }
}
