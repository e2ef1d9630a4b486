//! Orthogonalizing the writers of a GGUF file into a new file.
