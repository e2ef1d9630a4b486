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

/// Each function says that it failed, why, and works again.
#[test]
fn a_panic_is_an_error_code_and_its_words() {
    let steering: *mut Handle = &raw mut *Box::leak(Box::new(Handle::linked()));
    let codes: [(&str, &dyn Fn() -> i64); 12] = [
        // SAFETY: of all: a live handle, null paths, and no room for values.
        ("load", &|| armed(|| unsafe { ggsteer_load(steering, null_mut(), -1) }).into()),
        ("set_mode", &|| armed(|| unsafe { ggsteer_set_mode(steering, 0, 1) }).into()),
        ("set_strength", &|| armed(|| unsafe { ggsteer_set_strength(steering, 0, 1.0) }).into()),
        ("set_positions", &|| armed(|| unsafe { ggsteer_set_positions(steering, 0, 0) }).into()),
        ("set_blocks", &|| armed(|| unsafe { ggsteer_set_blocks(steering, 0, 0, -1) }).into()),
        ("set_side", &|| armed(|| unsafe { ggsteer_set_side(steering, 0, 0, 0.0) }).into()),
        ("set_phase", &|| armed(|| unsafe { ggsteer_set_phase(steering, true) }).into()),
        ("read", &|| armed(|| unsafe { ggsteer_read(steering, 0, 0) }).into()),
        ("readings", &|| armed(|| unsafe { ggsteer_readings(steering, 0, null_mut(), 0) })),
        ("check", &|| armed(|| unsafe { ggsteer_check(steering) }).into()),
        ("detach", &|| armed(|| unsafe { ggsteer_detach(steering) }).into()),
        ("reattach", &|| armed(|| unsafe { ggsteer_reattach(steering) }).into()),
    ];
    for (name, call) in codes {
        assert_eq!((call(), last()), (-1, format!("panic: {WORDS}")), "{name}");
    }
    // SAFETY: of these and the next: the model is not looked at, the handle lives.
    assert!(armed(|| unsafe { ggsteer_open(null_mut(), null_mut()) }).is_null());
    assert_eq!(last(), format!("panic: {WORDS}"));
    assert_eq!(armed(|| unsafe { ggsteer_free(steering) }), -1);
    assert!(armed(|| ggsteer_last_error()).is_null());
    assert_eq!(last(), format!("panic: {WORDS}"));

    // SAFETY: as above.
    unsafe {
        assert_eq!(ggsteer_set_phase(steering, true), 0);
        assert_eq!(ggsteer_free(steering), 0);
        assert_eq!(ggsteer_check(steering), -1);
    }
    assert_eq!(last(), "this steering was freed");
}

#[test]
fn a_panic_in_the_callback_is_told_by_the_next_check_and_stops_no_graph() {
    let steering = Box::leak(Box::new(Handle::linked()));
    for ask in [true, false] {
        let (node, data) = (std::ptr::dangling_mut(), (&raw mut *steering).cast());
        // SAFETY: the handle lives, and the node is not looked at.
        let answer = armed(|| unsafe { ggsteer_eval_callback(node, ask, data) });
        assert_eq!(answer, !ask);
        // SAFETY: as above.
        assert_eq!(unsafe { ggsteer_check(steering) }, -1);
        assert_eq!(last(), format!("panic in the eval callback: {WORDS}"));
    }
}
