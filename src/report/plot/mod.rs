//! Plots as SVG text, drawn here once for the page, the exported files and the PNGs.
//!
//! A drawing names colours by class alone; [`theme`] gives the classes their colours: as CSS variables in the page, which
//! follow the reader's light or dark, and as plain values in a file of its own. Each mark says its values in a `<title>`.

mod draw;
mod heat;
mod intervals;
mod scale;
pub mod theme;
mod xy;

pub use heat::{Colours, Heat};
pub use intervals::{Interval, Intervals};
pub use scale::number;
pub use xy::{Kind, Series, Xy};

use serde::Serialize;

/// A finished drawing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plot {
    /// Lower-case letters, digits and dashes: its name in the page and its file's.
    pub id: String,
    /// What it shows, in a line.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// The SVG element, without a style of its own.
    pub svg: String,
}

impl Plot {
    /// The same as a file of its own, in light colours.
    #[must_use]
    pub fn standalone(&self) -> String {
        let style = format!("<style>{}</style>", theme::plain());
        match self.svg.split_once('>') {
            Some((open, rest)) => format!("{open}>{style}{rest}"),
            None => String::new(),
        }
    }
}
