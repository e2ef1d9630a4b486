use proptest::prelude::*;

use super::Grid;
use crate::quant::{GgmlType, decode, encode, validate};

fn all() -> impl Iterator<Item = (GgmlType, &'static Grid)> {
    GgmlType::all().filter_map(|ty| Grid::of(ty).map(|grid| (ty, grid)))
}

/// Where a block's half-precision fields are.
fn halves(ty: GgmlType) -> &'static [usize] {
    match ty {
        GgmlType::MXFP4 | GgmlType::NVFP4 => &[],
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
        GgmlType::TQ1_0 => &[52],
        GgmlType::TQ2_0 => &[64],
        _ => &[0],
    }
}

/// Whole blocks of any bits, but finite scales.
fn blocks(seed: &[u8], ty: GgmlType, grid: &Grid, n: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = seed.iter().copied().cycle().take(n * grid.block_bytes()).collect();
    for block in bytes.chunks_exact_mut(grid.block_bytes()) {
        for at in halves(ty) {
            // An exponent of all ones is an infinity or a NaN.
            if block[at + 1] & 0x7c == 0x7c {
                block[at + 1] &= 0xbf;
            }
        }
        if ty == GgmlType::MXFP4 && block[0] == 255 {
            block[0] = 127;
        }
    }
    bytes
}

struct Unpacked {
    codes: Vec<u8>,
    scales: Vec<f32>,
    offsets: Vec<f32>,
}

fn unpacked(grid: &Grid, bytes: &[u8]) -> Unpacked {
    let n = bytes.len() / grid.block_bytes() * grid.block();
    let mut to = Unpacked {
        codes: vec![0; n],
        scales: vec![0.0; n / grid.group()],
        offsets: vec![0.0; n / grid.group()],
    };
    grid.unpack(bytes, &mut to.codes, &mut to.scales, &mut to.offsets);
    to
}

fn values(grid: &Grid, of: &Unpacked) -> Vec<u32> {
    let groups = of.scales.iter().zip(&of.offsets).zip(of.codes.chunks(grid.group()));
    groups
        .flat_map(|((scale, offset), codes)| codes.iter().map(|c| grid.value(*scale, *offset, *c).to_bits()))
        .collect()
}

fn decoded(ty: GgmlType, bytes: &[u8], n: usize) -> Vec<u32> {
    let mut out = vec![0.0; n];
    decode(ty, bytes, &mut out).unwrap();
    out.iter().map(|x| x.to_bits()).collect()
}

/// Values, identity, moves and acceptance of whole blocks.
fn check(ty: GgmlType, grid: &Grid, bytes: &[u8], moves: &[u8]) {
    let mut of = unpacked(grid, bytes);
    let n = of.codes.len();
    assert_eq!(values(grid, &of), decoded(ty, bytes, n), "{ty}: values");
    let mut whole = vec![0.0; n];
    grid.decode(bytes, &mut whole);
    assert!(whole.iter().map(|x| x.to_bits()).eq(decoded(ty, bytes, n)), "{ty}: decoded whole");
    assert!(validate(ty, bytes), "{ty}: ggml refuses what it was given");

    let mut again = bytes.to_vec();
    grid.pack(&of.codes, &mut again);
    assert_eq!(again, bytes, "{ty}: the same codes");

    let old = of.codes.clone();
    for (code, step) in of.codes.iter_mut().zip(moves.iter().cycle()) {
        if step % 3 == 0 {
            *code = (usize::from(*code) + usize::from(*step)).rem_euclid(grid.levels().len()) as u8;
        }
    }
    grid.pack(&of.codes, &mut again);
    assert_eq!(values(grid, &of), decoded(ty, &again, n), "{ty}: moved codes");
    assert!(validate(ty, &again), "{ty}: ggml refuses moved codes");

    // Moving each code back from a place where others moved restores its value.
    grid.pack(&old, &mut again);
    assert_eq!(decoded(ty, &again, n), decoded(ty, bytes, n), "{ty}: codes moved back");

    // At any alignment.
    let mut shifted = vec![0];
    shifted.extend_from_slice(bytes);
    assert_eq!(values(grid, &unpacked(grid, &shifted[1..])), decoded(ty, bytes, n), "{ty}: unaligned");
    assert!(validate(ty, &shifted[1..]), "{ty}: ggml refuses unaligned bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 128 }))]

    #[test]
    fn any_blocks_are_read_and_written_as_ggml_does(
        seed in prop::collection::vec(any::<u8>(), 4 * 210),
        moves in prop::collection::vec(any::<u8>(), 257),
    ) {
        for (ty, grid) in all() {
            check(ty, grid, &blocks(&seed, ty, grid, 3), &moves);
        }
    }

    #[test]
    fn encoded_rows_are_read_and_written_as_ggml_does(
        row in prop::collection::vec(-2.0f32..2.0, 512),
        scale in prop::sample::select(vec![0.0f32, 1e-6, 0.02, 1.0, 300.0]),
        moves in prop::collection::vec(any::<u8>(), 257),
    ) {
        let row: Vec<f32> = row.iter().map(|x| scale * x).collect();
        for (ty, grid) in all() {
            check(ty, grid, &encode(ty, &row, 512, None).unwrap(), &moves);
        }
    }

    #[test]
    fn rescaling_finds_the_nearest_field_and_leaves_the_others(
        seed in prop::collection::vec(any::<u8>(), 4 * 210),
        group in any::<prop::sample::Index>(),
        (toward, factor, shift) in (any::<prop::sample::Index>(), 0.4f32..1.6, -0.5f32..0.5),
    ) {
        for (ty, grid) in all() {
            let bytes = blocks(&seed, ty, grid, 2);
            let before = unpacked(grid, &bytes);
            let group = group.index(before.scales.len());
            // Near to what some group of its block has, so that the fields have room.
            let a_block = grid.block() / grid.group();
            let like = group / a_block * a_block + toward.index(a_block);
            let scale = before.scales[like] * factor;
            let offset = before.offsets[like] + shift * scale;
            rescale_once(ty, grid, &bytes, group, scale, offset);
        }
    }

    #[test]
    fn stretching_multiplies_one_shared_field_to_the_nearest_half(
        seed in prop::collection::vec(any::<u8>(), 210),
        factor in 0.0f32..3.0,
    ) {
        for (ty, grid) in all() {
            for field in 0..grid.n_shared() {
                stretch_once(ty, grid, &blocks(&seed, ty, grid, 1), field, factor);
            }
        }
    }
}

/// A shared field once multiplied: the nearest half, its scales or offsets with it, nothing else.
fn stretch_once(ty: GgmlType, grid: &Grid, block: &[u8], field: usize, factor: f32) {
    let before = unpacked(grid, block);
    let mut written = block.to_vec();
    let got = grid.stretch(&mut written, field, factor);
    let after = unpacked(grid, &written);
    assert_eq!(values(grid, &after), decoded(ty, &written, after.codes.len()), "{ty}: values");
    assert!(validate(ty, &written), "{ty}: ggml refuses the field");
    assert_eq!(after.codes, before.codes, "{ty}: codes");
    let at = halves(ty)[field];
    let rest = |block: &[u8]| [&block[..at], &block[at + 2..]].concat();
    assert_eq!(rest(&written), rest(block), "{ty}: other bytes");

    let half = |block: &[u8]| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let (old, new) = (half(block), half(&written));
    let far = |x: f32| (f64::from(x) - f64::from(old * factor)).abs();
    let nearest = every_half().map(far).fold(f64::INFINITY, f64::min);
    assert_eq!(far(new), nearest, "{ty}: {old} times {factor} became {new}");
    assert_eq!(got, if old == 0.0 { 1.0 } else { new / old }, "{ty}: what is returned is what is written");
    let groups = [(&before.scales, &after.scales), (&before.offsets, &after.offsets)];
    for (kind, (before, after)) in groups.into_iter().enumerate() {
        for (before, after) in before.iter().zip(after) {
            if kind != field {
                assert_eq!(before.to_bits(), after.to_bits(), "{ty}: the other field");
            } else if old != 0.0 {
                // The field's own part is exact; its product with the group's multiple is rounded.
                let wanted = f64::from(*before) * f64::from(new) / f64::from(old);
                let tolerance = 2e-7 * wanted.abs() + 1e-44;
                assert!((f64::from(*after) - wanted).abs() <= tolerance, "{ty}: {before} became {after}");
            }
        }
    }
}

fn every_half() -> impl Iterator<Item = f32> {
    (0..=u16::MAX).map(|bits| half::f16::from_bits(bits).to_f32()).filter(|x| x.is_finite())
}

fn rescale_once(ty: GgmlType, grid: &Grid, bytes: &[u8], group: usize, scale: f32, offset: f32) {
    let before = unpacked(grid, bytes);
    let mut written = bytes.to_vec();
    let got = grid.rescale(&mut written, group, scale, offset);
    let after = unpacked(grid, &written);
    assert_eq!(got, (after.scales[group], after.offsets[group]), "{ty}: what is returned is what is written");
    assert_eq!(values(grid, &after), decoded(ty, &written, after.codes.len()), "{ty}: values");
    assert_eq!(after.codes, before.codes, "{ty}: codes");
    assert!(validate(ty, &written), "{ty}: ggml refuses the scale");
    for g in (0..before.scales.len()).filter(|g| *g != group) {
        assert_eq!(after.scales[g].to_bits(), before.scales[g].to_bits(), "{ty}: another group's scale");
        assert_eq!(after.offsets[g].to_bits(), before.offsets[g].to_bits(), "{ty}: another group's offset");
    }

    // Every value the fields can have, from the bytes themselves: the block with each setting of its first group's.
    let far = |a: f32, b: f32| (f64::from(a) - f64::from(b)).abs();
    let (scales, offsets) = representable(ty, grid, bytes, group);
    let nearest =
        |all: &[f32], wanted: f32| all.iter().map(|x| far(*x, wanted)).fold(f64::INFINITY, f64::min);
    assert_eq!(far(got.0, scale), nearest(&scales, scale), "{ty}: scale {scale} got {}", got.0);
    assert_eq!(far(got.1, offset), nearest(&offsets, offset), "{ty}: offset {offset} got {}", got.1);
}

/// All finite scales and offsets that a group can have, its super-block's fields staying.
fn representable(ty: GgmlType, grid: &Grid, bytes: &[u8], group: usize) -> (Vec<f32>, Vec<f32>) {
    let a_block = grid.block() / grid.group();
    let block = &bytes[group / a_block * grid.block_bytes()..][..grid.block_bytes()];
    let half = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
    let every_half = || -> Vec<f32> { every_half().collect() };
    let times = |range: std::ops::RangeInclusive<i32>, unit: f32| -> Vec<f32> {
        range.map(|k| k as f32 * unit).collect()
    };
    let none = || vec![before_offset(grid, bytes, group)];
    match ty {
        GgmlType::Q4_1 | GgmlType::Q5_1 => (every_half(), every_half()),
        GgmlType::Q2_K => (times(0..=15, half(80)), times(-15..=0, half(82))),
        GgmlType::Q3_K => (times(-32..=31, half(108)), none()),
        GgmlType::Q4_K | GgmlType::Q5_K => (times(0..=63, half(0)), times(-63..=0, half(2))),
        GgmlType::Q6_K => (times(-128..=127, half(208)), none()),
        GgmlType::IQ4_XS => (times(-32..=31, half(0)), none()),
        GgmlType::MXFP4 => ((0..=254).map(|e| f64::from(e - 128).exp2() as f32).collect(), none()),
        GgmlType::NVFP4 => {
            let magnitudes = |e: i32, m: i32| match e {
                0 => f64::from(m) / 8.0 * f64::from(-7).exp2(),
                _ => (1.0 + f64::from(m) / 8.0) * f64::from(e - 8).exp2(),
            };
            let all = (0..127).map(|byte| magnitudes(byte >> 3, byte & 7) as f32).collect();
            (all, none())
        }
        _ => (every_half(), none()),
    }
}

fn before_offset(grid: &Grid, bytes: &[u8], group: usize) -> f32 {
    unpacked(grid, bytes).offsets[group]
}

#[test]
fn every_type_with_codes_of_its_own_has_a_grid() {
    let with: Vec<&str> = all().map(|(ty, _)| ty.name()).collect();
    let without: Vec<&str> =
        GgmlType::all().filter(|ty| ty.can_encode() && Grid::of(*ty).is_none()).map(GgmlType::name).collect();
    assert_eq!(
        with,
        [
            "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl",
            "iq4_xs", "tq1_0", "tq2_0", "mxfp4", "nvfp4", "q1_0", "q2_0"
        ]
    );
    assert_eq!(
        without,
        ["f32", "f16", "iq2_xxs", "iq2_xs", "iq3_xxs", "iq1_s", "iq3_s", "iq2_s", "iq1_m", "bf16"]
    );
}

#[test]
fn sizes_are_those_of_ggml_and_levels_ascend() {
    for (ty, grid) in all() {
        assert_eq!(grid.block() as u64, ty.block_size(), "{ty}");
        assert_eq!(grid.block_bytes() as u64, ty.type_size(), "{ty}");
        assert!(grid.block().is_multiple_of(grid.group()), "{ty}");
        assert!(grid.levels().is_sorted_by(|a, b| a < b) && grid.levels().len() <= 256, "{ty}");
    }
}

#[test]
fn every_byte_of_codes_and_every_scale_is_read_as_ggml_does() {
    // A block of one repeated byte for each of the 256, and for each a scale at an edge of its range.
    let edges = [0x0000u16, 0x8000, 0x0001, 0x83ff, 0x3c00, 0xfbff];
    for (ty, grid) in all() {
        for byte in 0..=255u8 {
            for edge in edges {
                let mut bytes = vec![byte; grid.block_bytes()];
                for at in halves(ty) {
                    bytes[*at..at + 2].copy_from_slice(&edge.to_le_bytes());
                }
                if ty != GgmlType::MXFP4 || byte != 255 {
                    check(ty, grid, &bytes, &[3, 0, byte, 1]);
                }
            }
        }
    }
}

#[test]
fn a_minus_zero_stays_where_its_code_stays() {
    for (ty, first) in [(GgmlType::MXFP4, 1), (GgmlType::NVFP4, 4)] {
        let grid = Grid::of(ty).unwrap();
        let mut bytes = vec![0x88; grid.block_bytes()];
        let mut codes = unpacked(grid, &bytes).codes;
        assert!(codes.iter().all(|code| *code == 7));
        codes[0] = 9;
        grid.pack(&codes, &mut bytes);
        assert_eq!((bytes[first], bytes[first + 1]), (0x82, 0x88));
        codes[0] = 7;
        grid.pack(&codes, &mut bytes);
        assert_eq!((bytes[first], bytes[first + 1]), (0x80, 0x88));
    }
}

#[test]
fn scales_that_cannot_be_had_change_nothing_or_the_most_they_can() {
    for (ty, grid) in all() {
        let zeros = vec![0; grid.block_bytes()];
        for wanted in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut bytes = zeros.clone();
            grid.rescale(&mut bytes, 0, wanted, wanted);
            assert_eq!(bytes, zeros, "{ty}: {wanted}");
        }
        let mut bytes = zeros.clone();
        let (scale, _) = grid.rescale(&mut bytes, 0, f32::MAX, f32::MIN);
        assert!(scale.is_finite() && validate(ty, &bytes), "{ty}");
        // A super-block whose own scale is 0 has nothing to multiply.
        assert_eq!(bytes == zeros, !halves(ty).is_empty() && grid.group() < grid.block(), "{ty}");
    }
}

#[test]
fn shared_fields_are_the_halves_and_those_without_a_multiple_stay() {
    for (ty, grid) in all() {
        assert_eq!(grid.n_shared(), halves(ty).len(), "{ty}");
        for field in 0..grid.n_shared() {
            let at = halves(ty)[field];
            // Zero, minus zero, infinity, no number.
            for bits in [0x0000u16, 0x8000, 0x7c00, 0xfc00, 0x7e00] {
                let mut bytes = vec![0x5a; grid.block_bytes()];
                bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
                let before = bytes.clone();
                assert_eq!(grid.stretch(&mut bytes, field, 1.25), 1.0, "{ty}: {bits:x}");
                assert_eq!(bytes, before, "{ty}: {bits:x}");
            }
            // No further than the largest half, and nowhere with a factor that is no number.
            let mut bytes = vec![0x5a; grid.block_bytes()];
            bytes[at..at + 2].copy_from_slice(&half::f16::MAX.to_le_bytes());
            for factor in [2.0, f32::NAN, f32::INFINITY] {
                let before = bytes.clone();
                assert_eq!(grid.stretch(&mut bytes, field, factor), 1.0, "{ty}: {factor}");
                assert_eq!(bytes, before, "{ty}: {factor}");
            }
        }
    }
}

#[test]
fn ggml_refuses_scales_that_are_not_finite() {
    for (ty, grid) in all().filter(|(ty, _)| !halves(*ty).is_empty()) {
        let mut bytes = vec![0; grid.block_bytes()];
        bytes[halves(ty)[0] + 1] = 0x7c;
        assert!(!validate(ty, &bytes), "{ty}");
        assert!(!validate(ty, &bytes[1..]), "{ty}: no whole block");
    }
}

#[test]
#[should_panic(expected = "whole blocks of 18 bytes")]
fn half_a_block_is_a_mistake_of_the_caller() {
    Grid::of(GgmlType::Q4_0).unwrap().codes(&[0; 27], &mut [0; 48]);
}
