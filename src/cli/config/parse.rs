//! The command line, with the settings that it leaves open.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};

use anyhow::{Result, anyhow, bail};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, Error, FromArgMatches, Id};

use super::source::{Origin, Settings};
use super::{is_setting, is_switch, leaves};
use crate::cli::Cli;
use crate::cli::ui::warn;

/// Commands to which settings do not matter, so that a broken file is no hindrance.
const WITHOUT: [&str; 2] = ["completions", "man"];

/// A setting on its way to the command line.
struct Given<'a> {
    key: String,
    origin: &'a Origin,
    words: Vec<OsString>,
}

/// Reads the command line and what stands behind it. Ends the program on wrong usage, as clap does.
pub fn parse() -> Result<Cli> {
    let mut root = Cli::command();
    root.build();
    let (args, off) = preprocess(&root, std::env::args_os().collect());
    let plain = Cli::command().try_get_matches_from(&args);
    let (matches, incomplete) = match plain {
        Ok(matches) => (matches, None),
        Err(error) if error.kind() == ErrorKind::MissingRequiredArgument => {
            // A setting may be what is missing.
            match Cli::command().ignore_errors(true).try_get_matches_from(&args) {
                Ok(matches) => (matches, Some(error)),
                Err(_) => error.exit(),
            }
        }
        Err(error) => error.exit(),
    };
    let Some((words, command, own)) = running(&root, &matches) else {
        incomplete.unwrap_or_else(|| Cli::command().error(ErrorKind::MissingSubcommand, "no command")).exit()
    };
    if WITHOUT.contains(&words.as_str()) {
        return finish(Cli::command().try_get_matches_from(&args), incomplete.as_ref(), &[]);
    }
    let file = own.try_get_one::<std::path::PathBuf>("config").ok().flatten().cloned();
    let file = file.or_else(|| std::env::var_os("GGSTEER_CONFIG").filter(|f| !f.is_empty()).map(Into::into));
    let settings = Settings::load(&root, file.as_deref())?;
    let table = words.split(' ').next().unwrap_or_default();
    let mut given = choose(&settings, table, command, own, &off);
    drop_unsupported(&args, &mut given, incomplete.as_ref());
    let mut cli =
        finish(Cli::command().try_get_matches_from(with(&args, &given)), incomplete.as_ref(), &given)?;
    cli.config = file;
    if !cli.quiet {
        for origin in settings.origins().filter(|o| matches!(o, Origin::Project(_) | Origin::User(_))) {
            let keys: Vec<&str> =
                given.iter().filter(|g| g.origin == origin).map(|g| g.key.as_str()).collect();
            if !keys.is_empty() {
                eprintln!("settings from {origin}: {}", keys.join(", "));
            }
        }
    }
    Ok(cli)
}

/// llama.cpp's short names, and `--switch=false` for a switch that a file turns on: returns the words for clap, and the
/// switches that are turned off.
fn preprocess(root: &Command, args: Vec<OsString>) -> (Vec<OsString>, HashSet<String>) {
    let leaves = leaves(root);
    let is_known = |name: &str| {
        leaves.iter().flat_map(super::Leaf::settings).any(|(key, arg)| key == name && is_switch(arg))
    };
    let mut off = HashSet::new();
    let mut escaped = false;
    let mut words = Vec::with_capacity(args.len());
    for arg in args {
        escaped |= arg == "--";
        let text = arg.to_str().filter(|_| !escaped).unwrap_or_default();
        match (text, text.strip_prefix("--").and_then(|t| t.split_once('='))) {
            ("-ngl", _) => words.push("--gpu-layers".into()),
            ("-fa", _) => words.push("--flash-attn".into()),
            (_, Some((name, "false"))) if is_known(name) => {
                off.insert(name.to_owned());
            }
            (_, Some((name, "true"))) if is_known(name) => words.push(format!("--{name}").into()),
            _ => words.push(arg),
        }
    }
    (words, off)
}

/// The command that is to run: its words, its definition and what the command line says to it.
fn running<'a>(root: &'a Command, matches: &'a ArgMatches) -> Option<(String, &'a Command, &'a ArgMatches)> {
    let (mut words, mut command, mut own) = (String::new(), root, matches);
    while let Some((name, below)) = own.subcommand() {
        words += if words.is_empty() { "" } else { " " };
        words += name;
        command = command.find_subcommand(name)?;
        own = below;
    }
    (!words.is_empty()).then_some((words, command, own))
}

/// The settings that the command line leaves open and does not exclude; of each the strongest source's.
fn choose<'a>(
    settings: &'a Settings,
    table: &str,
    command: &Command,
    own: &ArgMatches,
    off: &HashSet<String>,
) -> Vec<Given<'a>> {
    let said = |id: &Id| {
        own.try_contains_id(id.as_str()).unwrap_or(false)
            && own.value_source(id.as_str()) == Some(ValueSource::CommandLine)
    };
    let mut taken: Vec<&Arg> = command.get_arguments().filter(|arg| said(arg.get_id())).collect();
    let mut given = Vec::new();
    for origin in settings.origins() {
        let mut more = Vec::new();
        for arg in command.get_arguments().filter(|arg| is_setting(arg)) {
            let key = arg.get_long().unwrap_or_default();
            let Some((_, values)) = settings.of(table, key).find(|(from, _)| *from == origin) else {
                continue;
            };
            let settled = taken.iter().any(|t| t.get_id() == arg.get_id() || excludes(command, t, arg));
            if settled || off.contains(key) {
                continue;
            }
            more.push(arg);
            let words: Vec<OsString> = match is_switch(arg) {
                true if values[0] == "true" => vec![format!("--{key}").into()],
                true => continue,
                false => values.iter().map(|value| format!("--{key}={value}").into()).collect(),
            };
            given.push(Given { key: key.to_owned(), origin, words });
        }
        taken.extend(more);
    }
    given
}

fn excludes(command: &Command, a: &Arg, b: &Arg) -> bool {
    let names = |from: &Arg, to: &Arg| {
        command.get_arg_conflicts_with(from).iter().any(|other| other.get_id() == to.get_id())
    };
    names(a, b) || names(b, a)
}

/// The words with the settings among them, before what clap is to take as it is.
fn with(args: &[OsString], given: &[Given<'_>]) -> Vec<OsString> {
    let end = args.iter().position(|arg| arg == OsStr::new("--")).unwrap_or(args.len());
    let mut words = args[..end].to_vec();
    words.extend(given.iter().flat_map(|g| g.words.iter().cloned()));
    words.extend_from_slice(&args[end..]);
    words
}

/// Leaves out, with a warning, what needs an option that nobody gives: a file speaks to all commands.
fn drop_unsupported(args: &[OsString], given: &mut Vec<Given<'_>>, incomplete: Option<&Error>) {
    let missing_anyway = incomplete.map(missing).unwrap_or_default();
    let keys: Vec<String> = given.iter().map(|g| format!("--{}", g.key)).collect();
    given.retain(|one| {
        let alone = Cli::command().try_get_matches_from(with(args, std::slice::from_ref(one)));
        let needed = alone.err().map(|error| missing(&error)).unwrap_or_default();
        let needed: Vec<String> = needed
            .into_iter()
            .filter(|name| !missing_anyway.contains(name) && !keys.contains(name))
            .collect();
        if !needed.is_empty() {
            let Given { key, origin, .. } = one;
            warn(&format!("{key} of {origin} is left out: it needs {}", needed.join(" and ")));
        }
        needed.is_empty()
    });
}

/// The options that clap misses.
fn missing(error: &Error) -> Vec<String> {
    if error.kind() != ErrorKind::MissingRequiredArgument {
        return Vec::new();
    }
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::Strings(names)) => {
            names.iter().map(|name| name.split([' ', '=']).next().unwrap_or_default().to_owned()).collect()
        }
        _ => Vec::new(),
    }
}

/// The parsed command; clap's own complaint where it is about the command line alone.
fn finish(
    matches: Result<ArgMatches, Error>,
    incomplete: Option<&Error>,
    given: &[Given<'_>],
) -> Result<Cli> {
    match matches.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches)) {
        Ok(cli) => Ok(cli),
        Err(error) if given.is_empty() || incomplete.is_some() => error.exit(),
        Err(error) => {
            let text = error.to_string();
            let words = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
            let mut from: Vec<String> = given.iter().map(|g| format!("{} of {}", g.key, g.origin)).collect();
            from.dedup();
            if from.is_empty() {
                bail!("{words}");
            }
            Err(anyhow!("{words} (with {})", from.join(", ")))
        }
    }
}
