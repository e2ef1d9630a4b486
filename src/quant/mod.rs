//! ggml block types: sizes, decoding, encoding.
