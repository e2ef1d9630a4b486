//! What a run asks of the system, as strace tells it.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::{CALLS, run};
use crate::program::Folder;

/// A system call of a run, as strace shows it.
pub struct Call {
    thread: String,
    name: String,
    arguments: String,
    /// The lines of the trace at which it begins and ends.
    lines: [usize; 2],
    succeeded: bool,
}

/// The calls of `CALLS` that an undisturbed run makes.
pub fn trace(folder: &Folder, line: &str) -> Vec<Call> {
    let calls = format!("trace={CALLS}");
    let output = run(folder, &["strace", "-f", "-y", "-qq", "-o", "trace.txt", "-e", &calls], line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    let text = fs::read(folder.path("trace.txt")).unwrap();
    fs::remove_file(folder.path("trace.txt")).unwrap();
    let mut all: Vec<Call> = Vec::new();
    for (at, entry) in String::from_utf8_lossy(&text).lines().enumerate() {
        let Some((thread, rest)) = entry.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let call = if rest.starts_with("<...") {
            all.iter_mut().rfind(|call| call.thread == thread && call.lines[1] == usize::MAX)
        } else {
            let Some((name, arguments)) = rest.split_once('(') else { continue };
            if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                continue;
            }
            let (thread, name, arguments) = (thread.to_owned(), name.to_owned(), arguments.to_owned());
            all.push(Call { thread, name, arguments, lines: [at, usize::MAX], succeeded: false });
            all.last_mut()
        };
        if let (Some(call), false) = (call, rest.ends_with("<unfinished ...>")) {
            call.lines[1] = at;
            call.succeeded =
                rest.rsplit_once(" = ").is_some_and(|(_, result)| !result.starts_with(['-', '?']));
        }
    }
    all
}

/// The calls to be disturbed: a name, and the place among those of this name in a thread, from 1. Opening counts where it
/// makes a file.
pub fn places(calls: &[Call]) -> BTreeSet<(String, usize)> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut found = BTreeSet::new();
    for Call { thread, name, arguments, .. } in calls {
        let count = counts.entry((thread, name)).or_default();
        *count += 1;
        if name != "openat" || arguments.contains("O_CREAT") {
            found.insert((name.clone(), *count));
        }
    }
    found
}

/// Checks that each output was on the disk before it got its name, and its folder after; returns how many got one.
pub fn durable(folder: &Folder, calls: &[Call]) -> usize {
    let writes = ["write", "pwrite64", "writev", "copy_file_range", "ftruncate", "fallocate"];
    let named =
        |call: &Call| ["rename", "renameat", "renameat2", "link", "linkat"].contains(&call.name.as_str());
    let synced = |what: &str, after: usize, before: usize| {
        let file = format!("{what}>");
        calls.iter().any(|call| {
            let sync = ["fsync", "fdatasync"].contains(&call.name.as_str()) && call.succeeded;
            sync && call.arguments.contains(&file) && after < call.lines[0] && call.lines[1] < before
        })
    };
    let mut n = 0;
    for call in calls.iter().filter(|call| named(call) && call.succeeded) {
        let paths: Vec<&Path> = call.arguments.split('"').skip(1).step_by(2).map(Path::new).collect();
        let [from, to] = paths[..] else { panic!("{}", call.arguments) };
        if from.extension().is_none_or(|e| e != "part") || to.extension().is_some_and(|e| e == "part") {
            continue;
        }
        let part = format!("/{}", from.file_name().unwrap().to_str().unwrap());
        let of_part = |call: &&Call| {
            writes.contains(&call.name.as_str()) && call.arguments.contains(&format!("{part}>"))
        };
        let written = calls.iter().filter(of_part).map(|call| call.lines[1]).max();
        let written = written.unwrap_or_else(|| panic!("{}: never written", to.display()));
        assert!(synced(&part, written, call.lines[0]), "{}: not synced before it was named", to.display());
        let parent = folder.path(to.parent().unwrap().to_str().unwrap());
        // Else scratch, which is gone again.
        let Ok(parent) = parent.canonicalize() else { continue };
        let parent = parent.to_str().unwrap();
        assert!(synced(parent, call.lines[1], usize::MAX), "{}: its folder was not synced", to.display());
        n += 1;
    }
    n
}
