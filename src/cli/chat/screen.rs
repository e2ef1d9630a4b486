//! What is shown of an answer: untrusted text made harmless, as it comes or in columns.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{ColumnConstraint, ContentArrangement, Table, TableComponent, Width, presets};
use ggsteer::chat::{Listener, Piece, harmless};
use indicatif::{ProgressBar, ProgressStyle};

use super::meter::Meter;
use crate::cli::interrupt::Stop;
use crate::cli::ui::Ui;

/// Whether stdout takes colours: <https://no-color.org>.
pub fn colours() -> bool {
    let set = |key: &str| std::env::var_os(key).filter(|value| !value.is_empty());
    io::stdout().is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_some_and(|term| term != "dumb")
}

/// Writes an answer to stdout as it comes.
pub struct Stream<'a> {
    pub meter: &'a mut Meter,
    pub stop: Option<&'a Stop>,
    /// Whether it is written at all; if not, it is only metered.
    pub written: bool,
    /// The last character written.
    pub last: Option<char>,
    pub ui: Ui,
    /// While a long conversation is computed.
    pub bar: Option<ProgressBar>,
    /// Why stdout takes no more.
    pub broken: Option<io::Error>,
}

impl Stream<'_> {
    fn write(&mut self, text: &str) {
        if self.written && self.broken.is_none() && !text.is_empty() {
            let mut stdout = io::stdout().lock();
            self.broken = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).err();
            self.last = text.chars().next_back();
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Ends the last line: an answer's, be it empty, or that of one that failed.
    pub fn end(&mut self, answered: bool) {
        self.clear();
        if self.last.map_or(answered, |last| last != '\n') {
            self.write("\n");
        }
    }
}

/// Tokens that are computed before anyone wonders.
const SOON: usize = 512;

impl Listener for Stream<'_> {
    fn reading(&mut self, done: usize, all: usize) {
        if all > SOON {
            let bar = self.bar.get_or_insert_with(|| self.ui.progress(all, "reading the conversation"));
            bar.set_position(done as u64);
        }
    }

    fn piece(&mut self, piece: &Piece) {
        self.clear();
        self.meter.take(&piece.readings);
        let text = harmless(&piece.text);
        // A line feed stays last, for `end`.
        let words = text.trim_end_matches('\n');
        let tinted = self.meter.tint(words.to_owned(), &piece.readings) + &text[words.len()..];
        self.write(&tinted);
    }

    fn stop(&self) -> bool {
        self.broken.is_some() || self.stop.is_some_and(Stop::is_wanted)
    }
}

/// Answers that are not shown as they come.
pub struct Silent<'a> {
    pub meter: &'a mut Meter,
    pub stop: Option<&'a Stop>,
    pub bar: ProgressBar,
}

impl Listener for Silent<'_> {
    fn piece(&mut self, piece: &Piece) {
        self.meter.take(&piece.readings);
        self.bar.inc(1);
    }

    fn stop(&self) -> bool {
        self.stop.is_some_and(Stop::is_wanted)
    }
}

/// Says on a terminal that answers are being made.
pub fn spinner(ui: Ui) -> ProgressBar {
    if ui.quiet || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("answering twice: {pos} tokens").expect("a constant");
    let bar = ProgressBar::new_spinner().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// Columns that fit the terminal, or 80 characters where there is none.
pub fn width() -> usize {
    let size = terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0));
    size.filter(|&width| width > 0).unwrap_or(80)
}

/// Two texts side by side, each in half of `width`.
pub fn columns(header: [String; 2], rows: &[[String; 2]], width: usize) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_style(TableComponent::VerticalLines, '│');
    table
        .set_style(TableComponent::HeaderLines, '─')
        .set_style(TableComponent::MiddleHeaderIntersections, '┼');
    table.set_width(u16::try_from(width).unwrap_or(u16::MAX)).set_header(header);
    table.add_rows(rows.iter().map(|row| row.each_ref().map(|text| text.replace('\t', "    "))));
    let half = u16::try_from(width.saturating_sub(1) / 2).unwrap_or(u16::MAX).max(3);
    for column in table.column_iter_mut() {
        column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(half)));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_commands_a_terminal_is_shown_as_signs() {
        assert_eq!(harmless("a\x1b[31mb\x07\r\n\tc\x7f"), "a␛[31mb␇␍\n\tc␡");
        assert_eq!(harmless("x\u{9b}2J\u{202e}y é 漢"), "x\u{fffd}2J\u{fffd}y é 漢");
    }

    #[test]
    fn columns_fit_the_width() {
        let text = "To knit my simple wooden duck, first mark its shape on grey cloth. ".repeat(3);
        let unbroken = "漢字".repeat(40);
        for width in [20, 41, 80] {
            let rows = [[text.clone(), unbroken.clone()], ["end".into(), String::new()]];
            let shown = columns(["plain".into(), "erased".into()], &rows, width);
            for line in shown.lines() {
                assert!(
                    line.chars().map(|c| if c > '⺀' { 2 } else { 1 }).sum::<usize>() <= width,
                    "{line:?}"
                );
            }
            assert_eq!(shown.matches('漢').count(), 40);
            assert_eq!(shown.matches("duck").count(), 3);
            assert!(shown.lines().next().unwrap().contains('│'));
        }
    }
}
