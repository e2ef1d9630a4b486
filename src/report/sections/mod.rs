//! From documents to the sections of the page, a file a subject.

mod analysis;
mod behaviour;
mod choice;
mod comparison;
mod provenance;
mod search;
mod tensors;

use std::collections::HashMap;
use std::path::Path;

use super::page::{Cell, Finding, Section, Table};
use super::plot::number;
use super::run::{Document, Run};
use crate::evaluate::Rate;

/// Gives each section a name of its own.
#[derive(Default)]
struct Names(HashMap<&'static str, usize>);

impl Names {
    fn of(&mut self, base: &'static str) -> String {
        let n = self.0.entry(base).or_default();
        *n += 1;
        if *n == 1 { base.into() } else { format!("{base}-{n}") }
    }
}

/// The sections of these documents, in their order; where they come from, last.
pub fn of(documents: &[Document]) -> Vec<Section> {
    let mut names = Names::default();
    let mut sections = Vec::new();
    for document in documents {
        let names = &mut names;
        match &document.run {
            Run::Abliterate(run, written) => {
                sections.push(behaviour::abliterated(names.of("behaviour"), run));
                if let Some(story) = &run.story {
                    sections.push(behaviour::answers(names.of("answers"), &story.answers));
                }
                if let Some(choice) = &run.choice {
                    sections.push(choice::section(names.of("choice"), &run.model, choice));
                }
                if let Some(story) = &run.story {
                    let m = &story.analysis;
                    let of = analysis::Of {
                        model: &run.model,
                        n: [m.n_harmful, m.n_harmless],
                        position: m.position,
                    };
                    sections.push(analysis::section(
                        names.of("analysis"),
                        &of,
                        Some(run.direction.block),
                        &m.analysis,
                    ));
                }
                sections.push(tensors::rewritten(names.of("tensors"), [&run.model, &run.output], written));
            }
            Run::Analyze(run, found) => {
                let n = [run.n_harmful, run.n_harmless];
                let of = analysis::Of { model: &run.model, n, position: run.position };
                sections.push(analysis::section(names.of("analysis"), &of, None, found));
            }
            Run::Select(run, choice) => {
                let mut section = choice::section(names.of("choice"), &run.model, choice);
                section.lead += &format!(
                    " Written to {} ({}).",
                    short(&run.output),
                    run.direction.with(run.subspace.as_ref())
                );
                sections.push(section);
            }
            Run::Evaluate(run) => sections.push(behaviour::evaluated(names.of("behaviour"), run)),
            Run::Rewrite(run, written) => {
                sections.push(tensors::rewritten(names.of("tensors"), [&run.model, &run.output], written));
            }
            Run::Verify(run) => sections.push(tensors::verified(names.of("tensors"), run)),
            Run::Compare(run) => sections.push(comparison::section(names.of("comparison"), run)),
            Run::Optimize(run) => sections.push(search::section(names.of("search"), run)),
        }
    }
    sections.push(provenance::section(documents));
    sections
}

/// What a page of these documents is called.
pub fn title(documents: &[Document]) -> String {
    let one = |document: &Document| match &document.run {
        Run::Abliterate(run, _) => {
            format!("The refusals of {}, and the file without them", short(&run.model))
        }
        Run::Analyze(run, _) => format!("Two prompt sets in {}", short(&run.model)),
        Run::Select(run, _) => format!("The choice of a direction in {}", short(&run.model)),
        Run::Evaluate(run) => format!("The behaviour of {}", short(&run.model)),
        Run::Rewrite(run, _) => format!("{}, rewritten", short(&run.model)),
        Run::Verify(run) => format!("{} against its original", short(&run.rewritten)),
        Run::Compare(run) => match &run.models[..] {
            [first, rest @ ..] => format!("{} and {}", short(&first.model), count(rest.len(), "other file")),
            [] => "No files".into(),
        },
        Run::Optimize(run) => format!("A search for better edits of {}", short(&run.model)),
    };
    match documents {
        [] => "Nothing".into(),
        [only] => one(only),
        [first, rest @ ..] => format!("{}, and {} more", one(first), count(rest.len(), "run")),
    }
}

/// A file's name without its folder and ending.
fn short(file: &str) -> String {
    let name = Path::new(file).file_name().map_or_else(|| file.into(), |name| name.to_string_lossy());
    name.strip_suffix(".gguf").unwrap_or(&name).to_string()
}

fn percent(part: f64) -> String {
    match part {
        p if !p.is_finite() => "–".into(),
        p if p > 0.0 && p < 0.0005 => "less than 0.1 %".into(),
        p => format!("{:.1} %", 100.0 * p),
    }
}

fn interval(rate: &Rate) -> String {
    format!("{:.1}–{:.1}", 100.0 * rate.low, 100.0 * rate.high)
}

fn of_all(rate: &Rate) -> String {
    format!("{} of {}", rate.hits, rate.n)
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn maybe(x: Option<f64>) -> String {
    x.map_or_else(|| "–".into(), number)
}

fn bytes(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

fn finding(rank: u8, text: String) -> Finding {
    Finding { rank, text }
}

/// A table whose first `words` columns are words.
fn table(
    id: String,
    caption: &str,
    header: &[&str],
    words: usize,
    rows: impl IntoIterator<Item = Vec<String>>,
) -> Table {
    Table {
        id,
        caption: caption.into(),
        header: header.iter().map(ToString::to_string).collect(),
        words,
        rows: rows.into_iter().map(|row| row.into_iter().map(Cell::from).collect()).collect(),
        folded: false,
    }
}

/// Sets off the rows for which `which` holds.
fn emphasize(table: &mut Table, which: impl Fn(usize) -> bool) {
    for (_, row) in table.rows.iter_mut().enumerate().filter(|(i, _)| which(*i)) {
        row.iter_mut().for_each(|cell| cell.strong = true);
    }
}
