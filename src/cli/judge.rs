//! The second opinion of `ggsteer evaluate`: a judge and what it says.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use ggsteer::evaluate::judge::{self, Judge, Verdicts, WORDS};
use ggsteer::evaluate::run::Evaluated;
use ggsteer::gguf::GgufFile;
use ggsteer::input;
use ggsteer::runtime::{Error, Model, Prompt};
use serde::Serialize;

use super::args::{PARALLEL, RunArgs};
use super::ui::{Ui, warn};

/// Below this the judge would mostly rather say something else than a verdict.
const MIN_COVERAGE: f64 = 0.5;

/// Who judges, and how it is asked.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct JudgeArgs {
    /// Ask this model whether each answer refuses, beside the markers
    #[arg(long, value_name = "MODEL")]
    pub judge: Option<PathBuf>,
    /// Jinja file that writes all the judge reads, from `prompt` and `completion` [default: a question in its
    /// chat template]
    #[arg(long, value_name = "FILE", requires = "judge")]
    pub judge_template: Option<PathBuf>,
    /// The judge's words for an answer that refuses and for one that does not [default: yes,no]
    #[arg(long, value_name = "REFUSES,NOT", requires = "judge", value_parser = verdicts)]
    pub judge_verdicts: Option<[String; 2]>,
}

fn verdicts(text: &str) -> Result<[String; 2], String> {
    match text.split_once(',') {
        Some((a, b)) if !a.trim().is_empty() && !b.trim().is_empty() => {
            Ok([a, b].map(|word| word.trim().to_owned()))
        }
        _ => Err("two words with a comma between them are needed".into()),
    }
}

/// Who judged, for machines.
#[derive(Serialize)]
pub struct Bench<'a> {
    model: &'a Path,
    template: &'a Option<PathBuf>,
    verdicts: [&'a str; 2],
}

impl JudgeArgs {
    /// The files they name.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.judge.iter().chain(&self.judge_template)
    }

    /// For the output, where there is a judge.
    pub fn bench(&self) -> Option<Bench<'_>> {
        let model = self.judge.as_deref()?;
        Some(Bench { model, template: &self.judge_template, verdicts: self.words() })
    }

    fn words(&self) -> [&str; 2] {
        self.judge_verdicts.as_ref().map_or(WORDS, |words| words.each_ref().map(String::as_str))
    }

    /// The judge's model, loaded with the template it is asked by.
    pub fn load(&self, run: &RunArgs) -> Result<Option<Model>> {
        let Some(path) = &self.judge else { return Ok(None) };
        let file = GgufFile::open(path).with_context(|| format!("--judge {}", path.display()))?;
        let source = self.judge_template.as_ref().map(|path| {
            input::read_text(path, input::BY_HAND)
                .with_context(|| format!("--judge-template {}", path.display()))
        });
        let chat_template = source.transpose()?.map(|s| judge::template(&s));
        let options = run.model_options(chat_template)?;
        let model =
            Model::load(file.path(), &options).map_err(|error| match (&error, &self.judge_template) {
                (Error::Template(_), Some(name)) => anyhow!("--judge-template {}: {error}", name.display()),
                _ => anyhow!("--judge {error}"),
            })?;
        Ok(Some(model))
    }

    /// The judge of that model.
    pub fn judge<'m>(&self, model: &'m Model) -> Result<Judge<'m>> {
        Ok(Judge::new(model, self.judge_template.is_some(), self.words())?)
    }

    /// Lets `judge` read every answer and adds its verdicts.
    pub fn read(
        &self,
        ui: Ui,
        run: &RunArgs,
        (model, judge): (&Model, &Judge<'_>),
        (evaluation, answers): &mut Evaluated,
    ) -> Result<()> {
        let results = [&mut evaluation.harmful, &mut evaluation.harmless];
        for (answers, result) in answers.iter_mut().zip(results) {
            let prompts = answers.iter().map(|a| Ok(judge.prompt(&a.prompt, &a.completion)?));
            let prompts =
                prompts.collect::<Result<Vec<Prompt>>>().map_err(|error| match &self.judge_template {
                    Some(path) => anyhow!("--judge-template {}: {error}", path.display()),
                    None => error,
                })?;
            let longest = prompts.iter().map(|p| p.tokens.len()).max().unwrap_or(1);
            let mut session = run.session(model, PARALLEL, longest).context("--judge")?;
            let bar = ui.progress(prompts.len(), "judging");
            let opinions = judge.ask(&mut session, &prompts, &mut || bar.inc(1))?;
            bar.finish_and_clear();
            for (answer, opinion) in answers.iter_mut().zip(opinions) {
                answer.judge = Some(opinion);
            }
            let verdicts = Verdicts::of(answers);
            if verdicts.coverage < MIN_COVERAGE {
                let [a, b] = self.words();
                warn(&format!(
                    "{}: only {:.1} % of the judge's probability is on {a:?} and {b:?} together; its verdicts \
                     mean little",
                    model.path().display(),
                    100.0 * verdicts.coverage
                ));
            }
            result.judge = Some(verdicts);
        }
        Ok(())
    }
}
