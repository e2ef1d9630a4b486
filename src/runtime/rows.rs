//! What a graph node holds, as slices.
#![allow(unsafe_code)]

use llama_cpp_sys_2 as sys;

use super::hook::HookError;
use super::stream::name;

/// The rows of an f32 tensor: its own memory where the host can reach it, a copy to write back where not.
pub(crate) struct RowsMut<'a> {
    t: *mut sys::ggml_tensor,
    rows: &'a mut [f32],
    copied: bool,
}

impl<'a> RowsMut<'a> {
    /// # Safety
    /// `t` is live, computed, synchronised, and not otherwise accessed while this lives.
    pub(crate) unsafe fn of(t: *mut sys::ggml_tensor, buffer: &'a mut Vec<f32>) -> Result<Self, HookError> {
        // SAFETY: the caller vouches for `t`.
        let node = unsafe { &*t };
        // SAFETY: `t` is live.
        let plain = node.type_ == sys::GGML_TYPE_F32 && unsafe { sys::ggml_is_contiguous(t) };
        if !plain || node.buffer.is_null() {
            return Err(layout(node));
        }
        let n = node.ne.iter().product::<i64>() as usize;
        if n == 0 {
            // A block cut to no outputs at all; its data may be no pointer.
            return Ok(Self { t, rows: &mut [], copied: false });
        }
        // SAFETY: the buffer is not null.
        if unsafe { sys::ggml_backend_buffer_is_host(node.buffer) } {
            // SAFETY: a contiguous f32 tensor in host memory has `n` elements at `data`, and nobody else uses them now.
            let rows = unsafe { std::slice::from_raw_parts_mut(node.data.cast::<f32>(), n) };
            return Ok(Self { t, rows, copied: false });
        }
        buffer.resize(n, 0.0);
        // SAFETY: `buffer` holds the `n` floats that the tensor has.
        unsafe { sys::ggml_backend_tensor_get(t, buffer.as_mut_ptr().cast(), 0, n * 4) };
        Ok(Self { t, rows: &mut buffer[..n], copied: true })
    }

    pub(crate) fn rows(&mut self) -> &mut [f32] {
        self.rows
    }

    pub(crate) fn write_back(&mut self) {
        if self.copied {
            // SAFETY: as many bytes as were read from the tensor in `of`.
            unsafe {
                sys::ggml_backend_tensor_set(self.t, self.rows.as_ptr().cast(), 0, size_of_val(self.rows));
            }
        }
    }
}

/// The expert numbers of a MUL_MAT_ID (ne = [n_used, n_tokens], i32, rows not always contiguous), token by token.
///
/// # Safety
/// `t` is live, computed and synchronised.
pub(crate) unsafe fn ids(t: &sys::ggml_tensor) -> Result<Vec<i32>, HookError> {
    if t.type_ != sys::GGML_TYPE_I32 || t.buffer.is_null() {
        return Err(layout(t));
    }
    // SAFETY: `t` is live.
    let mut bytes = vec![0u8; unsafe { sys::ggml_nbytes(t) }];
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    // SAFETY: `bytes` holds all that the tensor spans, gaps between its rows included.
    unsafe { sys::ggml_backend_tensor_get(t, bytes.as_mut_ptr().cast(), 0, bytes.len()) };
    let places = (0..t.ne[1] as usize).flat_map(|i| (0..t.ne[0] as usize).map(move |j| (i, j)));
    let at = |(i, j)| bytes.get(i * t.nb[1] + j * t.nb[0]..).and_then(|b| b.first_chunk());
    Ok(places.map_while(at).map(|b| i32::from_ne_bytes(*b)).collect())
}

fn layout(t: &sys::ggml_tensor) -> HookError {
    HookError::Layout { node: text(t), found: format!("type {} with strides {:?}", t.type_, t.nb) }
}

/// The node's name.
pub(crate) fn text(t: &sys::ggml_tensor) -> String {
    String::from_utf8_lossy(name(t)).into_owned()
}
