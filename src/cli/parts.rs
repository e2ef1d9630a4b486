//! Which prompts are measured on, which choose and which evaluate.

use std::path::PathBuf;

use anyhow::Result;
use ggsteer::prompts::files_of;
use ggsteer::prompts::split::{Fractions, Parts, Used, split};

use super::args::{PromptArgs, SPEC, Sets};
use super::ui::Ui;

/// Prompts to choose by and to evaluate on, in place of parts of the others.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct HeldOutArgs {
    /// Choose by these, in place of a fifth of --harmful
    #[arg(long, value_name = SPEC, requires = "val_harmless")]
    val_harmful: Option<String>,
    /// Choose by these, in place of a fifth of --harmless
    #[arg(long, value_name = SPEC, requires = "val_harmful")]
    val_harmless: Option<String>,
    /// Evaluate on these, in place of a fifth of --harmful
    #[arg(long, value_name = SPEC, requires = "test_harmless")]
    test_harmful: Option<String>,
    /// Evaluate on these, in place of a fifth of --harmless
    #[arg(long, value_name = SPEC, requires = "test_harmful")]
    test_harmless: Option<String>,
}

impl HeldOutArgs {
    fn pairs(&self) -> [Option<[&String; 2]>; 2] {
        [
            self.val_harmful.as_ref().zip(self.val_harmless.as_ref()).map(Into::into),
            self.test_harmful.as_ref().zip(self.test_harmless.as_ref()).map(Into::into),
        ]
    }

    /// Their files on this machine.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.pairs().into_iter().flatten().flatten().flat_map(|spec| files_of(spec)).collect()
    }

    /// All parts: these, and for what was not given those of `prompts`.
    pub fn load(&self, ui: Ui, prompts: &PromptArgs, seed: u64) -> Result<Parts> {
        let sets = prompts.load(ui)?;
        let load = |[harmful, harmless]: [&String; 2]| -> Result<Sets> {
            Ok(Sets { harmful: prompts.hub.load(ui, harmful)?, harmless: prompts.hub.load(ui, harmless)? })
        };
        let [validation, test] = self.pairs().map(|pair| pair.map(load).transpose());
        let (validation, test) = (validation?, test?);
        let usual = Fractions::default();
        let fractions = Fractions {
            validation: if validation.is_some() { 0.0 } else { usual.validation },
            test: if test.is_some() { 0.0 } else { usual.test },
        };
        let parts = split(&sets, seed, fractions)?;
        let parts = Parts {
            validation: validation.unwrap_or(parts.validation),
            test: test.unwrap_or(parts.test),
            ..parts
        };
        parts.check()?;
        Ok(parts)
    }
}

/// A line on which prompts were used for what.
pub fn used(prompts: &Used) -> String {
    let Used { train, validation, test, seed } = prompts;
    let [train, validation, test] =
        [train, validation, test].map(|part| format!("{} + {}", part.harmful.n, part.harmless.n));
    format!(
        "prompts: {} and {}; {train} to measure, {validation} to choose, {test} to evaluate (seed {seed})\n",
        prompts.train.harmful.source, prompts.train.harmless.source
    )
}
