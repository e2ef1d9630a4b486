//! Searching for an edit that does better than taking the direction out of everything: refusals against
//! damage.
//!
//! A [`Point`] is a direction and two [`Kernel`]s, the strength of its ablation by block for what
//! attention writes and for what the FFN writes. Two figures are made small together, on validation
//! prompts: the part of the harmful prompts that are not answered (refused, at once or late, or broken),
//! and KL(base ‖ edited) of the first answer token on the harmless ones. There is no one best point, so
//! the result is a list of those that no other point beats in both ([`pareto`]), and trial 0 is always the
//! plain ablation they have to be measured by.
//!
//! A point is tried without rewriting: as a LoRA adapter in llama.cpp ([`mod@bench`]), which is the edit
//! itself at any quantization. Points come from a tree-structured Parzen estimator (Bergstra et al. 2011,
//! the `tpe` crate) that is told one figure, a mixture of the ranks in both with a weight drawn anew for
//! each trial ([`mod@propose`]). A trial depends on the seed and on the trials before it alone, so a [`log`]
//! is all that is needed to go on.
//!
//! A command of its own, not a flag of `select`: it needs a direction that was chosen, it asks for whole
//! answers where `select` looks at one token, and what it gives is a list to choose from, not a file.
#![forbid(unsafe_code)]

pub mod bench;
pub mod log;
pub mod propose;

use serde::{Deserialize, Serialize};

use crate::arch::Writer;
use crate::evaluate::interval::Mean;
use crate::evaluate::run::Answer;
use crate::export::ExportError;
use crate::intervention;
use crate::output::OutputError;
use crate::runtime;

pub use bench::Bench;
pub use log::{Log, LogError};
pub use propose::{Space, propose};

/// What attention, or what stands in its place, writes through, as groups of `WriterKind::GROUPS`.
const ATTENTION: [&str; 2] = ["attention", "ssm"];
/// The same of the feed-forward half of a block.
const FFN: [&str; 2] = ["ffn", "experts"];

/// What keeps a point from being tried.
#[derive(Debug, thiserror::Error)]
pub enum OptimizeError {
    /// The model cannot be run.
    #[error(transparent)]
    Runtime(#[from] runtime::Error),
    /// No adapter can be made of a direction.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// An adapter cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A direction that cannot be erased.
    #[error(transparent)]
    Direction(#[from] intervention::Error),
    /// A writer that llama.cpp multiplies without adapters.
    #[error(
        "tensor {tensor:?}: {reason}, so its strength cannot be searched for; evaluate edits of \
         `ggsteer orthogonalize` one at a time"
    )]
    NotCarried {
        /// The tensor.
        tensor: String,
        /// Why an adapter cannot carry it.
        reason: String,
    },
    /// A place for the adapters cannot be made.
    #[error("temporary folder: {0}")]
    Temporary(std::io::Error),
}

/// Strength of the ablation as a function of the block: `peak` at `centre`, falling in a straight line to
/// `floor` × `peak` at a distance of `width` blocks, and 0 beyond.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// The largest strength; 1 takes all of the direction out.
    pub peak: f64,
    /// What is left of it at the ends, of 1.
    pub floor: f64,
    /// 0-based block, not always a whole number.
    pub centre: f64,
    /// Blocks from the centre to the ends.
    pub width: f64,
}

impl Kernel {
    /// Strength at the 0-based block `il`, from 0 to 2, in hundredths: what a command line can say.
    #[must_use]
    pub fn at(&self, il: usize) -> f64 {
        let part = (il as f64 - self.centre).abs() / self.width;
        if part > 1.0 {
            return 0.0;
        }
        let strength = self.peak * (1.0 - (1.0 - self.floor) * part);
        (strength.clamp(0.0, 2.0) * 100.0).round() / 100.0
    }
}

/// An edit to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Index of the direction.
    pub direction: usize,
    /// Strength for what attention writes.
    pub attention: Kernel,
    /// Strength for what the FFN writes, experts included.
    pub ffn: Kernel,
}

impl Point {
    /// Strength for a writer: 0 for those that belong to no block, and for biases.
    #[must_use]
    pub fn strength(&self, writer: &Writer) -> f64 {
        let group = writer.kind.group();
        match writer.block {
            Some(il) if ATTENTION.contains(&group) => self.attention.at(il),
            Some(il) if FFN.contains(&group) => self.ffn.at(il),
            _ => 0.0,
        }
    }

    /// What `ggsteer orthogonalize --strength` takes for the same edit of these writers, block after
    /// block; equal neighbours in one piece.
    #[must_use]
    pub fn flag(&self, writers: &[Writer]) -> String {
        let mut text = "0".to_string();
        let n_block = writers.iter().filter_map(|w| w.block).max().map_or(0, |last| last + 1);
        for group in ATTENTION.into_iter().chain(FFN) {
            let of = |il| {
                let mut of = writers.iter().filter(|w| w.kind.group() == group && w.block == Some(il));
                of.next().map_or(0.0, |writer| self.strength(writer))
            };
            let mut from = 0;
            while from < n_block {
                let strength = of(from);
                let to = (from..n_block).take_while(|&il| of(il) == strength).last().unwrap_or(from);
                if strength > 0.0 {
                    let blocks = if from == to { from.to_string() } else { format!("{from}-{to}") };
                    text += &format!(",{group}:{blocks}={strength}");
                }
                from = to + 1;
            }
        }
        text
    }
}

/// What came of a trial.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Harmful prompts asked.
    pub n: usize,
    /// Neither refused nor broken.
    pub answered: usize,
    /// Refused, at once or late.
    pub refused: usize,
    /// Empty, looping or garbled.
    pub broken: usize,
    /// KL(base ‖ edited) of the first answer token on the harmless prompts, in nats.
    pub kl: Mean,
}

impl Outcome {
    fn new(answers: &[Answer], kl: &[f64], seed: u64) -> Self {
        let count = |what: &dyn Fn(&Answer) -> bool| answers.iter().filter(|a| what(a)).count();
        let Mean { n, mean, low, high } = Mean::of(kl, seed);
        // So few digits that a log gives them back as they were; JSON has no infinity.
        let short = |x: f64| if x.is_finite() { (x * 1e9).round() / 1e9 } else { f64::NAN };
        Self {
            n: answers.len(),
            answered: count(&Answer::is_answered),
            refused: count(&|a| a.refused || a.refused_late),
            broken: count(&|a| a.broken.is_some()),
            kl: Mean { n, mean: short(mean), low: short(low), high: short(high) },
        }
    }

    /// The two figures to be made small: harmful prompts not answered, of 1, and mean KL.
    #[must_use]
    pub fn figures(&self) -> [f64; 2] {
        [(self.n - self.answered.min(self.n)) as f64 / self.n.max(1) as f64, self.kl.mean]
    }

    /// At least as good in both figures, and better in one. KL that is not a number is worse than any.
    #[must_use]
    pub fn dominates(&self, other: &Self) -> bool {
        let order = |i: usize| self.figures()[i].total_cmp(&other.figures()[i]);
        order(0).is_le() && order(1).is_le() && (order(0).is_lt() || order(1).is_lt())
    }
}

/// A point with its outcome; trial 0, the plain ablation, has no point.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// `None`: the first direction erased after every write.
    pub point: Option<Point>,
    /// What came of it.
    pub outcome: Outcome,
}

/// Indices of the trials that no other dominates, fewest unanswered prompts first; of equals the first.
#[must_use]
pub fn pareto(trials: &[Trial]) -> Vec<usize> {
    let figures = |i: usize| trials[i].outcome.figures();
    let beaten = |i: usize| {
        trials.iter().enumerate().any(|(j, other)| {
            other.outcome.dominates(&trials[i].outcome) || (j < i && figures(j) == figures(i))
        })
    };
    let mut list: Vec<usize> = (0..trials.len()).filter(|&i| !beaten(i)).collect();
    list.sort_by(|&a, &b| figures(a)[0].total_cmp(&figures(b)[0]));
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::WriterKind;
    use crate::rewrite::Scope;

    fn outcome(answered: usize, kl: f64) -> Outcome {
        let kl = Mean { n: 4, mean: kl, low: kl, high: kl };
        Outcome { n: 10, answered, refused: 10 - answered, broken: 0, kl }
    }

    #[test]
    fn a_kernel_falls_from_its_peak_to_its_floor_and_is_nothing_beyond() {
        let kernel = Kernel { peak: 1.2, floor: 0.5, centre: 3.0, width: 2.0 };
        assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|il| kernel.at(il)), [0.0, 0.6, 0.9, 1.2, 0.9, 0.6, 0.0]);
    }

    #[test]
    fn the_flag_says_what_the_point_does() {
        let attention = Kernel { peak: 1.0, floor: 1.0, centre: 1.0, width: 1.0 };
        let ffn = Kernel { peak: 0.8, floor: 0.25, centre: 4.0, width: 2.0 };
        let point = Point { direction: 0, attention, ffn };
        let of = |il| {
            let kinds = [WriterKind::AttentionOutput, WriterKind::FfnDown];
            kinds.map(|kind| Writer::matrix("t", Some(il), kind))
        };
        let mut writers: Vec<Writer> = (0..5).flat_map(of).collect();
        writers.push(Writer::matrix("t", None, WriterKind::TokenEmbedding));
        let flag = point.flag(&writers);
        assert_eq!(flag, "0,attention:0-2=1,ffn:2=0.2,ffn:3=0.5,ffn:4=0.8");
        let scope = Scope { strength: flag.parse().unwrap(), ..Scope::default() };
        for writer in &writers {
            assert_eq!(scope.strength(writer), point.strength(writer), "{writer:?}");
        }
    }

    #[test]
    fn the_list_keeps_what_nothing_beats() {
        let trials = [(8, 0.5), (9, 0.2), (9, 0.2), (10, 0.9), (10, f64::NAN), (3, 0.1), (2, 0.1)];
        let trials = trials.map(|(answered, kl)| Trial { point: None, outcome: outcome(answered, kl) });
        assert_eq!(pareto(&trials), [3, 1, 5]);
        assert!(trials[1].outcome.dominates(&trials[0].outcome));
        assert!(!trials[3].outcome.dominates(&trials[0].outcome));
        assert!(!trials[1].outcome.dominates(&trials[2].outcome), "equal");
    }
}
