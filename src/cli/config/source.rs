//! Where settings stand: the environment, a project's file, the user's file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::error::ContextKind;
use clap::{Arg, ArgAction, Command};
use ggsteer::input;
use ggsteer::near::did_you_mean;
use serde::Serialize;
use toml::{Table, Value};

use super::{Leaf, is_switch, leaves};
use crate::cli::ui::warn;

/// The project's file, in the working directory.
pub const FILE: &str = "ggsteer.toml";

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "at")]
pub enum Origin {
    /// A variable of the environment.
    Environment(String),
    /// The working directory's file, or the one of --config.
    Project(PathBuf),
    /// The user's file.
    User(PathBuf),
    /// None of them: the program's own.
    Default,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Environment(name) => f.write_str(name),
            Self::Project(path) | Self::User(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// An option's values as on the command line; of a switch, `true` or `false`.
pub type Values = Vec<String>;

/// What one source sets: for every command, and for one command alone.
struct Layer {
    origin: Origin,
    shared: BTreeMap<String, Values>,
    own: BTreeMap<String, BTreeMap<String, Values>>,
}

/// All sources, the strongest first.
pub struct Settings(Vec<Layer>);

impl Settings {
    /// Reads and checks them; `given` is the file of --config, which then stands for the project's.
    pub fn load(root: &Command, given: Option<&Path>) -> Result<Self> {
        let mut layers = vec![];
        for (key, name, values) in environment(root)? {
            let shared = BTreeMap::from([(key, values)]);
            layers.push(Layer { origin: Origin::Environment(name), shared, own: BTreeMap::new() });
        }
        let project = given.map_or_else(|| PathBuf::from(FILE), Path::to_path_buf);
        if given.is_some() || project.is_file() {
            layers.push(read(root, &project, Origin::Project(project.clone()))?);
        }
        if let Some(user) = user_file().filter(|path| path.is_file()) {
            layers.push(read(root, &user, Origin::User(user.clone()))?);
        }
        Ok(Self(layers))
    }

    /// Every source with what it says of an option of a command, the strongest first.
    pub fn of(&self, table: &str, key: &str) -> impl Iterator<Item = (&Origin, &Values)> {
        self.0.iter().filter_map(move |layer| {
            let own = layer.own.get(table).and_then(|settings| settings.get(key));
            own.or_else(|| layer.shared.get(key)).map(|values| (&layer.origin, values))
        })
    }

    /// The sources, the strongest first.
    pub fn origins(&self) -> impl Iterator<Item = &Origin> {
        self.0.iter().map(|layer| &layer.origin)
    }
}

/// The user's file: `ggsteer/ggsteer.toml` in the folder for configurations (XDG base directories).
pub fn user_file() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))?;
    Some(base.join("ggsteer").join(FILE))
}

/// The variable that sets an option.
pub fn variable(key: &str) -> String {
    format!("GGSTEER_{}", key.to_uppercase().replace('-', "_"))
}

fn environment(root: &Command) -> Result<Vec<(String, String, Values)>> {
    let leaves = leaves(root);
    let mut found = BTreeMap::new();
    let mut names = vec![variable("config")];
    for (key, arg) in leaves.iter().flat_map(Leaf::settings) {
        let name = variable(key);
        names.push(name.clone());
        let Some(text) = std::env::var_os(&name).filter(|text| !text.is_empty()) else { continue };
        let text = text.into_string().map_err(|_| anyhow!("{name}: not UTF-8"))?;
        let text = match (is_switch(arg), text.as_str()) {
            (true, "1" | "on" | "yes") => "true".into(),
            (true, "0" | "off" | "no") => "false".into(),
            _ => text,
        };
        check(arg, &text).map_err(|why| anyhow!("{name}: {why}"))?;
        found.insert(key.to_owned(), (key.to_owned(), name, vec![text]));
    }
    for name in std::env::vars_os().filter_map(|(name, _)| name.into_string().ok()) {
        // Not an error: others may have names like these.
        if name.starts_with("GGSTEER_") && !names.contains(&name) {
            let near = did_you_mean(&name, names.iter().map(String::as_str));
            if !near.is_empty() {
                warn(&format!("{name} in the environment sets nothing{near}"));
            }
        }
    }
    Ok(found.into_values().collect())
}

fn read(root: &Command, path: &Path, origin: Origin) -> Result<Layer> {
    let at = || path.display().to_string();
    let text = input::read_text(path, input::BY_HAND).with_context(at)?;
    let file: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(1, |span| text[..span.start].lines().count().max(1));
        anyhow!("{}: line {line}: {}", at(), e.message())
    })?;
    let leaves = leaves(root);
    let mut layer = Layer { origin, shared: BTreeMap::new(), own: BTreeMap::new() };
    for (key, value) in file {
        if let Value::Table(table) = value {
            let of_table: Vec<&Leaf> = leaves.iter().filter(|leaf| leaf.table() == key).collect();
            if of_table.is_empty() {
                let near = did_you_mean(&key, leaves.iter().map(Leaf::table));
                bail!("{}: [{key}] is no command{near}", at());
            }
            let mut own = BTreeMap::new();
            for (name, value) in table {
                let values = setting(&of_table, &name, &value)
                    .map_err(|why| anyhow!("{}: [{key}] {name}: {why}", at()))?;
                own.insert(name, values);
            }
            layer.own.insert(key, own);
        } else {
            let all: Vec<&Leaf> = leaves.iter().collect();
            let values = setting(&all, &key, &value).map_err(|why| anyhow!("{}: {key}: {why}", at()))?;
            layer.shared.insert(key, values);
        }
    }
    Ok(layer)
}

/// A setting's values, which must do for every one of these commands that has it.
fn setting(leaves: &[&Leaf<'_>], key: &str, value: &Value) -> Result<Values, String> {
    let of_key = leaves.iter().flat_map(|leaf| leaf.settings()).filter(|(name, _)| *name == key);
    let mut values = None;
    for (_, arg) in of_key {
        values = Some(convert(arg, value)?);
    }
    values.ok_or_else(|| {
        if super::ONE_RUN.contains(&key) {
            return "belongs on the command line".into();
        }
        let names = leaves.iter().flat_map(|leaf| leaf.settings()).map(|(name, _)| name);
        format!("unknown key{}", did_you_mean(key, names))
    })
}

fn convert(arg: &Arg, value: &Value) -> Result<Values, String> {
    let wrong = |expected: &str, found: &Value| format!("expected {expected}, found {}", found.type_str());
    if is_switch(arg) {
        let on = value.as_bool().ok_or_else(|| wrong("true or false", value))?;
        return Ok(vec![on.to_string()]);
    }
    let several = matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
    let values = match value {
        Value::Array(values) if several => values.as_slice(),
        one => std::slice::from_ref(one),
    };
    let texts = values.iter().map(|value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(n) if !is_text(arg) => Ok(n.to_string()),
        Value::Float(x) if !is_text(arg) => Ok(x.to_string()),
        other => {
            Err(wrong(if is_text(arg) { "text in quotes" } else { "a number or text in quotes" }, other))
        }
    });
    let texts = texts.collect::<Result<Values, String>>()?;
    texts.iter().try_for_each(|text| check(arg, text))?;
    Ok(texts)
}

/// Whether every text would do for it.
pub fn is_text(arg: &Arg) -> bool {
    let id = arg.get_value_parser().type_id();
    id == std::any::TypeId::of::<String>() || id == std::any::TypeId::of::<PathBuf>()
}

/// Whether clap takes a text for an option.
fn check(arg: &Arg, text: &str) -> Result<(), String> {
    if is_switch(arg) {
        return match text {
            "true" | "false" => Ok(()),
            _ => Err(format!("expected true or false, found {text:?}")),
        };
    }
    let mut alone = Arg::new("value").long("value").action(arg.get_action().clone());
    alone = alone.value_parser(arg.get_value_parser().clone());
    if let Some(delimiter) = arg.get_value_delimiter() {
        alone = alone.value_delimiter(delimiter);
    }
    let command = Command::new("check").no_binary_name(true).disable_help_flag(true).arg(alone);
    let Err(error) = command.try_get_matches_from([OsString::from(format!("--value={text}"))]) else {
        return Ok(());
    };
    let words = |kind| error.get(kind).map(ToString::to_string);
    let why = std::error::Error::source(&error).map(ToString::to_string);
    let valid = words(ContextKind::ValidValue).map(|names| format!("one of {names}"));
    Err(match why.or(valid) {
        Some(why) => format!("invalid value {text:?}: {why}"),
        None => format!("invalid value {text:?}"),
    })
}
