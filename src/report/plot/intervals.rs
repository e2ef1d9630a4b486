//! Rates with their intervals, a row each.

use super::Plot;
use super::draw::{Anchor, Axis, Drawing, width};
use super::scale::Scale;

/// A row.
#[derive(Debug, Clone)]
pub struct Interval {
    /// What it is of.
    pub name: String,
    /// Which series it belongs to.
    pub series: usize,
    /// Its value.
    pub value: f64,
    /// The ends of its interval.
    pub ends: (f64, f64),
    /// What is said of it.
    pub says: String,
}

/// Rows over one axis.
#[derive(Debug, Clone, Default)]
pub struct Intervals {
    /// As [`Plot::id`].
    pub id: String,
    /// What it shows.
    pub title: String,
    /// How to read it.
    pub caption: String,
    /// Name of the axis.
    pub x: String,
    /// Ends of the axis.
    pub range: (f64, f64),
    /// Names of the series.
    pub series: Vec<String>,
    /// From top to bottom.
    pub rows: Vec<Interval>,
}

impl Intervals {
    /// Draws it.
    #[must_use]
    pub fn draw(&self) -> Plot {
        const ROW: f64 = 26.0;
        let names = self.rows.iter().map(|r| width(&r.name)).fold(60.0, f64::max);
        let (left, right) = (names + 24.0, 656.0f64.max(names + 380.0));
        let mut height = 46.0 + 48.0 + ROW * self.rows.len() as f64;
        let mut drawing = Drawing::new(right + 24.0, height);
        let legend: Vec<(usize, bool, &str)> =
            self.series.iter().enumerate().map(|(i, name)| (i, false, name.as_str())).collect();
        let top = 14.0 + drawing.legend([left, 18.0], &legend);
        height -= 48.0;
        let x = Scale::new(self.range.0, self.range.1, left, right);
        let axis = Axis { scale: x, name: &self.x, whole: false };
        for tick in axis.scale.ticks(6, false) {
            drawing.line([x.at(tick), top], [x.at(tick), height], "grid");
            drawing.text([x.at(tick), height + 17.0], Anchor::Middle, "soft", &super::number(tick));
        }
        drawing.line([left, height], [right, height], "axis");
        drawing.text([f64::midpoint(left, right), height + 36.0], Anchor::Middle, "", axis.name);
        for (i, row) in self.rows.iter().enumerate() {
            let y = top + (i as f64 + 0.5) * ROW;
            drawing.text([left - 10.0, y + 4.0], Anchor::End, "", &row.name);
            let (low, high) = (x.at(row.ends.0), x.at(row.ends.1));
            if low.is_finite() && high.is_finite() {
                let class = format!("l{}", row.series % super::theme::SERIES);
                drawing.line([low, y], [high, y], &class);
            }
            if row.value.is_finite() {
                drawing.mark(row.series, false, [x.at(row.value), y], 5.0, &row.says);
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
