//! The command line: the only room that knows clap, terminals and colours. One file a subcommand.

mod abliterate;
mod analyze;
mod args;
mod calibrate;
mod card;
mod chat;
mod compare;
mod completions;
mod config;
mod demo;
mod doctor;
mod evaluate;
mod export;
mod extract;
mod generate;
mod inspect;
mod interrupt;
mod judge;
mod man;
mod optimize;
mod orthogonalize;
mod parts;
mod perplexity;
mod quantize;
mod report;
mod rewrite;
mod select;
mod serve;
mod steps;
mod ui;
mod verify;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

pub use config::parse;
use ui::Ui;

/// Find, apply, remove and prove behavioural directions in quantized GGUF language models, on a CPU.
#[derive(Debug, Parser)]
#[command(name = "ggsteer", version, max_term_width = 110, arg_required_else_help = true)]
pub struct Cli {
    /// Print one JSON object on stdout instead of text
    #[arg(long, global = true)]
    json: bool,
    /// No remarks and no progress on stderr
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Show llama.cpp's own log on stderr
    #[arg(short, long, global = true)]
    verbose: bool,
    /// Read settings from this file in place of ggsteer.toml in the working directory
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inspect(inspect::Args),
    Extract(extract::Args),
    Analyze(analyze::Args),
    Select(select::Args),
    Optimize(optimize::Args),
    Generate(generate::Args),
    Chat(chat::Args),
    Serve(Box<serve::Args>),
    Orthogonalize(orthogonalize::Args),
    Export(export::Args),
    Card(card::Args),
    Quantize(quantize::Args),
    Verify(verify::Args),
    Evaluate(evaluate::Args),
    Compare(compare::Args),
    Abliterate(Box<abliterate::Args>),
    Report(report::Args),
    Demo(demo::Args),
    Worker(worker::Args),
    Doctor(doctor::Args),
    Config(config::Args),
    Completions(completions::Args),
    Man(man::Args),
}

impl Cli {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        ggsteer::runtime::set_verbose(self.verbose);
        ggsteer::runtime::exit_on_abort();
        ggsteer::runtime::exit_past_bounds();
        #[cfg(target_os = "linux")]
        ggsteer::runtime::exit_on_cut_file();
        #[cfg(unix)]
        interrupt::leave_nothing()?;
        let ui = Ui { json: self.json, quiet: self.quiet };
        ui.set_current();
        match self.command {
            Command::Inspect(args) => args.run(ui),
            Command::Extract(args) => args.run(ui),
            Command::Analyze(args) => args.run(ui),
            Command::Select(args) => args.run(ui),
            Command::Optimize(args) => args.run(ui),
            Command::Generate(args) => args.run(ui),
            Command::Chat(args) => args.run(ui),
            Command::Serve(args) => args.run(ui, self.verbose),
            Command::Orthogonalize(args) => args.run(ui),
            Command::Export(args) => args.run(ui),
            Command::Card(args) => args.run(ui),
            Command::Quantize(args) => args.run(ui),
            Command::Verify(args) => args.run(ui),
            Command::Evaluate(args) => args.run(ui),
            Command::Compare(args) => args.run(ui),
            Command::Abliterate(args) => args.run(ui),
            Command::Report(args) => args.run(ui),
            Command::Demo(args) => args.run(ui),
            Command::Worker(args) => args.run(ui),
            Command::Doctor(args) => args.run(ui),
            Command::Config(args) => args.run(ui, self.config.as_deref()),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(ui),
        }
    }
}

/// What a failure ends the program with: 3 where two files were compared and differ, 130 where Ctrl-C stopped it and its
/// work was saved, 1 for everything else (clap ends it with 2 on wrong usage).
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    match error.downcast_ref() {
        Some(ggsteer::select::Error::Stopped { .. }) => ExitCode::from(130),
        _ if error.is::<verify::Differs>() => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    }
}

/// Whether stdout was closed by its reader.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// `; did you mean FILE?` to end an error about a missing file with, where the command line names it.
pub fn near_file(error: &str) -> String {
    if !error.to_lowercase().contains("no such file") {
        return String::new();
    }
    let args = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
    let args = args.map(|arg| match arg.split_once('=') {
        Some((option, value)) if option.starts_with('-') => value.to_owned(),
        _ => arg,
    });
    let missing = args.map(PathBuf::from).find(|path| {
        let text = path.to_string_lossy();
        text.len() > 1 && error.contains(&*text) && !path.exists()
    });
    missing.map(|path| ggsteer::near::did_you_mean_file(&path)).unwrap_or_default()
}
