//! Panics in what C calls, with the llama.cpp of this program as the host.
#![allow(unsafe_code)]

use std::ptr::null_mut;

use super::*;
use crate::unwind::tests::{WORDS, armed};

fn last() -> String {
    let words = ggsteer_last_error();
    assert!(!words.is_null(), "nothing went wrong");
    // SAFETY: it ends with a NUL and is good until the next call.
    unsafe { CStr::from_ptr(words) }.to_str().unwrap().to_owned()
}

/// Each function says that it failed, and why.
#[test]
fn a_panic_is_an_error_code_and_its_words() {
    let steering: *mut Handle = &raw mut *Box::leak(Box::new(Handle::linked()));
    let told = |name: &str, code: i64| assert_eq!((code, last()), (-1, format!("panic: {WORDS}")), "{name}");
    let none = null_mut();
    // SAFETY: of all: a live handle, a path that is null, no room for values.
    unsafe {
        told("load", armed(|| ggsteer_load(steering, none, -1)).into());
        told("set_mode", armed(|| ggsteer_set_mode(steering, 0, 1)).into());
        told("set_strength", armed(|| ggsteer_set_strength(steering, 0, 1.0)).into());
        told("set_positions", armed(|| ggsteer_set_positions(steering, 0, 0)).into());
        told("set_blocks", armed(|| ggsteer_set_blocks(steering, 0, 0, -1)).into());
        told("set_side", armed(|| ggsteer_set_side(steering, 0, 0, 0.0)).into());
        told("set_phase", armed(|| ggsteer_set_phase(steering, true)).into());
        told("read", armed(|| ggsteer_read(steering, 0, 0)).into());
        told("readings", armed(|| ggsteer_readings(steering, 0, null_mut(), 0)));
        told("check", armed(|| ggsteer_check(steering)).into());
        told("detach", armed(|| ggsteer_detach(steering)).into());
        told("reattach", armed(|| ggsteer_reattach(steering)).into());
        told("free", armed(|| ggsteer_free(steering)).into());
        let opened = armed(|| ggsteer_open(none, null_mut()));
        told("open", if opened.is_null() { -1 } else { 0 });
        assert!(armed(|| ggsteer_last_error()).is_null());
        told("last_error keeps the words", -1);

        // And what was thrown in goes on.
        assert_eq!(ggsteer_set_phase(steering, true), 0);
        assert_eq!(ggsteer_free(steering), 0);
        assert_eq!(ggsteer_check(steering), -1);
    }
    assert_eq!(last(), "this steering was freed");
}

#[test]
fn a_panic_in_the_callback_is_told_by_the_next_check_and_stops_no_graph() {
    let steering: *mut Handle = &raw mut *Box::leak(Box::new(Handle::linked()));
    for ask in [true, false] {
        let node = std::ptr::dangling_mut();
        // SAFETY: the handle lives, and the node is not looked at.
        unsafe {
            assert_eq!(armed(|| ggsteer_eval_callback(node, ask, steering.cast())), !ask);
            assert_eq!(ggsteer_check(steering), -1);
        }
        assert_eq!(last(), format!("panic in the eval callback: {WORDS}"));
    }
}
