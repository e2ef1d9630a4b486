//! Streaming a file through a plan.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::thread::{self, ScopedJoinHandle};

use super::editor::Editor;
use super::{How, Plan, Report, RewriteError, TensorReport, header};
use crate::gguf::{GgufError, GgufFile, NewTensor, Part, TensorInfo, Value, amended_header, padded};
use crate::output::{OutputFile, commit_parts};
use crate::quant::{self, GgmlType};

/// Bytes of an edited tensor after which the memory of the input behind them is let go.
const RELEASE: u64 = 16 << 20;

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

/// A rewritten model, complete beside its path and not there yet. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct Written {
    report: Report,
    file: GgufFile,
    outputs: Vec<OutputFile>,
}

impl Written {
    /// What was done.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The new model, read back.
    #[must_use]
    pub fn file(&self) -> &GgufFile {
        &self.file
    }

    /// Writes it through to the disk and gives it its path; a split model under the names of
    /// [`part_paths`](crate::gguf::part_paths).
    ///
    /// # Errors
    /// [`RewriteError::Output`]; the output path is then as it was before.
    pub fn commit(self) -> Result<Report, RewriteError> {
        let Self { report, file, outputs } = self;
        // Some systems do not rename a mapped file.
        drop(file);
        commit_parts(outputs)?;
        Ok(report)
    }
}

/// Writes `file` as `plan` says, `provenance` keys set in its header, to where it can be verified and then named by
/// [`Written::commit`]. A split model becomes as many parts.
///
/// What the plan does not name is copied byte for byte, bytes between and behind the tensors included, or shared where
/// the file system can clone. The header is copied too, except for the keys (see [`amended_header`]): with any
/// `provenance`, the `ggsteer.` keys of an earlier edit make way for it and are kept as one line of `ggsteer.history`.
/// The edited tensors' bytes do not depend on the number of threads. Memory: some tens of megabytes beside the tensor
/// that is being edited.
///
/// # Errors
/// [`RewriteError`]; nothing is left of the output.
pub fn execute(
    file: &GgufFile,
    plan: &Plan,
    how: &How<'_>,
    output: OutputFile,
    provenance: &[(String, Value)],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Written, RewriteError> {
    check(file, plan)?;
    let mut editor = Editor::new(file, plan, how)?;
    stream(file, plan, output, provenance, progress, &mut |name, out| editor.edit(name, out))
}

/// How a tensor is edited: all its new bytes, of the planned type, go out in order.
type Edit<'a> = &'a mut dyn FnMut(&str, &mut dyn Write) -> Result<TensorReport, RewriteError>;

/// Whether the plan was made for this file.
pub(super) fn check(file: &GgufFile, plan: &Plan) -> Result<(), RewriteError> {
    for planned in &plan.tensors {
        let fits = file.tensor(&planned.writer.tensor).is_some_and(|info| {
            (info.ty, info.ne, info.bytes) == (planned.r#type, planned.ne, planned.bytes)
        });
        if !fits {
            return Err(RewriteError::OtherFile { tensor: planned.writer.tensor.clone() });
        }
    }
    for addition in &plan.additions {
        let found = file.tensor(&addition.tensor).map(TensorInfo::elements);
        if found != (!addition.is_new).then_some(addition.vector.len() as u64) {
            return Err(RewriteError::OtherFile { tensor: addition.tensor.clone() });
        }
    }
    Ok(())
}

fn stream(
    file: &GgufFile,
    plan: &Plan,
    output: OutputFile,
    provenance: &[(String, Value)],
    progress: &mut dyn FnMut(Progress<'_>),
    edit: Edit<'_>,
) -> Result<Written, RewriteError> {
    let head = if plan.unties() { Some(embedding(file)?) } else { None };
    let mut outputs = output.into_parts(file.n_parts(), &file.paths())?;

    let mut report = Report { untied: plan.unties(), ..Report::default() };
    let by_name = plan.by_name();
    let bytes_total = file.tensors().iter().map(|t| t.bytes).sum();
    let mut bytes_done = 0;
    for (no, (part, out)) in file.parts().iter().zip(&mut outputs).enumerate() {
        // Behind all others: then the tensors have the order they would have in one file.
        let head = head.filter(|_| no + 1 == file.n_parts());
        let changes = header::changes(file, no, plan, provenance, head);
        out.write_all(&amended_header(part.bytes(), part, &changes)?)?;
        let mut to = Through { part, out, at: part.header_bytes().end, shared: 0 };
        let mut data_end = to.at;
        for info in file.tensors().iter().filter(|info| info.part == no) {
            let planned = by_name.get(info.name.as_str());
            let addition = plan.addition(&info.name);
            progress(Progress {
                tensor: Some(&info.name),
                edited: planned.is_some() || addition.is_some(),
                bytes_done,
                bytes_total,
            });
            data_end = file.data_range(info).end;
            if planned.is_some() || addition.is_some() {
                let ty = planned.map_or(info.ty, |planned| planned.out_type);
                part.prefetch(file.data_range(info));
                thread::scope(|scope| {
                    let start = file.data_range(info).start;
                    let to = &mut to;
                    let copying = scope.spawn(move || to.copy(start).map(|()| to));
                    let mut sink = Sink { copying: Some(copying), to: None, given: 0 };
                    match addition {
                        None => report.tensors.push(edit(&info.name, &mut sink)?),
                        Some(addition) => {
                            // A bias: small enough to be held.
                            let mut bytes = Vec::new();
                            if planned.is_some() {
                                report.tensors.push(edit(&info.name, &mut bytes)?);
                            } else {
                                bytes.extend(file.tensor_data(info));
                            }
                            sink.write_all(&addition.add_to(ty, &bytes)?)?;
                        }
                    }
                    sink.finish(info, ty)
                })?;
            }
            bytes_done += info.bytes;
        }
        if changes.add.is_empty() {
            to.copy(part.bytes().len())?;
        } else {
            to.copy(data_end)?;
            to.pad()?;
            if let Some(info) = head {
                let from = &file.parts()[info.part];
                to.shared += to.out.append(from.file(), from.bytes(), file.data_range(info))?;
                to.pad()?;
            }
            for addition in plan.new_biases() {
                to.out.write_all(&addition.new_bytes())?;
                to.pad()?;
            }
        }
        report.shared_bytes += to.shared;
    }
    progress(Progress { tensor: None, edited: false, bytes_done, bytes_total });

    let old_biases = plan.additions.iter().filter(|a| !a.is_new && !report.is_edited(&a.tensor)).count();
    report.n_edited = report.tensors.iter().filter(|t| t.edited).count() + old_biases;
    report.n_untouched = file.tensors().len() - report.n_edited;
    report.max_leak = report.tensors.iter().map(|t| t.figures.leak).fold(0.0, f64::max);
    report.file_size = outputs.iter().map(OutputFile::position).sum();
    report.files = outputs.iter().map(|out| out.path().to_path_buf()).collect();
    let files = outputs.iter_mut().map(OutputFile::reread).collect::<Result<_, _>>()?;
    Ok(Written { report, file: GgufFile::from_files(files)?, outputs })
}

fn embedding(file: &GgufFile) -> Result<&TensorInfo, RewriteError> {
    let name = "token_embd.weight";
    file.tensor(name).ok_or_else(|| RewriteError::OtherFile { tensor: name.into() })
}

/// One part on its way from input to output.
struct Through<'a> {
    part: &'a Part,
    out: &'a mut OutputFile,
    /// The first byte of the input that is not yet dealt with.
    at: usize,
    /// Bytes of the output that are the input's own on the disk.
    shared: u64,
}

impl Through<'_> {
    /// Copies the input up to `end`, as far as it is not dealt with.
    fn copy(&mut self, end: usize) -> io::Result<()> {
        if end > self.at {
            self.shared += self.out.append(self.part.file(), self.part.bytes(), self.at..end)?;
            self.part.release(self.at..end);
            self.at = end;
        }
        Ok(())
    }

    /// Zeros up to the alignment.
    fn pad(&mut self) -> Result<(), RewriteError> {
        let at = self.out.position();
        let zeros = padded(at, self.part.alignment()).unwrap_or(at) - at;
        Ok(self.out.write_all(&vec![0; zeros as usize])?)
    }
}

/// Where the new bytes of a tensor go. What lies before it is copied meanwhile: an edit has much to read before it writes.
struct Sink<'s, 'a> {
    copying: Option<ScopedJoinHandle<'s, io::Result<&'s mut Through<'a>>>>,
    to: Option<&'s mut Through<'a>>,
    given: u64,
}

impl<'a> Sink<'_, 'a> {
    /// The part, at the tensor.
    fn ready(&mut self) -> io::Result<&mut Through<'a>> {
        if let Some(copying) = self.copying.take() {
            self.to =
                Some(copying.join().unwrap_or_else(|_| Err(io::Error::other("the copy was interrupted")))?);
        }
        self.to.as_deref_mut().ok_or_else(|| io::Error::other("the copy had failed"))
    }

    /// Checks that all came, and passes over the tensor in the input.
    fn finish(mut self, info: &TensorInfo, ty: GgmlType) -> Result<(), RewriteError> {
        let given = self.given;
        let to = self.ready()?;
        let tensor = NewTensor { name: info.name.clone(), ne: info.shape().to_vec(), ty };
        let expected = tensor.bytes()?;
        if given != expected {
            return Err(GgufError::TensorBytes { name: tensor.name, given, expected }.into());
        }
        let end = to.at + info.bytes as usize;
        to.part.release(to.at..end);
        to.at = end;
        if ty != info.ty {
            to.pad()?;
            let next = padded(end as u64, to.part.alignment()).unwrap_or(end as u64);
            to.at = to.part.bytes().len().min(next as usize);
        }
        Ok(())
    }
}

impl Write for Sink<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let given = self.given;
        let to = self.ready()?;
        let n = to.out.write(bytes)?;
        let (before, now) = (given / RELEASE, (given + n as u64) / RELEASE);
        if now > before {
            // An edit reads about as far as it writes, and what it still needs it can read again.
            let range = (before * RELEASE) as usize..(now * RELEASE) as usize;
            let end = to.part.bytes().len();
            to.part.release((to.at + range.start).min(end)..(to.at + range.end).min(end));
        }
        self.given += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.ready()?.out.flush()
    }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::arch::{Writer, WriterKind};
    use crate::rewrite::{Figures, Method, PlannedTensor, Tied};

    fn ty(name: &str) -> GgmlType {
        GgmlType::all().find(|ty| ty.name() == name).unwrap()
    }

    /// Tensors of 3 rows of 32, the middle ones F32, and a few bytes behind that are nobody's.
    fn input(path: &Path, alignment: u32) -> GgufFile {
        let mut writer = crate::gguf::Writer::new().key("general.alignment", alignment);
        let names = ["a", "b", "c", "d", "e"];
        for name in names {
            writer =
                writer.tensor(name, &[32, 3], if "bcd".contains(name) { GgmlType::F32 } else { ty("q8_0") });
        }
        let mut stream = writer.start(Vec::new()).unwrap();
        for i in 0..names.len() as u8 {
            let bytes = if (1..4).contains(&i) { [i, 0, i, 0x40].repeat(96) } else { vec![i + 1; 102] };
            stream.data(&bytes).unwrap();
        }
        let mut bytes = stream.finish().unwrap();
        bytes.extend(b"nobody's");
        std::fs::write(path, bytes).unwrap();
        GgufFile::open(path).unwrap()
    }

    fn plan(file: &GgufFile, retype: &[(&str, GgmlType)]) -> Plan {
        let planned = |&(name, out_type): &(&str, GgmlType)| {
            let info = file.tensor(name).unwrap();
            PlannedTensor {
                writer: Writer::matrix(name, None, WriterKind::FfnDown),
                r#type: info.ty,
                out_type,
                ne: info.ne,
                bytes: info.bytes,
                strength: 1.0,
                preserve_norm: false,
            }
        };
        Plan {
            architecture: "llama".into(),
            rank: 1,
            tensors: retype.iter().map(planned).collect(),
            additions: Vec::new(),
            tied_embeddings: false,
            tied: Tied::Edit,
            partial: None,
            n_tensors: file.tensors().len(),
            basis: Vec::new(),
        }
    }

    fn report(name: &str) -> TensorReport {
        TensorReport {
            name: name.into(),
            r#type: GgmlType::F32,
            out_type: GgmlType::F32,
            kind: WriterKind::FfnDown,
            block: None,
            edited: true,
            method: Method::Exact,
            figures: Figures::default(),
            saturated: 0,
            saturated_share: 0.0,
            bytes: 0,
            error_x: 0.0,
        }
    }

    #[test]
    fn tensors_of_another_type_move_those_behind_them() {
        let dir = tempfile::tempdir().unwrap();
        for alignment in [1, 8, 32, 4096] {
            let file = input(&dir.path().join("in.gguf"), alignment);
            for retype in [
                &[("b", ty("q4_0"))][..],
                &[("a", GgmlType::F32), ("d", ty("q5_1"))],
                &[("e", GgmlType::F32)],
                &[("c", GgmlType::F32)],
            ] {
                let plan = plan(&file, retype);
                let out = OutputFile::create(&dir.path().join("out.gguf"), true, &[]).unwrap();
                let mut fill = |name: &str, out: &mut dyn Write| {
                    let planned = plan.tensors.iter().find(|p| p.writer.tensor == name).unwrap();
                    let bytes = planned.out_type.row_size(32).unwrap() as usize * 3;
                    // In pieces, as an edit comes.
                    out.write_all(&[0x11; 10])?;
                    out.write_all(&vec![0x11; bytes - 10])?;
                    Ok(report(name))
                };
                let keys = [("ggsteer.edit".to_string(), Value::from("test"))];
                let written = stream(&file, &plan, out, &keys, &mut |_| {}, &mut fill).unwrap();
                assert_eq!(written.report().file_size, written.file().file_len());
                for (old, new) in file.tensors().iter().zip(written.file().tensors()) {
                    let (name, ty) = (&new.name, retype.iter().find(|(name, _)| *name == new.name));
                    let data = written.file().tensor_data(new);
                    assert_eq!((name, new.ty), (&old.name, ty.map_or(old.ty, |(_, ty)| *ty)));
                    match ty {
                        Some(_) => assert!(data.iter().all(|b| *b == 0x11), "{name}"),
                        None => assert_eq!(data, file.tensor_data(old), "{name}"),
                    }
                }
                assert!(written.file().bytes().ends_with(b"nobody's"));
                crate::rewrite::verify_untouched(&file, written.file(), &plan).unwrap();
                written.commit().unwrap();
            }
        }
    }

    #[test]
    fn an_edit_that_writes_too_little_or_too_much_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = input(&dir.path().join("in.gguf"), 32);
        let plan = plan(&file, &[("b", GgmlType::F32)]);
        for n in [383, 385] {
            let out = OutputFile::create(&dir.path().join("out.gguf"), false, &[]).unwrap();
            let mut fill = |name: &str, out: &mut dyn Write| {
                out.write_all(&vec![0; n])?;
                Ok(report(name))
            };
            let error = stream(&file, &plan, out, &[], &mut |_| {}, &mut fill).unwrap_err();
            assert_eq!(error.to_string(), format!("tensor \"b\": {n} bytes given, 384 expected"));
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
