//! Arguments that several subcommands share, and what they open.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use ggsteer::activations::{Contrast, ContrastError};
use ggsteer::direction::Direction;
use ggsteer::evaluate::refusals::Markers;
use ggsteer::evaluate::run::Set;
use ggsteer::gguf::{GgufFile, ModelSummary};
use ggsteer::input;
use ggsteer::near::did_you_mean;
pub use ggsteer::prompts::Sets;
use ggsteer::prompts::hub::Hub;
use ggsteer::prompts::{self, PromptSet};
use ggsteer::runtime::template::ChatTemplate;
use ggsteer::runtime::{
    Error, FlashAttention, Model, ModelOptions, Prompt, Session, SessionOptions, connect,
};
use indicatif::ProgressBar;

use super::ui::{Ui, warn};

/// How to run a model.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Chat template in place of the file's own: a name (chatml, llama3, gemma, …) or a Jinja file
    #[arg(long, value_name = "NAME|FILE")]
    pub chat_template: Option<String>,
    /// Threads [default: all]
    #[arg(short = 't', long, value_name = "N", default_value_t = 0, hide_default_value = true,
        value_parser = clap::value_parser!(u16).range(0..=512))]
    pub threads: u16,
    /// Tokens computed at once; memory for activations and logits grows with it
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: u16,
    /// Tokens held at once, over all prompts that are computed side by side; 0 for what the model was trained with
    /// [default: what the prompts need, up to 8192]
    #[arg(short = 'c', long, visible_alias = "ctx-size", value_name = "N",
        value_parser = clap::value_parser!(u32).range(..=1 << 24))]
    pub ctx: Option<u32>,
    /// Blocks to compute on graphics cards and --rpc servers, the last ones: a number or all (also -ngl) [default: all with
    /// --rpc and in a build for graphics cards, else 0]
    #[arg(long, visible_alias = "n-gpu-layers", value_name = "N|all", value_parser = gpu_layers)]
    pub gpu_layers: Option<u32>,
    /// Compute them on these devices alone, by the names that `ggsteer doctor` lists
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Flash attention (also -fa): auto takes it where llama.cpp can
    #[arg(long, value_name = "on|off|auto", value_enum, default_value_t = FlashArg::Auto, hide_possible_values = true)]
    pub flash_attn: FlashArg,
    /// Compute on these machines' `ggsteer worker` (or llama.cpp's rpc-server), for models that one machine cannot hold.
    /// Their connection is neither encrypted nor protected: use it in a network of your own
    #[arg(long, value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub rpc: Vec<String>,
}

/// As [`FlashAttention`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FlashArg {
    On,
    Off,
    #[default]
    Auto,
}

impl From<FlashArg> for FlashAttention {
    fn from(arg: FlashArg) -> Self {
        match arg {
            FlashArg::On => Self::On,
            FlashArg::Off => Self::Off,
            FlashArg::Auto => Self::Auto,
        }
    }
}

fn gpu_layers(text: &str) -> Result<u32, String> {
    match text {
        // As llama.cpp's programs have it.
        "all" | "auto" | "-1" => Ok(u32::MAX),
        n => n.parse().map_err(|_| "neither a number nor all".into()),
    }
}

impl RunArgs {
    /// Loads a model, after our own reader has checked the file.
    pub fn load(&self, path: &Path) -> Result<Model> {
        let file = GgufFile::open(path).with_context(|| path.display().to_string())?;
        let chat_template = match &self.chat_template {
            None => None,
            Some(name) => Some(match ChatTemplate::builtin(name) {
                Some(source) => source.to_string(),
                None => input::read_text(Path::new(name), input::BY_HAND).map_err(|error| {
                    let names: Vec<&str> = ChatTemplate::builtin_names().collect();
                    let near = did_you_mean(name, names.iter().copied());
                    let names = names.join(", ");
                    anyhow!("--chat-template {name}: neither a built-in name ({names}) nor a readable file ({error}){near}")
                })?,
            }),
        };
        let options = self.model_options(chat_template)?;
        // Of a split model, the first part is the one that llama.cpp loads.
        let bar = Ui::current().part("loading");
        let shown = bar.clone();
        let model =
            Model::load_with(file.path(), &options, move |part| shown.set_position((part * 1e3) as u64));
        bar.finish_and_clear();
        model.map_err(|error| match (&error, &self.chat_template) {
            (Error::Template(_), Some(name)) => anyhow!("--chat-template {name}: {error}"),
            (Error::Template(_), None) => anyhow!("{}: {error}", path.display()),
            _ => error.into(),
        })
    }

    /// How to load a model, once the --rpc servers are there.
    pub fn model_options(&self, chat_template: Option<String>) -> Result<ModelOptions> {
        for server in &self.rpc {
            connect(server).context("--rpc")?;
        }
        Ok(ModelOptions { chat_template, gpu_layers: self.layers(), devices: self.device.clone() })
    }

    fn layers(&self) -> u32 {
        // Not where llama.cpp brings a backend that nobody asked for, as on a Mac.
        let asked =
            !self.rpc.is_empty() || cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan"));
        self.gpu_layers.unwrap_or(if asked { u32::MAX } else { 0 })
    }

    /// Whether blocks are computed on a device of this name, where there is one.
    pub fn takes(&self, device: &str) -> bool {
        let named =
            self.device.is_empty() || self.device.iter().any(|name| name.eq_ignore_ascii_case(device));
        self.layers() > 0 && named
    }

    /// A context in which `n_seq` sequences of up to `longest` tokens fit; refused before any memory is taken where one
    /// is longer than the model's own context.
    pub fn session<'m>(&self, model: &'m Model, n_seq: usize, longest: usize) -> Result<Session<'m>> {
        Ok(Session::new(model, self.session_options(model, n_seq, longest)?)?)
    }

    /// The options of such a context.
    pub fn session_options(&self, model: &Model, n_seq: usize, longest: usize) -> Result<SessionOptions> {
        check_length(model, longest)?;
        let n_ctx = match self.ctx {
            // As many side by side as fit a bounded cache: one long prompt must not multiply it.
            None => longest.max((n_seq * longest).min(CELLS)).max(self.batch.into()),
            Some(0) => model.n_ctx_train(),
            Some(n) => n as usize,
        };
        ensure!(
            longest <= n_ctx,
            "--ctx {n_ctx}: the longest prompt and its answer take {longest} tokens; raise --ctx, or leave it out"
        );
        Ok(SessionOptions {
            n_ctx,
            n_batch: n_ctx.min(self.batch.into()),
            n_seq,
            n_threads: self.threads.into(),
            flash_attention: self.flash_attn.into(),
            exact: false,
        })
    }
}

/// Whether a prompt and its answer fit the model's own context.
pub fn check_length(model: &Model, found: usize) -> Result<()> {
    let room = model.n_ctx_train();
    if found > room {
        return Err(Error::TooLong { what: "longest prompt and answer".into(), found, room }.into());
    }
    Ok(())
}

/// Cells of the KV cache that sequences share, unless one alone needs more.
const CELLS: usize = 8192;

/// Sequences computed side by side.
pub const PARALLEL: usize = 32;

/// Where prompts come from, in the words of the help.
pub const SPEC: &str = "PATH|hf:OWNER/NAME[:COLUMN][[SLICE]]";

/// The two prompt sets; the standard ones where neither is given.
#[derive(Debug, Clone, Default, Args)]
pub struct PromptArgs {
    /// Prompts that show the behaviour: txt (one a line), csv, tsv, json, jsonl, parquet, a folder of them or
    /// a dataset of the hub; with :COLUMN and, of a folder or dataset, [SPLIT] or [SPLIT[:400]] [default: 128
    /// mild requests]
    #[arg(long, visible_alias = "positive", value_name = SPEC, requires = "harmless")]
    pub harmful: Option<String>,
    /// Prompts that do not [default: 128 ordinary requests]
    #[arg(long, visible_alias = "negative", value_name = SPEC, requires = "harmful")]
    pub harmless: Option<String>,
    /// Take the first N of each set
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub limit: Option<usize>,
    #[command(flatten)]
    pub hub: HubArgs,
}

/// The two prompt sets, where they may be missing.
#[derive(Debug, Clone, Default, Args)]
pub struct OptionalPromptArgs {
    /// Prompts that show the behaviour, to collect a calibration with: a file, a folder or a dataset of the
    /// hub, with :COLUMN and [SPLIT[SLICE]] where needed
    #[arg(long, visible_alias = "positive", value_name = SPEC, requires = "harmless")]
    pub harmful: Option<String>,
    /// Prompts that do not
    #[arg(long, visible_alias = "negative", value_name = SPEC, requires = "harmful")]
    pub harmless: Option<String>,
    /// Take the first N of each set
    #[arg(long, value_name = "N", value_parser = at_least_one, requires = "harmful")]
    pub limit: Option<usize>,
    #[command(flatten)]
    pub hub: HubArgs,
}

impl OptionalPromptArgs {
    /// Both, where they were given.
    pub fn both(&self) -> Option<PromptArgs> {
        let Self { harmful, harmless, limit, hub } = self.clone();
        harmful.is_some().then_some(PromptArgs { harmful, harmless, limit, hub })
    }
}

/// Where datasets of the hub may come from.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct HubArgs {
    /// Take hf: datasets from the cache on this machine only
    #[arg(long)]
    pub offline: bool,
}

impl HubArgs {
    /// Reads a set, with a bar while a file of it is downloaded.
    pub fn load(self, ui: Ui, spec: &str) -> Result<PromptSet> {
        let mut hub = Hub::from_env();
        hub.offline |= self.offline;
        let mut bar: Option<(String, ProgressBar)> = None;
        let set = PromptSet::load_from(spec, &hub, &mut |now| {
            if bar.as_ref().is_none_or(|(file, _)| file != now.file) {
                ui.note(&format!("downloading {} from {}", now.file, hub.endpoint));
                bar = Some((now.file.to_owned(), ui.download(now.total, "downloading")));
            }
            if let Some((_, bar)) = &bar {
                bar.set_position(now.done);
            }
        });
        if let Some((_, bar)) = bar {
            bar.finish_and_clear();
        }
        Ok(set?)
    }
}

impl PromptArgs {
    /// The files of both sets on this machine.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.harmful.iter().chain(&self.harmless).flat_map(|spec| prompts::files_of(spec)).collect()
    }

    /// Reads both sets, which must not share a prompt.
    pub fn load(&self, ui: Ui) -> Result<Sets> {
        let mut sets = if let (Some(harmful), Some(harmless)) = (&self.harmful, &self.harmless) {
            Sets { harmful: self.hub.load(ui, harmful)?, harmless: self.hub.load(ui, harmless)? }
        } else {
            ui.note(
                "no --harmful and --harmless: taking the default sets of 128 mild and 128 ordinary requests",
            );
            prompts::standard::sets()
        };
        if let Some(n) = self.limit {
            for set in [&mut sets.harmful, &mut sets.harmless] {
                let first = set.prompts.drain(..).take(n).collect();
                *set = PromptSet::new(first, std::mem::take(&mut set.source));
            }
        }
        sets.check()?;
        for set in [&sets.harmful, &sets.harmless].into_iter().filter(|set| set.n_duplicates() > 0) {
            ui.note(&format!(
                "{}: {} of {} prompts repeat others",
                set.source,
                set.n_duplicates(),
                set.len()
            ));
        }
        Ok(sets)
    }
}

/// A number of things there must be at least one of.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("must be at least 1".into()),
        Ok(n) => Ok(n),
        Err(_) => Err("not a whole number".into()),
    }
}

/// Templates and tokenizes a set; a prompt that the model's context does not hold is an error that says which
/// it is.
pub fn tokenize(model: &Model, set: &PromptSet) -> Result<Set> {
    let room = model.n_ctx_train();
    let prompt = |(i, text): (usize, &String)| {
        let prompt = model.prompt(text)?;
        let found = prompt.tokens.len();
        if found > room {
            let what = format!("{}: prompt {}", set.source, i + 1);
            return Err(Error::TooLong { what, found, room }.into());
        }
        Ok(prompt)
    };
    let prompts = set.prompts.iter().enumerate().map(prompt).collect::<Result<Vec<Prompt>>>()?;
    Ok(Set { texts: set.prompts.clone(), prompts })
}

/// Templates and tokenizes both sets, harmful first.
pub fn tokenize_both(model: &Model, sets: &Sets) -> Result<[Set; 2]> {
    Ok([tokenize(model, &sets.harmful)?, tokenize(model, &sets.harmless)?])
}

/// Tokens of the longest prompt.
pub fn longest<'a>(sets: impl IntoIterator<Item = &'a Set>) -> usize {
    sets.into_iter().flat_map(|s| &s.prompts).map(|p| p.tokens.len()).max().unwrap_or(1)
}

/// What counts as a refusal.
#[derive(Debug, Clone, Default, Args)]
pub struct MarkerArgs {
    /// Refusal phrases, one a line, in place of the standard ones
    #[arg(long, value_name = "FILE")]
    pub markers: Option<PathBuf>,
}

impl MarkerArgs {
    /// Reads them.
    pub fn load(&self) -> Result<Markers> {
        Ok(match &self.markers {
            Some(path) => Markers::load(path)?,
            None => Markers::default(),
        })
    }
}

/// A direction file, checked against the model it is for.
pub fn direction(path: &Path, block: Option<usize>, model: &Model) -> Result<Direction> {
    let direction = Direction::load(path, block).with_context(|| path.display().to_string())?;
    direction
        .check_model(&model.architecture(), model.n_embd())
        .with_context(|| path.display().to_string())?;
    Ok(direction)
}

/// A remark where one of several directions, which are to be erased together, was measured beside one that is missing.
pub fn check_company(directions: &[Direction]) {
    let here: Vec<String> = directions.iter().map(Direction::sha256).collect();
    let lonely = |d: &&Direction| d.meta.erased.iter().any(|other| !here.contains(other));
    if let Some(direction) = directions.iter().find(lonely) {
        let (block, n) = (direction.block, direction.meta.erased.len());
        warn(&format!(
            "the direction of block {block} was measured with {n} others erased, which are not all given: name them too"
        ));
    }
}

/// The directions of an edit.
#[derive(Debug, Clone, Args)]
pub struct DirectionArgs {
    /// The direction; several erase their span
    #[arg(long, value_name = "DIRECTION", required = true)]
    pub direction: Vec<PathBuf>,
    /// Which block's direction to take from a file that holds several
    #[arg(long, value_name = "IL")]
    pub block: Option<usize>,
    /// Make the direction orthogonal to the harmless mean at its position and block, of what `ggsteer extract` measured
    #[arg(long, value_name = "DIRS")]
    pub project_out_harmless: Option<PathBuf>,
}

impl DirectionArgs {
    /// All files they are made from.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.direction.iter().chain(&self.project_out_harmless).map(PathBuf::as_path)
    }

    /// Their files as the user named them.
    pub fn names(&self) -> Vec<String> {
        self.direction.iter().map(|p| p.display().to_string()).collect()
    }

    /// Reads them, checked against the model file they are for.
    pub fn load(&self, file: &GgufFile) -> Result<Vec<Direction>> {
        let at = || file.path().display().to_string();
        let arch = file.arch().with_context(at)?.to_string();
        let n_embd = ModelSummary::new(file).with_context(at)?.n_embd as usize;
        let contrast = self.project_out_harmless.as_deref().map(|path| Ok((path, Contrast::load(path)?)));
        let contrast = contrast.transpose().map_err(|e: ContrastError| anyhow!(e))?;
        let load = |path: &PathBuf| -> Result<Direction> {
            let direction = Direction::load(path, self.block)?;
            direction.check_model(&arch, n_embd)?;
            match &contrast {
                None => Ok(direction),
                Some((path, contrast)) => {
                    orthogonal(&direction, contrast).with_context(|| path.display().to_string())
                }
            }
        };
        let load = |path| load(path).with_context(|| path.display().to_string());
        let directions = self.direction.iter().map(load).collect::<Result<Vec<_>>>()?;
        check_company(&directions);
        Ok(directions)
    }
}

/// `direction` without what it shares with the harmless mean where it was measured.
fn orthogonal(direction: &Direction, contrast: &Contrast) -> Result<Direction> {
    let (n_pos, n_block, n_embd) = contrast.harmless.shape();
    let Some(position) = direction.meta.position else {
        bail!(
            "the direction does not say at which position it was measured, so it cannot be made orthogonal to the harmless \
             mean there; take one of `ggsteer select`"
        );
    };
    let found = direction.vector.len();
    ensure!(
        n_embd == found,
        "means of n_embd {n_embd}, the direction has {found}: measured on another model"
    );
    let (theirs, ours) = (&contrast.source.architecture, &direction.meta.architecture);
    if let (Some(theirs), Some(ours)) = (theirs, ours) {
        ensure!(theirs == ours, "means of architecture {theirs:?}, the direction is of {ours:?}");
    }
    let measured = (-(n_pos as i32)..0).contains(&position) && direction.block < n_block;
    ensure!(
        measured,
        "no mean at position {position} of block {}, where the direction was measured: it has positions −1 to −{n_pos} of \
         {n_block} blocks",
        direction.block
    );
    Ok(direction.without(&contrast.harmless.mean(position, direction.block))?)
}

/// A remark on what a model is.
pub fn describe(ui: Ui, model: &Model) {
    ui.note(&format!(
        "{}: {}, {} blocks × {}",
        model.path().display(),
        model.architecture(),
        model.n_block(),
        model.n_embd()
    ));
}
