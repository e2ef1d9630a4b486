//! The `ggsteer` program: parse, run, and on failure one line on stderr.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: ggsteer::runtime::Allocator = ggsteer::runtime::Allocator;

fn main() -> ExitCode {
    match cli::parse().and_then(cli::Cli::run) {
        Ok(()) => ExitCode::SUCCESS,
        // A reader that has had enough (`ggsteer … | head`) is no failure.
        Err(error) if cli::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let line = one_line(&error);
            let hint = cli::near_file(&line);
            eprintln!("error: {line}{hint}");
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
