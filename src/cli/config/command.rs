//! `ggsteer config`: what holds, and where it comes from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::{Arg, Command, CommandFactory};
use ggsteer::near::did_you_mean;
use ggsteer::output::OutputFile;
use serde::Serialize;

use super::source::{FILE, Origin, Settings, is_text, user_file};
use super::{Leaf, is_switch, leaves};
use crate::cli::Cli;
use crate::cli::ui::{Ui, table};

/// Show every setting, its value and where it comes from, or write a commented file of them
///
/// A setting is an option by its long name. The command line comes first, then the environment
/// (GGSTEER_THREADS), ggsteer.toml in the working directory (or --config FILE), the user's
/// ~/.config/ggsteer/ggsteer.toml, and last the default.
///
/// Example: ggsteer config abliterate
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Of this command only
    command: Option<String>,
    /// Write a file of all settings, commented out, to start from
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = FILE, conflicts_with = "command")]
    init: Option<PathBuf>,
    /// Overwrite an existing file
    #[arg(long, requires = "init")]
    force: bool,
}

#[derive(Serialize)]
struct Output {
    /// The files that are read, the strongest first.
    files: Vec<PathBuf>,
    settings: Vec<Setting>,
}

#[derive(Serialize)]
struct Setting {
    key: String,
    /// Nothing where the option is not set.
    value: Option<Values>,
    from: Origin,
    commands: Vec<String>,
}

#[derive(Serialize, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[serde(untagged)]
enum Values {
    One(String),
    Several(Vec<String>),
}

impl Args {
    /// `file` is the one of --config.
    pub fn run(self, ui: Ui, file: Option<&Path>) -> Result<()> {
        let mut root = Cli::command();
        root.build();
        if let Some(path) = &self.init {
            let mut out = OutputFile::create(path, self.force, &[])?;
            std::io::Write::write_all(&mut out, template(&root).as_bytes())?;
            out.commit()?;
            ui.note(&format!("written: {}", path.display()));
            return Ok(());
        }
        let settings = Settings::load(&root, file)?;
        let all = leaves(&root);
        if let Some(name) = &self.command
            && !all.iter().any(|leaf| leaf.table() == name)
        {
            bail!("there is no command {name}{}", did_you_mean(name, all.iter().map(Leaf::table)));
        }
        let shown = all.iter().filter(|leaf| self.command.as_deref().is_none_or(|name| leaf.table() == name));
        let output = Output {
            files: settings.origins().filter_map(file_of).collect(),
            settings: effective(&settings, shown),
        };
        ui.print(&output, || output.text(all.len()))
    }
}

fn file_of(origin: &Origin) -> Option<PathBuf> {
    match origin {
        Origin::Project(path) | Origin::User(path) => Some(path.clone()),
        _ => None,
    }
}

/// A setting whose value is nobody's business.
const SECRET: &str = "api-key";

/// Every setting of these commands; one entry for commands in which all is the same.
fn effective<'a>(settings: &Settings, leaves: impl Iterator<Item = &'a Leaf<'a>>) -> Vec<Setting> {
    let mut all: BTreeMap<(String, Option<Values>, Origin), Vec<String>> = BTreeMap::new();
    for leaf in leaves {
        for (key, arg) in leaf.settings() {
            let found = settings.of(leaf.table(), key).next();
            let (origin, values) = match found {
                Some((origin, values)) => (origin.clone(), values.clone()),
                None => (Origin::Default, defaults(arg)),
            };
            let value = match values.as_slice() {
                [] => None,
                _ if key == SECRET => Some(Values::One("(set)".into())),
                [one] => Some(Values::One(one.clone())),
                _ => Some(Values::Several(values)),
            };
            all.entry((key.to_owned(), value, origin)).or_default().push(leaf.words.clone());
        }
    }
    let setting = |((key, value, from), commands)| Setting { key, value, from, commands };
    all.into_iter().map(setting).collect()
}

fn defaults(arg: &Arg) -> Vec<String> {
    arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect()
}

impl Output {
    fn text(&self, n_commands: usize) -> String {
        let rows = self.settings.iter().map(|s| {
            let value = match &s.value {
                None => "–".to_owned(),
                Some(Values::One(value)) => value.clone(),
                Some(Values::Several(values)) => values.join(" "),
            };
            let commands = match s.commands.as_slice() {
                all if all.len() == n_commands => "all".to_owned(),
                some if some.len() > 3 => format!("{}, … ({})", some[..2].join(", "), some.len()),
                some => some.join(", "),
            };
            vec![s.key.clone(), value, s.from.to_string(), commands]
        });
        let files = match self.files.as_slice() {
            [] => {
                let user = user_file().map(|path| format!(", no {}", path.display())).unwrap_or_default();
                format!("no {FILE} here{user}; `ggsteer config --init` writes one to start from")
            }
            files => files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
        };
        format!("{}files: {files}\n", table(&["setting", "value", "from", "commands"], 4, rows))
    }
}

/// A file of all settings, each with its help, commented out.
fn template(root: &Command) -> String {
    let mut text = "\
# Settings of ggsteer. A setting is an option by its long name; without its # it holds for every command that has the
# option. In a table with a command's name, as [generate], it holds for that command alone.
# The command line and the environment (GGSTEER_THREADS=4) come before this file. `ggsteer config` shows what holds.
"
    .to_owned();
    let leaves = leaves(root);
    let mut by_key: BTreeMap<&str, (&Arg, Vec<&str>)> = BTreeMap::new();
    for leaf in &leaves {
        for (key, arg) in leaf.settings() {
            by_key.entry(key).or_insert_with(|| (arg, Vec::new())).1.push(&leaf.words);
        }
    }
    for (key, (arg, commands)) in by_key {
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let of = if commands.len() == leaves.len() { "all commands".into() } else { commands.join(", ") };
        let value = match (defaults(arg).as_slice(), is_switch(arg)) {
            (_, true) => "false".to_owned(),
            ([], _) => "\"…\"".to_owned(),
            ([one], _) if !is_text(arg) && one.parse::<f64>().is_ok() => one.clone(),
            ([one], _) => format!("{one:?}"),
            (several, _) => format!("{several:?}"),
        };
        let words = help.split_whitespace().collect::<Vec<_>>().join(" ");
        text += &format!("\n# {words}\n# ({of})\n# {key} = {value}\n");
    }
    text
}
