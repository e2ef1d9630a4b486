//! The one place that sets llama.cpp's eval callback.
//!
//! llama-cpp-2 has no setter for `cb_eval` and keeps its `llama_context_params` private. Its `LlamaContextParams` is a
//! struct of that single field, so the field is written through a pointer cast. Three checks stand guard: size and
//! alignment at compile time, and at run time a value written through the cast that the public getter must see.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::mem::{align_of, size_of};
use std::num::NonZeroU32;

use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_sys_2 as sys;

use super::Error;

const _: () = assert!(size_of::<LlamaContextParams>() == size_of::<sys::llama_context_params>());
const _: () = assert!(align_of::<LlamaContextParams>() == align_of::<sys::llama_context_params>());

/// Sets the callback and its user data, where there is none yet.
pub(crate) fn set_eval_callback(
    params: &mut LlamaContextParams,
    callback: sys::ggml_backend_sched_eval_callback,
    user_data: *mut c_void,
) -> Result<(), Error> {
    const PROBE: u32 = 0x5EED;
    let raw = std::ptr::from_mut(params).cast::<sys::llama_context_params>();
    // SAFETY: same size and alignment (asserted above), and a struct of one field has that field at offset 0; the
    // probe then shows that the fields are where the public getter reads them.
    unsafe {
        let n_ctx = (*raw).n_ctx;
        (*raw).n_ctx = PROBE;
        let seen = params.n_ctx();
        (*raw).n_ctx = n_ctx;
        if seen != NonZeroU32::new(PROBE) {
            return Err(Error::Params);
        }
        if (*raw).cb_eval.is_some() {
            return Err(Error::CallbackTaken);
        }
        (*raw).cb_eval = callback;
        (*raw).cb_eval_user_data = user_data;
    }
    Ok(())
}
