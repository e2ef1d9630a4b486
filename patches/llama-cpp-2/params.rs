//! What `src/runtime/params.rs` becomes with llama-cpp-2's own setter: no cast, and no error but by signature.
#![allow(unsafe_code)]

use std::ffi::c_void;

use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_sys_2 as sys;

use super::Error;

/// Handed on to the callback, and not looked at.
struct UserData(*mut c_void);

// SAFETY: the session that owns what it points to is on the thread that decodes, which is the one that is called.
unsafe impl Send for UserData {}
// SAFETY: as above.
unsafe impl Sync for UserData {}

/// Sets the callback and its user data, where there is none yet.
pub(crate) fn set_eval_callback(
    params: &mut LlamaContextParams,
    callback: sys::ggml_backend_sched_eval_callback,
    user_data: *mut c_void,
) -> Result<(), Error> {
    let callback = callback.ok_or(Error::Params)?;
    if params.has_eval_callback() {
        return Err(Error::CallbackTaken);
    }
    let user_data = UserData(user_data);
    *params = std::mem::take(params).with_eval_callback(move |node| {
        let UserData(user_data) = &user_data;
        // SAFETY: a live node, computed where it says so, and the user data that belongs to the callback.
        unsafe { callback(node.as_ptr(), !node.is_computed(), *user_data) }
    });
    Ok(())
}
