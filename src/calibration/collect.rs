//! Collecting: the model runs the prompts, and the inputs of its writers are sampled on the way.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use half::bf16;

use super::sample::{Reservoir, Store, WIDTH, key, name_hash};
use super::{Calibration, CalibrationError, Inputs, Origin, Slice, Target};
use crate::intervention::Intervention;
use crate::runtime::sampling::Sampler;
use crate::runtime::{CapturePlan, GenerateOptions, Job, Prompt, Session, Site, Token, jobs};

/// How much is collected.
#[derive(Debug, Clone)]
pub struct Options {
    /// Rows to fit on, of each tensor or expert; [`default_rows`] by default. A quarter as many are held out.
    pub rows: Option<usize>,
    /// Which rows the sample takes.
    pub seed: u64,
    /// Tokens of the model's own (greedy) answers that are run after each prompt. A behaviour is measured over answers,
    /// and a file that is right on the prompt alone can be wrong there.
    pub generated: usize,
    /// Bytes of sampled rows held in memory; more go to an unnamed temporary file.
    pub memory: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { rows: None, seed: 0, generated: 0, memory: 256 << 20 }
    }
}

/// Rows to fit on where nothing else is asked for: 4096 up to 1024 wide, where the second moment has no more elements
/// however many rows it is of; of wider tensors a million elements, at least 256 rows. The experts of one tensor share
/// eight times as much, at least 128 rows each.
#[must_use]
pub fn default_rows(target: &Target) -> usize {
    let rows = if target.n_in <= 1024 { 4096 } else { ((1 << 20) / target.n_in).max(256) };
    (8 * rows / target.n_slices.max(1)).max(128).min(rows)
}

/// Runs both sets (\[harmful, harmless\]) through the model, under `intervention` where there is one, and samples the
/// inputs of `targets`. With [`Options::generated`] the session must have room for that many tokens after each prompt;
/// an answer is run again behind its prompt, and counts as part of it for [`crate::intervention::Positions`].
///
/// Every fifth prompt of a set is held out. `step` is called for each prompt, and once more for each answer.
///
/// # Errors
/// As [`Session::generate`], activations that are not numbers, a temporary file that cannot be written.
pub fn collect(
    session: &mut Session<'_>,
    sets: [&[Prompt]; 2],
    targets: &[Target],
    intervention: Option<&Arc<Intervention>>,
    options: &Options,
    origin: Origin,
    step: &mut dyn FnMut(),
) -> Result<Calibration, CalibrationError> {
    let seen = outputs(session.model().n_vocab());
    let prompts: Vec<&Prompt> = sets.into_iter().flatten().collect();
    let mut sequences: Vec<Vec<Token>> = prompts.iter().map(|p| p.tokens.clone()).collect();
    if options.generated > 0 {
        let jobs = jobs(prompts.iter().copied(), intervention);
        let generate = GenerateOptions { max_tokens: options.generated, sampler: Sampler::greedy() };
        let answers = session.generate(&jobs, &generate, &mut |_, _| (), &mut |_, _| step())?;
        sequences.iter_mut().zip(answers).for_each(|(tokens, answer)| tokens.extend(answer.tokens));
    }
    let (first, second) = sequences.split_at(sets[0].len());
    let mut collector = Collector::new(targets, [first, second], options);
    let jobs: Vec<Job<'_>> = (sequences.iter().zip(&prompts))
        .map(|(tokens, prompt)| {
            let from_prompt_end = tokens.len() + 1 - prompt.tokens.len();
            Job {
                tokens,
                n_out: seen(tokens.len()).max(from_prompt_end),
                intervention: intervention.cloned(),
            }
        })
        .collect();
    let plan = collector.plan();
    let mut sink = |job: usize, position: i32, site: Site<'_>, row: &[f32]| {
        collector.add(job, position, site, row);
    };
    session.prefill(&jobs, Some((&plan, &mut sink)), &mut |_, _| step())?;
    collector.finish(Origin { seed: options.seed, generated: options.generated, ..origin })
}

/// How many tokens at the end of a prompt have their logits computed, so that the last block's writers are seen there:
/// all of them with a small vocabulary, fewer where logits would cost a good part of the run and of its memory. What
/// the last block writes at earlier tokens reaches no logits that anyone wants.
pub(crate) fn outputs(n_vocab: usize) -> impl Fn(usize) -> usize {
    const ALL: usize = 1 << 14;
    move |n_tokens| (n_tokens * ALL).div_ceil(n_vocab.max(ALL)).max(1)
}

/// Where the held-out rows of a sequence start: those before are shared with a fitted sequence, and would measure
/// nothing. `None` for a fitted one.
type HeldOut = Option<usize>;

/// Samples rows as they come.
pub struct Collector<'a> {
    targets: &'a [Target],
    index: HashMap<&'a str, usize>,
    /// Per sequence, with its length.
    sequences: Vec<(usize, HeldOut)>,
    /// Per target and slice.
    slices: Vec<Vec<Sampling>>,
    seed: u64,
    store: Store,
    end: u64,
    bytes: Vec<u8>,
    error: Option<CalibrationError>,
}

/// One slice's samples and moments so far.
struct Sampling {
    salt: u64,
    fit: Reservoir,
    held_out: Reservoir,
    squares: Vec<f64>,
    count: u64,
}

impl<'a> Collector<'a> {
    /// A collector for the sequences of two sets, in the order in which they will be run.
    #[must_use]
    pub fn new<S: AsRef<[Token]>>(targets: &'a [Target], sets: [&[S]; 2], options: &Options) -> Self {
        let slices = targets.iter().map(|target| {
            let rows = options.rows.unwrap_or_else(|| default_rows(target));
            let sampling = |slice: usize| Sampling {
                salt: key(&[options.seed, name_hash(&target.tensor), slice as u64]),
                fit: Reservoir::new(rows),
                held_out: Reservoir::new(rows.div_ceil(4)),
                squares: vec![0.0; target.n_in],
                count: 0,
            };
            (0..target.n_slices).map(sampling).collect()
        });
        Self {
            targets,
            index: targets.iter().enumerate().map(|(i, t)| (t.tensor.as_str(), i)).collect(),
            sequences: split(sets),
            slices: slices.collect(),
            seed: options.seed,
            store: Store::spool(options.memory),
            end: 0,
            bytes: Vec::new(),
            error: None,
        }
    }

    /// What a session must capture.
    #[must_use]
    pub fn plan(&self) -> CapturePlan {
        let writer_inputs = self.targets.iter().map(|t| t.tensor.clone()).collect();
        CapturePlan { writer_inputs, ..CapturePlan::default() }
    }

    /// Takes a row of sequence `job` at `position` (−1 is its last token), as a [`crate::runtime::JobSink`] gets it;
    /// what is no target's input is passed over.
    pub fn add(&mut self, job: usize, position: i32, site: Site<'_>, row: &[f32]) {
        let (name, slice) = match site {
            Site::WriterInput(name) => (name, 0),
            Site::ExpertInput(name, expert) => (name, expert),
            Site::Block(_) | Site::Probe(_) => return,
        };
        if self.error.is_some() {
            return;
        }
        let Some(&target) = self.index.get(name) else { return };
        if let Err(error) = self.take(target, slice, job, position, row) {
            self.error = Some(error);
        }
    }

    fn take(
        &mut self,
        target: usize,
        slice: usize,
        job: usize,
        position: i32,
        row: &[f32],
    ) -> Result<(), CalibrationError> {
        let Target { tensor, n_in, .. } = &self.targets[target];
        let found = self.slices[target].get_mut(slice).filter(|s| s.squares.len() == row.len());
        let sampling = found.ok_or_else(|| CalibrationError::Row {
            tensor: tensor.clone(),
            found: row.len(),
            slice,
            n_in: *n_in,
            n_slices: self.targets[target].n_slices,
        })?;
        let (n_tokens, held_out) = self.sequences[job];
        let token = (n_tokens as i64 + i64::from(position)) as usize;
        if !row.iter().all(|x| x.abs() <= bf16::MAX.to_f32()) {
            return Err(CalibrationError::NotFinite { tensor: tensor.clone(), prompt: job, token });
        }
        let reservoir = match held_out {
            None => {
                sampling.count += 1;
                sampling.squares.iter_mut().zip(row).for_each(|(s, &x)| *s += f64::from(x) * f64::from(x));
                &mut sampling.fit
            }
            Some(from) if token < from => return Ok(()),
            Some(_) => &mut sampling.held_out,
        };
        let key = key(&[sampling.salt, job as u64, token as u64]);
        if let Some(at) = reservoir.place(key, self.end) {
            self.bytes.clear();
            self.bytes.extend(row.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()));
            self.store.write(at, &self.bytes)?;
            self.end = self.end.max(at + (n_in * WIDTH) as u64);
        }
        Ok(())
    }

    /// The calibration, once every sequence was run.
    ///
    /// # Errors
    /// The first thing that went wrong in [`Collector::add`].
    pub fn finish(self, origin: Origin) -> Result<Calibration, CalibrationError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let store = Arc::new(Mutex::new(self.store));
        let inputs = self.targets.iter().zip(self.slices).map(|(target, slices)| {
            let slices = slices.into_iter().map(|s| Slice {
                fit: s.fit.offsets(),
                held_out: s.held_out.offsets(),
                mean_square: s.squares.iter().map(|q| (q / s.count.max(1) as f64) as f32).collect(),
                count: s.count,
            });
            let slices = slices.collect();
            let inputs = Inputs { n_in: target.n_in, slices, store: Arc::clone(&store) };
            (target.tensor.clone(), inputs)
        });
        let inputs = inputs.collect();
        Ok(Calibration { inputs, origin: Origin { seed: self.seed, ..origin } })
    }
}

/// Holds out every fifth sequence of each set (the last one of a set of two to four), and of those only what comes
/// after the longest beginning they share with a fitted sequence.
fn split<S: AsRef<[Token]>>(sets: [&[S]; 2]) -> Vec<(usize, HeldOut)> {
    let ids = |s: &S| -> Vec<i32> { s.as_ref().iter().map(|t| t.0).collect() };
    let held_out = |set: &[S], i: usize| i % 5 == 4 || (set.len() < 5 && i > 0 && i + 1 == set.len());
    let all: Vec<(Vec<i32>, bool)> = sets
        .into_iter()
        .flat_map(|set| set.iter().enumerate().map(move |(i, s)| (ids(s), held_out(set, i))))
        .collect();
    let fitted: BTreeSet<&[i32]> = all.iter().filter(|(_, held)| !held).map(|(s, _)| s.as_slice()).collect();
    // In the order of a dictionary, the longest shared beginning is with a neighbour.
    let shared = |s: &[i32]| {
        let neighbours = fitted.range(..=s).next_back().into_iter().chain(fitted.range(s..).next());
        neighbours.map(|n| n.iter().zip(s).take_while(|(a, b)| a == b).count()).max().unwrap_or(0)
    };
    all.iter().map(|(s, held)| (s.len(), held.then(|| shared(s)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[i32]) -> Vec<Token> {
        ids.iter().map(|&id| Token(id)).collect()
    }

    #[test]
    fn held_out_rows_start_where_no_fitted_prompt_goes() {
        let set = |ids: &[&[i32]]| ids.iter().map(|s| tokens(s)).collect::<Vec<_>>();
        let a = set(&[&[1, 2, 3], &[1, 2, 4, 9], &[1, 5], &[1, 7], &[1, 2, 4, 8, 8], &[1, 6]]);
        let b = set(&[&[1, 3], &[1, 3]]);
        let parts: Vec<HeldOut> = split([&a, &b]).into_iter().map(|(_, from)| from).collect();
        let fit: HeldOut = None;
        assert_eq!(
            parts,
            [fit, fit, fit, fit, Some(3), fit, fit, Some(2)],
            "a repeated prompt measures nothing"
        );
        assert_eq!(split([&b[..1], &b[..0]]), [(2, None)], "one prompt alone is fitted on");
    }

    #[test]
    fn outputs_are_all_tokens_but_with_large_vocabularies() {
        assert_eq!([1, 40, 512].map(outputs(16_384)), [1, 40, 512]);
        assert_eq!([1, 40, 512].map(outputs(131_072)), [1, 5, 64]);
    }

    #[test]
    fn moments_are_over_all_fitted_rows_and_samples_are_bounded() {
        let targets = [Target { tensor: "w".into(), n_in: 2, n_slices: 2 }];
        let sequences: Vec<Vec<Token>> = (0..10).map(|i| tokens(&[i, 1, 2, 3])).collect();
        let options = Options { rows: Some(8), ..Options::default() };
        let mut collector = Collector::new(&targets, [&sequences, &[]], &options);
        for job in 0..10 {
            for position in -4..0 {
                collector.add(job, position, Site::ExpertInput("w", 1), &[1.0, job as f32]);
                collector.add(job, position, Site::WriterInput("other"), &[0.0]);
                collector.add(job, position, Site::Block(0), &[0.0]);
            }
        }
        let calibration = collector.finish(Origin::default()).unwrap();
        let inputs = calibration.inputs("w").unwrap();
        assert_eq!((inputs.count(0), inputs.n_fit(0), inputs.mean_square(0)), (0, 0, &[0.0, 0.0][..]));
        // Prompts 4 and 9 are held out.
        let squares: f32 = [0, 1, 2, 3, 5, 6, 7, 8].map(|i| (i * i) as f32).iter().sum::<f32>() / 8.0;
        assert_eq!((inputs.count(1), inputs.mean_square(1)), (32, &[1.0, squares][..]));
        let (fit, held_out) = (inputs.fit(1).unwrap(), inputs.held_out(1).unwrap());
        assert_eq!((fit.len(), held_out.len()), (16, 4));
        assert!(held_out.chunks(2).all(|row| row[1] == 4.0 || row[1] == 9.0));
        assert!(fit.chunks(2).all(|row| row[0] == 1.0 && row[1] != 4.0 && row[1] != 9.0));
    }

    #[test]
    fn rows_that_are_no_numbers_or_of_another_width_name_the_tensor() {
        let targets = [Target { tensor: "w".into(), n_in: 2, n_slices: 1 }];
        let sequences = [tokens(&[1, 2])];
        let error = |site: Site<'_>, row: &[f32]| {
            let mut collector = Collector::new(&targets, [&sequences, &[]], &Options::default());
            collector.add(0, -1, site, row);
            collector.finish(Origin::default()).unwrap_err().to_string()
        };
        assert_eq!(
            error(Site::WriterInput("w"), &[1.0, f32::NAN]),
            "input of \"w\" at token 1 of prompt 0: not a number, or too large; the model's weights are broken"
        );
        assert_eq!(
            error(Site::WriterInput("w"), &[1.0]),
            "input of \"w\": 1 elements for slice 0, expected 2 for one of 1 slices"
        );
        assert!(error(Site::ExpertInput("w", 3), &[1.0, 2.0]).contains("slice 3"));
    }
}
