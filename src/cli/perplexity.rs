//! The perplexity part of `ggsteer evaluate`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ggsteer::evaluate::perplexity::{self, Perplexity, Ratio};
use ggsteer::input;
use ggsteer::intervention::Intervention;
use ggsteer::runtime::{Model, Token};
use serde::Serialize;

use super::args::{PARALLEL, RunArgs};
use super::ui::{Ui, table};

/// The chunks of `llama-perplexity` where nothing else is said.
const N_CTX: usize = 512;

/// Which text, and how it is cut.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct PerplexityArgs {
    /// Perplexity of this text too, as llama-perplexity computes it
    #[arg(long, value_name = "TEXT")]
    pub perplexity: Option<PathBuf>,
    /// Tokens of a chunk, whose first half is not scored [default: 512, or the model's context where it is
    /// shorter]
    #[arg(long, value_name = "N", requires = "perplexity", value_parser = super::args::at_least_one)]
    pub ppl_ctx: Option<usize>,
}

/// A text as a model reads it.
pub struct Text {
    path: PathBuf,
    tokens: Vec<Token>,
    n_ctx: usize,
}

/// The perplexities of one text.
#[derive(Serialize)]
pub struct Perplexities {
    text: PathBuf,
    /// Of what KL is measured against.
    base: Perplexity,
    /// Of the model as evaluated.
    this: Perplexity,
    /// This over base.
    ratio: Ratio,
    /// Under a random direction.
    control: Option<Perplexity>,
    /// Control over base.
    control_ratio: Option<Ratio>,
}

impl PerplexityArgs {
    /// Reads the text, where there is one.
    pub fn load(&self, model: &Model) -> Result<Option<Text>> {
        let Some(path) = &self.perplexity else { return Ok(None) };
        let text = input::read_text(path, input::TEXT).with_context(|| path.display().to_string())?;
        let room = model.n_ctx_train();
        let n_ctx = self.ppl_ctx.unwrap_or(N_CTX.min(room));
        ensure!(n_ctx <= room, "--ppl-ctx {n_ctx}: the model's context holds {room}");
        let tokens = perplexity::tokens(model, &text);
        Ok(Some(Text { path: path.clone(), tokens, n_ctx }))
    }
}

impl Text {
    /// Measures `base` plain, and `model` under `this` and under `control`.
    pub fn measure(
        &self,
        ui: Ui,
        run: &RunArgs,
        (base, model): (Option<&Model>, &Model),
        this: Option<&Arc<Intervention>>,
        control: Option<&Arc<Intervention>>,
    ) -> Result<Perplexities> {
        let base = self.of(ui, run, base.unwrap_or(model), None).map(|p| (p, base.is_some()))?;
        let (base, other) = base;
        let this = if other || this.is_some() { self.of(ui, run, model, this)? } else { base.clone() };
        let control = control.map(|control| self.of(ui, run, model, Some(control))).transpose()?;
        Ok(Perplexities {
            text: self.path.clone(),
            ratio: this.over(&base),
            control_ratio: control.as_ref().map(|control| control.over(&base)),
            base,
            this,
            control,
        })
    }

    /// Measures `model` alone.
    pub fn of(
        &self,
        ui: Ui,
        run: &RunArgs,
        model: &Model,
        intervention: Option<&Arc<Intervention>>,
    ) -> Result<Perplexity> {
        let mut session = run.session(model, PARALLEL, self.n_ctx)?;
        let bar = ui.progress(self.tokens.len() / self.n_ctx, "perplexity");
        let found = perplexity::perplexity(&mut session, &self.tokens, self.n_ctx, intervention, &mut || {
            bar.inc(1);
        });
        bar.finish_and_clear();
        found.with_context(|| self.path.display().to_string())
    }
}

impl Perplexities {
    /// A row each for the base, for what is evaluated and for the control, under their names.
    pub fn table(&self, [base, this, control]: [&str; 3]) -> String {
        let row = |name: &str, p: &Perplexity, ratio: Option<&Ratio>| {
            vec![
                name.to_string(),
                format!("{:.4}", p.perplexity),
                format!("{:.4}", p.standard_error),
                format!("{:.4}–{:.4}", p.low, p.high),
                ratio.map_or(String::new(), |r| format!("{:.4}", r.ratio)),
                ratio.map_or(String::new(), |r| format!("{:.4}–{:.4}", r.low, r.high)),
            ]
        };
        let mut rows = vec![row(base, &self.base, None)];
        if this != base {
            rows.push(row(this, &self.this, Some(&self.ratio)));
        }
        rows.extend(self.control.as_ref().map(|p| row(control, p, self.control_ratio.as_ref())));
        let what = format!(
            "perplexity of {}: {} tokens scored in {} chunks of {}",
            name(&self.text),
            self.base.n_tokens,
            self.base.n_chunks,
            self.base.n_ctx
        );
        let header = ["", "perplexity", "±", "95 % interval", "× base", "95 % interval"];
        format!("{what}\n{}", table(&header, 1, rows))
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
