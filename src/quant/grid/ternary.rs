//! Three levels and one scale a block of 256: TQ1_0 (five elements a byte) and TQ2_0 (four).
#![forbid(unsafe_code)]

use super::Layout;
use super::fields::{NONE, add_quarters, half, put_half, ramp, take_quarters};

/// d (q − 1). A byte holds five base-3 digits as the fraction byte/256, the first digit foremost.
pub(super) struct Tq1;

/// Where the bytes of TQ1_0 are, how many elements each holds, and the distance between those: first byte, bytes,
/// digits, first element.
const RUNS: [(usize, usize, usize, usize); 3] = [(0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240)];

impl Layout<256, 54, 1> for Tq1 {
    const LEVELS: &'static [f32] = &ramp::<3>(-1);
    const SHARED: &'static [usize] = &[52];

    #[inline]
    fn scales(bytes: &[u8; 54], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        (scales[0], offsets[0]) = (half(bytes, 52), NONE);
    }

    #[inline]
    fn unpack(bytes: &[u8; 54], codes: &mut [u8; 256]) {
        for (first, width, digits, element) in RUNS {
            let mut power = 1u8;
            for row in codes[element..].chunks_exact_mut(width).take(digits) {
                for (code, q) in row.iter_mut().zip(&bytes[first..first + width]) {
                    *code = digit(*q, power);
                }
                power = power.wrapping_mul(3);
            }
        }
    }

    #[inline]
    fn pack(codes: &[u8; 256], bytes: &mut [u8; 54]) {
        for (first, width, digits, element) in RUNS {
            for (m, q) in bytes[first..first + width].iter_mut().enumerate() {
                let (mut number, mut power, mut same) = (0u16, 1u8, true);
                for n in 0..digits {
                    let code = codes[element + n * width + m];
                    same &= code == digit(*q, power);
                    number = number * 3 + u16::from(code);
                    power = power.wrapping_mul(3);
                }
                // Several bytes stand for the same digits: one whose digits stay is kept.
                if !same {
                    let number = if digits == 4 { number * 3 } else { number };
                    *q = (number * 256).div_ceil(243) as u8;
                }
            }
        }
    }

    fn rescale(bytes: &mut [u8; 54], _: usize, scale: f32, _: f32) {
        put_half(bytes, 52, scale);
    }
}

/// The base-3 digit of a byte that stands behind `power` = 3^n: 0, 1 or 2.
#[inline]
fn digit(q: u8, power: u8) -> u8 {
    ((u16::from(q.wrapping_mul(power)) * 3) >> 8) as u8
}

/// d (q − 1). The fourth level is not used by ggml's encoder but decoded like the others.
pub(super) struct Tq2;

impl Layout<256, 66, 1> for Tq2 {
    const LEVELS: &'static [f32] = &ramp::<4>(-1);
    const SHARED: &'static [usize] = &[64];

    #[inline]
    fn scales(bytes: &[u8; 66], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        (scales[0], offsets[0]) = (half(bytes, 64), NONE);
    }

    #[inline]
    fn unpack(bytes: &[u8; 66], codes: &mut [u8; 256]) {
        *codes = [0; 256];
        for (qs, codes) in bytes.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
            add_quarters(qs, 0, codes);
        }
    }

    #[inline]
    fn pack(codes: &[u8; 256], bytes: &mut [u8; 66]) {
        for (qs, codes) in bytes.as_chunks_mut().0.iter_mut().zip(codes.as_chunks().0) {
            take_quarters(codes, 0, qs);
        }
    }

    fn rescale(bytes: &mut [u8; 66], _: usize, scale: f32, _: f32) {
        put_half(bytes, 64, scale);
    }
}
