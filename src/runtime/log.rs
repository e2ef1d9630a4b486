//! llama.cpp's log: silent unless asked for, its last complaints kept for our own error messages.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

static VERBOSE: AtomicBool = AtomicBool::new(false);
type Watcher = Box<dyn FnMut(u64, u64) + Send>;
static WATCHER: Mutex<Option<Watcher>> = Mutex::new(None);
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

/// Tells `watcher` of every `[ 3/ 291]` that begins a line of the log, until the result is dropped: llama.cpp's quantizer
/// has no other way to say how far it is.
pub(super) fn watch(watcher: impl FnMut(u64, u64) + Send + 'static) -> Watched {
    *WATCHER.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Box::new(watcher));
    Watched
}

/// See [`watch`].
pub(super) struct Watched;

impl Drop for Watched {
    fn drop(&mut self) {
        WATCHER.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }
}

fn counted(message: &str) -> Option<(u64, u64)> {
    let (done, all) = message.strip_prefix('[')?.split_once(']')?.0.split_once('/')?;
    Some((done.trim().parse().ok()?, all.trim().parse().ok()?))
}

unsafe extern "C" fn receive(level: sys::ggml_log_level, message: *const c_char, _: *mut c_void) {
    // SAFETY: llama.cpp passes a NUL-terminated line.
    let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
    if VERBOSE.load(Ordering::Relaxed) {
        eprint!("{message}");
    }
    if let Some((done, all)) = counted(&message)
        && let Some(watcher) = &mut *WATCHER.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    {
        // A panic must not go up through llama.cpp; what is lost is a step of a bar.
        drop(catch_unwind(AssertUnwindSafe(|| watcher(done, all))));
    }
    if level == sys::GGML_LOG_LEVEL_ERROR {
        let mut lines = COMPLAINTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.len() < 8 {
            lines.push(message.trim().to_string());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn only_a_count_in_brackets_is_one() {
        assert_eq!(counted("[   3/ 291] blk.0.attn_q.weight"), Some((3, 291)));
        for other in ["", "[", "[3]", "[a/b]", "llama: [3/4]"] {
            assert_eq!(counted(other), None, "{other}");
        }
    }
}
