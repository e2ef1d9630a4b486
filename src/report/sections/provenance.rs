//! Where everything comes from, and how to have it again.

use super::super::page::{Part, Section};
use super::super::run::{Document, Run};
use super::{bytes, table};
use crate::prompts::split::Used;

pub fn section(documents: &[Document]) -> Section {
    let id = "provenance".to_string();
    let mut parts = Vec::new();
    let rows = documents.iter().map(|d| {
        vec![
            d.file.clone(),
            d.made.command.clone(),
            d.made.version.clone(),
            d.sha256.clone().unwrap_or_else(|| "this run".into()),
        ]
    });
    let header = ["document", "command", "ggsteer", "SHA-256"];
    parts.push(Part::Table(table(format!("{id}-runs"), "What this page was made of", &header, 4, rows)));
    let files: Vec<Vec<String>> = (documents.iter())
        .filter_map(|d| match &d.run {
            Run::Abliterate(run, _) => run.story.as_ref(),
            _ => None,
        })
        .flat_map(|story| &story.files)
        .map(|f| vec![f.role.clone(), f.path.clone(), f.sha256.clone(), bytes(f.bytes)])
        .collect();
    if !files.is_empty() {
        let header = ["file", "path", "SHA-256", "size"];
        parts.push(Part::Table(table(format!("{id}-files"), "Files", &header, 3, files)));
    }
    let prompts = documents.iter().filter_map(|d| match &d.run {
        Run::Abliterate(run, _) => Some(&run.prompts),
        Run::Compare(run) => Some(&run.prompts),
        _ => None,
    });
    let prompts: Vec<Vec<String>> = prompts.flat_map(prompt_rows).collect();
    if !prompts.is_empty() {
        let header = ["used to", "set", "from", "SHA-256", "prompts", "seed"];
        parts.push(Part::Table(table(format!("{id}-prompts"), "Prompts", &header, 4, prompts)));
    }
    let commands: Vec<String> = (documents.iter())
        .filter(|d| !d.made.arguments.is_empty())
        .map(|d| command(&d.made.arguments))
        .collect();
    if !commands.is_empty() {
        parts.push(Part::Text("To have it again, in the folder it was run in:".into()));
        parts.push(Part::Commands(commands));
    }
    Section {
        id,
        title: "Provenance".into(),
        lead: format!(
            "Page written by ggsteer {}, built on llama.cpp as bound by llama-cpp-2 {}. The same files, prompts, seeds and \
             commands give the same figures, whatever the number of threads.",
            env!("CARGO_PKG_VERSION"),
            crate::runtime::BINDINGS
        ),
        parts,
        ..Section::default()
    }
}

fn prompt_rows(used: &Used) -> Vec<Vec<String>> {
    let parts = [("measure", &used.train), ("choose", &used.validation), ("evaluate", &used.test)];
    let rows = parts.into_iter().flat_map(|(what, pair)| {
        [("harmful", &pair.harmful), ("harmless", &pair.harmless)].map(|(name, set)| {
            vec![
                what.into(),
                name.into(),
                set.source.clone(),
                set.sha256.clone(),
                set.n.to_string(),
                used.seed.to_string(),
            ]
        })
    });
    rows.collect()
}

/// As a shell takes it.
fn command(arguments: &[String]) -> String {
    let words = std::iter::once("ggsteer").chain(arguments.iter().map(String::as_str));
    // A word with a zero byte in it cannot be quoted, nor have been given.
    shlex::try_join(words).unwrap_or_else(|_| arguments.join(" "))
}
