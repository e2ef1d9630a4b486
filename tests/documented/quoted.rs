//! Quotes against what was printed.
//!
//! Words and their order on each line are the same, whatever the width of the columns. Figures depend on the processor in
//! their last digits, and refusals in one answer of a hundred: a percentage may be off by 10, another number by a quarter
//! of its size, by 0.05, or by 2 where it is whole. What a clock says and what is different in each run is not compared.

use std::sync::LazyLock;

use regex::Regex;

/// What stands for any number of lines.
const GAP: &str = "…";

/// What is not compared: patterns on a line whose blanks are single, what stands for them, why.
const MASKS: &[(&str, &str, &str)] = &[
    (r"(\d+\.\d MB [\d.]+) \d+ \d+", "$1 # #", "tokens per second, in `compare`"),
    (r"\d+(\.\d+)? (seconds|s\b|ms)", "# $2", "time"),
    (
        r"^(as it is|direction erased|rewritten file|direction added) ([A-Z].*)",
        "$1 …",
        "answers in `demo`: another processor may choose another word",
    ),
    (r"\d+\.\d–\d+\.\d|\[\d+\.\d, \d+\.\d\]", "#–#", "intervals: they follow from the rates"),
    (r"blk\.\d+\.", "blk.#.", "which tensor is the extreme one"),
    (r"\b[0-9a-f]{16,}\b", "#", "digests: of figures that differ in the last digit"),
];

static COMPILED: LazyLock<Vec<(Regex, &str)>> =
    LazyLock::new(|| MASKS.iter().map(|(pattern, with, _)| (Regex::new(pattern).unwrap(), *with)).collect());
static NUMBER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\d+(?:\.\d+)?(?:e-?\d+)?( %)?").unwrap());

fn clean(line: &str) -> String {
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    COMPILED.iter().fold(line, |line, (mask, with)| mask.replace_all(&line, *with).into_owned())
}

fn same_line(quoted: &str, printed: &str) -> bool {
    let (quoted, printed) = (clean(quoted), clean(printed));
    let numbers = |line: &str| -> Vec<String> {
        NUMBER.find_iter(line).map(|found| found.as_str().to_owned()).collect()
    };
    let close = |(a, b): (&String, &String)| {
        let value = |text: &str| -> f64 { text.trim_end_matches(" %").parse().unwrap() };
        let (x, y) = (value(a), value(b));
        let slack = match (a.ends_with('%'), a.contains('.')) {
            (true, _) => 10.0,
            (false, true) => f64::max(0.05, 0.25 * x),
            (false, false) => f64::max(2.0, 0.25 * x),
        };
        (x - y).abs() <= slack
    };
    NUMBER.replace_all(&quoted, "#$1") == NUMBER.replace_all(&printed, "#$1")
        && numbers(&quoted).iter().zip(&numbers(&printed)).all(close)
}

/// Whether a quote is what was printed.
pub fn compare(quote: &[&str], printed: &str) -> Result<(), String> {
    let printed: Vec<&str> = printed.trim_end().lines().collect();
    let (head, tail) = parts(quote);
    let fits = match tail {
        None => printed.len() == head.len(),
        Some(tail) => printed.len() >= head.len() + tail.len(),
    };
    let lines = || printed.iter().map(|line| format!("    {line}\n")).collect::<String>();
    if !fits {
        return Err(format!("{} lines were printed, not those quoted:\n{}", printed.len(), lines()));
    }
    let ends = tail.unwrap_or_default();
    let pairs = (head.iter().zip(&printed)).chain(ends.iter().zip(&printed[printed.len() - ends.len()..]));
    match pairs.clone().find(|(quoted, printed)| !same_line(quoted, printed)) {
        None => Ok(()),
        Some((quoted, printed)) => Err(format!("quoted   {quoted}\n printed  {printed}\n all:\n{}", lines())),
    }
}

/// A quote with what was printed now, cut where it was cut.
pub fn renew(quote: &[&str], printed: &str) -> Vec<String> {
    let printed: Vec<String> = printed.trim_end().lines().map(str::to_owned).collect();
    match parts(quote) {
        (head, Some(tail)) if printed.len() > head.len() + tail.len() => {
            let end = printed.len() - tail.len();
            [&printed[..head.len()], &[GAP.to_owned()], &printed[end..]].concat()
        }
        _ => printed,
    }
}

/// What stands before a gap and after it.
fn parts<'q, 'a>(quote: &'q [&'a str]) -> (&'q [&'a str], Option<&'q [&'a str]>) {
    match quote.iter().position(|line| line.trim() == GAP) {
        None => (quote, None),
        Some(at) => (&quote[..at], Some(&quote[at + 1..])),
    }
}

#[test]
fn words_are_the_same_and_figures_close() {
    let same = |a: &str, b: &str| compare(&[a], b).is_ok();
    assert!(same("chosen   -1  -5.620  95.0 %  in 3.1 seconds", "chosen -1 -5.9 88.0 % in 60 seconds"));
    assert!(!same("chosen -1", "taken -1"));
    assert!(!same("refused 95.0 %", "refused 80.0 %"));
    assert!(!same("40 candidates", "29 candidates"));
    assert!(!same("KL 0.01", "KL 0.08"));
    assert!(!same("of 0.01", "of –"));
    assert!(compare(&["a"], "a\nb").is_err());
    assert!(compare(&["a", "…", "d"], "a\nb\nc\nd").is_ok());
    assert!(compare(&["a", "…", "d"], "a\nb").is_err());
    assert_eq!(renew(&["a 1", "…", "d 1"], "a 2\nb\nc\nd 2\n"), ["a 2", "…", "d 2"]);
    assert_eq!(renew(&["a"], "b\nc\n"), ["b", "c"]);
}
