//! llama.cpp as it comes, without a hook: what a LoRA adapter or a control vector does in a program that is not ours.
//!
//! Model and context are made through the C interface, since llama-cpp-2 keeps its context pointer, which the control
//! vector needs, to itself.
//!
//! Projecting control vectors (`glp.mode = project`) need llama.cpp with the patches in `patches/llama.cpp`. Chosen: whether
//! the bindings have its function is found by the compiler, in [`set_projection`]. Rejected: a feature, which would
//! not compile where the patches are not, and could be left out where they are.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use llama_cpp_2::token::LlamaToken;
use llama_cpp_sys_2 as sys;

use super::model::{backend, why};
use super::{Error, log};
use crate::gguf::{Gguf, GgufFile, TensorInfo};

/// A model and a context of stock llama.cpp: keys and values in f32, no flash attention, on the CPU.
pub struct Stock {
    model: NonNull<sys::llama_model>,
    ctx: NonNull<sys::llama_context>,
    path: PathBuf,
    n_ctx: usize,
    n_embd: usize,
    n_layer: usize,
    n_vocab: usize,
    n_past: usize,
}

/// What a file of directions has, and what it is for.
enum ControlVector {
    /// To be added: the first of these is n_embd wide and for block 1, the next for block 2, and so on.
    Add(Vec<f32>),
    /// To be taken out everywhere: these, each n_embd wide, times this.
    Project(Vec<f32>, f32),
}

fn control_vector(path: &Path, n_embd: usize, n_layer: usize, scale: f32) -> Result<ControlVector, Error> {
    let refused = |why: String| Error::Adapter { path: path.to_path_buf(), why };
    let file = GgufFile::open(path).map_err(|e| refused(e.to_string()))?;
    let values = |info: &TensorInfo| {
        let mut values = vec![0.0; info.elements() as usize];
        let decoded = crate::quant::decode(info.ty, file.tensor_data(info), &mut values);
        decoded.map_err(|e| refused(format!("tensor {:?}: {e}", info.name)))?;
        if info.ne.first().is_none_or(|n| *n as usize != n_embd) {
            let found = info.ne.first().copied().unwrap_or_default();
            return Err(refused(format!("direction has n_embd {found}, model has {n_embd}")));
        }
        Ok(values)
    };
    if file.get_str("glp.mode").is_ok_and(|mode| mode == "project") {
        if let Ok(point) = file.get_str("glp.hook_point")
            && point != "l_out"
        {
            return Err(refused(format!(
                "glp.hook_point: expected l_out, the residual stream, found {point}"
            )));
        }
        let directions = file.tensors().iter().filter(|t| t.name.starts_with("direction."));
        let directions = directions.map(values).collect::<Result<Vec<_>, _>>()?.concat();
        let rank = file.get_u32("glp.rank").unwrap_or(1) as usize;
        if directions.is_empty() || directions.len() != rank * n_embd {
            let found = directions.len() / n_embd;
            return Err(refused(format!("expected as many directions as glp.rank, {rank}, found {found}")));
        }
        return Ok(ControlVector::Project(
            directions,
            scale * file.get_f32("glp.alpha_default").unwrap_or(1.0),
        ));
    }
    let mut data = vec![0.0; n_embd * n_layer.saturating_sub(1)];
    for info in file.tensors() {
        let block = info.name.strip_prefix("direction.").and_then(|n| n.parse::<usize>().ok());
        let row = block.and_then(|n| n.checked_sub(1)).and_then(|n| data.chunks_exact_mut(n_embd).nth(n));
        let Some(row) = row else {
            return Err(refused(format!(
                "tensor {:?} is for no block from 1 to {}",
                info.name,
                n_layer.saturating_sub(1)
            )));
        };
        row.iter_mut().zip(values(info)?).for_each(|(to, x)| *to += scale * x);
    }
    Ok(ControlVector::Add(data))
}

/// No code of llama.cpp's.
const UNPATCHED: i32 = i32::MIN;

/// Stands for the function of that name where the bindings have none.
///
/// # Safety
/// None needed: nothing is done.
#[allow(dead_code, reason = "with the patches nothing calls it")]
unsafe fn llama_set_adapter_cvec_proj(
    _: *mut sys::llama_context,
    _: *const f32,
    _: *const f32,
    _: usize,
    _: i32,
    _: i32,
    _: i32,
) -> i32 {
    UNPATCHED
}

/// Takes the span of `directions`, each n_embd wide, out of the stream of all blocks. Gives llama.cpp's code, or [`UNPATCHED`].
///
/// # Safety
/// `ctx` is alive.
unsafe fn set_projection(ctx: *mut sys::llama_context, directions: &[f32], n_embd: usize, scale: f32) -> i32 {
    // What the bindings have goes before the function above, as the nearer import.
    #[allow(clippy::wildcard_imports)]
    use llama_cpp_sys_2::*;
    let scales = vec![scale; directions.len() / n_embd];
    let ctx: *mut llama_context = ctx;
    // SAFETY: the caller vouches for `ctx`; the arrays hold as many directions and scales as said, and are copied.
    unsafe {
        let (data, n_dirs) = (directions.as_ptr(), scales.len());
        llama_set_adapter_cvec_proj(ctx, data, scales.as_ptr(), n_dirs, n_embd as i32, 0, i32::MAX)
    }
}

/// A path as C has it.
pub(super) fn c_path(path: &Path) -> Result<CString, String> {
    let text = path.to_str().and_then(|s| CString::new(s).ok());
    text.ok_or_else(|| format!("{}: a path that llama.cpp cannot take", path.display()))
}

impl Stock {
    /// Loads a model and makes a context of `n_ctx` tokens, all of which one batch may hold.
    ///
    /// # Errors
    /// llama.cpp can do neither.
    pub fn load(path: &Path, n_ctx: usize, n_threads: usize) -> Result<Self, Error> {
        backend()?;
        let failed = |why: String| Error::Load { path: path.to_path_buf(), why };
        let c_path = c_path(path).map_err(failed)?;
        log::take_complaints();
        // SAFETY: the backend is initialised; the path is NUL-terminated and lives through the call; the parameters are
        // llama.cpp's defaults.
        let model = unsafe {
            let mut params = sys::llama_model_default_params();
            params.n_gpu_layers = 0;
            sys::llama_model_load_from_file(c_path.as_ptr(), params)
        };
        let model = NonNull::new(model).ok_or_else(|| failed(why("no model")))?;
        // SAFETY: `model` was just made, and outlives the context (see `drop`).
        let (ctx, n_embd, n_layer, n_vocab) = unsafe {
            let mut params = sys::llama_context_default_params();
            (params.n_ctx, params.n_batch, params.n_ubatch) = (n_ctx as u32, n_ctx as u32, n_ctx as u32);
            (params.n_threads, params.n_threads_batch) = (n_threads as i32, n_threads as i32);
            (params.type_k, params.type_v) = (sys::GGML_TYPE_F32, sys::GGML_TYPE_F32);
            params.flash_attn_type = sys::LLAMA_FLASH_ATTN_TYPE_DISABLED;
            params.op_offload = false;
            let model = model.as_ptr();
            let vocab = sys::llama_model_get_vocab(model);
            let sizes = [sys::llama_model_n_embd(model), sys::llama_model_n_layer(model)];
            let [n_embd, n_layer] = sizes.map(|n| n.max(0) as usize);
            let n_vocab = sys::llama_vocab_n_tokens(vocab).max(0) as usize;
            (sys::llama_init_from_model(model, params), n_embd, n_layer, n_vocab)
        };
        let Some(ctx) = NonNull::new(ctx) else {
            // SAFETY: made above, and nothing else knows of it.
            unsafe { sys::llama_model_free(model.as_ptr()) };
            return Err(Error::Context(why("no context")));
        };
        Ok(Self { model, ctx, path: path.to_path_buf(), n_ctx, n_embd, n_layer, n_vocab, n_past: 0 })
    }

    /// Applies one adapter file at `scale`, in place of any before, as `--lora-scaled` does.
    ///
    /// # Errors
    /// llama.cpp refuses it, or would stop the process: an adapter for a token embedding that is the output matrix too.
    pub fn set_lora(&mut self, path: &Path, scale: f32) -> Result<(), Error> {
        let refused = |why: String| Error::Adapter { path: path.to_path_buf(), why };
        let of = |path: &Path| -> Result<Gguf, Error> {
            Ok(GgufFile::open(path).map_err(|e| refused(e.to_string()))?.gguf().clone())
        };
        let embedding = of(path)?.tensor("token_embd.weight.lora_a").is_some();
        if embedding && crate::arch::tied_embeddings(&of(&self.path)?) {
            return Err(refused(
                "it changes a token embedding that is the output matrix too: llama.cpp would stop the process"
                    .into(),
            ));
        }
        let c_path = c_path(path).map_err(refused)?;
        log::take_complaints();
        // SAFETY: model and context are alive; the adapter is freed with the model, after the context, which is the last
        // to use it; the arrays live through the call, which copies them.
        let code = unsafe {
            let adapter = sys::llama_adapter_lora_init(self.model.as_ptr(), c_path.as_ptr());
            if adapter.is_null() {
                return Err(refused(why("llama.cpp cannot load it")));
            }
            let (mut adapters, mut scales) = ([adapter], [scale]);
            sys::llama_set_adapters_lora(self.ctx.as_ptr(), adapters.as_mut_ptr(), 1, scales.as_mut_ptr())
        };
        if code == 0 { Ok(()) } else { Err(refused(why(&format!("code {code}")))) }
    }

    /// Applies one control-vector file at `scale`, as `--control-vector-scaled` does: added to every block it has a vector
    /// for, or, where the file says `glp.mode = project`, taken out of the stream after every write to it. One of each kind
    /// can be applied; another takes the place of the one of its kind.
    ///
    /// # Errors
    /// Not such a file, another width, a block that llama.cpp never adds to; a projection where llama.cpp is without our
    /// patches, which would add the direction, or where it cannot follow the model's stream.
    pub fn set_control_vector(&mut self, path: &Path, scale: f32) -> Result<(), Error> {
        let vector = control_vector(path, self.n_embd, self.n_layer, scale)?;
        log::take_complaints();
        let (ctx, n_embd) = (self.ctx.as_ptr(), self.n_embd);
        let code = match &vector {
            ControlVector::Add(data) => {
                let last = self.n_layer as i32;
                // SAFETY: the context is alive; `data` holds n_embd floats a block from block 1 on, and is copied.
                unsafe { sys::llama_set_adapter_cvec(ctx, data.as_ptr(), data.len(), n_embd as i32, 1, last) }
            }
            // SAFETY: the context is alive.
            ControlVector::Project(directions, scale) => unsafe {
                set_projection(ctx, directions, n_embd, *scale)
            },
        };
        let refused = |why: String| Error::Adapter { path: path.to_path_buf(), why };
        match code {
            0 => Ok(()),
            UNPATCHED => Err(refused(
                "it is to be taken out of the stream (glp.mode), which llama.cpp as it comes cannot: it would add it; \
                 build with patches/llama.cpp (scripts/patched.sh), or take `ggsteer export lora`"
                    .into(),
            )),
            _ => Err(refused(why(&format!("code {code}")))),
        }
    }

    /// Logits (n_vocab) after each of `tokens`, computed anew.
    ///
    /// # Errors
    /// No tokens, more than the context holds, a token that is not in the vocabulary, a failed decode.
    pub fn logits(&mut self, tokens: &[LlamaToken]) -> Result<Vec<Vec<f32>>, Error> {
        // SAFETY: the context is alive.
        unsafe { sys::llama_memory_clear(sys::llama_get_memory(self.ctx.as_ptr()), true) };
        self.n_past = 0;
        self.more(tokens)
    }

    /// Logits (n_vocab) after each of `tokens`, which follow what was computed before.
    ///
    /// # Errors
    /// As [`Stock::logits`].
    pub fn more(&mut self, tokens: &[LlamaToken]) -> Result<Vec<Vec<f32>>, Error> {
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        let found = self.n_past + tokens.len();
        if found > self.n_ctx {
            let room = self.n_ctx;
            return Err(Error::TooLong { what: "prompt".into(), found, room });
        }
        if let Some(token) = tokens.iter().find(|t| t.0 < 0 || t.0 as usize >= self.n_vocab) {
            return Err(Error::Decode(format!("token {} is not in the vocabulary", token.0)));
        }
        let mut ids: Vec<sys::llama_token> = tokens.iter().map(|t| t.0).collect();
        let mut positions: Vec<sys::llama_pos> = (self.n_past as i32..found as i32).collect();
        let mut n_seq: Vec<i32> = vec![1; tokens.len()];
        let mut seq: sys::llama_seq_id = 0;
        let mut seqs: Vec<*mut sys::llama_seq_id> = vec![&raw mut seq; tokens.len()];
        let mut wanted = vec![1i8; tokens.len()];
        log::take_complaints();
        // SAFETY: the context is alive; every array of the batch has n_tokens entries, and each sequence list one, all
        // living through the call; each token is in the vocabulary.
        let code = unsafe {
            let batch = sys::llama_batch {
                n_tokens: tokens.len() as i32,
                token: ids.as_mut_ptr(),
                embd: std::ptr::null_mut(),
                pos: positions.as_mut_ptr(),
                n_seq_id: n_seq.as_mut_ptr(),
                seq_id: seqs.as_mut_ptr(),
                logits: wanted.as_mut_ptr(),
            };
            sys::llama_decode(self.ctx.as_ptr(), batch)
        };
        if code != 0 {
            return Err(Error::Decode(why(&format!("code {code}"))));
        }
        self.n_past = found;
        let row = |i: usize| {
            // SAFETY: every token of the last batch was an output; its row holds n_vocab floats until the next decode,
            // which needs `self` for itself.
            unsafe {
                let logits = sys::llama_get_logits_ith(self.ctx.as_ptr(), i as i32);
                if logits.is_null() {
                    return Err(Error::Decode("no logits".into()));
                }
                Ok(std::slice::from_raw_parts(logits, self.n_vocab).to_vec())
            }
        };
        (0..tokens.len()).map(row).collect()
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        // SAFETY: both were made by `load` and are used by nobody else; the context goes before its model, and the model
        // takes its adapters with it.
        unsafe {
            sys::llama_free(self.ctx.as_ptr());
            sys::llama_model_free(self.model.as_ptr());
        }
    }
}
