//! llama.cpp's own quantizer.

use std::ffi::CString;
use std::path::Path;

use llama_cpp_sys_2 as sys;

use super::model::{backend, why};
use super::{Error, log};

/// llama.cpp's names of whole-file quantizations (`llama_ftype`) that this project uses.
const FILE_TYPES: &[(&str, sys::llama_ftype)] = &[
    ("F16", sys::LLAMA_FTYPE_MOSTLY_F16),
    ("Q8_0", sys::LLAMA_FTYPE_MOSTLY_Q8_0),
    ("Q6_K", sys::LLAMA_FTYPE_MOSTLY_Q6_K),
    ("Q5_K_M", sys::LLAMA_FTYPE_MOSTLY_Q5_K_M),
    ("Q4_K_M", sys::LLAMA_FTYPE_MOSTLY_Q4_K_M),
    ("Q4_0", sys::LLAMA_FTYPE_MOSTLY_Q4_0),
    ("Q3_K_M", sys::LLAMA_FTYPE_MOSTLY_Q3_K_M),
    ("Q2_K", sys::LLAMA_FTYPE_MOSTLY_Q2_K),
];

/// Quantizes `input` into a new file at `output`, which is written in place: give a path in a temporary folder.
///
/// # Errors
/// An unknown type name, or llama.cpp's own refusal.
pub fn quantize(input: &Path, output: &Path, file_type: &str, n_threads: usize) -> Result<(), Error> {
    backend()?;
    let known = FILE_TYPES.iter().find(|(name, _)| name.eq_ignore_ascii_case(file_type));
    let failed = |why: String| Error::Quantize { path: input.to_path_buf(), why };
    let Some(&(_, ftype)) = known else {
        let names: Vec<&str> = FILE_TYPES.iter().map(|(name, _)| *name).collect();
        return Err(failed(format!("unknown type {file_type}, expected one of {}", names.join(", "))));
    };
    let c_path = |path: &Path| {
        let text = path.to_str().and_then(|s| CString::new(s).ok());
        text.ok_or_else(|| failed(format!("{}: a path that llama.cpp cannot take", path.display())))
    };
    let (from, to) = (c_path(input)?, c_path(output)?);
    log::take_complaints();
    // SAFETY: both paths are NUL-terminated and live through the call; the parameters are llama.cpp's defaults.
    let code = unsafe {
        let mut params = sys::llama_model_quantize_default_params();
        params.ftype = ftype;
        params.nthread = n_threads as i32;
        sys::llama_model_quantize(from.as_ptr(), to.as_ptr(), &raw const params)
    };
    if code == 0 { Ok(()) } else { Err(failed(why(&format!("code {code}")))) }
}
