//! `ggsteer report`, and the `--report` of other commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ggsteer::activations::shared_positions;
use ggsteer::analysis::COINCIDE;
use ggsteer::direction::{Direction, ablation};
use ggsteer::evaluate::run::Options;
use ggsteer::input;
use ggsteer::intervention::{Intervention, Positions};
use ggsteer::output::OutputFile;
use ggsteer::report::run::{Document, FileRecord, Measured, Said, Story};
use ggsteer::report::{Painter, Report};
use ggsteer::runtime::Model;
use serde::Serialize;

use super::abliterate::Proof;
use super::args::RunArgs;
use super::evaluate::evaluate;
use super::steps;
use super::ui::Ui;

/// Make one page of what commands found: verdict, plots, answers, tables, provenance
///
/// Give what abliterate, analyze, compare, evaluate, optimize, orthogonalize, select and verify print with
/// --json, in any number and order. The page is one HTML file that opens without a network.
///
/// Example: ggsteer report run.json -o report.html
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// Files with what commands printed with --json
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Where to write the page
    #[arg(short, long, value_name = "REPORT.html")]
    output: PathBuf,
    /// Write every plot there too, as a PNG of its name
    #[arg(long, value_name = "DIR")]
    png: Option<PathBuf>,
    /// Overwrite existing outputs
    #[arg(long)]
    force: bool,
}

/// A page beside what a command prints.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ReportArgs {
    /// Write a page of all that was found there (one HTML file)
    #[arg(long, value_name = "REPORT.html")]
    report: Option<PathBuf>,
    /// Write every plot of the page there too, as a PNG of its name
    #[arg(long, value_name = "DIR", requires = "report")]
    png: Option<PathBuf>,
}

impl ReportArgs {
    /// Begins the page, where one is wanted: none of `inputs`, nor one of the command's other `outputs`.
    pub fn open(&self, force: bool, inputs: &[&Path], outputs: &[&PathBuf]) -> Result<Option<Page>> {
        let Some(path) = &self.report else { return Ok(None) };
        ensure!(!outputs.contains(&path), "{}: both --output and --report", path.display());
        Page::open(path, self.png.as_deref(), force, inputs).map(Some)
    }
}

/// A page that is to be written.
pub struct Page {
    out: OutputFile,
    png: Option<PathBuf>,
    force: bool,
    inputs: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Output {
    output: String,
    runs: Vec<String>,
    sections: Vec<String>,
    verdict: Vec<String>,
    plots: Vec<String>,
    png: Vec<String>,
}

impl Page {
    fn open(path: &Path, png: Option<&Path>, force: bool, inputs: &[&Path]) -> Result<Self> {
        let out = OutputFile::create(path, force, inputs)?;
        if let Some(folder) = png {
            let parent = folder.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let place = if folder.exists() { folder } else { parent };
            ensure!(place.is_dir(), "--png {}: {} is not a folder", folder.display(), place.display());
        }
        let inputs = inputs.iter().map(|p| p.to_path_buf()).collect();
        Ok(Self { out, png: png.map(Into::into), force, inputs })
    }

    /// Of the one document that a command is about to print.
    pub fn write_one(self, ui: Ui, printed: &impl Serialize) -> Result<()> {
        let path = self.out.path().display().to_string();
        let document = Document::of("this run", serde_json::to_value(printed)?)?;
        self.write(&Report::new(&[document]))?;
        ui.note(&format!("report: {path}"));
        Ok(())
    }

    /// Writes the page and the pictures, of which it returns the files.
    fn write(self, report: &Report) -> Result<Vec<PathBuf>> {
        use std::io::Write as _;
        let Self { mut out, png, force, inputs } = self;
        let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
        let mut pictures = Vec::new();
        if let Some(folder) = png {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            let painter = Painter::default();
            for plot in report.plots() {
                let path = folder.join(format!("{}.png", plot.id));
                let mut picture = OutputFile::create(&path, force, &inputs)?;
                picture.write_all(&painter.png(plot)?)?;
                pictures.push((path, picture));
            }
        }
        out.write_all(report.html().as_bytes())?;
        out.commit()?;
        let write = |(path, picture): (PathBuf, OutputFile)| picture.commit().map(|()| path);
        Ok(pictures.into_iter().map(write).collect::<Result<_, _>>()?)
    }
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let inputs: Vec<&Path> = self.runs.iter().map(PathBuf::as_path).collect();
        let page = Page::open(&self.output, self.png.as_deref(), self.force, &inputs)?;
        let read = |path: &PathBuf| -> Result<Document> {
            let bytes = input::read(path, input::JSON).with_context(|| path.display().to_string())?;
            Ok(Document::read(&path.display().to_string(), &bytes)?)
        };
        let documents = self.runs.iter().map(read).collect::<Result<Vec<_>>>()?;
        let report = Report::new(&documents);
        let png = page.write(&report)?;
        let output = Output {
            output: self.output.display().to_string(),
            runs: documents.iter().map(|d| d.made.command.clone()).collect(),
            sections: report.sections.iter().map(|s| s.title.clone()).collect(),
            verdict: report.verdict.clone(),
            plots: report.plots().map(|plot| plot.id.clone()).collect(),
            png: png.iter().map(|path| path.display().to_string()).collect(),
        };
        ui.print(&output, || {
            // Names in a document may be anything; on the page they are escaped.
            let safe = |sentence: &String| sentence.replace(char::is_control, "\u{fffd}") + "\n";
            let verdict: String = output.verdict.iter().map(safe).collect();
            let pictures = match output.png.len() {
                0 => String::new(),
                n => format!(", and {n} plots as PNG"),
            };
            format!("{verdict}\nwritten to {}{pictures}\n", output.output)
        })
    }
}

/// What a report of `abliterate` shows beside its usual output: how the prompts lie in the stream, the direction added,
/// every answer, and the files.
pub fn story(
    ui: Ui,
    run: &RunArgs,
    model: &Model,
    directions: &[Direction],
    proof: &Proof<'_>,
    options: &Options,
    files: &[(&str, Vec<&Path>)],
) -> Result<Story> {
    let sets = [&proof.test[0], &proof.test[1]];
    let shared = shared_positions(sets.iter().flat_map(|set| &set.prompts)) as i32;
    let direction = &directions[0];
    let position = direction.meta.position.filter(|p| *p >= -shared).unwrap_or(-1);
    let erased = Arc::new(ablation(directions)?);
    let analysis = steps::analyze(ui, run, model, sets, Some(&erased), position, COINCIDE)?;
    let addition = Arc::new(Intervention::add(direction.block, &direction.vector, 1.0, Positions::Prompt)?);
    let added = evaluate(ui, run, model, sets, Some(&addition), &proof.base, options)?;
    let runs = [
        ("before", &proof.before),
        ("erased while running", &proof.ablated),
        ("written file", &proof.after),
        ("direction added", &added),
    ];
    let answers = runs.map(|(name, (_, [harmful, harmless]))| Said {
        run: name.into(),
        harmful: harmful.clone(),
        harmless: harmless.clone(),
    });
    let [n_harmful, n_harmless] = sets.map(|set| set.prompts.len());
    Ok(Story {
        analysis: Measured { n_harmful, n_harmless, position, analysis },
        added: added.0,
        answers: answers.into(),
        files: digests(ui, files)?,
    })
}

/// The SHA-256 of each file, with progress.
fn digests(ui: Ui, files: &[(&str, Vec<&Path>)]) -> Result<Vec<FileRecord>> {
    let all = || files.iter().flat_map(|(role, paths)| paths.iter().map(move |path| (*role, path)));
    let total = all().map(|(_, path)| path.metadata().map_or(0, |meta| meta.len())).sum();
    let bar = ui.download(Some(total), "taking digests");
    let step = &mut |n| bar.inc(n);
    let records = all()
        .map(|(role, path)| FileRecord::of(role, path, step).with_context(|| path.display().to_string()));
    let records = records.collect::<Result<Vec<_>>>()?;
    bar.finish_and_clear();
    Ok(records)
}
