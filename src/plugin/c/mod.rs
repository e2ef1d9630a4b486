//! The C interface: what `include/ggsteer.h` declares and the shared library exports.
//!
//! A panic never leaves a function, a null pointer or a wrong state gives an error code, and the words for it are in
//! [`ggsteer_last_error`]. What a function takes for a steering must be what [`ggsteer_open`] gave: as everywhere in C,
//! another pointer is the caller's to answer for. The memory of a steering stays with the program, so that a context may
//! outlive it, and one that was given to [`ggsteer_free`] is still told from one that was not.
#![allow(unsafe_code)]

mod error;
mod handle;
mod host;
mod names;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};

pub use error::Error;
pub use handle::Handle;
use handle::Use;

use super::Phase;
use crate::intervention::{Positions, Side};
use crate::unwind::caught;

/// `struct ggml_tensor` of the host, of which nothing is known here.
pub struct Tensor;
/// `struct llama_model` of the host, of which nothing is known here.
pub struct Model;

/// What is done with a direction: see ggsteer_set_mode.
#[repr(C)]
pub enum Mode {
    /// Nothing.
    Off = 0,
    /// It is taken out of the residual stream after every write to it.
    Ablate = 1,
    /// It is added at the output of its block.
    Add = 2,
}

/// Which tokens something is done at: see ggsteer_set_positions.
#[repr(C)]
pub enum Position {
    /// All.
    All = 0,
    /// Those of the prompt.
    Prompt = 1,
    /// Those that are generated.
    Generated = 2,
}

/// Which values along a direction are taken out: see ggsteer_set_side.
#[repr(C)]
pub enum Sides {
    /// All.
    Both = 0,
    /// Those above the center.
    Above = 1,
    /// Those below the center.
    Below = 2,
}

thread_local! {
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Runs the body of a function; what went wrong is kept for [`ggsteer_last_error`], and `failed` is returned.
fn guarded<T>(failed: T, work: impl FnOnce() -> Result<T, Error>) -> T {
    let (value, words) = match caught(work).unwrap_or_else(|words| Err(Error::Panic(words))) {
        Ok(value) => (value, None),
        Err(error) => (failed, CString::new(error.to_string().replace('\0', "?")).ok()),
    };
    // Without a thread to keep it in, at its end, the code alone tells.
    let _ = LAST.try_with(|last| last.replace(words));
    value
}

/// 0, or −1 where it failed.
fn code(work: impl FnOnce() -> Result<(), Error>) -> i32 {
    guarded(-1, || work().map(|()| 0))
}

/// # Safety
/// `steering` is null or what [`ggsteer_open`] gave.
unsafe fn handle(steering: *const Handle) -> Result<&'static Handle, Error> {
    // SAFETY: the caller vouches for it; handles are never freed.
    unsafe { steering.as_ref() }.ok_or(Error::Null { what: "steering" })
}

fn finite(what: &'static str, value: f32) -> Result<f32, Error> {
    if value.is_finite() { Ok(value) } else { Err(Error::NotFinite { what, found: value }) }
}

/// The version of this library, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn ggsteer_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// What went wrong in the last call of this thread, or NULL where nothing did. It is good until the next call.
#[unsafe(no_mangle)]
pub extern "C" fn ggsteer_last_error() -> *const c_char {
    let last = || LAST.try_with(|last| last.borrow().as_ref().map(|words| words.as_ptr())).ok().flatten();
    caught(last).ok().flatten().unwrap_or(std::ptr::null())
}

/// A steering for contexts of `model`, which does nothing yet; NULL on failure.
///
/// `library` is the path of the shared llama.cpp (libllama) that the program has loaded, or NULL where the program itself
/// exports llama.cpp's functions: linked with -rdynamic, or with shared libraries. It is tried out before it is used, and
/// refused where it does not behave as it should. Models whose architecture is not known to name its nodes well are
/// refused.
///
/// # Safety
/// `library` is NULL or ends with a NUL; `model` is a live model of that llama.cpp.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_open(library: *const c_char, model: *const Model) -> *mut Handle {
    guarded(std::ptr::null_mut(), || {
        if model.is_null() {
            return Err(Error::Null { what: "model" });
        }
        // SAFETY: the caller vouches for both.
        let opened = unsafe {
            let library = (!library.is_null()).then(|| CStr::from_ptr(library));
            Handle::open(library, model.cast())
        }?;
        Ok(Box::into_raw(Box::new(opened)))
    })
}

/// The callback: to be `cb_eval` of llama_context_params, with the steering as `cb_eval_user_data`, before the context is
/// made. Not to be called by anybody else than llama.cpp.
///
/// # Safety
/// `tensor` is the node that the scheduler of the steering's llama.cpp calls back for; `steering` is what
/// [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_eval_callback(
    tensor: *mut Tensor,
    ask: bool,
    steering: *mut c_void,
) -> bool {
    // SAFETY: the caller vouches for it.
    match unsafe { steering.cast::<Handle>().as_ref() } {
        // SAFETY: as above.
        Some(handle) if !tensor.is_null() => unsafe { handle.slot.call(tensor.cast(), ask) },
        _ => !ask,
    }
}

/// Loads a direction: the number to name it by, counted from 0, or -1. It does nothing until a mode is set.
///
/// `block` chooses from a file with several directions; -1 takes the only one.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave; `path` ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_load(steering: *mut Handle, path: *const c_char, block: i32) -> i32 {
    guarded(-1, || {
        // SAFETY: the caller vouches for it.
        let handle = unsafe { handle(steering) }?;
        if path.is_null() {
            return Err(Error::Null { what: "path" });
        }
        // SAFETY: as above.
        let path = unsafe { CStr::from_ptr(path) }.to_str().map_err(|_| Error::Text { what: "path" })?;
        let block = match block {
            -1 => None,
            block => Some(usize::try_from(block).map_err(|_| Error::Number { what: "block", found: block })?),
        };
        handle.load(path, block)
    })
}

/// What is done with a direction (GGSTEER_MODE_…), from the next batch on. 0, or -1.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_set_mode(steering: *mut Handle, direction: i32, mode: i32) -> i32 {
    code(|| {
        let mode = match mode {
            0 => Use::Off,
            1 => Use::Ablate,
            2 => Use::Add,
            found => return Err(Error::Number { what: "mode", found }),
        };
        // SAFETY: the caller vouches for it.
        unsafe { handle(steering) }?.set(direction, |s| s.mode = mode)
    })
}

/// How much of it is done. Ablated: the part that is taken out, 1 all of it. Added: the factor of the file's vector. 1 at
/// first. 0, or -1.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_set_strength(steering: *mut Handle, direction: i32, strength: f32) -> i32 {
    code(|| {
        let strength = finite("strength", strength)?;
        // SAFETY: the caller vouches for it.
        unsafe { handle(steering) }?.set(direction, |s| s.strength = strength)
    })
}

/// Which tokens it is done at (GGSTEER_POSITION_…), all at first. Anything but all of them needs ggsteer_set_phase before
/// each decode. 0, or -1.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_set_positions(steering: *mut Handle, direction: i32, positions: i32) -> i32 {
    code(|| {
        let positions = match positions {
            0 => Positions::All,
            1 => Positions::Prompt,
            2 => Positions::Generated,
            found => return Err(Error::Number { what: "positions", found }),
        };
        // SAFETY: the caller vouches for it.
        unsafe { handle(steering) }?.set(direction, |s| s.positions = positions)
    })
}

/// Which blocks it is ablated in, counted from 0, both ends included; a last of -1 is the model's last. 0, or -1.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_set_blocks(
    steering: *mut Handle,
    direction: i32,
    first: i32,
    last: i32,
) -> i32 {
    code(|| {
        // SAFETY: the caller vouches for it.
        let handle = unsafe { handle(steering) }?;
        let blocks = handle.blocks(first, last)?;
        handle.set(direction, |s| s.blocks = blocks)
    })
}

/// Which values along the unit vector are ablated (GGSTEER_SIDE_…), and to which one, `center`, they are moved: both and 0
/// at first. 0, or -1.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_set_side(
    steering: *mut Handle,
    direction: i32,
    side: i32,
    center: f32,
) -> i32 {
    code(|| {
        let center = finite("center", center)?;
        let side = match side {
            0 => Side::Both,
            1 => Side::Above,
            2 => Side::Below,
            found => return Err(Error::Number { what: "side", found }),
        };
        // SAFETY: the caller vouches for it.
        unsafe { handle(steering) }?.set(direction, |s| (s.side, s.center) = (side, center))
    })
}

/// Says whether the batches decoded from now on are of the prompt (true) or generated (false). A batch with both is to be
/// decoded in two. 0, or -1.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_set_phase(steering: *mut Handle, prompt: bool) -> i32 {
    code(|| {
        let phase = if prompt { Phase::Prompt } else { Phase::Generated };
        // SAFETY: the caller vouches for it.
        unsafe { handle(steering) }?.phase(phase)
    })
}

/// Reads the residual stream along a direction at the output of a block, from the next batch on, before what is done
/// there; -1 for `block` ends it. 0, or -1.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_read(steering: *mut Handle, direction: i32, block: i32) -> i32 {
    code(|| {
        // SAFETY: the caller vouches for it.
        let handle = unsafe { handle(steering) }?;
        let block = if block == -1 { None } else { Some(handle.blocks(block, block)?.start) };
        handle.set(direction, |s| s.read = block)
    })
}

/// Takes what was read along a direction since the last call: one value a token, in the order in which llama.cpp computes
/// them; at the model's last block of those alone whose logits were asked for. Gives the number of values, and takes them
/// where `capacity` is large enough; -1 on failure.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave; `values` has room for `capacity` floats, or is NULL with a capacity of 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_readings(
    steering: *mut Handle,
    direction: i32,
    values: *mut f32,
    capacity: usize,
) -> i64 {
    guarded(-1, || {
        // SAFETY: the caller vouches for it.
        let handle = unsafe { handle(steering) }?;
        let values = match (values.is_null(), capacity) {
            (true, 0) => &mut [],
            (true, _) => return Err(Error::Null { what: "values" }),
            // SAFETY: as above.
            (false, _) => unsafe { std::slice::from_raw_parts_mut(values, capacity) },
        };
        handle.readings(direction, values).map(|n| n as i64)
    })
}

/// Whether all was done since the last call, to be asked after each decode: 0, or -1, and then the decode's results are not
/// to be used.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_check(steering: *mut Handle) -> i32 {
    code(|| {
        // SAFETY: the caller vouches for it.
        let handle = unsafe { handle(steering) }?;
        handle.alive(|| Ok(handle.slot.state().verdict()?))
    })
}

/// Leaves contexts as they would be without the steering, from the next batch on. 0, or -1.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_detach(steering: *mut Handle) -> i32 {
    // SAFETY: the caller vouches for it.
    code(|| unsafe { handle(steering) }?.attach(false))
}

/// Undoes ggsteer_detach. 0, or -1.
///
/// # Safety
/// `steering` is what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_reattach(steering: *mut Handle) -> i32 {
    // SAFETY: the caller vouches for it.
    code(|| unsafe { handle(steering) }?.attach(true))
}

/// Ends a steering; NULL is let pass. Contexts that have it go on as without it. 0, or -1.
///
/// # Safety
/// `steering` is NULL or what [`ggsteer_open`] gave.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ggsteer_free(steering: *mut Handle) -> i32 {
    code(|| {
        if steering.is_null() {
            return Ok(());
        }
        // SAFETY: the caller vouches for it.
        unsafe { handle(steering) }?.free()
    })
}
