//! Commands and options that the documents name in their sentences are there.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use regex::Regex;

/// Options of other programs.
const OTHERS: &[&str] = &[
    "--bench",
    "--control-vector",
    "--control-vector-scaled",
    "--lora",
    "--locked",
    "--lora-scaled",
    "--merge",
    "--path",
    "--release",
    "--test",
    "--ubatch-size",
];

/// What `--help` of a command says, and that of the commands below it.
fn help(command: &[&str], commands: &mut BTreeSet<String>, flags: &mut BTreeSet<String>) {
    let output =
        Command::new(assert_cmd::cargo::cargo_bin!("ggsteer")).args(command).arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    flags.extend(
        Regex::new(r"--[a-z][a-z0-9-]*").unwrap().find_iter(&text).map(|found| found.as_str().to_owned()),
    );
    let below = text.split_once("\nCommands:\n").map_or("", |(_, rest)| rest.split("\n\n").next().unwrap());
    for name in below.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help")
    {
        let whole = [command, &[name]].concat();
        if commands.insert(whole.join(" ")) {
            help(&whole, commands, flags);
        }
    }
}

#[test]
fn named_commands_and_options_are_there() {
    let (mut commands, mut flags) = (BTreeSet::new(), BTreeSet::new());
    help(&[], &mut commands, &mut flags);
    assert!(commands.contains("export lora") && flags.contains("--project-out-harmless"));
    flags.extend(OTHERS.iter().map(ToString::to_string));
    let span = Regex::new(r"`(ggsteer [^`]+|[^`]*--[^`]+)`").unwrap();
    let flag = Regex::new(r"(?:^|[\s(])(--[a-z][a-z0-9-]*)").unwrap();
    let mut problems = Vec::new();
    for path in super::documents() {
        let text = fs::read_to_string(&path).unwrap();
        // Without the blocks, which are run.
        let prose: String = text.split("```").step_by(2).collect();
        for found in span.captures_iter(&prose).map(|found| found.get(1).unwrap().as_str()) {
            let missing =
                flag.captures_iter(found).map(|found| found[1].to_owned()).find(|f| !flags.contains(f));
            if let Some(missing) = missing {
                problems.push(format!("{}: {missing} in `{found}`", path.display()));
            }
            let command = found.strip_prefix("ggsteer ").and_then(|rest| rest.split_whitespace().next());
            let known = |name: &str| name.starts_with('-') || name == "…" || commands.contains(name);
            if let Some(name) = command.filter(|name| !known(name)) {
                problems.push(format!("{}: `ggsteer {name}`", path.display()));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
