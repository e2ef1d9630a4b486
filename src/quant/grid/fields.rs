//! What blocks are made of: half-precision fields, small multiples of them, codes of a few bits.
#![forbid(unsafe_code)]

use half::f16;

/// The offset of types without one: adding it changes nothing, not even the sign of a zero.
pub(super) const NONE: f32 = -0.0;

/// The integers from `first` on.
pub(super) const fn ramp<const L: usize>(first: i32) -> [f32; L] {
    let mut levels = [0.0; L];
    let mut i = 0;
    while i < L {
        levels[i] = (first + i as i32) as f32;
        i += 1;
    }
    levels
}

/// The half-precision number at `at`.
#[inline]
pub(super) fn half(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// Writes the finite half-precision number nearest to `value`; one that is not finite is not written.
pub(super) fn put_half(bytes: &mut [u8], at: usize, value: f32) {
    if value.is_finite() {
        let (low, high) = (f16::MIN.to_f32(), f16::MAX.to_f32());
        bytes[at..at + 2].copy_from_slice(&f16::from_f32(value.clamp(low, high)).to_le_bytes());
    }
}

/// The whole number from `low` to `high` whose product with `unit` is nearest to `value`; none where all are as near,
/// or none is.
pub(super) fn multiple(value: f32, unit: f32, low: i32, high: i32) -> Option<i32> {
    let times = f64::from(value) / f64::from(unit);
    let usable = value.is_finite() && unit.is_finite() && unit != 0.0;
    usable.then(|| times.round().clamp(f64::from(low), f64::from(high)) as i32)
}

/// Bytes of two codes: element j in the low half of byte j, element j + n/2 in its high half.
#[inline]
pub(super) fn split(qs: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(qs.len());
    for ((q, low), high) in qs.iter().zip(low).zip(high) {
        (*low, *high) = (q & 15, q >> 4);
    }
}

/// The reverse of [`split`]: the lower four bits of each code.
#[inline]
pub(super) fn join(codes: &[u8], qs: &mut [u8]) {
    let (low, high) = codes.split_at(qs.len());
    for ((q, low), high) in qs.iter_mut().zip(low).zip(high) {
        *q = (low & 15) | (high << 4);
    }
}

/// Adds bit i of `bits` to code i, as `1 << place`.
#[inline]
pub(super) fn add_bits(bits: &[u8], place: u32, codes: &mut [u8]) {
    const EACH: u64 = 0x0101_0101_0101_0101;
    for (byte, codes) in bits.iter().zip(codes.as_chunks_mut::<8>().0) {
        // Every bit in a byte of its own, then moved to the bottom of it: any bit carries into the top one.
        let apart = u64::from(*byte).wrapping_mul(EACH) & 0x8040_2010_0804_0201;
        let apart = ((apart + 0x7f * EACH) >> 7) & EACH;
        *codes = (u64::from_le_bytes(*codes) | (apart << place)).to_le_bytes();
    }
}

/// The reverse of [`add_bits`]: bit `place` of each code.
#[inline]
pub(super) fn take_bits(codes: &[u8], place: u32, bits: &mut [u8]) {
    for (byte, codes) in bits.iter_mut().zip(codes.as_chunks::<8>().0) {
        let apart = (u64::from_le_bytes(*codes) >> place) & 0x0101_0101_0101_0101;
        *byte = (apart.wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
}

/// Adds quarters of bytes: bits 2j, 2j + 1 of byte l are bits `place`, `place + 1` of element 32 j + l.
#[inline]
pub(super) fn add_quarters(qs: &[u8; 32], place: u32, codes: &mut [u8; 128]) {
    for (j, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        for (code, q) in codes.iter_mut().zip(qs) {
            *code |= ((q >> (2 * j)) & 3) << place;
        }
    }
}

/// The reverse of [`add_quarters`].
#[inline]
pub(super) fn take_quarters(codes: &[u8; 128], place: u32, qs: &mut [u8; 32]) {
    *qs = [0; 32];
    for (j, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        for (q, code) in qs.iter_mut().zip(codes) {
            *q |= ((code >> place) & 3) << (2 * j);
        }
    }
}
