//! The page: what sections are made of, and the one HTML file they become.

use base64::Engine as _;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Value, context};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::plot::{Plot, theme};
use super::run::Document;
use super::sections;

/// All that a report says.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// What it is of.
    pub title: String,
    /// Three sentences at most: the ones of most weight.
    pub verdict: Vec<String>,
    /// Figures to be seen first.
    pub figures: Vec<Figure>,
    /// In the order of the page.
    pub sections: Vec<Section>,
}

/// A figure to be seen first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Figure {
    /// Its value with its unit.
    pub value: String,
    /// What it is.
    pub label: String,
    /// What it is beside: an interval, or what it was before.
    pub note: String,
}

/// A sentence for the verdict; those of the smallest rank are said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// 0 is said first.
    pub rank: u8,
    /// The sentence.
    pub text: String,
}

/// A part of the page with a heading.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Section {
    /// Its name in links.
    pub id: String,
    /// Its heading.
    pub title: String,
    /// What it shows and how to read it.
    pub lead: String,
    /// What is in it.
    pub parts: Vec<Part>,
    /// What the verdict may say of it.
    #[serde(skip)]
    pub findings: Vec<Finding>,
    /// What may be seen first.
    #[serde(skip)]
    pub figures: Vec<Figure>,
}

/// What stands in a section.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", content = "of", rename_all = "snake_case")]
pub enum Part {
    /// A paragraph.
    Text(String),
    /// Plots beside each other, where there is room.
    Plots(Vec<Plot>),
    /// One plot of many, by a slider.
    Slider {
        /// What the slider counts.
        label: String,
        /// The plots, in order.
        plots: Vec<Plot>,
        /// Which is shown at first.
        start: usize,
    },
    /// A table.
    Table(Table),
    /// Answers side by side.
    Answers(Answers),
    /// Lines for a shell.
    Commands(Vec<String>),
}

/// A table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Table {
    /// Its name in links, and its file's.
    pub id: String,
    /// What it holds.
    pub caption: String,
    /// Names of the columns.
    pub header: Vec<String>,
    /// So many columns from the left hold words, the others numbers.
    pub words: usize,
    /// Its rows.
    pub rows: Vec<Vec<Cell>>,
    /// Shown only when opened.
    pub folded: bool,
}

/// A cell.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// What it says.
    pub text: String,
    /// Set off from the others.
    pub strong: bool,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: text.into(), strong: false }
    }
}

/// Answers to the same prompts, a column a run.
#[derive(Debug, Clone, Serialize)]
pub struct Answers {
    /// Names of the runs.
    pub runs: Vec<String>,
    /// A row a prompt.
    pub rows: Vec<Asked>,
}

/// A prompt and what was said to it.
#[derive(Debug, Clone, Serialize)]
pub struct Asked {
    /// Which set it is of.
    pub set: &'static str,
    /// The user's words.
    pub prompt: String,
    /// The model's, run by run.
    pub said: Vec<Saying>,
    /// Refused in the first run and not in the third, or the other way round.
    pub turned: bool,
    /// Refused in the third run: the written file.
    pub refused: bool,
}

/// An answer and what it was counted as.
#[derive(Debug, Clone, Serialize)]
pub struct Saying {
    /// The model's words.
    pub text: String,
    /// `refused`, `refused late`, `empty`, `looping`, `garbled` or `answered`.
    pub mark: &'static str,
}

const TEMPLATE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = concat!(include_str!("base.js"), include_str!("page.js"));

impl Report {
    /// Of these documents, in their order.
    #[must_use]
    pub fn new(documents: &[Document]) -> Self {
        let mut sections = sections::of(documents);
        let mut findings: Vec<Finding> =
            sections.iter_mut().flat_map(|s| std::mem::take(&mut s.findings)).collect();
        findings.sort_by_key(|finding| finding.rank);
        let figures = sections.iter_mut().flat_map(|s| std::mem::take(&mut s.figures)).take(8).collect();
        Self {
            title: sections::title(documents),
            verdict: findings.into_iter().take(3).map(|finding| finding.text).collect(),
            figures,
            sections,
        }
    }

    /// Every plot, in the order of the page.
    pub fn plots(&self) -> impl Iterator<Item = &Plot> {
        self.sections.iter().flat_map(|s| &s.parts).flat_map(|part| match part {
            Part::Plots(plots) | Part::Slider { plots, .. } => plots.as_slice(),
            _ => &[],
        })
    }

    /// The page: one file that asks for no other.
    ///
    /// # Panics
    /// Never: the template is a constant, and tested.
    #[must_use]
    pub fn html(&self) -> String {
        let mut page = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        page.set_syntax(syntax.expect("the usual marks"));
        // By its name the template is HTML: whatever is not marked as safe is escaped.
        page.add_template("page.html", TEMPLATE).expect("the template is a constant");
        let style = base_style() + STYLE;
        let page = page.get_template("page.html").expect("added above");
        let values = context! {
            report => Value::from(Serde(self)),
            policy => policy(&style, SCRIPT),
            style => style,
            script => SCRIPT,
            plain => theme::plain(),
            version => env!("CARGO_PKG_VERSION"),
        };
        page.render(values).expect("the template is a constant")
    }
}

/// The colours of both themes and what every page of ours looks like.
pub(crate) fn base_style() -> String {
    theme::css() + include_str!("base.css")
}

/// Nothing may be loaded or sent; the one script and the one style are named by their digests. A drawing that is to become a
/// picture is a `data:` image.
pub(crate) fn policy(style: &str, script: &str) -> String {
    let digest = |text: &str| base64::engine::general_purpose::STANDARD.encode(Sha256::digest(text));
    format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; base-uri 'none'; form-action 'none'",
        digest(script),
        digest(style)
    )
}
