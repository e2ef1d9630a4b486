//! A loaded model: its shape, its vocabulary and its chat template.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::model::{LlamaLoraAdapter, LlamaModel};
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;

use super::template::{ChatTemplate, Message, Role, Segment};
use super::{Error, device, log};

/// Bytes of text that any thread's stack tokenizes.
const SHORT: usize = 2048;
/// Stack for a longer text: of any thread, and for each byte more than thrice what was seen to be used.
const STACK: usize = 2 << 20;
const STACK_PER_BYTE: usize = 1024;

/// How to load a model.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// A chat template's source, in place of the file's own.
    pub chat_template: Option<String>,
    /// Blocks to be computed on the other devices there are (graphics cards, RPC servers), the last ones; the output
    /// layer counts as one more. 0 for the processor alone.
    pub gpu_layers: u32,
    /// The devices for them, by the names of [`super::devices`]; all there are where none is named.
    pub devices: Vec<String>,
}

/// A GGUF model loaded by llama.cpp.
pub struct Model {
    pub(super) inner: LlamaModel,
    path: PathBuf,
    template: Option<ChatTemplate>,
}

/// A LoRA adapter of a model, which llama.cpp keeps until the model goes.
pub(crate) struct Adapter {
    pub(super) inner: LlamaLoraAdapter,
    pub(super) path: PathBuf,
}

/// SHA-256, in hex, of the prompts' tokens: what a saved work on them is known by.
pub(crate) fn digest(prompts: &[Prompt]) -> String {
    crate::digest(prompts.iter().map(|p| p.tokens.iter().flat_map(|t| t.0.to_le_bytes()).collect()))
}

/// A prompt as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The whole templated prompt.
    pub tokens: Vec<LlamaToken>,
    /// How many tokens at the end stem from the template after the user's text: the post-instruction positions.
    pub n_post: usize,
}

/// llama.cpp's process-wide state, initialised once; a host program that uses llama-cpp-2 beside us takes it from here.
///
/// # Errors
/// llama.cpp could not be initialised, or was already by someone else.
pub fn backend() -> Result<&'static LlamaBackend, Error> {
    static BACKEND: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        log::install();
        LlamaBackend::init().map_err(|e| e.to_string())
    });
    backend.as_ref().map_err(|e| Error::Backend(e.clone()))
}

impl Model {
    /// Loads a model. Check the file with [`crate::gguf::GgufFile::open`] first: llama.cpp's own messages are poorer.
    ///
    /// # Errors
    /// Not loadable by llama.cpp, an embedding-only model, a chat template that does not compile.
    pub fn load(path: &Path, options: &ModelOptions) -> Result<Self, Error> {
        Self::load_with(path, options, |_| ())
    }

    /// As [`Model::load`]; `progress` is told what part is loaded, 0 to 1.
    ///
    /// # Errors
    /// As [`Model::load`].
    pub fn load_with(
        path: &Path,
        options: &ModelOptions,
        mut progress: impl FnMut(f32) + 'static,
    ) -> Result<Self, Error> {
        let backend = backend()?;
        if !path.is_file() {
            return Err(Error::NoFile(path.to_path_buf()));
        }
        let mut params = LlamaModelParams::default();
        if !options.devices.is_empty() {
            let places =
                options.devices.iter().map(|name| device::place(name)).collect::<Result<Vec<_>, _>>()?;
            params = params.with_devices(&places).map_err(|e| Error::Backend(e.to_string()))?;
        }
        let params = params
            .with_n_gpu_layers(options.gpu_layers.min(i32::MAX as u32))
            .with_progress_callback(move |part| {
                // A panic must not go up through llama.cpp.
                drop(catch_unwind(AssertUnwindSafe(|| progress(part))));
                true
            });
        log::take_complaints();
        let inner = LlamaModel::load_from_file(backend, path, &params)
            .map_err(|e| Error::Load { path: path.to_path_buf(), why: why(&e.to_string()) })?;
        let mut model = Self { inner, path: path.to_path_buf(), template: None };
        let causal = model.meta(&format!("{}.attention.causal", model.architecture()));
        if causal.as_deref() == Some("false") || model.n_block() == 0 {
            return Err(Error::EmbeddingOnly(path.to_path_buf()));
        }
        let source = options.chat_template.clone().or_else(|| model.meta("tokenizer.chat_template"));
        if let Some(source) = source {
            let vocab = model.inner.vocab();
            let text =
                |t: LlamaToken| vocab.text(t).map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            model.template = Some(ChatTemplate::new(&source, &text(vocab.bos()), &text(vocab.eos()))?);
        }
        Ok(model)
    }

    /// Loads an adapter for sessions of this model that are made later; it must have no part for the token embedding.
    ///
    /// # Errors
    /// llama.cpp cannot load it.
    pub(crate) fn load_adapter(&mut self, path: &Path) -> Result<Adapter, Error> {
        log::take_complaints();
        let loaded = self.inner.lora_adapter_init(path);
        let path = path.to_path_buf();
        match loaded {
            Ok(inner) => Ok(Adapter { inner, path }),
            Err(error) => Err(Error::Adapter { path, why: why(&error.to_string()) }),
        }
    }

    /// The file it was loaded from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `general.architecture`.
    #[must_use]
    pub fn architecture(&self) -> String {
        self.meta("general.architecture").unwrap_or_default()
    }

    /// Number of blocks.
    #[must_use]
    pub fn n_block(&self) -> usize {
        self.inner.n_layer() as usize
    }

    /// Width of the residual stream.
    #[must_use]
    pub fn n_embd(&self) -> usize {
        self.inner.n_embd().max(0) as usize
    }

    /// Size of the vocabulary.
    #[must_use]
    pub fn n_vocab(&self) -> usize {
        self.inner.n_vocab().max(0) as usize
    }

    /// Longest context the model was trained for.
    #[must_use]
    pub fn n_ctx_train(&self) -> usize {
        self.inner.n_ctx_train() as usize
    }

    /// Whether sequences have a recurrent state; such models compute one sequence at a time here.
    #[must_use]
    pub fn is_recurrent(&self) -> bool {
        self.inner.is_recurrent() || self.inner.is_hybrid()
    }

    /// A metadata value as text.
    #[must_use]
    pub fn meta(&self, key: &str) -> Option<String> {
        self.inner.meta_val_str(key).ok()
    }

    /// Whether both models mean the same by every token.
    #[must_use]
    pub fn same_vocabulary(&self, other: &Self) -> bool {
        let texts = |model: &Self| -> Vec<String> {
            (0..model.n_vocab()).map(|id| model.token_text(LlamaToken(id as i32))).collect()
        };
        self.n_vocab() == other.n_vocab() && texts(self) == texts(other)
    }

    /// Whether generation ends with this token.
    #[must_use]
    pub fn is_end(&self, token: LlamaToken) -> bool {
        self.inner.vocab().is_eog(token)
    }

    /// The bytes that a token stands for; control tokens give none.
    #[must_use]
    pub fn piece(&self, token: LlamaToken) -> Vec<u8> {
        self.inner.vocab().token_to_piece(token, false, None)
    }

    /// A token's text for people, control tokens included.
    #[must_use]
    pub fn token_text(&self, token: LlamaToken) -> String {
        String::from_utf8_lossy(&self.inner.vocab().token_to_piece(token, true, None)).into_owned()
    }

    /// Tokens of plain text; nothing in it becomes a special token.
    #[must_use]
    pub fn tokenize(&self, text: &str) -> Vec<LlamaToken> {
        self.tokens(text, false, false)
    }

    /// Tokens of a text as a document of its own, with the tokens that the model wants at its ends.
    #[must_use]
    pub fn tokenize_text(&self, text: &str) -> Vec<LlamaToken> {
        self.tokens(text, true, false)
    }

    /// Tokens of a text, with the model's own at its ends, and special ones in it, where wanted.
    ///
    /// llama.cpp splits text by `std::regex` for many models, which recurses once for each character of a match: a long
    /// word takes a stack of its own length, or the whole process ends.
    fn tokens(&self, text: &str, ends: bool, special: bool) -> Vec<LlamaToken> {
        let tokenize = || self.inner.vocab().tokenize(text.as_bytes(), ends, special);
        if text.len() <= SHORT {
            return tokenize();
        }
        std::thread::scope(|scope| {
            let deep =
                std::thread::Builder::new().stack_size(STACK + text.len().saturating_mul(STACK_PER_BYTE));
            let there = deep.spawn_scoped(scope, tokenize).ok().and_then(|thread| thread.join().ok());
            there.unwrap_or_else(tokenize)
        })
    }

    /// The beginning-of-text token, where the model wants its texts to begin with it.
    #[must_use]
    pub fn leading_bos(&self) -> Option<LlamaToken> {
        let vocab = self.inner.vocab();
        vocab.should_add_bos().then(|| vocab.bos())
    }

    /// Whether it knows how a conversation is written: by its file, or by the template it was loaded with.
    #[must_use]
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// A user's turn in the model's chat template, ready for its answer.
    ///
    /// # Errors
    /// No chat template, or one that fails on this conversation.
    pub fn prompt(&self, user: &str) -> Result<Prompt, Error> {
        self.chat(&[Message::new(Role::User, user)])
    }

    /// A conversation in the model's chat template, ready for the next answer.
    ///
    /// The rendered text is tokenized as one, as the model saw it in training; where that would turn words of the
    /// user's into special tokens, piece by piece instead.
    ///
    /// # Errors
    /// As [`Model::prompt`].
    pub fn chat(&self, messages: &[Message]) -> Result<Prompt, Error> {
        let template = self.template.as_ref().ok_or_else(|| Error::NoTemplate(self.path.clone()))?;
        let segments = template.render(messages, true)?;
        let vocab = self.inner.vocab();
        let pieces: Vec<Vec<LlamaToken>> = (segments.iter())
            .map(|segment| match segment {
                Segment::Template(text) => self.tokens(text, false, true),
                Segment::Text(text) => self.tokens(text, false, false),
            })
            .collect();
        let whole: String = segments.iter().map(Segment::as_str).collect();
        let whole = self.tokens(&whole, false, true);

        // What llama.cpp leaves as text where special parsing is off.
        let special = |t: &&LlamaToken| {
            let attributes = vocab.attr(**t);
            attributes.contains(LlamaTokenAttr::Control) || attributes.contains(LlamaTokenAttr::Unknown)
        };
        let specials = |tokens: &[LlamaToken]| tokens.iter().filter(special).count();
        let expected: usize = pieces.iter().map(|tokens| specials(tokens)).sum();
        let mut tokens = if specials(&whole) == expected { whole } else { pieces.concat() };

        if vocab.should_add_bos() && tokens.first() != Some(&vocab.bos()) {
            tokens.insert(0, vocab.bos());
        }
        let suffix: Vec<LlamaToken> = (segments.iter().zip(pieces))
            .rev()
            .take_while(|(s, _)| matches!(s, Segment::Template(_)))
            .flat_map(|(_, tokens)| tokens.into_iter().rev())
            .collect();
        // A merge across the border belongs to the user's text.
        let n_post = suffix.iter().zip(tokens.iter().rev()).take_while(|(a, b)| a == b).count();
        Ok(Prompt { tokens, n_post })
    }
}

/// llama.cpp's own words on a failure, or else `fallback`.
pub(super) fn why(fallback: &str) -> String {
    Some(log::take_complaints()).filter(|s| !s.is_empty()).unwrap_or_else(|| fallback.to_string())
}
