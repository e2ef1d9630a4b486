//! ggml's part where Miri runs the tests, since it runs no C: the table of types, the grids as decoder, and an encoder that
//! is good enough to have blocks. What Miri looks at is what stands around such calls.
//!
//! A test holds the table against ggml's; those of the grids hold these against its decoders.
#![allow(unsafe_code)]
#![cfg_attr(not(miri), allow(dead_code, reason = "the test of the table needs no more"))]

use std::ffi::{CStr, c_char, c_void};

use llama_cpp_sys_2 as sys;

use super::{GgmlType, Grid};

/// What is asked of `ggml_type_traits`; sizes of 0 for the removed.
pub(super) struct Traits {
    name: &'static CStr,
    block: i64,
    bytes: usize,
    pub(super) to_float: sys::ggml_to_float_t,
}

const REMOVED: Traits = Traits { name: c"removed", block: 0, bytes: 0, to_float: None };

const fn plain(name: &'static CStr, bytes: usize) -> Traits {
    Traits { name, block: 1, bytes, to_float: None }
}

const fn inner(name: &'static CStr, block: i64, bytes: usize) -> Traits {
    Traits { name, block, bytes, to_float: None }
}

const fn weights<const ID: u32>(name: &'static CStr, block: i64, bytes: usize) -> Traits {
    Traits { name, block, bytes, to_float: Some(decode::<ID>) }
}

static TRAITS: [Traits; sys::GGML_TYPE_COUNT as usize] = [
    plain(c"f32", 4),
    weights::<1>(c"f16", 1, 2),
    weights::<2>(c"q4_0", 32, 18),
    weights::<3>(c"q4_1", 32, 20),
    REMOVED,
    REMOVED,
    weights::<6>(c"q5_0", 32, 22),
    weights::<7>(c"q5_1", 32, 24),
    weights::<8>(c"q8_0", 32, 34),
    inner(c"q8_1", 32, 36),
    weights::<10>(c"q2_K", 256, 84),
    weights::<11>(c"q3_K", 256, 110),
    weights::<12>(c"q4_K", 256, 144),
    weights::<13>(c"q5_K", 256, 176),
    weights::<14>(c"q6_K", 256, 210),
    inner(c"q8_K", 256, 292),
    weights::<16>(c"iq2_xxs", 256, 66),
    weights::<17>(c"iq2_xs", 256, 74),
    weights::<18>(c"iq3_xxs", 256, 98),
    weights::<19>(c"iq1_s", 256, 50),
    weights::<20>(c"iq4_nl", 32, 18),
    weights::<21>(c"iq3_s", 256, 110),
    weights::<22>(c"iq2_s", 256, 82),
    weights::<23>(c"iq4_xs", 256, 136),
    plain(c"i8", 1),
    plain(c"i16", 2),
    plain(c"i32", 4),
    plain(c"i64", 8),
    plain(c"f64", 8),
    weights::<29>(c"iq1_m", 256, 56),
    weights::<30>(c"bf16", 1, 2),
    REMOVED,
    REMOVED,
    REMOVED,
    weights::<34>(c"tq1_0", 256, 54),
    weights::<35>(c"tq2_0", 256, 66),
    REMOVED,
    REMOVED,
    REMOVED,
    weights::<39>(c"mxfp4", 32, 17),
    weights::<40>(c"nvfp4", 64, 36),
    weights::<41>(c"q1_0", 128, 18),
    weights::<42>(c"q2_0", 64, 18),
];

/// # Safety
/// Of this and the next: none needed, an id outside of the table is a panic.
pub(super) unsafe fn ggml_get_type_traits(id: u32) -> *const Traits {
    &raw const TRAITS[id as usize]
}

pub(super) unsafe fn ggml_type_name(id: u32) -> *const c_char {
    TRAITS[id as usize].name.as_ptr()
}

pub(super) unsafe fn ggml_blck_size(id: u32) -> i64 {
    TRAITS[id as usize].block
}

pub(super) unsafe fn ggml_type_size(id: u32) -> usize {
    TRAITS[id as usize].bytes
}

pub(super) unsafe fn ggml_quantize_requires_imatrix(id: u32) -> bool {
    [sys::GGML_TYPE_IQ2_XXS, sys::GGML_TYPE_IQ2_XS, sys::GGML_TYPE_IQ1_S].contains(&id)
}

/// The grid of a type; the floats are read elsewhere, and codebooks are for ggml alone.
fn grid(id: u32) -> Option<&'static Grid> {
    GgmlType::from_id(id).ok().and_then(Grid::of)
}

/// # Safety
/// `bytes` has the blocks of `n` elements, at the alignment of their fields, and `values` room for them.
unsafe extern "C" fn decode<const ID: u32>(bytes: *const c_void, values: *mut f32, n: i64) {
    let Traits { block, bytes: size, .. } = TRAITS[ID as usize];
    assert!(bytes.addr().is_multiple_of(1 << size.trailing_zeros().min(1)), "ggml reads halves");
    // SAFETY: the caller vouches for both.
    let (bytes, values) = unsafe {
        (
            std::slice::from_raw_parts(bytes.cast(), n as usize / block as usize * size),
            std::slice::from_raw_parts_mut(values, n as usize),
        )
    };
    match grid(ID) {
        Some(grid) => grid.decode(bytes, values),
        None => values.fill(0.0),
    }
}

/// # Safety
/// `bytes` has so many of them.
pub(super) unsafe fn ggml_validate_row_data(id: u32, bytes: *const c_void, len: usize) -> bool {
    let Some(grid) = grid(id) else { return true };
    if !len.is_multiple_of(grid.block_bytes()) {
        return false;
    }
    // SAFETY: the caller vouches for it.
    let bytes: &[u8] = unsafe { std::slice::from_raw_parts(bytes.cast(), len) };
    let groups = len / grid.block_bytes() * (grid.block() / grid.group());
    let (mut scales, mut offsets) = (vec![0.0; groups], vec![0.0; groups]);
    grid.scales(bytes, &mut scales, &mut offsets);
    scales.iter().chain(&offsets).all(|x| x.is_finite())
}

/// # Safety
/// `values` has that many rows, and `bytes` room for their blocks.
pub(super) unsafe fn ggml_quantize_chunk(
    id: u32,
    values: *const f32,
    bytes: *mut c_void,
    _start: i64,
    n_rows: i64,
    n_per_row: i64,
    _importance: *const f32,
) -> usize {
    let Traits { block, bytes: size, .. } = TRAITS[id as usize];
    let n = (n_rows * n_per_row) as usize;
    // SAFETY: the caller vouches for both.
    let (values, bytes) = unsafe {
        (
            std::slice::from_raw_parts(values, n),
            std::slice::from_raw_parts_mut(bytes.cast::<u8>(), n / block as usize * size),
        )
    };
    match grid(id) {
        Some(grid) => {
            let blocks = bytes.chunks_exact_mut(size);
            values.chunks_exact(block as usize).zip(blocks).for_each(|(x, block)| encode(grid, x, block));
        }
        None => bytes.fill(0),
    }
    bytes.len()
}

/// One block: for each group the scale (and offset) that spans its values, for each value the nearest level.
fn encode(grid: &Grid, values: &[f32], block: &mut [u8]) {
    // A half-precision 1 at every place where a shared scale or offset may be.
    block.chunks_mut(2).for_each(|pair| pair.copy_from_slice(&[0, 0x3c][..pair.len()]));
    let (levels, has_offset) = (grid.levels(), grid.n_shared() == 2);
    let (first, last) = (levels[0], levels[levels.len() - 1]);
    let spans = values.chunks_exact(grid.group()).map(|x| {
        let (low, high) = x.iter().fold((0f32, 0f32), |(low, high), x| (low.min(*x), high.max(*x)));
        if has_offset {
            ((high - low) / (last - first), low)
        } else {
            (high.max(-low) / last.max(-first), -0.0)
        }
    });
    let spans: Vec<(f32, f32)> = spans.collect();
    let largest = spans.iter().fold([0f32; 2], |[s, o], span| [s.max(span.0), o.max(span.1.abs())]);
    for (field, largest) in largest.iter().enumerate().take(grid.n_shared()) {
        // No type has fewer multiples of it than 15.
        grid.stretch(block, field, largest / 15.0);
    }
    let mut codes = Vec::with_capacity(values.len());
    for (group, (x, (scale, offset))) in values.chunks_exact(grid.group()).zip(spans).enumerate() {
        let (scale, offset) = grid.rescale(block, group, scale, offset);
        codes.extend(x.iter().map(|x| {
            let at = (x - offset) / if scale == 0.0 { 1.0 } else { scale };
            let above = levels.partition_point(|level| *level < at).min(levels.len() - 1);
            let below = above.saturating_sub(1);
            (if (levels[above] - at).abs() <= (at - levels[below]).abs() { above } else { below }) as u8
        }));
    }
    grid.pack(&codes, block);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(not(miri))]
    fn the_table_is_ggmls() {
        for id in 0..sys::GGML_TYPE_COUNT {
            // SAFETY: ids within ggml's table and ours.
            let (found, expected) = unsafe {
                let ours = &*ggml_get_type_traits(id);
                let theirs = &*sys::ggml_get_type_traits(id);
                let imatrix = [ggml_quantize_requires_imatrix(id), sys::ggml_quantize_requires_imatrix(id)];
                (
                    (ours.block, ours.bytes, ours.to_float.is_some(), imatrix[0]),
                    (theirs.blck_size, theirs.type_size, theirs.to_float.is_some(), imatrix[1]),
                )
            };
            assert_eq!(found, expected, "type {id}");
            if found.0 > 0 {
                // SAFETY: as above; names end with a NUL.
                let names =
                    unsafe { [ggml_type_name(id), sys::ggml_type_name(id)].map(|n| CStr::from_ptr(n)) };
                assert_eq!(names[0], names[1]);
            }
        }
    }

    #[test]
    fn the_encoder_comes_as_near_as_its_grid_allows() {
        let values: Vec<f32> = (0..256u16).map(|i| (f32::from(i) * 0.7).sin()).collect();
        for (ty, grid) in GgmlType::all().filter_map(|ty| Some((ty, Grid::of(ty)?))) {
            let mut bytes = vec![0; 256 / grid.block() * grid.block_bytes()];
            // SAFETY: a row of 256 values, and the blocks that it takes.
            unsafe {
                let (from, to) = (values.as_ptr(), bytes.as_mut_ptr().cast());
                ggml_quantize_chunk(ty.id(), from, to, 0, 1, 256, std::ptr::null());
            }
            let mut back = vec![0.0; 256];
            grid.decode(&bytes, &mut back);
            // Half of the widest step, with scales that are rounded themselves.
            let levels = grid.levels();
            let steps = levels.windows(2).map(|pair| pair[1] - pair[0]).fold(0f32, f32::max);
            let reach = levels.iter().fold(0f32, |most, level| most.max(level.abs()));
            let bound = 1.5 * steps / reach + 0.1;
            let off = values.iter().zip(&back).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max);
            assert!(off <= bound, "{ty}: off by {off}, {bound} is allowed");
        }
    }
}
