//! Settings from files and the environment, for what the command line leaves open.
//!
//! Chosen: a setting becomes an argument of the command line before clap reads it, so that clap checks it as it checks
//! all others, with what needs or excludes what. Rejected: settings as clap's default values, which it takes without
//! looking at what they need.

mod command;
mod parse;
mod source;

pub use command::Args;
pub use parse::parse;

use clap::{Arg, ArgAction, Command};

/// What belongs to one run and to the command line alone.
const ONE_RUN: [&str; 6] = ["config", "force", "help", "init", "output", "version"];

/// Whether files and the environment may set it.
fn is_setting(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| !ONE_RUN.contains(&long))
}

/// Whether it takes no value.
fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

/// A command that runs: its words, as `export lora`, and clap's own view of it.
struct Leaf<'a> {
    words: String,
    command: &'a Command,
}

impl Leaf<'_> {
    /// The first word, by which a file's table names it.
    fn table(&self) -> &str {
        self.words.split(' ').next().unwrap_or_default()
    }

    fn settings(&self) -> impl Iterator<Item = (&str, &Arg)> {
        let settings = self.command.get_arguments().filter(|arg| is_setting(arg));
        settings.filter_map(|arg| Some((arg.get_long()?, arg)))
    }
}

/// All of them; `root` must have been built.
fn leaves(root: &Command) -> Vec<Leaf<'_>> {
    fn descend<'a>(words: &str, command: &'a Command, leaves: &mut Vec<Leaf<'a>>) {
        let below = command.get_subcommands().filter(|c| c.get_name() != "help");
        let mut any = false;
        for sub in below {
            any = true;
            descend(&format!("{words} {}", sub.get_name()), sub, leaves);
        }
        if !any && !words.is_empty() {
            leaves.push(Leaf { words: words.trim_start().to_owned(), command });
        }
    }
    let mut all = Vec::new();
    descend("", root, &mut all);
    all
}
