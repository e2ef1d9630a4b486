//! The plugin: contexts of llama-cpp-2 that are not ours, and programs in C and Python with a llama.cpp of their own.

mod c;
#[path = "../exact/mod.rs"]
mod exact;
mod examples;
mod header;
#[path = "../program/mod.rs"]
mod program;
mod rust;
#[path = "../support/mod.rs"]
mod support;
mod threads;
