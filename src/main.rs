//! The `ggsteer` program: parse, run, and on failure one line on stderr.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has had enough (`ggsteer … | head`) is no failure.
        Err(error) if cli::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            cli::exit_code(&error)
        }
    }
}

/// The error and its causes in one line, what was said before left out: many errors tell their cause, or the path that
/// is their context, themselves.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if cause.starts_with(&line) {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}
