//! Four bits on a grid that is not uniform: IQ4_NL, IQ4_XS, and the 4-bit floats MXFP4 and NVFP4.
#![forbid(unsafe_code)]

use super::Layout;
use super::fields::{NONE, half, join, multiple, put_half, split};

const NL: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];

/// Twice the E2M1 floats; plus and minus zero are one level.
const FP4: [f32; 15] = [-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

/// One scale.
pub(super) struct Iq4Nl;

impl Layout<32, 18, 1> for Iq4Nl {
    const LEVELS: &'static [f32] = &NL;
    const SHARED: &'static [usize] = &[0];

    #[inline]
    fn scales(bytes: &[u8; 18], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        (scales[0], offsets[0]) = (half(bytes, 0), NONE);
    }

    #[inline]
    fn unpack(bytes: &[u8; 18], codes: &mut [u8; 32]) {
        split(&bytes[2..], codes);
    }

    #[inline]
    fn pack(codes: &[u8; 32], bytes: &mut [u8; 18]) {
        join(codes, &mut bytes[2..]);
    }

    fn rescale(bytes: &mut [u8; 18], _: usize, scale: f32, _: f32) {
        put_half(bytes, 0, scale);
    }
}

/// d, then eight multiples from −32 to 31: their upper two bits in bytes 2 and 3, their lower four in 4 to 7.
pub(super) struct Iq4Xs;

impl Layout<256, 136, 8> for Iq4Xs {
    const LEVELS: &'static [f32] = &NL;
    const SHARED: &'static [usize] = &[0];

    #[inline]
    fn scales(bytes: &[u8; 136], scales: &mut [f32; 8], offsets: &mut [f32; 8]) {
        let d = half(bytes, 0);
        let high = u16::from_le_bytes([bytes[2], bytes[3]]);
        for (g, scale) in scales.iter_mut().enumerate() {
            let low = (bytes[4 + g / 2] >> (4 * (g % 2))) & 15;
            let times = i32::from(low) | (i32::from((high >> (2 * g)) & 3) << 4);
            *scale = d * (times - 32) as f32;
        }
        *offsets = [NONE; 8];
    }

    #[inline]
    fn unpack(bytes: &[u8; 136], codes: &mut [u8; 256]) {
        for (qs, codes) in bytes[8..].as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<32>().0) {
            split(qs, codes);
        }
    }

    #[inline]
    fn pack(codes: &[u8; 256], bytes: &mut [u8; 136]) {
        for (qs, codes) in bytes[8..].as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<32>().0) {
            join(codes, qs);
        }
    }

    fn rescale(bytes: &mut [u8; 136], group: usize, scale: f32, _: f32) {
        let Some(times) = multiple(scale, half(bytes, 0), -32, 31) else { return };
        let times = (times + 32) as u8;
        let low = &mut bytes[4 + group / 2];
        let shift = 4 * (group % 2);
        *low = (*low & !(15 << shift)) | ((times & 15) << shift);
        let high = &mut bytes[2 + group / 4];
        let shift = 2 * (group % 4);
        *high = (*high & !(3 << shift)) | ((times >> 4) << shift);
    }
}

/// One scale, a power of two.
pub(super) struct MxFp4;

impl Layout<32, 17, 1> for MxFp4 {
    const LEVELS: &'static [f32] = &FP4;
    const SHARED: &'static [usize] = &[];

    #[inline]
    fn scales(bytes: &[u8; 17], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        (scales[0], offsets[0]) = (half_power(bytes[0]), NONE);
    }

    #[inline]
    fn unpack(bytes: &[u8; 17], codes: &mut [u8; 32]) {
        split(&bytes[1..], codes);
        ranks(codes);
    }

    #[inline]
    fn pack(codes: &[u8; 32], bytes: &mut [u8; 17]) {
        join_floats(codes, &mut bytes[1..]);
    }

    fn rescale(bytes: &mut [u8; 17], _: usize, scale: f32, _: f32) {
        // 255 is a NaN by the format.
        nearest(scale, 0..=254, half_power, &mut bytes[0]);
    }
}

/// Four scales, 8-bit floats without a sign.
pub(super) struct NvFp4;

impl Layout<64, 36, 4> for NvFp4 {
    const LEVELS: &'static [f32] = &FP4;
    const SHARED: &'static [usize] = &[];

    #[inline]
    fn scales(bytes: &[u8; 36], scales: &mut [f32; 4], offsets: &mut [f32; 4]) {
        for (scale, byte) in scales.iter_mut().zip(bytes) {
            *scale = half_ue4m3(*byte);
        }
        *offsets = [NONE; 4];
    }

    #[inline]
    fn unpack(bytes: &[u8; 36], codes: &mut [u8; 64]) {
        for (qs, codes) in bytes[4..].as_chunks::<8>().0.iter().zip(codes.as_chunks_mut::<16>().0) {
            split(qs, codes);
        }
        ranks(codes);
    }

    #[inline]
    fn pack(codes: &[u8; 64], bytes: &mut [u8; 36]) {
        for (qs, codes) in bytes[4..].as_chunks_mut::<8>().0.iter_mut().zip(codes.as_chunks::<16>().0) {
            join_floats(codes, qs);
        }
    }

    fn rescale(bytes: &mut [u8; 36], group: usize, scale: f32, _: f32) {
        // 127 is a NaN by the format; the bytes above repeat those below.
        nearest(scale, 0..=126, half_ue4m3, &mut bytes[group]);
    }
}

/// Half of 2^(e − 127).
#[inline]
fn half_power(e: u8) -> f32 {
    // The two smallest are subnormal.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// Half of an unsigned float of four exponent bits, biased by 7, and three mantissa bits; its NaN counts as 0.
#[inline]
fn half_ue4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from((byte >> 3) & 15), f32::from(byte & 7));
    match exponent {
        _ if byte == 0x7f => 0.0,
        0 => mantissa / 1024.0,
        _ => (1.0 + mantissa / 8.0) * f32::from_bits(((exponent - 8 + 127) as u32) << 23),
    }
}

/// The byte whose scale is nearest to a finite `wanted`.
fn nearest(wanted: f32, bytes: std::ops::RangeInclusive<u8>, decode: fn(u8) -> f32, field: &mut u8) {
    if wanted.is_finite() {
        // Beyond the ends all would seem as far.
        let wanted = wanted.clamp(decode(*bytes.start()), decode(*bytes.end()));
        let far = |byte: &u8| (f64::from(decode(*byte)) - f64::from(wanted)).abs();
        *field = bytes.min_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(*field);
    }
}

/// Bits of a 4-bit float (sign, magnitude) to its level's index, in place.
#[inline]
fn ranks(codes: &mut [u8]) {
    for code in codes {
        *code = rank(*code);
    }
}

#[inline]
fn rank(bits: u8) -> u8 {
    if bits < 8 { 7 + bits } else { 15 - bits }
}

/// The reverse of [`ranks`], and of [`split`]; a minus zero stays one.
#[inline]
fn join_floats(codes: &[u8], qs: &mut [u8]) {
    let bits = |code: u8, old: u8| match code {
        code if code == rank(old) => old,
        0..7 => 15 - code,
        _ => code - 7,
    };
    let (low, high) = codes.split_at(qs.len());
    for ((q, low), high) in qs.iter_mut().zip(low).zip(high) {
        *q = bits(*low, *q & 15) | (bits(*high, *q >> 4) << 4);
    }
}
