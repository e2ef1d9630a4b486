//! Blocks with one scale: Q1_0, Q2_0, Q4_0, Q5_0, Q8_0; and with one scale and one offset: Q4_1, Q5_1.
#![forbid(unsafe_code)]

use super::Layout;
use super::fields::{NONE, add_bits, half, join, put_half, ramp, split, take_bits};

/// ±d; bit i of the codes is element i.
pub(super) struct Q1_0;

impl Layout<128, 18, 1> for Q1_0 {
    const LEVELS: &'static [f32] = &[-1.0, 1.0];
    const SHARED: &'static [usize] = &[0];

    #[inline]
    fn scales(bytes: &[u8; 18], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        one_scale(bytes, scales, offsets);
    }

    #[inline]
    fn unpack(bytes: &[u8; 18], codes: &mut [u8; 128]) {
        *codes = [0; 128];
        add_bits(&bytes[2..], 0, codes);
    }

    #[inline]
    fn pack(codes: &[u8; 128], bytes: &mut [u8; 18]) {
        take_bits(codes, 0, &mut bytes[2..]);
    }

    fn rescale(bytes: &mut [u8; 18], _: usize, scale: f32, _: f32) {
        put_half(bytes, 0, scale);
    }
}

/// d (q − 1), four neighbours in a byte.
pub(super) struct Q2_0;

impl Layout<64, 18, 1> for Q2_0 {
    const LEVELS: &'static [f32] = &ramp::<4>(-1);
    const SHARED: &'static [usize] = &[0];

    #[inline]
    fn scales(bytes: &[u8; 18], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        one_scale(bytes, scales, offsets);
    }

    #[inline]
    fn unpack(bytes: &[u8; 18], codes: &mut [u8; 64]) {
        for (q, codes) in bytes[2..].iter().zip(codes.as_chunks_mut::<4>().0) {
            let q = u32::from(*q);
            let q = (q | (q << 12)) & 0x000f_000f;
            *codes = ((q | (q << 6)) & 0x0303_0303).to_le_bytes();
        }
    }

    #[inline]
    fn pack(codes: &[u8; 64], bytes: &mut [u8; 18]) {
        for (q, codes) in bytes[2..].iter_mut().zip(codes.as_chunks::<4>().0) {
            let apart = u32::from_le_bytes(*codes);
            let apart = apart | (apart >> 6);
            *q = ((apart & 15) | ((apart >> 12) & 0xf0)) as u8;
        }
    }

    fn rescale(bytes: &mut [u8; 18], _: usize, scale: f32, _: f32) {
        put_half(bytes, 0, scale);
    }
}

/// d (q − 8).
pub(super) struct Q4_0;

impl Layout<32, 18, 1> for Q4_0 {
    const LEVELS: &'static [f32] = &ramp::<16>(-8);
    const SHARED: &'static [usize] = &[0];

    #[inline]
    fn scales(bytes: &[u8; 18], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        one_scale(bytes, scales, offsets);
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

/// d q + m.
pub(super) struct Q4_1;

impl Layout<32, 20, 1> for Q4_1 {
    const LEVELS: &'static [f32] = &ramp::<16>(0);
    const SHARED: &'static [usize] = &[0, 2];

    #[inline]
    fn scales(bytes: &[u8; 20], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        (scales[0], offsets[0]) = (half(bytes, 0), half(bytes, 2));
    }

    #[inline]
    fn unpack(bytes: &[u8; 20], codes: &mut [u8; 32]) {
        split(&bytes[4..], codes);
    }

    #[inline]
    fn pack(codes: &[u8; 32], bytes: &mut [u8; 20]) {
        join(codes, &mut bytes[4..]);
    }

    fn rescale(bytes: &mut [u8; 20], _: usize, scale: f32, offset: f32) {
        put_half(bytes, 0, scale);
        put_half(bytes, 2, offset);
    }
}

/// d (q − 16), the fifth bits in a field of their own.
pub(super) struct Q5_0;

impl Layout<32, 22, 1> for Q5_0 {
    const LEVELS: &'static [f32] = &ramp::<32>(-16);
    const SHARED: &'static [usize] = &[0];

    #[inline]
    fn scales(bytes: &[u8; 22], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        one_scale(bytes, scales, offsets);
    }

    #[inline]
    fn unpack(bytes: &[u8; 22], codes: &mut [u8; 32]) {
        split(&bytes[6..], codes);
        add_bits(&bytes[2..6], 4, codes);
    }

    #[inline]
    fn pack(codes: &[u8; 32], bytes: &mut [u8; 22]) {
        join(codes, &mut bytes[6..]);
        take_bits(codes, 4, &mut bytes[2..6]);
    }

    fn rescale(bytes: &mut [u8; 22], _: usize, scale: f32, _: f32) {
        put_half(bytes, 0, scale);
    }
}

/// d q + m, the fifth bits in a field of their own.
pub(super) struct Q5_1;

impl Layout<32, 24, 1> for Q5_1 {
    const LEVELS: &'static [f32] = &ramp::<32>(0);
    const SHARED: &'static [usize] = &[0, 2];

    #[inline]
    fn scales(bytes: &[u8; 24], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        (scales[0], offsets[0]) = (half(bytes, 0), half(bytes, 2));
    }

    #[inline]
    fn unpack(bytes: &[u8; 24], codes: &mut [u8; 32]) {
        split(&bytes[8..], codes);
        add_bits(&bytes[4..8], 4, codes);
    }

    #[inline]
    fn pack(codes: &[u8; 32], bytes: &mut [u8; 24]) {
        join(codes, &mut bytes[8..]);
        take_bits(codes, 4, &mut bytes[4..8]);
    }

    fn rescale(bytes: &mut [u8; 24], _: usize, scale: f32, offset: f32) {
        put_half(bytes, 0, scale);
        put_half(bytes, 2, offset);
    }
}

/// d q, q a signed byte.
pub(super) struct Q8_0;

impl Layout<32, 34, 1> for Q8_0 {
    const LEVELS: &'static [f32] = &ramp::<256>(-128);
    const SHARED: &'static [usize] = &[0];

    #[inline]
    fn scales(bytes: &[u8; 34], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
        one_scale(bytes, scales, offsets);
    }

    #[inline]
    fn unpack(bytes: &[u8; 34], codes: &mut [u8; 32]) {
        for (code, q) in codes.iter_mut().zip(&bytes[2..]) {
            *code = q ^ 0x80;
        }
    }

    #[inline]
    fn pack(codes: &[u8; 32], bytes: &mut [u8; 34]) {
        for (q, code) in bytes[2..].iter_mut().zip(codes) {
            *q = code ^ 0x80;
        }
    }

    fn rescale(bytes: &mut [u8; 34], _: usize, scale: f32, _: f32) {
        put_half(bytes, 0, scale);
    }
}

#[inline]
fn one_scale(bytes: &[u8], scales: &mut [f32; 1], offsets: &mut [f32; 1]) {
    (scales[0], offsets[0]) = (half(bytes, 0), NONE);
}
