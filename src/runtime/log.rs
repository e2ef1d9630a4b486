//! llama.cpp's log: silent unless asked for, its last complaints kept for our own error messages.

use std::ffi::{CStr, c_char, c_void};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

static VERBOSE: AtomicBool = AtomicBool::new(false);
static COMPLAINTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Passes llama.cpp's whole log through to stderr, or (the default) none of it.
pub fn set_verbose(verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
}

pub(super) fn install() {
    // SAFETY: the callback is a plain function without user data.
    unsafe { sys::llama_log_set(Some(receive), std::ptr::null_mut()) };
}

/// What llama.cpp logged as errors since the last call, in one line.
pub(super) fn take_complaints() -> String {
    let mut lines = COMPLAINTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    std::mem::take(&mut *lines).join("; ")
}

unsafe extern "C" fn receive(level: sys::ggml_log_level, message: *const c_char, _: *mut c_void) {
    // SAFETY: llama.cpp passes a NUL-terminated line.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    if VERBOSE.load(Ordering::Relaxed) {
        eprint!("{message}");
    }
    if level == sys::GGML_LOG_LEVEL_ERROR {
        let mut lines = COMPLAINTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.len() < 8 {
            lines.push(message.trim().to_string());
        }
    }
}
