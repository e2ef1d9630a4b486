//! Points and lines over two axes.

use super::Plot;
use super::draw::{Axis, Drawing};
use super::scale::Scale;

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Filled marks.
    Points,
    /// Hollow marks.
    Hollow,
    /// Filled marks with a line through them.
    Lines,
}

/// Points of one name.
#[derive(Debug, Clone)]
pub struct Series {
    /// For the legend.
    pub name: String,
    /// How they are drawn.
    pub kind: Kind,
    /// x, y, and what is said of the point.
    pub points: Vec<(f64, f64, String)>,
}

/// A plot over two axes.
#[derive(Debug, Clone, Default)]
pub struct Xy {
    /// As [`Plot::id`].
    pub id: String,
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// Name of the x axis.
    pub x: String,
    /// Name of the y axis.
    pub y: String,
    /// x is counted, as blocks are.
    pub whole: bool,
    /// Ends of the y axis; those of the points where none are given.
    pub y_range: Option<(f64, f64)>,
    /// The y axis begins at 0.
    pub from_zero: bool,
    /// A dashed line at this x.
    pub mark_x: Option<f64>,
    /// The points, at most [`super::theme::SERIES`] series to be told apart.
    pub series: Vec<Series>,
}

const SIZE: [f64; 2] = [640.0, 360.0];

impl Xy {
    /// Draws it; points that are not numbers are left out.
    #[must_use]
    pub fn draw(&self) -> Plot {
        let [width, height] = SIZE;
        let mut drawing = Drawing::new(width, height);
        let names: Vec<(usize, bool, &str)> = (self.series.iter().enumerate())
            .map(|(i, s)| (i, s.kind == Kind::Hollow, s.name.as_str()))
            .collect();
        let top = 10.0 + drawing.legend([64.0, 18.0], &names);
        let (corner, end) = ([64.0, top], [width - 16.0, height - 48.0]);
        let all = || self.series.iter().flat_map(|s| &s.points);
        let x = Scale::holding(all().map(|p| p.0).chain(self.mark_x), corner[0], end[0]);
        let y = if let Some((low, high)) = self.y_range {
            Scale::new(low, high, end[1], corner[1])
        } else {
            let zero = self.from_zero.then_some(0.0);
            Scale::holding(all().map(|p| p.1).chain(zero), end[1], corner[1])
        };
        let (x_axis, y_axis) = (
            Axis { scale: x, name: &self.x, whole: self.whole },
            Axis { scale: y, name: &self.y, whole: false },
        );
        drawing.axes(corner, end, &x_axis, &y_axis);
        if let Some(at) = self.mark_x {
            drawing.line([x.at(at), corner[1]], [x.at(at), end[1]], "rule");
        }
        for (i, series) in self.series.iter().enumerate() {
            let at = |p: &(f64, f64, String)| [x.at(p.0), y.at(p.1)];
            if series.kind == Kind::Lines {
                let points: Vec<[f64; 2]> = series.points.iter().map(at).collect();
                drawing.through(&points, &format!("l{}", i % super::theme::SERIES));
            }
            for point in series.points.iter().filter(|p| p.0.is_finite() && p.1.is_finite()) {
                drawing.mark(i, series.kind == Kind::Hollow, at(point), 4.0, &point.2);
            }
        }
        Plot {
            svg: drawing.finish(&self.id, &self.title, &self.caption),
            id: self.id.clone(),
            title: self.title.clone(),
            caption: self.caption.clone(),
        }
    }
}
