//! `ggsteer man`: the help as manual pages.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_mangen::Man;
use ggsteer::output::OutputFile;
use serde::Serialize;

use super::ui::Ui;

/// Write a manual page for ggsteer and one for each command
///
/// Example: ggsteer man ~/.local/share/man/man1
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The folder to write them to; it is made where there is none
    folder: PathBuf,
    /// Overwrite existing pages
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Output {
    pages: Vec<PathBuf>,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let mut root = super::Cli::command();
        root.build();
        std::fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        let mut pages = Vec::new();
        self.write(&root, &mut pages)?;
        let output = Output { pages };
        ui.print(&output, || {
            let dir = self.folder.display();
            format!("{} pages in {dir}; read one with `man -l {dir}/ggsteer.1`\n", output.pages.len())
        })
    }

    fn write(&self, command: &Command, pages: &mut Vec<PathBuf>) -> Result<()> {
        let page = Man::new(command.clone());
        let path = self.folder.join(page.get_filename());
        let mut out = OutputFile::create(&path, self.force, &[])?;
        let mut text = Vec::new();
        page.render(&mut text)?;
        out.write_all(&text).with_context(|| path.display().to_string())?;
        out.commit()?;
        pages.push(path);
        let below = command.get_subcommands().filter(|c| c.get_name() != "help");
        below.into_iter().try_for_each(|command| self.write(command, pages))
    }
}
