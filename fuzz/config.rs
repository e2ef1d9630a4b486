//! The file of settings, read as `ggsteer config --config FILE` reads it.

use clap::Parser as _;

use crate::cli::Cli;

/// Reads `data` as a file of settings; returns whether it was taken.
pub fn config(data: &[u8]) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("ggsteer.toml");
    std::fs::write(&path, data).expect("a temporary file");
    let words = ["ggsteer", "--quiet", "--json", "--config", path.to_str().expect("made by us"), "config"];
    Cli::try_parse_from(words).expect("a line that the program takes").run().is_ok()
}
