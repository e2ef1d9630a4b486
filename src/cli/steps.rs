//! The steps of the pipeline with their progress, as several subcommands take them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ggsteer::activations::{Contrast, measure as measure_set, shared_positions};
use ggsteer::analysis::{self, Analysis, Rows};
use ggsteer::calibration::Collector;
use ggsteer::direction::{Direction, Provenance};
use ggsteer::evaluate::Markers;
use ggsteer::evaluate::run::Set;
use ggsteer::gguf::{GgufFile, fingerprint};
use ggsteer::intervention::Intervention;
use ggsteer::output::OutputFile;
use ggsteer::runtime::{Model, Prompt};
use ggsteer::select::grid::RefusalTokens;
use ggsteer::select::race::Race;
use ggsteer::select::subspace::{self, Growth, Subspace};
use ggsteer::select::{self, Checkpoint, Choice, Request, Rules, Verdict, Watch};
use indicatif::ProgressBar;

use super::args::{PARALLEL, RunArgs, Sets, at_least_one, longest};
use super::interrupt::Interrupt;
use super::ui::{Ui, table, warn};

/// Where directions measured on `model` with `sets` come from.
pub fn source(model: &Model, sets: &Sets) -> Result<Provenance> {
    let file = GgufFile::open(model.path()).with_context(|| model.path().display().to_string())?;
    Ok(Provenance {
        architecture: Some(model.architecture()),
        model_fingerprint: Some(fingerprint(&file)),
        model_name: model.meta("general.name"),
        prompts_harmful_sha256: Some(sets.harmful.sha256.clone()),
        prompts_harmless_sha256: Some(sets.harmless.sha256.clone()),
        n_harmful: u32::try_from(sets.harmful.len()).ok(),
        n_harmless: u32::try_from(sets.harmless.len()).ok(),
        ..Provenance::default()
    })
}

/// Means over both sets, at every position that all prompts share; with a collector also samples of the writers' inputs.
pub fn measure(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    [harmful, harmless]: [&Set; 2],
    source: Provenance,
    mut collector: Option<&mut Collector<'_>>,
) -> Result<Contrast> {
    let n_pos = shared_positions(harmful.prompts.iter().chain(&harmless.prompts));
    let mut session = run.session(model, PARALLEL, longest([harmful, harmless]))?;
    let bar = ui.tokens("measuring activations");
    bar.set_length([harmful, harmless].iter().flat_map(|set| &set.prompts).map(n_tokens).sum());
    let mut first = 0;
    let mut measure = |set: &Set| {
        let collector = collector.as_deref_mut().map(|collector| (collector, first));
        first += set.prompts.len();
        let mut done = set.prompts.iter().map(n_tokens);
        measure_set(&mut session, &set.prompts, n_pos, None, collector, &mut || {
            bar.inc(done.next().unwrap_or(0));
        })
    };
    let (harmful, harmless) = (measure(harmful)?, measure(harmless)?);
    bar.finish_and_clear();
    Ok(Contrast { harmful, harmless, source })
}

/// How two sets lie to each other at a position, and the harmful prompts under an ablation beside them.
pub fn analyze(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    [harmful, harmless]: [&Set; 2],
    ablation: Option<&Arc<Intervention>>,
    position: i32,
    coincide: f64,
) -> Result<Analysis> {
    let mut session = run.session(model, PARALLEL, longest([harmful, harmless]))?;
    let n = harmful.prompts.len() * (1 + usize::from(ablation.is_some())) + harmless.prompts.len();
    let bar = ui.progress(n, "measuring activations");
    let mut measure = |set: &Set, intervention: Option<&Arc<Intervention>>| {
        Rows::measure(&mut session, &set.prompts, position, intervention, &mut || bar.inc(1))
    };
    let (a, b) = (measure(harmful, None)?, measure(harmless, None)?);
    let ablated = ablation.map(|ablation| measure(harmful, Some(ablation))).transpose()?;
    bar.finish_and_clear();
    let bar = ui.busy("finding principal components");
    let analysis = analysis::analyze(&a, &b, ablated.as_ref(), coincide);
    bar.finish_and_clear();
    Ok(analysis)
}

fn n_tokens(prompt: &Prompt) -> u64 {
    prompt.tokens.len() as u64
}

/// The rules that a candidate must keep.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct RuleArgs {
    /// Drop candidates whose ablation changes harmless answers by more (nats)
    #[arg(long, value_name = "KL", default_value_t = Rules::default().kl_max)]
    kl_max: f64,
    /// Drop candidates whose addition gives harmless prompts a lower refusal score (log-odds: 0 is an even chance)
    #[arg(long, value_name = "SCORE", default_value_t = Rules::default().induce_min, allow_negative_numbers = true)]
    induce_min: f64,
    /// Drop candidates from this part of the model on; above 1 keeps all
    #[arg(long, value_name = "PART", default_value_t = Rules::default().layer_fraction)]
    layer_fraction: f64,
}

impl RuleArgs {
    pub fn rules(self) -> Rules {
        let Self { kl_max, induce_min, layer_fraction } = self;
        Rules { kl_max, induce_min, layer_fraction }
    }
}

/// How the candidates are scored.
#[derive(Debug, Clone, clap::Args)]
pub struct ScoringArgs {
    #[command(flatten)]
    rules: RuleArgs,
    /// Score every candidate on every prompt, also those that a bound says cannot win
    #[arg(long)]
    pub exhaustive: bool,
    /// Where scores are kept, for the same command to go on from when it is interrupted (Ctrl-C); removed at the end
    /// [default: OUTPUT.checkpoint]
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// Begin anew, whatever checkpoint there is
    #[arg(long)]
    pub restart: bool,
}

impl ScoringArgs {
    /// The checkpoint of a command that writes `output`, after a look at whether it can be written.
    pub fn open(&self, output: &Path, inputs: &[&Path]) -> Result<Checkpoint> {
        let beside = || {
            let mut name = output.as_os_str().to_owned();
            name.push(".checkpoint");
            PathBuf::from(name)
        };
        let path = self.checkpoint.clone().unwrap_or_else(beside);
        // Tried now, for it is needed only when much has been done.
        OutputFile::create(&path, true, inputs)?;
        ensure!(path != output, "--checkpoint {}: is the output itself", path.display());
        Ok(Checkpoint::at(&path, self.restart))
    }

    /// With these arguments, and others'.
    pub fn how<'a>(&self, markers: &'a Markers, tokens: Option<&'a RefusalTokens>, seed: u64) -> How<'a> {
        How { markers, tokens, rules: self.rules.rules(), seed, exhaustive: self.exhaustive }
    }
}

/// What a choice is made by.
#[derive(Clone, Copy)]
pub struct How<'a> {
    pub markers: &'a Markers,
    pub tokens: Option<&'a RefusalTokens>,
    pub rules: Rules,
    pub seed: u64,
    pub exhaustive: bool,
}

/// Scores the candidates on validation prompts and applies the rules.
pub fn select(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    contrast: &Contrast,
    [harmful, harmless]: [&Set; 2],
    how: How<'_>,
    checkpoint: &mut Checkpoint,
) -> Result<Choice> {
    let mut session = run.session(model, PARALLEL, longest([harmful, harmless]) + 32)?;
    let request = request(contrast, [harmful, harmless], how);
    let mut watch = Shown::new(ui)?;
    let choice = select::select(&mut session, &request, checkpoint, &mut watch);
    watch.bar.finish_and_clear();
    Ok(choice?)
}

fn request<'a>(contrast: &'a Contrast, [harmful, harmless]: [&'a Set; 2], how: How<'a>) -> Request<'a> {
    Request {
        contrast,
        prompts: [&harmful.prompts, &harmless.prompts],
        refusal_tokens: how.tokens.cloned(),
        markers: how.markers,
        rules: how.rules,
        race: (!how.exhaustive).then(Race::default),
        erased: &[],
        seed: how.seed,
    }
}

/// How many directions to look for.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub struct RankArgs {
    /// Look for up to K directions and erase their span: each further one measured on what is still refused with those
    /// before it erased, as long as there is evidence that it brings something
    #[arg(long, value_name = "K", default_value_t = 1, value_parser = at_least_one)]
    pub rank: usize,
}

/// Looks for directions beside `first`, which [`select`] chose on `validation` by the same checkpoint.
pub fn grow(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    (contrast, first, rank): (&Contrast, Direction, usize),
    [train, validation]: [&[Set; 2]; 2],
    how: How<'_>,
    checkpoint: &mut Checkpoint,
) -> Result<Subspace> {
    let longest = longest(train.iter().chain(validation));
    let mut session = run.session(model, PARALLEL, longest + 32)?;
    let request = request(contrast, [&validation[0], &validation[1]], how);
    let train = [&train[0].prompts[..], &train[1].prompts];
    let growth = Growth { rank, train, error: Race::default().error };
    let mut watch = Shown::new(ui)?;
    let found = subspace::grow(&mut session, &request, first, &growth, checkpoint, &mut watch);
    watch.bar.finish_and_clear();
    Ok(found?)
}

/// Shows how far the choice is, and stops it at Ctrl-C.
struct Shown {
    ui: Ui,
    bar: ProgressBar,
    interrupt: Interrupt,
    /// The refusal tokens were named.
    named: bool,
}

impl Shown {
    fn new(ui: Ui) -> Result<Self> {
        Ok(Self { ui, bar: ProgressBar::hidden(), interrupt: Interrupt::catch()?, named: false })
    }
}

impl Watch for Shown {
    fn asking(&mut self, prompts: usize) {
        self.bar = self.ui.progress(prompts, "finding refusal tokens");
    }

    fn answered(&mut self) {
        self.bar.inc(1);
    }

    fn refusal_tokens(&mut self, tokens: &RefusalTokens) {
        self.bar.finish_and_clear();
        let texts: Vec<String> = tokens.texts.iter().map(|t| format!("{t:?}")).collect();
        if !std::mem::replace(&mut self.named, true) {
            self.ui.note(&format!("refusal tokens: {}", texts.join(" ")));
        }
        self.bar = self.ui.tokens("scoring candidates, at most");
        self.interrupt.hold();
    }

    fn resumed(&mut self, tokens: u64) {
        self.ui.note(&format!("going on from a checkpoint, {tokens} tokens behind it"));
        self.bar.set_position(tokens);
        self.bar.reset_eta();
    }

    fn expect(&mut self, tokens: u64) {
        self.bar.set_length(tokens);
    }

    fn advance(&mut self, tokens: u64) {
        self.bar.set_position(tokens);
    }

    fn measuring(&mut self, n: usize, refused: usize, prompts: usize) {
        self.bar.finish_and_clear();
        self.named = true;
        self.ui.note(&format!("direction {n}: measuring on {refused} prompts that are still refused"));
        self.bar = self.ui.progress(prompts, "measuring activations");
    }

    fn measured(&mut self) {
        self.bar.inc(1);
    }

    fn stop(&self) -> bool {
        self.interrupt.is_wanted()
    }
}

/// The chosen direction; where none survived the rules, an error, and the table on stderr.
pub fn chosen(choice: &Choice, contrast: &Contrast) -> Result<Direction> {
    if choice.selection.chosen.is_none() {
        warn(&format!("every candidate was dropped:\n{}", choice_table(choice, usize::MAX)));
    }
    Ok(choice.direction(contrast)?)
}

/// The candidates, the chosen one marked, at most `n` of them: best bypass first, survivors before the dropped.
pub fn choice_table(choice: &Choice, n: usize) -> String {
    let verdicts = &choice.selection.verdicts;
    let mut order: Vec<usize> = (0..choice.candidates.len()).collect();
    let rank = |&i: &usize| {
        let dropped = verdicts[i] != Verdict::Kept;
        let unseen = choice.scored_on[i] == [0; 3];
        (choice.selection.chosen != Some(i), dropped, unseen)
    };
    order.sort_by(|a, b| {
        rank(a).cmp(&rank(b)).then(choice.candidates[*a].bypass.total_cmp(&choice.candidates[*b].bypass))
    });
    let rows = order.iter().take(n).map(|&i| {
        let c = &choice.candidates[i];
        let verdict = match verdicts[i] {
            Verdict::Kept if choice.selection.chosen == Some(i) => "chosen",
            Verdict::Kept => "",
            Verdict::NotANumber => "not a number",
            Verdict::LateLayer => "late layer",
            Verdict::Kl => "KL too high",
            Verdict::Induce => "does not induce",
            Verdict::Outrun => "outrun",
        };
        let scored = choice.scored_on[i];
        let score = |value: f64, of: usize, digits: usize| match scored[of] {
            0 => "–".to_string(),
            _ => format!("{value:.digits$}"),
        };
        vec![
            verdict.to_string(),
            c.position.to_string(),
            c.layer.block().map_or("–".into(), |il| il.to_string()),
            c.layer.paper().to_string(),
            score(c.bypass, 0, 3),
            score(c.induce, 1, 3),
            score(c.kl, 2, 4),
            scored.map(|n| n.to_string()).join(" "),
        ]
    });
    table(&["", "position", "block", "paper layer", "bypass", "induce", "KL", "on prompts"], 1, rows)
}

/// What the choice took, in a line.
pub fn choice_cost(choice: &Choice) -> String {
    format!(
        "{} tokens evaluated; every candidate on every prompt: {}",
        choice.tokens_evaluated, choice.tokens_exhaustive
    )
}
