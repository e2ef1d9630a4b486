//! A field of cells whose colour is their value.

use super::Plot;
use super::draw::{Anchor, Drawing};
use super::scale::number;

/// How values become colours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Colours {
    /// Orange below 0, violet above, as far as the largest value on either side.
    AboutZero,
    /// Light to dark blue from 0 to this value, the same beyond it.
    UpTo(f64),
}

/// A heat map.
#[derive(Debug, Clone)]
pub struct Heat {
    /// As [`Plot::id`].
    pub id: String,
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// Name of the columns, and theirs.
    pub columns: (String, Vec<String>),
    /// Name of the rows, and theirs.
    pub rows: (String, Vec<String>),
    /// Row by row; none where there is no value.
    pub cells: Vec<Option<f64>>,
    /// What is said of each.
    pub says: Vec<String>,
    /// Which are struck out.
    pub dropped: Vec<bool>,
    /// The one in a frame.
    pub chosen: Option<usize>,
    /// Values to colours.
    pub colours: Colours,
}

// ColorBrewer's PuOr and Blues (Brewer 2003): even in lightness and safe for colour-blind readers.
const ABOUT_ZERO: [[u8; 3]; 7] = [
    [179, 88, 6],
    [241, 163, 64],
    [254, 224, 182],
    [247, 247, 247],
    [216, 218, 235],
    [153, 142, 195],
    [84, 39, 136],
];
const UP: [[u8; 3]; 5] = [[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]];

/// The colour `t` of the way (0 to 1) along the stops.
fn along(stops: &[[u8; 3]], t: f64) -> [u8; 3] {
    let at = t.clamp(0.0, 1.0) * (stops.len() - 1) as f64;
    let i = (at as usize).min(stops.len() - 2);
    let part = at - i as f64;
    std::array::from_fn(|c| {
        let [a, b] = [stops[i][c], stops[i + 1][c]].map(f64::from);
        (a + part * (b - a)).round() as u8
    })
}

fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// The class of text that can be read on a colour.
fn ink([r, g, b]: [u8; 3]) -> &'static str {
    let light = 0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b);
    if light > 140.0 { "onlight" } else { "ondark" }
}

impl Heat {
    fn ends(&self) -> (f64, f64) {
        let most = self.cells.iter().flatten().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
        match self.colours {
            Colours::AboutZero => (-most.max(1e-9), most.max(1e-9)),
            Colours::UpTo(high) => (0.0, high),
        }
    }

    fn colour(&self, x: f64) -> [u8; 3] {
        let (low, high) = self.ends();
        let stops: &[[u8; 3]] = if self.colours == Colours::AboutZero { &ABOUT_ZERO } else { &UP };
        along(stops, (x - low) / (high - low))
    }

    /// Draws it.
    #[must_use]
    pub fn draw(&self) -> Plot {
        let (n_columns, n_rows) = (self.columns.1.len(), self.rows.1.len());
        let wide = (560.0 / n_columns.max(1) as f64).clamp(7.0, 64.0);
        let high = 30.0;
        let (left, top) = (64.0, 44.0);
        let (right, bottom) = (left + wide * n_columns as f64, top + high * n_rows as f64);
        let mut drawing = Drawing::new(right.max(420.0) + 16.0, bottom + 46.0);
        self.key(&mut drawing, left);
        let every = (26.0 / wide).ceil() as usize;
        for (i, name) in self.columns.1.iter().enumerate().step_by(every.max(1)) {
            let x = left + (i as f64 + 0.5) * wide;
            drawing.text([x, bottom + 16.0], Anchor::Middle, "soft", name);
        }
        for (i, name) in self.rows.1.iter().enumerate() {
            drawing.text([left - 7.0, top + (i as f64 + 0.5) * high + 4.0], Anchor::End, "soft", name);
        }
        drawing.text([f64::midpoint(left, right), bottom + 36.0], Anchor::Middle, "", &self.columns.0);
        drawing.upright([18.0, f64::midpoint(top, bottom)], &self.rows.0);
        let corner = |i: usize| {
            [left + (i % n_columns.max(1)) as f64 * wide, top + (i / n_columns.max(1)) as f64 * high]
        };
        for (i, value) in self.cells.iter().enumerate() {
            let [x, y] = corner(i);
            let says = self.says.get(i).map_or("", String::as_str);
            let size = [wide - 1.0, high - 1.0];
            let Some(value) = value.filter(|x| x.is_finite()) else {
                drawing.cell([x, y], size, Err("none"), says);
                continue;
            };
            let colour = self.colour(value);
            drawing.cell([x, y], size, Ok(&hex(colour)), says);
            if wide >= 44.0 {
                let digits = if self.colours == Colours::AboutZero { 2 } else { 3 };
                let short = format!("{value:.digits$}").replace('-', "−");
                let centre = [x + wide / 2.0, y + high / 2.0 + 4.0];
                drawing.text(centre, Anchor::Middle, ink(colour), &short);
            }
            if self.dropped.get(i) == Some(&true) {
                drawing.line([x + 2.0, y + high - 3.0], [x + 9.0f64.min(wide), y + high - 10.0], "dropped");
            }
        }
        if let Some(i) = self.chosen {
            // Dark around light, so that it is seen on every colour.
            for class in ["chosen", "choice"] {
                drawing.cell(corner(i), [wide - 1.0, high - 1.0], Err(class), "");
            }
        }
        Plot {
            svg: drawing.finish(&self.id, &self.title, &self.caption),
            id: self.id.clone(),
            title: self.title.clone(),
            caption: self.caption.clone(),
        }
    }

    /// What the colours mean.
    fn key(&self, drawing: &mut Drawing, left: f64) {
        let (low, high) = self.ends();
        let (steps, wide) = (40, 4.0);
        let x = left + 60.0;
        let beyond =
            matches!(self.colours, Colours::UpTo(_)) && self.cells.iter().flatten().any(|x| *x > high);
        drawing.text([x - 6.0, 20.0], Anchor::End, "soft", &number(low));
        for i in 0..steps {
            let value = low + (f64::from(i) + 0.5) / f64::from(steps) * (high - low);
            let at = [x + f64::from(i) * wide, 10.0];
            drawing.cell(at, [wide + 0.3, 12.0], Ok(&hex(self.colour(value))), "");
        }
        let end = format!("{}{}", number(high), if beyond { " and more" } else { "" });
        drawing.text([x + f64::from(steps) * wide + 6.0, 20.0], Anchor::Start, "soft", &end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_run_from_end_to_end() {
        assert_eq!(along(&UP, -1.0), UP[0]);
        assert_eq!(along(&UP, 0.25), UP[1]);
        assert_eq!(along(&UP, 2.0), UP[4]);
        assert_eq!(along(&ABOUT_ZERO, 0.5), [247; 3]);
        assert_eq!((ink(UP[0]), ink(UP[4])), ("onlight", "ondark"));
    }
}
