//! llama.cpp's own quantizer.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::Path;

use llama_cpp_sys_2 as sys;

use super::adapter::c_path;
use super::model::{backend, why};
use super::{Error, log};

/// A whole-file quantization of llama.cpp (`llama_ftype`): which type each tensor gets is llama.cpp's own choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileType {
    /// Its name, as `Q4_K_M`.
    pub name: &'static str,
    /// Whether llama.cpp refuses it without an importance matrix.
    pub needs_importance: bool,
    ftype: sys::llama_ftype,
    /// The type of most tensors.
    default: sys::ggml_type,
}

/// Every name that the linked llama.cpp's quantizer takes, largest first.
const FILE_TYPES: &[FileType] = &[
    plain("F32", sys::LLAMA_FTYPE_ALL_F32, sys::GGML_TYPE_F32),
    plain("BF16", sys::LLAMA_FTYPE_MOSTLY_BF16, sys::GGML_TYPE_BF16),
    plain("F16", sys::LLAMA_FTYPE_MOSTLY_F16, sys::GGML_TYPE_F16),
    plain("Q8_0", sys::LLAMA_FTYPE_MOSTLY_Q8_0, sys::GGML_TYPE_Q8_0),
    plain("Q6_K", sys::LLAMA_FTYPE_MOSTLY_Q6_K, sys::GGML_TYPE_Q6_K),
    plain("Q5_1", sys::LLAMA_FTYPE_MOSTLY_Q5_1, sys::GGML_TYPE_Q5_1),
    plain("Q5_K_M", sys::LLAMA_FTYPE_MOSTLY_Q5_K_M, sys::GGML_TYPE_Q5_K),
    plain("Q5_K_S", sys::LLAMA_FTYPE_MOSTLY_Q5_K_S, sys::GGML_TYPE_Q5_K),
    plain("Q5_0", sys::LLAMA_FTYPE_MOSTLY_Q5_0, sys::GGML_TYPE_Q5_0),
    plain("Q4_1", sys::LLAMA_FTYPE_MOSTLY_Q4_1, sys::GGML_TYPE_Q4_1),
    plain("Q4_K_M", sys::LLAMA_FTYPE_MOSTLY_Q4_K_M, sys::GGML_TYPE_Q4_K),
    plain("Q4_K_S", sys::LLAMA_FTYPE_MOSTLY_Q4_K_S, sys::GGML_TYPE_Q4_K),
    plain("Q4_0", sys::LLAMA_FTYPE_MOSTLY_Q4_0, sys::GGML_TYPE_Q4_0),
    plain("IQ4_NL", sys::LLAMA_FTYPE_MOSTLY_IQ4_NL, sys::GGML_TYPE_IQ4_NL),
    plain("MXFP4_MOE", sys::LLAMA_FTYPE_MOSTLY_MXFP4_MOE, sys::GGML_TYPE_MXFP4),
    plain("IQ4_XS", sys::LLAMA_FTYPE_MOSTLY_IQ4_XS, sys::GGML_TYPE_IQ4_XS),
    plain("Q3_K_L", sys::LLAMA_FTYPE_MOSTLY_Q3_K_L, sys::GGML_TYPE_Q3_K),
    plain("Q3_K_M", sys::LLAMA_FTYPE_MOSTLY_Q3_K_M, sys::GGML_TYPE_Q3_K),
    plain("IQ3_M", sys::LLAMA_FTYPE_MOSTLY_IQ3_M, sys::GGML_TYPE_IQ3_S),
    plain("IQ3_S", sys::LLAMA_FTYPE_MOSTLY_IQ3_S, sys::GGML_TYPE_IQ3_S),
    plain("Q3_K_S", sys::LLAMA_FTYPE_MOSTLY_Q3_K_S, sys::GGML_TYPE_Q3_K),
    weighed("IQ3_XS", sys::LLAMA_FTYPE_MOSTLY_IQ3_XS, sys::GGML_TYPE_IQ3_S),
    weighed("IQ3_XXS", sys::LLAMA_FTYPE_MOSTLY_IQ3_XXS, sys::GGML_TYPE_IQ3_XXS),
    plain("Q2_K", sys::LLAMA_FTYPE_MOSTLY_Q2_K, sys::GGML_TYPE_Q2_K),
    weighed("Q2_K_S", sys::LLAMA_FTYPE_MOSTLY_Q2_K_S, sys::GGML_TYPE_Q2_K),
    weighed("IQ2_M", sys::LLAMA_FTYPE_MOSTLY_IQ2_M, sys::GGML_TYPE_IQ2_S),
    weighed("IQ2_S", sys::LLAMA_FTYPE_MOSTLY_IQ2_S, sys::GGML_TYPE_IQ2_XS),
    weighed("IQ2_XS", sys::LLAMA_FTYPE_MOSTLY_IQ2_XS, sys::GGML_TYPE_IQ2_XS),
    weighed("IQ2_XXS", sys::LLAMA_FTYPE_MOSTLY_IQ2_XXS, sys::GGML_TYPE_IQ2_XXS),
    plain("Q2_0", sys::LLAMA_FTYPE_MOSTLY_Q2_0, sys::GGML_TYPE_Q2_0),
    plain("TQ2_0", sys::LLAMA_FTYPE_MOSTLY_TQ2_0, sys::GGML_TYPE_TQ2_0),
    plain("TQ1_0", sys::LLAMA_FTYPE_MOSTLY_TQ1_0, sys::GGML_TYPE_TQ1_0),
    weighed("IQ1_M", sys::LLAMA_FTYPE_MOSTLY_IQ1_M, sys::GGML_TYPE_IQ1_M),
    weighed("IQ1_S", sys::LLAMA_FTYPE_MOSTLY_IQ1_S, sys::GGML_TYPE_IQ1_S),
    plain("Q1_0", sys::LLAMA_FTYPE_MOSTLY_Q1_0, sys::GGML_TYPE_Q1_0),
];

const fn plain(name: &'static str, ftype: sys::llama_ftype, default: sys::ggml_type) -> FileType {
    FileType { name, needs_importance: false, ftype, default }
}

const fn weighed(name: &'static str, ftype: sys::llama_ftype, default: sys::ggml_type) -> FileType {
    FileType { name, needs_importance: true, ftype, default }
}

impl FileType {
    /// All of them, largest first.
    pub fn all() -> impl Iterator<Item = Self> {
        FILE_TYPES.iter().copied()
    }

    /// The file type of this name, in any case; `Q3_K`, `Q4_K` and `Q5_K` mean the medium ones, as for llama.cpp.
    ///
    /// # Errors
    /// [`Error::FileType`], with the names that come near.
    pub fn from_name(name: &str) -> Result<Self, Error> {
        let upper = name.to_ascii_uppercase();
        let named = |wanted: &str| FILE_TYPES.iter().find(|t| t.name == wanted).copied();
        named(&upper).or_else(|| named(&format!("{upper}_M"))).ok_or_else(|| {
            // A letter or two off, and then of the same bits: "Q4_M" is near "Q4_K_M", not near "Q8_0".
            let is_near = |known: &&str| match strsim::levenshtein(known, &upper) {
                0 | 1 => true,
                2 => known.as_bytes()[..2] == upper.as_bytes()[..upper.len().min(2)],
                _ => false,
            };
            let near: Vec<&str> = Self::all().map(|t| t.name).filter(is_near).collect();
            let hint = if near.is_empty() {
                let all: Vec<&str> = Self::all().map(|t| t.name).collect();
                format!("expected one of {}", all.join(", "))
            } else {
                format!("did you mean {}?", near.join(", "))
            };
            Error::FileType { name: name.into(), hint }
        })
    }
}

/// How to quantize.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuantizeOptions<'a> {
    /// Threads; 0 for all the machine has.
    pub n_threads: usize,
    /// Quantize tensors that are quantized already, too.
    pub allow_requantize: bool,
    /// Give every tensor the same type, in place of llama.cpp's mixture.
    pub pure: bool,
    /// What each column counts for, by tensor: n_in values, or n_expert × n_in.
    pub importance: Option<&'a [(&'a str, &'a [f32])]>,
}

/// Quantizes `input` into a new file at `output`, which is written in place: give a path that nobody reads yet.
///
/// # Errors
/// A type that needs an importance matrix where there is none, or llama.cpp's own refusal.
pub fn quantize(
    input: &Path,
    output: &Path,
    file_type: FileType,
    options: &QuantizeOptions<'_>,
) -> Result<(), Error> {
    quantize_with(input, output, file_type, options, |_, _| ())
}

/// As [`quantize`]; `progress` is told each tensor's number, from 1, and how many there are. llama.cpp says so in its log
/// alone, which the whole process shares: of calls at the same time the last one hears, and hears of all.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_with(
    input: &Path,
    output: &Path,
    file_type: FileType,
    options: &QuantizeOptions<'_>,
    progress: impl FnMut(u64, u64) + Send + 'static,
) -> Result<(), Error> {
    backend()?;
    let failed = |why: String| Error::Quantize { path: input.to_path_buf(), why };
    // Of IQ3_XS only the mixture has tensors that need it.
    let needed = file_type.needs_importance && !(options.pure && file_type.name == "IQ3_XS");
    if needed && options.importance.is_none() {
        return Err(failed(format!("{} needs an importance matrix (--imatrix)", file_type.name)));
    }
    // Embedding and output matrix, for which llama.cpp asks for no importance, get a type that ggml stops the process on
    // without it in no mixture.
    // SAFETY: a comparison of ids inside ggml.
    let weighed = unsafe { sys::ggml_quantize_requires_imatrix(file_type.default) };
    let known =
        |name: &str| options.importance.is_some_and(|all| all.iter().any(|(known, _)| *known == name));
    if let Some(name) = ["token_embd.weight", "output.weight"].into_iter().find(|name| !known(name))
        && options.pure
        && weighed
    {
        let ty = file_type.name;
        return Err(failed(format!(
            "{ty} for every tensor (--pure) needs an importance of {name:?}, which the matrix does not have"
        )));
    }
    let (from, to) = (c_path(input).map_err(failed)?, c_path(output).map_err(failed)?);
    let entries = options.importance.unwrap_or_default();
    let names: Vec<CString> = (entries.iter())
        .map(|(name, _)| CString::new(*name))
        .collect::<Result<_, _>>()
        .map_err(|_| failed("the importance matrix has a tensor name with a NUL".into()))?;
    let mut importance: Vec<sys::llama_model_imatrix_data> = (names.iter().zip(entries))
        .map(|(name, (_, values))| sys::llama_model_imatrix_data {
            name: name.as_ptr(),
            data: values.as_ptr(),
            size: values.len(),
        })
        .collect();
    let last = sys::llama_model_imatrix_data { name: std::ptr::null(), data: std::ptr::null(), size: 0 };
    importance.push(last);
    log::take_complaints();
    let watched = log::watch(progress);
    // SAFETY: both paths are NUL-terminated, the importance ends with a null name, and all they point to lives through
    // the call; the other parameters are llama.cpp's defaults.
    let code = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.ftype = file_type.ftype;
        params.nthread = options.n_threads as i32;
        params.allow_requantize = options.allow_requantize;
        params.pure_ = options.pure;
        if options.importance.is_some() {
            params.imatrix = importance.as_ptr();
        }
        sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params)
    };
    drop(watched);
    if code == 0 {
        return Ok(());
    }
    let mut words = why(&format!("code {code}"));
    if words.contains("requantizing") {
        words += "; start from a file of full precision, or allow it with --allow-requantize";
    }
    Err(failed(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_any_case_and_near_ones_are_suggested() {
        assert_eq!(FileType::from_name("q4_k_m").unwrap().name, "Q4_K_M");
        assert_eq!(FileType::from_name("Q4_K").unwrap().name, "Q4_K_M");
        let error = |name| FileType::from_name(name).unwrap_err().to_string();
        assert!(error("Q4_M").contains("did you mean") && error("Q4_M").contains("Q4_K_M"));
        assert!(error("Q9_0").contains("Q8_0, ") && error("seven bits").contains("expected one of F32"));
        for ty in FileType::all() {
            assert_eq!(FileType::from_name(ty.name).unwrap(), ty);
        }
    }
}
