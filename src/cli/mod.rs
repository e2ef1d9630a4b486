//! The command line: the only room that knows clap, terminals and colours. One file a subcommand.

mod abliterate;
mod analyze;
mod args;
mod calibrate;
mod card;
mod compare;
mod demo;
mod evaluate;
mod export;
mod extract;
mod generate;
mod inspect;
mod interrupt;
mod judge;
mod optimize;
mod orthogonalize;
mod parts;
mod perplexity;
mod quantize;
mod rewrite;
mod select;
mod steps;
mod ui;
mod verify;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

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
    Orthogonalize(orthogonalize::Args),
    Export(export::Args),
    Card(card::Args),
    Quantize(quantize::Args),
    Verify(verify::Args),
    Evaluate(evaluate::Args),
    Compare(compare::Args),
    Abliterate(abliterate::Args),
    Demo(demo::Args),
}

impl Cli {
    /// Runs the subcommand.
    pub fn run(self) -> Result<()> {
        ggsteer::runtime::set_verbose(self.verbose);
        let ui = Ui { json: self.json, quiet: self.quiet };
        match self.command {
            Command::Inspect(args) => args.run(ui),
            Command::Extract(args) => args.run(ui),
            Command::Analyze(args) => args.run(ui),
            Command::Select(args) => args.run(ui),
            Command::Optimize(args) => args.run(ui),
            Command::Generate(args) => args.run(ui),
            Command::Orthogonalize(args) => args.run(ui),
            Command::Export(args) => args.run(ui),
            Command::Card(args) => args.run(ui),
            Command::Quantize(args) => args.run(ui),
            Command::Verify(args) => args.run(ui),
            Command::Evaluate(args) => args.run(ui),
            Command::Compare(args) => args.run(ui),
            Command::Abliterate(args) => args.run(ui),
            Command::Demo(args) => args.run(ui),
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
