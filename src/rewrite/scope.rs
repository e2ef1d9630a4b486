//! Which writers an edit reaches, and how much of it each of them gets.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::arch::{Writer, WriterKind};

/// What keeps a scope from being understood, or from fitting a model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScopeError {
    /// Not a list of block numbers.
    #[error("blocks {text:?}: expected numbers and ranges, such as 4-20,24")]
    Blocks {
        /// What was given.
        text: String,
    },
    /// Not a list of groups.
    #[error("writers {text:?}: expected some of {}, with commas", WriterKind::GROUPS.join(", "))]
    Groups {
        /// What was given.
        text: String,
    },
    /// Not a number, nor numbers for blocks.
    #[error(
        "strength {text:?}: expected a number from 0 to 2, or one for each range of blocks, such as \
         0-9=0.5,10-20=1, or of the writers of a group there, such as ffn:10-20=1"
    )]
    Strength {
        /// What was given.
        text: String,
    },
    /// A block that the model does not have.
    #[error("block {block} is out of range: the model has blocks 0 to {}", n_block.saturating_sub(1))]
    Block {
        /// The block asked for.
        block: usize,
        /// Blocks of the model.
        n_block: usize,
    },
    /// No writer is in the scope.
    #[error("nothing is left to edit: none of the {n_writers} writers is among those chosen")]
    Nothing {
        /// Writers of the model that could be edited.
        n_writers: usize,
    },
}

/// Blocks by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks(Vec<RangeInclusive<usize>>);

impl FromStr for Blocks {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(Self).ok_or_else(|| ScopeError::Blocks { text: text.into() })
    }
}

/// `4-20` or `24`.
fn range(text: &str) -> Option<RangeInclusive<usize>> {
    let (from, to) = text.split_once('-').unwrap_or((text, text));
    let (from, to) = (from.trim().parse().ok()?, to.trim().parse().ok()?);
    (from <= to).then_some(from..=to)
}

fn group(name: &str) -> Option<&'static str> {
    WriterKind::GROUPS.into_iter().find(|group| *group == name.trim())
}

/// Groups of writers, of [`WriterKind::GROUPS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Groups(Vec<&'static str>);

impl FromStr for Groups {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let groups: Option<Vec<_>> = text.split(',').map(group).collect();
        groups.map(Self).ok_or_else(|| ScopeError::Groups { text: text.into() })
    }
}

/// The s of W' = W − s·R(RᵀW), block by block, and group by group where that is wanted: 0 leaves a writer as it
/// is, 1 takes the directions out, 2 turns what it writes along them around.
#[derive(Debug, Clone, PartialEq)]
pub struct Strength {
    elsewhere: f64,
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq)]
struct Piece {
    /// Of [`WriterKind::GROUPS`]; `None` for all.
    group: Option<&'static str>,
    blocks: RangeInclusive<usize>,
    strength: f64,
}

impl Default for Strength {
    fn default() -> Self {
        Self { elsewhere: 1.0, pieces: Vec::new() }
    }
}

impl Strength {
    /// That of a writer: the last piece that names its block (and its group, if it names one), or else the
    /// number without blocks, which is 1 where none was given.
    #[must_use]
    pub fn of(&self, writer: &Writer) -> f64 {
        let names = |piece: &&Piece| {
            writer.block.is_some_and(|il| piece.blocks.contains(&il))
                && piece.group.is_none_or(|group| group == writer.kind.group())
        };
        self.pieces.iter().rfind(names).map_or(self.elsewhere, |piece| piece.strength)
    }
}

impl FromStr for Strength {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let wrong = || ScopeError::Strength { text: text.into() };
        let number = |s: &str| s.trim().parse().ok().filter(|s| (0.0..=2.0).contains(s)).ok_or_else(wrong);
        let mut strength = Self::default();
        for piece in text.split(',') {
            match piece.split_once('=') {
                None => strength.elsewhere = number(piece)?,
                Some((place, s)) => {
                    let (group, blocks) = match place.split_once(':') {
                        None => (None, place),
                        Some((name, blocks)) => (Some(group(name).ok_or_else(wrong)?), blocks),
                    };
                    let blocks = range(blocks).ok_or_else(wrong)?;
                    strength.pieces.push(Piece { group, blocks, strength: number(s)? });
                }
            }
        }
        Ok(strength)
    }
}

/// Which writers are edited: all of them by default, and all of each.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scope {
    /// Writers of these blocks; those that belong to no block (the embeddings) are then left out.
    pub blocks: Option<Blocks>,
    /// Writers of these groups.
    pub groups: Option<Groups>,
    /// How much of the edit they get.
    pub strength: Strength,
}

impl Scope {
    /// Checks that every block named is one of the model's.
    pub(super) fn check(&self, n_block: usize) -> Result<(), ScopeError> {
        let blocks = self.blocks.iter().flat_map(|blocks| &blocks.0);
        let mut all = blocks.chain(self.strength.pieces.iter().map(|piece| &piece.blocks));
        match all.find(|blocks| *blocks.end() >= n_block) {
            Some(blocks) => Err(ScopeError::Block { block: *blocks.end(), n_block }),
            None => Ok(()),
        }
    }

    /// How much of the edit a writer gets: 0 where it is not in the scope.
    #[must_use]
    pub fn strength(&self, writer: &Writer) -> f64 {
        let in_block = |il: usize, blocks: &Blocks| blocks.0.iter().any(|range| range.contains(&il));
        let block = self.blocks.as_ref().is_none_or(|b| writer.block.is_some_and(|il| in_block(il, b)));
        let group = self.groups.as_ref().is_none_or(|groups| groups.0.contains(&writer.kind.group()));
        if block && group { self.strength.of(writer) } else { 0.0 }
    }
}

impl fmt::Display for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = |range: &RangeInclusive<usize>| match (range.start(), range.end()) {
            (from, to) if from == to => from.to_string(),
            (from, to) => format!("{from}-{to}"),
        };
        f.write_str(&self.0.iter().map(one).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_choose_by_block_and_by_group() {
        let all = Scope::default();
        let embedding = Writer::matrix("t", None, WriterKind::TokenEmbedding);
        let attention = |il| Writer::matrix("t", Some(il), WriterKind::AttentionOutput);
        let down = |il| Writer::matrix("t", Some(il), WriterKind::FfnDown);
        assert_eq!((all.strength(&embedding), all.strength(&attention(7))), (1.0, 1.0));

        let scope = Scope { blocks: Some("2-4, 6".parse().unwrap()), ..Scope::default() };
        let of = |il| scope.strength(&attention(il));
        assert_eq!([1, 2, 4, 5, 6, 7].map(of), [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]);
        assert_eq!(scope.strength(&embedding), 0.0, "it belongs to no block");
        assert_eq!(scope.blocks.as_ref().unwrap().to_string(), "2-4,6");
        scope.check(7).unwrap();
        assert_eq!(scope.check(6), Err(ScopeError::Block { block: 6, n_block: 6 }));

        let groups = Some("ffn,embedding".parse().unwrap());
        let strength = "0.25,1-2=0.5,2=2".parse().unwrap();
        let scope = Scope { groups, strength, ..Scope::default() };
        let of = |il| scope.strength(&down(il));
        assert_eq!([0, 1, 2, 3].map(of), [0.25, 0.5, 2.0, 0.25]);
        assert_eq!((scope.strength(&embedding), scope.strength(&attention(1))), (0.25, 0.0));
        assert!(scope.check(2).is_err(), "pieces name blocks too");

        let strength = "0,attention:0-1=0.5,ffn:1=0.75".parse().unwrap();
        let scope = Scope { strength, ..Scope::default() };
        let of = |il| (scope.strength(&attention(il)), scope.strength(&down(il)));
        assert_eq!([0, 1, 2].map(of), [(0.5, 0.0), (0.5, 0.75), (0.0, 0.0)]);
        assert_eq!(scope.strength(&embedding), 0.0);
    }

    #[test]
    fn what_is_no_scope_is_told_with_an_example() {
        for text in ["", "4-", "-4", "9-4", "a", "1,,2", "1.5"] {
            let error = text.parse::<Blocks>().unwrap_err().to_string();
            assert!(error.contains("4-20,24"), "{error}");
        }
        for text in ["", "heads", "ffn,", "FFN"] {
            let error = text.parse::<Groups>().unwrap_err().to_string();
            assert!(error.contains("embedding, attention, ffn, experts, ssm, bias"), "{error}");
        }
        for text in
            ["", "-0.1", "2.1", "NaN", "inf", "1=", "=1", "3-1=1", "1-2=x", "heads:1=1", "ffn=1", "ffn:=1"]
        {
            assert!(text.parse::<Strength>().is_err(), "{text}");
        }
    }
}
