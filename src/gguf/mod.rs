//! A checked reader and a writer of GGUF files.
