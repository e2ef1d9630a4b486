//! Prompts out of one file, by its extension.

use std::path::Path;

use serde_json::Value;

use super::{PromptError, USUAL_COLUMNS, parquet};
use crate::input;

/// The extensions that can be read; a file without one is text.
pub(super) const EXTENSIONS: [&str; 7] = ["txt", "csv", "tsv", "json", "jsonl", "ndjson", "parquet"];

/// The lower-case extension of a file, empty where there is none.
pub(super) fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The prompts of a file in their order, blank ones left out; at least the first `enough`, where given.
pub(super) fn read(
    path: &Path,
    column: Option<&str>,
    enough: Option<usize>,
) -> Result<Vec<String>, PromptError> {
    let failed = |source| PromptError::Read { path: path.into(), source };
    let extension = extension(path);
    if !extension.is_empty() && !EXTENSIONS.contains(&extension.as_str()) {
        // Whether there is such a file at all comes first.
        std::fs::metadata(path).map_err(failed)?;
        return Err(PromptError::UnknownFormat { path: path.into(), extension });
    }
    let mut prompts = if extension == "parquet" {
        parquet::read(path, column, enough)?
    } else {
        let most = if extension == "json" { input::JSON } else { input::TEXT };
        let bytes = input::read(path, most).map_err(failed)?;
        parse(path, &extension, &bytes, column)?
    };
    prompts.retain(|prompt| !prompt.trim().is_empty());
    Ok(prompts)
}

fn parse(
    path: &Path,
    extension: &str,
    bytes: &[u8],
    column: Option<&str>,
) -> Result<Vec<String>, PromptError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].split(|&b| b == b'\n').count();
        PromptError::NotUtf8 { path: path.into(), at: format!("line {line}") }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match (extension, column) {
        ("csv", _) => parse_csv(path, text, b',', column),
        ("tsv", _) => parse_csv(path, text, b'\t', column),
        ("jsonl" | "ndjson", _) => parse_jsonl(path, text, column),
        ("json", _) => parse_json(path, text, column),
        (_, None) => Ok(text.lines().map(|line| line.trim().to_owned()).collect()),
        (_, Some(column)) => Err(PromptError::NoColumns { path: path.into(), column: column.into() }),
    }
}

fn parse_jsonl(path: &Path, text: &str, column: Option<&str>) -> Result<Vec<String>, PromptError> {
    let mut chosen = column.map(str::to_owned);
    let mut prompts = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        if line.len() as u64 > input::JSON {
            return Err(syntax(path, i + 1, &format!("a line of more than {} bytes", input::JSON)));
        }
        let value: Value = serde_json::from_str(line).map_err(|error| syntax(path, i + 1, &error))?;
        prompts.push(take(path, &format!("line {}", i + 1), value, &mut chosen)?);
    }
    Ok(prompts)
}

fn parse_json(path: &Path, text: &str, column: Option<&str>) -> Result<Vec<String>, PromptError> {
    let value: Value = match serde_json::from_str(text) {
        // Often an object a line goes by this name too.
        Err(error) if error.is_syntax() && text.trim_start().starts_with('{') => {
            return parse_jsonl(path, text, column);
        }
        value => value.map_err(|error| syntax(path, error.line(), &error))?,
    };
    let Value::Array(items) = value else {
        let expected = "an array of strings or objects";
        return Err(PromptError::WrongShape {
            path: path.into(),
            at: "line 1".into(),
            expected,
            found: kind(&value),
        });
    };
    let mut chosen = column.map(str::to_owned);
    let items = items.into_iter().enumerate();
    items.map(|(i, item)| take(path, &format!("item {}", i + 1), item, &mut chosen)).collect()
}

/// The prompt in one JSON value. The first object settles the column for all.
fn take(path: &Path, at: &str, value: Value, chosen: &mut Option<String>) -> Result<String, PromptError> {
    let mut object = match value {
        Value::String(_) if chosen.is_some() => {
            let (expected, found) = ("an object", "a string");
            return Err(PromptError::WrongShape { path: path.into(), at: at.into(), expected, found });
        }
        Value::String(prompt) => return Ok(prompt),
        Value::Object(object) => object,
        other => {
            let (expected, found) = ("a string or an object", kind(&other));
            return Err(PromptError::WrongShape { path: path.into(), at: at.into(), expected, found });
        }
    };
    if chosen.is_none() {
        let texts: Vec<&str> =
            object.iter().filter(|(_, v)| v.is_string()).map(|(k, _)| k.as_str()).collect();
        let Some(guess) = guess(&texts) else {
            let found = object.keys().cloned().collect();
            return Err(PromptError::AmbiguousColumn { path: path.into(), at: at.into(), found });
        };
        *chosen = Some(guess.to_owned());
    }
    let column = chosen.as_deref().expect("set just above when it was not");
    match object.get_mut(column).map(Value::take) {
        Some(Value::String(prompt)) => Ok(prompt),
        _ => Err(PromptError::WrongColumn {
            path: path.into(),
            at: at.into(),
            column: column.to_owned(),
            found: object.keys().cloned().collect(),
        }),
    }
}

fn parse_csv(
    path: &Path,
    text: &str,
    delimiter: u8,
    column: Option<&str>,
) -> Result<Vec<String>, PromptError> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(text.as_bytes());
    let failed = |error: &csv::Error| {
        let line = error.position().map_or(1, |position| position.line() as usize);
        syntax(path, line, error)
    };
    let header = reader.headers().map_err(|error| failed(&error))?.clone();
    let names: Vec<&str> = header.iter().map(str::trim).collect();
    let at = || "line 1".to_owned();
    let found = || names.iter().map(|&name| name.to_owned()).collect();
    let name = match column {
        Some(column) => column,
        None => guess(&names).ok_or_else(|| PromptError::AmbiguousColumn {
            path: path.into(),
            at: at(),
            found: found(),
        })?,
    };
    let index = names.iter().position(|&n| n == name).ok_or_else(|| PromptError::WrongColumn {
        path: path.into(),
        at: at(),
        column: name.to_owned(),
        found: found(),
    })?;
    let record = |record: csv::Result<csv::StringRecord>| match record {
        Ok(record) => Ok(record.get(index).unwrap_or_default().to_owned()),
        Err(error) => Err(failed(&error)),
    };
    reader.records().map(record).collect()
}

/// The only column, or the first of the usual ones (whatever their case).
pub(super) fn guess<'a>(columns: &[&'a str]) -> Option<&'a str> {
    if let [only] = columns {
        return Some(only);
    }
    let usual = |&name: &&str| columns.iter().copied().find(|column| column.eq_ignore_ascii_case(name));
    USUAL_COLUMNS.iter().find_map(usual)
}

fn syntax(path: &Path, line: usize, error: &dyn std::fmt::Display) -> PromptError {
    PromptError::Syntax { path: path.into(), line, message: error.to_string() }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
