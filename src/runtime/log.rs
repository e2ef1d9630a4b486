//! llama.cpp's log: silent unless asked for, its last complaints kept for our own error messages.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::io::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use llama_cpp_sys_2 as sys;

use crate::unwind::caught;

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
    // Lost is a line, or a step of a bar.
    drop(caught(|| {
        // SAFETY: llama.cpp passes a NUL-terminated line.
        log(level, &unsafe { CStr::from_ptr(message) }.to_string_lossy());
    }));
}

fn log(level: sys::ggml_log_level, message: &str) {
    if level == sys::GGML_LOG_LEVEL_ERROR {
        let mut lines = COMPLAINTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if lines.len() < 8 {
            lines.push(message.trim().to_string());
        }
    }
    if VERBOSE.load(Ordering::Relaxed) {
        // Where nobody takes it, work goes on without: `eprint!` would panic.
        let _ = std::io::stderr().write_all(message.as_bytes());
    }
    if let Some((done, all)) = counted(message)
        && let Some(watcher) = &mut *WATCHER.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    {
        watcher(done, all);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unwind::tests::armed;

    #[test]
    fn only_a_count_in_brackets_is_one() {
        assert_eq!(counted("[   3/ 291] blk.0.attn_q.weight"), Some((3, 291)));
        for other in ["", "[", "[3]", "[a/b]", "llama: [3/4]"] {
            assert_eq!(counted(other), None, "{other}");
        }
    }

    #[test]
    fn a_panic_costs_its_line_alone() {
        let (level, nothing) = (sys::GGML_LOG_LEVEL_INFO, std::ptr::null_mut());
        let seen: std::sync::Arc<Mutex<Vec<u64>>> = std::sync::Arc::default();
        let told = std::sync::Arc::clone(&seen);
        let watched = watch(move |done, _| {
            told.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(done);
            panic!("of a bar");
        });
        // SAFETY: lines that end with a NUL.
        unsafe {
            armed(|| receive(level, c"[   1/ 3] lost".as_ptr(), nothing));
            receive(level, c"[   2/ 3] seen".as_ptr(), nothing);
            receive(level, c"[   3/ 3] and so is the next".as_ptr(), nothing);
        }
        drop(watched);
        assert_eq!(*seen.lock().unwrap(), [2, 3]);
    }
}
