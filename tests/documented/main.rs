//! Every command line of README.md and docs/ is run, and what they quote is what the run prints.
//!
//! Each document has a folder of its own, with the sample as `model.gguf`, short prompt files under the names that the
//! documents use, and a `ggsteer` on the path that computes on one thread. The command lines are those of its `sh` blocks,
//! and of its `console` blocks after `$ `; they run in order, and must succeed unless the quote has a line `error: …`. A
//! line that cannot be run is in [`exceptions`] with the reason.
//!
//! A `text` block right after an `sh` block quotes its stdout; in a `console` block a quote is stdout and stderr. A line `…`
//! in a quote stands for any number of lines. `GGSTEER_UPDATE_DOCS=1` writes the quotes anew from the run, and
//! `GGSTEER_UPDATE_DOCS=docs/guide.md` those of that page alone.

mod document;
mod examples;
mod exceptions;
mod flags;
mod quoted;
mod scratch;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use rayon::iter::{IntoParallelIterator as _, ParallelIterator as _};
use regex::Regex;

use document::{Document, Group};
use exceptions::Way;
use scratch::Scratch;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// README.md, CONTRIBUTING.md, SECURITY.md and every page in docs/.
fn documents() -> Vec<PathBuf> {
    let pages = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = pages.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
    all.extend(["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name)));
    all.sort();
    all
}

#[test]
fn every_documented_command_runs_and_prints_what_is_quoted() {
    let update = std::env::var("GGSTEER_UPDATE_DOCS").ok();
    let mut documents = documents();
    if let Some(page) = update.as_deref().filter(|page| *page != "1") {
        documents.retain(|path| path.ends_with(page));
        assert!(!documents.is_empty(), "no page {page}");
    }
    let checked = documents.into_par_iter().flat_map_iter(|path| check(&path, update.is_some()));
    let problems: Vec<String> = checked.collect();
    assert!(problems.is_empty(), "\n{}", problems.join("\n\n"));
}

#[test]
fn the_table_of_unsafe_code_is_what_stands_there() {
    let output = Command::new("sh").arg("scripts/unsafe.sh").current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let page = fs::read_to_string(root().join("docs/reliability.md")).unwrap();
    let (_, part) = page.split_once("<!-- unsafe -->\n").unwrap();
    assert!(
        part.starts_with(&*String::from_utf8(output.stdout).unwrap()),
        "another table now: sh scripts/reliability.sh unsafe"
    );
}

/// `src/a.rs`: `item`, `item` of the documents: the file is there, and the items are in it.
#[test]
fn what_the_documents_point_at_is_there() {
    let place =
        Regex::new(r"`((?:src|tests|benches|examples|scripts)/[\w./-]+)`(?::((?:\s*`\w+`,?)+))?").unwrap();
    let item = Regex::new(r"`(\w+)`").unwrap();
    let mut places = 0;
    for document in documents() {
        for found in place.captures_iter(&fs::read_to_string(&document).unwrap()) {
            let path = root().join(&found[1]);
            assert!(path.exists(), "{}: {} is not there", document.display(), &found[1]);
            for name in item.captures_iter(found.get(2).map_or("", |items| items.as_str())) {
                let pattern = format!(r"(?:fn|struct|enum|trait|const) {}\b", &name[1]);
                let text = fs::read_to_string(&path).unwrap();
                assert!(
                    Regex::new(&pattern).unwrap().is_match(&text),
                    "{}: no {} in {}",
                    document.display(),
                    &name[1],
                    &found[1]
                );
                places += 1;
            }
        }
    }
    assert!(places > 20, "{places} items");
}

/// Runs a document; what is wrong with it.
fn check(path: &Path, update: bool) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let name = path.strip_prefix(root()).unwrap().display().to_string();
    let document = Document::parse(&text);
    let mut problems: Vec<String> = (document.loose.iter())
        .filter(|quote| !exceptions::is_no_quote(&name, document.lines[quote.start]))
        .map(|quote| format!("{name}:{}: a text block that no command stands before", quote.start))
        .collect();
    let scratch = Scratch::new();
    let mut replaced = Vec::new();
    for group in &document.groups {
        match run(&scratch, group) {
            Err(problem) => problems.push(format!("{name}:{}: {problem}", group.line)),
            Ok(None) => {}
            Ok(Some(printed)) => {
                let Some(range) = &group.quote else { continue };
                let quote = &document.lines[range.clone()];
                if update {
                    replaced.push((range.clone(), quoted::renew(quote, &printed)));
                } else if let Err(problem) = quoted::compare(quote, &printed) {
                    problems.push(format!("{name}:{}: {problem}", range.start + 1));
                }
            }
        }
    }
    if update {
        let renewed = document.replace(replaced);
        if renewed != text {
            fs::write(path, renewed).unwrap();
        }
    }
    problems
}

/// What a group of command lines prints; nothing where one of them is an exception.
fn run(scratch: &Scratch, group: &Group) -> Result<Option<String>, String> {
    let mut printed = String::new();
    let mut whole = true;
    for command in &group.commands {
        let command = match exceptions::find(command) {
            None => command.clone(),
            Some(Way::With(this, that)) => command.replacen(this, that, 1),
            Some(Way::Left) => {
                exceptions::check_target(command)?;
                whole = false;
                continue;
            }
        };
        let begun = Instant::now();
        printed += &scratch.run(&command, group)?;
        // Seen with --nocapture: what a page costs.
        println!("{:5.1} s  {command}", begun.elapsed().as_secs_f64());
    }
    Ok(whole.then_some(printed))
}
