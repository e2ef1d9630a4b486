//! What a folder holds after a fault, counted.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Output;

use super::is_kept;
use crate::program::Contents;

/// What became of a job under all faults.
#[derive(Default)]
pub struct Tally {
    calls: usize,
    faults: usize,
    inputs_changed: usize,
    partial: usize,
    whole: usize,
    as_before: usize,
    /// Of several outputs, some new and some as before: each for itself is whole.
    mixed: usize,
    /// Killed, with a temporary file left.
    pub left: usize,
    pub refused: usize,
    pub wrong: Vec<String>,
}

impl Tally {
    /// Of a run with so many calls.
    pub fn of(calls: usize) -> Self {
        Self { calls, ..Self::default() }
    }

    /// Counts what the folder holds after a run that ended so.
    pub fn add(
        &mut self,
        outputs: &[PathBuf],
        [before, after, whole]: [&Contents; 3],
        output: &Output,
        fault: &str,
    ) {
        let killed = fault.contains("KILL");
        let stopped = fault.contains("TERM") && output.status.code().is_none();
        let told = format!("{fault}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
        let mut wrong = |what: String| self.wrong.push(format!("{what} under {told}"));
        self.faults += 1;
        for (path, bytes) in before.iter().filter(|(path, _)| !outputs.contains(path)) {
            if after.get(path) != Some(bytes) {
                self.inputs_changed += 1;
                wrong(format!("{} has changed", path.display()));
            }
        }
        let (mut new, mut old) = (0, 0);
        for path in outputs {
            let found = after.get(path);
            if found == whole.get(path) {
                new += 1;
            } else if found == before.get(path) {
                old += 1;
            } else if is_kept(path) && is_start(found, whole.get(path)) {
                // A log cut short: that it is gone on from is seen later.
                old += 1;
            } else if outputs.len() > 1 && found.is_none() && killed {
                // The parts of a model that replace others are moved one by one; killed between, some are at neither
                // place.
                old += 1;
            } else {
                self.partial += 1;
                wrong(format!("{} is neither old nor new", path.display()));
            }
        }
        match (new, old) {
            (_, 0) => self.whole += 1,
            (0, _) => self.as_before += 1,
            _ => self.mixed += 1,
        }
        if output.status.success() && old > 0 {
            wrong("success without output".into());
        }
        let known = |path: &Path| before.contains_key(path) || whole.contains_key(path) || is_kept(path);
        let left: Vec<_> = after.keys().filter(|path| !known(path)).collect();
        let ours = left.iter().all(|path| path.extension().is_some_and(|e| e == "part"));
        self.left += usize::from(killed && !left.is_empty());
        // What cannot be removed stays, under a name by which it is known for ours.
        if !left.is_empty() && !(ours && (killed || fault.contains("unlink"))) {
            wrong(format!("left behind: {left:?}"));
        }
        if !killed && !stopped && !output.status.success() {
            self.refused += 1;
            let words = String::from_utf8_lossy(&output.stderr);
            // 130: stopped, with its work saved.
            let code =
                output.status.code().filter(|code| *code == 1 || *code == 130 && fault.contains("TERM"));
            if code.is_none() || words.lines().count() > 1 || words.contains("panicked") {
                wrong("not refused in one line".into());
            }
        }
    }

    pub fn row(&self, line: &str) -> String {
        let Self { calls, faults, inputs_changed, partial, whole, as_before, mixed, left, .. } = self;
        format!(
            "| `{line}` | {calls} | {faults} | {inputs_changed} | {partial} | {whole} | {as_before} | {mixed} | {left} |\n"
        )
    }
}

/// Whether a file is the beginning of another.
fn is_start(found: Option<&Option<Vec<u8>>>, whole: Option<&Option<Vec<u8>>>) -> bool {
    matches!((found, whole), (Some(Some(found)), Some(Some(whole))) if whole.starts_with(found))
}
