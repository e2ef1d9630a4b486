//! Our GGUF reader against ggml's own: what one takes the other takes, and both report the same.
//!
//! Structural validity only: whether the bytes are a GGUF file, and what is in it. The exceptions are in [`excused`],
//! each with its reason. ggml reads the header alone (`no_alloc`, no context for tensors): asked for the data too, it
//! allocates what the header demands before it looks how long the file is. Read like this it allocates a few times the
//! bytes it is given, and so needs no further bound.
#![allow(unsafe_code)]

use std::ffi::CStr;

use ggsteer::gguf::{Array, Gguf, GgufError, Value};
use llama_cpp_sys_2 as ggml;

/// Reads `data` with both readers; returns whether both took it. Panics where they differ.
pub fn differential(data: &[u8]) -> bool {
    let ours = Gguf::parse(data);
    match (&ours, Theirs::parse(data)) {
        (Ok(ours), Some(theirs)) => {
            compare(ours, &theirs);
            true
        }
        (Ok(ours), None) => {
            assert!(nested(ours), "ggml refuses what we take");
            false
        }
        (Err(error), Some(_)) => {
            assert!(excused(error), "ggml takes what we refuse: {error}");
            false
        }
        (Err(_), None) => false,
    }
}

/// What ggml refuses and we take: arrays of arrays, which the format has and ggml has not.
fn nested(ours: &Gguf) -> bool {
    ours.metadata().iter().any(|(_, value)| matches!(value, Value::Array(Array::Array(_))))
}

/// What ggml takes and we refuse.
#[allow(clippy::match_same_arms)] // each has its reason
fn excused(error: &GgufError) -> bool {
    match error {
        // Names that are no text, or that end early as C strings: two readers would call one thing by two names.
        GgufError::Utf8 { .. } | GgufError::Nul { .. } => true,
        // ggml looks whether the data is there only when it reads it; we say so before anything is run.
        GgufError::Data { .. } => true,
        // A file that goes on for gigabytes behind its tensors.
        GgufError::Tail { .. } => true,
        // Sizes past 63 bits; ggml counts to 64, and no file holds either. Or a tensor of no elements whose other
        // dimensions cannot be multiplied.
        GgufError::Shape { .. } => true,
        _ => false,
    }
}

fn compare(ours: &Gguf, theirs: &Theirs) {
    // SAFETY: the context lives as long as `theirs`, and every index is below the count that it gave.
    unsafe {
        let ctx = theirs.0;
        assert_eq!(ours.version(), ggml::gguf_get_version(ctx));
        assert_eq!(ours.alignment(), ggml::gguf_get_alignment(ctx) as u64);
        assert_eq!(ours.header_bytes().end, ggml::gguf_get_data_offset(ctx));
        assert_eq!(ours.metadata().len() as i64, ggml::gguf_get_n_kv(ctx));
        for (i, (key, value)) in (0..).zip(ours.metadata()) {
            assert_eq!(key.as_bytes(), CStr::from_ptr(ggml::gguf_get_key(ctx, i)).to_bytes());
            assert_eq!(value.value_type() as u32, ggml::gguf_get_kv_type(ctx, i) as u32, "{key}");
            compare_value(ctx, i, key, value);
        }
        assert_eq!(ours.tensors().len() as i64, ggml::gguf_get_n_tensors(ctx));
        for (i, tensor) in (0..).zip(ours.tensors()) {
            let name = CStr::from_ptr(ggml::gguf_get_tensor_name(ctx, i));
            assert_eq!(tensor.name.as_bytes(), name.to_bytes());
            assert_eq!(tensor.offset, ggml::gguf_get_tensor_offset(ctx, i) as u64, "{name:?}");
            assert_eq!(tensor.ty.id(), ggml::gguf_get_tensor_type(ctx, i) as u32, "{name:?}");
            assert_eq!(tensor.bytes, ggml::gguf_get_tensor_size(ctx, i) as u64, "{name:?}");
        }
    }
}

/// # Safety
/// `i` is a key of `ctx` of the type that `value` has.
unsafe fn compare_value(ctx: *const ggml::gguf_context, i: i64, key: &str, value: &Value) {
    // As C strings: what follows a zero byte is not seen there.
    let text = |ours: &[u8], theirs: *const std::ffi::c_char| {
        let until_zero = ours.split(|&b| b == 0).next().unwrap_or_default();
        // SAFETY: ggml gives a terminated string that it keeps.
        assert_eq!(until_zero, unsafe { CStr::from_ptr(theirs) }.to_bytes(), "{key}");
    };
    // SAFETY: the type is the one that the caller compared.
    unsafe {
        match value {
            Value::U8(x) => assert_eq!(*x, ggml::gguf_get_val_u8(ctx, i)),
            Value::I8(x) => assert_eq!(*x, ggml::gguf_get_val_i8(ctx, i)),
            Value::U16(x) => assert_eq!(*x, ggml::gguf_get_val_u16(ctx, i)),
            Value::I16(x) => assert_eq!(*x, ggml::gguf_get_val_i16(ctx, i)),
            Value::U32(x) => assert_eq!(*x, ggml::gguf_get_val_u32(ctx, i)),
            Value::I32(x) => assert_eq!(*x, ggml::gguf_get_val_i32(ctx, i)),
            Value::U64(x) => assert_eq!(*x, ggml::gguf_get_val_u64(ctx, i)),
            Value::I64(x) => assert_eq!(*x, ggml::gguf_get_val_i64(ctx, i)),
            Value::F32(x) => assert_eq!(x.to_bits(), ggml::gguf_get_val_f32(ctx, i).to_bits()),
            Value::F64(x) => assert_eq!(x.to_bits(), ggml::gguf_get_val_f64(ctx, i).to_bits()),
            Value::Bool(x) => assert_eq!(*x, ggml::gguf_get_val_bool(ctx, i)),
            Value::String(x) => text(x.as_bytes(), ggml::gguf_get_val_str(ctx, i)),
            Value::RawString(x) => text(x, ggml::gguf_get_val_str(ctx, i)),
            Value::Array(array) => {
                assert_eq!(array.element_type() as u32, ggml::gguf_get_arr_type(ctx, i) as u32, "{key}");
                assert_eq!(array.len(), ggml::gguf_get_arr_n(ctx, i), "{key}");
                match array {
                    Array::String(all) => (0..)
                        .zip(all)
                        .for_each(|(k, x)| text(x.as_bytes(), ggml::gguf_get_arr_str(ctx, i, k))),
                    Array::RawString(all) => {
                        (0..).zip(all).for_each(|(k, x)| text(x, ggml::gguf_get_arr_str(ctx, i, k)));
                    }
                    _ => {}
                }
            }
        }
    }
}

/// A header as ggml read it.
struct Theirs(*mut ggml::gguf_context);

impl Theirs {
    fn parse(data: &[u8]) -> Option<Self> {
        let params = ggml::gguf_init_params { no_alloc: true, ctx: std::ptr::null_mut() };
        // SAFETY: the buffer is of that length, and ggml copies what it keeps. The log's function takes anything.
        let ctx = unsafe {
            ggml::ggml_log_set(Some(silent), std::ptr::null_mut());
            ggml::gguf_init_from_buffer(data.as_ptr().cast(), data.len(), params)
        };
        (!ctx.is_null()).then_some(Self(ctx))
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        // SAFETY: made by `parse`, and freed once.
        unsafe { ggml::gguf_free(self.0) };
    }
}

/// ggml says what is wrong with every file it refuses.
extern "C" fn silent(_: ggml::ggml_log_level, _: *const std::ffi::c_char, _: *mut std::ffi::c_void) {}
