//! How far the mean of all scores can be from the mean of the first few, drawn without replacement.

/// Student's t for `degrees` of freedom: the value that a t variable exceeds with probability `tail`, below ½.
///
/// By bisection on the closed form of the distribution for whole degrees of freedom.
#[must_use]
pub fn t_quantile(degrees: usize, tail: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while t_tail(degrees, high) > tail && high < 1e300 {
        high *= 2.0;
    }
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if t_tail(degrees, middle) > tail { low = middle } else { high = middle }
    }
    high
}

/// P(T > t) for t ≥ 0: with θ = atan(t/√ν), P(|T| ≤ t) is sin θ · Σ cⱼ cos²ʲ θ for even ν, and
/// 2/π · (θ + sin θ cos θ · Σ cⱼ cos²ʲ θ) for odd ν.
fn t_tail(degrees: usize, t: f64) -> f64 {
    let theta = (t / (degrees as f64).sqrt()).atan();
    let (sin, cos) = theta.sin_cos();
    let odd = degrees % 2 == 1;
    let (mut term, mut sum) = (1.0, 0.0);
    for j in 0..(degrees / 2) {
        sum += term;
        let k = 2.0 * j as f64 + 2.0;
        term *= cos * cos * if odd { k / (k + 1.0) } else { (k - 1.0) / k };
    }
    let inside = if odd { (theta + sin * cos * sum) * std::f64::consts::FRAC_2_PI } else { sin * sum };
    (1.0 - inside) / 2.0
}

/// The interval that holds the mean of all `total` scores, given the first of them in random order: each end is wrong
/// with probability `tail`, as far as means of so many scores are normal.
///
/// Student's interval with the correction for a finite population: with all scores known it has no width.
#[must_use]
pub fn interval(first: &[f64], total: usize, tail: f64) -> [f64; 2] {
    let n = first.len() as f64;
    let mean = first.iter().sum::<f64>() / n;
    if first.len() >= total {
        return [mean, mean];
    }
    if first.len() < 2 {
        return [f64::NEG_INFINITY, f64::INFINITY];
    }
    let variance = first.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (n - 1.0);
    let left = 1.0 - n / total as f64;
    let half = t_quantile(first.len() - 1, tail) * (variance / n * left).sqrt();
    [mean - half, mean + half]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        // Degrees of freedom, one-sided tail, the tabled value.
        let table = [
            (1, 0.025, 12.706_204_7),
            (2, 0.025, 4.302_652_7),
            (3, 0.005, 5.840_909_3),
            (7, 0.05, 1.894_578_6),
            (7, 0.0005, 5.407_882_5),
            (10, 0.01, 2.763_769_5),
            (15, 0.0005, 4.072_765_2),
            (31, 0.025, 2.039_513_4),
            (120, 0.0005, 3.373_453_8),
        ];
        for (degrees, tail, expected) in table {
            let found = t_quantile(degrees, tail);
            assert!((found - expected).abs() < 1e-6 * expected, "{degrees} {tail}: {found}, not {expected}");
        }
    }

    #[test]
    fn the_interval_is_wrong_as_seldom_as_it_says() {
        let mut random = SplitMix64(5);
        let mut wrong = 0;
        for _ in 0..20_000 {
            let mut scores: Vec<f64> =
                (0..64).map(|_| (0..12).map(|_| random.unit()).sum::<f64>() - 6.0).collect();
            let mean = scores.iter().sum::<f64>() / 64.0;
            random.shuffle(&mut scores);
            wrong += usize::from(interval(&scores[..8], 64, 0.01)[0] > mean);
        }
        // 200 expected, with a standard deviation of 14.
        assert!((120..=280).contains(&wrong), "{wrong}");
    }

    #[test]
    fn few_scores_say_nothing_and_all_say_everything() {
        assert_eq!(interval(&[1.0], 9, 0.01), [f64::NEG_INFINITY, f64::INFINITY]);
        assert_eq!(interval(&[1.0, 3.0], 2, 0.01), [2.0, 2.0]);
        let [low, high] = interval(&[1.0, 3.0, 2.0], 1000, 0.01);
        assert!(low < -1.0 && high > 5.0 && (low + high - 4.0).abs() < 1e-12);
    }
}
