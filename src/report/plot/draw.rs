//! The elements of a drawing. Every text that comes from elsewhere passes [`escape`].

use super::scale::{Scale, number};
use super::theme::SERIES;

/// An SVG that is being drawn, `width` × `height` in pixels.
pub struct Drawing {
    width: f64,
    height: f64,
    body: String,
}

/// Where a text stands to its point.
#[derive(Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// Text for XML and HTML: markup is taken apart, and characters that XML does not know are replaced.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// About how wide a text of 12 pixels is.
pub fn width(text: &str) -> f64 {
    7.0 * text.chars().count() as f64
}

impl Drawing {
    pub fn new(width: f64, height: f64) -> Self {
        let body = format!("<rect class=\"paper\" width=\"{width:.0}\" height=\"{height:.0}\"/>");
        Self { width, height, body }
    }

    pub fn text(&mut self, [x, y]: [f64; 2], anchor: Anchor, class: &str, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        self.body += &format!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    /// A text that reads upwards.
    pub fn upright(&mut self, [x, y]: [f64; 2], text: &str) {
        let text = escape(text);
        self.body += &format!(
            "<text transform=\"translate({x:.1} {y:.1}) rotate(-90)\" text-anchor=\"middle\">{text}</text>"
        );
    }

    pub fn line(&mut self, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2], class: &str) {
        self.body += &format!("<path class=\"{class}\" d=\"M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}\"/>");
    }

    /// A line through points; a gap where one is not a number.
    pub fn through(&mut self, points: &[[f64; 2]], class: &str) {
        let mut path = String::new();
        let mut pen = 'M';
        for [x, y] in points {
            if y.is_finite() {
                path += &format!("{pen}{x:.1} {y:.1}");
                pen = 'L';
            } else {
                pen = 'M';
            }
        }
        self.body += &format!("<path class=\"{class}\" d=\"{path}\"/>");
    }

    /// The mark of a series: each has a shape of its own, hollow or filled.
    pub fn mark(&mut self, series: usize, hollow: bool, [x, y]: [f64; 2], size: f64, says: &str) {
        let i = series % SERIES;
        let r = size;
        let class = if hollow { format!("o{i}") } else { format!("f{i}") };
        let polygon = |points: &[[f64; 2]]| {
            let at: Vec<String> =
                points.iter().map(|[dx, dy]| format!("{:.1} {:.1}", x + dx, y + dy)).collect();
            format!("M{}Z", at.join("L"))
        };
        let path = match i {
            0 => format!("M{:.1} {y:.1}a{r} {r} 0 1 0 {d} 0a{r} {r} 0 1 0 -{d} 0Z", x - r, d = 2.0 * r),
            1 => polygon(&[[0.0, -1.2 * r], [1.1 * r, 0.9 * r], [-1.1 * r, 0.9 * r]]),
            2 => {
                polygon(&[[-0.9 * r, -0.9 * r], [0.9 * r, -0.9 * r], [0.9 * r, 0.9 * r], [-0.9 * r, 0.9 * r]])
            }
            3 => polygon(&[[0.0, -1.3 * r], [1.3 * r, 0.0], [0.0, 1.3 * r], [-1.3 * r, 0.0]]),
            4 => polygon(&[[0.0, 1.2 * r], [1.1 * r, -0.9 * r], [-1.1 * r, -0.9 * r]]),
            _ => {
                let (a, b) = (0.4 * r, 1.2 * r);
                polygon(&[
                    [-a, -b],
                    [a, -b],
                    [a, -a],
                    [b, -a],
                    [b, a],
                    [a, a],
                    [a, b],
                    [-a, b],
                    [-a, a],
                    [-b, a],
                    [-b, -a],
                    [-a, -a],
                ])
            }
        };
        self.body += &format!("<path class=\"{class}\" d=\"{path}\">{}</path>", said(says));
    }

    /// A rectangle of a colour of its own, or of a class.
    pub fn cell(&mut self, [x, y]: [f64; 2], [w, h]: [f64; 2], fill: Result<&str, &str>, says: &str) {
        let paint = match fill {
            Ok(colour) => format!("fill=\"{colour}\""),
            Err(class) => format!("class=\"{class}\""),
        };
        self.body += &format!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" {paint}>{}</rect>",
            said(says)
        );
    }

    /// Names of series with their marks, in rows from `[x, y]` on; returns the height they take.
    pub fn legend(&mut self, [left, top]: [f64; 2], names: &[(usize, bool, &str)]) -> f64 {
        let (mut x, mut y) = (left, top);
        for (series, hollow, name) in names {
            let wide = 28.0 + width(name);
            if x > left && x + wide > self.width {
                (x, y) = (left, y + 20.0);
            }
            self.mark(*series, *hollow, [x + 6.0, y - 4.0], 5.0, "");
            self.text([x + 17.0, y], Anchor::Start, "", name);
            x += wide;
        }
        y - top + 20.0
    }

    /// Both axes with their ticks, grid and names, around the field from `[left, top]` to `[right, bottom]`.
    pub fn axes(&mut self, [left, top]: [f64; 2], [right, bottom]: [f64; 2], x: &Axis<'_>, y: &Axis<'_>) {
        for tick in y.scale.ticks(6, false) {
            let at = y.scale.at(tick);
            self.line([left, at], [right, at], "grid");
            self.text([left - 7.0, at + 4.0], Anchor::End, "soft", &number(tick));
        }
        for tick in x.scale.ticks(((right - left) / 60.0) as usize, x.whole) {
            let at = x.scale.at(tick);
            self.line([at, bottom], [at, bottom + 4.0], "axis");
            self.text([at, bottom + 17.0], Anchor::Middle, "soft", &number(tick));
        }
        self.line([left, top], [left, bottom], "axis");
        self.line([left, bottom], [right, bottom], "axis");
        self.text([f64::midpoint(left, right), bottom + 36.0], Anchor::Middle, "", x.name);
        self.upright([left - 46.0, f64::midpoint(top, bottom)], y.name);
    }

    /// The whole, with a name and a description for readers who do not see it.
    pub fn finish(self, id: &str, title: &str, caption: &str) -> String {
        let Self { width, height, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\"><title id=\"{id}-t\">{}</title>\
             <desc id=\"{id}-d\">{}</desc>{body}</svg>",
            escape(title),
            escape(caption)
        )
    }
}

/// An axis to be drawn.
pub struct Axis<'a> {
    pub scale: Scale,
    pub name: &'a str,
    /// Only whole numbers are ticked.
    pub whole: bool,
}

fn said(says: &str) -> String {
    if says.is_empty() { String::new() } else { format!("<title>{}</title>", escape(says)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_becomes_markup() {
        assert_eq!(escape("<b a=\"1\">&\u{1b}\n"), "&lt;b a=&quot;1&quot;&gt;&amp;\u{fffd}\n");
        let mut drawing = Drawing::new(10.0, 10.0);
        drawing.text([0.0, 0.0], Anchor::Start, "", "<script>");
        drawing.mark(0, false, [1.0, 1.0], 2.0, "</title><script>");
        drawing.cell([0.0, 0.0], [1.0, 1.0], Err("none"), "<img>");
        let svg = drawing.finish("id", "a<b", "c<d");
        assert!(!svg.contains("<script") && !svg.contains("<img") && svg.contains("a&lt;b"), "{svg}");
    }
}
