//! What the program shows: data on stdout, words and progress on stderr.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// How to speak.
#[derive(Debug, Clone, Copy)]
pub struct Ui {
    /// One JSON object on stdout and nothing else there.
    pub json: bool,
    /// Nothing on stderr but errors and warnings.
    pub quiet: bool,
}

/// For what is deep below the commands.
static CURRENT: OnceLock<Ui> = OnceLock::new();

impl Ui {
    /// What the command line asks for, from here on.
    pub fn set_current(self) {
        let _ = CURRENT.set(self);
    }

    /// How the whole program is to speak.
    pub fn current() -> Self {
        CURRENT.get().copied().unwrap_or(Self { json: false, quiet: true })
    }

    /// A remark on stderr.
    pub fn note(self, words: &str) {
        if !self.quiet {
            eprintln!("{words}");
        }
    }

    /// Prints `value` as JSON where asked for, and otherwise what `human` writes.
    pub fn print<T: Serialize>(self, value: &T, human: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json { serde_json::to_string_pretty(value)? } else { human() };
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", text.trim_end()).context("stdout")
    }

    /// A bar of `len` steps, on a terminal only.
    pub fn progress(self, len: usize, what: &str) -> ProgressBar {
        self.bar(Some(len as u64), "{msg:<28} {bar:30} {pos}/{len}  {elapsed} (left {eta})", what)
    }

    /// A bar of a whole of 1000.
    pub fn part(self, what: &str) -> ProgressBar {
        self.bar(Some(1000), "{msg:<28} {bar:30} {percent:>3} %  {elapsed} (left {eta})", what)
    }

    /// Something that does not say how far it is.
    pub fn busy(self, what: &str) -> ProgressBar {
        self.bar(None, "{msg:<28} {spinner}  {elapsed}", what)
    }

    /// A bar of that many bytes, on a terminal only.
    pub fn download(self, bytes: Option<u64>, what: &str) -> ProgressBar {
        self.bar(bytes, "{msg:<28} {bar:30} {bytes}/{total_bytes}  {elapsed} (left {eta})", what)
    }

    /// A bar counted in tokens, on a terminal only: they take alike long, prompts and candidates do not.
    pub fn tokens(self, what: &str) -> ProgressBar {
        self.bar(Some(0), "{msg:<28} {bar:30} {pos}/{len} tokens  {elapsed} (left {eta})", what)
    }

    fn bar(self, len: Option<u64>, template: &str, what: &str) -> ProgressBar {
        let shown = !self.quiet && std::io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template(template).expect("the template is a constant");
        let bar = ProgressBar::with_draw_target(len, target).with_style(style);
        bar.set_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }
}

/// A warning on stderr, even when quiet.
pub fn warn(words: &str) {
    eprintln!("warning: {words}");
}

/// An aligned table without lines: the first `left` columns to the left, numbers to the right.
pub fn table(header: &[&str], left: usize, rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table.add_rows(rows);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_cell_alignment(if i < left { CellAlignment::Left } else { CellAlignment::Right });
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_string() + "\n").collect()
}

/// A rate as people read it.
pub fn percent(rate: f64) -> String {
    format!("{:.1} %", 100.0 * rate)
}

/// A number of bytes as people read it.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}
