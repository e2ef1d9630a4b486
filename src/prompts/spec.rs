//! What a user writes after `--harmful`: a place, a column, a split and a slice.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::PromptError;

/// A spec, taken apart: `PLACE[:COLUMN][[SLICE]]` or `PLACE[:COLUMN][[SPLIT[SLICE]]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spec {
    pub place: Place,
    pub column: Option<String>,
    pub split: Option<String>,
    pub slice: Option<Slice>,
}

/// Where the prompts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// A file, or a folder of files.
    Local(PathBuf),
    /// A dataset of the hub.
    Hub(Address),
}

/// `hf:owner/name[@revision][/path]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// `owner/name`, or a name alone.
    pub id: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// A file or folder in the dataset.
    pub path: Option<String>,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let revision = if self.revision == MAIN { String::new() } else { format!("@{}", self.revision) };
        let path = self.path.as_ref().map_or(String::new(), |path| format!("/{path}"));
        write!(f, "hf:{}{revision}{path}", self.id)
    }
}

/// The revision that is meant where none is named.
pub(super) const MAIN: &str = "main";

impl Spec {
    /// Takes a spec apart. What exists as a file or folder is that one, whatever colons and brackets its name
    /// has; so the longest piece that exists is the place, and the rest says what of it.
    pub fn parse(spec: &str) -> Result<Self, PromptError> {
        let bad = |why: String| PromptError::BadSpec { spec: spec.to_owned(), why };
        let local = |path: &str, column: Option<&str>| (Place::Local(path.into()), column.map(str::to_owned));
        if Path::new(spec).exists() {
            return Ok(Self { place: Place::Local(spec.into()), column: None, split: None, slice: None });
        }
        let (rest, part) = match brackets(spec) {
            Some((rest, part)) if !rest.is_empty() => (rest, Some(part)),
            _ => (spec, None),
        };
        let (place, column) = if Path::new(rest).exists() {
            local(rest, None)
        } else if let Some((path, column)) = existing_with_column(rest) {
            local(path, Some(column))
        } else if let Some(address) = rest.strip_prefix("hf:") {
            let (address, column) = match address.split_once(':') {
                Some((_, "")) => return Err(bad("no column after the colon".into())),
                Some((address, column)) => (address, Some(column.to_owned())),
                None => (address, None),
            };
            (Place::Hub(Address::parse(address).map_err(bad)?), column)
        } else {
            // The error is the system's word on the path, so it should be the path that was meant.
            local(rest, None)
        };
        let (split, slice) = match part {
            None => (None, None),
            Some(part) => parse_part(part).map_err(bad)?,
        };
        Ok(Self { place, column, split, slice })
    }
}

/// `REST[INSIDE]`, by the bracket that belongs to the one at the end.
fn brackets(spec: &str) -> Option<(&str, &str)> {
    let inner = spec.strip_suffix(']')?;
    let mut depth = 1;
    let at = inner.char_indices().rev().find(|&(_, c)| {
        depth += match c {
            ']' => 1,
            '[' => -1,
            _ => 0,
        };
        depth == 0
    })?;
    Some((&spec[..at.0], &inner[at.0 + 1..]))
}

/// The longest piece before a colon that exists, and what stands after the colon.
fn existing_with_column(spec: &str) -> Option<(&str, &str)> {
    spec.rmatch_indices(':')
        .map(|(at, _)| (&spec[..at], &spec[at + 1..]))
        .find(|(path, column)| !column.is_empty() && Path::new(path).exists())
}

/// What stands in brackets: `SLICE`, `SPLIT` or `SPLIT[SLICE]`.
fn parse_part(part: &str) -> Result<(Option<String>, Option<Slice>), String> {
    if let Some((split, slice)) = brackets(part) {
        return match split {
            "" => Err(format!("a split is missing in [{part}]")),
            _ => Ok((Some(split.to_owned()), Some(Slice::parse(slice)?))),
        };
    }
    match part {
        "" => Err("nothing in the brackets; write a split or a slice, [train] or [:100]".into()),
        _ if part.contains(':') => Ok((None, Some(Slice::parse(part)?))),
        _ => Ok((Some(part.to_owned()), None)),
    }
}

impl Address {
    /// `owner/name[@revision][/path]`, every piece of it safe as a piece of a path and of a web address.
    fn parse(text: &str) -> Result<Self, String> {
        let expected = || format!("\"{text}\" is no dataset of the hub; write hf:OWNER/NAME");
        let (id, revision, path) = if let Some((id, rest)) = text.split_once('@') {
            // Revisions with slashes are those under refs/, of three pieces.
            let pieces = if rest.starts_with("refs/") { 3 } else { 1 };
            let end = rest.match_indices('/').nth(pieces - 1).map_or(rest.len(), |(at, _)| at);
            (id, &rest[..end], rest.get(end + 1..))
        } else {
            let end = text.match_indices('/').nth(1).map_or(text.len(), |(at, _)| at);
            (&text[..end], MAIN, text.get(end + 1..))
        };
        let plain = |piece: &str| {
            !piece.is_empty() && piece.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let sound = |piece: &str| plain(piece) && piece != "." && piece != "..";
        if id.split('/').count() > 2 || !id.split('/').all(sound) || !revision.split('/').all(sound) {
            return Err(expected());
        }
        if path.is_some_and(|path| !is_relative(path)) {
            return Err(expected());
        }
        Ok(Self { id: id.to_owned(), revision: revision.to_owned(), path: path.map(str::to_owned) })
    }
}

/// Whether a path stays below the folder it is joined to, on every system.
pub(super) fn is_relative(path: &str) -> bool {
    let sound = |piece: &str| {
        !piece.is_empty() && piece != "." && piece != ".." && !piece.contains(['\\', ':', '\0'])
    };
    path.split('/').all(sound)
}

/// `FROM:TO`, either of them left out, counted from the end (negative) or in per cent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slice {
    from: Option<Bound>,
    to: Option<Bound>,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    /// Below zero: from the end. Kept apart from the number, since -0 is the end.
    from_end: bool,
    n: usize,
    percent: bool,
}

impl Bound {
    fn parse(text: &str) -> Option<Self> {
        let (digits, from_end) = text.strip_prefix('-').map_or((text, false), |digits| (digits, true));
        let (digits, percent) = digits.strip_suffix('%').map_or((digits, false), |digits| (digits, true));
        let digits = Some(digits).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
        Some(Self { from_end, n: digits.parse().ok()?, percent })
    }

    /// Its place among `n` prompts; per cents are rounded to the nearest prompt.
    fn resolve(self, n: usize) -> Option<usize> {
        let at = match self.percent {
            true if self.n > 100 => None,
            true => Some((n * self.n + 50) / 100),
            false => Some(self.n).filter(|&at| at <= n),
        }?;
        Some(if self.from_end { n - at } else { at })
    }
}

impl Slice {
    fn parse(text: &str) -> Result<Self, String> {
        let bound = |piece: &str| match piece.trim() {
            "" => Some(None),
            piece => Bound::parse(piece).map(Some),
        };
        let bounds = text.split_once(':').and_then(|(from, to)| Some((bound(from)?, bound(to)?)));
        let (from, to) = bounds.ok_or_else(|| {
            format!("[{text}] is no slice; write [FROM:TO], such as [:400], [100:400], [-50:] or [10%:20%]")
        })?;
        Ok(Self { from, to, text: text.to_owned() })
    }

    /// How many of the first prompts suffice to take the slice, where that does not depend on how many there
    /// are.
    pub fn enough(&self) -> Option<usize> {
        let absolute = |bound: &Bound| !bound.from_end && !bound.percent;
        // One at least, so that a slice of nothing is told from a set of nothing.
        self.to.filter(|to| absolute(to) && self.from.as_ref().is_none_or(absolute)).map(|to| to.n.max(1))
    }

    /// Which of `n` prompts it takes: at least one.
    pub fn resolve(&self, n: usize, spec: &str) -> Result<Range<usize>, PromptError> {
        let bad =
            |why: String| Err(PromptError::BadSlice { spec: spec.to_owned(), slice: self.text.clone(), why });
        let from = self.from.map_or(Some(0), |bound| bound.resolve(n));
        let to = self.to.map_or(Some(n), |bound| bound.resolve(n));
        match (from, to) {
            (Some(from), Some(to)) if from < to => Ok(from..to),
            (Some(from), Some(to)) => {
                bad(format!("takes nothing: it goes from {from} to {to} of {n} prompts"))
            }
            _ => bad(format!("reaches outside the set of {n} prompts")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_spec_makes_it_panic(spec in "(hf:)?[a/@:\\[\\]%0-9.é-]{0,24}") {
            if let Ok(Spec { slice: Some(slice), .. }) = Spec::parse(&spec) {
                let range = slice.resolve(7, &spec).ok();
                prop_assert!(range.is_none_or(|range| range.start < range.end && range.end <= 7));
            }
        }
    }

    fn slice(text: &str, n: usize) -> Result<Range<usize>, String> {
        Slice::parse(text)?.resolve(n, "a.txt").map_err(|e| e.to_string())
    }

    #[test]
    fn slices_count_from_both_ends_and_in_per_cent() {
        let cases = [
            (":400", 0..400),
            ("100:400", 100..400),
            ("-50:", 950..1000),
            (":-1", 0..999),
            ("10%:20%", 100..200),
            ("-20%:", 800..1000),
            ("999:", 999..1000),
            (":", 0..1000),
            ("0:100%", 0..1000),
        ];
        for (text, range) in cases {
            assert_eq!(slice(text, 1000), Ok(range), "{text}");
        }
        // To the nearest: 3.5 and 7 of 7.
        assert_eq!(slice("50%:", 7), Ok(4..7));
        assert_eq!((slice(":3", 3), slice("-3:", 3)), (Ok(0..3), Ok(0..3)));
    }

    #[test]
    fn slices_that_take_nothing_or_too_much_say_so() {
        for (text, words) in [
            (":4", "a.txt: the slice [:4] reaches outside the set of 3 prompts"),
            ("-4:", "reaches outside"),
            (":101%", "reaches outside"),
            ("2:1", "takes nothing: it goes from 2 to 1 of 3 prompts"),
            ("3:", "takes nothing: it goes from 3 to 3"),
            (":0", "takes nothing"),
            ("5", "is no slice"),
            ("a:b", "is no slice"),
            ("1:2:3", "is no slice"),
            ("--1:", "is no slice"),
            ("99999999999999999999:", "is no slice"),
            ("%:", "is no slice"),
        ] {
            let message = slice(text, 3).unwrap_err();
            assert!(message.contains(words), "{text}: {message}");
        }
    }

    #[test]
    fn only_absolute_slices_know_how_much_is_enough() {
        let enough = |text| Slice::parse(text).unwrap().enough();
        assert_eq!((enough(":4"), enough("2:4")), (Some(4), Some(4)));
        for text in ["2:", "-2:", ":10%", "-9:4", "10%:4", ":-1", ":"] {
            assert_eq!(enough(text), None, "{text}");
        }
    }

    fn hub(spec: &str) -> Result<(String, String, Option<String>, Spec), String> {
        let spec = Spec::parse(spec).map_err(|e| e.to_string())?;
        match spec.place.clone() {
            Place::Hub(a) => Ok((a.id, a.revision, a.path, spec)),
            Place::Local(path) => Err(format!("local {}", path.display())),
        }
    }

    #[test]
    fn hub_specs_have_revision_path_column_split_and_slice() {
        let (id, revision, path, spec) = hub("hf:owner/name@v1.0/en/a.csv:text[train[100:400]]").unwrap();
        assert_eq!(
            (id.as_str(), revision.as_str(), path.as_deref()),
            ("owner/name", "v1.0", Some("en/a.csv"))
        );
        assert_eq!((spec.column.as_deref(), spec.split.as_deref()), (Some("text"), Some("train")));
        assert_eq!(spec.slice.unwrap().enough(), Some(400));

        let (id, revision, path, spec) = hub("hf:name[test]").unwrap();
        assert_eq!((id.as_str(), revision.as_str(), path), ("name", "main", None));
        assert_eq!((spec.column, spec.split.as_deref(), spec.slice), (None, Some("test"), None));

        let (_, revision, path, _) = hub("hf:owner/name@refs/convert/parquet/default:text[:9]").unwrap();
        assert_eq!((revision.as_str(), path.as_deref()), ("refs/convert/parquet", Some("default")));
    }

    #[test]
    fn hub_specs_that_could_leave_their_place_are_refused() {
        for spec in [
            "hf:",
            "hf:/name",
            "hf:owner/",
            "hf:../name",
            "hf:owner/name@",
            "hf:owner/name@..",
            "hf:owner/name/../x",
            "hf:owner/name//x",
            "hf:owner/na me",
            "hf:a/b/c@main",
            "hf:owner/name?x=1",
        ] {
            let message = hub(spec).unwrap_err();
            assert!(message.contains("write hf:OWNER/NAME"), "{spec}: {message}");
        }
        assert!(hub("hf:owner/name:").unwrap_err().contains("no column"));
        assert!(hub("hf:owner/name[]").unwrap_err().contains("nothing in the brackets"));
        assert!(hub("hf:owner/name[[:4]]").unwrap_err().contains("a split is missing"));
        assert!(hub("hf:owner/name[train[4]]").unwrap_err().contains("is no slice"));
    }
}
