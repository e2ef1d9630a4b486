//! Type ids that are known to be safe to hand to ggml.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fmt;

#[cfg(miri)]
use super::miri as ggml;
use llama_cpp_sys_2 as sys;
#[cfg(not(miri))]
use llama_cpp_sys_2 as ggml;

/// A ggml type id that exists in the linked ggml: within its table and not removed.
///
/// Only [`GgmlType::from_id`] makes one from a number, so every method may ask ggml without a further check.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GgmlType(u32);

/// A type id from a file that the linked ggml does not know (or no longer knows).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown ggml type id {0}")]
pub struct UnknownType(pub u32);

/// What `ggml_quantize_chunk` has a case for; anything else makes it abort the process.
const ENCODABLE: [u32; 28] = [
    sys::GGML_TYPE_F32,
    sys::GGML_TYPE_F16,
    sys::GGML_TYPE_BF16,
    sys::GGML_TYPE_Q1_0,
    sys::GGML_TYPE_Q2_0,
    sys::GGML_TYPE_Q4_0,
    sys::GGML_TYPE_Q4_1,
    sys::GGML_TYPE_Q5_0,
    sys::GGML_TYPE_Q5_1,
    sys::GGML_TYPE_Q8_0,
    sys::GGML_TYPE_Q2_K,
    sys::GGML_TYPE_Q3_K,
    sys::GGML_TYPE_Q4_K,
    sys::GGML_TYPE_Q5_K,
    sys::GGML_TYPE_Q6_K,
    sys::GGML_TYPE_IQ1_S,
    sys::GGML_TYPE_IQ1_M,
    sys::GGML_TYPE_IQ2_XXS,
    sys::GGML_TYPE_IQ2_XS,
    sys::GGML_TYPE_IQ2_S,
    sys::GGML_TYPE_IQ3_XXS,
    sys::GGML_TYPE_IQ3_S,
    sys::GGML_TYPE_IQ4_NL,
    sys::GGML_TYPE_IQ4_XS,
    sys::GGML_TYPE_TQ1_0,
    sys::GGML_TYPE_TQ2_0,
    sys::GGML_TYPE_MXFP4,
    sys::GGML_TYPE_NVFP4,
];

macro_rules! named {
    ($($(#[$doc:meta])* $name:ident = $id:ident;)*) => {
        impl GgmlType { $($(#[$doc])* pub const $name: Self = Self(sys::$id);)* }
    };
}

named! {
    /// 32-bit float.
    F32 = GGML_TYPE_F32;
    /// 16-bit float.
    F16 = GGML_TYPE_F16;
    /// 16-bit brain float.
    BF16 = GGML_TYPE_BF16;
    /// 1-bit, 128-element blocks, one scale.
    Q1_0 = GGML_TYPE_Q1_0;
    /// 2-bit, 64-element blocks, one scale.
    Q2_0 = GGML_TYPE_Q2_0;
    /// 4-bit, 32-element blocks, one scale.
    Q4_0 = GGML_TYPE_Q4_0;
    /// 4-bit, 32-element blocks, one scale and one offset.
    Q4_1 = GGML_TYPE_Q4_1;
    /// 5-bit, 32-element blocks, one scale.
    Q5_0 = GGML_TYPE_Q5_0;
    /// 5-bit, 32-element blocks, one scale and one offset.
    Q5_1 = GGML_TYPE_Q5_1;
    /// 8-bit, 32-element blocks, one scale.
    Q8_0 = GGML_TYPE_Q8_0;
    /// 2-bit, 256-element super-blocks.
    Q2_K = GGML_TYPE_Q2_K;
    /// 3-bit, 256-element super-blocks.
    Q3_K = GGML_TYPE_Q3_K;
    /// 4-bit, 256-element super-blocks.
    Q4_K = GGML_TYPE_Q4_K;
    /// 5-bit, 256-element super-blocks.
    Q5_K = GGML_TYPE_Q5_K;
    /// 6-bit, 256-element super-blocks.
    Q6_K = GGML_TYPE_Q6_K;
    /// 4-bit, 32-element blocks, non-uniform grid.
    IQ4_NL = GGML_TYPE_IQ4_NL;
    /// 4-bit, 256-element super-blocks, non-uniform grid.
    IQ4_XS = GGML_TYPE_IQ4_XS;
    /// 4-bit floats, 32-element blocks, a power of two as scale.
    MXFP4 = GGML_TYPE_MXFP4;
    /// 4-bit floats, 64-element blocks, four 8-bit floats as scales.
    NVFP4 = GGML_TYPE_NVFP4;
    /// Ternary, 256-element blocks, five elements a byte.
    TQ1_0 = GGML_TYPE_TQ1_0;
    /// Ternary, 256-element blocks, four elements a byte.
    TQ2_0 = GGML_TYPE_TQ2_0;
    /// 8-bit integer: not a weight type.
    I8 = GGML_TYPE_I8;
    /// 32-bit integer: not a weight type.
    I32 = GGML_TYPE_I32;
    /// 64-bit integer: not a weight type.
    I64 = GGML_TYPE_I64;
    /// 64-bit float: not a weight type.
    F64 = GGML_TYPE_F64;
}

impl GgmlType {
    /// The type with this id in the linked ggml.
    ///
    /// # Errors
    /// [`UnknownType`] for an id outside ggml's table and for one whose type was removed from it.
    pub fn from_id(id: u32) -> Result<Self, UnknownType> {
        if id >= sys::GGML_TYPE_COUNT {
            return Err(UnknownType(id));
        }
        let ty = Self(id);
        // A removed type keeps its row in ggml's table with both sizes zero.
        if ty.block_size() == 0 || ty.type_size() == 0 {
            return Err(UnknownType(id));
        }
        Ok(ty)
    }

    /// Every type the linked ggml knows, by ascending id.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..sys::GGML_TYPE_COUNT).filter_map(|id| Self::from_id(id).ok())
    }

    /// The type of this name, in capitals or not: `q4_K`, `Q8_0`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::all().find(|ty| ty.name().eq_ignore_ascii_case(name))
    }

    /// ggml's number for this type.
    #[must_use]
    pub fn id(self) -> u32 {
        self.0
    }

    /// ggml's name, as `q4_K` or `f32`.
    #[must_use]
    pub fn name(self) -> &'static str {
        // SAFETY: the id is inside ggml's table; the name is null or a static C string in it.
        unsafe {
            let name = ggml::ggml_type_name(self.0);
            if name.is_null() { None } else { CStr::from_ptr(name).to_str().ok() }
        }
        .unwrap_or("unnamed")
    }

    /// Elements in a block: 1, 32, 64, 128 or 256.
    #[must_use]
    pub fn block_size(self) -> u64 {
        // SAFETY: the id is inside ggml's table.
        unsafe { ggml::ggml_blck_size(self.0) }.unsigned_abs()
    }

    /// Bytes in a block.
    #[must_use]
    pub fn type_size(self) -> u64 {
        // SAFETY: the id is inside ggml's table.
        unsafe { ggml::ggml_type_size(self.0) as u64 }
    }

    /// Bytes of a row of `n` elements; `None` when `n` is no multiple of the block size or the product overflows.
    #[must_use]
    pub fn row_size(self, n: u64) -> Option<u64> {
        let block = self.block_size();
        if n.is_multiple_of(block) { (n / block).checked_mul(self.type_size()) } else { None }
    }

    /// Whether [`decode`](super::decode) knows this type: false for the integers, F64 and ggml's internal types.
    #[must_use]
    pub fn can_decode(self) -> bool {
        self == Self::F32 || self.to_float().is_some()
    }

    /// Whether [`encode`](super::encode) knows this type.
    #[must_use]
    pub fn can_encode(self) -> bool {
        ENCODABLE.contains(&self.0) && self.can_decode()
    }

    /// Whether encoding needs an importance for each column (the smallest vector-codebook types).
    #[must_use]
    pub fn needs_importance(self) -> bool {
        // SAFETY: a comparison of ids inside ggml.
        unsafe { ggml::ggml_quantize_requires_imatrix(self.0) }
    }

    pub(super) fn to_float(self) -> sys::ggml_to_float_t {
        // SAFETY: the id is inside ggml's table, so the pointer is to a static entry of it.
        unsafe { (*ggml::ggml_get_type_traits(self.0)).to_float }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl fmt::Debug for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GgmlType({} = {})", self.0, self.name())
    }
}

impl serde::Serialize for GgmlType {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_outside_the_table_and_removed_types_are_refused() {
        // 4 and 5 were Q4_2 and Q4_3; 31 to 33 and 36 to 38 the interleaved types.
        for id in [4, 5, 31, 32, 33, 36, 37, 38, sys::GGML_TYPE_COUNT, 1000, u32::MAX] {
            assert_eq!(GgmlType::from_id(id), Err(UnknownType(id)));
        }
    }

    #[test]
    fn sizes_are_those_of_ggml() {
        assert_eq!((GgmlType::Q4_0.block_size(), GgmlType::Q4_0.type_size()), (32, 18));
        assert_eq!((GgmlType::Q6_K.block_size(), GgmlType::Q6_K.type_size()), (256, 210));
        assert_eq!(GgmlType::Q8_0.row_size(64), Some(68));
        assert_eq!(GgmlType::Q8_0.row_size(63), None);
        assert_eq!(GgmlType::F32.row_size(u64::MAX), None);
        assert_eq!(GgmlType::Q4_K.name(), "q4_K");
        assert!(GgmlType::all().count() > 30);
    }

    #[test]
    fn integers_are_no_weights() {
        for ty in [GgmlType::I8, GgmlType::I32, GgmlType::F64] {
            assert!(!ty.can_decode() && !ty.can_encode(), "{ty}");
        }
        assert!(GgmlType::all().filter(|t| t.can_encode()).count() == ENCODABLE.len());
    }
}
