//! llama.cpp with a hook in its graph.
