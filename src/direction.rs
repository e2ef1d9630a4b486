//! The direction type and its GGUF file.
