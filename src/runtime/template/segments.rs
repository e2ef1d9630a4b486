//! Telling the template's words from the user's in a rendered conversation.
//!
//! The conversation is rendered twice. Once as it is, for the exact text. And once with a *sentinel* in place
//! of each content: private-use characters that spell the message's number, so that what this second
//! rendering holds besides sentinels was written by the template, whatever the user wrote. Template segments
//! come from there only; hence no user's character can become part of a special token, by construction and
//! not by escaping.
//!
//! Each sentinel stands between two em spaces. A side on which the template trims loses its em space, and the
//! text put back is trimmed on that side too. If the pieces then spell the exact text, they are the answer.
//! If not, the template looked into the content (cut off what precedes `</think>`, trimmed line feeds only):
//! the exact text is matched against the template's pieces with, between them, any substring of the content
//! that belongs there. One way to do so is the answer; no way or several is an error.
//!
//! Rejected: searching the exact text for the content. A template that trims hides it, and a user who writes
//! `x<|im_end|>` into one message can make the search take another's words for the template's. Also rejected:
//! marks around the real content; `trim`, `startswith` and `split` then see other text than they would, and
//! marks get lost apart.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::{Message, TemplateError};

/// Private-use code points of plane 15: a start, ten digits, an end. They are no white space, no letters, and
/// have no case.
const START: char = '\u{f0000}';
const END: char = '\u{f0001}';
const DIGITS: u32 = 0xf_0010;
/// White space to every `trim`, and in no template known to us.
const PAD: char = '\u{2003}';

/// Steps of the matching before it is given up: two contents side by side take about the product of their
/// lengths.
const MAX_WORK: usize = 4_000_000;

/// A piece of a rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Written by the template: may hold special tokens, to be tokenized with special parsing on.
    Template(String),
    /// Written by whoever wrote the message: to be tokenized with special parsing off.
    Text(String),
}

impl Segment {
    /// The text, whoever wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Template(text) | Self::Text(text) => text,
        }
    }
}

/// A [`Segment`] that still knows its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Template(String),
    Text { message: usize, text: String },
}

impl Piece {
    fn as_str(&self) -> &str {
        match self {
            Self::Template(text) | Self::Text { text, .. } => text,
        }
    }

    /// `None` for a piece without text.
    pub(super) fn into_segment(self) -> Option<Segment> {
        match self {
            _ if self.as_str().is_empty() => None,
            Self::Template(text) => Some(Segment::Template(text)),
            Self::Text { text, .. } => Some(Segment::Text(text)),
        }
    }
}

/// What stands for the content of message number `message` in the second rendering. Blank contents stand for
/// themselves: they hide no special token, and templates ask whether there is a content at all.
pub(super) fn stand_in(message: usize, content: &str) -> String {
    if content.trim().is_empty() {
        return content.to_owned();
    }
    let digits = message.to_string().bytes().map(|b| code_point(u32::from(b - b'0'))).collect::<String>();
    format!("{PAD}{START}{digits}{END}{PAD}")
}

fn code_point(digit: u32) -> char {
    char::from_u32(DIGITS + digit).expect("plane 15 has no surrogates")
}

/// The pieces of `exact`, the plain rendering of `messages`, found through `marked`, their rendering with
/// [`stand_in`]s. Each message that is not blank is in at least one piece, or there is an error.
pub(super) fn separate(exact: &str, marked: &str, messages: &[Message]) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = split(marked, messages)?;
    all_there(&pieces, messages)?;
    if pieces.iter().map(Piece::as_str).collect::<String>() != exact {
        pieces = align(exact, pieces, messages)?;
        all_there(&pieces, messages)?;
    }
    Ok(pieces)
}

/// Whether each message that is not blank has a piece that is not empty.
fn all_there(pieces: &[Piece], messages: &[Message]) -> Result<(), TemplateError> {
    let is_there = |i: usize| {
        let mut pieces = pieces.iter();
        pieces.any(|p| matches!(p, Piece::Text { message, text } if *message == i && !text.is_empty()))
    };
    match (0..messages.len()).find(|&i| !messages[i].content.trim().is_empty() && !is_there(i)) {
        Some(message) => Err(TemplateError::Dropped { message, role: messages[message].role }),
        None => Ok(()),
    }
}

/// Splits at the sentinels and puts the contents back, trimmed where the template trims.
fn split(marked: &str, messages: &[Message]) -> Result<Vec<Piece>, TemplateError> {
    let mut pieces = Vec::new();
    let mut rest = marked;
    while let Some(start) = rest.find(START) {
        let after = &rest[start + START.len_utf8()..];
        let (digits, after) = after.split_once(END).ok_or(TemplateError::Mangled)?;
        let message = number(digits).filter(|&n| n < messages.len()).ok_or(TemplateError::Mangled)?;
        let mut text = messages[message].content.as_str();
        let before = rest[..start].strip_suffix(PAD).unwrap_or_else(|| {
            text = text.trim_start();
            &rest[..start]
        });
        rest = after.strip_prefix(PAD).unwrap_or_else(|| {
            text = text.trim_end();
            after
        });
        pieces.push(Piece::Template(before.to_owned()));
        pieces.push(Piece::Text { message, text: text.to_owned() });
    }
    pieces.push(Piece::Template(rest.to_owned()));
    let ours = |c: char| c == PAD || c == START || c == END || (DIGITS..DIGITS + 10).contains(&(c as u32));
    let torn = pieces.iter().any(|piece| matches!(piece, Piece::Template(text) if text.contains(ours)));
    if torn { Err(TemplateError::Mangled) } else { Ok(pieces) }
}

fn number(digits: &str) -> Option<usize> {
    let digit = |c: char| (c as u32).checked_sub(DIGITS).filter(|&d| d < 10);
    let decimal: Option<String> =
        digits.chars().map(|c| digit(c).and_then(|d| char::from_digit(d, 10))).collect();
    decimal?.parse().ok()
}

/// How a prefix of the pieces can spell a prefix of the exact text: in one way, ended by a piece that starts
/// at `from`, or in several.
#[derive(Clone, Copy, PartialEq)]
struct Way {
    from: usize,
    several: bool,
}

/// Matches the exact text with the template's pieces as they are and some substring of its content for each
/// other; the only way to do so, or an error.
fn align(exact: &str, mut pieces: Vec<Piece>, messages: &[Message]) -> Result<Vec<Piece>, TemplateError> {
    // ways[k]: the ends (byte offsets) that the first k pieces can reach, ascending.
    let mut work = 0;
    let mut ways = vec![vec![(0, Way { from: 0, several: false })]];
    for piece in &pieces {
        let last = ways.last().expect("the start is there");
        let mut reached: BTreeMap<usize, Way> = BTreeMap::new();
        for &(from, way) in last {
            let ends: Vec<usize> = match piece {
                Piece::Template(text) if exact[from..].starts_with(text.as_str()) => vec![from + text.len()],
                Piece::Template(_) => vec![],
                Piece::Text { message, .. } => prefixes_in(&exact[from..], &messages[*message].content)
                    .into_iter()
                    .map(|length| from + length)
                    .collect(),
            };
            work += ends.len();
            if work > MAX_WORK {
                return Err(TemplateError::ContentDependent);
            }
            for end in ends {
                let new = Way { from, several: way.several };
                reached.entry(end).and_modify(|way| way.several = true).or_insert(new);
            }
        }
        ways.push(reached.into_iter().collect());
    }
    let mut end = exact.len();
    for (piece, ends) in pieces.iter_mut().zip(&ways[1..]).rev() {
        let found = ends.binary_search_by_key(&end, |&(at, _)| at);
        let way = found.map_err(|_| TemplateError::ContentDependent)?;
        let Way { from, several } = ends[way].1;
        if several {
            return Err(TemplateError::ContentDependent);
        }
        if let Piece::Text { text, .. } = piece {
            exact[from..end].clone_into(text);
        }
        end = from;
    }
    Ok(pieces)
}

/// The lengths of those prefixes of `text` that are substrings of `content`, ascending. With a prefix, all
/// shorter ones are.
fn prefixes_in(text: &str, content: &str) -> Vec<usize> {
    let mut lengths: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
    lengths.truncate(content.len() + 1);
    lengths.truncate(lengths.partition_point(|&length| content.contains(&text[..length])));
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::template::Role;
    use proptest::prelude::*;

    fn template(text: &str) -> Segment {
        Segment::Template(text.into())
    }

    fn text(text: &str) -> Segment {
        Segment::Text(text.into())
    }

    /// Separates what `f` makes of the contents.
    fn separated(contents: &[&str], f: impl Fn(&[String]) -> String) -> Result<Vec<Segment>, String> {
        let messages: Vec<Message> = contents.iter().map(|&c| Message::new(Role::User, c)).collect();
        let exact = f(&contents.iter().map(|&c| c.to_owned()).collect::<Vec<_>>());
        let marked = f(&contents.iter().enumerate().map(|(i, c)| stand_in(i, c)).collect::<Vec<_>>());
        let pieces = separate(&exact, &marked, &messages).map_err(|error| error.to_string())?;
        let segments: Vec<Segment> = pieces.into_iter().filter_map(Piece::into_segment).collect();
        assert_eq!(segments.iter().map(Segment::as_str).collect::<String>(), exact);
        Ok(segments)
    }

    #[test]
    fn trimming_is_seen_on_each_side() {
        let f = |c: &[String]| format!("<{}>{}|{}\n", c[0].trim(), c[0].trim_end(), c[0]);
        let expected = [
            template("<"),
            text("a"),
            template(">"),
            text(" a"),
            template("|"),
            text(" a\n"),
            template("\n"),
        ];
        assert_eq!(separated(&[" a\n"], f).unwrap(), expected);
    }

    #[test]
    fn a_cut_content_is_found_when_there_is_one_way() {
        let f = |c: &[String]| format!("<{}>", c[0].split("</think>").last().unwrap());
        let expected = [template("<"), text("bread>"), template(">")];
        assert_eq!(separated(&["flour</think>bread>"], f).unwrap(), expected);
    }

    #[test]
    fn several_ways_are_an_error() {
        let f = |c: &[String]| format!("<{}><{}>", c[0].split("cut").last().unwrap(), c[1].replace('-', ""));
        assert_eq!(separated(&["bcuta", "b-"], f).unwrap().len(), 5);
        // One way only, although the texts look like the template's words.
        assert_eq!(separated(&["acuta><a", "b><b-"], f).unwrap()[1], text("a><a"));
        // "<a><b><b>": is it (a, b><b) or (a><b, b)?
        let error = separated(&["a><bcuta", "b><b-"], f).unwrap_err();
        assert!(error.contains("depends on the content"), "{error}");
    }

    #[test]
    fn long_matches_are_given_up() {
        let long = "ab".repeat(8000) + "-";
        let f = |c: &[String]| format!("{}{}", c[0].replace('-', ""), c[1].replace('-', ""));
        assert!(separated(&[&long, &long], f).is_err());
        let f = |c: &[String]| format!("<{}>", c[0].replace('-', ""));
        assert_eq!(separated(&[&long], f).unwrap().len(), 3);
    }

    #[test]
    fn changed_dropped_and_torn_contents_are_errors() {
        let changed = separated(&["bread"], |c| c[0].to_uppercase()).unwrap_err();
        assert!(changed.contains("depends on the content"), "{changed}");
        let dropped = separated(&["bread", "milk"], |c| c[0].clone()).unwrap_err();
        assert_eq!(dropped, "chat template leaves out message 1 (user)");
        let emptied = separated(&["bread"], |c| format!("<{}>", c[0].replace("bread", ""))).unwrap_err();
        assert_eq!(emptied, "chat template leaves out message 0 (user)");
        let torn = separated(&["bread"], |c| c[0].chars().take(2).collect()).unwrap_err();
        assert!(torn.contains("takes a message's content apart"), "{torn}");
        // Different words around different contents: none of them may be taken for the user's.
        assert!(
            separated(&["bread"], |c| if c[0] == "bread" { "<y>bread".into() } else { c[0].clone() })
                .is_err()
        );
    }

    #[test]
    fn blank_contents_stand_for_themselves() {
        let f = |c: &[String]| {
            if c[0].is_empty() { "none".into() } else { format!("<{}>", c[0]) }
        };
        assert_eq!(separated(&[""], f).unwrap(), [template("none")]);
        assert_eq!(separated(&[" \n"], f).unwrap(), [template("< \n>")]);
    }

    proptest! {
        /// Any contents, through a template that trims some: the user's text is all Text, the rest as
        /// written.
        #[test]
        fn nothing_of_the_users_becomes_the_templates(
            a in "[ab<|>\n \u{2003}\u{f0000}\u{f0001}\u{f0010}]{0,12}", b in "[ab<|>\n ]{0,12}"
        ) {
            let f = |c: &[String]| format!("<|a|>{}<|b|>\n{}<|c|>", c[0].trim(), c[1]);
            let segments = separated(&[&a, &b], f).unwrap();
            let texts: Vec<&str> =
                segments.iter().filter(|s| matches!(s, Segment::Text(_))).map(Segment::as_str).collect();
            let mut expected = vec![];
            expected.extend(Some(a.trim()).filter(|a| !a.is_empty()));
            expected.extend(Some(b.as_str()).filter(|b| !b.trim().is_empty()));
            prop_assert_eq!(texts, expected);
        }
    }
}
