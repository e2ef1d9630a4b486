//! `ggsteer completions`: what a shell needs to complete our words.

use std::io::Write;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

/// Print a shell's completions of ggsteer's commands and options
///
/// Example: ggsteer completions bash > ~/.local/share/bash-completion/completions/ggsteer
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The shell
    shell: Shell,
}

impl Args {
    pub fn run(self) -> Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut super::Cli::command(), "ggsteer", &mut script);
        std::io::stdout().write_all(&script).context("stdout")
    }
}
