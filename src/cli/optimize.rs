//! `ggsteer optimize`: an edit with fewer refusals and less damage than the plain one, if there is one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use ggsteer::activations::Contrast;
use ggsteer::card::shell;
use ggsteer::direction::Direction;
use ggsteer::evaluate::Rate;
use ggsteer::evaluate::interval::Mean;
use ggsteer::evaluate::run::Options;
use ggsteer::gguf::{GgufFile, fingerprint};
use ggsteer::optimize::log::Subject;
use ggsteer::optimize::{Bench, Log, Outcome, Point, Space, Trial, pareto, propose};
use ggsteer::output::OutputFile;
use ggsteer::prompts::split::check_disjoint;
use ggsteer::report::run::Made;
use ggsteer::runtime::Model;
use serde::Serialize;

use super::args::{
    MarkerArgs, PARALLEL, PromptArgs, RunArgs, SPEC, Sets, at_least_one, describe, direction, longest,
    tokenize_both,
};
use super::evaluate::interval;
use super::ui::{Ui, percent, table};

/// Search for directions and strengths that refuse less and damage less than the plain ablation
///
/// Tries edits at run time and prints those that no other beats in both; trial 0 is the plain ablation.
/// Give validation prompts, and test prompts to see what is left of the gain on others.
///
/// Example: ggsteer optimize model.gguf --direction direction.gguf --trials 100 --log search.jsonl
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model
    model: PathBuf,
    /// The direction chosen; of several each is tried, and the first is that of the plain ablation
    #[arg(long, value_name = "DIRECTION", required = true)]
    direction: Vec<PathBuf>,
    /// Which block's direction to take from a file that holds several
    #[arg(long, value_name = "IL")]
    block: Option<usize>,
    /// Try also what `ggsteer extract` measured at every block, at the position of the first direction
    #[arg(long, value_name = "DIRS", requires = "save")]
    directions: Option<PathBuf>,
    /// Write those of them that the list names into this folder, as block-N.gguf
    #[arg(long, value_name = "FOLDER", requires = "directions")]
    save: Option<PathBuf>,
    #[command(flatten)]
    prompts: PromptArgs,
    /// Ask the edits of the list again on these, which the search has not seen
    #[arg(long, value_name = SPEC, requires = "test_harmless")]
    test_harmful: Option<String>,
    /// The ordinary ones for the same
    #[arg(long, value_name = SPEC, requires = "test_harmful")]
    test_harmless: Option<String>,
    /// Edits to try, the plain ablation included
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = at_least_one)]
    trials: usize,
    /// The most tokens of an answer
    #[arg(short = 'n', long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    max_tokens: usize,
    #[command(flatten)]
    markers: MarkerArgs,
    /// Seed of the search and of the intervals
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,
    /// Keep every trial there, a JSON object a line, and go on from those it has
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Overwrite directions in the --save folder
    #[arg(long, requires = "save")]
    force: bool,
    #[command(flatten)]
    run: RunArgs,
}

#[derive(Serialize)]
struct Output {
    #[serde(flatten)]
    made: Made,
    model: String,
    directions: Vec<String>,
    n_harmful: usize,
    n_harmless: usize,
    max_tokens: usize,
    seed: u64,
    trials: usize,
    untouched: Row,
    plain: Row,
    pareto: Vec<Row>,
    dominating: Vec<usize>,
}

#[derive(Serialize)]
struct Row {
    /// Absent for the model as it is.
    trial: Option<usize>,
    point: Option<Point>,
    direction: Option<String>,
    #[serde(flatten)]
    counts: Counts,
    /// On the test prompts.
    test: Option<Counts>,
    command: Option<String>,
}

#[derive(Serialize)]
struct Counts {
    answered: Rate,
    refused: Rate,
    broken: Rate,
    kl: Mean,
    dominates_plain: bool,
}

/// A direction with the file that it is in, or will be.
struct Candidate {
    path: PathBuf,
    measured: bool,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let sets = self.prompts.load(ui)?;
        let test = self.test_sets(ui, &sets)?;
        let markers = self.markers.load()?;
        let file = GgufFile::open(&self.model).with_context(|| self.model.display().to_string())?;
        let mut model = self.run.load(&self.model)?;
        describe(ui, &model);
        let [harmful, harmless] = tokenize_both(&model, &sets)?;
        let test = test.as_ref().map(|sets| tokenize_both(&model, sets)).transpose()?;
        let (candidates, directions) = self.candidates(&model)?;
        let options = Options { max_tokens: self.max_tokens, markers, kl_tokens: 1, seed: self.seed };
        let prompts = [&harmful, &harmless].map(|set| set.prompts.as_slice());
        let subject = Subject::new(fingerprint(&file), &directions, prompts, &options);
        let log = self.log.as_ref().map(|path| Log::open(path, &subject)).transpose()?;
        let (mut log, mut trials) = log.map_or((None, Vec::new()), |(log, trials)| (Some(log), trials));
        if !trials.is_empty() {
            ui.note(&format!("going on after {} trials", trials.len()));
        }
        trials.truncate(self.trials);

        let both = [&harmful, &harmless];
        let session = {
            let all = both.into_iter().chain(test.iter().flatten());
            let longest = longest(all).saturating_add(self.max_tokens);
            self.run.session(&model, PARALLEL, longest)?.options().clone()
        };
        let space = Space { n_directions: directions.len(), n_block: model.n_block() };
        let at = || self.model.display().to_string();
        let mut bench =
            Bench::new(&mut model, &file, &directions, both, session, options).with_context(at)?;
        let untouched = bench.untouched()?;
        let bar = ui.progress(self.trials, "trying edits");
        bar.set_position(trials.len() as u64);
        while trials.len() < self.trials {
            let point = (!trials.is_empty()).then(|| propose(space, self.seed, &trials));
            let trial = Trial { point, outcome: bench.measure_at(point.as_ref())? };
            if let Some(log) = &mut log {
                log.add(&trial)?;
            }
            trials.push(trial);
            bar.inc(1);
        }
        bar.finish_and_clear();

        let list = pareto(&trials);
        let plain = trials[0].outcome;
        let mut on_test: BTreeMap<usize, Outcome> = BTreeMap::new();
        let mut untouched_on_test = None;
        if let Some([harmful, harmless]) = &test {
            bench = bench.on([harmful, harmless])?;
            untouched_on_test = Some(bench.untouched()?);
            for &i in [0].iter().chain(&list) {
                on_test.insert(i, bench.measure_at(trials[i].point.as_ref())?);
            }
        }
        let counts_on_test = |outcome: &Outcome| Some(Counts::of(outcome, on_test.get(&0)?));
        let row = |i: usize| {
            let counts = Counts::of(&trials[i].outcome, &plain);
            let test = on_test.get(&i).and_then(counts_on_test);
            self.row(i, &trials[i], (counts, test), &bench, &file, &candidates)
        };
        let output = Output {
            made: Made::by("optimize"),
            model: at(),
            directions: candidates.iter().map(|c| c.path.display().to_string()).collect(),
            n_harmful: harmful.prompts.len(),
            n_harmless: harmless.prompts.len(),
            max_tokens: self.max_tokens,
            seed: self.seed,
            trials: trials.len(),
            untouched: Row {
                trial: None,
                point: None,
                direction: None,
                counts: Counts::of(&untouched, &plain),
                test: untouched_on_test.as_ref().and_then(counts_on_test),
                command: None,
            },
            plain: row(0),
            pareto: list.iter().map(|&i| row(i)).collect(),
            dominating: list.iter().copied().filter(|&i| trials[i].outcome.dominates(&plain)).collect(),
        };
        let named = list.iter().filter_map(|&i| Some(trials[i].point?.direction)).collect::<BTreeSet<_>>();
        for i in named.into_iter().filter(|&i| candidates[i].measured) {
            directions[i].save_to(OutputFile::create(&candidates[i].path, self.force, &self.inputs())?)?;
        }
        ui.print(&output, || output.text())
    }

    /// The directions that are tried, those given first, each with the file it is in or will be.
    fn candidates(&self, model: &Model) -> Result<(Vec<Candidate>, Vec<Direction>)> {
        let mut directions = self
            .direction
            .iter()
            .map(|path| direction(path, self.block, model))
            .collect::<Result<Vec<_>>>()?;
        let given = self.direction.iter().map(|path| Candidate { path: path.clone(), measured: false });
        let mut candidates: Vec<Candidate> = given.collect();
        if let (Some(path), Some(folder)) = (&self.directions, &self.save) {
            let measured = measured(path, &directions[0])?;
            for direction in &measured {
                let fits = direction.check_model(&model.architecture(), model.n_embd());
                fits.with_context(|| path.display().to_string())?;
            }
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            for direction in measured {
                let path = folder.join(format!("block-{}.gguf", direction.block));
                // Whether it can be written is known before the long work.
                drop(OutputFile::create(&path, self.force, &self.inputs())?);
                candidates.push(Candidate { path, measured: true });
                directions.push(direction);
            }
        }
        Ok((candidates, directions))
    }

    /// The prompts that the list is asked again on, none of which the search has seen.
    fn test_sets(&self, ui: Ui, validation: &Sets) -> Result<Option<Sets>> {
        let (Some(harmful), Some(harmless)) = (&self.test_harmful, &self.test_harmless) else {
            return Ok(None);
        };
        let hub = self.prompts.hub;
        let test = Sets { harmful: hub.load(ui, harmful)?, harmless: hub.load(ui, harmless)? };
        check_disjoint(&[
            ("harmful validation prompts", &validation.harmful),
            ("harmless validation prompts", &validation.harmless),
            ("harmful test prompts", &test.harmful),
            ("harmless test prompts", &test.harmless),
        ])?;
        Ok(Some(test))
    }

    /// What an output must not be.
    fn inputs(&self) -> Vec<&Path> {
        let inputs = self.direction.iter().chain(&self.directions).chain(&self.log);
        std::iter::once(&self.model).chain(inputs).map(PathBuf::as_path).collect()
    }

    fn row(
        &self,
        i: usize,
        trial: &Trial,
        (counts, test): (Counts, Option<Counts>),
        bench: &Bench<'_>,
        file: &GgufFile,
        candidates: &[Candidate],
    ) -> Row {
        let candidate = &candidates[trial.point.map_or(0, |point| point.direction)];
        let mut command = format!("ggsteer orthogonalize {}", shell(&self.model.display().to_string()));
        command += &format!(" --direction {}", shell(&candidate.path.display().to_string()));
        if let Some(block) = self.block.filter(|_| !candidate.measured) {
            command += &format!(" --block {block}");
        }
        match &trial.point {
            Some(point) => command += &format!(" --strength {}", point.flag(bench.writers())),
            // What the ablation of the stream does, and editing the head with the embedding does not.
            None if ggsteer::arch::tied_embeddings(file) => command += " --tied untie",
            None => (),
        }
        if let (Some(harmful), Some(harmless)) = (&self.prompts.harmful, &self.prompts.harmless) {
            command += &format!(" --harmful {} --harmless {}", shell(harmful), shell(harmless));
        }
        Row {
            trial: Some(i),
            point: trial.point,
            direction: Some(candidate.path.display().to_string()),
            command: Some(command + " -o out.gguf"),
            counts,
            test,
        }
    }
}

impl Counts {
    fn of(outcome: &Outcome, plain: &Outcome) -> Self {
        let Outcome { n, answered, refused, broken, kl } = *outcome;
        let [answered, refused, broken] = [answered, refused, broken].map(|hits| Rate::new(hits, n));
        Self { answered, refused, broken, kl, dominates_plain: outcome.dominates(plain) }
    }

    fn cells(&self, trial: Option<usize>) -> Vec<String> {
        let name = match (trial, self.dominates_plain) {
            (None, _) => "as it is",
            (Some(0), _) => "plain",
            (_, true) => "better than plain",
            _ => "",
        };
        vec![
            name.into(),
            trial.map_or(String::new(), |i| i.to_string()),
            percent(self.answered.rate),
            interval(&self.answered),
            percent(self.refused.rate),
            percent(self.broken.rate),
            format!("{:.4}", self.kl.mean),
            format!("{:.4}–{:.4}", self.kl.low, self.kl.high),
        ]
    }
}

impl Output {
    fn text(&self) -> String {
        let plain = Some(&self.plain).filter(|_| self.pareto.iter().all(|row| row.trial != Some(0)));
        let rows: Vec<&Row> = [&self.untouched].into_iter().chain(plain).chain(&self.pareto).collect();
        let header =
            ["", "trial", "answered", "95 % interval", "refused", "broken", "KL first", "95 % interval"];
        let mut text = table(&header, 1, rows.iter().map(|row| row.counts.cells(row.trial)));
        text += &match self.dominating.len() {
            0 => format!("none of {} edits tried dominates the plain one\n", self.trials - 1),
            1 => format!("1 edit dominates the plain one, of {} tried\n", self.trials - 1),
            n => format!("{n} edits listed dominate the plain one, of {} tried\n", self.trials - 1),
        };
        if self.plain.test.is_some() {
            let rows = rows.iter().filter_map(|row| Some(row.test.as_ref()?.cells(row.trial)));
            text += &format!("\nthe same on the test prompts:\n{}", table(&header, 1, rows));
        }
        for row in &self.pareto {
            if let (Some(i), Some(command)) = (row.trial, &row.command) {
                text += &format!("\ntrial {i}: {command}\n");
            }
        }
        text
    }
}

/// The direction of every block at the position of `like`, of a directions file.
fn measured(path: &Path, like: &Direction) -> Result<Vec<Direction>> {
    let contrast = Contrast::load(path)?;
    let position = like.meta.position.unwrap_or(-1);
    let (n_pos, _, _) = contrast.harmful.shape();
    ensure!(
        contrast.candidates().any(|(p, _)| p == position),
        "{}: nothing measured at position {position}, where the direction was; \
         it has positions −1 to −{n_pos}",
        path.display()
    );
    let here = contrast.candidates().filter(|(p, _)| *p == position);
    here.map(|(position, block)| Ok(contrast.direction(position, block)?)).collect()
}
