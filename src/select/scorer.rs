//! Scores from the model, in slices that a checkpoint keeps.

use std::sync::Arc;

use super::checkpoint::Checkpoint;
use super::grid::Filtered;
use super::pipeline::{Error, Watch};
use super::race::{Measure, Scores, Sheet, Wanted};
use crate::activations::Contrast;
use crate::direction::Direction;
use crate::evaluate::kl::{kl, refusal_score};
use crate::intervention::{Intervention, Positions};
use crate::runtime::{Job, Prompt, Session};

/// Batches of a slice: so much is computed again where it was interrupted.
const SLICE: usize = 8;

/// What a candidate does to the stream: its ablation and its addition.
pub(super) type Steering = [Arc<Intervention>; 2];

/// Every candidate's: ablated together with `erased`, and added to the plain model, for it must carry the behaviour by
/// itself. `None` where the difference is zero, not finite, or lies in the span of `erased`.
pub(super) fn steering(contrast: &Contrast, erased: &[Direction]) -> Vec<Option<Steering>> {
    let of = |(position, block)| {
        let raw = contrast.difference(position, block);
        let mut span: Vec<&[f32]> = erased.iter().map(|d| &d.vector[..]).collect();
        span.push(&raw);
        let ablate = Intervention::ablate(&span).ok()?;
        let add = Intervention::add(block, &raw, 1.0, Positions::All).ok()?;
        Some([Arc::new(ablate), Arc::new(add)])
    };
    contrast.candidates().map(of).collect()
}

/// One score: of this candidate, on the prompt of this index.
type Cell = (usize, Measure, usize);

pub(super) struct Scorer<'a, 'm> {
    session: &'a mut Session<'m>,
    steering: &'a [Option<Steering>],
    prompts: &'a Filtered,
    refusal_tokens: &'a [usize],
    checkpoint: &'a mut Checkpoint,
    watch: &'a mut dyn Watch,
    /// How many scores of each candidate, sheet and measure were asked for in this run.
    asked: Vec<[[usize; 3]; 2]>,
    /// Tokens of a candidate's scores on all prompts.
    whole: u64,
}

impl<'a, 'm> Scorer<'a, 'm> {
    pub(super) fn new(
        session: &'a mut Session<'m>,
        steering: &'a [Option<Steering>],
        prompts: &'a Filtered,
        refusal_tokens: &'a [usize],
        checkpoint: &'a mut Checkpoint,
        watch: &'a mut dyn Watch,
    ) -> Self {
        let mut scorer = Self {
            asked: vec![[[0; 3]; 2]; steering.len()],
            whole: 0,
            session,
            steering,
            prompts,
            refusal_tokens,
            checkpoint,
            watch,
        };
        // They cost the same for every candidate.
        let any = steering.iter().position(Option::is_some).unwrap_or(0);
        scorer.whole = (Measure::ALL.iter())
            .map(|&measure| {
                let cells: Vec<Cell> = (0..scorer.n_prompts(measure)).map(|i| (any, measure, i)).collect();
                scorer.slices(&cells).iter().map(|slice| scorer.cost(slice)).sum::<u64>()
            })
            .sum();
        scorer
    }

    /// Tokens it takes to score one candidate on all prompts.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    /// Scores a candidate on all prompts.
    pub(super) fn complete(&mut self, candidate: usize) -> Result<(), Error> {
        Measure::ALL.into_iter().try_for_each(|measure| {
            let end = self.n_prompts(measure);
            self.compute(Sheet::Full, &[Wanted { candidate, measure, end }])
        })
    }

    fn prompt(&self, measure: Measure, i: usize) -> &'a Prompt {
        if measure == Measure::Bypass { &self.prompts.harmful[i] } else { &self.prompts.harmless[i] }
    }

    fn jobs(&self, cells: &[Cell]) -> Vec<Job<'a>> {
        let job = |&(candidate, measure, i): &Cell| {
            let steering = self.steering[candidate].as_ref();
            let how = steering.map(|[ablate, add]| if measure == Measure::Induce { add } else { ablate });
            Job { tokens: &self.prompt(measure, i).tokens, n_out: 1, intervention: how.cloned() }
        };
        cells.iter().map(job).collect()
    }

    fn cost(&self, cells: &[Cell]) -> u64 {
        self.session.cost(&self.jobs(cells))
    }

    /// The cells cut where a slice has its fill: the same cells are always cut alike.
    fn slices<'c>(&self, cells: &'c [Cell]) -> Vec<&'c [Cell]> {
        let most = SLICE * self.session.options().n_batch;
        let (mut slices, mut first, mut size) = (Vec::new(), 0, 0);
        for (i, &(_, measure, prompt)) in cells.iter().enumerate() {
            let tokens = self.prompt(measure, prompt).tokens.len();
            if size + tokens > most && i > first {
                slices.push(&cells[first..i]);
                (first, size) = (i, 0);
            }
            size += tokens;
        }
        slices.push(&cells[first..]);
        slices
    }

    fn known(&self, sheet: Sheet, &(candidate, measure, i): &Cell) -> bool {
        self.checkpoint.rows[candidate][sheet as usize][measure as usize].len() > i
    }

    fn compute_slice(&mut self, sheet: Sheet, slice: &[Cell]) -> Result<(), Error> {
        if self.watch.stop() {
            self.checkpoint.save()?;
            return Err(Error::Stopped { checkpoint: self.checkpoint.path().map(Into::into) });
        }
        let jobs = self.jobs(slice);
        let (prompts, refusal_tokens, rows) = (self.prompts, self.refusal_tokens, &mut self.checkpoint.rows);
        self.session.prefill(&jobs, None, &mut |job, logits| {
            let (candidate, measure, i) = slice[job];
            let score = match measure {
                Measure::Kl => kl(&prompts.base[i], logits),
                Measure::Bypass | Measure::Induce => refusal_score(logits, refusal_tokens),
            };
            let scores = &mut rows[candidate][sheet as usize][measure as usize];
            scores.truncate(i);
            scores.push(score);
        })?;
        self.checkpoint.n_evaluated += self.session.cost(&jobs);
        self.checkpoint.save_now_and_then()?;
        Ok(())
    }
}

impl Scores for Scorer<'_, '_> {
    type Error = Error;

    fn n_prompts(&self, measure: Measure) -> usize {
        if measure == Measure::Bypass { self.prompts.harmful.len() } else { self.prompts.harmless.len() }
    }

    fn compute(&mut self, sheet: Sheet, wanted: &[Wanted]) -> Result<(), Error> {
        let mut cells: Vec<Cell> = Vec::new();
        for &Wanted { candidate, measure, end } in wanted {
            let asked = &mut self.asked[candidate][sheet as usize][measure as usize];
            cells.extend((*asked..end).map(|i| (candidate, measure, i)));
            *asked = end.max(*asked);
        }
        for slice in self.slices(&cells) {
            if !slice.iter().all(|cell| self.known(sheet, cell)) {
                self.compute_slice(sheet, slice)?;
                self.watch.advance(self.checkpoint.n_evaluated);
            }
        }
        Ok(())
    }

    fn get(&self, sheet: Sheet, candidate: usize, measure: Measure) -> &[f64] {
        let asked = self.asked[candidate][sheet as usize][measure as usize];
        &self.checkpoint.rows[candidate][sheet as usize][measure as usize][..asked]
    }

    fn left(&mut self, alive: &[usize]) {
        // Enough if none of them were dropped any more: it can only become less.
        let open = alive.iter().filter(|&&c| {
            Measure::ALL.iter().any(|&m| self.asked[c][Sheet::Full as usize][m as usize] < self.n_prompts(m))
        });
        let open = open.count() as u64;
        self.watch.expect(self.checkpoint.n_evaluated + open * self.whole);
    }
}
