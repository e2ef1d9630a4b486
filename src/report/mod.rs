//! The report: what the commands found, on one page that opens anywhere.
//!
//! ```text
//! --json of a command ─ run (checked) ─ sections (sentences, tables, plots) ─ page (one HTML file) or png (a file a plot)
//! ```
//!
//! Every plot is drawn once, in Rust, as SVG (see [`plot`]): the page shows it, its buttons save it, and resvg makes the
//! PNG of it. The page itself is minijinja's, with escaping on; its script, for which the page names the one hash it
//! allows, moves nothing but what is there already: without it everything can still be read. Rejected: data in the page
//! and a chart library, or drawing in JavaScript. Either would be a second plotting room for the PNGs, and half a megabyte
//! or more of others' code in each report.
//!
//! A report of one run is made of its JSON alone, so `abliterate --report` and `report` on what it printed give the
//! same page.
#![forbid(unsafe_code)]

mod page;
pub mod plot;
mod png;
pub mod run;
mod sections;

pub use page::{Cell, Finding, Part, Report, Section, Table};
pub(crate) use page::{base_style, policy};
pub use png::Painter;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The document is no JSON.
    #[error("{file}: not a JSON document: {source}; give what a command prints with --json")]
    Json {
        /// Where it is from.
        file: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The document does not say what it is.
    #[error(
        "{file}: key \"command\" is {found}, expected one of {known}: give what such a command prints with --json"
    )]
    Command {
        /// Where it is from.
        file: String,
        /// What stands there.
        found: String,
        /// What can be reported on.
        known: String,
    },
    /// The document is not as that command prints it.
    #[error("{file}: key {key:?}: {source}; expected what `ggsteer {command} --json` prints")]
    Key {
        /// Where it is from.
        file: String,
        /// The command it says it is of.
        command: String,
        /// Where in the document.
        key: String,
        /// What is wrong there.
        source: serde_json::Error,
    },
    /// Lists in the document that belong together have different lengths.
    #[error("{file}: key {key:?}: {found} elements, expected {expected}")]
    Length {
        /// Where it is from.
        file: String,
        /// The list.
        key: String,
        /// Its length.
        found: usize,
        /// What it should be.
        expected: usize,
    },
    /// A plot cannot be made into a picture.
    #[error("plot {plot:?}: {why}")]
    Picture {
        /// The plot.
        plot: String,
        /// The reason.
        why: String,
    },
}
