//! Rows of blocks to f32 and back.
#![allow(unsafe_code)]

use std::ffi::c_void;

use half::{bf16, f16};
#[cfg(not(miri))]
use llama_cpp_sys_2 as ggml;

use super::GgmlType;
#[cfg(miri)]
use super::miri as ggml;

/// Why rows could not be decoded or encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Integers, F64 and ggml's internal types hold no float weights.
    #[error("type {0} is not a float weight type")]
    NotFloat(GgmlType),
    /// ggml has no encoder for this type.
    #[error("ggml cannot encode type {0}")]
    NoEncoder(GgmlType),
    /// The type's encoder works only with an importance for each column.
    #[error("type {0} cannot be encoded without an importance matrix")]
    NeedsImportance(GgmlType),
    /// The importance does not match the row length, or has a value that is not finite or below zero.
    #[error(
        "importance needs {expected} finite values of at least 0, found {found} values, {usable} of them usable"
    )]
    Importance {
        /// Elements in a row.
        expected: usize,
        /// Values given.
        found: usize,
        /// Values that are finite and not negative.
        usable: usize,
    },
    /// Bytes and elements do not belong together.
    #[error("{elements} elements of type {ty} take {}, found {found} bytes",
        .expected.map_or("no whole number of blocks".into(), |n| format!("{n} bytes")))]
    Length {
        /// The type.
        ty: GgmlType,
        /// Elements asked for.
        elements: usize,
        /// Bytes these elements take, if they make whole rows of whole blocks.
        expected: Option<u64>,
        /// Bytes given.
        found: usize,
    },
    /// A row length that is zero, no multiple of the block size, or does not divide the data.
    #[error("{elements} elements do not make rows of {n_per_row} in blocks of {block}")]
    Rows {
        /// Elements given.
        elements: usize,
        /// Elements asked for in a row.
        n_per_row: usize,
        /// The type's block size.
        block: u64,
    },
    /// A NaN or an infinity to be encoded.
    #[error("value {value} at row {row}, column {column} is not finite")]
    NonFinite {
        /// Row within the data given.
        row: usize,
        /// Column within the row.
        column: usize,
        /// The value, as text.
        value: String,
    },
    /// A finite value that the type cannot hold.
    #[error("value {value} at row {row}, column {column} is out of range for type {ty}")]
    Range {
        /// The type.
        ty: GgmlType,
        /// Row within the data given.
        row: usize,
        /// Column within the row.
        column: usize,
        /// The value, as text.
        value: String,
    },
}

/// Decodes whole blocks: `out` elements of type `ty` from exactly as many `bytes` as they take.
///
/// # Errors
/// [`CodecError::NotFloat`] for types that hold no weights, [`CodecError::Length`] when the lengths do not agree.
pub fn decode(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), CodecError> {
    if !ty.can_decode() {
        return Err(CodecError::NotFloat(ty));
    }
    let expected = ty.row_size(out.len() as u64);
    if expected != Some(bytes.len() as u64) {
        return Err(CodecError::Length { ty, elements: out.len(), expected, found: bytes.len() });
    }
    if ty == GgmlType::F32 {
        for (x, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *x = f32::from_le_bytes(*b);
        }
    } else if ty == GgmlType::F16 {
        for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *x = f16::from_le_bytes(*b).to_f32();
        }
    } else if ty == GgmlType::BF16 {
        for (x, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *x = bf16::from_le_bytes(*b).to_f32();
        }
    } else if !out.is_empty() {
        let to_float = ty.to_float().ok_or(CodecError::NotFloat(ty))?;
        aligned(ty, bytes, |from| {
            // SAFETY: `from` is aligned for the type's blocks and points to `row_size(out.len())` readable bytes,
            // checked above; `out` has room for `out.len()` floats, a whole number of blocks; they do not overlap.
            unsafe { to_float(from, out.as_mut_ptr(), out.len() as i64) };
        });
    }
    Ok(())
}

/// Encodes `rows` (row-major, `n_per_row` elements each) by ggml's own quantizers, one pass.
///
/// `importance` weighs the squared error of each column: `n_per_row` finite values of at least 0. May be called from
/// several threads at once (ggml guards the tables it builds on first use); a row's bytes depend on nothing but that
/// row and `importance`.
///
/// A finite value too large for a quantized type's block scale decodes as infinite or NaN: callers that take values
/// from outside decode and look.
///
/// # Errors
/// Anything that would make ggml abort the process or write garbage: see [`CodecError`].
pub fn encode(
    ty: GgmlType,
    rows: &[f32],
    n_per_row: usize,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>, CodecError> {
    if !ty.can_decode() {
        return Err(CodecError::NotFloat(ty));
    }
    if !ty.can_encode() {
        return Err(CodecError::NoEncoder(ty));
    }
    let block = ty.block_size();
    let row_size = ty.row_size(n_per_row as u64);
    let (Some(row_size), true) = (row_size, n_per_row > 0 && rows.len().is_multiple_of(n_per_row.max(1)))
    else {
        return Err(CodecError::Rows { elements: rows.len(), n_per_row, block });
    };
    match importance {
        None if ty.needs_importance() => return Err(CodecError::NeedsImportance(ty)),
        Some(weights) => {
            let usable = weights.iter().filter(|w| w.is_finite() && **w >= 0.0).count();
            if weights.len() != n_per_row || usable != n_per_row {
                return Err(CodecError::Importance { expected: n_per_row, found: weights.len(), usable });
            }
        }
        None => {}
    }
    if let Some(i) = rows.iter().position(|x| !x.is_finite()) {
        let value = rows[i].to_string();
        return Err(CodecError::NonFinite { row: i / n_per_row, column: i % n_per_row, value });
    }
    let out_of_range = |i: usize| CodecError::Range {
        ty,
        row: i / n_per_row,
        column: i % n_per_row,
        value: rows[i].to_string(),
    };
    if ty == GgmlType::F32 {
        return Ok(rows.iter().flat_map(|x| x.to_le_bytes()).collect());
    }
    if ty == GgmlType::F16 {
        let halves: Vec<f16> = rows.iter().map(|x| f16::from_f32(*x)).collect();
        if let Some(i) = halves.iter().position(|x| !x.is_finite()) {
            return Err(out_of_range(i));
        }
        return Ok(halves.iter().flat_map(|x| x.to_le_bytes()).collect());
    }
    if ty == GgmlType::BF16 {
        let halves: Vec<bf16> = rows.iter().map(|x| bf16::from_f32(*x)).collect();
        if let Some(i) = halves.iter().position(|x| !x.is_finite()) {
            return Err(out_of_range(i));
        }
        return Ok(halves.iter().flat_map(|x| x.to_le_bytes()).collect());
    }
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let n_rows = rows.len() / n_per_row;
    let size = row_size as usize * n_rows;
    let mut out = Aligned::zeroed(size);
    // SAFETY: the type has a case in ggml_quantize_chunk and a multiple of its block size in a row; `rows` holds
    // n_rows * n_per_row finite floats; `out` is 8-aligned and has room for n_rows rows; the importance is null, where
    // the type allows it, or n_per_row floats.
    let written = unsafe {
        ggml::ggml_quantize_chunk(
            ty.id(),
            rows.as_ptr(),
            out.0.as_mut_ptr().cast(),
            0,
            n_rows as i64,
            n_per_row as i64,
            importance.map_or(std::ptr::null(), <[f32]>::as_ptr),
        )
    };
    debug_assert_eq!(written, size);
    Ok(out.into_bytes(size))
}

/// Whether ggml, which looks at the scales of each block (or at each float), would load `bytes` as type `ty`. It says
/// on the standard error what it does not like.
#[must_use]
pub fn validate(ty: GgmlType, bytes: &[u8]) -> bool {
    aligned(ty, bytes, |data| {
        // SAFETY: the type is in ggml's table; `data` is aligned for its blocks and points to this many bytes.
        unsafe { ggml::ggml_validate_row_data(ty.id(), data, bytes.len()) }
    })
}

/// Calls `f` with a pointer to these bytes, or to a copy of them, that is aligned for the type's blocks.
fn aligned<T>(ty: GgmlType, bytes: &[u8], f: impl FnOnce(*const c_void) -> T) -> T {
    // A block's alignment divides its size and is at most 8, so a pointer that is this much aligned is enough.
    let align = 1usize << ty.type_size().trailing_zeros().min(3);
    if bytes.as_ptr().addr().is_multiple_of(align) {
        f(bytes.as_ptr().cast())
    } else {
        f(Aligned::copy_of(bytes).0.as_ptr().cast())
    }
}

/// A buffer aligned for every block type.
struct Aligned(Vec<u64>);

impl Aligned {
    fn zeroed(bytes: usize) -> Self {
        Self(vec![0; bytes.div_ceil(8)])
    }

    fn copy_of(bytes: &[u8]) -> Self {
        Self(
            bytes
                .chunks(8)
                .map(|chunk| {
                    let mut word = [0; 8];
                    word[..chunk.len()].copy_from_slice(chunk);
                    u64::from_ne_bytes(word)
                })
                .collect(),
        )
    }

    fn into_bytes(self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.truncate(len);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use llama_cpp_sys_2 as sys;

    /// Deterministic values in about ±0.1, bell-shaped, by a linear congruence.
    fn noise(n: usize, mut seed: u64) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        (0..n).map(|_| 0.1 * (next() + next() + next())).collect()
    }

    fn relative_error(a: &[f32], b: &[f32]) -> f64 {
        let num: f64 = a.iter().zip(b).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        let den: f64 = a.iter().map(|x| f64::from(*x).powi(2)).sum();
        (num / den).sqrt()
    }

    #[test]
    fn every_encodable_type_stays_near() {
        stay_near(|name| !name.starts_with("iq1") && !name.starts_with("iq2"));
    }

    #[test]
    fn the_smallest_codebooks_stay_near() {
        stay_near(|name| name.starts_with("iq1") || name.starts_with("iq2"));
    }

    fn stay_near(chosen: fn(&str) -> bool) {
        let (n_per_row, n_rows) = (256, 2);
        let rows = noise(n_per_row * n_rows, 7);
        let importance = vec![1.0; n_per_row];
        for ty in GgmlType::all().filter(|t| t.can_encode() && chosen(t.name())) {
            let given = ty.needs_importance().then_some(&importance[..]);
            let bytes = encode(ty, &rows, n_per_row, given).expect("encodable");
            assert_eq!(bytes.len() as u64, ty.row_size(n_per_row as u64).unwrap() * n_rows as u64, "{ty}");
            let mut back = vec![0.0; rows.len()];
            decode(ty, &bytes, &mut back).expect("decodable");
            let error = relative_error(&rows, &back);
            let bits = 8.0 * ty.type_size() as f64 / ty.block_size() as f64;
            // A generous rate-distortion line that halves with each bit; types of about 2 bits and fewer are made for
            // weights trained to them and need only beat zeros.
            let bound = if bits < 2.3 { 0.8 } else { (2.8 * (-bits).exp2()).max(0.004) };
            println!("{ty}: {bits:.2} bits, error {error:.4}, bound {bound:.4}");
            assert!(error < bound, "{ty}: {error} not below {bound}");
        }
    }

    #[test]
    fn rows_are_encoded_independently() {
        let rows = noise(256 * 4, 3);
        for ty in [GgmlType::Q4_K, GgmlType::Q8_0, GgmlType::IQ4_NL] {
            let whole = encode(ty, &rows, 256, None).unwrap();
            let apart: Vec<u8> =
                rows.chunks(256).flat_map(|row| encode(ty, row, 256, None).unwrap()).collect();
            assert_eq!(whole, apart, "{ty}");
        }
    }

    #[test]
    fn every_f16_and_bf16_decodes_as_half_has_it() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0.0; 1 << 16];
        decode(GgmlType::F16, &bytes, &mut out).unwrap();
        for (bits, x) in (0..=u16::MAX).zip(&out) {
            assert!(f16::from_bits(bits).to_f32().to_bits() == x.to_bits() || x.is_nan());
        }
        decode(GgmlType::BF16, &bytes, &mut out).unwrap();
        for (bits, x) in (0..=u16::MAX).zip(&out) {
            assert!(bf16::from_bits(bits).to_f32().to_bits() == x.to_bits() || x.is_nan());
        }
    }

    #[test]
    fn misaligned_bytes_decode_alike() {
        let rows = noise(512, 11);
        // The vector-codebook types build large tables on first use: their decoding is taken by the other test.
        for ty in GgmlType::all().filter(|t| t.can_encode() && !t.name().starts_with("iq")) {
            let bytes = encode(ty, &rows, 512, None).unwrap();
            let mut shifted = vec![0];
            shifted.extend_from_slice(&bytes);
            let (mut a, mut b) = (vec![0.0; 512], vec![0.0; 512]);
            decode(ty, &bytes, &mut a).unwrap();
            decode(ty, &shifted[1..], &mut b).unwrap();
            assert_eq!(a, b, "{ty}");
        }
    }

    #[test]
    fn what_would_abort_is_an_error() {
        let rows = vec![0.5; 256];
        let q81 = GgmlType::from_id(sys::GGML_TYPE_Q8_1).unwrap();
        let iq1s = GgmlType::from_id(sys::GGML_TYPE_IQ1_S).unwrap();
        assert_eq!(encode(q81, &rows, 256, None), Err(CodecError::NotFloat(q81)));
        assert_eq!(encode(GgmlType::I32, &rows, 256, None), Err(CodecError::NotFloat(GgmlType::I32)));
        assert_eq!(encode(iq1s, &rows, 256, None), Err(CodecError::NeedsImportance(iq1s)));
        assert!(matches!(encode(iq1s, &rows, 256, Some(&rows[1..])), Err(CodecError::Importance { .. })));
        assert!(matches!(
            encode(GgmlType::Q4_K, &rows, 256, Some(&[f32::NAN; 256])),
            Err(CodecError::Importance { .. })
        ));
        assert!(matches!(encode(GgmlType::Q4_K, &rows, 128, None), Err(CodecError::Rows { .. })));
        assert!(matches!(encode(GgmlType::Q8_0, &rows, 0, None), Err(CodecError::Rows { .. })));
        assert!(matches!(encode(GgmlType::Q8_0, &rows, 96, None), Err(CodecError::Rows { .. })));
        let mut bad = rows.clone();
        bad[200] = f32::NAN;
        let error = encode(GgmlType::Q8_0, &bad, 64, None).unwrap_err();
        assert_eq!(error.to_string(), "value NaN at row 3, column 8 is not finite");
        bad[200] = 1e6;
        assert!(matches!(encode(GgmlType::F16, &bad, 256, None), Err(CodecError::Range { column: 200, .. })));
        let mut out = vec![0.0; 32];
        assert!(matches!(decode(GgmlType::Q8_0, &[0; 33], &mut out), Err(CodecError::Length { .. })));
        assert!(matches!(decode(GgmlType::I8, &[0; 32], &mut out), Err(CodecError::NotFloat(_))));
    }
}
