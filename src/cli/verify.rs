//! `ggsteer verify`: a rewritten file against its original and against what it says of itself.

use std::path::PathBuf;

use anyhow::{Context, Result};
use ggsteer::arch;
use ggsteer::calibration::Calibration;
use ggsteer::gguf::GgufFile;
use ggsteer::report::run::Made;
use ggsteer::rewrite::{self, Record, TensorCheck, Verification};
use serde::Serialize;

use super::args::DirectionArgs;
use super::rewrite::{TiedArg, types};
use super::ui::{Ui, percent, table, warn};

/// Measure what is left of the direction in a rewritten model, and prove that nothing else changed
///
/// Ends with 3 where the file is not what it says it is, or something changed that should not have.
///
/// Example: ggsteer verify model.gguf out.gguf --direction direction.gguf --calibration inputs.gguf
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// The model it was made from
    original: PathBuf,
    /// The rewritten model
    rewritten: PathBuf,
    #[command(flatten)]
    directions: DirectionArgs,
    /// Samples of the writers' inputs, as --save-calibration keeps them: for data leak and edit error
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Use a calibration of a model of another name whose tensors have the same shapes
    #[arg(long, requires = "calibration")]
    other_calibration: bool,
    /// The same model at a higher precision, where the rewriting started from it: the figures are then those of its edit
    #[arg(long, value_name = "F16.gguf")]
    source: Option<PathBuf>,
    /// What was to be done with a token embedding that is the output head too, where the file does not say
    #[arg(long, value_enum, default_value_t = TiedArg::Edit)]
    tied: TiedArg,
}

/// The files are not what they should be: told on stdout, ends the program with a code of its own.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {first}{}", more(*.n))]
pub struct Differs {
    path: String,
    first: String,
    n: usize,
}

fn more(n: usize) -> String {
    if n > 1 { format!(" (and {} more differences)", n - 1) } else { String::new() }
}

#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    made: Made,
    original: String,
    rewritten: String,
    directions: Vec<String>,
    calibration: Option<String>,
    ok: bool,
    max_leak: f64,
    max_data_leak: Option<f64>,
    max_edit_error: Option<f64>,
    bytes_changed: u64,
    #[serde(flatten)]
    verification: &'a Verification,
}

impl Args {
    pub fn run(self, ui: Ui) -> Result<()> {
        let at = || self.original.display().to_string();
        let original = GgufFile::open(&self.original).with_context(at)?;
        let path = self.rewritten.display().to_string();
        let rewritten = GgufFile::open(&self.rewritten).with_context(|| path.clone())?;
        let directions = self.directions.load(&original)?;
        let record = Record::read(&rewritten);
        let writers = record.map_or_else(|| arch::writers(&original), |r| r.writers(&original));
        let writers = writers.with_context(at)?;
        let calibration = match &self.calibration {
            None => None,
            Some(path) => {
                let calibration = Calibration::load(path)?;
                let fit = calibration.fits(&original, &writers, self.other_calibration);
                let fit = fit.with_context(|| path.display().to_string())?;
                fit.warnings().iter().for_each(|words| warn(&format!("{}: {words}", path.display())));
                Some(calibration)
            }
        };
        let source = self.source.as_ref();
        let source = source.map(|path| GgufFile::open(path).with_context(|| path.display().to_string()));
        let source = source.transpose()?;
        let held_out = &mut |tensor: &str, slice: usize| -> Result<Vec<f32>> {
            let inputs = calibration.as_ref().and_then(|c| c.inputs(tensor));
            Ok(inputs.map(|i| i.held_out(slice)).transpose()?.unwrap_or_default())
        };
        let bar = ui.progress(original.tensors().len() + writers.len(), "comparing and measuring");
        let step = &mut || bar.inc(1);
        let tied = self.tied.into();
        let verification =
            rewrite::verify(&original, &rewritten, &directions, tied, source.as_ref(), held_out, step)
                .with_context(|| format!("{path} against {}", at()))?;
        bar.finish_and_clear();
        if !verification.has_provenance {
            warn(&format!("{path}: says nothing of how it was made: every writer is taken as edited"));
        }
        let counts = |t: &&TensorCheck| t.strength != 0.0 && t.figures.share > 0.0 && !t.added;
        let edited = || verification.tensors.iter().filter(counts);
        let largest = |of: fn(&TensorCheck) -> Option<f64>| edited().filter_map(of).reduce(f64::max);
        let output = Output {
            made: Made::by("verify"),
            original: at(),
            rewritten: path.clone(),
            directions: self.directions.names(),
            calibration: self.calibration.as_ref().map(|p| p.display().to_string()),
            ok: verification.differences.is_empty(),
            max_leak: largest(|t| Some(t.figures.leak)).unwrap_or(0.0),
            max_data_leak: largest(|t| t.figures.data_leak),
            max_edit_error: largest(|t| t.figures.edit_error),
            bytes_changed: verification.tensors.iter().map(|t| t.bytes_changed).sum(),
            verification: &verification,
        };
        ui.print(&output, || describe(&output))?;
        match &verification.differences[..] {
            [] => Ok(()),
            all @ [first, ..] => Err(Differs { path, first: first.to_string(), n: all.len() }.into()),
        }
    }
}

fn describe(output: &Output) -> String {
    let verification = output.verification;
    let known = |x: Option<f64>| x.map_or("–".to_string(), |x| format!("{x:.4}"));
    let rows = verification.tensors.iter().map(|t| {
        let f = &t.figures;
        vec![
            t.name.clone(),
            types(t.type_before, t.type_after),
            if t.strength == 1.0 { "all".into() } else { percent(t.strength) },
            format!("{:.5}", f.leak),
            known(f.data_leak),
            known(f.edit_error),
            format!("{:.4}", f.distance),
            percent(t.bytes_changed as f64 / t.bytes.max(1) as f64),
        ]
    });
    let header = ["tensor", "type", "edit", "leak", "data leak", "edit error", "distance", "bytes changed"];
    let mut text = table(&header, 2, rows);
    text += &format!(
        "{} writers, {} tensors byte-identical{}; largest leak {:.5}",
        verification.tensors.len(),
        verification.n_untouched,
        if verification.untied { ", the original embedding as output.weight" } else { "" },
        output.max_leak
    );
    if let (Some(leak), Some(error)) = (output.max_data_leak, output.max_edit_error) {
        text += &format!(", data leak {leak:.4}, edit error {error:.4}");
    }
    text += "\n";
    if verification.differences.is_empty() {
        return text + "the file is what it says, and nothing else changed\n";
    }
    for difference in &verification.differences {
        text += &format!("differs: {difference}\n");
    }
    text
}
