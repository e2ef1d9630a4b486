//! Writes a llama of random weights to time things on: `random_model OUT.gguf [q8_0|f16]` has 12 blocks, 1024 wide;
//! `random_model OUT.gguf q4_k_m BLOCKS` has blocks of about 130 MB, 4096 wide.

use std::path::Path;

#[path = "../tests/support/mod.rs"]
mod support;

use support::tiny::{big_f16, big_q8_0, wide_q4_k_m};

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [out] | [out, "q8_0"] => big_q8_0(Path::new(out), 1)?,
        [out, "f16"] => big_f16(Path::new(out), 1)?,
        [out, "q4_k_m", blocks] => wide_q4_k_m(Path::new(out), blocks.parse()?, 1)?,
        _ => anyhow::bail!("usage: random_model OUT.gguf [q8_0|f16|q4_k_m BLOCKS]"),
    }
    Ok(())
}
