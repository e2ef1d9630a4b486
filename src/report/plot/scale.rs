//! From values to pixels, and numbers as people read them.

/// A linear axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Scale {
    /// An axis from pixel `from` to pixel `to` that holds every finite value, and some air.
    pub fn holding(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let finite = values.filter(|x| x.is_finite());
        let (low, high) = finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(x), b.max(x)));
        let (low, high) = match (low <= high, high - low) {
            (false, _) => (0.0, 1.0),
            (true, 0.0) => (low - 0.5 * low.abs().max(1.0), high + 0.5 * high.abs().max(1.0)),
            (true, range) => (low - 0.04 * range, high + 0.04 * range),
        };
        Self { low, high, from, to }
    }

    /// An axis of just these ends.
    pub fn new(low: f64, high: f64, from: f64, to: f64) -> Self {
        Self { low, high, from, to }
    }

    /// The pixel of a value.
    pub fn at(&self, x: f64) -> f64 {
        self.from + (x - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round values on the axis, about `n` of them.
    pub fn ticks(&self, n: usize, whole: bool) -> Vec<f64> {
        let range = self.high - self.low;
        let rough = range / n.max(1) as f64;
        let power = 10f64.powf(rough.log10().floor());
        let mut step = power * [1.0, 2.0, 5.0, 10.0].into_iter().find(|f| f * power >= rough).unwrap_or(10.0);
        if whole {
            step = step.max(1.0);
        }
        if !(step.is_finite() && step > 0.0) {
            return Vec::new();
        }
        let first = (self.low / step - 1e-9).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last.min(first.saturating_add(100))).map(|i| i as f64 * step).collect()
    }
}

/// A number in four significant digits or fewer, with a true minus sign.
#[must_use]
pub fn number(x: f64) -> String {
    if !x.is_finite() {
        return "–".into();
    }
    let size = x.abs();
    let text = if size >= 1e6 || (size != 0.0 && size < 1e-4) {
        format!("{x:.2e}")
    } else {
        let digits = (3 - size.max(1e-4).log10().floor() as i32).clamp(0, 6) as usize;
        let text = format!("{x:.digits$}");
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
    };
    text.replace('-', "−")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (1.0, "1"),
            (-5.6204, "−5.62"),
            (33.961, "33.96"),
            (0.023_419, "0.02342"),
            (12_345.6, "12346"),
            (4.2e-7, "4.20e−7"),
            (f64::NAN, "–"),
        ];
        for (x, text) in cases {
            assert_eq!(number(x), text);
        }
    }

    #[test]
    fn ticks_are_round_and_lie_on_the_axis() {
        assert_eq!(Scale::new(0.0, 5.0, 0.0, 100.0).ticks(5, false), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(
            Scale::new(-0.3, 7.3, 0.0, 100.0).ticks(20, true),
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
        );
        assert_eq!(Scale::new(0.0, 10.0, 100.0, 0.0).at(2.5), 75.0);
    }

    #[test]
    fn an_axis_holds_what_there_is() {
        for values in [vec![], vec![f64::NAN], vec![3.0], vec![-2.0, 8.0, f64::INFINITY]] {
            let scale = Scale::holding(values.iter().copied(), 0.0, 100.0);
            for x in values.iter().filter(|x| x.is_finite()) {
                assert!((0.0..=100.0).contains(&scale.at(*x)), "{x} of {values:?}");
            }
            assert!(!scale.ticks(5, false).is_empty());
        }
    }
}
