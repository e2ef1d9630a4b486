//! Streaming a file through a plan.
#![forbid(unsafe_code)]

use std::io::{self, Write};

use super::basis::{Basis, seen_by};
use super::edit::{Matrix, Sums, orthogonalize};
use super::{Plan, PlannedTensor, Report, RewriteError, TensorReport};
use crate::arch::Axis;
use crate::gguf::{GgufFile, NewTensor, TensorInfo, Value, amended_header, padded};
use crate::output::OutputFile;
use crate::quant;

/// How far a rewrite is: called before each tensor, and once at the end with no tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// The tensor that comes next; none at the end.
    pub tensor: Option<&'a str>,
    /// Whether it will be edited.
    pub edited: bool,
    /// Bytes of tensor data read so far.
    pub bytes_done: u64,
    /// Bytes of tensor data in all.
    pub bytes_total: u64,
}

/// Writes `file` to `output` as `plan` says, `provenance` keys set in its header, and gives `output` its path.
///
/// What the plan does not name is copied byte for byte, bytes between and behind the tensors included; the header is
/// too, except for the keys (see [`amended_header`]). The edited tensors' bytes do not depend on the number of threads.
/// Memory: some tens of megabytes beside the map, whatever the size of a tensor.
///
/// # Errors
/// [`RewriteError`]; the output path is then as it was before.
pub fn execute(
    file: &GgufFile,
    plan: &Plan,
    mut output: OutputFile,
    provenance: &[(String, Value)],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, RewriteError> {
    for planned in &plan.tensors {
        let fits = file.tensor(&planned.writer.tensor).is_some_and(|info| {
            (info.ty, info.ne, info.bytes) == (planned.r#type, planned.ne, planned.bytes)
        });
        if !fits {
            return Err(RewriteError::OtherFile { tensor: planned.writer.tensor.clone() });
        }
    }
    let head = if plan.unties() { Some(embedding(file)?) } else { None };
    let new: Vec<NewTensor> = head
        .iter()
        .map(|info| NewTensor { name: "output.weight".into(), ne: info.shape().to_vec(), ty: info.ty })
        .collect();

    let mut out = Counted { out: &mut output, bytes: 0 };
    out.write_all(&amended_header(file.bytes(), file, provenance, &new)?)?;
    let mut report = Report { untied: plan.unties(), ..Report::default() };
    let bytes_total = file.tensors().iter().map(|t| t.bytes).sum();
    let mut bytes_done = 0;
    for (i, info) in file.tensors().iter().enumerate() {
        let planned = plan.tensors.iter().find(|p| p.writer.tensor == info.name);
        progress(Progress { tensor: Some(&info.name), edited: planned.is_some(), bytes_done, bytes_total });
        match planned {
            None => out.write_all(file.tensor_data(info))?,
            Some(planned) => report.tensors.push(edit(file, info, planned, &plan.basis, &mut out)?),
        }
        bytes_done += info.bytes;
        let end = file.data_range(info).end;
        match file.tensors().get(i + 1) {
            Some(next) => out.write_all(&file.bytes()[end..file.data_range(next).start])?,
            None if new.is_empty() => out.write_all(&file.bytes()[end..])?,
            None => out.pad(info.bytes, file.alignment())?,
        }
    }
    if file.tensors().is_empty() {
        out.write_all(&file.bytes()[file.header_bytes().end..])?;
    }
    if let Some(info) = head {
        out.write_all(file.tensor_data(info))?;
        out.pad(info.bytes, file.alignment())?;
    }
    report.file_size = out.bytes;
    output.commit()?;
    progress(Progress { tensor: None, edited: false, bytes_done, bytes_total });

    report.n_edited = report.tensors.iter().filter(|t| t.edited).count();
    report.n_untouched = file.tensors().len() - report.n_edited;
    report.max_leak = report.tensors.iter().map(|t| t.leak).fold(0.0, f64::max);
    Ok(report)
}

fn embedding(file: &GgufFile) -> Result<&TensorInfo, RewriteError> {
    let name = "token_embd.weight";
    file.tensor(name).ok_or_else(|| RewriteError::OtherFile { tensor: name.into() })
}

/// Edits one tensor, slice by slice.
fn edit(
    file: &GgufFile,
    info: &TensorInfo,
    planned: &PlannedTensor,
    basis: &Basis,
    out: &mut dyn Write,
) -> Result<TensorReport, RewriteError> {
    let writer = &planned.writer;
    let basis = &seen_by(file, writer, basis)?;
    let data = file.tensor_data(info);
    let (n, rows) = (info.ne[0] as usize, info.rows() as usize);
    let rows_per_slice = if writer.axis == Axis::Output { info.ne[1] as usize } else { rows };
    let mut sums = Sums::default();
    if rows > 0 && n > 0 {
        let slice_bytes = data.len() / rows * rows_per_slice;
        for (slice, data) in data.chunks(slice_bytes).enumerate() {
            let first_row = slice * rows_per_slice;
            let matrix = Matrix { name: &info.name, ty: info.ty, data, n, rows: rows_per_slice, first_row };
            sums.add(orthogonalize(matrix, basis, writer.axis, out)?);
        }
    }
    let edited = sums.before > 0.0;
    let ratio = |a: f64, b: f64| if b > 0.0 { (a / b).sqrt() } else { 0.0 };
    Ok(TensorReport {
        name: info.name.clone(),
        r#type: info.ty,
        kind: writer.kind,
        block: writer.block,
        edited,
        leak: ratio(sums.after, sums.before),
        distance: ratio(sums.off, sums.edit),
        share: ratio(sums.before, sums.weight),
        bytes: info.bytes,
    })
}

/// The γ of a norm, every value finite.
pub(super) fn norm_weights(file: &GgufFile, norm: &str) -> Result<Vec<f32>, RewriteError> {
    let tensor = || norm.to_string();
    let info = file.tensor(norm).ok_or_else(|| RewriteError::OtherFile { tensor: tensor() })?;
    let mut gamma = vec![0.0; info.elements() as usize];
    quant::decode(info.ty, file.tensor_data(info), &mut gamma)
        .map_err(|source| RewriteError::Type { tensor: tensor(), source })?;
    match gamma.iter().position(|x| !x.is_finite()) {
        None => Ok(gamma),
        Some(column) => Err(RewriteError::Weight { tensor: tensor(), row: 0, column, value: gamma[column] }),
    }
}

/// Counts what passes.
struct Counted<'a> {
    out: &'a mut OutputFile,
    bytes: u64,
}

impl Counted<'_> {
    /// Zeros after data of this many bytes.
    fn pad(&mut self, bytes: u64, alignment: u64) -> io::Result<()> {
        let end = padded(bytes, alignment).unwrap_or(bytes);
        self.write_all(&vec![0; (end - bytes) as usize])
    }
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
