//! What a direction reads along an answer, as a line and as colours.

use ggsteer::chat::{Answer, Directions};

/// How much of it is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Shown {
    /// Nothing
    #[default]
    #[value(name = "off")]
    Nothing,
    /// A line behind each answer
    #[value(name = "on")]
    Line,
    /// The line, and the text tinted by the first direction
    #[value(name = "colour", alias = "color")]
    Colour,
}

/// Bars of the line, from low to high.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The most bars of a line.
const WIDTH: usize = 40;

/// Colours from low to high: blue to orange, which the colour-blind tell apart, strong ones bold; the middle has none.
const TINTS: [&str; 5] = ["1;38;5;33", "38;5;67", "", "38;5;172", "1;38;5;202"];

/// The span between which a direction's readings are low and high.
#[derive(Debug, Clone, PartialEq)]
struct Scale {
    name: String,
    block: usize,
    /// Readings of the harmless and of the harmful mean, where the direction's file knows them.
    means: Option<(f64, f64)>,
    /// The least and the largest seen so far.
    seen: (f64, f64),
}

impl Scale {
    /// Where a reading lies: 0 for low, 1 for high.
    fn place(&self, reading: f64) -> f64 {
        let (low, high) = self.means.unwrap_or(self.seen);
        if high > low { ((reading - low) / (high - low)).clamp(0.0, 1.0) } else { 0.5 }
    }

    fn bar(&self, reading: f64) -> char {
        BARS[(self.place(reading) * (BARS.len() - 1) as f64).round() as usize]
    }
}

/// What is shown, and the scales of it.
#[derive(Debug, Clone)]
pub struct Meter {
    pub shown: Shown,
    /// Whether stdout takes colours.
    pub colours: bool,
    scales: Vec<Scale>,
}

impl Meter {
    pub fn new(shown: Shown, colours: bool, directions: &Directions) -> Self {
        let scales = (directions.read().into_iter())
            .map(|named| Scale {
                name: named.name.clone(),
                block: named.direction.block,
                means: named.direction.meta.readings.filter(|(harmless, harmful)| harmless < harmful),
                seen: (f64::INFINITY, f64::NEG_INFINITY),
            })
            .collect();
        Self { shown, colours, scales }
    }

    /// Takes the readings of one token.
    pub fn take(&mut self, readings: &[f32]) {
        for (scale, &reading) in self.scales.iter_mut().zip(readings) {
            let (low, high) = scale.seen;
            scale.seen = (low.min(reading.into()), high.max(reading.into()));
        }
    }

    /// The text in the colour of its token, where it is to have one.
    pub fn tint(&self, text: String, readings: &[f32]) -> String {
        let (Some(scale), Some(&reading)) = (self.scales.first(), readings.first()) else { return text };
        if self.shown != Shown::Colour || !self.colours || text.is_empty() {
            return text;
        }
        let steps = (TINTS.len() - 1) as f64;
        match TINTS[(scale.place(reading.into()) * steps).round() as usize] {
            "" => text,
            tint => format!("\x1b[{tint}m{text}\x1b[0m"),
        }
    }

    /// A line for each direction, of an answer that it has taken.
    pub fn lines(&self, answer: &Answer) -> Vec<String> {
        let line = |(i, scale): (usize, &Scale)| {
            let readings: Vec<f64> = answer.readings(i).map(f64::from).collect();
            let per_bar = readings.len().div_ceil(WIDTH).max(1);
            let bars: String = readings.chunks(per_bar).map(|c| scale.bar(mean(c))).collect();
            let span = match scale.means {
                Some((low, high)) => format!("harmless {low:.2}, harmful {high:.2}"),
                None => format!("so far {:.2} to {:.2}", scale.seen.0, scale.seen.1),
            };
            let name = if self.scales.len() > 1 { format!("{}, ", scale.name) } else { String::new() };
            Some(format!("{bars}  {}  ({name}block {}; {span})", figures(&readings)?, scale.block))
        };
        self.scales.iter().enumerate().filter_map(line).collect()
    }

    /// The figures alone, of the first direction.
    pub fn figures(answer: &Answer) -> Option<String> {
        figures(&answer.readings(0).map(f64::from).collect::<Vec<_>>())
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn figures(readings: &[f64]) -> Option<String> {
    let low = readings.iter().copied().reduce(f64::min)?;
    let high = readings.iter().copied().reduce(f64::max)?;
    Some(format!("min {low:.2}  mean {:.2}  max {high:.2}", mean(readings)))
}

#[cfg(test)]
mod tests {
    use ggsteer::chat::Piece;
    use ggsteer::runtime::Finish;

    use super::*;

    fn meter(shown: Shown, means: Option<(f64, f64)>) -> Meter {
        let seen = (f64::INFINITY, f64::NEG_INFINITY);
        Meter { shown, colours: true, scales: vec![Scale { name: "d".into(), block: 4, means, seen }] }
    }

    #[test]
    fn a_known_scale_runs_from_the_harmless_to_the_harmful() {
        let known = meter(Shown::Colour, Some((-2.0, 6.0)));
        let bars: String = [-9.0, -2.0, 2.0, 6.0, 60.0].map(|x| known.scales[0].bar(x)).into_iter().collect();
        assert_eq!(bars, "▁▁▅██");
        assert_eq!(known.tint("a".into(), &[6.0]), "\x1b[1;38;5;202ma\x1b[0m");
        assert_eq!(known.tint("a".into(), &[-2.0]), "\x1b[1;38;5;33ma\x1b[0m");
        assert_eq!(known.tint("a".into(), &[2.0]), "a", "the middle has no colour");
        assert_eq!(known.tint("a".into(), &[]), "a", "nor has what was not read");
    }

    #[test]
    fn an_unknown_scale_runs_over_what_was_seen() {
        let mut running = meter(Shown::Colour, None);
        running.take(&[3.0]);
        assert_eq!(running.tint("a".into(), &[3.0]), "a", "one reading is no scale");
        running.take(&[1.0]);
        assert_eq!((running.scales[0].bar(1.0), running.scales[0].bar(3.0)), ('▁', '█'));
        assert!(running.tint("a".into(), &[3.0]).starts_with("\x1b["));
    }

    #[test]
    fn a_line_says_what_was_read() {
        let piece = |reading| Piece { text: "a".into(), readings: vec![reading] };
        let pieces = (0..80).map(|i| piece(if i < 40 { 0.0 } else { 2.0 })).collect();
        let answer = Answer { pieces, finish: Finish::Stop, ..Answer::default() };
        let mut running = meter(Shown::Line, None);
        answer.pieces.iter().for_each(|piece| running.take(&piece.readings));
        let bars = "▁".repeat(20) + &"█".repeat(20);
        let figures = "min 0.00  mean 1.00  max 2.00";
        assert_eq!(running.lines(&answer), [format!("{bars}  {figures}  (block 4; so far 0.00 to 2.00)")]);
        let mut two = meter(Shown::Line, Some((-1.0, 3.0)));
        two.scales.push(two.scales[0].clone());
        let line = format!("{}{}", "▃".repeat(20), "▆".repeat(20));
        let line = format!("{line}  {figures}  (d, block 4; harmless -1.00, harmful 3.00)");
        assert_eq!(two.lines(&answer), [line], "the second direction read nothing");
        assert!(running.lines(&Answer::default()).is_empty());
    }

    #[test]
    fn colours_are_asked_for_and_possible() {
        for (shown, colours) in [(Shown::Line, true), (Shown::Nothing, true), (Shown::Colour, false)] {
            let meter = Meter { colours, ..meter(shown, Some((0.0, 1.0))) };
            assert_eq!(meter.tint("a".into(), &[1.0]), "a");
        }
    }

    #[test]
    fn figures_are_those_of_the_readings() {
        assert_eq!(figures(&[1.0, -2.0, 4.0]).unwrap(), "min -2.00  mean 1.00  max 4.00");
        assert_eq!(figures(&[]), None);
    }
}
