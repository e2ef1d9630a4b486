//! Stop strings: where a text ends, and what of it must be held back meanwhile.

use std::collections::VecDeque;
use std::sync::Arc;

use super::slot::Piece;

/// Pieces that may be the beginning of a stop string, which is no part of an answer. Once a piece is let go, nothing of it
/// can be.
#[derive(Debug, Default)]
pub(super) struct Held {
    stops: Arc<[String]>,
    pieces: VecDeque<Piece>,
    /// Their texts, one after the other.
    text: String,
}

impl Held {
    pub(super) fn new(stops: Arc<[String]>) -> Self {
        Self { stops, ..Self::default() }
    }

    /// Takes a piece; returns those that are let go with it, and whether a stop string has come. What stood before it is
    /// then among them, cut where it begins.
    pub(super) fn push(&mut self, piece: Piece) -> (Vec<Piece>, bool) {
        self.text += &piece.text;
        self.pieces.push_back(piece);
        let found = self.stops.iter().filter_map(|stop| self.text.find(stop.as_str())).min();
        if let Some(end) = found {
            let mut pieces = Vec::new();
            let mut start = 0;
            for mut piece in self.pieces.drain(..) {
                if start >= end {
                    break;
                }
                let length = piece.text.len();
                piece.text.truncate(end - start);
                start += length;
                pieces.push(piece);
            }
            self.text.clear();
            return (pieces, true);
        }
        let safe = self.text.len() - self.beginning();
        let (mut pieces, mut start) = (Vec::new(), 0);
        while let Some(length) = self.pieces.front().map(|piece| piece.text.len())
            && start + length <= safe
        {
            start += length;
            pieces.extend(self.pieces.pop_front());
        }
        self.text.drain(..start);
        (pieces, false)
    }

    /// Bytes at the end of the text that a stop string begins with.
    fn beginning(&self) -> usize {
        let ends = |stop: &String| {
            let longest = stop.len().saturating_sub(1).min(self.text.len());
            let begins = |n: &usize| self.text.as_bytes().ends_with(&stop.as_bytes()[..*n]);
            (1..=longest).rev().find(begins).unwrap_or(0)
        };
        self.stops.iter().map(ends).max().unwrap_or(0)
    }

    /// All that is held: no more comes.
    pub(super) fn rest(&mut self) -> Vec<Piece> {
        self.text.clear();
        self.pieces.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], texts: &[&str]) -> (Vec<Vec<String>>, bool) {
        let mut held = Held::new(stops.iter().map(ToString::to_string).collect());
        let texts_of = |pieces: Vec<Piece>| pieces.into_iter().map(|p| p.text).collect::<Vec<_>>();
        let mut out = Vec::new();
        for text in texts {
            let (pieces, stopped) = held.push(Piece::of(text));
            out.push(texts_of(pieces));
            if stopped {
                return (out, true);
            }
        }
        out.push(texts_of(held.rest()));
        (out, false)
    }

    #[test]
    fn a_stop_string_over_several_pieces_is_never_shown() {
        let (out, stopped) = run(&["END", "\n\n"], &["a", "E", "", "N", "b", "cE", "ND", "x"]);
        let expected: [&[&str]; 7] = [&["a"], &[], &[], &[], &["E", "", "N", "b"], &[], &["c"]];
        assert!(stopped && out == expected, "{out:?}");
    }

    #[test]
    fn the_earliest_stop_counts_and_the_rest_is_given_at_the_end() {
        assert_eq!(run(&["bc", "b"], &["abc"]), (vec![vec!["a".to_string()]], true));
        assert_eq!(run(&["ab"], &["a"]), (vec![vec![], vec!["a".to_string()]], false));
        assert_eq!(run(&[], &["a"]), (vec![vec!["a".to_string()], vec![]], false));
        // One that ends in its own beginning, after a beginning that came to nothing.
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]).0.concat(), ["a"]);
        assert_eq!(run(&["é"], &["è", "xé"]).0.concat(), ["è", "x"]);
    }

    proptest! {
        #[test]
        fn what_is_shown_is_the_text_before_the_first_stop(
            texts in prop::collection::vec("[abé]{0,3}", 0..12),
            stops in prop::collection::vec("[abé]{1,4}", 0..3),
        ) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (out, stopped) = run(&stops, &texts);
            // The piece that completes the first stop ends the run; which of two that it completes comes first counts.
            let mut text = String::new();
            let mut end = None;
            for piece in &texts {
                text += piece;
                end = stops.iter().filter_map(|stop| text.find(stop)).min();
                if end.is_some() {
                    break;
                }
            }
            prop_assert_eq!(stopped, end.is_some());
            prop_assert_eq!(out.concat().concat(), &text[..end.unwrap_or(text.len())]);
        }
    }
}
