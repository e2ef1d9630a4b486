//! GGUF files on disk, mapped and parsed: a model of one file or of several parts as one.
#![allow(unsafe_code)]

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::reader::by_name;
use super::split::Split;
use super::{Gguf, GgufError, TensorInfo};

/// Bytes around one that is read which Linux may map with it.
const AROUND: usize = 1 << 16;
/// Bytes of two tensors compared at a time.
const PIECE: usize = 16 << 20;

/// One file, mapped and parsed. Dereferences to its own header.
#[derive(Debug)]
pub struct Part {
    path: PathBuf,
    file: File,
    map: Mmap,
    gguf: Gguf,
}

impl Part {
    fn open(path: &Path) -> Result<Self, GgufError> {
        let file = File::open(path).map_err(|source| GgufError::Io { path: path.into(), source })?;
        Self::new(path, file)
    }

    fn new(path: &Path, file: File) -> Result<Self, GgufError> {
        let fail = |source| GgufError::Io { path: path.into(), source };
        if !file.metadata().map_err(fail)?.is_file() {
            return Err(fail(io::Error::other("not a regular file")));
        }
        // SAFETY: the map is read-only and lives no longer than this value. That nobody else changes the file meanwhile
        // is the caller's duty, stated at `GgufFile::open`, as with every reader of mapped models; this program never
        // writes to a file it has open as input (see `OutputFile`).
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        let gguf = Gguf::parse(&map)?;
        Ok(Self { path: path.into(), file, map, gguf })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself, open for reading.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The whole file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Has the file system start to read bytes that are wanted soon. Without effect where it cannot.
    pub fn prefetch(&self, range: Range<usize>) {
        #[cfg(unix)]
        let _ = self.map.advise_range(memmap2::Advice::WillNeed, range.start, range.len());
    }

    /// Lets go of the memory behind bytes that are done with: where they are used again, they are read again.
    pub fn release(&self, range: Range<usize>) {
        // With what came along at both ends, of which some would be left behind every time otherwise.
        let start = range.start.saturating_sub(AROUND).min(self.map.len());
        let end = range.end.saturating_add(AROUND).min(self.map.len());
        #[cfg(unix)]
        // SAFETY: the map is read-only and backed by the file: what is dropped is this process's view of pages, which a
        // later access fills with the same bytes again.
        let _ = unsafe {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            self.map.unchecked_advise_range(advice, start, end - start)
        };
    }
}

impl std::ops::Deref for Part {
    type Target = Gguf;
    fn deref(&self) -> &Gguf {
        &self.gguf
    }
}

/// A model, or another GGUF file: one file, or all parts of a split model. Dereferences to the header; of a split model
/// that is the first part's metadata with the tensors of all parts, in order.
#[derive(Debug)]
pub struct GgufFile {
    parts: Vec<Part>,
    /// The header of all parts together, where there are several.
    whole: Option<Gguf>,
}

impl GgufFile {
    /// Maps and parses a file, with all other parts where it is a part of a split model. The files must not be changed
    /// or cut short by others while they are open.
    ///
    /// # Errors
    /// [`GgufError::Io`] with the path, what [`Gguf::parse`] finds wrong, and parts that are missing, misnamed, or of
    /// another model.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let part = Part::open(path)?;
        let Some(split) = Split::of(&part)? else {
            return Ok(Self { parts: vec![part], whole: None });
        };
        let mut given = Some(part);
        let mut parts = Vec::new();
        for (no, path) in split.paths(path)?.into_iter().enumerate() {
            let part = if no == usize::from(split.no) { given.take() } else { None };
            parts.push(part.map_or_else(|| Part::open(&path), Ok).map_err(|error| match error {
                GgufError::Io { path, source } => {
                    GgufError::MissingPart { path, no: no as u64 + 1, count: split.count.into(), source }
                }
                error => GgufError::Part { path, source: Box::new(error) },
            })?);
        }
        Self::assemble(parts, split)
    }

    /// As [`GgufFile::open`], of files that are open already and will be known by these paths: one, or all parts.
    pub(crate) fn from_files(files: Vec<(PathBuf, File)>) -> Result<Self, GgufError> {
        let parts = files.into_iter().map(|(path, file)| Part::new(&path, file));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        match Split::of(&parts[0])? {
            Some(split) => Self::assemble(parts, split),
            None => Ok(Self { parts, whole: None }),
        }
    }

    /// Checks that the parts belong together: what llama.cpp checks, and that they are of one model.
    fn assemble(parts: Vec<Part>, split: Split) -> Result<Self, GgufError> {
        let first = &parts[0];
        let mut whole = first.gguf.clone();
        let mut names: HashSet<&str> = HashSet::new();
        for (no, part) in parts.iter().enumerate() {
            let path = || part.path.clone();
            let other = |key, expected: String, found: String| {
                if expected == found {
                    return Ok(());
                }
                Err(GgufError::OtherPart { path: path(), key, expected, found })
            };
            let own = Split::of(part).map_err(|e| GgufError::Part { path: path(), source: Box::new(e) })?;
            other("split.count", split.count.to_string(), own.map_or(1, |own| own.count).to_string())?;
            let own = own.unwrap_or(split);
            other("split.no", no.to_string(), own.no.to_string())?;
            other("split.tensors.count", split.n_tensors.to_string(), own.n_tensors.to_string())?;
            // Only the first part need say what the model is.
            if let (Ok(expected), Ok(found)) = (first.arch(), part.arch()) {
                other("general.architecture", format!("{expected:?}"), format!("{found:?}"))?;
            }
            if let Some(twice) = part.tensors().iter().find(|t| !names.insert(&t.name)) {
                return Err(GgufError::PartTensor { path: path(), name: twice.name.clone() });
            }
            if no > 0 {
                whole.data_starts.extend(&part.data_starts);
                whole.file_len += part.file_len;
                whole.tensors.extend(part.tensors.iter().map(|t| TensorInfo { part: no, ..t.clone() }));
            }
        }
        if i64::from(split.n_tensors) != whole.tensors.len() as i64 {
            return Err(GgufError::PartTensors {
                path: first.path.clone(),
                expected: split.n_tensors.into(),
                count: parts.len(),
                found: whole.tensors.len(),
            });
        }
        whole.by_name = by_name(&whole.tensors);
        Ok(Self { parts, whole: Some(whole) })
    }

    /// The path it was opened by; of a split model, that of the first part, by which llama.cpp loads the whole.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// The files, in order: one, or all parts of a split model.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The paths of the files, in order.
    #[must_use]
    pub fn paths(&self) -> Vec<&Path> {
        self.parts.iter().map(Part::path).collect()
    }

    /// The whole file; of a split model, the first part.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.parts[0].map
    }

    /// The header.
    #[must_use]
    pub fn gguf(&self) -> &Gguf {
        self.whole.as_ref().unwrap_or(&self.parts[0].gguf)
    }

    /// A tensor's data. `info` must be one of this file's.
    #[must_use]
    pub fn tensor_data(&self, info: &TensorInfo) -> &[u8] {
        &self.parts[info.part].map[self.data_range(info)]
    }

    /// The first byte at which the data of `info` and that of another file's tensor differ, or at which one of them
    /// ends. Takes no more memory than a few pieces of them, whatever their size.
    #[must_use]
    pub fn first_difference(&self, info: &TensorInfo, other: (&Self, &TensorInfo)) -> Option<usize> {
        let differs = self.pieces(info, other, |start, a, b| {
            let at = if a == b { None } else { a.iter().zip(b).position(|(x, y)| x != y) };
            at.map(|at| start + at)
        });
        let (ours, theirs) = (info.bytes as usize, other.1.bytes as usize);
        let ends = (ours != theirs).then_some(ours.min(theirs));
        differs.find_first(Option::is_some).flatten().or(ends)
    }

    /// How many bytes of the data of `info` and that of another file's tensor differ, as far as both go. Takes as little
    /// memory as [`GgufFile::first_difference`].
    #[must_use]
    pub fn n_differences(&self, info: &TensorInfo, other: (&Self, &TensorInfo)) -> u64 {
        self.pieces(info, other, |_, a, b| a.iter().zip(b).filter(|(x, y)| x != y).count() as u64).sum()
    }

    /// What `f` makes of the data of two tensors, piece by piece, given each with its place. The memory behind a piece is
    /// let go then.
    fn pieces<'a, T: Send>(
        &'a self,
        info: &'a TensorInfo,
        other: (&'a Self, &'a TensorInfo),
        f: impl Fn(usize, &[u8], &[u8]) -> T + Send + Sync + 'a,
    ) -> impl IndexedParallelIterator<Item = T> + 'a {
        let sides = [(self, info), other];
        let common = info.bytes.min(other.1.bytes) as usize;
        (0..common.div_ceil(PIECE)).into_par_iter().map(move |piece| {
            let (start, end) = (piece * PIECE, common.min((piece + 1) * PIECE));
            let [a, b] = sides.map(|(file, info)| &file.tensor_data(info)[start..end]);
            let found = f(start, a, b);
            for (file, info) in sides {
                let at = file.data_range(info).start;
                file.parts[info.part].release(at + start..at + end);
            }
            found
        })
    }

    /// Lets go of the memory behind a tensor's data, see [`Part::release`].
    pub fn release(&self, info: &TensorInfo) {
        self.parts[info.part].release(self.data_range(info));
    }
}

impl std::ops::Deref for GgufFile {
    type Target = Gguf;
    fn deref(&self) -> &Gguf {
        self.gguf()
    }
}

/// A cheap fingerprint of a model file, lower-case hex: SHA-256 over the header bytes (all up to the data section), the
/// length of the file as a little-endian u64, and 64 samples of 4 KiB, evenly spaced over the data section from its
/// first byte to its last (the whole section when it is no longer than the samples together). Of a split model:
/// SHA-256 over the digests of its parts, in order.
///
/// It tells models, quantizations and files with other metadata apart in milliseconds on tens of gigabytes. It is no
/// proof that every byte is the same.
#[must_use]
pub fn fingerprint(file: &GgufFile) -> String {
    let digests: Vec<[u8; 32]> = file.parts.iter().map(digest).collect();
    match &digests[..] {
        [one] => crate::hex(one),
        all => crate::hex(&Sha256::digest(all.concat())),
    }
}

fn digest(part: &Part) -> [u8; 32] {
    const SAMPLES: usize = 64;
    const SAMPLE: usize = 4096;
    let (header, data) = part.bytes().split_at(part.header_bytes().end);
    let mut hash = Sha256::new();
    hash.update(header);
    hash.update(part.file_len().to_le_bytes());
    if data.len() <= SAMPLES * SAMPLE {
        hash.update(data);
    } else {
        let span = data.len() - SAMPLE;
        for i in 0..SAMPLES {
            // In u128: the product of a length and an index could overflow a 32-bit usize.
            let start = (span as u128 * i as u128 / (SAMPLES as u128 - 1)) as usize;
            hash.update(&data[start..start + SAMPLE]);
        }
    }
    hash.finalize().into()
}
