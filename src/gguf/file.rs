//! A GGUF file on disk, mapped and parsed.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::{Gguf, GgufError, TensorInfo};

/// A mapped file and its parsed header. Dereferences to the header.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    map: Mmap,
    gguf: Gguf,
}

impl GgufFile {
    /// Maps and parses a file. The file must not be changed or cut short by others while it is open.
    ///
    /// # Errors
    /// [`GgufError::Io`] with the path, or what [`Gguf::parse`] finds wrong.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, GgufError> {
        let path = path.as_ref();
        let fail = |source| GgufError::Io { path: path.into(), source };
        let file = File::open(path).map_err(fail)?;
        if !file.metadata().map_err(fail)?.is_file() {
            return Err(fail(std::io::Error::other("not a regular file")));
        }
        // SAFETY: the map is read-only and lives no longer than this value. That nobody else changes the file meanwhile
        // is the caller's duty, stated above, as with every reader of mapped models; this program never writes to a
        // file it has open as input (see `OutputFile`).
        let map = unsafe { Mmap::map(&file) }.map_err(fail)?;
        let gguf = Gguf::parse(&map)?;
        Ok(Self { path: path.into(), map, gguf })
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The header.
    #[must_use]
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// A tensor's data. `info` must be one of this file's.
    #[must_use]
    pub fn tensor_data(&self, info: &TensorInfo) -> &[u8] {
        &self.map[self.gguf.data_range(info)]
    }
}

impl std::ops::Deref for GgufFile {
    type Target = Gguf;
    fn deref(&self) -> &Gguf {
        &self.gguf
    }
}

/// A cheap fingerprint of a model file, lower-case hex: SHA-256 over the header bytes (all up to the data section), the
/// length of the file as a little-endian u64, and 64 samples of 4 KiB, evenly spaced over the data section from its
/// first byte to its last (the whole section when it is no longer than the samples together).
///
/// It tells models, quantizations and files with other metadata apart in milliseconds on tens of gigabytes. It is no
/// proof that every byte is the same.
#[must_use]
pub fn fingerprint(file: &GgufFile) -> String {
    const SAMPLES: usize = 64;
    const SAMPLE: usize = 4096;
    let (header, data) = file.bytes().split_at(file.header_bytes().end);
    let mut hash = Sha256::new();
    hash.update(header);
    hash.update(file.file_len().to_le_bytes());
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
    crate::hex(&hash.finalize())
}
