//! Super-blocks of 256 elements: groups of 16 or 32, whose scales and offsets are small multiples of the super-block's.
#![forbid(unsafe_code)]

use super::Layout;
use super::fields::{NONE, add_quarters, half, join, multiple, ramp, split, take_quarters};

/// d s q − dmin m, s and m of four bits. Scales at 0, codes at 16, d at 80, dmin at 82.
pub(super) struct Q2K;

impl Layout<256, 84, 16> for Q2K {
    const LEVELS: &'static [f32] = &ramp::<4>(0);
    const SHARED: &'static [usize] = &[80, 82];

    #[inline]
    fn scales(bytes: &[u8; 84], scales: &mut [f32; 16], offsets: &mut [f32; 16]) {
        let (d, dmin) = (half(bytes, 80), half(bytes, 82));
        for ((scale, offset), field) in scales.iter_mut().zip(offsets).zip(bytes) {
            (*scale, *offset) = (d * f32::from(field & 15), -(dmin * f32::from(field >> 4)));
        }
    }

    #[inline]
    fn unpack(bytes: &[u8; 84], codes: &mut [u8; 256]) {
        *codes = [0; 256];
        for (qs, codes) in bytes[16..].as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
            add_quarters(qs, 0, codes);
        }
    }

    #[inline]
    fn pack(codes: &[u8; 256], bytes: &mut [u8; 84]) {
        for (qs, codes) in bytes[16..].as_chunks_mut().0.iter_mut().zip(codes.as_chunks().0) {
            take_quarters(codes, 0, qs);
        }
    }

    fn rescale(bytes: &mut [u8; 84], group: usize, scale: f32, offset: f32) {
        if let Some(s) = multiple(scale, half(bytes, 80), 0, 15) {
            bytes[group] = (bytes[group] & 0xf0) | s as u8;
        }
        if let Some(m) = multiple(-offset, half(bytes, 82), 0, 15) {
            bytes[group] = (bytes[group] & 15) | ((m as u8) << 4);
        }
    }
}

/// d s (q − 4), s from −32 to 31. The codes' upper bits at 0, their lower two at 32, scales at 96, d at 108.
pub(super) struct Q3K;

impl Layout<256, 110, 16> for Q3K {
    const LEVELS: &'static [f32] = &ramp::<8>(-4);
    const SHARED: &'static [usize] = &[108];

    #[inline]
    fn scales(bytes: &[u8; 110], scales: &mut [f32; 16], offsets: &mut [f32; 16]) {
        let d = half(bytes, 108);
        let fields = &bytes[96..108];
        for (g, scale) in scales.iter_mut().enumerate() {
            let low = (fields[g % 8] >> (4 * (g / 8))) & 15;
            let high = (fields[8 + g % 4] >> (2 * (g / 4))) & 3;
            *scale = d * f32::from((low | (high << 4)) as i8 - 32);
        }
        *offsets = [NONE; 16];
    }

    #[inline]
    fn unpack(bytes: &[u8; 110], codes: &mut [u8; 256]) {
        // Bit i of byte l is the upper bit of element 32 i + l.
        for (i, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, upper) in codes.iter_mut().zip(bytes) {
                *code = ((upper >> i) & 1) << 2;
            }
        }
        for (qs, codes) in bytes[32..].as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
            add_quarters(qs, 0, codes);
        }
    }

    #[inline]
    fn pack(codes: &[u8; 256], bytes: &mut [u8; 110]) {
        bytes[..32].fill(0);
        for (i, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
            for (upper, code) in bytes.iter_mut().zip(codes) {
                *upper |= (code >> 2) << i;
            }
        }
        for (qs, codes) in bytes[32..].as_chunks_mut().0.iter_mut().zip(codes.as_chunks().0) {
            take_quarters(codes, 0, qs);
        }
    }

    fn rescale(bytes: &mut [u8; 110], group: usize, scale: f32, _: f32) {
        let Some(times) = multiple(scale, half(bytes, 108), -32, 31) else { return };
        let times = (times + 32) as u8;
        let low = &mut bytes[96 + group % 8];
        let shift = 4 * (group / 8);
        *low = (*low & !(15 << shift)) | ((times & 15) << shift);
        let high = &mut bytes[104 + group % 4];
        let shift = 2 * (group / 4);
        *high = (*high & !(3 << shift)) | ((times >> 4) << shift);
    }
}

/// d s q − dmin m, s and m of six bits. d at 0, dmin at 2, scales at 4, codes at 16.
pub(super) struct Q4K;

impl Layout<256, 144, 8> for Q4K {
    const LEVELS: &'static [f32] = &ramp::<16>(0);
    const SHARED: &'static [usize] = &[0, 2];

    #[inline]
    fn scales(bytes: &[u8; 144], scales: &mut [f32; 8], offsets: &mut [f32; 8]) {
        six_bit_scales(bytes, scales, offsets);
    }

    #[inline]
    fn unpack(bytes: &[u8; 144], codes: &mut [u8; 256]) {
        for (qs, codes) in bytes[16..].as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<64>().0) {
            split(qs, codes);
        }
    }

    #[inline]
    fn pack(codes: &[u8; 256], bytes: &mut [u8; 144]) {
        for (qs, codes) in bytes[16..].as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
            join(codes, qs);
        }
    }

    fn rescale(bytes: &mut [u8; 144], group: usize, scale: f32, offset: f32) {
        six_bit_rescale(bytes, group, scale, offset);
    }
}

/// As [`Q4K`], with the codes' fifth bits at 16 and the lower four at 48.
pub(super) struct Q5K;

impl Layout<256, 176, 8> for Q5K {
    const LEVELS: &'static [f32] = &ramp::<32>(0);
    const SHARED: &'static [usize] = &[0, 2];

    #[inline]
    fn scales(bytes: &[u8; 176], scales: &mut [f32; 8], offsets: &mut [f32; 8]) {
        six_bit_scales(bytes, scales, offsets);
    }

    #[inline]
    fn unpack(bytes: &[u8; 176], codes: &mut [u8; 256]) {
        for (qs, codes) in bytes[48..].as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<64>().0) {
            split(qs, codes);
        }
        // Bit i of byte l is the fifth bit of element 32 i + l.
        for (i, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, upper) in codes.iter_mut().zip(&bytes[16..]) {
                *code |= ((upper >> i) & 1) << 4;
            }
        }
    }

    #[inline]
    fn pack(codes: &[u8; 256], bytes: &mut [u8; 176]) {
        for (qs, codes) in bytes[48..].as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
            join(codes, qs);
        }
        bytes[16..48].fill(0);
        for (i, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
            for (upper, code) in bytes[16..].iter_mut().zip(codes) {
                *upper |= (code >> 4) << i;
            }
        }
    }

    fn rescale(bytes: &mut [u8; 176], group: usize, scale: f32, offset: f32) {
        six_bit_rescale(bytes, group, scale, offset);
    }
}

/// d s (q − 32), s a signed byte. The codes' lower four bits at 0, upper two at 128, scales at 192, d at 208.
pub(super) struct Q6K;

impl Layout<256, 210, 16> for Q6K {
    const LEVELS: &'static [f32] = &ramp::<64>(-32);
    const SHARED: &'static [usize] = &[208];

    #[inline]
    fn scales(bytes: &[u8; 210], scales: &mut [f32; 16], offsets: &mut [f32; 16]) {
        let d = half(bytes, 208);
        for (scale, field) in scales.iter_mut().zip(&bytes[192..208]) {
            *scale = d * f32::from(*field as i8);
        }
        *offsets = [NONE; 16];
    }

    #[inline]
    fn unpack(bytes: &[u8; 210], codes: &mut [u8; 256]) {
        let halves = bytes.as_chunks::<64>().0.iter().zip(bytes[128..].as_chunks().0);
        for ((low, high), codes) in halves.zip(codes.as_chunks_mut().0) {
            split(low, codes);
            add_quarters(high, 4, codes);
        }
    }

    #[inline]
    fn pack(codes: &[u8; 256], bytes: &mut [u8; 210]) {
        let (low, high) = bytes.split_at_mut(128);
        let halves = low.as_chunks_mut::<64>().0.iter_mut().zip(high.as_chunks_mut().0);
        for ((low, high), codes) in halves.zip(codes.as_chunks().0) {
            join(codes, low);
            take_quarters(codes, 4, high);
        }
    }

    fn rescale(bytes: &mut [u8; 210], group: usize, scale: f32, _: f32) {
        if let Some(s) = multiple(scale, half(bytes, 208), -128, 127) {
            bytes[192 + group] = s as i8 as u8;
        }
    }
}

/// The scales of [`Q4K`] and [`Q5K`]: bytes 4 to 7 have the first four s and, in their upper two bits, what the last
/// four s need beside the low halves of bytes 12 to 15; bytes 8 to 11 and the high halves have m likewise.
#[inline]
fn six_bit_scales(bytes: &[u8], scales: &mut [f32; 8], offsets: &mut [f32; 8]) {
    let (d, dmin) = (half(bytes, 0), half(bytes, 2));
    for g in 0..4 {
        let (s, m, last) = (bytes[4 + g], bytes[8 + g], bytes[12 + g]);
        scales[g] = d * f32::from(s & 63);
        offsets[g] = -(dmin * f32::from(m & 63));
        scales[g + 4] = d * f32::from((last & 15) | (s >> 6 << 4));
        offsets[g + 4] = -(dmin * f32::from((last >> 4) | (m >> 6 << 4)));
    }
}

fn six_bit_rescale(bytes: &mut [u8], group: usize, scale: f32, offset: f32) {
    let s = multiple(scale, half(bytes, 0), 0, 63);
    let m = multiple(-offset, half(bytes, 2), 0, 63);
    for (field, first, shift) in [(s, 4, 0), (m, 8, 4)] {
        let Some(field) = field.map(|field| field as u8) else { continue };
        let at = first + group % 4;
        if group < 4 {
            bytes[at] = (bytes[at] & 0xc0) | field;
        } else {
            bytes[at] = (bytes[at] & 63) | (field >> 4 << 6);
            let last = &mut bytes[8 + group];
            *last = (*last & !(15 << shift)) | ((field & 15) << shift);
        }
    }
}
