//! Quantized blocks as codes on a grid: for the types whose elements can be moved one at a time.
//!
//! Such a type stores for each element a code, and for each group of elements a scale and an offset. An element's
//! value is `scale * levels[code] + offset`, with `levels` ascending and the same for the whole type. A code is the
//! place of its level in `levels`, whatever bits the type writes for it. Types that store several elements as one
//! entry of a codebook (IQ1, IQ2, IQ3) have no such grid.
//!
//! Shapes: `bytes` are whole blocks, as they lie in a file, at any alignment; `codes` has one entry an element, in the
//! order in which ggml decodes them; `scales` and `offsets` have one entry a group.
#![forbid(unsafe_code)]

mod fields;
mod four;
mod simple;
mod superblock;
mod ternary;
#[cfg(test)]
mod tests;

use super::{GgmlType, wide};

/// The grid of one type: where codes, scales and offsets lie in a block, and what they mean.
#[derive(Debug)]
pub struct Grid {
    levels: &'static [f32],
    smallest_gap: f32,
    largest_gap: f32,
    group: usize,
    block: usize,
    bytes: usize,
    scales: fn(&[u8], &mut [f32], &mut [f32]),
    unpack: fn(&[u8], &mut [u8]),
    pack: fn(&[u8], &mut [u8]),
    rescale: fn(&mut [u8], usize, f32, f32) -> (f32, f32),
    halves: &'static [usize],
}

impl Grid {
    /// The grid of a type; `None` for floats, integers and types with a codebook.
    #[must_use]
    pub fn of(ty: GgmlType) -> Option<&'static Self> {
        static GRIDS: [(GgmlType, Grid); 18] = [
            (GgmlType::Q1_0, grid::<simple::Q1_0, 128, 18, 1>()),
            (GgmlType::Q2_0, grid::<simple::Q2_0, 64, 18, 1>()),
            (GgmlType::Q4_0, grid::<simple::Q4_0, 32, 18, 1>()),
            (GgmlType::Q4_1, grid::<simple::Q4_1, 32, 20, 1>()),
            (GgmlType::Q5_0, grid::<simple::Q5_0, 32, 22, 1>()),
            (GgmlType::Q5_1, grid::<simple::Q5_1, 32, 24, 1>()),
            (GgmlType::Q8_0, grid::<simple::Q8_0, 32, 34, 1>()),
            (GgmlType::Q2_K, grid::<superblock::Q2K, 256, 84, 16>()),
            (GgmlType::Q3_K, grid::<superblock::Q3K, 256, 110, 16>()),
            (GgmlType::Q4_K, grid::<superblock::Q4K, 256, 144, 8>()),
            (GgmlType::Q5_K, grid::<superblock::Q5K, 256, 176, 8>()),
            (GgmlType::Q6_K, grid::<superblock::Q6K, 256, 210, 16>()),
            (GgmlType::IQ4_NL, grid::<four::Iq4Nl, 32, 18, 1>()),
            (GgmlType::IQ4_XS, grid::<four::Iq4Xs, 256, 136, 8>()),
            (GgmlType::MXFP4, grid::<four::MxFp4, 32, 17, 1>()),
            (GgmlType::NVFP4, grid::<four::NvFp4, 64, 36, 4>()),
            (GgmlType::TQ1_0, grid::<ternary::Tq1, 256, 54, 1>()),
            (GgmlType::TQ2_0, grid::<ternary::Tq2, 256, 66, 1>()),
        ];
        GRIDS.iter().find(|(of, _)| *of == ty).map(|(_, grid)| grid)
    }

    /// The levels, ascending, at most 256; an element's code is its index in here.
    #[must_use]
    pub fn levels(&self) -> &'static [f32] {
        self.levels
    }

    /// The smallest distance between two levels.
    #[must_use]
    pub fn smallest_gap(&self) -> f32 {
        self.smallest_gap
    }

    /// Whether all levels are as far apart.
    #[must_use]
    pub fn is_uniform(&self) -> bool {
        self.smallest_gap == self.largest_gap
    }

    /// Elements that share one scale and one offset.
    #[must_use]
    pub fn group(&self) -> usize {
        self.group
    }

    /// Elements in a block.
    #[must_use]
    pub fn block(&self) -> usize {
        self.block
    }

    /// Bytes in a block.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.bytes
    }

    /// What a code decodes to, bit for bit as ggml has it.
    ///
    /// Where a type has offsets the product is exact, so it makes no difference whether a compiler fuses ggml's
    /// product and sum; where it has none, `offset` is −0, which keeps the sign of a zero.
    ///
    /// # Panics
    /// If `code` is no index of [`levels`](Self::levels).
    #[must_use]
    #[inline]
    pub fn value(&self, scale: f32, offset: f32, code: u8) -> f32 {
        scale * self.levels[usize::from(code)] + offset
    }

    /// The [`value`](Self::value)s of codes that share a scale and an offset.
    ///
    /// # Panics
    /// If a code is no index of [`levels`](Self::levels).
    // Always, for `wide`.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(crate) fn values(&self, scale: f32, offset: f32, codes: &[u8], values: &mut [f32]) {
        if self.is_uniform() {
            let (first, gap) = (self.levels[0], self.smallest_gap);
            for (value, code) in values.iter_mut().zip(codes) {
                *value = scale * (first + gap * f32::from(*code)) + offset;
            }
        } else {
            for (value, code) in values.iter_mut().zip(codes) {
                *value = scale * self.levels[usize::from(*code)] + offset;
            }
        }
    }

    /// Decodes whole blocks, bit for bit as ggml does.
    ///
    /// # Panics
    /// If the lengths do not belong to the same number of blocks.
    pub fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        // Some blocks at a time: enough to amortise the calls, few enough to stay near.
        const SOME: usize = 1024;
        assert_eq!(values.len(), self.blocks(bytes) * self.block, "one value an element");
        let (mut codes, mut scales, mut offsets) = ([0; SOME], [0.0; SOME / 16], [0.0; SOME / 16]);
        let some = SOME / self.block * self.bytes;
        for (bytes, values) in bytes.chunks(some).zip(values.chunks_mut(SOME)) {
            let groups = values.len() / self.group;
            let (codes, scales) = (&mut codes[..values.len()], &mut scales[..groups]);
            (self.scales)(bytes, scales, &mut offsets[..groups]);
            (self.unpack)(bytes, codes);
            wide(
                #[inline(always)]
                || {
                    let groups = codes.chunks_exact(self.group).zip(values.chunks_exact_mut(self.group));
                    for ((scale, offset), (codes, values)) in scales.iter().zip(&offsets).zip(groups) {
                        self.values(*scale, *offset, codes, values);
                    }
                },
            );
        }
    }

    /// Reads whole blocks: a code for each element, a scale and an offset for each group.
    ///
    /// # Panics
    /// If the lengths do not belong to the same number of blocks.
    pub fn unpack(&self, bytes: &[u8], codes: &mut [u8], scales: &mut [f32], offsets: &mut [f32]) {
        self.scales(bytes, scales, offsets);
        self.codes(bytes, codes);
    }

    /// Reads the scales and offsets of whole blocks.
    ///
    /// # Panics
    /// If the lengths do not belong to the same number of blocks.
    pub fn scales(&self, bytes: &[u8], scales: &mut [f32], offsets: &mut [f32]) {
        let groups = self.blocks(bytes) * (self.block / self.group);
        assert!(scales.len() == groups && offsets.len() == groups, "one scale and offset a group");
        (self.scales)(bytes, scales, offsets);
    }

    /// Reads the codes of whole blocks.
    ///
    /// # Panics
    /// If the lengths do not belong to the same number of blocks.
    pub fn codes(&self, bytes: &[u8], codes: &mut [u8]) {
        assert_eq!(codes.len(), self.blocks(bytes) * self.block, "one code an element");
        (self.unpack)(bytes, codes);
    }

    /// Writes codes into blocks, scales and offsets staying as they are; elements whose code does not change keep
    /// their bits.
    ///
    /// # Panics
    /// If the lengths do not belong to the same number of blocks. Codes that are no index of
    /// [`levels`](Self::levels) make wrong values, not a panic.
    pub fn pack(&self, codes: &[u8], bytes: &mut [u8]) {
        assert_eq!(codes.len(), self.blocks(bytes) * self.block, "one code an element");
        debug_assert!(codes.iter().all(|code| usize::from(*code) < self.levels.len()));
        (self.pack)(codes, bytes);
    }

    /// Sets the scale and offset of one group, counted within `block_bytes` (whole blocks), to the representable
    /// values nearest to `scale` and `offset`, and returns what they now decode to.
    ///
    /// Only fields that belong to this group alone change: within a super-block that is the group's multiple of the
    /// super-block's scale. A field whose wanted value is not finite, or which no value can bring nearer (its
    /// super-block's scale is 0 or not finite), stays as it is; so does the offset of a type that has none, which is
    /// always −0.
    ///
    /// # Panics
    /// If `block_bytes` are no whole blocks or have no such group.
    pub fn rescale(&self, block_bytes: &mut [u8], group: usize, scale: f32, offset: f32) -> (f32, f32) {
        let a_block = self.block / self.group;
        assert!(group < self.blocks(block_bytes) * a_block, "a group of these blocks");
        let start = group / a_block * self.bytes;
        (self.rescale)(&mut block_bytes[start..start + self.bytes], group % a_block, scale, offset)
    }

    /// Half-precision fields that a whole block shares: its scale, then its offset where it has one; none where the
    /// scales are powers of two or bytes.
    #[must_use]
    pub fn n_shared(&self) -> usize {
        self.halves.len()
    }

    /// Multiplies a shared field of one block (0: every scale of it, 1: every offset) by `factor`, to the nearest
    /// half-precision number. Returns the factor that came of it: 1 where nothing changed, as with a field of 0.
    ///
    /// # Panics
    /// If `block_bytes` are not one block, or `field` is not below [`n_shared`](Self::n_shared).
    pub fn stretch(&self, block_bytes: &mut [u8], field: usize, factor: f32) -> f32 {
        assert_eq!(self.blocks(block_bytes), 1, "one block");
        let at = self.halves[field];
        let before = fields::half(block_bytes, at);
        fields::put_half(block_bytes, at, before * factor);
        let after = fields::half(block_bytes, at);
        if before == 0.0 || !before.is_finite() { 1.0 } else { after / before }
    }

    fn blocks(&self, bytes: &[u8]) -> usize {
        assert!(bytes.len().is_multiple_of(self.bytes), "whole blocks of {} bytes", self.bytes);
        bytes.len() / self.bytes
    }
}

/// Blocks of `N` elements in `B` bytes, in `G` groups.
trait Layout<const N: usize, const B: usize, const G: usize> {
    /// Ascending.
    const LEVELS: &'static [f32];
    /// Where the half-precision scale and offset of the whole block lie.
    const SHARED: &'static [usize];
    fn scales(bytes: &[u8; B], scales: &mut [f32; G], offsets: &mut [f32; G]);
    fn unpack(bytes: &[u8; B], codes: &mut [u8; N]);
    fn pack(codes: &[u8; N], bytes: &mut [u8; B]);
    /// Brings a group's own fields as near to these as they can be.
    fn rescale(bytes: &mut [u8; B], group: usize, scale: f32, offset: f32);
}

const fn grid<L: Layout<N, B, G>, const N: usize, const B: usize, const G: usize>() -> Grid {
    let (smallest_gap, largest_gap) = gaps(L::LEVELS);
    Grid {
        levels: L::LEVELS,
        smallest_gap,
        largest_gap,
        group: N / G,
        block: N,
        bytes: B,
        scales: scales::<L, N, B, G>,
        unpack: unpack::<L, N, B, G>,
        pack: pack::<L, N, B, G>,
        rescale: rescale::<L, N, B, G>,
        halves: L::SHARED,
    }
}

/// The smallest and the largest distance between neighbours.
const fn gaps(levels: &[f32]) -> (f32, f32) {
    let (mut smallest, mut largest) = (f32::INFINITY, 0.0);
    let mut i = 1;
    while i < levels.len() {
        let gap = levels[i] - levels[i - 1];
        if gap < smallest {
            smallest = gap;
        }
        if gap > largest {
            largest = gap;
        }
        i += 1;
    }
    (smallest, largest)
}

fn scales<L: Layout<N, B, G>, const N: usize, const B: usize, const G: usize>(
    bytes: &[u8],
    scales: &mut [f32],
    offsets: &mut [f32],
) {
    let groups = scales.as_chunks_mut().0.iter_mut().zip(offsets.as_chunks_mut().0);
    for (bytes, (scales, offsets)) in bytes.as_chunks().0.iter().zip(groups) {
        L::scales(bytes, scales, offsets);
    }
}

fn unpack<L: Layout<N, B, G>, const N: usize, const B: usize, const G: usize>(
    bytes: &[u8],
    codes: &mut [u8],
) {
    for (bytes, codes) in bytes.as_chunks().0.iter().zip(codes.as_chunks_mut().0) {
        L::unpack(bytes, codes);
    }
}

fn pack<L: Layout<N, B, G>, const N: usize, const B: usize, const G: usize>(codes: &[u8], bytes: &mut [u8]) {
    for (codes, bytes) in codes.as_chunks().0.iter().zip(bytes.as_chunks_mut().0) {
        L::pack(codes, bytes);
    }
}

fn rescale<L: Layout<N, B, G>, const N: usize, const B: usize, const G: usize>(
    bytes: &mut [u8],
    group: usize,
    scale: f32,
    offset: f32,
) -> (f32, f32) {
    let bytes = bytes.first_chunk_mut().expect("one block");
    L::rescale(bytes, group, scale, offset);
    let (mut scales, mut offsets) = ([0.0; G], [0.0; G]);
    L::scales(bytes, &mut scales, &mut offsets);
    (scales[group], offsets[group])
}
