//! The llama.cpp of the host program, reached by the functions that it exports and by nothing else: no layout of a tensor
//! is known here. Before it is used it is tried out on tensors of its own.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use libloading::os::unix::Library;

use super::Error;

type Node = *mut c_void;

/// What ggml_init takes, by value.
#[repr(C)]
pub(super) struct InitParams {
    mem_size: usize,
    mem_buffer: *mut c_void,
    no_alloc: bool,
}

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// Functions of the host, by their names.
        #[derive(Clone, Copy)]
        pub(super) struct Functions {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Functions {
            fn load(library: &Library, place: &str) -> Result<Self, Error> {
                $(
                    let name = stringify!($name);
                    // SAFETY: the type is that of ggml.h, ggml-backend.h and llama.h; `try_out` finds out whether it
                    // behaves like it.
                    let $name = unsafe { library.get::<unsafe extern "C" fn($($argument),*) $(-> $result)?>(name.as_bytes()) };
                    let $name = *$name.map_err(|_| Error::Symbol { place: place.to_owned(), name })?;
                )*
                Ok(Self { $($name),* })
            }

            /// Those of this program's own llama.cpp, which it does not export.
            #[cfg(test)]
            fn linked() -> Self {
                // SAFETY: as above.
                unsafe {
                    Self {
                        $($name: std::mem::transmute::<*const (), unsafe extern "C" fn($($argument),*) $(-> $result)?>(
                            llama_cpp_sys_2::$name as *const (),
                        )),*
                    }
                }
            }
        }
    };
}

functions! {
    ggml_get_name: fn(Node) -> *const c_char;
    ggml_op_desc: fn(Node) -> *const c_char;
    ggml_nelements: fn(Node) -> i64;
    ggml_nrows: fn(Node) -> i64;
    ggml_nbytes: fn(Node) -> usize;
    ggml_element_size: fn(Node) -> usize;
    ggml_is_contiguous: fn(Node) -> bool;
    ggml_backend_tensor_get: fn(Node, *mut c_void, usize, usize);
    ggml_backend_tensor_set: fn(Node, *const c_void, usize, usize);
    ggml_type_name: fn(c_int) -> *const c_char;
    ggml_tensor_overhead: fn() -> usize;
    ggml_init: fn(InitParams) -> *mut c_void;
    ggml_free: fn(*mut c_void);
    ggml_new_tensor_2d: fn(*mut c_void, c_int, i64, i64) -> Node;
    ggml_set_name: fn(Node, *const c_char) -> Node;
    ggml_add: fn(*mut c_void, Node, Node) -> Node;
    ggml_transpose: fn(*mut c_void, Node) -> Node;
    ggml_get_data: fn(Node) -> *mut c_void;
    ggml_backend_cpu_buffer_type: fn() -> *mut c_void;
    ggml_backend_alloc_ctx_tensors_from_buft: fn(*mut c_void, *mut c_void) -> *mut c_void;
    ggml_backend_buffer_free: fn(*mut c_void);
    llama_model_meta_val_str: fn(*const c_void, *const c_char, *mut c_char, usize) -> i32;
    llama_model_n_embd: fn(*const c_void) -> i32;
    llama_model_n_layer: fn(*const c_void) -> i32;
}

/// A host that has passed its trial.
pub(super) struct Host {
    pub f: Functions,
    /// Keeps the functions where they are.
    _library: Library,
}

/// ggml's numbers of two types.
const F32: c_int = 0;
const F16: c_int = 1;

impl Host {
    /// The host program itself, or a library that it has loaded; none is loaded by this.
    pub(super) fn open(path: Option<&CStr>) -> Result<Self, Error> {
        if cfg!(not(all(target_pointer_width = "64", target_endian = "little"))) {
            return Err(Error::Machine);
        }
        let place = path.map_or_else(|| "this program".into(), |p| p.to_string_lossy().into_owned());
        let library = match path {
            None => Library::this(),
            Some(path) => {
                let path = std::ffi::OsStr::new(path.to_str().map_err(|_| Error::Text { what: "library" })?);
                // SAFETY: a library that is loaded already is only looked up, and runs no code.
                let found = unsafe { Library::open(Some(path), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
                found.map_err(|_| Error::NotLoaded { path: place.clone() })?
            }
        };
        let host = Self { f: Functions::load(&library, &place)?, _library: library };
        host.try_out().map_err(|function| Error::Untrusted { place, function })?;
        Ok(host)
    }

    /// This program's own llama.cpp.
    #[cfg(test)]
    pub(super) fn linked() -> Self {
        Self { f: Functions::linked(), _library: Library::this() }
    }

    /// The node's name, cut at the first 63 bytes.
    ///
    /// # Safety
    /// `t` is a live tensor of the host.
    pub(super) unsafe fn name<'a>(&self, t: Node) -> &'a [u8] {
        // SAFETY: passed on from the caller; ggml's names end with a NUL and live as long as the tensor.
        unsafe { CStr::from_ptr((self.f.ggml_get_name)(t)) }.to_bytes()
    }

    /// What the node computes, such as `ADD`.
    ///
    /// # Safety
    /// As [`Host::name`].
    pub(super) unsafe fn op<'a>(&self, t: Node) -> &'a [u8] {
        // SAFETY: passed on from the caller; names of operations are constants.
        unsafe { CStr::from_ptr((self.f.ggml_op_desc)(t)) }.to_bytes()
    }

    /// Asks of tensors that it makes itself what will be asked of the graph's. Gives the function whose answer is wrong.
    fn try_out(&self) -> Result<(), &'static str> {
        let f = &self.f;
        // SAFETY: the calls are those of ggml's own programs, on tensors of a context of our own.
        unsafe {
            for (ty, name) in [(F32, "f32"), (F16, "f16")] {
                let found = (f.ggml_type_name)(ty);
                check(
                    !found.is_null() && CStr::from_ptr(found).to_bytes() == name.as_bytes(),
                    "ggml_type_name",
                )?;
            }
            let overhead = (f.ggml_tensor_overhead)();
            check((64..65536).contains(&overhead), "ggml_tensor_overhead")?;
            let params =
                InitParams { mem_size: 16 * overhead, mem_buffer: std::ptr::null_mut(), no_alloc: true };
            let context = (f.ggml_init)(params);
            check(!context.is_null(), "ggml_init")?;
            let outcome = self.try_tensors(context);
            (f.ggml_free)(context);
            outcome
        }
    }

    unsafe fn try_tensors(&self, context: *mut c_void) -> Result<(), &'static str> {
        let f = &self.f;
        // SAFETY: as in `try_out`; a null tensor or buffer is refused before it is used.
        unsafe {
            let single = (f.ggml_new_tensor_2d)(context, F32, 6, 5);
            let half = (f.ggml_new_tensor_2d)(context, F16, 32, 3);
            check(!single.is_null() && !half.is_null() && single != half, "ggml_new_tensor_2d")?;
            let turned = (f.ggml_transpose)(context, single);
            check(!turned.is_null(), "ggml_transpose")?;
            let sum = (f.ggml_add)(context, single, single);
            check(!sum.is_null(), "ggml_add")?;
            // elements, rows, bytes, bytes of an element, contiguous.
            let shapes =
                [(single, 30, 5, 120, 4, true), (half, 96, 3, 192, 2, true), (sum, 30, 5, 120, 4, true)];
            for (t, elements, rows, bytes, size, contiguous) in shapes {
                check((f.ggml_nelements)(t) == elements, "ggml_nelements")?;
                check((f.ggml_nrows)(t) == rows, "ggml_nrows")?;
                check((f.ggml_nbytes)(t) == bytes, "ggml_nbytes")?;
                check((f.ggml_element_size)(t) == size, "ggml_element_size")?;
                check((f.ggml_is_contiguous)(t) == contiguous, "ggml_is_contiguous")?;
            }
            check(!(f.ggml_is_contiguous)(turned) && (f.ggml_nrows)(turned) == 6, "ggml_is_contiguous")?;

            for (t, name) in [(single, c"l_out-7"), (sum, c"ffn_inp-12")] {
                check((f.ggml_set_name)(t, name.as_ptr()) == t, "ggml_set_name")?;
                let found = (f.ggml_get_name)(t);
                check(!found.is_null() && CStr::from_ptr(found) == name, "ggml_get_name")?;
            }
            for (t, op) in [(single, c"NONE"), (sum, c"ADD"), (turned, c"TRANSPOSE")] {
                let found = (f.ggml_op_desc)(t);
                check(!found.is_null() && CStr::from_ptr(found) == op, "ggml_op_desc")?;
            }

            let kind = (f.ggml_backend_cpu_buffer_type)();
            check(!kind.is_null(), "ggml_backend_cpu_buffer_type")?;
            let buffer = (f.ggml_backend_alloc_ctx_tensors_from_buft)(context, kind);
            check(!buffer.is_null(), "ggml_backend_alloc_ctx_tensors_from_buft")?;
            let outcome = self.try_memory(single);
            (f.ggml_backend_buffer_free)(buffer);
            outcome
        }
    }

    /// Writes and reads 30 floats.
    unsafe fn try_memory(&self, t: Node) -> Result<(), &'static str> {
        let f = &self.f;
        let written: Vec<f32> = (0..30u8).map(|i| f32::from(i) - 7.5).collect();
        let mut read = vec![0f32; 30];
        // SAFETY: `t` has 120 bytes of memory of the processor's.
        unsafe {
            (f.ggml_backend_tensor_set)(t, written.as_ptr().cast(), 0, 120);
            let data = (f.ggml_get_data)(t);
            check(!data.is_null() && data.addr().is_multiple_of(4), "ggml_get_data")?;
            check(std::slice::from_raw_parts(data.cast::<f32>(), 30) == written, "ggml_backend_tensor_set")?;
            (f.ggml_backend_tensor_set)(t, [99f32].as_ptr().cast(), 24, 4);
            (f.ggml_backend_tensor_get)(t, read.as_mut_ptr().cast(), 0, 120);
        }
        let right = read[6] == 99.0 && (0..30).all(|i| i == 6 || read[i] == written[i]);
        check(right, "ggml_backend_tensor_get")
    }

    /// Architecture, blocks and width of a model of the host's.
    ///
    /// # Safety
    /// `model` is a live `llama_model` of the host.
    pub(super) unsafe fn shape(&self, model: *const c_void) -> Result<(String, usize, usize), Error> {
        let mut text = [0; 128];
        let key = CString::from(c"general.architecture");
        // SAFETY: passed on from the caller; the buffer is as large as is said.
        let (length, n_embd, n_layer) = unsafe {
            let length =
                (self.f.llama_model_meta_val_str)(model, key.as_ptr(), text.as_mut_ptr(), text.len());
            (length, (self.f.llama_model_n_embd)(model), (self.f.llama_model_n_layer)(model))
        };
        let bytes: Vec<u8> = text.iter().map_while(|&c| (c != 0).then_some(c as u8)).collect();
        match (usize::try_from(n_layer), usize::try_from(n_embd)) {
            (Ok(n_block @ 1..), Ok(n_embd @ 1..)) if length > 0 && bytes.len() == length as usize => {
                Ok((String::from_utf8_lossy(&bytes).into_owned(), n_block, n_embd))
            }
            _ => Err(Error::Model),
        }
    }
}

fn check(right: bool, function: &'static str) -> Result<(), &'static str> {
    if right { Ok(()) } else { Err(function) }
}
