//! Writes a llama of random weights, 12 blocks of 1024, to time things on: `random_model OUT.gguf [q8_0|f16]`.

use std::path::Path;

#[path = "../tests/support/mod.rs"]
mod support;

use support::tiny::{big_f16, big_q8_0};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [out] | [out, "q8_0"] => big_q8_0(Path::new(out), 1)?,
        [out, "f16"] => big_f16(Path::new(out), 1)?,
        _ => anyhow::bail!("usage: random_model OUT.gguf [q8_0|f16]"),
    }
    Ok(())
}
